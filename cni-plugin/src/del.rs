//! DEL: hand the addresses back and remove what leads to the pod. The veths end with the pod's
//! namespace.

use std::net::IpAddr;
use std::path::Path;

use datapath::kernel::{Netlink, Netns};
use proto::spool::SpooledDel;
use vpc::RouteTable;

use crate::Paths;
use crate::add::own_netns;
use crate::daemon::{Daemon, Reason, UnassignError, Unassigned};
use crate::error::{CniError, Code};
use crate::log::Journal;
use crate::previous::Previous;
use crate::request::{NetworkConfig, PodArgs, Request};
use crate::{policy_agent, spool, teardown};

/// Serves a DEL, which prints nothing.
pub(crate) fn run(
    request: &Request,
    config: &NetworkConfig,
    paths: &Paths,
    journal: &mut Journal,
) -> Result<String, CniError> {
    let args = PodArgs::parse(&request.args)
        .map_err(|error| internal(format!("del cmd: failed to load k8s config from args: {error}")))?;
    journal.fact("pod", &args.pod);
    let with_previous = |error| internal(format!("del cmd: failed to delete with prevResult: {error}"));
    let previous =
        Previous::read(config.previous.as_ref(), &args.pod, &request.interface).map_err(with_previous)?;
    if let Previous::Branch { vlan, address } = &previous {
        // The daemon keeps no address of such a pod, so there is nothing to tell it.
        if !request.netns.is_empty() {
            let address = address.clone().map_err(with_previous)?;
            remove_branch(*vlan, address).map_err(with_previous)?;
        }
        return in_own_netns(request);
    }

    let daemon = Daemon { socket: &paths.ipamd, started: journal.started() };
    match daemon.unassign(request, &args, Reason::PodDeleted) {
        Ok(unassigned) => remove(request, &args, &unassigned, paths, journal)?,
        Err(UnassignError::UnknownPod) => {
            journal.fact("daemon", "unknown pod");
            remove_by_result(request, config, &args, &previous, journal);
        }
        Err(error) => {
            journal.warn(format!("tell the node daemon: {error}"));
            remove_by_result(request, config, &args, &previous, journal);
            leave_for_daemon(request, &args, &previous, paths, journal);
        }
    }
    in_own_netns(request)
}

fn internal(message: String) -> CniError {
    CniError::new(Code::INTERNAL, message)
}

/// The skeleton's last look: a runtime that names the plugin's own namespace is told so.
pub(crate) fn in_own_netns(request: &Request) -> Result<String, CniError> {
    let is_own = || {
        let pod = Netns::open(Path::new(&request.netns)).ok()?;
        pod.is_same(&Netns::current().ok()?).ok()
    };
    if !request.allows_own_netns && is_own() == Some(true) {
        return Err(own_netns());
    }
    Ok(String::new())
}

/// Removes what the daemon says that the pod had.
fn remove(
    request: &Request,
    args: &PodArgs,
    unassigned: &Unassigned,
    paths: &Paths,
    journal: &mut Journal,
) -> Result<(), CniError> {
    let failed = |error| internal(format!("del cmd: failed on tear down pod network: {error}"));
    for (address, table) in &unassigned.addresses {
        journal.fact("address", address);
        journal.fact("table", table);
    }
    match (unassigned.vlan, unassigned.addresses.as_slice()) {
        (_, []) => journal.warn("the node daemon names no address of the pod"),
        // Its VLAN may serve another pod by now, and only the namespace would show that it does not.
        (Some(_), _) if request.netns.is_empty() => return Ok(()),
        (Some(vlan), [(address, _), ..]) => remove_branch(vlan, *address).map_err(failed)?,
        (None, addresses) => {
            let mut host = Netlink::open().map_err(|error| failed(error.to_string()))?;
            teardown::delete(&mut host, addresses).map_err(failed)?;
        }
    }
    if !unassigned.policy_mode.is_empty()
        && let Err(error) = policy_agent::forget(&paths.policy_agent, &args.pod)
    {
        journal.warn(error);
    }
    Ok(())
}

/// Removes a branch ENI's VLAN link, which takes its table's routes with it, and the address's
/// rules and route. Rules by incoming link stay, detached: they name the table that whoever next
/// gets this VLAN will use, and are deleted when the pod's link is made again.
fn remove_branch(vlan: u32, address: IpAddr) -> Result<(), String> {
    let mut host = Netlink::open().map_err(|error| error.to_string())?;
    let link = datapath::host::remove_link(&mut host, &format!("vlan.eth.{vlan}"));
    let rules = teardown::delete(&mut host, &[(address, RouteTable(vlan + 100))]);
    link.map_err(|error| error.to_string())?;
    rules
}

/// Removes what the runtime's stored result names; failing is no reason to keep the pod.
fn remove_by_result(
    request: &Request,
    config: &NetworkConfig,
    args: &PodArgs,
    previous: &Previous,
    journal: &mut Journal,
) {
    let addresses = match previous {
        Previous::Addresses(addresses) => addresses,
        Previous::Nothing(why) => return journal.fact("prevResult", why),
        // Served before the daemon was asked.
        Previous::Branch { .. } => return,
    };
    for entry in addresses {
        journal.fact("address", entry.address);
        journal.fact("table", entry.table);
    }
    if let Err(error) = teardown::by_result(request, &config.veth_prefix, &args.pod, addresses, journal) {
        journal.warn(format!("tear down by prevResult: {error}"));
    }
}

fn leave_for_daemon(
    request: &Request,
    args: &PodArgs,
    previous: &Previous,
    paths: &Paths,
    journal: &mut Journal,
) {
    let entry = SpooledDel {
        network: request.network.clone(),
        container_id: request.container_id.clone(),
        interface: request.interface.clone(),
        pod_name: args.pod.name.clone(),
        pod_namespace: args.pod.namespace.clone(),
        addresses: previous.addresses(),
        unix_time_ns: spool::now_ns(),
    };
    match spool::leave(&paths.spool, &entry) {
        Ok(()) => journal.fact("spooled", paths.spool.display()),
        Err(error) => journal.warn(format!("leave the DEL for the node daemon: {error}")),
    }
}
