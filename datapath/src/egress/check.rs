//! Comparing a pod's egress with what it should be.

use vpc::{Family, Mac};

use super::{EgressError, EgressNetwork, plan};
use crate::kernel::{Netlink, Netns};
use crate::pod::Difference;

/// What is missing or different in a pod's egress, whose host's end is called `host_veth`; empty
/// if it is as wanted.
///
/// # Errors
/// [`EgressError`] if the kernel could not be asked.
pub fn check(
    wanted: &EgressNetwork,
    host_veth: &str,
    host: &Netns,
    pod: &Netns,
) -> Result<Vec<Difference>, EgressError> {
    let family = Family::of(wanted.address);
    let mut differences = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            differences.push(Difference::new(what));
        }
    };

    let mut netlink = Netlink::open_in(host).map_err(EgressError::Observe)?;
    let links = netlink.links().map_err(EgressError::Observe)?;
    let host_end = links.by_name(host_veth).cloned();
    if let Some(end) = &host_end {
        expect(end.is_up, format!("link {host_veth} on the host is down"));
        let routes = netlink.routes(family, None, &links).map_err(EgressError::Observe)?;
        let route = plan::pod_route(wanted, &end.reference());
        expect(routes.contains(&route), format!("route {route} is missing on the host"));
    } else {
        expect(false, format!("link {host_veth} is missing on the host"));
    }

    let mut netlink = Netlink::open_in(pod).map_err(EgressError::Observe)?;
    let links = netlink.links().map_err(EgressError::Observe)?;
    let name = wanted.interface();
    let Some(end) = links.by_name(name) else {
        expect(false, format!("link {name} is missing in the pod"));
        return Ok(differences);
    };
    expect(end.is_up, format!("link {name} in the pod is down"));
    expect(end.mtu == wanted.mtu, format!("link {name} in the pod has mtu {}, not {}", end.mtu, wanted.mtu));
    let address = plan::address(wanted, &end.reference());
    let addresses = netlink.addresses(family, &links).map_err(EgressError::Observe)?;
    let has_address = addresses.iter().any(|found| found.net == address.net && found.link == address.link);
    expect(has_address, format!("address {address} is missing in the pod"));
    let host_mac: Option<Mac> = host_end.as_ref().and_then(|end| end.mac);
    if let (Some(host_end), Some(mac)) = (&host_end, host_mac) {
        let is_pair = end.peer == Some(host_end.index);
        expect(is_pair, format!("link {name} in the pod is not paired with {host_veth} on the host"));
        let routes = netlink.routes(family, None, &links).map_err(EgressError::Observe)?;
        for route in plan::routes_in_pod(wanted, &end.reference(), mac) {
            expect(routes.contains(&route), format!("route {route} is missing in the pod"));
        }
    }
    Ok(differences)
}
