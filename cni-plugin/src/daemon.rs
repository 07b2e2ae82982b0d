//! The conversation with the node daemon. Its messages are translated here and go no further.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use proto::health::HealthCheckRequest;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_client::HealthClient;
use proto::node::node_client::NodeClient;
use proto::node::{self, CollectRequest, ReadinessRequest};
use proto::rpc::cni_backend_client::CniBackendClient;
use proto::rpc::{
    AddNetworkReply, AddNetworkRequest, DelNetworkReply, DelNetworkRequest, IpAllocationMetadata,
    RefusalReason,
};
use tonic::Code;
use vpc::RouteTable;

use crate::request::{Attachment, PodArgs, Request};
use crate::rpc::{CallError, ask, origin, runtime};

/// How long ADD goes on looking for a daemon that restarts.
const RECONNECT_FOR: Duration = Duration::from_secs(10);

/// How long ADD lasts at most, from the start of the process; runtimes give up after minutes.
const ADD_LASTS: Duration = Duration::from_secs(35);

/// How long any other call lasts at most.
const CALL_LASTS: Duration = Duration::from_secs(5);

/// The pause before the second attempt to connect; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// More addresses than any instance type has network cards.
const MAX_ALLOCATIONS: usize = 64;

/// The node daemon at its socket.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) started: Instant,
}

/// An address that the daemon gave to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) address: IpAddr,
    /// The position of its ENI on the network card.
    pub(crate) device: u16,
    /// The route table's number as the daemon sent it, for the result.
    pub(crate) table: u32,
}

/// What the daemon gave to a pod: at least one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) first: Allocation,
    /// All of them, the first one included.
    pub(crate) all: Vec<Allocation>,
    /// The network policy mode; empty if no agent wants to be told.
    pub(crate) policy_mode: String,
}

/// Why an ADD got no usable address.
#[derive(Debug)]
pub(crate) enum AssignError {
    Call(CallError),
    /// The daemon says no; only ours says why.
    Refused(Option<Refusal>),
    /// The answer cannot be used; what it gave must be handed back.
    Absurd(String),
    /// The address is one of a branch ENI; it must be handed back.
    Branch(i32),
}

/// Why our daemon refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: RefusalReason,
    pub(crate) message: String,
    /// When asking again makes sense, if anybody can tell.
    pub(crate) retry_after: Option<Duration>,
}

/// Why a pod's addresses are handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    PodDeleted,
    SetupFailed,
}

/// What a pod had until it was unassigned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Unassigned {
    pub(crate) addresses: Vec<(IpAddr, RouteTable)>,
    /// The VLAN of its branch ENI.
    pub(crate) vlan: Option<u32>,
    pub(crate) policy_mode: String,
}

/// Why a DEL could not be told.
#[derive(Debug)]
pub(crate) enum UnassignError {
    UnknownPod,
    Call(CallError),
    Refused,
}

impl fmt::Display for UnassignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPod => f.write_str("the node daemon does not know the pod"),
            Self::Call(error) => error.fmt(f),
            Self::Refused => f.write_str("the node daemon refused and says no reason"),
        }
    }
}

impl Daemon<'_> {
    /// Asks for the pod's addresses, and again while the daemon restarts.
    pub(crate) fn assign(
        &self,
        request: &Request,
        args: &PodArgs,
        wants_all_nics: bool,
    ) -> Result<Assignment, AssignError> {
        let message = AddNetworkRequest {
            client_version: String::new(),
            k8s_pod_name: args.pod.name.clone(),
            k8s_pod_namespace: args.pod.namespace.clone(),
            k8s_pod_infra_container_id: args.infra_container_id.clone(),
            netns: request.netns.clone(),
            if_name: request.interface.clone(),
            network_name: request.network.clone(),
            container_id: request.container_id.clone(),
            requires_multi_nic_attachment: wants_all_nics,
            plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let runtime = runtime().map_err(AssignError::Call)?;
        runtime.block_on(self.assign_patiently(message))
    }

    async fn assign_patiently(&self, mut message: AddNetworkRequest) -> Result<Assignment, AssignError> {
        let deadline = self.started + ADD_LASTS;
        let reconnect_until = self.started + RECONNECT_FOR;
        let mut pause = FIRST_PAUSE;
        let mut knows_version = false;
        loop {
            let answer = ask(self.socket, deadline, message.clone(), |connection, request| async move {
                CniBackendClient::with_origin(connection, origin()).add_network(request).await
            })
            .await;
            let error = match answer.map_err(AssignError::Call).and_then(assignment) {
                Ok(assignment) => return Ok(assignment),
                Err(error) => error,
            };
            match &error {
                AssignError::Call(CallError::Answered(status)) if !knows_version => {
                    let Some(version) = wanted_version(status) else { return Err(error) };
                    message.client_version = version;
                    knows_version = true;
                    continue;
                }
                AssignError::Call(CallError::Unreachable(_)) => {}
                AssignError::Refused(Some(refusal)) if refusal.reason == RefusalReason::NotReady => {}
                _ => return Err(error),
            }
            if Instant::now() + pause >= reconnect_until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Hands the pod's addresses back; asks once.
    pub(crate) fn unassign(
        &self,
        request: &Request,
        args: &PodArgs,
        reason: Reason,
    ) -> Result<Unassigned, UnassignError> {
        let (reason, uid) = match reason {
            Reason::PodDeleted => ("PodDeleted", args.uid.clone()),
            Reason::SetupFailed => ("SetupNSFailed", String::new()),
        };
        let mut message = DelNetworkRequest {
            client_version: String::new(),
            k8s_pod_name: args.pod.name.clone(),
            k8s_pod_namespace: args.pod.namespace.clone(),
            k8s_pod_infra_container_id: args.infra_container_id.clone(),
            reason: reason.to_owned(),
            if_name: request.interface.clone(),
            network_name: request.network.clone(),
            container_id: request.container_id.clone(),
            k8s_pod_uid: uid,
            plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let deadline = Instant::now() + CALL_LASTS;
        let runtime = runtime().map_err(UnassignError::Call)?;
        let outcome = runtime.block_on(async {
            let first = self.delete(message.clone(), deadline).await;
            if let Err(CallError::Answered(status)) = &first
                && let Some(version) = wanted_version(status)
            {
                message.client_version = version;
                return self.delete(message, deadline).await;
            }
            first
        });
        match outcome {
            Ok(reply) if reply.success => Ok(unassigned(&reply)),
            Ok(_) => Err(UnassignError::Refused),
            Err(CallError::Answered(status)) if status.message().contains(proto::UNKNOWN_POD) => {
                Err(UnassignError::UnknownPod)
            }
            Err(error) => Err(UnassignError::Call(error)),
        }
    }

    async fn delete(
        &self,
        message: DelNetworkRequest,
        deadline: Instant,
    ) -> Result<DelNetworkReply, CallError> {
        ask(self.socket, deadline, message, |connection, request| async move {
            CniBackendClient::with_origin(connection, origin()).del_network(request).await
        })
        .await
    }

    /// Whether an ADD could be served now; if not, what is missing.
    pub(crate) fn readiness(&self) -> Result<Result<(), String>, CallError> {
        let deadline = Instant::now() + CALL_LASTS;
        runtime()?.block_on(async {
            let answer = ask(self.socket, deadline, ReadinessRequest {}, |connection, request| async move {
                NodeClient::with_origin(connection, origin()).readiness(request).await
            })
            .await;
            match answer {
                Ok(reply) if reply.ready => Ok(Ok(())),
                Ok(reply) => Ok(Err(reply.message)),
                Err(error) if error.is_unimplemented() => self.health(deadline).await,
                Err(error) => Err(error),
            }
        })
    }

    /// What daemons that know no readiness answer to a health check.
    async fn health(&self, deadline: Instant) -> Result<Result<(), String>, CallError> {
        let message = HealthCheckRequest { service: proto::IPAMD_HEALTH_SERVICE.to_owned() };
        let reply = ask(self.socket, deadline, message, |connection, request| async move {
            HealthClient::with_origin(connection, origin()).check(request).await
        })
        .await?;
        Ok(match reply.status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("the daemon's health is {}", other.as_str_name())),
        })
    }

    /// Frees what belongs to none of the `valid` attachments; none if the daemon cannot do that.
    pub(crate) fn collect(
        &self,
        network: &str,
        valid: &[Attachment],
    ) -> Result<Option<Vec<node::Collected>>, CallError> {
        let valid = valid.iter().map(|attachment| node::Attachment {
            container_id: attachment.container_id.clone(),
            interface: attachment.interface.clone(),
        });
        let message = CollectRequest { network: network.to_owned(), valid: valid.collect() };
        let deadline = Instant::now() + CALL_LASTS;
        let answer =
            runtime()?.block_on(ask(self.socket, deadline, message, |connection, request| async move {
                NodeClient::with_origin(connection, origin()).collect(request).await
            }));
        match answer {
            Ok(reply) => Ok(Some(reply.collected)),
            Err(error) if error.is_unimplemented() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The version that a daemon demands in `wrong client version "x" (!= "y")`.
fn wanted_version(status: &tonic::Status) -> Option<String> {
    if status.code() != Code::FailedPrecondition {
        return None;
    }
    let (_, version) = status.message().strip_prefix("wrong client version ")?.split_once("(!= \"")?;
    version.strip_suffix("\")").map(str::to_owned)
}

fn assignment(reply: AddNetworkReply) -> Result<Assignment, AssignError> {
    if !reply.success {
        return Err(AssignError::Refused(reply.refusal.map(|refusal| Refusal {
            reason: refusal.reason(),
            retry_after: Some(Duration::from_millis(refusal.retry_after_ms)).filter(|after| !after.is_zero()),
            message: refusal.message,
        })));
    }
    if reply.pod_vlan_id != 0 {
        return Err(AssignError::Branch(reply.pod_vlan_id));
    }
    if reply.ip_allocation_metadata.len() > MAX_ALLOCATIONS {
        let count = reply.ip_allocation_metadata.len();
        return Err(AssignError::Absurd(format!(
            "it holds {count} addresses: expected at most {MAX_ALLOCATIONS}"
        )));
    }
    let all: Vec<Allocation> = reply
        .ip_allocation_metadata
        .iter()
        .map(allocation)
        .collect::<Result<_, _>>()
        .map_err(AssignError::Absurd)?;
    for (position, allocation) in all.iter().enumerate() {
        if all[..position].iter().any(|earlier| earlier.address == allocation.address) {
            return Err(AssignError::Absurd(format!("it holds {} twice", allocation.address)));
        }
    }
    let Some(first) = all.first().copied() else {
        return Err(AssignError::Absurd("it holds no address".to_owned()));
    };
    Ok(Assignment { first, all, policy_mode: reply.network_policy_mode })
}

fn allocation(metadata: &IpAllocationMetadata) -> Result<Allocation, String> {
    let text = address_text(metadata);
    let address: IpAddr =
        text.parse().map_err(|_| format!("its address is {text:?}: expected an IPv4 or IPv6 address"))?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!("its address is {address}: no pod can have that"));
    }
    let device = u16::try_from(metadata.device_number)
        .map_err(|_| format!("its device number is {}: expected 0 to 65535", metadata.device_number))?;
    // Table 255 is the kernel's own, for the addresses of the host.
    let table = u32::try_from(metadata.route_table_id).ok().filter(|table| *table != 255);
    let table = table.ok_or_else(|| format!("its route table is {}", metadata.route_table_id))?;
    Ok(Allocation { address, device, table })
}

fn address_text(metadata: &IpAllocationMetadata) -> &str {
    if metadata.i_pv4_addr.is_empty() { &metadata.i_pv6_addr } else { &metadata.i_pv4_addr }
}

fn unassigned(reply: &DelNetworkReply) -> Unassigned {
    let addresses = reply.ip_allocation_metadata.iter().filter_map(|metadata| {
        let table = u32::try_from(metadata.route_table_id).unwrap_or_default();
        Some((address_text(metadata).parse().ok()?, RouteTable::from_reply(table)))
    });
    Unassigned {
        addresses: addresses.collect(),
        vlan: u32::try_from(reply.pod_vlan_id).ok().filter(|vlan| *vlan != 0),
        policy_mode: reply.network_policy_mode.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(metadata: &[(&str, i32, i32)]) -> AddNetworkReply {
        let metadata = metadata.iter().map(|(address, device, table)| IpAllocationMetadata {
            i_pv4_addr: (*address).to_owned(),
            device_number: *device,
            route_table_id: *table,
            ..IpAllocationMetadata::default()
        });
        AddNetworkReply {
            success: true,
            ip_allocation_metadata: metadata.collect(),
            ..AddNetworkReply::default()
        }
    }

    #[test]
    fn an_answer_that_makes_no_sense_says_what_is_wrong_with_it() {
        for (metadata, expected) in [
            (&[][..], "it holds no address"),
            (&[("x", 0, 254)], "its address is \"x\": expected an IPv4 or IPv6 address"),
            (&[("", 0, 254)], "its address is \"\": expected an IPv4 or IPv6 address"),
            (&[("127.0.0.1", 0, 254)], "its address is 127.0.0.1: no pod can have that"),
            (&[("10.0.0.1", -1, 254)], "its device number is -1: expected 0 to 65535"),
            (&[("10.0.0.1", 0, -2)], "its route table is -2"),
            (&[("10.0.0.1", 0, 254), ("10.0.0.1", 1, 2)], "it holds 10.0.0.1 twice"),
        ] {
            let Err(AssignError::Absurd(text)) = assignment(reply(metadata)) else { panic!("{expected}") };

            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_daemon_that_wants_another_version_names_it() {
        let status = tonic::Status::failed_precondition("wrong client version \"\" (!= \"v1.2\")");
        assert_eq!(wanted_version(&status).as_deref(), Some("v1.2"));

        assert_eq!(wanted_version(&tonic::Status::failed_precondition("something else")), None);
    }
}
