//! What the pool asks of EC2 and the host, and what comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use vpc::{Eni, EniId, EniSlot, SecurityGroupId, SubnetId};

use super::block::{Block, Blocks};
use super::subnets::Subnet;

/// Names one step under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StepId(pub(crate) u64);

/// One thing to do. A step is a whole decision: whoever executes it has no choices left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Create an ENI with these blocks, attach it at `slot`, have it deleted with the instance.
    AllocateEni {
        slot: EniSlot,
        subnet: SubnetId,
        /// None for those of the primary ENI.
        security_groups: Option<Vec<SecurityGroupId>>,
        blocks: Blocks,
    },
    /// Assign more blocks to an ENI.
    Assign { eni: EniId, blocks: Blocks },
    /// Set the ENI up on the host: link, address, routes, rule.
    SetUpEni { eni: EniId },
    /// Return these free blocks, all of one kind, to EC2, once the kernel confirms that nothing
    /// uses them.
    Unassign { eni: EniId, blocks: Vec<Block> },
    /// Detach and delete an ENI without pods, once the kernel confirms that nothing uses it.
    FreeEni { eni: EniId },
    /// Read from EC2 what is attached to this instance, and what of ours is not.
    ReadInventory,
    /// Read the subnets of this zone, with their free addresses and tags.
    ReadSubnets,
}

impl Step {
    /// Whether the step can bring an address to a waiting pod.
    pub(crate) fn brings_addresses(&self) -> bool {
        match self {
            Self::AllocateEni { .. }
            | Self::Assign { .. }
            | Self::SetUpEni { .. }
            | Self::ReadSubnets
            | Self::ReadInventory => true,
            Self::Unassign { .. } | Self::FreeEni { .. } => false,
        }
    }

    /// Whether the step asks EC2 for addresses.
    pub(super) fn is_growth(&self) -> bool {
        self.asks_for().is_some()
    }

    /// The ENI that the step works on; none for one that does not exist yet.
    pub(crate) fn eni(&self) -> Option<&EniId> {
        match self {
            Self::Assign { eni, .. }
            | Self::SetUpEni { eni }
            | Self::Unassign { eni, .. }
            | Self::FreeEni { eni } => Some(eni),
            Self::AllocateEni { .. } | Self::ReadInventory | Self::ReadSubnets => None,
        }
    }

    /// The blocks that it asks of EC2.
    pub(super) fn asks_for(&self) -> Option<Blocks> {
        match self {
            Self::AllocateEni { blocks, .. } | Self::Assign { blocks, .. } => Some(*blocks),
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllocateEni { slot, subnet, blocks, .. } => {
                write!(f, "allocate an ENI with {blocks} in {subnet} at {slot}")
            }
            Self::Assign { eni, blocks } => write!(f, "assign {blocks} to {eni}"),
            Self::SetUpEni { eni } => write!(f, "set up {eni} on the host"),
            Self::Unassign { eni, blocks } => {
                let count = super::block::to_u32(blocks.len());
                let kind = blocks.first().map_or(super::block::BlockKind::Ip, |block| block.kind());
                write!(f, "return {} of {eni}", kind.times(count))
            }
            Self::FreeEni { eni } => write!(f, "free {eni}"),
            Self::ReadInventory => f.write_str("read what EC2 holds for this instance"),
            Self::ReadSubnets => f.write_str("read the subnets of this zone"),
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The ENI is attached; the host has not set it up yet.
    EniAllocated(Eni),
    /// EC2 assigned these.
    Assigned(Vec<Block>),
    EniSetUp,
    Unassigned,
    EniFreed,
    /// Everything attached to this instance, as EC2 has it.
    Inventory(Vec<Eni>),
    /// The subnets of this zone.
    Subnets(Vec<Subnet>),
    /// The kernel shows these in use although the book does not: nothing was returned.
    InUse(Vec<IpAddr>),
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
    /// The subnet has fewer free addresses than were asked for, or takes no ENI.
    SubnetExhausted,
    /// The subnet has fewer free /28 blocks than were asked for.
    NoFreePrefix,
    /// The account may not have more; an operator must have a quota raised.
    Quota,
    /// The ENI or the instance holds more than the book knows.
    LimitReached,
    /// EC2 lets the instance have no further ENI.
    EniLimit,
    /// EC2 refuses the request as it stands; an operator must change something that it names.
    Refused,
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
    /// ENIs that a step changed while EC2 was being read: the answer may be older than the change.
    changed_during_read: BTreeSet<EniId>,
}

impl Running {
    pub(super) fn steps(&self) -> &BTreeMap<StepId, Step> {
        &self.steps
    }

    pub(super) fn begin(&mut self, step: Step) -> StepId {
        if step == Step::ReadInventory {
            self.changed_during_read.clear();
        }
        self.last += 1;
        self.steps.insert(StepId(self.last), step);
        StepId(self.last)
    }

    pub(super) fn end(&mut self, id: StepId) -> Option<Step> {
        let step = self.steps.remove(&id)?;
        if !matches!(step, Step::SetUpEni { .. })
            && let Some(eni) = step.eni()
        {
            self.changed_during_read.insert(eni.clone());
        }
        Some(step)
    }

    /// A step has made this ENI.
    pub(super) fn made(&mut self, eni: &EniId) {
        self.changed_during_read.insert(eni.clone());
    }

    /// What the steps under way ask of EC2.
    pub(super) fn coming(&self) -> impl Iterator<Item = Blocks> {
        self.steps.values().filter_map(Step::asks_for)
    }

    /// Whether what EC2 was read to hold for this ENI may be older than what the book says.
    pub(super) fn outdates(&self, eni: &EniId) -> bool {
        self.changes(eni) || self.changed_during_read.contains(eni)
    }

    /// Whether a step is under way that changes what EC2 holds for this ENI.
    pub(super) fn changes(&self, eni: &EniId) -> bool {
        self.steps.values().any(|step| step.eni() == Some(eni) && !matches!(step, Step::SetUpEni { .. }))
    }

    /// Whether a step is under way on this ENI.
    pub(super) fn touches(&self, eni: &EniId) -> bool {
        self.steps.values().any(|step| step.eni() == Some(eni))
    }

    /// Whether this step is under way.
    pub(super) fn has(&self, wanted: &Step) -> bool {
        self.steps.values().any(|step| step == wanted)
    }
}
