//! The way in to one EC2 action: who goes next, and when.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout_at};

use super::backoff::Backoff;
use super::{Bucket, Budget, Priority, Rate};
use crate::Action;

/// The requests that may wait for one action. Far above what the daemon's tasks send together.
const WAITING_MAX: usize = 256;

/// One action's tokens and pause, and those who wait for them.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    /// Wakes all who wait, so that each looks whether it is first.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    bucket: Bucket,
    backoff: Backoff,
    waiting: BTreeSet<Ticket>,
    arrivals: u64,
}

/// A place in the queue: by priority, then by arrival.
type Ticket = (Priority, u64);

/// Why a request was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// EC2 throttles and the pause ends after the deadline.
    Throttled,
    /// Our own pace gives no token before the deadline.
    NoToken,
    /// Too many wait already.
    Crowded,
}

impl Gate {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                bucket: Bucket::new(rate, now),
                backoff: Backoff::default(),
                waiting: BTreeSet::new(),
                arrivals: 0,
            }),
            changed: Notify::new(),
        }
    }

    /// Waits for a token, behind those of higher priority and those who came earlier.
    ///
    /// Returns as soon as it is known that none will come before `deadline`.
    pub(super) async fn pass(&self, priority: Priority, deadline: Instant) -> Result<(), Refusal> {
        let place = self.join(priority)?;
        loop {
            let changed = self.changed.notified();
            let now = now();
            match self.look(place.ticket, now) {
                Turn::Now => return Ok(()),
                Turn::At(ready, refusal) if ready > deadline => return Err(refusal),
                // Someone more urgent may come in between, so look again on every change.
                Turn::At(ready, _) => {
                    tokio::select! {
                        biased;
                        () = sleep_until(ready.into()) => {}
                        () = changed => {}
                    }
                }
                Turn::Behind(refusal) => {
                    if timeout_at(deadline.into(), changed).await.is_err() {
                        return Err(refusal);
                    }
                }
            }
        }
    }

    /// EC2 throttled a request that was sent at `sent_at`. EC2's bucket is empty then, so ours
    /// is emptied too: it fills again from the end of the pause.
    pub(super) fn throttled(&self, sent_at: Instant, now: Instant, jitter: f64) {
        let mut state = self.lock();
        let until = state.backoff.throttled(sent_at, now, jitter);
        state.bucket.drain(until);
    }

    /// EC2 served a request.
    pub(super) fn served(&self) {
        self.lock().backoff.served();
    }

    /// The end of the pause that EC2's throttling caused, if one is kept at `now`.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.lock().backoff.paused_until(now)
    }

    /// What is left of the action's budget.
    pub(super) fn budget(&self, action: Action, now: Instant) -> Budget {
        let mut state = self.lock();
        let throttled_until = state.backoff.paused_until(now);
        let (tokens, rate) = state.bucket.level(now);
        Budget { action, tokens, rate, waiting: state.waiting.len(), throttled_until }
    }

    fn join(&self, priority: Priority) -> Result<Place<'_>, Refusal> {
        let mut state = self.lock();
        if state.waiting.len() >= WAITING_MAX {
            return Err(Refusal::Crowded);
        }
        state.arrivals += 1;
        let ticket = (priority, state.arrivals);
        state.waiting.insert(ticket);
        Ok(Place { gate: self, ticket })
    }

    fn look(&self, ticket: Ticket, now: Instant) -> Turn {
        let mut state = self.lock();
        let paused_until = state.backoff.paused_until(now);
        let refusal = if paused_until.is_some() { Refusal::Throttled } else { Refusal::NoToken };
        if state.waiting.first() != Some(&ticket) {
            return Turn::Behind(refusal);
        }
        if paused_until.is_none() && state.bucket.take(now) {
            return Turn::Now;
        }
        Turn::At(state.bucket.ready_at(now).max(paused_until.unwrap_or(now)), refusal)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and the state is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a waiting request may go.
enum Turn {
    Now,
    At(Instant, Refusal),
    Behind(Refusal),
}

/// A place in the queue, given up when dropped: passed, refused, or its caller went away.
struct Place<'a> {
    gate: &'a Gate,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.gate.lock().waiting.remove(&self.ticket);
        self.gate.changed.notify_waiters();
    }
}

/// The time by tokio's clock, which tests can stop.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
