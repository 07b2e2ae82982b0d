//! The steps that build a pod's egress, as pure functions of what it should be.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use vpc::{Family, Mac, RouteTable};

use super::{EgressNetwork, gateway};
use crate::kernel::{Address, LinkRef, Route, Scope, Step};

/// The interface identifier's bits, and the block, of link-local addresses.
pub(crate) const LINK_LOCAL_PREFIX: u8 = 64;

/// The link-local address that the kernel makes of a link-layer address (RFC 4291, appendix A).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    let [a, b, c, d, e, f] = [a ^ 2, b, c, d, e, f].map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, a << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// The next hop of everything that the pod sends by this link.
fn next_hop(wanted: &EgressNetwork, host_mac: Mac) -> IpAddr {
    match wanted.address {
        IpAddr::V4(_) => gateway(wanted.block),
        IpAddr::V6(_) => link_local(host_mac).into(),
    }
}

/// A route over a link of egress.
pub(crate) fn route(destination: IpNet, link: &LinkRef) -> Route {
    Route {
        destination,
        gateway: None,
        link: Some(link.clone()),
        scope: Scope::on_link(Family::of(destination.addr())),
        table: RouteTable::MAIN,
        preferred_source: None,
    }
}

/// The pod's address, with the length of its block.
pub(super) fn address(wanted: &EgressNetwork, link: &LinkRef) -> Address {
    let broadcast = match wanted.block {
        IpNet::V4(block) => Some(block.broadcast()),
        IpNet::V6(_) => None,
    };
    Address { link: link.clone(), net: in_block(wanted.address, wanted.block), broadcast }
}

/// `address` with the length of `block`.
fn in_block(address: IpAddr, block: IpNet) -> IpNet {
    IpNet::new(address, block.prefix_len()).unwrap_or_else(|_| address.into())
}

/// The pod's routes besides those that the kernel makes of its address.
pub(super) fn routes_in_pod(wanted: &EgressNetwork, link: &LinkRef, host_mac: Mac) -> Vec<Route> {
    let next_hop = next_hop(wanted, host_mac);
    let everything = Family::of(wanted.address).everything();
    let via =
        |destination| Route { gateway: Some(next_hop), scope: Scope::Universe, ..route(destination, link) };
    let from_pod = |route: Route| Route { preferred_source: Some(wanted.address), ..route };
    match wanted.address {
        // Other pods of the block are not on this link, so even they are reached by the node.
        IpAddr::V4(_) => {
            vec![from_pod(route(next_hop.into(), link)), from_pod(via(wanted.block.trunc())), via(everything)]
        }
        IpAddr::V6(_) => vec![via(everything)],
    }
}

/// The steps in the pod, once the pair is there.
pub(super) fn steps_in_pod(wanted: &EgressNetwork, link: &LinkRef, host_mac: Mac) -> Vec<Step> {
    let mut steps = vec![Step::AddAddress(address(wanted, link))];
    if wanted.address.is_ipv4() {
        // The route that the kernel made of the address.
        steps.push(Step::DeleteRoute(route(wanted.block.trunc(), link)));
    }
    steps.extend(routes_in_pod(wanted, link, host_mac).into_iter().map(Step::ReplaceRoute));
    steps
}

/// The node's address on the host's end.
fn host_address(wanted: &EgressNetwork, link: &LinkRef, host_mac: Mac) -> Address {
    let net = match wanted.address {
        IpAddr::V4(_) => gateway(wanted.block).into(),
        // The kernel would make the same one, but not let it be used for a second or two, in
        // which it looks for duplicates.
        IpAddr::V6(_) => IpNet::new_assert(link_local(host_mac).into(), LINK_LOCAL_PREFIX),
    };
    Address { link: link.clone(), net, broadcast: None }
}

/// The route on the host to the pod.
pub(super) fn pod_route(wanted: &EgressNetwork, link: &LinkRef) -> Route {
    route(wanted.address.into(), link)
}

/// The steps on the host, once the pair is there. The address comes before the link is up, or
/// the kernel would have made its own already.
pub(super) fn steps_on_host(wanted: &EgressNetwork, link: &LinkRef, host_mac: Mac) -> Vec<Step> {
    vec![
        Step::AddLinkAddress(host_address(wanted, link, host_mac)),
        Step::SetUp(link.clone()),
        Step::ReplaceRoute(pod_route(wanted, link)),
    ]
}

/// The settings in the pod that its interfaces need, in their order: names below /proc/sys.
pub(super) fn settings_in_pod(wanted: &EgressNetwork) -> Vec<(String, &'static str)> {
    let setting = |link: &str, name: &str| format!("net/ipv6/conf/{link}/{name}");
    match wanted.address {
        IpAddr::V4(_) => Vec::new(),
        IpAddr::V6(_) => vec![
            (setting(&wanted.pod_interface, "disable_ipv6"), "1"),
            // A container runtime may have turned IPv6 off in the pod's namespace.
            (setting("lo", "disable_ipv6"), "0"),
            (setting(wanted.interface(), "disable_ipv6"), "0"),
            (setting(wanted.interface(), "keep_addr_on_down"), "1"),
        ],
    }
}

/// The settings on the host, in their order: names below /proc/sys.
pub(super) fn settings_on_host(wanted: &EgressNetwork, host_veth: &str) -> Vec<(String, &'static str)> {
    let mut settings = Vec::new();
    if wanted.address.is_ipv4() {
        settings.push(("net/ipv4/ip_forward".to_owned(), "1"));
    }
    // Before the link is up, so that no pod gives the host a route.
    settings.push((format!("net/ipv6/conf/{host_veth}/accept_ra"), "0"));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac::new([0x02, 0x42, 0xac, 0x11, 0x00, 0x07]);

    fn egress(address: &str, block: &str) -> EgressNetwork {
        EgressNetwork {
            pod_interface: "eth0".to_owned(),
            address: address.parse().unwrap(),
            block: block.parse().unwrap(),
            mtu: 9001,
        }
    }

    fn v4() -> EgressNetwork {
        egress("169.254.172.2", "169.254.172.0/22")
    }

    fn v6() -> EgressNetwork {
        egress("fd00::ac:2", "fd00::ac:00/118")
    }

    fn printed(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    fn link(name: &str) -> LinkRef {
        LinkRef { index: 2, name: name.to_owned() }
    }

    #[test]
    fn an_ipv6_pod_reaches_all_of_ipv4_by_the_first_address_of_the_block() {
        assert_eq!(
            printed(&steps_in_pod(&v4(), &link("v4if0"), MAC)),
            [
                "add address 169.254.172.2/22 dev v4if0",
                "delete route 169.254.172.0/22 dev v4if0",
                "replace route 169.254.172.1 dev v4if0 src 169.254.172.2",
                "replace route 169.254.172.0/22 via 169.254.172.1 dev v4if0 src 169.254.172.2",
                "replace route default via 169.254.172.1 dev v4if0",
            ]
        );
        assert_eq!(
            printed(&steps_on_host(&v4(), &link("veth0"), MAC)),
            [
                "add address 169.254.172.1/32 dev veth0 scope link",
                "set link veth0 up",
                "replace route 169.254.172.2 dev veth0",
            ]
        );
    }

    #[test]
    fn an_ipv4_pod_reaches_all_of_ipv6_by_the_link_local_address_of_the_hosts_end() {
        assert_eq!(
            printed(&steps_in_pod(&v6(), &link("v6if0"), MAC)),
            [
                "add address fd00::ac:2/118 dev v6if0",
                "replace route default via fe80::42:acff:fe11:7 dev v6if0",
            ]
        );
        assert_eq!(
            printed(&steps_on_host(&v6(), &link("veth0"), MAC)),
            [
                "add address fe80::42:acff:fe11:7/64 dev veth0 scope link",
                "set link veth0 up",
                "replace route fd00::ac:2 dev veth0",
            ]
        );
    }

    #[test]
    fn only_ipv6_egress_needs_settings_in_the_pod_and_only_ipv4_egress_forwarding() {
        assert_eq!(settings_in_pod(&v4()), []);
        let names: Vec<String> = settings_in_pod(&v6()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[0], "net/ipv6/conf/eth0/disable_ipv6");
        assert_eq!(settings_on_host(&v4(), "veth0")[0], ("net/ipv4/ip_forward".to_owned(), "1"));
        assert_eq!(settings_on_host(&v6(), "veth0").len(), 1);
    }

    #[test]
    fn the_gateway_is_the_first_address_of_the_block() {
        assert_eq!(gateway("169.254.172.0/22".parse().unwrap()).to_string(), "169.254.172.1");
        assert_eq!(gateway("fd00::ac:00/118".parse().unwrap()).to_string(), "fd00::ac:1");
    }
}
