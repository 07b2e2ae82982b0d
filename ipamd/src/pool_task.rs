//! The one owner of the pool: takes events in turn, answers pods, starts steps, has state written.
//!
//! A reply leaves only when a write that includes it is durable. While one write runs, further
//! changes gather and share the next, so that a burst of pods costs few writes. When the disk
//! refuses, pods that come are refused too; pods that go are let go, and the write is repeated.

mod commit;
mod handle;
mod history;
mod report;
mod requests;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{debug, error, info, warn};
use vpc::PodKey;

use crate::clock::Clock;
use crate::pool::{
    FailureClass, Outcome, Pool, QuarantineReason, Reason, Refusal, Request, RestoreNote, Step, StepFailure,
    StepId, WaiterId,
};
use crate::report::Cause;
use commit::{Change, Commit};
pub(crate) use handle::{AddError, Collected, Collection, DelError, LateDel, Patience, PoolHandle};
use handle::{AddReply, DelReply, Event};
use history::History;
pub(crate) use writer::Writer;
use writer::Written;

/// The most events taken in before answers are worked out, so that a flood cannot hold them up.
const BATCH: usize = 256;

/// The key of a request that only asks whether a pod would get an address.
const PROBE: &str = "ipamd-readiness-probe";

/// How long after a failed write the next is tried, unless a pod asks for one earlier.
const REWRITE: Duration = Duration::from_secs(2);

/// Whom a step is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Pods wait for addresses.
    PodsWait,
    /// Nobody waits.
    Warmth,
}

/// Carries out the pool's steps.
pub(crate) trait StepRunner: Send + Sync + 'static {
    /// Does the step; never fails otherwise than by its outcome.
    fn run(&self, step: Step, urgency: Urgency) -> impl Future<Output = Outcome> + Send;

    /// Removes rules that lead to or from an address which no link has, in the background.
    fn remove_stale_rules(&self, address: IpAddr);
}

/// The task's state; [`PoolTask::run`] owns it.
pub(crate) struct PoolTask<R> {
    pool: Pool,
    runner: Arc<R>,
    events: mpsc::Receiver<Event>,
    steps: JoinSet<Outcome>,
    step_ids: HashMap<Id, StepId>,
    waiting: BTreeMap<WaiterId, (PodKey, AddReply)>,
    commit: Commit,
    writer: Writer,
    clock: Clock,
    /// What the second file last heard of.
    recorded_quarantine: Vec<(IpAddr, QuarantineReason)>,
    /// The state file holds a pod that is known to be gone.
    is_file_stale: bool,
    /// When to try again to write what the file has not heard of.
    rewrite_at: Option<Instant>,
    history: History,
    drain: Option<oneshot::Sender<()>>,
    is_draining: bool,
}

impl<R: StepRunner> PoolTask<R> {
    /// A task for a restored pool, and the handle to it.
    pub(crate) fn new(pool: Pool, runner: Arc<R>, writer: Writer, clock: Clock) -> (Self, PoolHandle) {
        let (handle, events) = handle::queue();
        let task = Self {
            pool,
            runner,
            events,
            steps: JoinSet::new(),
            step_ids: HashMap::new(),
            waiting: BTreeMap::new(),
            commit: Commit::default(),
            writer,
            clock,
            recorded_quarantine: Vec::new(),
            is_file_stale: false,
            rewrite_at: None,
            history: History::default(),
            drain: None,
            is_draining: false,
        };
        (task, handle)
    }

    /// Works until every handle is gone.
    pub(crate) async fn run(mut self) {
        let mut next = Some(Event::Tick);
        while let Some(event) = next {
            self.take_in(event);
            for _ in 0..BATCH {
                let Ok(event) = self.events.try_recv() else { break };
                self.take_in(event);
            }
            self.settle();
            self.start_steps();
            self.start_write();
            self.finish_drain();
            next = self.next_event().await;
        }
    }

    /// Waits for whatever happens next; none when nobody can ask for anything any more.
    async fn next_event(&mut self) -> Option<Event> {
        // What is due while a write runs waits for its end, or this would not wait at all.
        let rewrite_at = self.rewrite_at.filter(|_| !self.commit.is_writing());
        let wake = self.pool.next_wake(self.clock.now()).into_iter().chain(rewrite_at).min();
        let wake = wake.map(tokio::time::Instant::from_std);
        let due = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        // A caller that goes away while its pod waits gives up its place; there is no other way
        // to learn of that than to look, and a look costs nothing, so it happens with each event.
        tokio::select! {
            // In this order, so that a flood of requests does not hold up what answers them.
            biased;
            written = self.writer.written(), if self.commit.is_writing() => Some(Event::Written(written)),
            Some(ended) = self.steps.join_next_with_id() => Some(self.step_ended(ended)),
            event = self.events.recv() => event,
            () = due => Some(Event::Tick),
        }
    }

    fn step_ended(&mut self, ended: Result<(Id, Outcome), JoinError>) -> Event {
        let (task, outcome) = match ended {
            Ok(ended) => ended,
            Err(failure) => {
                error!(error = %failure, "step ended without an outcome; this is a fault of the daemon");
                let message = format!("the daemon failed: {failure}");
                let failed = StepFailure { class: FailureClass::AnswerLost, message, retry_after: None };
                (failure.id(), Outcome::Failed(failed))
            }
        };
        match self.step_ids.remove(&task) {
            Some(id) => Event::StepDone { id, outcome },
            None => Event::Tick,
        }
    }

    fn take_in(&mut self, event: Event) {
        let moment = self.clock.moment();
        let now = moment.instant();
        match event {
            Event::Add { key, pod, patience, reply } => {
                let Patience { deadline, latest } = patience;
                self.add(Request { key, pod, deadline, latest, unix_ns: moment.unix_ns() }, reply, now);
            }
            Event::Del { key, reply } => self.del(key, reply, now),
            Event::LateDel { del, reply } => self.late_del(del, reply, now),
            Event::Collect { collection, reply } => self.collect(&collection, reply, now),
            Event::KernelSeen(kernel) => {
                let notes = self.pool.witness(&kernel, now);
                self.heed(notes);
            }
            Event::LookAgain => self.pool.look_again(),
            Event::Readiness { reply } => {
                // A caller that has gone does not miss the answer; so for every reply below.
                let _ = reply.send(self.readiness(moment));
            }
            Event::Inspect { reply } => {
                let _ = reply.send(self.pool.stats());
            }
            Event::Report { reply } => {
                let _ = reply.send(self.report(moment));
            }
            Event::NotServed { key, pod, message } => {
                self.history.refused(&key, &pod, Cause::Request, &message, now);
            }
            Event::StepDone { id, outcome } => self.step_done(id, outcome, now),
            Event::Written(written) => self.written(written, now),
            Event::Drain { reply } => {
                self.is_draining = true;
                self.drain = Some(reply);
                for (id, (_, reply)) in std::mem::take(&mut self.waiting) {
                    self.pool.abandon(id);
                    let _ = reply.send(Err(AddError::ShuttingDown));
                }
            }
            Event::Tick => {}
            #[cfg(test)]
            Event::Look(look) => (look.0)(&mut self.pool),
        }
    }

    fn step_done(&mut self, id: StepId, outcome: Outcome, now: Instant) {
        if let Some(step) = self.pool.running().get(&id) {
            let is_news = self.history.is_news(step, &outcome);
            match &outcome {
                Outcome::Failed(failure) if is_news => warn!(%step, error = failure.message, "step failed"),
                Outcome::Failed(failure) => debug!(%step, error = failure.message, "step failed again"),
                Outcome::InUse(addresses) => {
                    warn!(%step, ?addresses, "step not done: the kernel uses addresses that no pod has");
                }
                _ => info!(%step, "step done"),
            }
        }
        self.history.ended(id, self.pool.running().get(&id), &outcome, now);
        self.pool.finish(id, outcome, now);
    }

    fn heed(&mut self, notes: Vec<RestoreNote>) {
        for note in notes {
            match note {
                RestoreNote::StaleRule { address } => self.runner.remove_stale_rules(address),
                RestoreNote::Freed { .. } => {
                    self.is_file_stale = true;
                    info!(%note, "kernel compared with the pool");
                }
                RestoreNote::Quarantined { .. } => warn!(%note, "address held back"),
                _ => info!(%note, "kernel compared with the pool"),
            }
        }
    }

    fn written(&mut self, written: Written, now: Instant) {
        match written {
            Written::Whole => self.commit.succeeded(),
            Written::WithoutSecond(failure) => {
                warn!(error = failure, "second state file not written; a restart may forget cooldowns");
                self.history.not_written("write the second state file", failure, now);
                self.commit.succeeded();
                self.rewrite_at = Some(now + REWRITE);
            }
            Written::Failed(failure) => {
                error!(error = failure, "state not written; refusing pods until it is");
                self.history.not_written("write the state file", failure.clone(), now);
                for change in self.commit.failed() {
                    self.undo(change, &failure, now);
                }
                self.rewrite_at = Some(now + REWRITE);
            }
        }
    }

    fn undo(&mut self, change: Change, failure: &str, now: Instant) {
        match change {
            Change::Added { key, replies, .. } => {
                let held = self.pool.allocations().into_iter().find(|held| held.key == key);
                let pod = held.map(|held| held.pod).unwrap_or_default();
                self.pool.undo_request(&key);
                let refusal = Refusal {
                    reason: Reason::StateNotDurable,
                    message: format!("the assignment could not be recorded: {failure}"),
                    retry_after: Some(Duration::from_secs(2)),
                };
                self.history.refused(&key, &pod, Cause::Pool(refusal.reason), &refusal.message, now);
                for reply in replies {
                    let _ = reply.send(Err(AddError::Refused(refusal.clone())));
                }
            }
            Change::Removed { released, replies } => {
                // The pod goes whether the disk has room or not. Should the daemon end before the
                // file has heard of it, the kernel tells the next one that nobody is there.
                for reply in replies {
                    let _ = reply.send(Ok(released.clone()));
                }
            }
            Change::Collected { collected, reply } => {
                let _ = reply.send(Ok(collected));
            }
        }
    }

    fn settle(&mut self) {
        let gone: Vec<_> =
            self.waiting.iter().filter(|(_, (_, reply))| reply.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.pool.abandon(id);
            self.waiting.remove(&id);
        }
        let now = self.clock.now();
        for (id, answer) in self.pool.settle(now) {
            let Some((key, reply)) = self.waiting.remove(&id) else { continue };
            match answer {
                Ok(assignment) => self.assigned(key, assignment, reply),
                Err(refusal) => {
                    self.history.wait_refused(id, &refusal, now);
                    refuse(&key, refusal, reply);
                }
            }
        }
        self.history.keep_waits(|id| self.waiting.contains_key(id));
    }

    fn start_steps(&mut self) {
        if self.is_draining {
            return;
        }
        let urgency = if self.waiting.is_empty() { Urgency::Warmth } else { Urgency::PodsWait };
        let now = self.clock.now();
        for (id, step) in self.pool.plan(now) {
            info!(%step, "step begins");
            self.history.began(id, now);
            let runner = Arc::clone(&self.runner);
            let task = self.steps.spawn(async move { runner.run(step, urgency).await });
            self.step_ids.insert(task.id(), id);
        }
    }

    fn start_write(&mut self) {
        if self.commit.is_writing() {
            return;
        }
        let is_due = self.rewrite_at.is_some_and(|at| at <= self.clock.now());
        let has_changes = self.commit.has_changes() || std::mem::take(&mut self.is_file_stale) || is_due;
        let quarantined = self.pool.quarantined();
        if !has_changes && quarantined == self.recorded_quarantine {
            return;
        }
        if has_changes {
            self.rewrite_at = None;
        }
        self.commit.begin();
        self.recorded_quarantine.clone_from(&quarantined);
        let allocations = has_changes.then(|| self.pool.allocations());
        self.writer.begin(allocations, self.pool.cooling(), quarantined);
    }

    fn finish_drain(&mut self) {
        if self.is_draining
            && self.steps.is_empty()
            && !self.commit.is_writing()
            && let Some(reply) = self.drain.take()
        {
            let _ = reply.send(());
        }
    }
}

fn refuse(key: &PodKey, refusal: Refusal, reply: AddReply) {
    info!(pod = %key, reason = ?refusal.reason, message = refusal.message, "pod refused");
    let _ = reply.send(Err(AddError::Refused(refusal)));
}
