//! The witnesses at start and later: what the state file says, held against the kernel.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Instant;

use vpc::{PodKey, PodName, veth_suffix};

use super::book::{QuarantineReason, State};
use super::{Allocation, Pool};

/// What the state files remember.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    pub(crate) allocations: Vec<Allocation>,
    pub(crate) cooling: Vec<(Ipv4Addr, Instant)>,
    pub(crate) quarantined: Vec<(Ipv4Addr, QuarantineReason)>,
}

/// What the kernel says about addresses and pods.
#[derive(Debug, Clone, Default)]
pub(crate) struct KernelView {
    /// Addresses that a route leads to through a pod's link.
    pub(crate) routed: BTreeSet<Ipv4Addr>,
    /// Addresses that a policy rule of ours names.
    pub(crate) ruled: BTreeSet<Ipv4Addr>,
    /// The names of the host's links.
    pub(crate) links: BTreeSet<String>,
}

impl KernelView {
    /// Whether anything in the kernel leads to or from the address.
    pub(crate) fn uses(&self, address: Ipv4Addr) -> bool {
        self.routed.contains(&address) || self.ruled.contains(&address)
    }

    /// Whether the host has a link of this pod, under whatever prefix.
    fn has_link_of(&self, pod: &PodName) -> bool {
        let suffix = veth_suffix(pod, 0);
        self.links.iter().any(|link| link.ends_with(&suffix))
    }
}

/// What came of comparing the witnesses; for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RestoreNote {
    /// The pod went while nobody watched; its address rests now.
    Freed { address: Ipv4Addr, pod: PodName },
    /// EC2 has not shown the address, so it stays its pod's and nobody else's.
    Pinned { address: Ipv4Addr, pod: PodName },
    /// The address is held back.
    Quarantined { address: Ipv4Addr, reason: QuarantineReason },
    /// The record contradicts another one and was set aside.
    Contested { address: Ipv4Addr, key: PodKey },
    /// Rules name the address, but no link leads to it: they are to be removed.
    StaleRule { address: Ipv4Addr },
    /// The witnesses agree again.
    Cleared { address: Ipv4Addr },
}

impl fmt::Display for RestoreNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Freed { address, pod } => write!(f, "{address} of {pod} is free: the pod has gone"),
            Self::Pinned { address, pod } => {
                write!(f, "{address} stays with {pod}, although EC2 shows it on no ENI of this node")
            }
            Self::Quarantined { address, reason } => write!(f, "{address} is held back: {reason}"),
            Self::Contested { address, key } => {
                write!(f, "the record of {address} for {key} contradicts another one")
            }
            Self::StaleRule { address } => write!(f, "rules name {address}, but no link leads to it"),
            Self::Cleared { address } => write!(f, "{address} is no longer held back"),
        }
    }
}

impl Pool {
    /// Takes in what the state files remember, judged by the kernel. To be called once, after
    /// the first [`Pool::observe`].
    ///
    /// A recorded pod keeps its address if a route, a rule or the pod's link speaks for it; if
    /// nothing does, the pod went and its address rests. An address that only the kernel knows
    /// is held back.
    pub(crate) fn restore(
        &mut self,
        journal: Journal,
        kernel: &KernelView,
        now: Instant,
    ) -> Vec<RestoreNote> {
        let mut notes = Vec::new();
        let mut allocations = journal.allocations;
        // Where two records contradict each other, the one that the kernel supports comes
        // first, then the younger.
        allocations.sort_by_key(|allocation| {
            let is_supported = kernel.has_link_of(&allocation.pod);
            (std::cmp::Reverse(is_supported), std::cmp::Reverse(allocation.assigned_unix_ns))
        });
        for allocation in allocations {
            self.restore_one(allocation, kernel, now, &mut notes);
        }
        for (address, until) in journal.cooling {
            if let Some(state @ State::Free { .. }) = self.book.state_mut(address) {
                *state = State::Cooling { until };
            }
        }
        for (address, reason) in journal.quarantined {
            if let Some(state @ (State::Free { .. } | State::Cooling { .. })) = self.book.state_mut(address) {
                *state = State::Quarantined(reason);
            }
        }
        notes.extend(self.witness(kernel, now));
        notes
    }

    fn restore_one(
        &mut self,
        allocation: Allocation,
        kernel: &KernelView,
        now: Instant,
        notes: &mut Vec<RestoreNote>,
    ) {
        let Allocation { address, .. } = allocation;
        let pod = allocation.pod.clone();
        let is_contested =
            self.book.address_of(&allocation.key).is_some() || self.book.holder(address).is_some();
        if is_contested {
            notes.push(RestoreNote::Contested { address, key: allocation.key });
            if self.book.holder(address).is_none()
                && let Some(state) = self.book.state_mut(address)
            {
                *state = State::Quarantined(QuarantineReason::ContestedRecord);
            }
        } else if !kernel.uses(address) && !kernel.has_link_of(&pod) {
            notes.push(RestoreNote::Freed { address, pod });
            if let Some(state) = self.book.state_mut(address) {
                *state = State::Cooling { until: now + self.settings.cooldown };
            }
        } else {
            if self.book.eni_of(address).is_none() {
                notes.push(RestoreNote::Pinned { address, pod });
            }
            self.book.give_back(allocation);
        }
    }

    /// Takes in a later look at the kernel. An address that is free in the book but in use in
    /// the kernel is held back; one that was held back and is no longer in use rests and is
    /// free again. Rules without a link behind them are named for removal.
    pub(crate) fn witness(&mut self, kernel: &KernelView, now: Instant) -> Vec<RestoreNote> {
        let mut notes = Vec::new();
        for eni in self.book.enis.values_mut().filter(|eni| eni.facts.is_managed) {
            for (&address, state) in &mut eni.addresses {
                match state {
                    State::Free { .. } if kernel.routed.contains(&address) => {
                        *state = State::Quarantined(QuarantineReason::KernelOnly);
                        notes
                            .push(RestoreNote::Quarantined { address, reason: QuarantineReason::KernelOnly });
                    }
                    State::Free { .. } if kernel.ruled.contains(&address) => {
                        *state = State::Quarantined(QuarantineReason::KernelOnly);
                        notes.push(RestoreNote::StaleRule { address });
                    }
                    State::Quarantined(_) if !kernel.uses(address) => {
                        *state = State::Cooling { until: now + self.settings.cooldown };
                        notes.push(RestoreNote::Cleared { address });
                    }
                    State::Quarantined(_) if !kernel.routed.contains(&address) => {
                        notes.push(RestoreNote::StaleRule { address });
                    }
                    _ => {}
                }
            }
        }
        notes
    }

    /// Holds back an address whose pod the runtime has forgotten while its link is alive.
    pub(crate) fn quarantine(&mut self, key: &PodKey, reason: QuarantineReason, now: Instant) {
        if let Some(address) = self.book.address_of(key)
            && self.book.release(key, now).is_some()
            && let Some(state) = self.book.state_mut(address)
        {
            *state = State::Quarantined(reason);
        }
    }
}
