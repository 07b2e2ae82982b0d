//! The difference between an ENI's link as wanted and as observed, as ordered steps.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use vpc::{Family, RouteTable, subnet_gateway};

use super::observed::Observed;
use crate::kernel::{Address, Link, Route, Rule, Scope, Step};
use crate::wanted::{EniNetwork, HostOptions, priority};

/// The steps for the primary ENI's link: the operating system owns its addresses and routes.
pub(super) fn primary_steps(observed: &Observed, link: &Link, options: &HostOptions) -> Vec<Step> {
    let mut steps = mtu_step(link, options);
    if observed.is_strict(link) {
        steps.push(Step::LoosenReversePath(link.reference()));
    }
    steps
}

/// The steps for a secondary ENI, whose link is `link`.
pub(super) fn eni_steps(
    observed: &Observed,
    link: &Link,
    eni: &EniNetwork,
    options: &HostOptions,
) -> Vec<Step> {
    let mut steps = mtu_step(link, options);
    if !link.is_up {
        steps.push(Step::SetUp(link.reference()));
    }
    if observed.is_strict(link) {
        steps.push(Step::LoosenReversePath(link.reference()));
    }

    let own = own_address(link, eni);
    let on_link = || observed.addresses.iter().filter(|address| address.link == own.link);
    let strangers: Vec<Step> = on_link()
        .filter(|address| address.net != own.net && is_global_unicast(address.net.addr()))
        .cloned()
        .map(Step::DeleteAddress)
        .collect();
    let has_own = on_link().any(|address| address.net == own.net);
    // With its last address a device loses all its IPv4 routes, in every table; and deleting the
    // first address of a block deletes the others of the block, unless the kernel promotes the
    // next one. Where its own has stayed, adding it is a step too many that does nothing.
    let addresses_change = !has_own || !strangers.is_empty();
    steps.extend(strangers);
    if addresses_change {
        steps.push(Step::AddAddress(own));
    }

    // The kernel drops a link's routes when it goes down, and adds some when it comes up.
    let routes_change = addresses_change || !link.is_up;
    let connected = connected_route(link, eni);
    if routes_change || observed.routes.contains(&connected) {
        // The kernel adds it with the address. Left there, the node would reach its own subnet
        // through this ENI and with this ENI's address.
        steps.push(Step::DeleteRoute(connected));
    }
    for route in table_routes(link, eni) {
        if routes_change || !observed.routes.contains(&route) {
            steps.push(Step::ReplaceRoute(route));
        }
    }
    steps.extend(eni_rule_steps(&observed.rules, eni));
    steps
}

fn mtu_step(link: &Link, options: &HostOptions) -> Vec<Step> {
    let is_wrong = link.mtu != options.eni_mtu;
    is_wrong.then(|| Step::SetMtu { link: link.reference(), mtu: options.eni_mtu }).into_iter().collect()
}

fn own_address(link: &Link, eni: &EniNetwork) -> Address {
    let length = eni.subnet.prefix_len();
    let broadcast = match eni.subnet {
        IpNet::V4(subnet) if length < 31 => Some(subnet.broadcast()),
        _ => None,
    };
    Address {
        link: link.reference(),
        net: IpNet::new(eni.address, length).unwrap_or_else(|_| eni.address.into()),
        broadcast,
    }
}

fn connected_route(link: &Link, eni: &EniNetwork) -> Route {
    Route {
        destination: eni.subnet.trunc(),
        gateway: None,
        link: Some(link.reference()),
        scope: Scope::on_link(Family::of(eni.address)),
        table: RouteTable::MAIN,
        // The kernel names a source in its IPv4 routes only.
        preferred_source: eni.address.is_ipv4().then_some(eni.address),
    }
}

/// The routes of the ENI's own table: its router on the link, and everything through that.
fn table_routes(link: &Link, eni: &EniNetwork) -> [Route; 2] {
    let family = Family::of(eni.address);
    let router = subnet_gateway(eni.subnet);
    let to_router = Route {
        destination: router.into(),
        gateway: None,
        link: Some(link.reference()),
        scope: Scope::on_link(family),
        table: eni.table,
        preferred_source: None,
    };
    let default = Route {
        destination: family.everything(),
        gateway: Some(router),
        scope: Scope::Universe,
        ..to_router.clone()
    };
    [to_router, default]
}

/// A rule of an earlier ENI that had this address would win over a new one, so it goes.
fn eni_rule_steps(observed: &[Rule], eni: &EniNetwork) -> Vec<Step> {
    if eni.is_trunk {
        return Vec::new();
    }
    let wanted = Rule::from_address(priority::FROM_ENI, eni.address, eni.table);
    let is_stale =
        |rule: &&Rule| **rule != wanted && Rule { table: wanted.table, ..(*rule).clone() } == wanted;
    let missing = (!observed.contains(&wanted)).then(|| Step::AddRule(wanted.clone()));
    let stale = observed.iter().filter(is_stale).cloned().map(Step::DeleteRule);
    missing.into_iter().chain(stale).collect()
}

/// Whether an address is one host's, beyond its link: private ones included.
fn is_global_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address == Ipv4Addr::BROADCAST)
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    fn eth1() -> Link {
        Link {
            index: 3,
            name: "eth1".to_owned(),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: 1500,
            is_up: false,
            peer: None,
            peer_namespace: None,
            rp_filter: Some(0),
        }
    }

    fn eni() -> EniNetwork {
        EniNetwork {
            mac: "02:00:00:00:00:01".parse().unwrap(),
            table: RouteTable(2),
            address: Ipv4Addr::new(10, 0, 1, 20).into(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            is_trunk: false,
        }
    }

    #[test]
    fn a_new_eni_is_set_up_from_link_to_rule() {
        let steps = eni_steps(&Observed::default(), &eth1(), &eni(), &HostOptions::default());

        assert_eq!(
            printed(&steps),
            [
                "set mtu of link eth1 to 9001",
                "set link eth1 up",
                "add address 10.0.1.20/24 dev eth1",
                "delete route 10.0.1.0/24 dev eth1 src 10.0.1.20",
                "replace route 10.0.1.1 dev eth1 table 2",
                "replace route default via 10.0.1.1 dev eth1 table 2",
                "add rule 32765: from 10.0.1.20 lookup 2",
            ]
        );
    }

    #[test]
    fn an_eni_of_an_ipv6_cluster_has_the_vpc_router_as_its_gateway() {
        let eni = EniNetwork {
            address: "2001:db8:1:1::20".parse().unwrap(),
            subnet: "2001:db8:1:1::/64".parse().unwrap(),
            table: RouteTable(10_100),
            ..eni()
        };
        let options = HostOptions { eni_mtu: 1500, ..HostOptions::default() };

        let steps = eni_steps(&Observed::default(), &Link { is_up: true, ..eth1() }, &eni, &options);

        assert_eq!(
            printed(&steps),
            [
                "add address 2001:db8:1:1::20/64 dev eth1",
                "delete route 2001:db8:1:1::/64 dev eth1",
                "replace route fe80:ec2::1 dev eth1 table 10100",
                "replace route default via fe80:ec2::1 dev eth1 table 10100",
                "add rule 32765: from 2001:db8:1:1::20 lookup 10100",
            ]
        );
    }

    #[test]
    fn a_trunk_has_no_rule_of_its_own() {
        let trunk = EniNetwork { is_trunk: true, ..eni() };

        let steps = eni_steps(&Observed::default(), &eth1(), &trunk, &HostOptions::default());

        assert!(!printed(&steps).iter().any(|step| step.contains("rule")), "{steps:?}");
    }

    #[test]
    fn a_rule_that_an_earlier_eni_left_is_replaced() {
        let stale = Rule::from_address(32765, Ipv4Addr::new(10, 0, 1, 20).into(), RouteTable(7));

        assert_eq!(
            printed(&eni_rule_steps(&[stale], &eni())),
            ["add rule 32765: from 10.0.1.20 lookup 2", "delete rule 32765: from 10.0.1.20 lookup 7"]
        );
    }

    #[test]
    fn reverse_path_filtering_is_loosened_only_where_it_is_strict() {
        for (all, own, is_strict) in [(0, 0, false), (1, 0, true), (0, 1, true), (2, 1, false), (1, 2, false)]
        {
            let observed = Observed { rp_filter_of_all: all, ..Observed::default() };
            let link = Link { rp_filter: Some(own), ..eth1() };

            assert_eq!(observed.is_strict(&link), is_strict, "all {all}, link {own}");
        }
    }
}
