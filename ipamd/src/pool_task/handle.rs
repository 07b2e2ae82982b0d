//! How everybody else speaks to the pool: one bounded queue of events, and the answers to them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use vpc::{PodKey, PodName};

use super::writer::Written;
use crate::pool::{Assignment, KernelView, Outcome, Refusal, Released, Stats, StepId};
use crate::report::Report;

/// Events that may wait for the task. A node starts some hundred pods at once at most, and a
/// caller that finds the queue full waits outside it.
const QUEUE: usize = 1024;

/// Why an ADD got no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddError {
    Refused(Refusal),
    /// The daemon is going, or has gone.
    ShuttingDown,
}

/// Why a DEL was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DelError {
    #[error("datastore: unknown pod")]
    UnknownPod,
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// A DEL that a plugin left behind while the daemon was away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LateDel {
    pub(crate) key: PodKey,
    /// One of which the pod had; empty if nobody knows.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) unix_ns: i64,
}

/// What the runtime still knows of one network, with the kernel's view of the others.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) network: String,
    /// Container id and interface of each attachment that is to stay.
    pub(crate) valid: BTreeSet<(String, String)>,
    pub(crate) kernel: KernelView,
    /// Assignments from this time on are newer than the runtime's list.
    pub(crate) asked_unix_ns: i64,
}

/// One pod that [`PoolHandle::collect`] took the address from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collected {
    pub(crate) released: Released,
    /// The address is held back, since the pod's link is still there.
    pub(crate) is_quarantined: bool,
}

/// How long a pod may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until when for EC2 and the host.
    pub(crate) deadline: Instant,
    /// Until when for an address that rests.
    pub(crate) latest: Instant,
}

pub(super) type AddReply = oneshot::Sender<Result<Assignment, AddError>>;
pub(super) type DelReply = oneshot::Sender<Result<Released, DelError>>;

/// A test's look at the pool.
#[cfg(test)]
pub(super) struct Look(pub(super) Box<dyn FnOnce(&mut crate::pool::Pool) + Send>);

#[cfg(test)]
impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

/// Everything that can change the pool, or asks about it.
#[derive(Debug)]
pub(super) enum Event {
    Add {
        key: PodKey,
        pod: PodName,
        patience: Patience,
        reply: AddReply,
    },
    Del {
        key: PodKey,
        reply: DelReply,
    },
    LateDel {
        del: LateDel,
        reply: DelReply,
    },
    Collect {
        collection: Collection,
        reply: oneshot::Sender<Result<Vec<Collected>, DelError>>,
    },
    KernelSeen(KernelView),
    /// EC2 may hold something else than the pool knows.
    LookAgain,
    Readiness {
        reply: oneshot::Sender<Result<(), AddError>>,
    },
    Inspect {
        reply: oneshot::Sender<Stats>,
    },
    Report {
        reply: oneshot::Sender<Report>,
    },
    /// A pod was refused before it came here.
    NotServed {
        key: PodKey,
        pod: PodName,
        message: String,
    },
    StepDone {
        id: StepId,
        outcome: Outcome,
    },
    Written(Written),
    Drain {
        reply: oneshot::Sender<()>,
    },
    /// Something is due by the clock.
    Tick,
    /// A test looks at the pool itself.
    #[cfg(test)]
    Look(Look),
}

/// How everybody else speaks to the pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PoolHandle {
    events: mpsc::Sender<Event>,
}

/// The queue and its near end.
pub(super) fn queue() -> (PoolHandle, mpsc::Receiver<Event>) {
    let (events, inbox) = mpsc::channel(QUEUE);
    (PoolHandle { events }, inbox)
}

impl PoolHandle {
    /// A handle to a pool whose task has ended.
    #[cfg(test)]
    pub(crate) fn without_pool() -> Self {
        Self { events: mpsc::channel(1).0 }
    }

    /// An address for a pod, waiting for one as long as `patience` says if need be.
    ///
    /// A caller that drops the future before there is an address leaves the queue.
    ///
    /// # Errors
    /// [`AddError`] with the reason.
    pub(crate) async fn add(
        &self,
        key: PodKey,
        pod: PodName,
        patience: Patience,
    ) -> Result<Assignment, AddError> {
        self.ask(|reply| Event::Add { key, pod, patience, reply })
            .await
            .unwrap_or(Err(AddError::ShuttingDown))
    }

    /// Takes a pod's address back; answered once that is durable, or the disk refuses.
    ///
    /// # Errors
    /// [`DelError`] if the key holds nothing.
    pub(crate) async fn del(&self, key: PodKey) -> Result<Released, DelError> {
        self.ask(|reply| Event::Del { key, reply }).await.unwrap_or(Err(DelError::ShuttingDown))
    }

    /// Takes in a DEL that was left behind, unless the key holds another address by now or was
    /// assigned later: that is [`DelError::UnknownPod`].
    ///
    /// # Errors
    /// As [`PoolHandle::del`].
    pub(crate) async fn late_del(&self, del: LateDel) -> Result<Released, DelError> {
        self.ask(|reply| Event::LateDel { del, reply }).await.unwrap_or(Err(DelError::ShuttingDown))
    }

    /// Takes the addresses back of all pods that the runtime no longer knows.
    ///
    /// # Errors
    /// [`DelError`] if the daemon is going.
    pub(crate) async fn collect(&self, collection: Collection) -> Result<Vec<Collected>, DelError> {
        self.ask(|reply| Event::Collect { collection, reply }).await.unwrap_or(Err(DelError::ShuttingDown))
    }

    /// Whether a pod would get an address now, or may hope for one.
    ///
    /// # Errors
    /// What such a pod would be told.
    pub(crate) async fn readiness(&self) -> Result<(), AddError> {
        self.ask(|reply| Event::Readiness { reply }).await.unwrap_or(Err(AddError::ShuttingDown))
    }

    /// The pool's figures; none once the daemon is going.
    pub(crate) async fn stats(&self) -> Option<Stats> {
        self.ask(|reply| Event::Inspect { reply }).await
    }

    /// Everything that can be told of the pool and its past; none once the daemon is going.
    pub(crate) async fn report(&self) -> Option<Report> {
        self.ask(|reply| Event::Report { reply }).await
    }

    /// Takes note that a pod asked for what this node does not serve.
    pub(crate) async fn not_served(&self, key: PodKey, pod: PodName, message: String) {
        // Nobody is left to remember it once the task has ended.
        let _ = self.events.send(Event::NotServed { key, pod, message }).await;
    }

    /// What `look` finds out about the pool, or changes; none once the daemon is going.
    #[cfg(test)]
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut crate::pool::Pool) -> T + Send + 'static,
    ) -> Option<T> {
        self.ask(|reply| {
            Event::Look(Look(Box::new(move |pool| {
                let _ = reply.send(look(pool));
            })))
        })
        .await
    }

    /// Hands over what the kernel shows now.
    pub(crate) async fn kernel_seen(&self, kernel: KernelView) {
        // Nobody is left to tell once the task has ended.
        let _ = self.events.send(Event::KernelSeen(kernel)).await;
    }

    /// Has the pool read from EC2 what there is, when it comes to it.
    pub(crate) async fn look_again(&self) {
        let _ = self.events.send(Event::LookAgain).await;
    }

    /// Ends the pool's work: no new addresses, no new steps. Returns when the steps under way
    /// have ended and everything is written.
    pub(crate) async fn drain(&self) {
        self.ask(|reply| Event::Drain { reply }).await;
    }

    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.events.send(event(reply)).await.ok()?;
        answer.await.ok()
    }
}
