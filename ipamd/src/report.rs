//! What the daemon holds, wants, does and remembers, as one value for people and tools.
//!
//! Values only: whoever answers a question translates them, and times are the monotonic clock's.

use std::time::Instant;

use vpc::{PodKey, PodName};

use crate::clock::Moment;
use crate::pool::{Allocation, FailureClass, PoolReport, Reason};

/// Everything that can be told at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// When it was made.
    pub(crate) at: Moment,
    pub(crate) pool: PoolReport,
    /// Steps under way, oldest first.
    pub(crate) steps: Vec<StepReport>,
    /// When the pool looks again if nothing happens before.
    pub(crate) next_look: Option<Instant>,
    /// Pods that wait, first come first.
    pub(crate) waiting: Vec<Wait>,
    /// What went wrong lately, oldest first.
    pub(crate) failures: Vec<Failure>,
    /// Pods that were refused lately, the last one at the end.
    pub(crate) refusals: Vec<RefusedPod>,
    /// Addresses that pods gave back lately, the last one at the end.
    pub(crate) releases: Vec<Release>,
    /// The daemon is on its way out and serves no more pods.
    pub(crate) is_draining: bool,
}

/// A step under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepReport {
    pub(crate) what: String,
    pub(crate) since: Option<Instant>,
}

/// A pod that waits for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) key: PodKey,
    pub(crate) pod: PodName,
    pub(crate) since: Instant,
    /// Until when for EC2 and the host.
    pub(crate) deadline: Instant,
    /// Until when for an address that rests.
    pub(crate) latest: Instant,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) at: Instant,
    /// What was to be done.
    pub(crate) action: String,
    pub(crate) class: Fault,
    pub(crate) message: String,
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Step(FailureClass),
    /// Nothing was returned to EC2, since the kernel uses it.
    InUse,
    /// The state file was not written.
    State,
}

/// A pod that was refused an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefusedPod {
    /// Of the last attempt: the runtime makes a new sandbox for each.
    pub(crate) key: PodKey,
    pub(crate) pod: PodName,
    pub(crate) at: Instant,
    pub(crate) cause: Cause,
    pub(crate) message: String,
    /// How often this pod was refused.
    pub(crate) times: u32,
}

/// Why a pod was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Pool(Reason),
    /// It asked for what this node does not serve.
    Request,
}

/// An address that a pod gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) allocation: Allocation,
    pub(crate) at: Instant,
}
