//! The judge: it knows the truth about all nodes and what was promised to which pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ec2::Class;
use lab::cloud::Snapshot;
use tokio::sync::Notify;

use super::scenario::Scenario;
use crate::pool::{Assignment, Reason};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    SharedAddress { address: IpAddr, holder: String, other: String },
    SecondAddress { pod: String, first: IpAddr, second: IpAddr },
    CooldownIgnored { address: IpAddr, pod: String, rested: Duration, wanted: Duration },
    InKernelUse { address: IpAddr, pod: String, link: String },
    NotOnNode { address: IpAddr, pod: String, node: usize },
    WrongTable { address: IpAddr, pod: String, said: u32, right: u32 },
    LiveAddressLost { address: IpAddr, pod: String },
    TooManyEnis { node: usize, count: usize, limit: usize },
    AskedTooMuch { node: usize, class: String },
    AnsweredLate { pod: String, after: Duration },
    FalseRefusal { pod: String, reason: Reason, message: String },
    ServedLate { pod: String, after: Duration },
    NeverServed { node: usize, pods: Vec<String> },
    NotInBooks { node: usize, what: String },
    Leaked { what: String },
    NotSettled { node: usize, what: String },
    TargetMissed { node: usize, what: String },
    Restless { node: usize, calls: String },
    DelNotTaken { pod: String, error: String },
    Down { node: usize, error: String },
    Panicked { message: String },
}

impl Violation {
    /// Names the kind, for shrinking and for tables.
    pub(super) fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split(' ').next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedAddress { address, holder, other } => {
                write!(f, "{address} was given to {other} while {holder} has it")
            }
            Self::SecondAddress { pod, first, second } => {
                write!(f, "{pod} has {first} and was given {second} for the same key")
            }
            Self::CooldownIgnored { address, pod, rested, wanted } => {
                write!(f, "{address} was given to {pod} after a rest of {rested:?}; wanted {wanted:?}")
            }
            Self::InKernelUse { address, pod, link } => {
                write!(f, "{address} was given to {pod} while the kernel routes it to {link}")
            }
            Self::NotOnNode { address, pod, node } => {
                write!(f, "{address} was given to {pod}, but EC2 holds it on no ENI of node {node}")
            }
            Self::WrongTable { address, pod, said, right } => {
                write!(f, "{pod} was told device {said} for {address}, whose ENI is at {right}")
            }
            Self::LiveAddressLost { address, pod } => {
                write!(f, "{address} of the live pod {pod} is no longer on its node")
            }
            Self::TooManyEnis { node, count, limit } => {
                write!(f, "node {node} has {count} ENIs; {limit} are allowed")
            }
            Self::AskedTooMuch { node, class } => {
                write!(f, "node {node} asked EC2 for more than a limit allows ({class}) without any fault")
            }
            Self::AnsweredLate { pod, after } => write!(f, "{pod} got no answer within {after:?}"),
            Self::FalseRefusal { pod, reason, message } => {
                write!(f, "{pod} was refused without a true reason ({reason:?}): {message}")
            }
            Self::ServedLate { pod, after } => {
                write!(f, "{pod} waited {after:?} although nothing was out of order")
            }
            Self::NeverServed { node, pods } => write!(f, "node {node} could serve and did not: {pods:?}"),
            Self::NotInBooks { node, what } => write!(f, "the books of node {node} differ from EC2: {what}"),
            Self::Leaked { what } => write!(f, "leaked at EC2: {what}"),
            Self::NotSettled { node, what } => write!(f, "node {node} does not come to rest: {what}"),
            Self::TargetMissed { node, what } => write!(f, "node {node} misses its target: {what}"),
            Self::Restless { node, calls } => write!(f, "node {node} calls EC2 without need: {calls}"),
            Self::DelNotTaken { pod, error } => write!(f, "DEL of {pod} failed without a reason: {error}"),
            Self::Down { node, error } => write!(f, "the daemon of node {node} does not run: {error}"),
            Self::Panicked { message } => write!(f, "panic: {message}"),
        }
    }
}

/// A live pod's address.
#[derive(Debug, Clone)]
struct Holding {
    node: usize,
    container: String,
    pod: String,
    /// A person had taken the address away before, and nobody told the daemon.
    is_doomed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    node: usize,
    since: Duration,
}

/// What the oracle knows of one node.
#[derive(Debug, Clone, Default)]
struct NodeFacts {
    instance: String,
    /// Attached by a person.
    enis_by_hand: BTreeSet<String>,
    /// Since then the memory of cooldowns may be lost for good reason.
    forgot_rests_at: Option<Duration>,
    /// Until when something is out of order that concerns this node.
    troubled_until: Duration,
    /// The state file was damaged: pods before that are only known by the kernel.
    lost_books: bool,
    /// Pods whose ADD is under way, with the time of the sandbox's first attempt.
    wanting: BTreeMap<String, Duration>,
}

/// The judge.
#[derive(Debug)]
pub(super) struct Oracle {
    /// The present, set by whoever asks.
    pub(super) now: Duration,
    cooldown: Duration,
    eni_limit: usize,
    /// How long a pod may wait when nothing is out of order and the node has room.
    served_within: Duration,
    holdings: BTreeMap<IpAddr, Holding>,
    by_container: BTreeMap<String, IpAddr>,
    rests: BTreeMap<IpAddr, Rest>,
    /// Addresses that a person took away; what becomes of their pods is not the daemon's doing.
    /// True once EC2 has let go of them.
    taken_by_hand: BTreeMap<IpAddr, bool>,
    /// All addresses that a person ever took.
    ever_taken: BTreeSet<IpAddr>,
    nodes: Vec<NodeFacts>,
    by_instance: BTreeMap<String, usize>,
    violation: Option<Violation>,
    decided: Arc<Notify>,
    checked_version: u64,
    /// ENIs that a person takes, with whatever they have then.
    enis_taken: BTreeSet<String>,
    /// Since when the subnets have had room for everybody; none while they have not.
    roomy_since: Option<Duration>,
}

/// After trouble has ended, how long back-offs and clean-up may go on.
const AFTERMATH: Duration = Duration::from_secs(240);

/// How soon it is seen that a subnet has addresses again, if a pod asks for one.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// Free addresses with which a subnet serves every node, whatever each wants to keep warm.
pub(super) const ROOMY: u32 = 13;

/// For how long a pod waits for what EC2 and the host do.
const PATIENCE: Duration = Duration::from_secs(20);

impl Oracle {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            now: Duration::ZERO,
            cooldown: scenario.cooldown(),
            eni_limit: scenario.eni_limit(),
            served_within: PATIENCE.max(scenario.longest_way()),
            holdings: BTreeMap::new(),
            by_container: BTreeMap::new(),
            rests: BTreeMap::new(),
            taken_by_hand: BTreeMap::new(),
            ever_taken: BTreeSet::new(),
            nodes: vec![NodeFacts::default(); scenario.nodes],
            by_instance: BTreeMap::new(),
            violation: None,
            decided: Arc::default(),
            checked_version: 0,
            enis_taken: BTreeSet::new(),
            roomy_since: None,
        }
    }

    pub(super) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
        self.decided.notify_one();
    }

    /// Rings once there is a violation.
    pub(super) fn decided(&self) -> Arc<Notify> {
        Arc::clone(&self.decided)
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.clone()
    }

    pub(super) fn node_is(&mut self, node: usize, instance: &str) {
        self.nodes[node].instance = instance.to_owned();
        self.by_instance.insert(instance.to_owned(), node);
    }

    fn node_of(&self, instance: &str) -> Option<usize> {
        self.by_instance.get(instance).copied()
    }

    /// Something is out of order for so long; for all nodes, or for one.
    pub(super) fn trouble(&mut self, node: Option<usize>, lasts: Duration) {
        let until = self.now + lasts + AFTERMATH;
        for (number, facts) in self.nodes.iter_mut().enumerate() {
            if node.is_none_or(|node| node == number) {
                facts.troubled_until = facts.troubled_until.max(until);
            }
        }
    }

    pub(super) fn is_troubled(&self, node: usize) -> bool {
        self.now < self.nodes[node].troubled_until
    }

    /// From here on the node may not know of earlier cooldowns.
    pub(super) fn forgets_rests(&mut self, node: usize) {
        self.nodes[node].forgot_rests_at = Some(self.now);
    }

    /// The state file is damaged.
    pub(super) fn loses_books(&mut self, node: usize) {
        self.nodes[node].lost_books = true;
    }

    /// Of pods that are not wired yet the state file was the only witness.
    pub(super) fn loses_sight(&mut self, node: usize, is_wired: impl Fn(IpAddr) -> bool) {
        self.holdings.retain(|address, holding| holding.node != node || is_wired(*address));
        let holdings = &self.holdings;
        self.by_container.retain(|_, address| holdings.contains_key(address));
    }

    pub(super) fn lost_books(&self, node: usize) -> bool {
        self.nodes[node].lost_books
    }

    /// A person attached an ENI.
    pub(super) fn attached_by_hand(&mut self, node: usize, eni: &str) {
        self.nodes[node].enis_by_hand.insert(eni.to_owned());
    }

    /// A person takes an ENI away from a node.
    pub(super) fn takes_eni_by_hand(&mut self, node: usize, eni: &str) {
        self.attached_by_hand(node, eni);
        self.enis_taken.insert(eni.to_owned());
    }

    /// A person takes addresses away from their nodes.
    pub(super) fn takes_by_hand(&mut self, addresses: impl IntoIterator<Item = impl Into<IpAddr>>) {
        for address in addresses.into_iter().map(Into::into) {
            self.taken_by_hand.insert(address, false);
            self.ever_taken.insert(address);
        }
    }

    /// The node has lost all its pods.
    pub(super) fn rebooted(&mut self, node: usize) {
        self.holdings.retain(|_, holding| holding.node != node);
        let holdings = &self.holdings;
        self.by_container.retain(|_, address| holdings.contains_key(address));
        self.rests.retain(|_, rest| rest.node != node);
        self.nodes[node].wanting.clear();
        self.nodes[node].lost_books = false;
    }

    /// EC2 refused a request.
    pub(super) fn ec2_refused(&mut self, instance: &str, class: &Class) {
        let Some(node) = self.node_of(instance) else { return };
        let is_limit = matches!(class, Class::AddressLimit | Class::AttachmentLimit | Class::SlotInUse);
        if is_limit && !self.is_troubled(node) {
            self.violate(Violation::AskedTooMuch { node, class: format!("{class:?}") });
        }
    }

    /// A sandbox asks for an address.
    pub(super) fn wants(&mut self, node: usize, pod: &str) {
        let now = self.now;
        self.nodes[node].wanting.entry(pod.to_owned()).or_insert(now);
    }

    /// The sandbox's pod is no longer wanted.
    pub(super) fn wants_no_more(&mut self, node: usize, pod: &str) {
        self.nodes[node].wanting.remove(pod);
    }

    /// The daemon promised an address to a pod.
    pub(super) fn promised(
        &mut self,
        node: usize,
        container: &str,
        pod: &str,
        assignment: &Assignment,
        kernel_link: Option<String>,
        snapshot: &Snapshot,
    ) {
        let address = assignment.address;
        let now = self.now;
        self.nodes[node].wanting.remove(pod);
        let name = format!("{pod} ({container})");
        if let Some(first) = self.by_container.get(container).copied() {
            if first != address {
                self.violate(Violation::SecondAddress { pod: name, first, second: address });
            }
            return;
        }
        let place = snapshot.enis.values().find(|eni| {
            eni.addresses.iter().any(|ip| ip.address == address && !ip.is_primary)
                || eni.prefixes.iter().any(|prefix| ipnet::IpNet::from(*prefix).contains(&address))
        });
        let was_touched = |eni: &str| self.nodes[node].enis_by_hand.contains(eni);
        let is_doomed = self.ever_taken.contains(&address) || place.is_some_and(|eni| was_touched(&eni.id));
        let holding = self.holdings.get(&address);
        let was_taken = self.ever_taken.contains(&address);
        let is_other = |holding: &&Holding| holding.node == node || !(holding.is_doomed || was_taken);
        if let Some(holding) = holding.filter(is_other) {
            let holder = format!("{} ({}) on node {}", holding.pod, holding.container, holding.node);
            return self.violate(Violation::SharedAddress { address, holder, other: name });
        }
        if let Some(rest) = self.rests.remove(&address) {
            let forgot = self.nodes[rest.node].forgot_rests_at.is_some_and(|at| at >= rest.since);
            let rested = now.saturating_sub(rest.since);
            if !forgot && rested < self.cooldown {
                let wanted = self.cooldown;
                return self.violate(Violation::CooldownIgnored { address, pod: name, rested, wanted });
            }
        }
        if let Some(link) = kernel_link {
            self.violate(Violation::InKernelUse { address, pod: name.clone(), link });
        }
        let instance = &self.nodes[node].instance;
        let attachment = place
            .and_then(|eni| eni.attachment.as_ref())
            .filter(|attachment| attachment.instance_id == *instance);
        match attachment {
            None if !is_doomed => {
                self.violate(Violation::NotOnNode { address, pod: name, node });
            }
            Some(attachment) if attachment.device_index != assignment.slot.device.0 => {
                self.violate(Violation::WrongTable {
                    address,
                    pod: name,
                    said: assignment.slot.device.0.into(),
                    right: attachment.device_index.into(),
                });
            }
            _ => {}
        }
        let holding = Holding { node, container: container.to_owned(), pod: pod.to_owned(), is_doomed };
        self.holdings.insert(address, holding);
        self.by_container.insert(container.to_owned(), address);
    }

    /// The pod's DEL begins: from here on it no longer lives.
    pub(super) fn ends(&mut self, container: &str) {
        let Some(address) = self.by_container.remove(container) else { return };
        if let Some(holding) = self.holdings.remove(&address) {
            self.rests.insert(address, Rest { node: holding.node, since: self.now });
        }
    }

    /// An ADD was refused.
    pub(super) fn refused(
        &mut self,
        node: usize,
        pod: &str,
        reason: Reason,
        message: &str,
        room: impl FnOnce(usize) -> bool,
    ) {
        // That others have returned addresses meanwhile is seen with the next look.
        let is_exhausted = reason == Reason::SubnetExhausted && !self.was_roomy_for(SEEN_WITHIN);
        // Where one ENI's way out and another's way in take longer than a pod waits, it is true
        // that the pool is being filled.
        let is_slow = reason == Reason::PoolFilling && self.served_within > PATIENCE;
        if self.is_troubled(node) || is_exhausted || is_slow {
            return;
        }
        let live = self.holdings.values().filter(|holding| holding.node == node).count();
        let taken = live + self.resting(node) + self.nodes[node].wanting.len().saturating_sub(1);
        if room(taken) {
            let (pod, message) = (pod.to_owned(), message.to_owned());
            self.violate(Violation::FalseRefusal { pod, reason, message });
        }
    }

    /// Whether the subnets have had room for so long.
    fn was_roomy_for(&self, time: Duration) -> bool {
        self.roomy_since.is_some_and(|since| self.now.saturating_sub(since) >= time)
    }

    /// The addresses of a node that rest, or may be about to.
    fn resting(&self, node: usize) -> usize {
        let still = self.cooldown + Duration::from_secs(40);
        let rests = self.rests.values().filter(|rest| rest.node == node);
        rests.filter(|rest| self.now.saturating_sub(rest.since) < still).count()
    }

    /// An ADD was answered with an address after so long.
    pub(super) fn served_after(
        &mut self,
        node: usize,
        pod: &str,
        after: Duration,
        room: impl FnOnce(usize) -> bool,
    ) {
        let taken = self.live(node) + self.resting(node) + self.nodes[node].wanting.len();
        let was_roomy = self.was_roomy_for(after + SEEN_WITHIN);
        if !self.is_troubled(node) && was_roomy && room(taken) && after > self.served_within {
            self.violate(Violation::ServedLate { pod: pod.to_owned(), after });
        }
    }

    /// EC2's state has changed: nobody's address may be gone, and no limit passed. `free` is what
    /// the subnets have left.
    pub(super) fn ec2_changed(&mut self, snapshot: &Snapshot, free: u32) {
        if snapshot.version == self.checked_version {
            return;
        }
        self.checked_version = snapshot.version;
        self.roomy_since = (free >= ROOMY).then(|| self.roomy_since.unwrap_or(self.now));
        let of_taken = snapshot.enis.values().filter(|eni| self.enis_taken.contains(&eni.id));
        self.ever_taken.extend(of_taken.flat_map(|eni| &eni.addresses).map(|ip| IpAddr::from(ip.address)));
        let mut held: BTreeSet<(usize, IpAddr)> = BTreeSet::new();
        let mut counts = vec![0_usize; self.nodes.len()];
        let mut prefixes = Vec::new();
        for eni in snapshot.enis.values() {
            let Some(attachment) = &eni.attachment else { continue };
            let Some(node) = self.node_of(&attachment.instance_id) else { continue };
            if !self.nodes[node].enis_by_hand.contains(&eni.id) {
                counts[node] += 1;
            }
            held.extend(eni.addresses.iter().map(|ip| (node, ip.address.into())));
            prefixes.extend(eni.prefixes.iter().map(|prefix| (node, ipnet::IpNet::from(*prefix))));
        }
        for (address, holding) in &self.holdings {
            let is_there = held.contains(&(holding.node, *address))
                || prefixes.iter().any(|(node, prefix)| *node == holding.node && prefix.contains(address));
            if !is_there && !holding.is_doomed && !self.ever_taken.contains(address) {
                let (address, pod) = (*address, format!("{} ({})", holding.pod, holding.container));
                return self.violate(Violation::LiveAddressLost { address, pod });
            }
        }
        for (node, count) in counts.into_iter().enumerate() {
            if count > self.eni_limit {
                let limit = self.eni_limit;
                return self.violate(Violation::TooManyEnis { node, count, limit });
            }
        }
        // What a person took may come back from EC2 like any other.
        self.taken_by_hand.retain(|address, is_gone| {
            let is_held = held.iter().any(|(_, held)| held == address);
            let is_back = is_held && *is_gone;
            *is_gone |= !is_held;
            !is_back
        });
        // What goes back to EC2 may come again at any time, and has rested elsewhere then.
        self.rests.retain(|address, rest| {
            held.contains(&(rest.node, *address))
                || prefixes.iter().any(|(node, prefix)| *node == rest.node && prefix.contains(address))
        });
    }

    /// Live pods of a node.
    pub(super) fn live(&self, node: usize) -> usize {
        self.holdings.values().filter(|holding| holding.node == node).count()
    }

    /// Pods of a node that want an address for at least so long.
    pub(super) fn wanting(&self, node: usize, since: Duration) -> Vec<String> {
        let now = self.now;
        self.nodes[node]
            .wanting
            .iter()
            .filter(|(_, from)| now.saturating_sub(**from) >= since)
            .map(|(pod, _)| pod.clone())
            .collect()
    }

    pub(super) fn is_by_hand(&self, node: usize, eni: &str) -> bool {
        self.nodes[node].enis_by_hand.contains(eni)
    }

    pub(super) fn was_taken_by_hand(&self, address: IpAddr) -> bool {
        self.ever_taken.contains(&address)
    }
}
