//! What happens in one run, as plain data: drawn from a seed, and easy to make smaller.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ipnet::Ipv4Net;
use vpc::InstanceLimits;

use super::chance::Chance;
use super::disk::DiskTrouble;

/// How a call to EC2 goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    Error(&'static str),
    Throttle,
    Deny,
    Expired,
    Hang,
    LoseAnswer,
    Drop,
}

/// What a person does to the ENIs of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByHand {
    Detach,
    Unassign,
    AttachUntagged,
    AttachUnmanaged,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A pod comes, and goes after `life`; so many times, under the same name.
    Pod { node: usize, name: u32, lives: u32, life: Duration, salt: u64 },
    /// Calls of an action go wrong, at most so many, for so long.
    Fault { action: &'static str, wrong: Wrong, times: u32, lasts: Duration },
    /// The daemon is killed: now, or at its so many'th operation from now.
    Kill { node: usize, after: Option<u32> },
    /// The daemon is asked to end, and started anew.
    Restart { node: usize },
    /// The machine is switched off and on.
    Reboot { node: usize },
    /// The wall clock jumps by so many seconds.
    WallJump { node: usize, secs: i64 },
    /// The disk is out of order for a while.
    Disk { node: usize, trouble: DiskTrouble, lasts: Duration },
    /// The daemon is killed, and a state file is damaged before it starts again.
    Damage { node: usize, is_sidecar: bool },
    /// The daemon starts anew with prefix delegation where it had none, or the other way round.
    Switch { node: usize },
    /// The tag that offers a subnet to pods, or with 0 forbids it, is set.
    Tag { subnet: usize, value: &'static str },
    /// Somebody takes single addresses all over the subnets, so that few /28 blocks are whole.
    Fragment { every: u32, lasts: Duration },
    /// Somebody changes the node's ENIs.
    Hand { node: usize, what: ByHand, salt: u64 },
    /// The subnets are filled up to so many free addresses, for a while.
    Fill { leave: u32, lasts: Duration },
    /// IMDS shows the state of so long ago, for a while.
    ImdsLag { lag: Duration, lasts: Duration },
    /// IMDS does not answer, for a while.
    ImdsDown { lasts: Duration },
    /// Links take so long to appear, for a while.
    LateLinks { node: usize, delay: Duration, lasts: Duration },
    /// The account's buckets are this small, for a while.
    Throttle { capacity: u32, lasts: Duration },
    /// Every call takes so long, for a while.
    Slow { latency: Duration, lasts: Duration },
}

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) instance_type: &'static str,
    /// The daemon's environment.
    pub(super) vars: BTreeMap<&'static str, String>,
    pub(super) subnets: Vec<Ipv4Net>,
    /// How long things happen.
    pub(super) active: Duration,
    /// How long nothing may happen in the end.
    pub(super) idle: Duration,
    /// EC2's latency and as much again at random.
    pub(super) latency: Duration,
    pub(super) attach_delay: Duration,
    pub(super) detach_delay: Duration,
    /// Whether the state files outlast a reboot.
    pub(super) keeps_run: bool,
    /// By time, in order.
    pub(super) events: Vec<(Duration, Event)>,
}

impl Scenario {
    /// The run of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed, 1);
        let nodes = match chance.between(0, 99) {
            0..60 => 1,
            60..85 => 2,
            85..97 => 3,
            _ => 6,
        };
        let instance_type = chance.pick(&["t3.small", "t3.small", "t3.medium", "m5.large"]);
        let vars = vars(&mut chance);
        let subnet = if chance.percent(20) { "10.0.0.0/26" } else { "10.0.0.0/22" };
        let mut subnets: Vec<Ipv4Net> = vec![subnet.parse().expect("a subnet")];
        if chance.percent(20) {
            subnets.push("10.0.16.0/24".parse().expect("a subnet"));
        }
        let most_latency = if chance.percent(20) { 1500 } else { 300 };
        let mut scenario = Self {
            seed,
            nodes,
            instance_type,
            vars,
            subnets,
            active: chance.secs(600, 2400),
            idle: Duration::from_secs(if chance.percent(15) { 3600 } else { 600 }),
            latency: chance.millis(20, most_latency),
            attach_delay: chance.millis(0, 4000),
            detach_delay: chance.millis(0, 8000),
            keeps_run: chance.percent(30),
            events: Vec::new(),
        };
        scenario.draw_pods();
        if !chance.percent(15) {
            scenario.draw_trouble();
        }
        scenario.events.sort_by_key(|(at, _)| *at);
        scenario
    }

    pub(super) fn limits(&self) -> &'static InstanceLimits {
        InstanceLimits::of(self.instance_type).expect("a known type")
    }

    fn number(&self, name: &str, default: u32) -> u32 {
        self.vars.get(name).map_or(default, |value| value.parse().expect("a number"))
    }

    pub(super) fn cooldown(&self) -> Duration {
        Duration::from_secs(self.number("IP_COOLDOWN_PERIOD", 30).into())
    }

    pub(super) fn shrink_delay(&self) -> Duration {
        Duration::from_secs(self.number("POOL_SHRINK_DELAY", 180).into())
    }

    pub(super) fn warm_eni(&self) -> u32 {
        self.number("WARM_ENI_TARGET", 1)
    }

    pub(super) fn warm_ip(&self) -> u32 {
        self.number("WARM_IP_TARGET", 0)
    }

    pub(super) fn minimum_ip(&self) -> u32 {
        self.number("MINIMUM_IP_TARGET", 0)
    }

    /// How long it takes at most until an ENI has left and another has come in its place: nine
    /// calls one after the other, the changes at EC2, and the pauses between looks at them.
    pub(super) fn longest_way(&self) -> Duration {
        9 * 2 * self.latency + self.attach_delay + self.detach_delay + Duration::from_secs(4)
    }

    /// Whether prefixes are delegated, or may be at some time.
    pub(super) fn has_prefixes(&self) -> bool {
        let switches = |(_, event): &(Duration, Event)| matches!(event, Event::Switch { .. });
        self.vars.contains_key(PREFIXES) || self.events.iter().any(switches)
    }

    pub(super) fn warm_prefix(&self) -> u32 {
        self.number("WARM_PREFIX_TARGET", 1)
    }

    /// Whether subnets' tags, or what is free in them, change what a node can reach.
    pub(super) fn changes_subnets(&self) -> bool {
        self.events.iter().any(|(_, event)| matches!(event, Event::Tag { .. }))
    }

    /// The ENIs that a node may have.
    pub(super) fn eni_limit(&self) -> usize {
        let most = usize::from(self.limits().enis);
        match self.number("MAX_ENI", 0) {
            0 => most,
            limit => most.min(usize::try_from(limit).unwrap_or(most)),
        }
    }

    pub(super) fn ips_per_eni(&self) -> usize {
        usize::from(self.limits().slots_per_eni())
    }

    /// The pods that the kubelet starts at most with prefix delegation.
    pub(super) fn max_pods(&self) -> u32 {
        if self.limits().vcpus > 30 { 250 } else { 110 }
    }

    /// The pods that a node can have at most, if each takes one slot.
    pub(super) fn capacity(&self) -> usize {
        self.eni_limit() * self.ips_per_eni()
    }

    /// Pods in waves: a few that stay, bursts, and a trickle.
    fn draw_pods(&mut self) {
        let mut chance = Chance::new(self.seed, 2);
        let active = self.active.as_secs();
        let mut name = 0;
        for node in 0..self.nodes {
            let room = u64::try_from(self.capacity()).unwrap_or(1).min(30);
            let staying = chance.between(0, room * 2 / 3);
            let mut pod = |at: Duration, lives, life, chance: &mut Chance| {
                name += 1;
                (at, Event::Pod { node, name, lives, life, salt: chance.next() })
            };
            let forever = self.active + self.idle + Duration::from_secs(7200);
            for _ in 0..staying {
                let at = chance.secs(0, active);
                self.events.push(pod(at, 1, forever, &mut chance));
            }
            for _ in 0..chance.between(0, 3) {
                let (at, size) = (chance.secs(0, active), chance.between(1, room));
                let life = chance.secs(1, 400);
                for _ in 0..size {
                    let at = at + chance.millis(0, 1500);
                    let life = life + chance.secs(0, 20);
                    self.events.push(pod(at, 1, life, &mut chance));
                }
            }
            for _ in 0..chance.between(0, 12) {
                let (at, lives) =
                    (chance.secs(0, active), if chance.percent(30) { chance.between(2, 8) } else { 1 });
                let life = chance.secs(0, if lives > 1 { 40 } else { 300 });
                self.events.push(pod(at, u32::try_from(lives).unwrap_or(1), life, &mut chance));
            }
        }
    }

    fn draw_trouble(&mut self) {
        let mut chance = Chance::new(self.seed, 3);
        let active = self.active.as_secs();
        for _ in 0..chance.between(1, 14) {
            let at = chance.secs(0, active);
            let node = usize::try_from(chance.between(0, self.nodes as u64 - 1)).unwrap_or(0);
            let lasts = chance.secs(1, 120);
            let salt = chance.next();
            let event = match chance.between(0, 99) {
                0..22 => fault(&mut chance, lasts),
                22..44 => {
                    let after = chance.percent(75).then(|| chance.between(0, 25));
                    Event::Kill { node, after: after.map(|after| u32::try_from(after).unwrap_or(0)) }
                }
                44..50 => Event::Restart { node },
                50..54 => Event::Reboot { node },
                54..59 => {
                    let size = i64::try_from(chance.between(1, 7200)).unwrap_or(1);
                    Event::WallJump { node, secs: if chance.percent(50) { size } else { -size } }
                }
                59..65 => {
                    let trouble = chance.pick(&[DiskTrouble::Full, DiskTrouble::NoSync]);
                    Event::Disk { node, trouble, lasts }
                }
                65..68 => Event::Damage { node, is_sidecar: chance.percent(40) },
                68..76 => {
                    let what = chance.pick(&[
                        ByHand::Detach,
                        ByHand::Unassign,
                        ByHand::AttachUntagged,
                        ByHand::AttachUnmanaged,
                    ]);
                    Event::Hand { node, what, salt }
                }
                76..82 => {
                    Event::Fill { leave: u32::try_from(chance.between(0, 6)).unwrap_or(0), lasts: 3 * lasts }
                }
                82..83 => Event::Switch { node },
                83..84 => Event::Tag { subnet: 1, value: chance.pick(&["0", "1", "1"]) },
                84..85 => Event::Fragment {
                    every: u32::try_from(chance.between(3, 20)).unwrap_or(3),
                    lasts: 4 * lasts,
                },
                85..86 => Event::ImdsLag { lag: chance.secs(5, 120), lasts },
                86..88 => Event::ImdsDown { lasts },
                88..92 => Event::LateLinks { node, delay: chance.secs(1, 40), lasts },
                92..96 => {
                    Event::Throttle { capacity: u32::try_from(chance.between(0, 4)).unwrap_or(0), lasts }
                }
                _ => Event::Slow { latency: chance.millis(500, 12_000), lasts },
            };
            self.events.push((at, event));
        }
    }
}

/// The variable of prefix delegation.
pub(super) const PREFIXES: &str = "ENABLE_PREFIX_DELEGATION";

fn vars(chance: &mut Chance) -> BTreeMap<&'static str, String> {
    let mut vars = BTreeMap::from([("CLUSTER_NAME", "blue".to_owned())]);
    if chance.percent(25) {
        vars.insert(PREFIXES, "true".to_owned());
    }
    let has_prefixes = vars.contains_key(PREFIXES);
    let mut set = |name, value: u64| drop(vars.insert(name, value.to_string()));
    if has_prefixes {
        set("WARM_PREFIX_TARGET", chance.between(1, 2));
    }
    match chance.between(0, 3) {
        0 => {}
        1 => set("WARM_ENI_TARGET", chance.between(0, 2)),
        2 => {
            set("WARM_IP_TARGET", chance.between(1, 6));
            if chance.percent(50) {
                set("MINIMUM_IP_TARGET", chance.between(1, 15));
            }
        }
        _ => set("MINIMUM_IP_TARGET", chance.between(1, 12)),
    }
    if chance.percent(25) {
        set("MAX_ENI", chance.between(1, 3));
    }
    if chance.percent(70) {
        set("IP_COOLDOWN_PERIOD", chance.between(1, 60));
    }
    if chance.percent(70) {
        set("POOL_SHRINK_DELAY", chance.between(0, 180));
    }
    vars
}

fn fault(chance: &mut Chance, lasts: Duration) -> Event {
    let action = chance.pick(&[
        "*",
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "AssignPrivateIpAddresses",
        "AssignPrivateIpAddresses",
        "UnassignPrivateIpAddresses",
        "DetachNetworkInterface",
        "DeleteNetworkInterface",
        "DescribeNetworkInterfaces",
        "DescribeSubnets",
        "CreateTags",
    ]);
    let wrong = match chance.between(0, 9) {
        0..3 => Wrong::LoseAnswer,
        3 => Wrong::Hang,
        4 => Wrong::Drop,
        5 => Wrong::Throttle,
        6 => chance.pick(&[Wrong::Deny, Wrong::Expired]),
        7 => Wrong::Error("InternalError"),
        _ => Wrong::Error(match action {
            "AttachNetworkInterface" => {
                chance.pick(&["AttachmentLimitExceeded", "InvalidParameterValue", "IncorrectState"])
            }
            "CreateNetworkInterface" | "AssignPrivateIpAddresses" => {
                chance.pick(&["InsufficientFreeAddressesInSubnet", "PrivateIpAddressLimitExceeded"])
            }
            _ => chance.pick(&["Unavailable", "ServiceUnavailable", "OperationNotPermitted"]),
        }),
    };
    let times = if chance.percent(60) { chance.between(1, 3) } else { 1000 };
    Event::Fault { action, wrong, times: u32::try_from(times).unwrap_or(1), lasts }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} x {}, {:?}; active {:?}, idle {:?}, latency {:?}, attach {:?}, detach {:?}{}",
            self.seed,
            self.nodes,
            self.instance_type,
            self.vars,
            self.active,
            self.idle,
            self.latency,
            self.attach_delay,
            self.detach_delay,
            if self.keeps_run { ", /run outlasts reboots" } else { "" },
        )?;
        let pods = self.events.iter().filter(|(_, event)| matches!(event, Event::Pod { .. })).count();
        writeln!(f, "  {pods} pods, subnets {:?}", self.subnets)?;
        for (at, event) in &self.events {
            if !matches!(event, Event::Pod { .. }) || pods <= 6 {
                writeln!(f, "  {:>9.3} {event:?}", at.as_secs_f64())?;
            }
        }
        Ok(())
    }
}
