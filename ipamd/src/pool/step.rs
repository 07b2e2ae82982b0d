//! What the pool asks of EC2 and the host, and what comes back.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use vpc::{Eni, EniId, EniSlot};

/// Names one step under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StepId(pub(crate) u64);

/// One thing to do. A step is a whole decision: whoever executes it has no choices left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Create an ENI with `ips` secondary IPs, attach it at `slot`, have it deleted with the instance.
    AllocateEni { slot: EniSlot, ips: u32 },
    /// Assign `count` more secondary IPs to an ENI.
    AssignIps { eni: EniId, count: u32 },
    /// Set the ENI up on the host: link, address, routes, rule.
    SetUpEni { eni: EniId },
    /// Return these free addresses to EC2, once the kernel confirms that nothing uses them.
    UnassignIps { eni: EniId, addresses: Vec<Ipv4Addr> },
    /// Detach and delete an ENI without pods, once the kernel confirms that nothing uses it.
    FreeEni { eni: EniId },
    /// Read from EC2 what is attached to this instance, and what of ours is not.
    ReadInventory,
}

impl Step {
    /// Whether the step can bring an address to a waiting pod.
    pub(crate) fn brings_addresses(&self) -> bool {
        match self {
            Self::AllocateEni { .. }
            | Self::AssignIps { .. }
            | Self::SetUpEni { .. }
            | Self::ReadInventory => true,
            Self::UnassignIps { .. } | Self::FreeEni { .. } => false,
        }
    }

    /// The ENI that the step works on; none for one that does not exist yet.
    pub(crate) fn eni(&self) -> Option<&EniId> {
        match self {
            Self::AssignIps { eni, .. }
            | Self::SetUpEni { eni }
            | Self::UnassignIps { eni, .. }
            | Self::FreeEni { eni } => Some(eni),
            Self::AllocateEni { .. } | Self::ReadInventory => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllocateEni { slot, ips } => {
                write!(f, "allocate an ENI with {ips} secondary IPs at {slot}")
            }
            Self::AssignIps { eni, count } => write!(f, "assign {count} secondary IPs to {eni}"),
            Self::SetUpEni { eni } => write!(f, "set up {eni} on the host"),
            Self::UnassignIps { eni, addresses } => {
                write!(f, "return {} secondary IPs of {eni}", addresses.len())
            }
            Self::FreeEni { eni } => write!(f, "free {eni}"),
            Self::ReadInventory => f.write_str("read what EC2 holds for this instance"),
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The ENI is attached; the host has not set it up yet.
    EniAllocated(Eni),
    /// EC2 assigned these.
    IpsAssigned(Vec<Ipv4Addr>),
    EniSetUp,
    IpsUnassigned,
    EniFreed,
    /// Everything attached to this instance, as EC2 has it.
    Inventory(Vec<Eni>),
    /// The kernel shows these in use although the book does not: nothing was returned.
    InUse(Vec<Ipv4Addr>),
    Failed(StepFailure),
}

/// What a caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FailureClass {
    /// EC2 throttles; time helps.
    Throttled,
    /// EC2 denies the action; an operator must change a policy.
    Denied,
    /// No credentials, or expired ones.
    Credentials,
    /// The subnet has fewer free addresses than were asked for.
    SubnetExhausted,
    /// The ENI or the instance holds more than the book knows.
    LimitReached,
    /// The thing is gone.
    NotFound,
    /// The work may be done, but nobody said so.
    AnswerLost,
    /// EC2 or the network to it is at fault.
    Unavailable,
    /// The host could not set up or release an ENI.
    Host,
    /// The intent could not be made durable, so nothing was begun.
    NotDurable,
    /// EC2 refused for a reason without a class of its own.
    Other,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepFailure {
    pub(crate) class: FailureClass,
    /// The whole chain of causes, for the pod event and the log.
    pub(crate) message: String,
    /// When the executor knows how long to wait.
    pub(crate) retry_after: Option<Duration>,
}

/// The steps under way.
#[derive(Debug, Default)]
pub(super) struct Running {
    steps: BTreeMap<StepId, Step>,
    last: u64,
}

impl Running {
    pub(super) fn steps(&self) -> &BTreeMap<StepId, Step> {
        &self.steps
    }

    pub(super) fn begin(&mut self, step: Step) -> StepId {
        self.last += 1;
        self.steps.insert(StepId(self.last), step);
        StepId(self.last)
    }

    pub(super) fn end(&mut self, id: StepId) -> Option<Step> {
        self.steps.remove(&id)
    }

    /// The addresses that the steps under way ask of EC2.
    pub(super) fn ips_coming(&self) -> u32 {
        let asked = self.steps.values().map(|step| match step {
            Step::AllocateEni { ips: count, .. } | Step::AssignIps { count, .. } => *count,
            _ => 0,
        });
        asked.sum()
    }

    /// Whether a step is under way that changes what EC2 holds for this ENI.
    pub(super) fn changes(&self, eni: &EniId) -> bool {
        self.steps.values().any(|step| step.eni() == Some(eni) && !matches!(step, Step::SetUpEni { .. }))
    }

    /// Whether a step is under way on this ENI.
    pub(super) fn touches(&self, eni: &EniId) -> bool {
        self.steps.values().any(|step| step.eni() == Some(eni))
    }
}
