//! Between the pool's values and the wire's messages.

use std::net::IpAddr;
use std::time::Duration;

use proto::rpc::{self, AddNetworkReply, DelNetworkReply, IpAllocationMetadata, RefusalReason};
use tonic::Status;
use vpc::{EniSlot, Family, RouteTable};

use super::ReplyFacts;
use crate::imds::NetworkFacts;
use crate::pool::{Assignment, Reason, Refusal, Released};

pub(super) fn assigned(
    assignment: &Assignment,
    facts: &ReplyFacts,
    network: &NetworkFacts,
) -> AddNetworkReply {
    let (mut vp_cv4_cid_rs, mut vp_cv6_cid_rs) = (Vec::new(), Vec::new());
    match facts.family {
        Family::V4 => {
            vp_cv4_cid_rs.extend(network.vpc_cidrs.iter().map(ToString::to_string));
            if !facts.uses_external_snat {
                vp_cv4_cid_rs.extend(facts.exclude_snat_cidrs.iter().map(ToString::to_string));
            }
        }
        Family::V6 => vp_cv6_cid_rs.extend(network.vpc_ipv6_cidrs.iter().map(ToString::to_string)),
    }
    AddNetworkReply {
        success: true,
        ip_allocation_metadata: vec![allocation(assignment.address, assignment.slot, assignment.table)],
        use_external_snat: facts.family == Family::V4 && facts.uses_external_snat,
        vp_cv4_cid_rs,
        vp_cv6_cid_rs,
        network_policy_mode: facts.network_policy_mode.clone(),
        already_assigned: !assignment.is_new,
        ..AddNetworkReply::default()
    }
}

pub(super) fn released(released: &Released, facts: &ReplyFacts) -> DelNetworkReply {
    DelNetworkReply {
        success: true,
        ip_allocation_metadata: vec![allocation(released.allocation.address, released.slot, released.table)],
        pod_vlan_id: 0,
        network_policy_mode: facts.network_policy_mode.clone(),
    }
}

fn allocation(address: IpAddr, slot: EniSlot, table: RouteTable) -> IpAllocationMetadata {
    let (i_pv4_addr, i_pv6_addr) = match address {
        IpAddr::V4(address) => (address.to_string(), String::new()),
        IpAddr::V6(address) => (String::new(), address.to_string()),
    };
    IpAllocationMetadata {
        i_pv4_addr,
        i_pv6_addr,
        device_number: i32::from(slot.device.0),
        // Table numbers stay below 13,000 by their construction.
        route_table_id: i32::try_from(table.0).unwrap_or(0),
    }
}

pub(super) fn refused(refusal: &Refusal) -> AddNetworkReply {
    refusal_reply(reason(refusal.reason), &refusal.message, refusal.retry_after)
}

pub(super) fn bad_request(message: &str) -> AddNetworkReply {
    refusal_reply(RefusalReason::BadRequest, message, None)
}

pub(super) fn not_ready() -> AddNetworkReply {
    let message = "the node daemon is shutting down; its successor will answer";
    refusal_reply(RefusalReason::NotReady, message, Some(Duration::from_secs(1)))
}

pub(super) fn crowded() -> AddNetworkReply {
    let message = "the node daemon is busy with too many other requests; see its log for what holds them up";
    refusal_reply(RefusalReason::NotReady, message, Some(Duration::from_secs(1)))
}

fn refusal_reply(reason: RefusalReason, message: &str, retry_after: Option<Duration>) -> AddNetworkReply {
    let retry_after_ms =
        retry_after.map_or(0, |pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1));
    let refusal = rpc::Refusal { reason: reason.into(), message: message.to_owned(), retry_after_ms };
    AddNetworkReply { success: false, refusal: Some(refusal), ..AddNetworkReply::default() }
}

pub(super) fn reason(reason: Reason) -> RefusalReason {
    match reason {
        Reason::NodeFull => RefusalReason::NodeFull,
        Reason::CoolingDown => RefusalReason::CoolingDown,
        Reason::PoolFilling => RefusalReason::PoolFilling,
        Reason::SubnetExhausted => RefusalReason::SubnetExhausted,
        Reason::QuotaExceeded => RefusalReason::QuotaExceeded,
        Reason::Throttled => RefusalReason::Throttled,
        Reason::PermissionDenied => RefusalReason::PermissionDenied,
        Reason::Ec2Refuses => RefusalReason::Ec2Refuses,
        Reason::Ec2Unavailable => RefusalReason::Ec2Unavailable,
        Reason::HostSetupFailed => RefusalReason::HostSetupFailed,
        Reason::StateNotDurable => RefusalReason::StateNotDurable,
        Reason::ProvisioningOff => RefusalReason::ProvisioningOff,
        Reason::Quarantined => RefusalReason::Quarantined,
    }
}

/// A failed DEL, in the form that plugins of every release look for their words in.
pub(super) fn del_error(message: &str) -> Status {
    Status::unknown(format!("1 error occurred:\n\t* {message}\n\n"))
}

/// No call is handled any more.
pub(super) fn closed() -> Status {
    Status::unavailable("the node daemon is shutting down")
}

/// A timeout as gRPC writes it: up to eight digits and a unit.
///
/// Source: gRPC over HTTP/2, "Timeout".
pub(super) fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last().filter(char::is_ascii)?;
    let number: u64 = text.get(..text.len() - 1)?.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number.saturating_mul(3600)),
        'M' => Duration::from_secs(number.saturating_mul(60)),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}
