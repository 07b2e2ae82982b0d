//! What is known of pods' networks from one look at the node to the next: whose is to be put back,
//! and what of those that have ended is to be removed. Pure: `now` is an argument.
//!
//! An ADD under way has not made a pod's network yet, and a DEL has taken it away on purpose. So
//! only pods count whose network was whole once or which have their address for longer than an ADD
//! takes, and the pool must be asked for its pods after the kernel was looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use datapath::host::PodLink;
use datapath::wanted::PodOnHost;
use vpc::{PodKey, RouteTable, veth_suffix};

use crate::pool::{AddressReport, AddressState, Allocation};
use crate::report::Report;

/// For how long an ADD may leave a pod's network unfinished: it makes what it makes within some
/// milliseconds. One that is slower finds what was put back, which is what it would have made, and
/// goes on; but before it the link should not come up, which the plugin hardens first.
const ADD_TAKES: Duration = Duration::from_secs(5);

/// Which pod, by its key, and its address.
type Name = (PodKey, IpAddr);

/// A pod's interface and whose it is.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) key: PodKey,
    pub(super) on_host: PodOnHost,
    /// For how long it has had its address.
    pub(super) age: Duration,
}

/// What the pool said of its pods.
#[derive(Debug, Clone, Default)]
pub(super) struct Listed {
    /// Pods whose ENI is known.
    pub(super) pods: Vec<Pod>,
    /// The others: they run, but the route table of their address is not known.
    unplaced: BTreeSet<Name>,
    /// What the names of all these pods' links end in.
    suffixes: BTreeSet<String>,
    /// Addresses that are held back, since somebody may use them.
    held_back: BTreeSet<IpAddr>,
}

impl Listed {
    pub(super) fn of(report: &Report) -> Self {
        let mut listed = Self::default();
        for allocation in &report.pool.pinned {
            listed.runs_unplaced(allocation);
        }
        for eni in &report.pool.enis {
            for address in &eni.addresses {
                listed.take_in(address, eni.table, report.at.unix_ns());
            }
        }
        listed
    }

    fn take_in(&mut self, address: &AddressReport, table: RouteTable, now_unix_ns: i64) {
        match &address.state {
            AddressState::Assigned(allocation) => {
                let Allocation { key, pod, address, assigned_unix_ns } = allocation.clone();
                let age = u64::try_from(now_unix_ns.saturating_sub(assigned_unix_ns)).unwrap_or(0);
                self.suffixes.insert(veth_suffix(&pod, 0));
                let on_host = PodOnHost { pod, nic: 0, address, table };
                self.pods.push(Pod { key, on_host, age: Duration::from_nanos(age) });
            }
            AddressState::Quarantined(_) => {
                self.held_back.insert(address.address);
            }
            AddressState::Free | AddressState::Cooling { .. } | AddressState::Leaving => {}
        }
    }

    fn runs_unplaced(&mut self, allocation: &Allocation) {
        self.unplaced.insert((allocation.key.clone(), allocation.address));
        self.suffixes.insert(veth_suffix(&allocation.pod, 0));
    }

    fn names(&self) -> BTreeSet<Name> {
        self.pods.iter().map(Pod::name).chain(self.unplaced.iter().cloned()).collect()
    }
}

impl Pod {
    fn name(&self) -> Name {
        (self.key.clone(), self.on_host.address)
    }
}

/// Pods as the looks so far have shown them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// Pods whose network was seen whole, with their links.
    whole: BTreeMap<Name, PodLink>,
    /// Pods whose network was never seen whole, and since when they have their addresses.
    unfinished: BTreeMap<Name, Instant>,
    /// Addresses for whose pods something was put back.
    mended: BTreeSet<IpAddr>,
    /// Links that were pods' whose addresses the pool has taken back since.
    left: BTreeMap<PodLink, Left>,
}

/// The link of a pod that was deleted.
#[derive(Debug)]
struct Left {
    /// What the pod had.
    address: IpAddr,
    /// The last round has found no use for it.
    is_useless: bool,
}

impl Pods {
    /// Takes in which pods there are and, of each of `listed.pods`, its link if its network is
    /// whole; gives those that lack something, unless an ADD or a DEL is at work on them.
    pub(super) fn see(
        &mut self,
        listed: &Listed,
        links: Vec<Option<PodLink>>,
        now: Instant,
    ) -> Vec<PodOnHost> {
        let known = listed.names();
        let (running, ended) =
            std::mem::take(&mut self.whole).into_iter().partition(|(name, _)| known.contains(name));
        self.whole = running;
        let ended: BTreeMap<Name, PodLink> = ended;
        self.left.extend(
            ended.into_iter().map(|((_, address), link)| (link, Left { address, is_useless: false })),
        );
        let before = std::mem::take(&mut self.unfinished);
        let mut broken = Vec::new();
        for (pod, link) in listed.pods.iter().zip(links) {
            let name = pod.name();
            if let Some(link) = link {
                self.left.remove(&link);
                self.whole.insert(name, link);
                continue;
            }
            if !self.whole.contains_key(&name) {
                // What the wall clock says is taken once: it may be set meanwhile.
                let got = || now.checked_sub(pod.age.min(ADD_TAKES)).unwrap_or(now);
                let since = before.get(&name).copied().unwrap_or_else(got);
                self.unfinished.insert(name, since);
                if now < since + ADD_TAKES {
                    continue;
                }
            }
            broken.push(pod.on_host.clone());
        }
        self.mended.extend(broken.iter().map(|pod| pod.address));
        broken
    }

    /// The links of pods of the pool whose network was seen whole.
    pub(super) fn links(&self) -> BTreeSet<PodLink> {
        self.whole.values().cloned().collect()
    }

    /// When something may be put back for which it is too early now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.unfinished.values().map(|since| *since + ADD_TAKES).filter(|then| *then > now).min()
    }

    /// Addresses for which something was put back and that no pod of `listed` has: a DEL that came
    /// meanwhile has left what came back.
    pub(super) fn ended(&self, listed: &Listed) -> Vec<IpAddr> {
        let had: BTreeSet<IpAddr> = listed.names().into_iter().map(|(_, address)| address).collect();
        self.mended.difference(&had).copied().collect()
    }

    /// Nothing is left of what was put back for these.
    pub(super) fn removed(&mut self, ended: &[IpAddr]) {
        self.mended.retain(|address| !ended.contains(address));
    }

    /// Links of pods that were deleted.
    pub(super) fn left(&self) -> BTreeSet<PodLink> {
        self.left.keys().cloned().collect()
    }

    /// Those of [`Pods::left`] that two rounds have found to be of no use. `found` has those that
    /// are still there, with whether a route leads to them.
    ///
    /// A link that this process has never seen in the service of a pod of the pool is none of
    /// them, whatever its name: other pods have such links too, which are not the pool's.
    pub(super) fn useless(&mut self, found: &BTreeMap<PodLink, bool>, listed: &Listed) -> Vec<PodLink> {
        self.left.retain(|link, _| found.contains_key(link));
        let mut useless = Vec::new();
        for (link, left) in &mut self.left {
            let is_pods = listed.suffixes.iter().any(|suffix| link.name.ends_with(suffix));
            let is_reached = found.get(link).copied().unwrap_or(true);
            let is_useless = !is_reached && !is_pods && !listed.held_back.contains(&left.address);
            if is_useless && left.is_useless {
                useless.push(link.clone());
            }
            left.is_useless = is_useless;
        }
        useless
    }
}

#[cfg(test)]
mod tests {
    use vpc::PodName;

    use super::*;
    use crate::pool::QuarantineReason;

    const LONG: Duration = Duration::from_secs(3600);

    fn pod(name: &str, address: &str, age: Duration) -> Pod {
        let on_host = PodOnHost {
            pod: PodName::new("default", name),
            nic: 0,
            address: address.parse().unwrap(),
            table: RouteTable(2),
        };
        Pod { key: PodKey::new("aws-cni", name, "eth0").unwrap(), on_host, age }
    }

    fn listed(pods: &[&Pod]) -> Listed {
        Listed {
            pods: pods.iter().copied().cloned().collect(),
            suffixes: pods.iter().map(|pod| veth_suffix(&pod.on_host.pod, 0)).collect(),
            ..Listed::default()
        }
    }

    fn link_of(pod: &Pod, index: u32) -> PodLink {
        PodLink { index, name: format!("eni{}", veth_suffix(&pod.on_host.pod, 0)) }
    }

    fn reached(link: &PodLink, is_reached: bool) -> BTreeMap<PodLink, bool> {
        BTreeMap::from([(link.clone(), is_reached)])
    }

    #[test]
    fn pods_are_listed_with_their_age_and_also_those_whose_eni_is_not_known() {
        const SECOND: i64 = 1_000_000_000;
        let allocation = |pod: &Pod| Allocation {
            key: pod.key.clone(),
            pod: pod.on_host.pod.clone(),
            address: pod.on_host.address,
            assigned_unix_ns: 100 * SECOND,
        };
        let (web, lost) =
            (pod("web", "10.0.1.7", Duration::from_secs(3)), pod("lost", "10.0.1.8", Duration::ZERO));
        let held_back: IpAddr = "10.0.1.9".parse().unwrap();
        let addresses = [
            (web.on_host.address, AddressState::Assigned(allocation(&web))),
            (held_back, AddressState::Quarantined(QuarantineReason::KernelOnly)),
            ("10.0.1.10".parse().unwrap(), AddressState::Free),
        ];

        let mut listed = Listed::default();
        listed.runs_unplaced(&allocation(&lost));
        for (address, state) in addresses {
            listed.take_in(&AddressReport { address, state }, RouteTable(2), 103 * SECOND);
        }

        let [pod] = listed.pods.as_slice() else { panic!("{listed:?}") };
        assert_eq!((&pod.on_host, pod.age), (&web.on_host, web.age));
        assert_eq!(listed.names(), BTreeSet::from([web.name(), lost.name()]));
        assert_eq!(listed.suffixes.len(), 2);
        assert_eq!(listed.held_back, BTreeSet::from([held_back]));
    }

    #[test]
    fn a_pod_that_was_whole_once_is_mended_at_once() {
        let (mut pods, now, web) = (Pods::default(), Instant::now(), pod("web", "10.0.1.7", Duration::ZERO));
        assert_eq!(pods.see(&listed(&[&web]), vec![Some(link_of(&web, 7))], now), []);

        assert_eq!(pods.see(&listed(&[&web]), vec![None], now), [web.on_host]);
    }

    #[test]
    fn a_pod_that_has_just_come_is_mended_once_its_add_must_be_done() {
        let (mut pods, now, web) =
            (Pods::default(), Instant::now() + LONG, pod("web", "10.0.1.7", Duration::from_secs(1)));
        let due = now + ADD_TAKES - web.age;

        assert_eq!(pods.see(&listed(&[&web]), vec![None], now), []);
        assert_eq!(pods.next(now), Some(due));
        // The wall clock may have been set meanwhile; it is not asked again.
        let later = Pod { age: Duration::ZERO, ..web.clone() };
        assert_eq!(pods.see(&listed(&[&later]), vec![None], due - Duration::from_millis(1)), []);
        assert_eq!(pods.see(&listed(&[&later]), vec![None], due), [web.on_host]);
    }

    #[test]
    fn a_pod_of_long_ago_is_mended_at_the_first_look() {
        let (mut pods, now, web) = (Pods::default(), Instant::now() + LONG, pod("web", "10.0.1.7", LONG));

        assert_eq!(pods.see(&listed(&[&web]), vec![None], now), [web.on_host]);
        assert_eq!(pods.next(now), None);
    }

    #[test]
    fn what_was_put_back_for_a_pod_that_ended_goes_unless_the_address_is_a_pods_again() {
        let (mut pods, now) = (Pods::default(), Instant::now() + LONG);
        let (web, heir) = (pod("web", "10.0.1.7", LONG), pod("heir", "10.0.1.7", Duration::ZERO));
        pods.see(&listed(&[&web]), vec![None], now);
        assert_eq!(pods.ended(&listed(&[&web])), Vec::<IpAddr>::new());

        assert_eq!(pods.ended(&listed(&[&heir])), Vec::<IpAddr>::new());
        let unplaced = Listed { unplaced: BTreeSet::from([web.name()]), ..Listed::default() };
        assert_eq!(pods.ended(&unplaced), Vec::<IpAddr>::new(), "its ENI is not known just now");
        assert_eq!(pods.ended(&listed(&[])), [web.on_host.address]);

        pods.removed(&[web.on_host.address]);
        assert_eq!(pods.ended(&listed(&[])), Vec::<IpAddr>::new());
    }

    #[test]
    fn the_link_of_a_deleted_pod_is_useless_when_two_rounds_have_seen_nothing_lead_to_it() {
        let (mut pods, now, web) = (Pods::default(), Instant::now(), pod("web", "10.0.1.7", LONG));
        let link = link_of(&web, 7);
        pods.see(&listed(&[&web]), vec![Some(link.clone())], now);
        assert_eq!(pods.left(), BTreeSet::new());

        pods.see(&listed(&[]), Vec::new(), now);

        assert_eq!(pods.left(), BTreeSet::from([link.clone()]));
        let gone = listed(&[]);
        assert_eq!(pods.useless(&reached(&link, false), &gone), []);
        assert_eq!(pods.useless(&reached(&link, true), &gone), [], "a route leads to it again");
        assert_eq!(pods.useless(&reached(&link, false), &gone), []);
        assert_eq!(pods.useless(&reached(&link, false), &gone), [link]);
        assert_eq!(pods.useless(&BTreeMap::new(), &gone), []);
        assert_eq!(pods.left(), BTreeSet::new(), "its namespace has ended");
    }

    #[test]
    fn no_link_is_useless_that_was_never_seen_in_a_pools_pods_service() {
        let (mut pods, now) = (Pods::default(), Instant::now() + LONG);
        let (unseen, broken) = (pod("unseen", "10.0.1.7", LONG), pod("broken", "10.0.1.8", LONG));

        pods.see(&listed(&[&broken]), vec![None], now);
        pods.see(&listed(&[]), Vec::new(), now);

        assert_eq!(pods.left(), BTreeSet::new());
        for link in [link_of(&unseen, 7), link_of(&broken, 8)] {
            for _ in 0..3 {
                assert_eq!(pods.useless(&reached(&link, false), &listed(&[])), []);
            }
        }
    }

    #[test]
    fn a_link_stays_while_its_pod_has_no_eni_its_address_is_held_back_or_its_pod_is_back() {
        let (mut pods, now, web) = (Pods::default(), Instant::now(), pod("web", "10.0.1.7", LONG));
        let link = link_of(&web, 7);
        pods.see(&listed(&[&web]), vec![Some(link.clone())], now);

        let unplaced = Listed { unplaced: BTreeSet::from([web.name()]), ..Listed::default() };
        pods.see(&unplaced, Vec::new(), now);
        assert_eq!(pods.left(), BTreeSet::new());

        pods.see(&listed(&[]), Vec::new(), now);
        let held_back = Listed { held_back: BTreeSet::from([web.on_host.address]), ..Listed::default() };
        let sandbox = pod("web", "10.0.1.9", Duration::ZERO);
        for _ in 0..3 {
            assert_eq!(pods.useless(&reached(&link, false), &held_back), []);
            assert_eq!(pods.useless(&reached(&link, false), &listed(&[&sandbox])), []);
        }
        pods.see(&listed(&[&sandbox]), vec![Some(link)], now);
        assert_eq!(pods.left(), BTreeSet::new());
    }
}
