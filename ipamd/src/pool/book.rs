//! The address book: every ENI of the node, every address on it, and who has it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vpc::{Eni, EniId, EniKind, EniRole, EniSlot, PodKey, PodName, RouteTable, SubnetId};

use super::{Allocation, Assignment, Released, Request, Stats};

/// How long an ENI stays at least, so that a burst of pods does not turn into a burst of
/// attachments and detachments.
const MINIMUM_ENI_AGE: Duration = Duration::from_secs(60);

/// How far an ENI has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EniPhase {
    /// Attached, but its link, routes and rule are not known to be right yet.
    Attached,
    /// Set up on the host: its addresses can serve pods.
    Ready,
    /// On its way back to EC2.
    Leaving,
}

/// Why an address is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum QuarantineReason {
    /// The kernel routes it to a link, but no pod in the book has it.
    KernelOnly,
    /// Two records of the state file claim it or its pod.
    ContestedRecord,
    /// The runtime has forgotten its pod, but the pod's link still has a running peer.
    LinkAlive,
}

impl fmt::Display for QuarantineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelOnly => "the kernel routes it, but no known pod has it",
            Self::ContestedRecord => "the state file gives it to two pods, or two addresses to its pod",
            Self::LinkAlive => "the runtime forgot its pod, but the pod's link is alive",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Free {
        /// When its last pod's cooldown ended; none if no pod had it since it came.
        since: Option<Instant>,
    },
    Assigned(Allocation),
    Cooling {
        until: Instant,
    },
    Quarantined(QuarantineReason),
    /// Being returned to EC2.
    Leaving,
}

#[derive(Debug)]
pub(super) struct EniEntry {
    pub(super) facts: Eni,
    pub(super) phase: EniPhase,
    pub(super) added_at: Instant,
    /// By address. Addresses out of a prefix are here only while a pod has them.
    pub(super) addresses: BTreeMap<Ipv4Addr, State>,
}

impl EniEntry {
    /// Whether pods may get addresses from it at all.
    pub(super) fn serves_pods(&self) -> bool {
        self.facts.is_managed && self.facts.kind != EniKind::EfaOnly && self.phase != EniPhase::Leaving
    }

    /// Whether more addresses may be assigned to it.
    pub(super) fn is_growable(&self) -> bool {
        self.serves_pods() && self.facts.kind != EniKind::Trunk
    }

    /// The private address slots in use: every secondary IP and every prefix takes one.
    pub(super) fn slots_used(&self) -> u32 {
        let singles = self.addresses.keys().filter(|address| !self.is_from_prefix(**address)).count();
        to_u32(singles + self.facts.prefixes.len())
    }

    pub(super) fn is_from_prefix(&self, address: Ipv4Addr) -> bool {
        self.facts.prefixes.iter().any(|prefix| prefix.contains(address.into()))
    }

    pub(super) fn assigned(&self) -> usize {
        self.addresses.values().filter(|state| matches!(state, State::Assigned(_))).count()
    }

    pub(super) fn is_all_free(&self) -> bool {
        self.addresses.values().all(|state| matches!(state, State::Free { .. }))
    }

    /// Whether the ENI could be given back once it is old enough.
    pub(super) fn is_removable(&self) -> bool {
        self.facts.role == EniRole::Secondary
            && self.facts.kind == EniKind::Interface
            && self.facts.is_managed
            && self.phase == EniPhase::Ready
            && self.facts.prefixes.is_empty()
            && self.is_all_free()
    }

    pub(super) fn removable_from(&self) -> Instant {
        self.added_at + MINIMUM_ENI_AGE
    }
}

/// One ENI for people and tools.
#[derive(Debug, Clone)]
pub(crate) struct EniView {
    pub(crate) id: EniId,
    pub(crate) slot: EniSlot,
    pub(crate) role: EniRole,
    pub(crate) phase: EniPhase,
    pub(crate) subnet: SubnetId,
    pub(crate) primary_ip: Ipv4Addr,
    pub(crate) addresses: Vec<AddressView>,
}

/// One address for people and tools.
#[derive(Debug, Clone)]
pub(crate) struct AddressView {
    pub(crate) address: Ipv4Addr,
    /// `free`, `assigned`, `cooling`, `quarantined` or `leaving`.
    pub(crate) state: &'static str,
    pub(crate) pod: Option<PodName>,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) enis: BTreeMap<EniId, EniEntry>,
    /// Allocations whose ENI EC2 has not shown: they stay their pods' until DEL.
    pub(super) pinned: BTreeMap<Ipv4Addr, Allocation>,
    by_key: HashMap<PodKey, Ipv4Addr>,
}

impl Book {
    /// Ends every cooldown that is over.
    pub(super) fn expire_cooling(&mut self, now: Instant) {
        for state in self.enis.values_mut().flat_map(|eni| eni.addresses.values_mut()) {
            if let State::Cooling { until } = *state
                && until <= now
            {
                *state = State::Free { since: Some(until) };
            }
        }
    }

    /// What the key holds, if its ENI is known.
    pub(super) fn assignment_of(&self, key: &PodKey) -> Option<Assignment> {
        let address = *self.by_key.get(key)?;
        let eni = self.eni_of(address)?;
        Some(Assignment {
            address,
            eni: Some(eni.facts.id.clone()),
            slot: eni.facts.slot,
            table: eni.facts.route_table(),
            is_new: false,
        })
    }

    /// Whether the key holds an address whose ENI EC2 has not shown.
    pub(super) fn is_pinned(&self, key: &PodKey) -> bool {
        self.by_key.get(key).is_some_and(|address| self.pinned.contains_key(address))
    }

    /// Gives the request the address that keeps ENIs and addresses most at rest: from the ENI
    /// with the most pods, so that others empty, and there the one that has been free longest.
    pub(super) fn assign(&mut self, request: &Request) -> Option<Assignment> {
        if self.by_key.contains_key(&request.key) {
            return None;
        }
        let eni = self
            .enis
            .values_mut()
            .filter(|eni| eni.phase == EniPhase::Ready && eni.serves_pods() && eni.has_free())
            .min_by_key(|eni| (std::cmp::Reverse(eni.assigned()), eni.facts.slot))?;
        let (_, address) = eni
            .addresses
            .iter()
            .filter_map(|(address, state)| match state {
                State::Free { since } => Some((*since, *address)),
                _ => None,
            })
            .min()?;
        eni.addresses.insert(
            address,
            State::Assigned(Allocation {
                key: request.key.clone(),
                pod: request.pod.clone(),
                address,
                assigned_unix_ns: request.unix_ns,
            }),
        );
        let assignment = Assignment {
            address,
            eni: Some(eni.facts.id.clone()),
            slot: eni.facts.slot,
            table: eni.facts.route_table(),
            is_new: true,
        };
        self.by_key.insert(request.key.clone(), address);
        Some(assignment)
    }

    /// Takes the key's address back; it cools until `until`, or leaves the book if EC2 has
    /// not shown it.
    pub(super) fn release(&mut self, key: &PodKey, until: Instant) -> Option<Released> {
        let address = self.by_key.remove(key)?;
        if let Some(allocation) = self.pinned.remove(&address) {
            // Table 0 stands for any: the ENI and with it the table are not known.
            return Some(Released { allocation, slot: EniSlot::PRIMARY, table: RouteTable(0) });
        }
        let eni = self.eni_of_mut(address)?;
        let (slot, table) = (eni.facts.slot, eni.facts.route_table());
        let State::Assigned(allocation) = eni.addresses.remove(&address)? else {
            return None;
        };
        if !eni.is_from_prefix(address) {
            eni.addresses.insert(address, State::Cooling { until });
        }
        Some(Released { allocation, slot, table })
    }

    /// Undoes [`Book::assign`].
    pub(super) fn take_back(&mut self, key: &PodKey) {
        if let Some(address) = self.by_key.remove(key)
            && let Some(eni) = self.eni_of_mut(address)
        {
            eni.addresses.insert(address, State::Free { since: None });
        }
    }

    /// Gives an allocation the address that it names, whatever state it is in.
    pub(super) fn give_back(&mut self, allocation: Allocation) {
        self.by_key.insert(allocation.key.clone(), allocation.address);
        let address = allocation.address;
        match self.eni_of_mut(address) {
            Some(eni) => {
                eni.addresses.insert(address, State::Assigned(allocation));
            }
            None => {
                self.pinned.insert(address, allocation);
            }
        }
    }

    /// The allocation that holds `address`.
    pub(super) fn holder(&self, address: Ipv4Addr) -> Option<&Allocation> {
        match self.eni_of(address).and_then(|eni| eni.addresses.get(&address)) {
            Some(State::Assigned(allocation)) => Some(allocation),
            _ => self.pinned.get(&address),
        }
    }

    /// The address that the key holds.
    pub(super) fn address_of(&self, key: &PodKey) -> Option<Ipv4Addr> {
        self.by_key.get(key).copied()
    }

    /// The ENI that holds `address`, singly or within a prefix.
    pub(super) fn eni_of(&self, address: Ipv4Addr) -> Option<&EniEntry> {
        self.enis.values().find(|eni| eni.holds(address))
    }

    pub(super) fn eni_of_mut(&mut self, address: Ipv4Addr) -> Option<&mut EniEntry> {
        self.enis.values_mut().find(|eni| eni.holds(address))
    }

    pub(super) fn state_mut(&mut self, address: Ipv4Addr) -> Option<&mut State> {
        self.eni_of_mut(address)?.addresses.get_mut(&address)
    }

    pub(super) fn allocations(&self) -> Vec<Allocation> {
        let assigned = self.states().filter_map(|(_, state)| match state {
            State::Assigned(allocation) => Some(allocation),
            _ => None,
        });
        let mut all: Vec<_> = assigned.chain(self.pinned.values()).cloned().collect();
        all.sort_by_key(|allocation| allocation.address);
        all
    }

    pub(super) fn cooling(&self) -> Vec<(Ipv4Addr, Instant)> {
        self.states()
            .filter_map(|(address, state)| match state {
                State::Cooling { until } => Some((address, *until)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn quarantined(&self) -> Vec<(Ipv4Addr, QuarantineReason)> {
        self.states()
            .filter_map(|(address, state)| match state {
                State::Quarantined(reason) => Some((address, *reason)),
                _ => None,
            })
            .collect()
    }

    /// The addresses whose rest is over by `time`.
    pub(super) fn cooled_by(&self, time: Instant) -> u32 {
        to_u32(self.cooling().into_iter().filter(|(_, until)| *until <= time).count())
    }

    pub(super) fn next_cooled(&self) -> Option<Instant> {
        self.cooling().into_iter().map(|(_, until)| until).min()
    }

    /// From when some ENI without pods is old enough to be given back; `now` if one is already,
    /// or if there is none.
    pub(super) fn next_removable(&self, now: Instant) -> Instant {
        let removable = self.enis.values().filter(|eni| eni.is_removable());
        removable.map(EniEntry::removable_from).min().unwrap_or(now).max(now)
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats {
            enis: to_u32(self.enis.len()),
            total: to_u32(self.pinned.len()),
            assigned: to_u32(self.pinned.len()),
            ..Stats::default()
        };
        for eni in self.enis.values().filter(|eni| eni.serves_pods()) {
            for state in eni.addresses.values() {
                stats.total += 1;
                match state {
                    State::Assigned(_) => stats.assigned += 1,
                    State::Cooling { .. } => stats.cooling += 1,
                    State::Quarantined(_) => stats.quarantined += 1,
                    State::Free { .. } if eni.phase == EniPhase::Ready => stats.free += 1,
                    State::Free { .. } => stats.setting_up += 1,
                    State::Leaving => {}
                }
            }
        }
        stats
    }

    pub(super) fn views(&self) -> Vec<EniView> {
        let mut views: Vec<_> = self
            .enis
            .values()
            .map(|eni| EniView {
                id: eni.facts.id.clone(),
                slot: eni.facts.slot,
                role: eni.facts.role,
                phase: eni.phase,
                subnet: eni.facts.subnet.clone(),
                primary_ip: eni.facts.primary_ip,
                addresses: eni.addresses.iter().map(|(address, state)| view(*address, state)).collect(),
            })
            .collect();
        views.sort_by_key(|eni| eni.slot);
        views
    }

    fn states(&self) -> impl Iterator<Item = (Ipv4Addr, &State)> {
        self.enis.values().flat_map(|eni| eni.addresses.iter().map(|(address, state)| (*address, state)))
    }
}

impl EniEntry {
    fn has_free(&self) -> bool {
        self.addresses.values().any(|state| matches!(state, State::Free { .. }))
    }

    fn holds(&self, address: Ipv4Addr) -> bool {
        self.addresses.contains_key(&address) || self.is_from_prefix(address)
    }
}

fn view(address: Ipv4Addr, state: &State) -> AddressView {
    let (state, pod) = match state {
        State::Free { .. } => ("free", None),
        State::Assigned(allocation) => ("assigned", Some(allocation.pod.clone())),
        State::Cooling { .. } => ("cooling", None),
        State::Quarantined(_) => ("quarantined", None),
        State::Leaving => ("leaving", None),
    };
    AddressView { address, state, pod }
}

/// Counts on one instance fit: it holds a few thousand addresses at most.
pub(super) fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
