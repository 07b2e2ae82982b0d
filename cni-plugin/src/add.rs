//! ADD: ask for the pod's addresses, wire the pod, report.

use std::net::IpAddr;
use std::path::Path;

use datapath::kernel::Netns;
use datapath::pod::PodError;
use datapath::wanted::{PodInterface, PodNetwork};
use vpc::{PodName, RouteTable, container_interface, dummy_interface, host_veth};

use crate::Paths;
use crate::daemon::{AssignError, Assignment, Daemon, Reason, Refusal};
use crate::error::{CniError, Code};
use crate::log::Journal;
use crate::policy_agent;
use crate::previous::PodAddress;
use crate::request::version::Generation;
use crate::request::{NetworkConfig, PodArgs, Request};
use crate::result::{CniResult, Interface, IpConfig};
use crate::rpc::CallError;

/// The smallest MTU that IPv6 works with, in bytes.
const MIN_IPV6_MTU: u32 = 1280;

/// Serves an ADD; gives what stdout carries.
pub(crate) fn run(
    request: &Request,
    config: &NetworkConfig,
    paths: &Paths,
    journal: &mut Journal,
) -> Result<String, CniError> {
    let args = PodArgs::parse(&request.args)
        .map_err(|error| internal(format!("add cmd: failed to load k8s config from arg: {error}")))?;
    journal.fact("pod", &args.pod);
    // The namespaces come first: an address that is fetched in vain has to rest before its next use.
    let (host, pod) = open_namespaces(request)?;

    let daemon = Daemon { socket: &paths.ipamd, started: journal.started() };
    let assignment = match daemon.assign(request, &args, config.wants_all_nics) {
        Ok(assignment) => assignment,
        Err(error) => {
            if matches!(error, AssignError::Absurd(_) | AssignError::Branch(_)) {
                hand_back(&daemon, request, &args, journal);
            }
            return Err(refused(error));
        }
    };
    for allocation in &assignment.all {
        journal.fact("address", allocation.address);
        journal.fact("table", allocation.table);
    }

    if let Err(error) = wire(request, config, &args.pod, &assignment, &host, &pod) {
        hand_back(&daemon, request, &args, journal);
        return Err(internal(format!("add command: failed to setup network: {error}")));
    }
    if !assignment.policy_mode.is_empty() {
        // If this fails, the wiring stays for the DEL that the runtime sends then.
        let count = assignment.all.len();
        policy_agent::enforce(&paths.policy_agent, &args.pod, &assignment.policy_mode, count)
            .map_err(|error| internal(format!("add cmd: failed to setup network policy: {error}")))?;
    }
    let generation = Generation::of(request.version).unwrap_or(Generation::Newest);
    result(request, config, &args.pod, &assignment).render(request.version, generation).map_err(internal)
}

fn internal(message: String) -> CniError {
    CniError::new(Code::INTERNAL, message)
}

/// The node's namespace and the pod's, which must be two.
fn open_namespaces(request: &Request) -> Result<(Netns, Netns), CniError> {
    let failed =
        |error| internal(format!("add command: failed to setup network: {}", PodError::Netns(error)));
    let host = Netns::current().map_err(failed)?;
    let pod = Netns::open(Path::new(&request.netns)).map_err(failed)?;
    if !request.allows_own_netns && pod.is_same(&host).map_err(failed)? {
        return Err(own_netns());
    }
    Ok((host, pod))
}

/// The skeleton's error for a pod in the plugin's own namespace.
pub(crate) fn own_netns() -> CniError {
    CniError::new(Code::INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")
}

fn hand_back(daemon: &Daemon, request: &Request, args: &PodArgs, journal: &mut Journal) {
    if let Err(error) = daemon.unassign(request, args, Reason::SetupFailed) {
        journal.warn(format!("hand the address back: {error}; the DEL that follows does it"));
    }
}

/// What the runtime is told of an ADD that got no address.
pub(crate) fn refused(error: AssignError) -> CniError {
    let no_address = "add cmd: failed to assign an IP address to container";
    match error {
        AssignError::Call(error) => {
            let code = match error {
                CallError::Unreachable(_) | CallError::TimedOut(_) => Code::TRY_AGAIN_LATER,
                CallError::Answered(_) | CallError::Unprepared(_) => Code::INTERNAL,
            };
            CniError::new(code, format!("add cmd: Error received from AddNetwork gRPC call: {error}"))
        }
        AssignError::Refused(None) => CniError::new(Code::TRY_AGAIN_LATER, no_address),
        AssignError::Refused(Some(refusal)) => {
            let Refusal { reason, message, retry_after } = refusal;
            let mut text = format!("{no_address}: {}: {message}", reason.as_str_name());
            if let Some(after) = retry_after {
                text.push_str(&format!("; asking again makes sense in {:.1} s", after.as_secs_f32()));
            }
            CniError::new(Code::of_refusal(reason), text)
        }
        AssignError::Absurd(what) => CniError::new(
            Code::ABSURD_ANSWER,
            format!("{no_address}: the node daemon's answer is unusable: {what}"),
        ),
        AssignError::Branch(vlan) => CniError::new(
            Code::NOT_SERVED,
            format!(
                "{no_address}: the node daemon gave the pod a branch ENI (VLAN {vlan}): \
                 security groups for pods are not supported by this release"
            ),
        ),
    }
}

/// What the kernel should hold for a pod with `addresses`, in their order.
pub(crate) fn wanted(
    request: &Request,
    config: &NetworkConfig,
    pod: &PodName,
    addresses: impl IntoIterator<Item = PodAddress>,
) -> PodNetwork {
    let interface = |PodAddress { nic, address, table }| PodInterface {
        host_veth: host_veth(&config.veth_prefix, pod, nic),
        container_interface: container_interface(&request.interface, nic),
        nic,
        address,
        table,
        mtu: config.mtu,
    };
    PodNetwork { pod: pod.clone(), interfaces: addresses.into_iter().map(interface).collect() }
}

fn wire(
    request: &Request,
    config: &NetworkConfig,
    pod: &PodName,
    assignment: &Assignment,
    host: &Netns,
    pod_netns: &Netns,
) -> Result<(), String> {
    let is_v6 = |address: IpAddr| address.is_ipv6();
    if config.mtu < MIN_IPV6_MTU && assignment.all.iter().any(|allocation| is_v6(allocation.address)) {
        return Err(format!(
            "SetupPodNetwork: failed to setup veth pair: failed to setup veth network: setup NS network: \
             mtu is {}: expected at least {MIN_IPV6_MTU} for an IPv6 pod",
            config.mtu
        ));
    }
    let addresses = (0..).zip(&assignment.all).map(|(nic, allocation)| PodAddress {
        nic,
        address: allocation.address,
        table: RouteTable::from_reply(allocation.table),
    });
    let wanted = wanted(request, config, pod, addresses);
    datapath::pod::add(&wanted, host, pod_netns).map_err(|error| error.to_string())
}

/// The result with the numbers that DEL reads from it; see [`crate::previous`].
fn result(request: &Request, config: &NetworkConfig, pod: &PodName, assignment: &Assignment) -> CniResult {
    let mut interfaces = Vec::new();
    let mut ips = Vec::new();
    for (nic, allocation) in (0..).zip(&assignment.all) {
        interfaces.push(Interface::new(host_veth(&config.veth_prefix, pod, nic), "", ""));
        ips.push(IpConfig::single(allocation.address, interfaces.len()));
        let name = container_interface(&request.interface, nic);
        interfaces.push(Interface::new(name, allocation.table, &request.netns));
    }
    interfaces.push(Interface::new(dummy_interface(pod), 0, assignment.first.device));
    CniResult::new(interfaces, ips)
}
