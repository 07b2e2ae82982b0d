//! The pool: which addresses this node holds, who has them, and what to ask of EC2 next.
//!
//! A pure state machine. It knows no clock, no socket and no async runtime: time comes in as
//! `now`, facts come in as values, and what should happen goes out as values. One task owns it
//! and feeds it (`pool_task`); tests step it by hand.
//!
//! - [`Pool::request`] and [`Pool::release`] are a pod's ADD and DEL.
//! - [`Pool::plan`] says what to ask of EC2 and of the host now; [`Pool::finish`] takes the outcome.
//! - [`Pool::settle`] answers the pods that were waiting.
//! - [`Pool::restore`], [`Pool::observe`] and [`Pool::witness`] take in the three witnesses: the
//!   state file, EC2 and the kernel.

mod block;
mod book;
mod eni;
mod explain;
mod failures;
mod grow;
mod ipv6;
mod plan;
mod report;
mod restore;
mod settings;
mod shrink;
mod step;
mod subnets;
mod targets;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use vpc::{EniId, EniSlot, PodKey, PodName, RouteTable};

pub(crate) use block::{Block, BlockKind, Blocks};
pub(crate) use eni::{EniPhase, QuarantineReason};
pub(crate) use explain::{Reason, Refusal};
pub(crate) use report::{AddressReport, AddressState, EniReport, PoolReport, SubnetReport, Wants};
pub(crate) use restore::{Journal, KERNEL_LOOK_EVERY, KernelView, RestoreNote, Returning};
pub(crate) use settings::{BlockMode, CustomNetwork, Settings, WarmTargets};
pub(crate) use step::{FailureClass, Outcome, Step, StepFailure, StepId};
pub(crate) use subnets::Subnet;
pub(crate) use wait::WaiterId;

use book::Book;
use failures::LastFailures;
use step::Running;
use subnets::Subnets;
use wait::Waiters;

/// An address in a pod's hands, as the state file records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) key: PodKey,
    pub(crate) pod: PodName,
    pub(crate) address: IpAddr,
    /// Wall-clock time of the assignment, in nanoseconds since 1970.
    pub(crate) assigned_unix_ns: i64,
}

/// What a pod is told of its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) address: IpAddr,
    /// The ENI that carries it; unknown for an address restored before its ENI was seen.
    pub(crate) eni: Option<EniId>,
    pub(crate) slot: EniSlot,
    pub(crate) table: RouteTable,
    /// Whether this call made the assignment; a repeated ADD finds the one of the first.
    pub(crate) is_new: bool,
}

/// What a pod gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) allocation: Allocation,
    pub(crate) slot: EniSlot,
    pub(crate) table: RouteTable,
}

/// The key holds nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("datastore: unknown pod")]
pub(crate) struct UnknownPod;

/// What became of a request at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Assigned(Assignment),
    /// An address can come; [`Pool::settle`] answers later.
    Parked(WaiterId),
    Refused(Refusal),
}

/// One pod's wish for an address.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) key: PodKey,
    pub(crate) pod: PodName,
    /// Until when the pod may wait for EC2 and the host.
    pub(crate) deadline: Instant,
    /// Until when it may wait for an address that rests: not before `deadline`. The end of a
    /// cooldown is certain, so this can be as late as the caller goes along with.
    pub(crate) latest: Instant,
    /// Wall-clock time of the request, in nanoseconds since 1970.
    pub(crate) unix_ns: i64,
}

/// How many addresses are in which state, over all ENIs that serve pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stats {
    /// ENIs attached, the primary included.
    pub(crate) enis: u32,
    /// Addresses held, in every state; the largest number stands for an IPv6 prefix.
    pub(crate) total: u32,
    pub(crate) assigned: u32,
    pub(crate) cooling: u32,
    pub(crate) quarantined: u32,
    /// Ready for a pod now.
    pub(crate) free: u32,
    /// Free on ENIs that the host has not set up yet.
    pub(crate) setting_up: u32,
    /// Prefixes held.
    pub(crate) prefixes: u32,
    /// Pods that wait for an address.
    pub(crate) waiting: u32,
}

/// The pool of one node.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: Settings,
    book: Book,
    waiters: Waiters,
    running: Running,
    failures: LastFailures,
    subnets: Subnets,
    /// Where new ENIs go with custom networking.
    custom: Option<CustomNetwork>,
    /// The node is to run no new pods; nothing is kept warm for them.
    is_cordoned: bool,
    /// Since when the node has held more than it wants; shrinking waits for this to last.
    surplus_since: Option<Instant>,
    /// A mutating call ended without a clear answer; EC2 is read before anything else is asked.
    is_unclear: bool,
    /// EC2 is being read for that reason.
    is_reading_unclear: bool,
    /// EC2 is to be read, but nothing waits for it.
    is_look_due: bool,
    /// The subnets are to be read.
    wants_subnets: bool,
    /// Pods of which the kernel shows nothing, each with the time until which their ADD may still
    /// be under way.
    doubted: BTreeMap<PodKey, Instant>,
}

impl Pool {
    /// An empty pool; [`Pool::observe`] and then [`Pool::restore`] fill it.
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            wants_subnets: settings.reads_subnets,
            book: Book::new(settings.mode.family()),
            settings,
            waiters: Waiters::default(),
            running: Running::default(),
            failures: LastFailures::default(),
            subnets: Subnets::default(),
            custom: None,
            is_cordoned: false,
            surplus_since: None,
            is_unclear: false,
            is_reading_unclear: false,
            is_look_due: false,
            doubted: BTreeMap::new(),
        }
    }

    /// Says whether the node is to run no new pods. Pods that come all the same get addresses.
    pub(crate) fn set_cordoned(&mut self, is_cordoned: bool) {
        self.is_cordoned = is_cordoned;
    }

    /// Says where new ENIs go from now on; none for the subnets that their tags offer.
    pub(crate) fn set_custom_network(&mut self, custom: Option<CustomNetwork>) {
        self.custom = custom;
    }

    /// An address for a pod: the one its key already holds, a free one, a place in the queue,
    /// or the reason why none can come before the request's deadline.
    pub(crate) fn request(&mut self, request: Request, now: Instant) -> Answer {
        self.book.expire_cooling(now);
        if let Some(assignment) = self.book.assignment_of(&request.key) {
            // The runtime repeats an ADD that got no answer: this one may be under way as long.
            self.doubted.remove(&request.key);
            return Answer::Assigned(assignment);
        }
        if self.book.is_pinned(&request.key) {
            // The pod has an address, but which ENI carries it only EC2 can tell.
            self.is_unclear = true;
            return Answer::Parked(self.waiters.park(request, now));
        }
        let kind = self.settings.mode.kind();
        if self.waiters.is_empty()
            && let Some(assignment) = self.book.assign(&request, kind)
        {
            return Answer::Assigned(assignment);
        }
        self.failures.end_long_pauses();
        match self.refusal(self.waiters.ahead_of(&request.key), &request, now) {
            Some(refusal) => Answer::Refused(refusal),
            None => Answer::Parked(self.waiters.park(request, now)),
        }
    }

    /// Answers every waiting pod that can be answered now, first come first served: with an
    /// address, or with the reason once its deadline has passed or nothing can come any more.
    ///
    /// To be called after anything that changed the pool and when [`Pool::next_wake`] is due.
    pub(crate) fn settle(&mut self, now: Instant) -> Vec<(WaiterId, Result<Assignment, Refusal>)> {
        self.book.expire_cooling(now);
        let kind = self.settings.mode.kind();
        let mut answers = Vec::new();
        // A runtime that repeats its ADD makes two requests of one pod.
        let mut before = BTreeSet::new();
        for (id, request) in self.waiters.in_order(now) {
            let ahead = block::to_u32(before.len()) - u32::from(before.contains(&request.key));
            if let Some(assignment) =
                self.book.assignment_of(&request.key).or_else(|| self.book.assign(&request, kind))
            {
                self.waiters.remove(id);
                answers.push((id, Ok(assignment)));
            } else if now >= request.deadline && self.book.cooled_by(request.latest) <= ahead {
                let refusal = self.unseen(&request.key).unwrap_or_else(|| self.timed_out(now));
                self.waiters.remove(id);
                answers.push((id, Err(refusal)));
            } else if self.book.is_pinned(&request.key) {
                // It takes nothing from those behind it.
            } else if let Some(refusal) = self.refusal(ahead, &request, now) {
                self.waiters.remove(id);
                answers.push((id, Err(refusal)));
            } else {
                before.insert(request.key);
            }
        }
        answers
    }

    /// Drops a waiting pod whose caller has gone.
    pub(crate) fn abandon(&mut self, waiter: WaiterId) {
        self.waiters.remove(waiter);
    }

    /// Takes a pod's address back; it rests for the cooldown before the next pod gets it.
    ///
    /// # Errors
    /// [`UnknownPod`] if the key holds nothing. A waiting request of that key is dropped too.
    pub(crate) fn release(&mut self, key: &PodKey, now: Instant) -> Result<Released, UnknownPod> {
        self.waiters.remove_key(key);
        self.doubted.remove(key);
        self.book.release(key, now + self.settings.cooldown).ok_or(UnknownPod)
    }

    /// Undoes an assignment whose record could not be made durable; nobody has heard of it.
    pub(crate) fn undo_request(&mut self, key: &PodKey) {
        self.book.take_back(key);
    }

    /// Undoes a release whose record could not be made durable: the pod keeps its address.
    pub(crate) fn undo_release(&mut self, released: Released) {
        self.book.give_back(released.allocation);
    }

    /// Every address in a pod's hands, in address order; what the state file holds.
    pub(crate) fn allocations(&self) -> Vec<Allocation> {
        self.book.allocations()
    }

    /// The addresses that rest, each with the time until which it does.
    pub(crate) fn cooling(&self) -> Vec<(IpAddr, Instant)> {
        self.book.cooling()
    }

    /// The addresses that are held back because witnesses disagree, with the reason.
    pub(crate) fn quarantined(&self) -> Vec<(IpAddr, QuarantineReason)> {
        self.book.quarantined()
    }

    /// Counts by state.
    pub(crate) fn stats(&self) -> Stats {
        Stats { waiting: self.waiters.len(), ..self.book.stats() }
    }

    /// When [`Pool::settle`] and [`Pool::plan`] next have something to do without any other
    /// event: a deadline, the end of a cooldown or a back-off, the end of the shrink delay.
    pub(crate) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let surplus = self.surplus_since.map(|since| since + self.settings.shrink_delay);
        [
            self.waiters.next_deadline(now),
            self.book.next_cooled(),
            self.failures.next_retry(now),
            self.book.enis.values().filter_map(|eni| eni.unsure_until).min(),
            surplus,
            // An ENI must be old enough besides.
            surplus.map(|due| due.max(self.next_removable(now))),
        ]
        .into_iter()
        .flatten()
        .filter(|due| *due > now)
        .min()
    }

    /// The steps under way, with their ids.
    pub(crate) fn running(&self) -> &BTreeMap<StepId, Step> {
        self.running.steps()
    }
}
