//! The report as a message for `ipamd status`.

use std::time::Instant;

use proto::node::{
    ActionBudget, AddressCounts, AddressPlace, AddressStatus, Contested, DaemonStatus, EniStatus, HeldBack,
    InstanceStatus, NetworkStatus, Planner, PodStatus, Repairs, StatusReply, StepStatus, SubnetStatus,
    Targets, WaitingPod,
};
use vpc::{EniKind, EniRole, PodKey, PodName};

use super::{Services, translate};
use crate::clock::Moment;
use crate::host::HostHealth;
use crate::imds::InstanceFacts;
use crate::pool::{
    AddressReport, AddressState, Allocation, EniPhase, EniReport, FailureClass, PoolReport, SubnetReport,
    Wants,
};
use crate::report::{Cause, Failure, Fault, RefusedPod, Report, Wait};
use crate::takeover::{Phase, Takeover};

pub(super) fn status(report: &Report, health: &HostHealth, services: &Services) -> StatusReply {
    let Report { at, pool, waiting, failures, refusals, .. } = report;
    StatusReply {
        now_unix_ms: at.unix_ms_at(at.instant()),
        daemon: Some(DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: started(services),
            state: if report.is_draining { "stopping" } else { "serving" }.to_owned(),
        }),
        instance: Some(instance(&services.facts.instance)),
        addresses: Some(counts(pool, *at)),
        targets: Some(targets(&pool.wants, *at)),
        enis: pool.enis.iter().map(|it| eni(it, *at)).collect(),
        without_eni: pool.pinned.iter().map(assigned).collect(),
        subnets: pool.subnets.iter().map(|it| subnet(it, *at)).collect(),
        planner: Some(planner(report)),
        ec2_budget: services.budgets.now().iter().map(|it| budget(it, *at)).collect(),
        recent_failures: failures.iter().map(|it| failure(it, *at)).collect(),
        waiting_pods: waiting.iter().map(|it| wait(it, *at)).collect(),
        recent_refusals: refusals.iter().map(|it| refused(it, *at)).collect(),
        network: Some(network(health, *at)),
        takeover: Some(takeover(services.takeover.now())),
    }
}

fn network(health: &HostHealth, at: Moment) -> NetworkStatus {
    let repairs = health.repairs.iter().map(|(kind, count)| Repairs {
        kind: kind.as_str().to_owned(),
        times: count.times,
        last_unix_ms: at.unix_ms_at(count.last),
        last_change: count.change.clone(),
    });
    let contested = health.contested.iter().map(|it| Contested {
        what: it.subject.clone(),
        times: it.times,
        not_before_unix_ms: at.unix_ms_at(it.not_before),
    });
    let deaf = health.deaf.iter().map(|why| {
        format!("the kernel does not tell of changes, so they are noticed only every 30 s: {why}")
    });
    NetworkStatus {
        fault: health.fault.clone(),
        repairs: repairs.collect(),
        contested: contested.collect(),
        warnings: deaf.chain(health.warnings.iter().map(ToString::to_string)).collect(),
    }
}

pub(super) fn started(services: &Services) -> i64 {
    services.started.unix_ms_at(services.started.instant())
}

fn instance(facts: &InstanceFacts) -> InstanceStatus {
    InstanceStatus {
        id: facts.instance.to_string(),
        r#type: facts.instance_type.clone(),
        region: facts.region.clone(),
        availability_zone: facts.availability_zone.clone(),
        vpc: facts.vpc.to_string(),
        ip: facts.node_ip.to_string(),
    }
}

pub(super) fn counts(pool: &PoolReport, at: Moment) -> AddressCounts {
    let stats = pool.stats;
    let cooled = pool.enis.iter().filter_map(next_cooled).min();
    AddressCounts {
        total: stats.total,
        assigned: stats.assigned,
        cooling: stats.cooling,
        quarantined: stats.quarantined,
        free: stats.free,
        setting_up: stats.setting_up,
        next_cooled_unix_ms: when(at, cooled),
    }
}

fn next_cooled(eni: &EniReport) -> Option<Instant> {
    let cooling = eni.addresses.iter().filter_map(|address| match address.state {
        AddressState::Cooling { until } => Some(until),
        _ => None,
    });
    cooling.min()
}

fn targets(wants: &Wants, at: Moment) -> Targets {
    Targets {
        mode: wants.mode.to_owned(),
        warm_eni_target: wants.warm_eni,
        warm_prefix_target: wants.warm_prefix,
        warm_ip_target: wants.warm_ip,
        minimum_ip_target: wants.minimum_ip,
        eni_limit: wants.eni_limit,
        max_eni_is_set: wants.is_eni_limit_configured,
        address_limit: wants.address_limit,
        max_pods: wants.max_pods,
        missing: wants.missing,
        surplus: wants.surplus,
        surplus_goes_unix_ms: when(at, wants.surplus_goes_at),
        may_provision: wants.may_provision,
        cordoned: wants.is_cordoned,
    }
}

fn eni(eni: &EniReport, at: Moment) -> EniStatus {
    let mut counts =
        AddressCounts { next_cooled_unix_ms: when(at, next_cooled(eni)), ..AddressCounts::default() };
    for address in &eni.addresses {
        counts.total += 1;
        match address.state {
            AddressState::Free if eni.phase == EniPhase::Ready => counts.free += 1,
            AddressState::Free => counts.setting_up += 1,
            AddressState::Assigned(_) => counts.assigned += 1,
            AddressState::Cooling { .. } => counts.cooling += 1,
            AddressState::Quarantined(_) => counts.quarantined += 1,
            AddressState::Leaving => {}
        }
    }
    if eni.prefixes.iter().any(|prefix| prefix.net().addr().is_ipv6()) {
        // Only those that pods had are listed.
        counts.total = u32::MAX;
        let rest = if eni.phase == EniPhase::Ready { &mut counts.free } else { &mut counts.setting_up };
        *rest = u32::MAX;
    }
    EniStatus {
        id: eni.id.to_string(),
        network_card: eni.slot.card.0.into(),
        device_index: eni.slot.device.0.into(),
        route_table: eni.table.0,
        role: match eni.role {
            EniRole::Primary => "primary",
            EniRole::Secondary => "secondary",
        }
        .to_owned(),
        kind: Some(kind_name(eni.kind).to_owned()),
        state: phase_name(eni.phase).to_owned(),
        unused_because: eni.unused_because.map(str::to_owned),
        subnet: eni.subnet.to_string(),
        primary_ip: eni.primary_ip.to_string(),
        primary_ipv6: eni.ipv6.map_or_else(String::new, |ip| ip.to_string()),
        prefixes: eni.prefixes.iter().map(ToString::to_string).collect(),
        counts: Some(counts),
        addresses: eni.addresses.iter().map(|it| address(it, at)).collect(),
    }
}

fn kind_name(kind: EniKind) -> &'static str {
    match kind {
        EniKind::Interface => "interface",
        EniKind::Trunk => "trunk",
        EniKind::Efa => "efa",
        EniKind::EfaOnly => "efa-only",
    }
}

fn phase_name(phase: EniPhase) -> &'static str {
    match phase {
        EniPhase::Attached => "setting up",
        EniPhase::Ready => "ready",
        EniPhase::Leaving => "leaving",
    }
}

pub(super) fn address(report: &AddressReport, at: Moment) -> AddressStatus {
    let ip = report.address.to_string();
    let state = |state: &str| AddressStatus { ip: ip.clone(), state: state.to_owned(), ..Default::default() };
    match &report.state {
        AddressState::Free => state("free"),
        AddressState::Assigned(allocation) => assigned(allocation),
        AddressState::Cooling { until } => {
            AddressStatus { cooling_until_unix_ms: Some(at.unix_ms_at(*until)), ..state("cooling") }
        }
        AddressState::Quarantined(reason) => {
            AddressStatus { quarantined_because: Some(reason.to_string()), ..state("quarantined") }
        }
        AddressState::Leaving => state("leaving"),
    }
}

pub(super) fn assigned(allocation: &Allocation) -> AddressStatus {
    AddressStatus {
        ip: allocation.address.to_string(),
        state: "assigned".to_owned(),
        pod: Some(pod(&allocation.key, &allocation.pod)),
        assigned_unix_ms: Some(assigned_at(allocation)),
        ..Default::default()
    }
}

pub(super) fn assigned_at(allocation: &Allocation) -> i64 {
    allocation.assigned_unix_ns / 1_000_000
}

pub(super) fn pod(key: &PodKey, name: &PodName) -> PodStatus {
    PodStatus {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        network: key.network().to_owned(),
        container_id: key.container_id().to_owned(),
        interface: key.interface().to_owned(),
    }
}

pub(super) fn place(eni: &EniReport) -> AddressPlace {
    AddressPlace {
        eni: eni.id.to_string(),
        subnet: eni.subnet.to_string(),
        network_card: eni.slot.card.0.into(),
        device_index: eni.slot.device.0.into(),
        route_table: eni.table.0,
        eni_state: phase_name(eni.phase).to_owned(),
        eni_unused_because: eni.unused_because.map(str::to_owned),
    }
}

fn subnet(subnet: &SubnetReport, at: Moment) -> SubnetStatus {
    SubnetStatus {
        id: subnet.id.to_string(),
        cidr: subnet.cidr.to_string(),
        free_addresses: subnet.free_addresses,
        free_prefixes_at_most: subnet.free_prefixes_at_most,
        read_unix_ms: when(at, subnet.read_at),
        exhausted_until_unix_ms: when(at, subnet.exhausted_until),
        takes_enis: subnet.takes_enis,
        excluded: subnet.is_excluded,
    }
}

pub(super) fn planner(report: &Report) -> Planner {
    let at = report.at;
    let under_way = report.steps.iter();
    let held_back = report.pool.held_back.iter();
    Planner {
        under_way: under_way
            .map(|it| StepStatus { step: it.what.clone(), since_unix_ms: when(at, it.since) })
            .collect(),
        held_back: held_back
            .map(|it| HeldBack {
                step: it.what.clone(),
                until_unix_ms: when(at, it.until),
                because: it.because.clone(),
            })
            .collect(),
        next_look_unix_ms: when(at, report.next_look),
    }
}

fn budget(budget: &ec2::Budget, at: Moment) -> ActionBudget {
    ActionBudget {
        action: budget.action.name().to_owned(),
        class: if budget.action.is_read() { "read" } else { "change" }.to_owned(),
        tokens: budget.tokens,
        burst: budget.rate.burst,
        tokens_per_second: budget.rate.per_second,
        requests_waiting: u32::try_from(budget.waiting).unwrap_or(u32::MAX),
        throttled_until_unix_ms: when(at, budget.throttled_until),
    }
}

fn failure(failure: &Failure, at: Moment) -> proto::node::Failure {
    proto::node::Failure {
        at_unix_ms: at.unix_ms_at(failure.at),
        action: failure.action.clone(),
        class: fault_name(failure.class).to_owned(),
        message: failure.message.clone(),
    }
}

fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::InUse => "in-use",
        Fault::State => "state-not-written",
        Fault::Step(class) => match class {
            FailureClass::Throttled => "throttled",
            FailureClass::Denied => "denied",
            FailureClass::Credentials => "credentials",
            FailureClass::SubnetExhausted => "subnet-exhausted",
            FailureClass::NoFreePrefix => "no-free-prefix",
            FailureClass::Quota => "quota",
            FailureClass::LimitReached => "limit-reached",
            FailureClass::EniLimit => "eni-limit",
            FailureClass::Refused => "refused",
            FailureClass::NotFound => "not-found",
            FailureClass::AnswerLost => "answer-lost",
            FailureClass::Unavailable => "unavailable",
            FailureClass::Host => "host",
            FailureClass::NotDurable => "state-not-written",
            FailureClass::Other => "other",
        },
    }
}

pub(super) fn wait(wait: &Wait, at: Moment) -> WaitingPod {
    WaitingPod {
        pod: Some(pod(&wait.key, &wait.pod)),
        since_unix_ms: at.unix_ms_at(wait.since),
        until_unix_ms: at.unix_ms_at(wait.deadline),
        until_for_cooling_unix_ms: at.unix_ms_at(wait.latest),
    }
}

pub(super) fn refused(refused: &RefusedPod, at: Moment) -> proto::node::RefusedPod {
    let reason = match refused.cause {
        Cause::Pool(reason) => translate::reason(reason),
        Cause::Request => proto::rpc::RefusalReason::BadRequest,
    };
    proto::node::RefusedPod {
        pod: Some(pod(&refused.key, &refused.pod)),
        at_unix_ms: at.unix_ms_at(refused.at),
        reason: reason.as_str_name().to_owned(),
        message: refused.message.clone(),
        times: refused.times,
    }
}

fn takeover(now: Takeover) -> proto::node::Takeover {
    let Takeover { phase, left, failures, signs_of_return } = now;
    let state = match phase {
        Phase::Waiting => "waiting",
        Phase::Failing => "failing",
        Phase::Done => "done",
    };
    proto::node::Takeover { state: state.to_owned(), left, failures, signs_of_return }
}

pub(super) fn when(at: Moment, instant: Option<Instant>) -> Option<i64> {
    instant.map(|instant| at.unix_ms_at(instant))
}
