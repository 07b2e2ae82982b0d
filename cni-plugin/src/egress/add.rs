//! ADD: lease an address, wire the pod, add both ends to the result.

use std::path::Path;

use datapath::egress::{self, EgressEnds, EgressNetwork};
use datapath::kernel::{Netlink, Netns};

use crate::add::own_netns;
use crate::error::CniError;
use crate::log::Journal;
use crate::request::Request;
use crate::request::version::Generation;
use crate::result::{CniResult, Interface};

use super::config::EgressConfig;
use super::lease::Reserved;
use super::{internal, leases, no_lease, owner};

/// Serves an ADD; gives what stdout carries.
pub(super) fn run(
    request: &Request,
    config: &EgressConfig,
    journal: &mut Journal,
) -> Result<String, CniError> {
    let previous = config.previous.as_ref().ok_or_else(|| internal("must be called as a chained plugin"))?;
    let mtu = config.mtu().map_err(internal)?;
    let generation = Generation::of(request.version).unwrap_or(Generation::Newest);
    let render = |result: &CniResult| result.render(request.version, generation).map_err(internal);
    // Also where egress is on: a result that cannot be printed is found before anything is made.
    let unchanged = render(previous)?;
    if !config.is_enabled {
        return Ok(unchanged);
    }
    let ipam = config.ipam().map_err(internal)?;
    let mtu = u32::try_from(mtu).map_err(|_| internal(format!("mtu is {mtu}: expected 0 to 65535")))?;
    let host = Netns::current().map_err(internal)?;
    let pod = Netns::open(Path::new(&request.netns)).map_err(internal)?;
    if !request.allows_own_netns && pod.is_same(&host).map_err(internal)? {
        return Err(own_netns());
    }

    let block = ipam.range.block();
    let mut netlink = Netlink::open().map_err(internal)?;
    let in_use = egress::addresses_in_use(&mut netlink, block).map_err(internal)?;
    let leases = leases(request, ipam);
    let reserved = leases.reserve(&owner(request), ipam.range, &in_use).map_err(|error| no_lease(&error))?;
    let Reserved { address, is_new } = reserved;
    journal.fact("address", address);
    let wanted = EgressNetwork { pod_interface: request.interface.clone(), address, block, mtu };
    let ends = egress::add(&wanted, &host, &pod).map_err(|error| {
        // The lease of an earlier ADD may be that of a pod which runs.
        if is_new && let Err(error) = leases.release(&owner(request)) {
            journal.warn(format!("release the lease of a failed ADD: {error}"));
        }
        internal(error)
    })?;
    journal.fact("link", &ends.host_veth);
    render(&with_ends(previous, &ends, &request.netns))
}

/// `previous` with both ends; addresses and routes stay as they are.
fn with_ends(previous: &CniResult, ends: &EgressEnds, netns: &str) -> CniResult {
    let mut result = previous.clone();
    result.interfaces.push(Interface::new(&ends.host_veth, ends.host_mac, ""));
    result.interfaces.push(Interface::new(ends.container_interface, ends.container_mac, netns));
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Json;

    #[test]
    fn both_ends_follow_the_interfaces_of_the_plugins_before() {
        let ends = EgressEnds {
            host_veth: "vethc30bab81".to_owned(),
            host_mac: "12:8b:bc:2f:94:38".parse().unwrap(),
            container_interface: "v4if0",
            container_mac: "9a:a3:98:ff:c9:1c".parse().unwrap(),
        };
        for (version, previous, golden) in [
            (
                "0.4.0",
                include_str!("../../golden/result-0.4.0.json"),
                include_str!("../../golden/egress-0.4.0.json"),
            ),
            (
                "1.0.0",
                include_str!("../../golden/result-1.0.0.json"),
                include_str!("../../golden/egress-1.0.0.json"),
            ),
            (
                "0.2.0",
                include_str!("../../golden/result-0.2.0.json"),
                include_str!("../../golden/result-0.2.0.json"),
            ),
        ] {
            let generation = Generation::of(version).unwrap();
            let json = Json::parse(previous.as_bytes()).unwrap();
            let previous = CniResult::read(&json, generation, version).unwrap();

            let result = with_ends(&previous, &ends, "/var/run/netns/cni-1");

            assert_eq!(result.render(version, generation).unwrap(), golden.trim_end(), "{version}");
        }
    }
}
