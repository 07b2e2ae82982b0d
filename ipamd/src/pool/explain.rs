//! Why a pod gets no address, and what was last heard of the steps that failed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use vpc::EniId;

use super::book::{EniPhase, State};
use super::step::{FailureClass, Step, StepFailure};
use super::{Pool, Request, Stats};

/// Why a request was refused; one for one with the wire's reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    NodeFull,
    CoolingDown,
    PoolFilling,
    SubnetExhausted,
    Throttled,
    PermissionDenied,
    Ec2Unavailable,
    HostSetupFailed,
    StateNotDurable,
    ProvisioningOff,
    Quarantined,
}

/// A refusal: the reason for programs, a sentence for people, and when to ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What a back-off applies to: one ENI that refuses must not hold up the others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    AllocateEni,
    AssignIps(EniId),
    SetUpEni(EniId),
    Return(EniId),
    ReadInventory,
}

impl Kind {
    pub(super) fn of(step: &Step) -> Self {
        match step {
            Step::AllocateEni { .. } => Self::AllocateEni,
            Step::AssignIps { eni, .. } => Self::AssignIps(eni.clone()),
            Step::SetUpEni { eni } => Self::SetUpEni(eni.clone()),
            Step::UnassignIps { eni, .. } | Step::FreeEni { eni } => Self::Return(eni.clone()),
            Step::ReadInventory => Self::ReadInventory,
        }
    }

    /// Whether success would bring addresses.
    fn brings_addresses(&self) -> bool {
        !matches!(self, Self::Return(_))
    }
}

#[derive(Debug)]
struct Failed {
    failure: StepFailure,
    /// How often in a row.
    times: u32,
    retry_at: Instant,
    /// How many addresses to ask for next: halved each time the subnet has too few.
    ask_for: Option<u32>,
}

/// The last failure of every kind of step that has not succeeded since.
#[derive(Debug, Default)]
pub(super) struct LastFailures {
    by_kind: BTreeMap<Kind, Failed>,
}

impl LastFailures {
    pub(super) fn note(&mut self, step: &Step, failure: StepFailure, now: Instant) {
        let kind = Kind::of(step);
        let times = self.by_kind.get(&kind).map_or(1, |last| last.times.saturating_add(1));
        let asked = match step {
            Step::AllocateEni { ips: count, .. } | Step::AssignIps { count, .. } => *count,
            _ => 0,
        };
        let (times, pause, ask_for) = if failure.class == FailureClass::SubnetExhausted && asked > 1 {
            // Asking for less is a new question, not a repeated one.
            (0, Duration::ZERO, Some(asked / 2))
        } else {
            (times, pause(&failure, times), None)
        };
        self.by_kind.insert(kind, Failed { failure, times, retry_at: now + pause, ask_for });
    }

    pub(super) fn clear(&mut self, kind: &Kind) {
        self.by_kind.remove(kind);
    }

    /// Forgets what concerned an ENI that is gone.
    pub(super) fn forget_eni(&mut self, eni: &EniId) {
        self.by_kind.retain(|kind, _| match kind {
            Kind::AssignIps(id) | Kind::SetUpEni(id) | Kind::Return(id) => id != eni,
            Kind::AllocateEni | Kind::ReadInventory => true,
        });
    }

    pub(super) fn may(&self, kind: &Kind, now: Instant) -> bool {
        self.by_kind.get(kind).is_none_or(|last| last.retry_at <= now)
    }

    /// When the kind may be tried again; none if it may be now.
    pub(super) fn retry_at(&self, kind: &Kind) -> Option<Instant> {
        self.by_kind.get(kind).map(|last| last.retry_at)
    }

    /// The largest number of addresses worth asking for.
    pub(super) fn ask_at_most(&self, kind: &Kind) -> u32 {
        self.by_kind.get(kind).and_then(|last| last.ask_for).unwrap_or(u32::MAX)
    }

    pub(super) fn next_retry(&self, now: Instant) -> Option<Instant> {
        self.by_kind.values().map(|last| last.retry_at).filter(|at| *at > now).min()
    }

    /// The failure that best explains a missing address: the one that only an operator can mend
    /// first, then the one that lasts longest.
    fn gravest(&self) -> Option<&Failed> {
        self.by_kind
            .iter()
            .filter(|(kind, _)| kind.brings_addresses())
            .map(|(_, last)| last)
            .max_by_key(|last| (is_for_operators(last.failure.class), last.retry_at))
    }
}

fn is_for_operators(class: FailureClass) -> bool {
    matches!(class, FailureClass::Denied | FailureClass::Credentials)
}

/// How long to leave a kind of step alone after it failed `times` in a row.
fn pause(failure: &StepFailure, times: u32) -> Duration {
    let (first, most) = match failure.class {
        FailureClass::Denied | FailureClass::Credentials => (10, 120),
        FailureClass::SubnetExhausted => (30, 120),
        FailureClass::Throttled
        | FailureClass::Unavailable
        | FailureClass::Host
        | FailureClass::NotDurable
        | FailureClass::AnswerLost
        | FailureClass::LimitReached
        | FailureClass::NotFound
        | FailureClass::Other => (1, 30),
    };
    let doubled = Duration::from_secs(first << times.saturating_sub(1).min(10));
    failure.retry_after.unwrap_or_default().max(doubled.min(Duration::from_secs(most)))
}

impl Pool {
    /// Why a request with `ahead` pods before it cannot be served in time; none if it may be.
    pub(super) fn refusal(&self, ahead: u32, request: &Request, now: Instant) -> Option<Refusal> {
        if self.supply(request, now) > ahead { None } else { Some(self.explain(now)) }
    }

    /// The addresses that may become free in time for a request, beyond those in pods' hands.
    fn supply(&self, request: &Request, now: Instant) -> u32 {
        let deadline = request.deadline;
        if self.is_reading_inventory()
            || (self.needs_inventory && self.failures.may(&Kind::ReadInventory, now))
        {
            // What EC2 says next may change everything.
            return u32::MAX;
        }
        let stats = self.book.stats();
        let coming = self.running.ips_coming();
        let set_up = self.set_up_by(deadline);
        [self.book.cooled_by(request.latest), coming, set_up, self.room(deadline)]
            .into_iter()
            .fold(stats.free, u32::saturating_add)
    }

    /// The free addresses on ENIs whose set-up is under way or due by `deadline`.
    fn set_up_by(&self, deadline: Instant) -> u32 {
        let due = self.book.enis.values().filter(|eni| {
            let retry_at = self.failures.retry_at(&Kind::SetUpEni(eni.facts.id.clone()));
            eni.phase == EniPhase::Attached && eni.serves_pods() && retry_at.is_none_or(|at| at <= deadline)
        });
        due.map(|eni| {
            super::book::to_u32(
                eni.addresses.values().filter(|state| matches!(state, State::Free { .. })).count(),
            )
        })
        .sum()
    }

    /// The addresses that EC2 could still add by `deadline`, beyond the steps under way.
    fn room(&self, deadline: Instant) -> u32 {
        if !self.settings.may_provision {
            return 0;
        }
        let is_open = |kind: &Kind| {
            self.failures
                .by_kind
                .get(kind)
                .is_none_or(|last| last.retry_at <= deadline && !is_for_operators(last.failure.class))
        };
        let limit = self.settings.ips_per_eni;
        let mut room = 0_u32;
        for eni in self.book.enis.values().filter(|eni| eni.is_growable()) {
            if is_open(&Kind::AssignIps(eni.facts.id.clone())) && !self.running.touches(&eni.facts.id) {
                room = room.saturating_add(limit.saturating_sub(eni.slots_used()));
            }
        }
        if is_open(&Kind::AllocateEni) {
            room = room.saturating_add(self.eni_room().saturating_mul(limit));
        }
        room
    }

    /// The refusal of a request whose time is up.
    pub(super) fn timed_out(&self, now: Instant) -> Refusal {
        let under_way: Vec<_> = self
            .running
            .steps()
            .values()
            .filter(|step| step.brings_addresses())
            .map(Step::to_string)
            .collect();
        if self.failures.gravest().is_some() || under_way.is_empty() {
            return self.explain(now);
        }
        Refusal {
            reason: Reason::PoolFilling,
            message: format!(
                "no address came in time: still waiting to {}; {}",
                under_way.join(", "),
                self.figures()
            ),
            retry_after: Some(Duration::from_secs(2)),
        }
    }

    /// Says why there is no address, with the figures and what an operator can do.
    fn explain(&self, now: Instant) -> Refusal {
        let stats = self.book.stats();
        let cooled_in = self.book.next_cooled().map(|until| until.saturating_duration_since(now));
        if let Some(last) = self.failures.gravest() {
            let (reason, advice) = advice(last.failure.class);
            return Refusal {
                reason,
                message: match advice {
                    Some(advice) => format!("{}; {}; {advice}", last.failure.message, self.figures()),
                    None => format!("{}; {}", last.failure.message, self.figures()),
                },
                retry_after: Some(last.retry_at.saturating_duration_since(now).max(Duration::from_secs(1))),
            };
        }
        let (reason, advice) = if let Some(cooled_in) = cooled_in {
            return Refusal {
                reason: Reason::CoolingDown,
                message: format!(
                    "no free address: {}; the next rested address is free in {} s",
                    self.figures(),
                    cooled_in.as_secs_f32().ceil()
                ),
                retry_after: Some(cooled_in.max(Duration::from_secs(1))),
            };
        } else if stats.quarantined > 0 && stats.assigned < self.capacity() {
            (Reason::Quarantined, "see the daemon's log for the addresses that are held back and why")
        } else if !self.settings.may_provision && stats.total < self.capacity() {
            (
                Reason::ProvisioningOff,
                "provisioning is off, so somebody else must assign addresses to this node's ENIs",
            )
        } else if self.settings.is_eni_limit_configured {
            (Reason::NodeFull, "delete pods from this node, raise MAX_ENI, or use a larger instance type")
        } else {
            (
                Reason::NodeFull,
                "delete pods from this node or use a larger instance type, and compare the kubelet's max pods with `ipamd max-pods`",
            )
        };
        Refusal {
            reason,
            message: format!("no free address: {}; {advice}", self.figures()),
            retry_after: Some(Duration::from_secs(10)),
        }
    }

    /// The addresses that the node can hold at most.
    fn capacity(&self) -> u32 {
        self.settings.eni_limit.saturating_mul(self.settings.ips_per_eni)
    }

    fn figures(&self) -> String {
        let Stats { enis, assigned, cooling, quarantined, free, setting_up, .. } = self.book.stats();
        let mut figures = format!("{assigned} assigned, {cooling} cooling");
        for (count, what) in [(quarantined, "quarantined"), (setting_up, "being set up"), (free, "free")] {
            if count > 0 {
                figures.push_str(&format!(", {count} {what}"));
            }
        }
        let Self { settings, .. } = self;
        let who = match settings.is_eni_limit_configured {
            true => format!("MAX_ENI allows this {}", settings.instance_type),
            false => format!("{} takes", settings.instance_type),
        };
        format!(
            "{figures} on {enis} ENIs, and {who} {} ENIs with {} addresses each, {} in all",
            settings.eni_limit,
            settings.ips_per_eni,
            self.capacity()
        )
    }
}

/// The reason that a failure stands for, and what an operator can do where the failure's own text
/// does not say it.
fn advice(class: FailureClass) -> (Reason, Option<&'static str>) {
    let (reason, advice) = match class {
        FailureClass::Throttled => {
            (Reason::Throttled, "EC2 throttles this account; the daemon keeps asking, more slowly")
        }
        FailureClass::Denied | FailureClass::Credentials => return (Reason::PermissionDenied, None),
        FailureClass::SubnetExhausted => (
            Reason::SubnetExhausted,
            "free addresses in the subnet, or tag a further subnet of this zone with kubernetes.io/role/cni=1",
        ),
        FailureClass::Host => (Reason::HostSetupFailed, "see the daemon's log for the link in question"),
        FailureClass::NotDurable => {
            (Reason::StateNotDurable, "make room on the file system of /var/run/aws-node")
        }
        FailureClass::Unavailable | FailureClass::AnswerLost => {
            (Reason::Ec2Unavailable, "check that this node reaches the EC2 endpoint of its region")
        }
        FailureClass::LimitReached | FailureClass::NotFound | FailureClass::Other => {
            (Reason::Ec2Unavailable, "the daemon keeps asking")
        }
    };
    (reason, Some(advice))
}
