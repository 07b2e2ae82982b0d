//! The witnesses at start and later: what the state file says, held against the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vpc::{EniId, PodKey, PodName, veth_suffix};

use super::block::Block;
use super::eni::{EniPhase, QuarantineReason, State};
use super::{Allocation, Pool};

/// How long the ADD of a recorded pod may be under way: a plugin gives up after 35 s.
const ADD_TAKES: Duration = Duration::from_secs(35);

/// How long the kernel may show an address that its pod's DEL has given back.
const DEL_TAKES: Duration = Duration::from_secs(5);

/// How often to look at the kernel.
pub(crate) const KERNEL_LOOK_EVERY: Duration = Duration::from_secs(30);

/// What the state files remember.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    pub(crate) allocations: Vec<Allocation>,
    pub(crate) cooling: Vec<(IpAddr, Instant)>,
    pub(crate) quarantined: Vec<(IpAddr, QuarantineReason)>,
    /// What EC2 was asked to take back, and may yet.
    pub(crate) returning: Vec<Returning>,
    /// What the wall clock showed when this was read, in nanoseconds since 1970.
    pub(crate) read_unix_ns: i64,
    /// Allocations are missing: the state file was damaged.
    pub(crate) is_incomplete: bool,
}

/// Blocks, or a whole ENI, that the process before asked EC2 to take back. It may do so until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Returning {
    pub(crate) eni: EniId,
    /// None for the ENI itself.
    pub(crate) blocks: Option<Vec<Block>>,
    pub(crate) until: Instant,
}

/// What the kernel says about addresses and pods.
#[derive(Debug, Clone, Default)]
pub(crate) struct KernelView {
    /// Addresses that a route leads to.
    pub(crate) routed: BTreeSet<IpAddr>,
    /// Those among them whose link is no pod's: no DEL takes such a route away.
    pub(crate) routed_elsewhere: BTreeSet<IpAddr>,
    /// Addresses that a policy rule of ours names.
    pub(crate) ruled: BTreeSet<IpAddr>,
    /// The names of the host's links.
    pub(crate) links: BTreeSet<String>,
}

impl KernelView {
    /// Whether anything in the kernel leads to or from the address.
    pub(crate) fn uses(&self, address: IpAddr) -> bool {
        self.routed.contains(&address) || self.ruled.contains(&address)
    }

    /// Whether the host has a link of this pod, under whatever prefix.
    pub(crate) fn has_link_of(&self, pod: &PodName) -> bool {
        let suffix = veth_suffix(pod, 0);
        self.links.iter().any(|link| link.ends_with(&suffix))
    }
}

/// What came of comparing the witnesses; for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RestoreNote {
    /// The pod went while nobody watched; its address rests now.
    Freed { address: IpAddr, pod: PodName },
    /// EC2 has not shown the address, so it stays its pod's and nobody else's.
    Pinned { address: IpAddr, pod: PodName },
    /// The kernel does not show the pod yet; it was assigned its address just before the daemon
    /// ended, so its ADD may be under way.
    InFlight { address: IpAddr, pod: PodName },
    /// The address is held back.
    Quarantined { address: IpAddr, reason: QuarantineReason },
    /// The record contradicts another one and was set aside.
    Contested { address: IpAddr, key: PodKey },
    /// Rules name the address, but no link leads to it: they are to be removed.
    StaleRule { address: IpAddr },
    /// The witnesses agree again.
    Cleared { address: IpAddr },
}

impl fmt::Display for RestoreNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Freed { address, pod } => write!(f, "{address} of {pod} is free: the pod has gone"),
            Self::Pinned { address, pod } => {
                write!(f, "{address} stays with {pod}, although EC2 shows it on no ENI of this node")
            }
            Self::InFlight { address, pod } => {
                write!(f, "{address} stays with {pod} for now: its ADD may be under way")
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
        let links = Links::of(&allocations, kernel);
        // Where two records contradict each other, the one that the kernel supports comes
        // first, then the younger.
        allocations.sort_by_key(|allocation| {
            let is_supported = links.speak_for(allocation);
            (std::cmp::Reverse(is_supported), std::cmp::Reverse(allocation.assigned_unix_ns))
        });
        for allocation in allocations {
            let is_seen = kernel.uses(allocation.address) || links.speak_for(&allocation);
            self.restore_one(allocation, journal.read_unix_ns, is_seen, now, &mut notes);
        }
        for (address, until) in journal.cooling {
            self.book.rest(address, until);
        }
        for (address, reason) in journal.quarantined {
            self.book.hold_back(address, reason);
        }
        for returning in journal.returning {
            self.go_on_returning(returning);
        }
        notes.extend(self.witness(kernel, now));
        if journal.is_incomplete {
            // A pod whose ADD was under way has an address of which nobody knows, and the kernel
            // shows it only once the plugin is done. Of two looks after that one may count for
            // nothing, see `DEL_TAKES`.
            self.book.rest_all(self.reach(), now + ADD_TAKES + 2 * KERNEL_LOOK_EVERY);
        }
        notes
    }

    /// Gives nobody an address that EC2 may take back at any moment. EC2 is read again in the end.
    fn go_on_returning(&mut self, returning: Returning) {
        let Some(entry) = self.book.enis.get_mut(&returning.eni) else { return };
        entry.unsure_until = entry.unsure_until.max(Some(returning.until));
        match returning.blocks {
            None => entry.phase = EniPhase::Leaving,
            Some(blocks) => {
                for block in blocks {
                    if let Some(block) = entry.blocks.get_mut(&block) {
                        block.is_leaving = true;
                    }
                }
            }
        }
    }

    fn restore_one(
        &mut self,
        allocation: Allocation,
        read_unix_ns: i64,
        is_seen: bool,
        now: Instant,
        notes: &mut Vec<RestoreNote>,
    ) {
        let Allocation { address, .. } = allocation;
        let pod = allocation.pod.clone();
        let is_contested =
            self.book.address_of(&allocation.key).is_some() || self.book.holder(address).is_some();
        if is_contested {
            notes.push(RestoreNote::Contested { address, key: allocation.key });
            self.book.hold_back(address, QuarantineReason::ContestedRecord);
            return;
        }
        if !is_seen {
            let Some(left) = time_left(allocation.assigned_unix_ns, read_unix_ns) else {
                notes.push(RestoreNote::Freed { address, pod });
                self.book.rest(address, now + self.settings.cooldown);
                return;
            };
            notes.push(RestoreNote::InFlight { address, pod: pod.clone() });
            self.doubted.insert(allocation.key.clone(), now + left);
        }
        if self.book.eni_of(address).is_none() {
            notes.push(RestoreNote::Pinned { address, pod });
        }
        self.book.give_back(allocation);
    }

    /// Takes in a later look at the kernel. An address that is free in the book but in use in
    /// the kernel is held back; one that was held back and is no longer in use rests and is
    /// free again. Rules without a link behind them are named for removal.
    pub(crate) fn witness(&mut self, kernel: &KernelView, now: Instant) -> Vec<RestoreNote> {
        let mut notes = self.judge_unseen(kernel, now);
        self.book.others_use.clone_from(&kernel.routed_elsewhere);
        self.book.kernel_uses = kernel.routed.union(&kernel.ruled).copied().collect();
        // A plugin takes its routes and rules away once it has been told that the address is free.
        let rest = self.settings.cooldown;
        let just_given_back = now + rest.saturating_sub(DEL_TAKES)..=now + rest;
        self.book.forget_uses_of_resting(just_given_back);
        for &address in &self.book.kernel_uses.clone() {
            let Some(block) = self.book.block_mut(address) else { continue };
            let is_routed = kernel.routed.contains(&address);
            let is_news = block.is_free(address);
            if is_news {
                block.states.insert(address, State::Quarantined(QuarantineReason::KernelOnly));
            }
            let is_held_back = matches!(block.states.get(&address), Some(State::Quarantined(_)));
            if is_held_back && !is_routed {
                notes.push(RestoreNote::StaleRule { address });
            } else if is_news {
                notes.push(RestoreNote::Quarantined { address, reason: QuarantineReason::KernelOnly });
            }
        }
        let rested = now + self.settings.cooldown;
        for block in self.book.blocks_mut() {
            for (&address, state) in &mut block.states {
                if matches!(state, State::Quarantined(_)) && !kernel.uses(address) {
                    *state = State::Cooling { until: rested };
                    notes.push(RestoreNote::Cleared { address });
                }
            }
        }
        notes
    }

    /// Questions the pods of which the kernel shows nothing: their ADD may be under way, or a DEL
    /// came only half through. Where that lasts longer than an ADD takes, the pod has gone.
    fn judge_unseen(&mut self, kernel: &KernelView, now: Instant) -> Vec<RestoreNote> {
        let allocations = self.book.allocations();
        let links = Links::of(&allocations, kernel);
        let mut notes = Vec::new();
        for allocation in &allocations {
            let Allocation { key, pod, address, .. } = allocation;
            if kernel.uses(*address) || links.speak_for(allocation) {
                self.doubted.remove(key);
            } else if *self.doubted.entry(key.clone()).or_insert(now + ADD_TAKES) <= now
                && self.release(key, now).is_ok()
            {
                notes.push(RestoreNote::Freed { address: *address, pod: pod.clone() });
            }
        }
        notes
    }

    /// Holds back an address whose pod the runtime has forgotten while its link is alive.
    pub(crate) fn quarantine(&mut self, key: &PodKey, reason: QuarantineReason, now: Instant) {
        if let Some(address) = self.book.address_of(key)
            && self.book.release(key, now).is_some()
        {
            self.book.hold_back(address, reason);
        }
    }
}

/// Which records the links of pods speak for. A link bears its pod's name, and the pod's next
/// sandbox has one of the same name: it speaks for one record alone. That is the one whose address
/// the kernel uses, else the youngest; the wall clock may have been set back between two.
struct Links<'a> {
    kernel: &'a KernelView,
    chosen: BTreeMap<PodName, (bool, i64)>,
}

impl<'a> Links<'a> {
    fn of(allocations: &[Allocation], kernel: &'a KernelView) -> Self {
        let mut links = Self { kernel, chosen: BTreeMap::new() };
        for allocation in allocations {
            let rank = links.rank(allocation);
            let chosen = links.chosen.entry(allocation.pod.clone()).or_insert(rank);
            *chosen = rank.max(*chosen);
        }
        links
    }

    fn rank(&self, allocation: &Allocation) -> (bool, i64) {
        (self.kernel.uses(allocation.address), allocation.assigned_unix_ns)
    }

    fn speak_for(&self, allocation: &Allocation) -> bool {
        self.chosen.get(&allocation.pod) == Some(&self.rank(allocation))
            && self.kernel.has_link_of(&allocation.pod)
    }
}

/// How much longer the ADD of a pod may be under way that was assigned its address at one time
/// of the wall clock and read at another; none if it cannot be. A clock that was set back makes
/// it wait anew.
fn time_left(assigned_unix_ns: i64, read_unix_ns: i64) -> Option<Duration> {
    let age = Duration::from_nanos(u64::try_from(read_unix_ns.saturating_sub(assigned_unix_ns)).unwrap_or(0));
    ADD_TAKES.checked_sub(age).filter(|left| !left.is_zero())
}
