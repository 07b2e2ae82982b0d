//! What is judged of a node's dealings with EC2.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ec2::{Action, Class};
use lab::cloud::{Eni, Snapshot};

use super::{NodeFacts, Oracle, ROOMY};
use crate::config::Ec2Access;
use crate::simulation::scenario::Scenario;
use crate::simulation::violation::Violation;
use crate::simulation::world::addresses_of;

/// Targets in single addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    warm_ip: usize,
    minimum_ip: usize,
}

impl Counted {
    /// Those of a scenario, if its nodes count single addresses all the time.
    pub(super) fn of(scenario: &Scenario) -> Option<Self> {
        let as_usize = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let (warm_ip, minimum_ip) = (as_usize(scenario.warm_ip()), as_usize(scenario.minimum_ip()));
        let counts = (warm_ip > 0 || minimum_ip > 0) && !scenario.has_prefixes();
        counts.then_some(Self { warm_ip, minimum_ip })
    }
}

/// How long a step may be on its way to EC2 after it was planned, while nothing is out of order.
const PLANNED_BEFORE: Duration = Duration::from_secs(10);

impl Oracle {
    /// A node is about to ask for so many single addresses more.
    pub(in crate::simulation) fn asks_for(&mut self, instance: &str, count: u32, snapshot: &Snapshot) {
        let (Some(node), Some(counted)) = (self.node_of(instance), self.counted) else { return };
        if self.is_troubled(node) || self.is_closing || self.nodes[node].lost_books {
            return;
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let own = |eni: &&Arc<Eni>| !self.nodes[node].enis_by_hand.contains(&eni.id);
        let stays = |eni: &&Arc<Eni>| !self.leaving_enis.contains(&eni.id);
        let on_enis = snapshot.attached(instance).into_iter().filter(own).filter(stays);
        let held = on_enis.flat_map(addresses_of).filter(|ip| !self.leaving.contains(ip)).count();
        let rested = self.rested_less(node, self.cooldown + PLANNED_BEFORE);
        let NodeFacts { wanting, lost, cordoned_since, served_by_rested, .. } = &self.nodes[node];
        let is_recent = |at: &&Duration| self.now.saturating_sub(**at) < PLANNED_BEFORE;
        let both = served_by_rested.iter().rev().take_while(is_recent).count();
        let is_dormant = cordoned_since.is_some_and(|since| self.now.saturating_sub(since) > PLANNED_BEFORE);
        let (warm, least) = if is_dormant { (0, 0) } else { (counted.warm_ip, counted.minimum_ip) };
        let wanted = self.live(node) + rested + lost.len() + wanting.len() + both + warm;
        if held + count > wanted.max(least) {
            let what = format!("{count} more than {held} addresses, where {wanted} are in use or wanted");
            self.violate(Violation::BeyondTarget { node, what });
        }
    }

    /// A node asks EC2 for something.
    pub(in crate::simulation) fn asks(&mut self, instance: &str, action: Action) {
        let Some(node) = self.node_of(instance) else { return };
        let may = match self.access {
            Ec2Access::Changes => true,
            Ec2Access::Reads => action.is_read(),
            Ec2Access::Nothing => false,
        };
        if !may {
            self.violate(Violation::Forbidden { node, what: action.name().to_owned() });
        }
    }

    /// A node looks at one of its ENIs, as it does before it gives one back.
    pub(in crate::simulation) fn looks_at(&mut self, eni: &str) {
        self.leaving_enis.insert(eni.to_owned());
    }

    /// A node is about to return addresses.
    pub(in crate::simulation) fn returns(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.leaving.extend(addresses);
    }

    /// A node is about to ask for addresses, in this subnet and on this ENI, if not a new one.
    pub(in crate::simulation) fn grows(&mut self, instance: &str, subnet: &str, on: Option<&Eni>) {
        let Some(node) = self.node_of(instance) else { return };
        let is_primary = on.and_then(|eni| eni.attachment.as_ref()).is_some_and(|at| at.device_index == 0);
        if let Some(eni) = on {
            self.leaving_enis.remove(&eni.id);
            if self.nodes[node].enis_by_hand.contains(&eni.id) {
                return;
            }
        }
        if self.custom_subnet.as_ref().is_some_and(|wanted| wanted != subnet || is_primary) {
            let what = format!("addresses of {subnet}, where custom networking has another");
            self.violate(Violation::Forbidden { node, what });
        }
    }

    /// A node is about to return an address that its kernel routes to a link.
    pub(in crate::simulation) fn returned_in_use(&mut self, instance: &str, address: IpAddr, link: String) {
        let Some(node) = self.node_of(instance) else { return };
        self.violate(Violation::TakenFromKernel { node, address, link });
    }

    /// EC2 refused a request.
    pub(in crate::simulation) fn ec2_refused(&mut self, instance: &str, class: &Class) {
        let Some(node) = self.node_of(instance) else { return };
        let is_limit = matches!(class, Class::AddressLimit | Class::AttachmentLimit | Class::SlotInUse);
        if is_limit && !self.is_troubled(node) {
            self.violate(Violation::AskedTooMuch { node, class: format!("{class:?}") });
        }
    }

    /// EC2's state has changed: nobody's address may be gone, and no limit passed. `free` is what
    /// the subnets have left.
    pub(in crate::simulation) fn ec2_changed(&mut self, snapshot: &Snapshot, free: u32) {
        if snapshot.version == self.checked_version {
            return;
        }
        self.checked_version = snapshot.version;
        self.judge_ownerless(snapshot);
        for NodeFacts { instance, lost, .. } in self.nodes.iter_mut().filter(|facts| !facts.lost.is_empty()) {
            let held: BTreeSet<_> = snapshot.attached(instance).into_iter().flat_map(addresses_of).collect();
            lost.retain(|address| held.contains(address));
        }
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
}
