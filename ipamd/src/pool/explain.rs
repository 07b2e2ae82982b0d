//! Why a pod gets no address.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use vpc::PodKey;

use super::block::{BlockKind, to_u32};
use super::eni::{EniEntry, EniPhase};
use super::failures::{Failed, Kind, is_for_operators};
use super::settings::BlockMode;
use super::step::{FailureClass, Step};
use super::{Pool, Request, Stats};

/// Why a request was refused; one for one with the wire's reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    NodeFull,
    CoolingDown,
    PoolFilling,
    SubnetExhausted,
    QuotaExceeded,
    Throttled,
    PermissionDenied,
    Ec2Refuses,
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

impl Pool {
    /// Why a request with `ahead` pods before it cannot be served in time; none if it may be.
    pub(super) fn refusal(&self, ahead: u32, request: &Request, now: Instant) -> Option<Refusal> {
        let is_subnet = |kind: &Kind| matches!(kind, Kind::Subnet(..));
        let may_come = self.supply(request, now, |_| false) > ahead
            || (self.may_find_room(now) && self.supply(request, now, is_subnet) > ahead);
        if may_come { None } else { Some(self.explain(now)) }
    }

    /// The addresses that may become free in time for a request, beyond those in pods' hands, if
    /// what `is_lifted` is no obstacle.
    fn supply(&self, request: &Request, now: Instant, is_lifted: impl Fn(&Kind) -> bool) -> u32 {
        let deadline = request.deadline;
        let looks = self.is_unclear || self.is_reading_unclear;
        if looks && (self.running.has(&Step::ReadInventory) || self.may_look_by(deadline, now)) {
            // What EC2 says next may change everything.
            return u32::MAX;
        }
        let stats = self.book.stats();
        let sources = [
            self.book.cooled_by(request.latest),
            self.addresses_coming(),
            self.set_up_by(deadline),
            self.room(|kind, last| is_lifted(kind) || is_over_by(last, deadline, now)),
        ];
        sources.into_iter().fold(stats.free, u32::saturating_add)
    }

    fn may_look_by(&self, deadline: Instant, now: Instant) -> bool {
        self.failures.get(&Kind::ReadInventory).is_none_or(|last| is_over_by(last, deadline, now))
    }

    /// The free addresses on ENIs whose set-up is under way or due by `deadline`.
    fn set_up_by(&self, deadline: Instant) -> u32 {
        let due = self.book.enis.values().filter(|eni| {
            let retry_at = self.failures.retry_at(&Kind::SetUpEni(eni.facts.id.clone()));
            eni.phase == EniPhase::Attached && eni.serves_pods() && retry_at.is_none_or(|at| at <= deadline)
        });
        due.map(|eni| eni.counts().free()).fold(0, u32::saturating_add)
    }

    /// The addresses that EC2 could still add, beyond the steps under way, if failures that
    /// `are_over` keep it from nothing.
    fn room(&self, are_over: impl Fn(&Kind, &Failed) -> bool) -> u32 {
        if !self.settings.may_provision {
            return 0;
        }
        let is_open = |kind: &Kind| self.failures.get(kind).is_none_or(|last| are_over(kind, last));
        // What one slot in a subnet can bring.
        let size = |subnet: &vpc::SubnetId| {
            let has = |kind| is_open(&Kind::Subnet(subnet.clone(), kind));
            match self.settings.mode {
                BlockMode::Prefixes if has(BlockKind::Prefix) => BlockKind::Prefix.size(),
                BlockMode::Ipv6Prefix if has(BlockKind::Ipv6Prefix) => BlockKind::Ipv6Prefix.size(),
                BlockMode::Ipv6Prefix => 0,
                _ => u32::from(has(BlockKind::Ip)),
            }
        };
        let under_way = self.running.steps().values().map(|step| match step {
            // Its place is free again in a moment.
            Step::FreeEni { .. } => {
                self.settings.slots_per_eni.saturating_mul(self.settings.mode.kind().size())
            }
            _ => self.slots_left_by(step).map_or(0, |(subnet, slots)| slots.saturating_mul(size(subnet))),
        });
        let mut room = under_way.fold(0, u32::saturating_add);
        for eni in self.book.enis.values().filter(|eni| self.is_growable(eni)) {
            let EniEntry { facts, .. } = eni;
            if is_open(&Kind::Assign(facts.id.clone())) && !self.running.touches(&facts.id) {
                let vacant = to_u32(self.obsolete_blocks(&facts.id).len());
                let slots = self.slots_free(eni).saturating_add(vacant);
                room = room.saturating_add(slots.saturating_mul(size(&facts.subnet)));
            }
        }
        if is_open(&Kind::AllocateEni) && self.may_place_on_new_enis() {
            // Before the subnets were read any of them may take ENIs.
            let size = match self.subnets_for_new_enis() {
                subnets if !subnets.is_empty() || self.subnets.were_read() => {
                    subnets.iter().map(size).max().unwrap_or(0)
                }
                _ => self.settings.mode.kind().size(),
            };
            let per_eni = self.settings.slots_per_eni.saturating_mul(size);
            room = room.saturating_add(self.eni_room().saturating_mul(per_eni));
        }
        room
    }

    /// What a pod is told whose address is known, but not the ENI that carries it.
    pub(super) fn unseen(&self, key: &PodKey) -> Option<Refusal> {
        let address = self.book.address_of(key).filter(|_| self.book.is_pinned(key))?;
        let last = self.failures.get(&Kind::ReadInventory);
        let why = last.map_or_else(
            || "EC2 shows it on no ENI of this node; look there whether somebody detached one".to_owned(),
            |last| last.failure.message.clone(),
        );
        let reason = last.map_or(Reason::Ec2Unavailable, |last| advice(last.failure.class).0);
        let message = format!("the pod has {address}, but which ENI carries it is not known: {why}");
        Some(Refusal { reason, message, retry_after: Some(Duration::from_secs(5)) })
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
        if self.gravest().is_some() || under_way.is_empty() {
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

    /// The failure that best explains a missing address. On a node that could hold no more, what
    /// EC2 refuses explains nothing.
    fn gravest(&self) -> Option<&Failed> {
        let is_full = self.is_full();
        self.failures.gravest(|kind| !is_full || !kind.is_growth())
    }

    /// Whether the node could hold no more, whatever EC2 granted.
    pub(super) fn is_full(&self) -> bool {
        self.room(|_, _| true) == 0
    }

    /// Says why there is no address, with the figures and what an operator can do.
    fn explain(&self, now: Instant) -> Refusal {
        let stats = self.book.stats();
        let cooled_in = self.book.next_useful_cooled().map(|until| until.saturating_duration_since(now));
        if let Some(last) = self.gravest() {
            let (reason, advice) = advice(last.failure.class);
            // Of a subnet without a prefix for IPv6 the failure says all there is to say.
            let is_said = self.settings.mode == BlockMode::Ipv6Prefix && reason == Reason::SubnetExhausted;
            return Refusal {
                reason,
                message: match advice.filter(|_| !is_said) {
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
        } else if self.settings.mode == BlockMode::Ipv6Prefix {
            return self.no_ipv6_prefix();
        } else if stats.quarantined > 0 && stats.assigned < self.settings.capacity() {
            (Reason::Quarantined, "`ipamd status` lists the addresses that are held back and why")
        } else if !self.settings.may_provision && stats.total < self.settings.capacity() {
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
        let excluded = self.excluded();
        Refusal {
            reason,
            message: format!("no free address: {}{excluded}; {advice}", self.figures()),
            retry_after: Some(Duration::from_secs(10)),
        }
    }

    /// What tags keep from pods: subnets of ENIs that are there, each named once.
    fn excluded(&self) -> String {
        let excluded = self.book.enis.values().filter(|eni| eni.is_excluded);
        let subnets: BTreeSet<_> = excluded.map(|eni| eni.facts.subnet.as_str()).collect();
        if subnets.is_empty() {
            return String::new();
        }
        let subnets: Vec<_> = subnets.into_iter().collect();
        format!(
            "; ENIs in {} serve no pods, since the subnet is tagged kubernetes.io/role/cni=0, or with \
             cni.networking.k8s.aws/cluster/ for other clusters",
            subnets.join(", ")
        )
    }

    fn figures(&self) -> String {
        if self.settings.mode == BlockMode::Ipv6Prefix {
            return self.ipv6_figures();
        }
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
            "{figures} on {enis} ENIs, and {who} {} ENIs with {} {} each, {} addresses in all",
            settings.eni_limit,
            settings.slots_per_eni,
            match settings.mode {
                BlockMode::SecondaryIps => "addresses",
                _ => "prefixes",
            },
            settings.capacity()
        )
    }
}

/// Whether another try is made by `deadline`, and may go better. Where only an operator can help,
/// nobody waits for the next try, but one that is due now may show that somebody did.
fn is_over_by(last: &Failed, deadline: Instant, now: Instant) -> bool {
    last.retry_at <= if is_for_operators(last.failure.class) { now } else { deadline }
}

/// The reason that a failure stands for, and what an operator can do where the failure's own text
/// does not say it.
fn advice(class: FailureClass) -> (Reason, Option<&'static str>) {
    let (reason, advice) = match class {
        FailureClass::Throttled => {
            (Reason::Throttled, "EC2 throttles this account; the daemon keeps asking, more slowly")
        }
        FailureClass::Denied | FailureClass::Credentials => return (Reason::PermissionDenied, None),
        FailureClass::Quota => {
            (Reason::QuotaExceeded, "have the account's quota of network interfaces raised in this region")
        }
        FailureClass::SubnetExhausted | FailureClass::NoFreePrefix => (
            Reason::SubnetExhausted,
            "free addresses in the subnet, or tag a further subnet of this zone with kubernetes.io/role/cni=1",
        ),
        FailureClass::EniLimit => (
            Reason::NodeFull,
            "EC2 allows this instance fewer ENIs than the limit of its type says; set MAX_ENI to what it allows, \
             or detach ENIs that the node does not need",
        ),
        FailureClass::Refused => (
            Reason::Ec2Refuses,
            "mend or make anew what EC2 complains of, such as a security group of the primary ENI or a tag in \
             ADDITIONAL_ENI_TAGS",
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
