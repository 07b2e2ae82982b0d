//! Comparing a pod's network with what it should be.

use vpc::Family;

use super::{Difference, PodError, plan};
use crate::kernel::{Address, KernelError, Links, Neighbour, Netlink, Netns, Route, Rule};
use crate::wanted::{PodInterface, PodNetwork};

/// What is missing or different in a pod's network; empty if it is as wanted.
///
/// # Errors
/// [`PodError`] if the kernel could not be asked.
pub fn check(wanted: &PodNetwork, host: &Netns, pod: &Netns) -> Result<Vec<Difference>, PodError> {
    let mut in_pod = Netlink::open_in(pod).map_err(PodError::Observe)?;
    let mut on_host = Netlink::open_in(host).map_err(PodError::Observe)?;
    let mut differences = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of_family = || wanted.interfaces.iter().filter(|one| Family::of(one.address) == family);
        if of_family().next().is_none() {
            continue;
        }
        let pod_side = Side::observe(&mut in_pod, family).map_err(PodError::Observe)?;
        let host_side = Side::observe(&mut on_host, family).map_err(PodError::Observe)?;
        differences.extend(of_family().flat_map(|interface| compare(interface, &pod_side, &host_side)));
    }
    Ok(differences)
}

/// What one namespace holds.
struct Side {
    links: Links,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    rules: Vec<Rule>,
    neighbours: Vec<Neighbour>,
}

impl Side {
    fn observe(netlink: &mut Netlink, family: Family) -> Result<Self, KernelError> {
        let links = netlink.links()?;
        Ok(Self {
            addresses: netlink.addresses(family, &links)?,
            routes: netlink.routes(family, None, &links)?,
            rules: netlink.rules(family)?,
            neighbours: netlink.neighbours(family, &links)?,
            links,
        })
    }

    fn has_route(&self, wanted: &Route) -> bool {
        self.routes.contains(wanted)
    }
}

fn compare(interface: &PodInterface, pod: &Side, host: &Side) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            differences.push(Difference::new(what));
        }
    };
    let name = &interface.container_interface;
    let ends = (pod.links.by_name(name), host.links.by_name(&interface.host_veth));

    if let (Some(end), _) = ends {
        let link = end.reference();
        expect(end.is_up, format!("link {name} in the pod is down"));
        expect(
            end.mtu == interface.mtu,
            format!("link {name} in the pod has mtu {}, not {}", end.mtu, interface.mtu),
        );
        let address = plan::address(interface, &link);
        let has_address =
            pod.addresses.iter().any(|found| found.net == address.net && found.link == address.link);
        expect(has_address, format!("address {address} is missing in the pod"));
        for route in [plan::gateway_route(interface, &link), plan::default_route(interface, &link)] {
            expect(pod.has_route(&route), format!("route {route} is missing in the pod"));
        }
        if let Some(rule) = plan::interface_rule(interface) {
            expect(pod.rules.contains(&rule), format!("rule {rule} is missing in the pod"));
        }
    } else {
        expect(false, format!("link {name} is missing in the pod"));
    }

    if let (_, Some(end)) = ends {
        expect(end.is_up, format!("link {} on the host is down", end.name));
        let route = plan::pod_route(interface, &end.reference());
        expect(host.has_route(&route), format!("route {route} is missing on the host"));
    } else {
        expect(false, format!("link {} is missing on the host", interface.host_veth));
    }
    for rule in plan::pod_rules(interface) {
        expect(host.rules.contains(&rule), format!("rule {rule} is missing on the host"));
    }

    if let (Some(in_pod), Some(on_host)) = ends
        && let Some(mac) = on_host.mac
    {
        expect(
            in_pod.peer == Some(on_host.index),
            format!("link {name} in the pod is not paired with {} on the host", on_host.name),
        );
        let neighbour = plan::gateway_neighbour(interface, &in_pod.reference(), mac);
        expect(pod.neighbours.contains(&neighbour), format!("neighbour {neighbour} is missing in the pod"));
    }
    differences
}
