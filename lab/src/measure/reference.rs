//! The calls that the reference makes, by its rules.
//!
//! A model of the parts of its pool manager that decide about EC2 calls, under simulated time:
//!
//! - its start on a node with one ENI: the ENIs described, the primary tagged, its subnet
//!   described, its security groups set, and one growth step before the socket opens;
//! - a loop that sleeps 2.5 s, takes one growth or shrinking step, and sleeps 2.5 s;
//! - growth: one assignment to the first ENI with room, else one new ENI, which costs six calls
//!   (subnets described, created, instance described, attached, tied to the instance, subnets
//!   described again) and the wait until the metadata service shows it;
//! - how much: with WARM_IP_TARGET `warm - available` addresses, else a whole ENI's worth while
//!   less than WARM_ENI_TARGET of them is available; with prefixes one at a time until
//!   WARM_PREFIX_TARGET of them are available; nothing once the node holds its maximum of pods;
//! - available is what no pod has: an address that rests after a pod counts, but is not given out;
//! - shrinking: surplus over WARM_IP_TARGET is given back at once, but no more often than every
//!   30 s;
//! - an ADD without a free and rested address fails, and the kubelet tries again each second.
//!
//! Left out, since no scenario here needs them: ENIs that are given back, several network cards,
//! and the hourly search for leaked ENIs.

use std::collections::BTreeMap;

/// Milliseconds of simulated time.
type Millis = u64;

const STEP: Millis = 100;
const HALF_TICK: Millis = 2500;
const BETWEEN_SHRINKING: Millis = 30_000;
const RETRY: Millis = 1000;

/// A node under the reference.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// ENIs that the instance may have.
    pub enis: usize,
    /// Addresses or prefixes that an ENI may hold beside its own address.
    pub slots: usize,
    /// Whether it holds prefixes.
    pub uses_prefixes: bool,
    /// WARM_IP_TARGET; 0 is off, and then WARM_ENI_TARGET and WARM_PREFIX_TARGET are 1.
    pub warm_ip: usize,
    /// The kubelet's limit.
    pub max_pods: usize,
    /// How long an assignment takes.
    pub assign: Millis,
    /// How long a new ENI takes, from the first call until its addresses serve.
    pub new_eni: Millis,
}

/// What happens to pods at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEvent {
    /// A pod arrives.
    Arrives,
    /// The oldest pod with an address leaves.
    OldestLeaves,
}

/// What came of a history.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Calls by action, those of the start included.
    pub calls: BTreeMap<&'static str, u64>,
    /// ADDs that failed, repeats included.
    pub failed: u32,
    /// When the last pod got its address, in milliseconds since the socket opened.
    pub last_served: Millis,
}

impl Ran {
    /// Calls of all actions.
    pub fn total_calls(&self) -> u64 {
        self.calls.values().sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Address {
    /// Free; usable from then on.
    Free(Millis),
    /// A pod's, since then.
    Assigned(Millis),
}

/// An address by itself, or the sixteen of a prefix.
type Cidr = Vec<Address>;

/// The reference at work.
#[derive(Debug)]
struct Node {
    rules: Rules,
    cooldown: Millis,
    enis: Vec<Vec<Cidr>>,
    ran: Ran,
    /// When each waiting pod asks next.
    waiting: Vec<Millis>,
    last_shrinking: Option<Millis>,
}

/// Runs a node from its first start until `until`, with pods that come and go at these
/// milliseconds since its socket opened. Addresses rest for 30 s.
pub fn run(rules: Rules, events: &[(Millis, PodEvent)], until: Millis) -> Ran {
    let mut node = Node {
        rules,
        cooldown: 30_000,
        enis: vec![Vec::new()],
        ran: Ran::default(),
        waiting: Vec::new(),
        last_shrinking: None,
    };
    for action in
        ["DescribeNetworkInterfaces", "CreateTags", "DescribeSubnets", "ModifyNetworkInterfaceAttribute"]
    {
        node.call(action);
    }
    if let Some(growth) = node.growth() {
        node.grown(growth);
    }
    let mut events = events.iter().peekable();
    // The loop's next decision, and a growth step under way with its end.
    let mut decide_at = HALF_TICK;
    let mut under_way: Option<(Millis, Growth)> = None;
    for now in (0..=until).step_by(usize::try_from(STEP).unwrap_or(1)) {
        if let Some((end, growth)) = under_way
            && end <= now
        {
            node.grown(growth);
            under_way = None;
            decide_at = now + 2 * HALF_TICK;
        }
        while let Some((_, event)) = events.next_if(|(at, _)| *at <= now) {
            match event {
                PodEvent::Arrives => node.waiting.push(now),
                PodEvent::OldestLeaves => node.release_oldest(now),
            }
        }
        node.serve(now);
        if under_way.is_none() && decide_at <= now {
            match node.growth() {
                Some(growth) => under_way = Some((now + node.duration(growth), growth)),
                None => {
                    node.shrink(now);
                    decide_at = now + 2 * HALF_TICK;
                }
            }
        }
    }
    node.ran
}

/// One step of growth.
#[derive(Debug, Clone, Copy)]
enum Growth {
    Assign { eni: usize, cidrs: usize },
    NewEni { cidrs: usize },
}

impl Node {
    fn call(&mut self, action: &'static str) {
        *self.ran.calls.entry(action).or_default() += 1;
    }

    fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.enis.iter().flatten().flatten()
    }

    fn available(&self) -> usize {
        self.addresses().filter(|it| matches!(it, Address::Free(_))).count()
    }

    /// What to grow by now.
    fn growth(&self) -> Option<Growth> {
        let Rules { slots, enis, uses_prefixes, warm_ip, max_pods, .. } = self.rules;
        let (total, available) = (self.addresses().count(), self.available());
        let per_cidr = if uses_prefixes { 16 } else { 1 };
        let short = warm_ip.saturating_sub(available).div_ceil(per_cidr);
        let is_low = match (warm_ip > 0, uses_prefixes) {
            (true, _) => short > 0,
            (false, true) => available < 16,
            (false, false) => available < slots,
        };
        if !is_low || total >= max_pods {
            return None;
        }
        let wanted = match (warm_ip > 0, uses_prefixes) {
            (true, _) => short,
            (false, true) => 1,
            (false, false) => slots,
        };
        match self.enis.iter().position(|eni| eni.len() < slots) {
            Some(eni) => Some(Growth::Assign { eni, cidrs: wanted.min(slots - self.enis[eni].len()) }),
            None => (self.enis.len() < enis).then_some(Growth::NewEni { cidrs: wanted.min(slots) }),
        }
    }

    fn duration(&self, growth: Growth) -> Millis {
        match growth {
            Growth::Assign { .. } => self.rules.assign,
            Growth::NewEni { .. } => self.rules.new_eni,
        }
    }

    fn grown(&mut self, growth: Growth) {
        let per_cidr = if self.rules.uses_prefixes { 16 } else { 1 };
        let fresh = |cidrs| std::iter::repeat_n(vec![Address::Free(0); per_cidr], cidrs);
        match growth {
            Growth::Assign { eni, cidrs } => {
                self.call("AssignPrivateIpAddresses");
                self.enis[eni].extend(fresh(cidrs));
            }
            Growth::NewEni { cidrs } => {
                for action in [
                    "DescribeSubnets",
                    "CreateNetworkInterface",
                    "DescribeInstances",
                    "AttachNetworkInterface",
                    "ModifyNetworkInterfaceAttribute",
                    "DescribeSubnets",
                ] {
                    self.call(action);
                }
                self.enis.push(fresh(cidrs).collect());
            }
        }
    }

    /// Gives back what is beyond WARM_IP_TARGET, one call per ENI.
    fn shrink(&mut self, now: Millis) {
        let warm = self.rules.warm_ip;
        let mut over = self.available().saturating_sub(warm);
        let is_too_soon = self.last_shrinking.is_some_and(|last| now < last + BETWEEN_SHRINKING);
        if warm == 0 || self.rules.uses_prefixes || over == 0 || is_too_soon {
            return;
        }
        self.last_shrinking = Some(now);
        for index in 0..self.enis.len() {
            let before = self.enis[index].len();
            self.enis[index].retain(|cidr| {
                let goes = over > 0 && cidr.iter().all(|it| matches!(it, Address::Free(_)));
                over -= usize::from(goes);
                !goes
            });
            if self.enis[index].len() < before {
                self.call("UnassignPrivateIpAddresses");
            }
        }
    }

    fn serve(&mut self, now: Millis) {
        for pod in std::mem::take(&mut self.waiting) {
            if pod > now {
                self.waiting.push(pod);
                continue;
            }
            let mut free = self.enis.iter_mut().flatten().flatten();
            match free.find(|it| matches!(it, Address::Free(from) if *from <= now)) {
                Some(address) => {
                    *address = Address::Assigned(now);
                    self.ran.last_served = now;
                }
                None => {
                    self.ran.failed += 1;
                    self.waiting.push(now + RETRY);
                }
            }
        }
    }

    fn release_oldest(&mut self, now: Millis) {
        let age = |it: &&mut Address| match it {
            Address::Assigned(since) => *since,
            Address::Free(_) => Millis::MAX,
        };
        let until = now + self.cooldown;
        if let Some(oldest) = self.enis.iter_mut().flatten().flatten().min_by_key(age)
            && matches!(oldest, Address::Assigned(_))
        {
            *oldest = Address::Free(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M5_LARGE: Rules = Rules {
        enis: 3,
        slots: 9,
        uses_prefixes: false,
        warm_ip: 0,
        max_pods: 29,
        assign: 400,
        new_eni: 3750,
    };

    fn at_once(pods: usize) -> Vec<(Millis, PodEvent)> {
        vec![(0, PodEvent::Arrives); pods]
    }

    #[test]
    fn a_start_without_pods_costs_five_calls() {
        let ran = run(M5_LARGE, &[], 60_000);

        assert_eq!(ran.total_calls(), 5, "{ran:?}");
    }

    #[test]
    fn each_new_eni_costs_six_calls_and_a_tick() {
        let ran = run(M5_LARGE, &at_once(27), 60_000);

        assert_eq!(ran.total_calls(), 5 + 2 * 6, "{ran:?}");
        assert!((14_000..=16_000).contains(&ran.last_served), "measured: 15 s; {ran:?}");
    }

    #[test]
    fn a_large_node_fills_an_eni_at_a_time() {
        let rules = Rules { enis: 8, slots: 29, max_pods: 234, ..M5_LARGE };

        let ran = run(rules, &at_once(232), 120_000);

        assert_eq!(ran.total_calls(), 47, "{ran:?}");
        assert!((57_000..=61_000).contains(&ran.last_served), "measured: 59 s; {ran:?}");
    }

    #[test]
    fn prefixes_come_one_at_a_tick() {
        let rules = Rules { uses_prefixes: true, max_pods: 110, ..M5_LARGE };

        let ran = run(rules, &at_once(110), 60_000);

        assert_eq!(ran.calls["AssignPrivateIpAddresses"], 7, "{ran:?}");
        assert!((28_000..=32_000).contains(&ran.last_served), "measured: 30 s; {ran:?}");
    }

    #[test]
    fn churn_with_a_warm_target_becomes_churn_of_calls() {
        let rules = Rules { warm_ip: 2, ..M5_LARGE };
        let mut events = at_once(5);
        for pod in 0..360 {
            events.push((60_000 + pod * 10_000, PodEvent::Arrives));
            events.push((65_000 + pod * 10_000, PodEvent::OldestLeaves));
        }

        let ran = run(rules, &events, 60_000 + 3_600_000);

        assert!(ran.calls["UnassignPrivateIpAddresses"] > 50, "{ran:?}");
        assert!(ran.calls["AssignPrivateIpAddresses"] > 50, "{ran:?}");
    }
}
