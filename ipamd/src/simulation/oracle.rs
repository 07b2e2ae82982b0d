//! The judge: it knows the truth about all nodes and what was promised to which pod.

mod ec2;
mod ownerless;
mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lab::cloud::Snapshot;
use tokio::sync::Notify;

use ec2::Counted;
use ownerless::Ownerless;

use super::kernel::Found;
use super::scenario::Scenario;
use super::violation::Violation;
use crate::config::Ec2Access;
use crate::pool::Assignment;

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
    /// The same for what happens on the node without its daemon.
    disturbed_until: Duration,
    cordoned_since: Option<Duration>,
    /// Addresses of pods whose DEL got lost: the daemon may take them for in use.
    lost: BTreeSet<IpAddr>,
    /// The state file was damaged: pods before that are only known by the kernel.
    lost_books: bool,
    /// Pods whose ADD is under way, with the time of the sandbox's first attempt.
    wanting: BTreeMap<String, Duration>,
    /// When pods that waited got an address that rested meanwhile: steps that were planned before
    /// count both.
    served_by_rested: Vec<Duration>,
}

/// The judge.
#[derive(Debug)]
pub(super) struct Oracle {
    /// The present, set by whoever asks.
    pub(super) now: Duration,
    cooldown: Duration,
    eni_limit: usize,
    ips_per_eni: usize,
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
    /// What each node keeps warm, if it counts single addresses and nothing else.
    counted: Option<Counted>,
    access: Ec2Access,
    /// Where all new ENIs go, with custom networking.
    pub(super) custom_subnet: Option<String>,
    /// Pods are told to go: whatever was planned for them may be asked for still.
    is_closing: bool,
    /// ENIs and addresses that are perhaps on their way back to EC2.
    leaving_enis: BTreeSet<String>,
    leaving: BTreeSet<IpAddr>,
    /// ENIs that a person takes, with whatever they have then.
    enis_taken: BTreeSet<String>,
    /// Since when the subnets have had room for everybody; none while they have not.
    roomy_since: Option<Duration>,
    ownerless: Ownerless,
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
            ips_per_eni: scenario.ips_per_eni(),
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
            counted: Counted::of(scenario),
            access: match scenario.provided {
                Some(_) if scenario.is_imds_only() => Ec2Access::Nothing,
                Some(_) => Ec2Access::Reads,
                None => Ec2Access::Changes,
            },
            custom_subnet: None,
            is_closing: false,
            leaving_enis: BTreeSet::new(),
            leaving: BTreeSet::new(),
            enis_taken: BTreeSet::new(),
            roomy_since: None,
            ownerless: Ownerless::new(scenario),
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

    /// From here on pods go.
    pub(super) fn closes(&mut self) {
        self.is_closing = true;
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

    /// Somebody meddles with the node for so long.
    pub(super) fn disturbance(&mut self, node: usize, lasts: Duration) {
        let until = self.now + lasts + AFTERMATH;
        let facts = &mut self.nodes[node];
        facts.disturbed_until = facts.disturbed_until.max(until);
    }

    pub(super) fn is_troubled(&self, node: usize) -> bool {
        self.now < self.nodes[node].troubled_until || self.now < self.nodes[node].disturbed_until
    }

    pub(super) fn cordons(&mut self, node: usize, is_on: bool) {
        self.nodes[node].cordoned_since = is_on.then_some(self.now);
    }

    /// From here on the node may not know of earlier cooldowns.
    pub(super) fn forgets_rests(&mut self, node: usize) {
        self.nodes[node].forgot_rests_at = Some(self.now);
    }

    /// The state file is damaged.
    pub(super) fn loses_books(&mut self, node: usize) {
        self.nodes[node].lost_books = true;
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
        self.nodes[node].lost.clear();
        self.nodes[node].lost_books = false;
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
        found: Found,
        snapshot: &Snapshot,
    ) {
        let address = assignment.address;
        let now = self.now;
        let wanted_since = self.nodes[node].wanting.remove(pod);
        self.nodes[node].lost.remove(&address);
        self.leaving.remove(&address);
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
            if wanted_since.is_some_and(|since| since < rest.since + self.cooldown) {
                self.nodes[node].served_by_rested.push(now);
            }
            if !forgot && rested < self.cooldown {
                let wanted = self.cooldown;
                return self.violate(Violation::CooldownIgnored { address, pod: name, rested, wanted });
            }
        }
        if let Some(link) = found.other_link {
            self.violate(Violation::InKernelUse { address, pod: name.clone(), link });
        }
        if assignment.is_new && !found.has_table {
            self.violate(Violation::NotSetUp { pod: name.clone(), table: assignment.table.0 });
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

    /// The pod's DEL begins, or gets lost: from here on it no longer lives.
    pub(super) fn ends(&mut self, container: &str, is_lost: bool) {
        let Some(address) = self.by_container.remove(container) else { return };
        // What a person took away may be another pod's by now.
        let is_own = self.holdings.get(&address).is_some_and(|holding| holding.container == container);
        if is_own && let Some(holding) = self.holdings.remove(&address) {
            if is_lost {
                self.nodes[holding.node].lost.insert(address);
            }
            self.rests.insert(address, Rest { node: holding.node, since: self.now });
        }
    }

    /// Whether a live pod has the address.
    pub(super) fn is_held(&self, address: IpAddr) -> bool {
        self.holdings.contains_key(&address)
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
