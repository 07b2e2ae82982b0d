//! What the node holds for pods' way to the other family, which `egress-cni` made: finding it while
//! it is whole, and putting back what has been lost of it since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use vpc::{Family, RouteTable};

use super::converge::try_all;
use super::{Change, Observation, PodLink};
use crate::egress::route;
use crate::kernel::{Address, KernelError, Link, LinkRef, Links, Netlink, Route, Step, single};

/// How the names of the host's ends begin; random digits follow.
const PREFIX: &str = "veth";

/// The host's end of a pod's link to the other family, with what led to the pod while it was whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressLink {
    /// The host's end.
    pub link: PodLink,
    /// The host's end of the same pod's own link.
    pub pod: PodLink,
    /// The pod's address.
    pub address: IpAddr,
    /// The node's address on the link.
    pub own: IpNet,
}

/// What the kernel held of one family at one moment.
#[derive(Debug, Default)]
pub struct EgressObservation {
    links: Links,
    addresses: Vec<Address>,
    /// Of the main table.
    routes: Vec<Route>,
}

/// Reads what pods' egress of `family` consists of, beside the links of a look at the node.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked.
pub fn observe_egress(
    netlink: &mut Netlink,
    seen: &Observation,
    family: Family,
) -> Result<EgressObservation, KernelError> {
    let links = &seen.0.links;
    Ok(EgressObservation {
        addresses: netlink.addresses(family, links)?,
        routes: netlink.routes(family, Some(RouteTable::MAIN), links)?,
        links: links.clone(),
    })
}

/// The egress of those pods whose own links are `pods`, as far as it is whole.
#[must_use]
pub fn whole_egress(seen: &EgressObservation, pods: &BTreeSet<PodLink>) -> Vec<EgressLink> {
    let of_pods: BTreeMap<u32, &PodLink> =
        pods.iter().filter_map(|pod| Some((seen.links.by_index(pod.index)?.peer_namespace?, pod))).collect();
    let is_ours = |link: &&Link| {
        let digits = link.name.strip_prefix(PREFIX).unwrap_or_default();
        link.is_up && digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let whole = seen.links.iter().filter(is_ours).filter_map(|link| {
        let pod = of_pods.get(&link.peer_namespace?)?;
        let own = seen.addresses.iter().find(|it| it.link.index == link.index && is_for_egress(it.net))?;
        let to_pod = |route: &&Route| {
            single(route.destination).is_some_and(|address| **route == pod_route(address, link))
        };
        let route = seen.routes.iter().find(to_pod)?;
        Some(EgressLink {
            link: PodLink { index: link.index, name: link.name.clone() },
            pod: (*pod).clone(),
            address: route.destination.addr(),
            own: own.net,
        })
    });
    whole.collect()
}

/// Puts back what `lost` lacks; what was changed, and the first failure. `admits` is asked for each
/// pod by what it is about.
pub fn mend_egress(
    netlink: &mut Netlink,
    seen: &EgressObservation,
    lost: &[EgressLink],
    admits: &mut dyn FnMut(&str) -> bool,
) -> (Vec<Change>, Option<KernelError>) {
    let mut due = Vec::new();
    for egress in lost {
        let mut steps = steps(seen, egress);
        if !steps.is_empty() && admits(&format!("egress of {}", egress.address)) {
            due.append(&mut steps);
        }
    }
    try_all(netlink, &due)
}

/// Removes the routes to pods that have ended, where they still lead to these links.
///
/// # Errors
/// [`KernelError`] if the kernel refused.
pub fn remove_egress(netlink: &mut Netlink, ended: &[EgressLink]) -> Result<Vec<Change>, KernelError> {
    let step = |egress: &EgressLink| {
        let link = LinkRef { index: egress.link.index, name: egress.link.name.clone() };
        Step::DeleteRoute(route(egress.address.into(), &link))
    };
    let (changes, fault) = try_all(netlink, &ended.iter().map(step).collect::<Vec<_>>());
    fault.map_or(Ok(changes), Err)
}

/// The steps after which the pod's egress is whole again; none if its link is gone, or another pod
/// has its address.
fn steps(seen: &EgressObservation, egress: &EgressLink) -> Vec<Step> {
    let EgressLink { link: PodLink { index, name }, address, own, .. } = egress;
    let Some(link) = seen.links.by_index(*index).filter(|link| link.name == *name) else {
        return Vec::new();
    };
    let to_pod = pod_route(*address, link);
    let mut routes = seen.routes.iter().filter(|route| route.destination == to_pod.destination);
    if routes.any(|route| route.link.as_ref().is_none_or(|other| other.index != *index)) {
        return Vec::new();
    }
    let mut steps = Vec::new();
    // The kernel makes an IPv6 one itself when the link comes up, and keeps an IPv4 one meanwhile.
    let has_own = seen.addresses.iter().any(|it| it.link.index == *index && it.net == *own);
    if !has_own && (link.is_up || own.addr().is_ipv4()) {
        steps.push(Step::AddLinkAddress(Address { link: link.reference(), net: *own, broadcast: None }));
    }
    if !link.is_up {
        steps.push(Step::SetUp(link.reference()));
    }
    if !link.is_up || !seen.routes.contains(&to_pod) {
        steps.push(Step::ReplaceRoute(to_pod));
    }
    steps
}

/// Whether `net` is what the node has on a link of egress: one address of IPv4, or a link-local one.
fn is_for_egress(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() == 32,
        IpNet::V6(net) => net.addr().is_unicast_link_local(),
    }
}

fn pod_route(address: IpAddr, link: &Link) -> Route {
    route(address.into(), &link.reference())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: u32 = 4;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 9001,
            is_up: true,
            peer: Some(2),
            peer_namespace: Some(if index == 9 { POD + 1 } else { POD }),
            rp_filter: None,
        }
    }

    fn own(link: &Link) -> Address {
        Address { link: link.reference(), net: "169.254.172.1/32".parse().unwrap(), broadcast: None }
    }

    fn address() -> IpAddr {
        "169.254.172.2".parse().unwrap()
    }

    /// Pod link 7 and egress link 8 of one pod, and link 9 of another namespace.
    fn whole() -> EgressObservation {
        let links = [link(7, "enicc21c2d7785"), link(8, "veth12ab34cd"), link(9, "veth00000009")];
        let strangers_route = pod_route("169.254.172.9".parse().unwrap(), &links[2]);
        EgressObservation {
            addresses: vec![own(&links[1]), own(&links[2])],
            routes: vec![pod_route(address(), &links[1]), strangers_route],
            links: links.into_iter().collect(),
        }
    }

    fn pods() -> BTreeSet<PodLink> {
        BTreeSet::from([PodLink { index: 7, name: "enicc21c2d7785".to_owned() }])
    }

    fn egress() -> EgressLink {
        let [egress] = &whole_egress(&whole(), &pods())[..] else { panic!("one is whole") };
        egress.clone()
    }

    fn printed(seen: &EgressObservation) -> Vec<String> {
        steps(seen, &egress()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pods_egress_is_found_by_the_namespace_it_shares_with_the_pods_own_link() {
        let found = egress();

        assert_eq!((found.link.index, found.address), (8, address()));
        assert_eq!(found.own.to_string(), "169.254.172.1/32");
        assert_eq!(whole_egress(&whole(), &BTreeSet::new()), []);
        let lost = EgressObservation { routes: Vec::new(), ..whole() };
        assert_eq!(whole_egress(&lost, &pods()), []);
        assert_eq!(printed(&whole()), Vec::<String>::new());
    }

    #[test]
    fn what_was_lost_comes_back() {
        let nothing = EgressObservation { routes: Vec::new(), addresses: Vec::new(), ..whole() };
        let own = "add address 169.254.172.1/32 dev veth12ab34cd scope link";
        let route = "replace route 169.254.172.2 dev veth12ab34cd";
        assert_eq!(printed(&nothing), [own, route]);

        let down = Link { is_up: false, ..link(8, "veth12ab34cd") };
        let down = EgressObservation { links: [down].into_iter().collect(), routes: Vec::new(), ..whole() };
        assert_eq!(printed(&down), ["set link veth12ab34cd up", route]);
    }

    #[test]
    fn nothing_is_put_on_another_link_nor_in_another_pods_way() {
        let gone = EgressObservation { links: Links::default(), ..whole() };
        assert_eq!(printed(&gone), Vec::<String>::new());

        let heir = link(10, "veth12ab34ce");
        let taken = EgressObservation { routes: vec![pod_route(address(), &heir)], ..whole() };
        assert_eq!(printed(&taken), Vec::<String>::new());

        let renamed = EgressObservation { links: [link(8, "vethaaaaaaaa")].into_iter().collect(), ..whole() };
        assert_eq!(printed(&renamed), Vec::<String>::new());
    }
}
