//! What was last heard of the steps that failed, and how long to leave each alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vpc::{EniId, SubnetId};

use super::block::{BlockKind, Blocks};
use super::step::{FailureClass, Step, StepFailure};

/// What a back-off applies to: one ENI or subnet that refuses must not hold up the others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    AllocateEni,
    Assign(EniId),
    SetUpEni(EniId),
    Return(EniId),
    ReadInventory,
    ReadSubnets,
    /// What a subnet lacks: single IPs (and so the addresses of new ENIs), or prefixes.
    Subnet(SubnetId, BlockKind),
}

impl Kind {
    pub(super) fn of(step: &Step) -> Self {
        match step {
            Step::AllocateEni { .. } => Self::AllocateEni,
            Step::Assign { eni, .. } => Self::Assign(eni.clone()),
            Step::SetUpEni { eni } => Self::SetUpEni(eni.clone()),
            Step::Unassign { eni, .. } | Step::FreeEni { eni } => Self::Return(eni.clone()),
            Step::ReadInventory => Self::ReadInventory,
            Step::ReadSubnets => Self::ReadSubnets,
        }
    }

    /// Whether success would bring addresses.
    fn brings_addresses(&self) -> bool {
        !matches!(self, Self::Return(_) | Self::ReadSubnets)
    }

    /// Whether success would bring more than the node holds.
    pub(super) fn is_growth(&self) -> bool {
        matches!(self, Self::AllocateEni | Self::Assign(_) | Self::Subnet(..))
    }

    fn eni(&self) -> Option<&EniId> {
        match self {
            Self::Assign(eni) | Self::SetUpEni(eni) | Self::Return(eni) => Some(eni),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: StepFailure,
    /// How often in a row.
    pub(super) times: u32,
    /// How often in a row in this way.
    alike: u32,
    failed_at: Instant,
    pub(super) retry_at: Instant,
    /// How many blocks to ask for next: halved each time the subnet has too few.
    ask_for: Option<u32>,
    /// The subnet has given something since, so it explains no missing address.
    is_over: bool,
}

/// The last failure of every kind of step that has not succeeded since.
#[derive(Debug, Default)]
pub(super) struct LastFailures {
    by_kind: BTreeMap<Kind, Failed>,
}

/// Whether anybody waits for what failed, and which of the nodes it failed on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waits {
    /// A pod does: it is tried again soon.
    Pod,
    /// Nobody does, so it can be left alone for long; a number that differs from node to node
    /// spreads the nodes' next tries.
    Nobody { spread: u64 },
}

impl LastFailures {
    /// Notes a failed step; `subnet` is where it asked for blocks.
    pub(super) fn note(
        &mut self,
        step: &Step,
        subnet: Option<&SubnetId>,
        failure: StepFailure,
        waits: Waits,
        now: Instant,
    ) {
        let asked = step.asks_for();
        let kind = match (failure.class, asked, subnet) {
            (FailureClass::SubnetExhausted | FailureClass::NoFreePrefix, Some(blocks), Some(subnet)) => {
                Kind::Subnet(subnet.clone(), blocks.kind())
            }
            _ => Kind::of(step),
        };
        let last = self.by_kind.get(&kind);
        let times = last.map_or(0, |last| last.times).saturating_add(1);
        let alike = last.filter(|last| last.failure.class == failure.class);
        let alike = alike.map_or(0, |last| last.alike).saturating_add(1);
        let asked = asked.map_or(0, Blocks::count);
        let (times, pause, ask_for) = if matches!(kind, Kind::Subnet(..)) && asked > 1 {
            // Asking for less is a new question, not a repeated one.
            (0, Duration::ZERO, Some(asked / 2))
        } else {
            let soon = pause(&failure, times);
            let pause = match waits {
                Waits::Pod => soon,
                Waits::Nobody { spread } => soon.max(long_pause(failure.class, alike, spread)),
            };
            (times, pause, Some(1).filter(|_| matches!(kind, Kind::Subnet(..))))
        };
        let retry_at = now + pause;
        let failed = Failed { failure, times, alike, failed_at: now, retry_at, ask_for, is_over: false };
        self.by_kind.insert(kind, failed);
    }

    /// Ends long pauses: a pod needs what failed, or things have changed. What has failed just now
    /// still rests as long as it would for a waiting pod.
    pub(super) fn end_long_pauses(&mut self) {
        for last in self.by_kind.values_mut().filter(|last| is_lasting(last.failure.class)) {
            last.retry_at = last.retry_at.min(last.failed_at + pause(&last.failure, last.times));
        }
    }

    /// Forgets what the step's success disproves. Whoever got little of a subnet asks for more,
    /// but not at once for everything.
    pub(super) fn clear(&mut self, step: &Step, subnet: Option<&SubnetId>) {
        self.by_kind.remove(&Kind::of(step));
        let (Some(blocks), Some(subnet)) = (step.asks_for(), subnet) else { return };
        let kind = Kind::Subnet(subnet.clone(), blocks.kind());
        let next = blocks.count().saturating_mul(2);
        if next >= ENOUGH {
            self.by_kind.remove(&kind);
        } else if let Some(last) = self.by_kind.get_mut(&kind).filter(|_| blocks.count() > 0) {
            last.ask_for = Some(next);
            last.times = 0;
            last.is_over = true;
        }
    }

    /// Whether a subnet that had not a single block is due to be asked again.
    pub(super) fn has_subnet_due(&self, now: Instant) -> bool {
        let mut subnets = self.by_kind.iter().filter(|(kind, _)| matches!(kind, Kind::Subnet(..)));
        subnets.any(|(_, last)| last.times > 0 && !last.is_over && last.retry_at <= now)
    }

    /// Whether a subnet that had not a single block is left alone for now.
    pub(super) fn has_subnet_resting(&self, now: Instant) -> bool {
        let mut subnets = self.by_kind.iter().filter(|(kind, _)| matches!(kind, Kind::Subnet(..)));
        subnets.any(|(_, last)| last.times > 0 && !last.is_over && last.retry_at > now)
    }

    /// Has a subnet asked again at once: it has addresses now.
    pub(super) fn hasten(&mut self, subnet: &SubnetId, kind: BlockKind, now: Instant) {
        if let Some(last) = self.by_kind.get_mut(&Kind::Subnet(subnet.clone(), kind)) {
            last.retry_at = last.retry_at.min(now);
        }
    }

    /// Leaves a subnet that is due alone for longer, as if it had been asked in vain once more.
    pub(super) fn postpone(&mut self, subnet: &SubnetId, kind: BlockKind, now: Instant) {
        let last = self.by_kind.get_mut(&Kind::Subnet(subnet.clone(), kind));
        if let Some(last) = last.filter(|last| last.times > 0 && last.retry_at <= now) {
            last.times = last.times.saturating_add(1);
            last.retry_at = now + pause(&last.failure, last.times);
        }
    }

    /// Forgets a failure whose cause has gone.
    pub(super) fn forget(&mut self, kind: &Kind) {
        self.by_kind.remove(kind);
    }

    /// Forgets what concerned an ENI that is gone.
    pub(super) fn forget_eni(&mut self, eni: &EniId) {
        self.by_kind.retain(|kind, _| kind.eni() != Some(eni));
    }

    pub(super) fn get(&self, kind: &Kind) -> Option<&Failed> {
        self.by_kind.get(kind)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Kind, &Failed)> {
        self.by_kind.iter()
    }

    pub(super) fn may(&self, kind: &Kind, now: Instant) -> bool {
        self.by_kind.get(kind).is_none_or(|last| last.retry_at <= now)
    }

    /// When the kind may be tried again; none if it may be now.
    pub(super) fn retry_at(&self, kind: &Kind) -> Option<Instant> {
        self.by_kind.get(kind).map(|last| last.retry_at)
    }

    /// Whether the subnet had not a single block of this kind when it was last asked.
    pub(super) fn is_out_of(&self, subnet: &SubnetId, kind: BlockKind) -> bool {
        self.by_kind
            .get(&Kind::Subnet(subnet.clone(), kind))
            .is_some_and(|last| last.times > 0 && !last.is_over)
    }

    /// The largest number of blocks worth asking for.
    pub(super) fn ask_at_most(&self, subnet: &SubnetId, kind: BlockKind) -> u32 {
        let last = self.by_kind.get(&Kind::Subnet(subnet.clone(), kind));
        last.and_then(|last| last.ask_for).unwrap_or(u32::MAX)
    }

    pub(super) fn next_retry(&self, now: Instant) -> Option<Instant> {
        self.by_kind.values().map(|last| last.retry_at).filter(|at| *at > now).min()
    }

    /// Of the failures that count, the one that best explains a missing address: the one that only an operator can mend
    /// first, then the one that lasts longest.
    pub(super) fn gravest(&self, counts: impl Fn(&Kind) -> bool) -> Option<&Failed> {
        self.by_kind
            .iter()
            .filter(|(kind, last)| kind.brings_addresses() && !last.is_over && counts(kind))
            .map(|(_, last)| last)
            .max_by_key(|last| (is_for_operators(last.failure.class), last.retry_at))
    }
}

/// More than one ENI takes: who may ask for this many may ask for any number.
const ENOUGH: u32 = 64;

/// Whether time alone mends nothing.
pub(super) fn is_for_operators(class: FailureClass) -> bool {
    matches!(class, FailureClass::Denied | FailureClass::Credentials | FailureClass::Quota)
}

/// Whether a failure is likely to come again as it is, until somebody changes something.
fn is_lasting(class: FailureClass) -> bool {
    matches!(
        class,
        FailureClass::Host
            | FailureClass::LimitReached
            | FailureClass::EniLimit
            | FailureClass::Refused
            | FailureClass::NotFound
            | FailureClass::Other
    )
}

/// After how many failures of the same kind pauses grow beyond half a minute: two minutes of them.
const SEVERAL: u32 = 8;

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(600);

/// How long to leave alone what failed so often in the same way and nobody waits for; no time at all
/// for what may mend itself. Up to a quarter less, by the node, so that nodes that failed together do
/// not ask together.
fn long_pause(class: FailureClass, alike: u32, spread: u64) -> Duration {
    if !is_lasting(class) || alike <= SEVERAL {
        return Duration::ZERO;
    }
    let whole = (Duration::from_secs(30) * (1 << (alike - SEVERAL).min(5))).min(LONGEST);
    let share = u32::try_from(spread % 256).unwrap_or(0);
    whole - whole * share / 1024
}

/// How long to leave a kind of step alone after it failed `times` in a row, where a pod waits.
fn pause(failure: &StepFailure, times: u32) -> Duration {
    let (first, most) = match failure.class {
        FailureClass::Denied | FailureClass::Credentials | FailureClass::Quota => (10, 120),
        FailureClass::SubnetExhausted | FailureClass::NoFreePrefix => (30, 120),
        FailureClass::Throttled
        | FailureClass::Unavailable
        | FailureClass::Host
        | FailureClass::NotDurable
        | FailureClass::AnswerLost
        | FailureClass::LimitReached
        | FailureClass::EniLimit
        | FailureClass::Refused
        | FailureClass::NotFound
        | FailureClass::Other => (1, 30),
    };
    let doubled = Duration::from_secs(first << times.saturating_sub(1).min(10));
    failure.retry_after.unwrap_or_default().max(doubled.min(Duration::from_secs(most)))
}
