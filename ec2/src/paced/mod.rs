//! The one EC2 client that everybody calls: paced, patient, and fair by priority.

mod actions;
mod backoff;
mod bucket;
mod gate;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout_at};

use crate::{Action, Class, Ec2Error, Result};
use backoff::repeat_pause;
pub use bucket::{Bucket, Rate};
use gate::{Gate, Refusal, now};

/// What a request is for. When tokens are short the more urgent one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A pod waits for it.
    WaitingPod,
    /// It keeps addresses warm.
    WarmFill,
    /// It gives back what is too much.
    Shrink,
    /// It compares our picture with EC2's.
    Reconcile,
    /// It looks for what was left behind.
    Sweep,
}

/// How fast, how long and how often to ask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaceOptions {
    /// The tokens of each action that only reads. Default 20, refilled 2 a second.
    pub reads: Rate,
    /// The tokens of each action that changes something. Default 25, refilled 1 a second.
    pub changes: Rate,
    /// How long a request may take in all: waiting, sending, repeating. Default 30 s.
    pub deadline: Duration,
    /// How often a request is sent that fails for other reasons than throttling. Default 3.
    /// Throttled requests are sent again until the deadline.
    pub attempts: u32,
}

impl Default for PaceOptions {
    fn default() -> Self {
        Self {
            reads: Rate { burst: 20, per_second: 2.0 },
            changes: Rate { burst: 25, per_second: 1.0 },
            deadline: Duration::from_secs(30),
            attempts: 3,
        }
    }
}

/// The repeats that all callers share, so that an EC2 that fails is not asked three times as
/// often by everyone.
const REPEATS: Rate = Rate { burst: 20, per_second: 0.5 };

/// What is left of one action's budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// The action.
    pub action: Action,
    /// The requests that may be sent at once.
    pub tokens: u32,
    /// How many tokens there are at most, and how fast they come back.
    pub rate: Rate,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// The end of the pause that EC2's throttling causes; `None` if there is none.
    pub throttled_until: Option<Instant>,
}

/// One request as it was sent, for metrics and logs.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The action.
    pub action: Action,
    /// What it was for.
    pub priority: Priority,
    /// The number of this attempt, from 1.
    pub number: u32,
    /// How long it waited for its turn.
    pub waited: Duration,
    /// How long EC2 took, or was given, to answer.
    pub latency: Duration,
    /// What went wrong; `None` on success. [`Ec2Error::label`] gives a short name.
    pub error: Option<&'a Ec2Error>,
}

type Observer = dyn Fn(&Attempt<'_>) + Send + Sync;

/// The client everybody calls. Cheap to clone; clones share pace, pauses and repeats.
///
/// Ask it by priority: `paced.at(Priority::WaitingPod).assign_ips(&eni, 5)`.
pub struct Paced<E> {
    shared: Arc<Shared<E>>,
}

struct Shared<E> {
    ec2: E,
    options: PaceOptions,
    /// By [`Action`], in its order of declaration.
    gates: [Gate; Action::ALL.len()],
    repeats: Mutex<Bucket>,
    observer: Box<Observer>,
    /// Set once EC2 refused to look for ENIs by instance.
    refuses_instance_filter: AtomicBool,
}

impl<E> Paced<E> {
    /// A client with full buckets.
    #[must_use]
    pub fn new(ec2: E, options: PaceOptions) -> Self {
        Self::observed(ec2, options, |_| {})
    }

    /// A client that tells `observer` of every request that was sent, when its outcome is known.
    /// The observer runs in the caller's task and must not block.
    #[must_use]
    pub fn observed(
        ec2: E,
        options: PaceOptions,
        observer: impl Fn(&Attempt<'_>) + Send + Sync + 'static,
    ) -> Self {
        let now = now();
        let gates = Action::ALL
            .map(|action| Gate::new(if action.is_read() { options.reads } else { options.changes }, now));
        Self {
            shared: Arc::new(Shared {
                ec2,
                options,
                gates,
                repeats: Mutex::new(Bucket::new(REPEATS, now)),
                observer: Box::new(observer),
                refuses_instance_filter: AtomicBool::new(false),
            }),
        }
    }

    /// The client for requests of one priority.
    #[must_use]
    pub fn at(&self, priority: Priority) -> At<E> {
        At { paced: self.clone(), priority, deadline: self.shared.options.deadline, condition: None }
    }

    /// The end of the longest pause that EC2's throttling causes now, over all actions; `None`
    /// when EC2 does not throttle.
    #[must_use]
    pub fn throttled_until(&self) -> Option<Instant> {
        let now = now();
        self.shared.gates.iter().filter_map(|gate| gate.paused_until(now)).max()
    }

    /// What is left of each action's budget, in the actions' order.
    #[must_use]
    pub fn budgets(&self) -> Vec<Budget> {
        let now = now();
        let gates = Action::ALL.into_iter().zip(&self.shared.gates);
        gates.map(|(action, gate)| gate.budget(action, now)).collect()
    }

    /// The client underneath, past all pacing.
    #[must_use]
    pub fn unpaced(&self) -> &E {
        &self.shared.ec2
    }
}

impl<E> Clone for Paced<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<E> fmt::Debug for Paced<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paced").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Says whether to send a request after all.
type Condition = dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync;

/// The client for requests of one priority; its methods are the EC2 actions.
///
/// Each returns within the deadline. Throttled requests are repeated until then; so are, a few
/// times, those that EC2 failed or did not answer, if repeating is safe.
pub struct At<E> {
    paced: Paced<E>,
    priority: Priority,
    deadline: Duration,
    condition: Option<Arc<Condition>>,
}

impl<E> Clone for At<E> {
    fn clone(&self) -> Self {
        let Self { paced, priority, deadline, condition } = self;
        Self { paced: paced.clone(), priority: *priority, deadline: *deadline, condition: condition.clone() }
    }
}

impl<E> fmt::Debug for At<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("At")
            .field("priority", &self.priority)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<E: Send + Sync> At<E> {
    /// The same with another deadline for each request.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same, but each time a request has its turn `condition` says whether to send it: what was
    /// true when the request was made may have changed while it waited.
    ///
    /// A request that is not sent fails with [`Class::Busy`], unless an earlier attempt has failed,
    /// whose error stands then.
    #[must_use]
    pub fn only_if<F>(mut self, condition: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = bool> + Send + 'static,
    {
        self.condition = Some(Arc::new(move || Box::pin(condition())));
        self
    }

    fn ec2(&self) -> &E {
        &self.paced.shared.ec2
    }

    /// Sends what `send` makes when its turn comes, as often as that is needed and safe.
    async fn request<T, F>(
        &self,
        action: Action,
        resource: &(dyn fmt::Display + Sync),
        send: impl Fn() -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let shared = &*self.paced.shared;
        let gate = &shared.gates[action as usize];
        let deadline = now() + self.deadline;
        let mut failure = None;
        let mut number = 0;
        loop {
            let queued_at = now();
            if let Err(refusal) = gate.pass(self.priority, deadline).await {
                return Err(failure.unwrap_or_else(|| refused(action, resource, refusal, self.deadline)));
            }
            if let Some(condition) = &self.condition
                && !timeout_at(deadline.into(), condition()).await.unwrap_or(false)
            {
                return Err(failure.unwrap_or_else(|| called_off(action, resource)));
            }
            number += 1;
            let sent_at = now();
            let outcome = match timeout_at(deadline.into(), send()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(unanswered(action, resource, now() - sent_at)),
            };
            let answered_at = now();
            match &outcome {
                Err(error) if *error.class() == Class::Throttled => {
                    gate.throttled(sent_at, answered_at, fastrand::f64());
                }
                // Whatever EC2 answers but throttling shows that it has tokens for us.
                Ok(_) => gate.served(),
                Err(error) if error.code().is_some() => gate.served(),
                Err(_) => {}
            }
            (shared.observer)(&Attempt {
                action,
                priority: self.priority,
                number,
                waited: sent_at - queued_at,
                latency: answered_at - sent_at,
                error: outcome.as_ref().err(),
            });
            let error = match outcome {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if *error.class() != Class::Throttled {
                let pause = repeat_pause(number, fastrand::f64());
                if !shared.may_repeat(&error, number) || answered_at + pause >= deadline {
                    return Err(error);
                }
                sleep(pause).await;
            }
            tracing::debug!(%action, number, %error, "EC2 request is repeated");
            failure = Some(error);
        }
    }
}

impl<E> Shared<E> {
    /// Whether to send a request again that failed with `error` on attempt `number`.
    fn may_repeat(&self, error: &Ec2Error, number: u32) -> bool {
        let may_help = matches!(error.class(), Class::Unavailable | Class::Timeout | Class::AnswerLost);
        let is_safe = error.action().is_repeatable() || !error.may_have_happened();
        may_help
            && is_safe
            && number < self.options.attempts
            && self.repeats.lock().unwrap_or_else(PoisonError::into_inner).take(now())
    }
}

/// The error of a request that never had its turn.
fn refused(action: Action, resource: &dyn fmt::Display, refusal: Refusal, deadline: Duration) -> Ec2Error {
    let (class, detail) = match refusal {
        Refusal::Throttled => (Class::Throttled, format!("the pause outlasts the deadline of {deadline:?}")),
        Refusal::NoToken => (
            Class::Timeout,
            format!("not sent: our own pace of EC2 requests leaves it no turn within {deadline:?}"),
        ),
        Refusal::Crowded => (Class::Timeout, "not sent: too many requests wait already".to_owned()),
    };
    Ec2Error::new(action, resource, class, &detail)
}

/// The error of a request that its caller did not want any more when it had its turn.
fn called_off(action: Action, resource: &dyn fmt::Display) -> Ec2Error {
    Ec2Error::new(action, resource, Class::Busy, "not sent: called off when it had its turn")
}

/// The error of a request that was given up while EC2 had it.
fn unanswered(action: Action, resource: &dyn fmt::Display, after: Duration) -> Ec2Error {
    let class = if action.is_read() { Class::Timeout } else { Class::AnswerLost };
    Ec2Error::new(action, resource, class, &format!("no answer within {after:?}"))
}

#[cfg(test)]
mod tests;
