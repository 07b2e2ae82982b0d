//! Removing a pod's kernel objects by what its result said, where the daemon cannot vouch for it.
//!
//! A result may be old: runtimes repeat a DEL, and by then the address may serve another pod. So
//! nothing is removed unless the kernel shows that it is still this sandbox's, or nobody's.

use std::net::IpAddr;
use std::path::Path;

use datapath::evidence::{self, Evidence};
use datapath::kernel::{Netlink, Netns, inside};
use nix::ifaddrs::getifaddrs;
use vpc::{PodName, RouteTable, container_interface, host_veth};

use crate::log::Journal;
use crate::previous::PodAddress;
use crate::request::Request;

/// Removes rules and routes of those `addresses` that are still this sandbox's or nobody's.
pub(crate) fn by_result(
    request: &Request,
    veth_prefix: &str,
    pod: &PodName,
    addresses: &[PodAddress],
    journal: &mut Journal,
) -> Result<(), String> {
    let mut host = Netlink::open().map_err(|error| error.to_string())?;
    let seen = evidence::read(&mut host).map_err(|error| error.to_string())?;
    let mut removable = Vec::new();
    for entry in addresses {
        match owner(request, veth_prefix, pod, *entry, &seen) {
            Ok(()) => removable.push((entry.address, entry.table)),
            Err(why) => journal.warn(format!("{} is left alone: {why}", entry.address)),
        }
    }
    delete(&mut host, &removable)
}

/// Removes rules and routes of `addresses`, all of them that can be removed.
pub(crate) fn delete(host: &mut Netlink, addresses: &[(IpAddr, RouteTable)]) -> Result<(), String> {
    datapath::pod::delete(host, addresses).map_err(|error| error.to_string())
}

/// Whether the address is this sandbox's, or nobody's; if not, what speaks against it.
fn owner(
    request: &Request,
    veth_prefix: &str,
    pod: &PodName,
    entry: PodAddress,
    seen: &Evidence,
) -> Result<(), String> {
    // A pod that lives is reached by a route; without one only rules are left over.
    let Some(link) = seen.routes.get(&entry.address) else { return Ok(()) };
    let own = host_veth(veth_prefix, pod, entry.nic);
    if *link != own {
        return Err(format!("it is reached through {link}, and this pod's link is {own}"));
    }
    // A later sandbox of the same pod has a host link of the same name, but then the link of
    // this sandbox has been replaced, and its namespace no longer has the address.
    let interface = container_interface(&request.interface, entry.nic);
    if has_address(&request.netns, &interface, entry.address) {
        return Ok(());
    }
    Err(format!("{link} leads to another sandbox of the pod"))
}

fn has_address(netns: &str, interface: &str, address: IpAddr) -> bool {
    let Ok(netns) = Netns::open(Path::new(netns)) else { return false };
    let look = || {
        getifaddrs().is_ok_and(|mut found| {
            found.any(|found| {
                let storage = found.address.filter(|_| found.interface_name == interface);
                storage.is_some_and(|storage| match address {
                    IpAddr::V4(v4) => storage.as_sockaddr_in().is_some_and(|seen| seen.ip() == v4),
                    IpAddr::V6(v6) => storage.as_sockaddr_in6().is_some_and(|seen| seen.ip() == v6),
                })
            })
        })
    };
    inside(&netns, look).unwrap_or(false)
}
