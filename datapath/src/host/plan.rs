//! The difference between a node's network as wanted and as observed, as ordered steps.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use vpc::{RouteTable, subnet_gateway};

use crate::kernel::{Address, Family, KernelError, Link, Links, Netlink, Route, Rule, Scope, Step, sysctl};
use crate::wanted::{EniNetwork, HostOptions, priority};

/// `rp_filter` that drops packets whose answers would leave by another link.
const STRICT: i32 = 1;

/// What the kernel holds of the node's own network.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    pub(super) links: Links,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    pub(super) rules: Vec<Rule>,
    /// `rp_filter` of `all`; the kernel uses the larger of it and the link's own.
    pub(super) rp_filter_of_all: i32,
}

impl Observed {
    pub(super) fn read(netlink: &mut Netlink) -> Result<Self, KernelError> {
        let links = netlink.links()?;
        Ok(Self {
            addresses: netlink.addresses(Family::V4, &links)?,
            routes: netlink.routes(Family::V4, None, &links)?,
            rules: netlink.rules(Family::V4)?,
            links,
            rp_filter_of_all: sysctl::read("net/ipv4/conf/all/rp_filter")
                .ok()
                .and_then(|value| value.parse().ok())
                .unwrap_or(0),
        })
    }

    pub(super) fn is_strict(&self, link: &Link) -> bool {
        link.rp_filter.is_some_and(|own| own.max(self.rp_filter_of_all) == STRICT)
    }
}

/// The steps for the primary ENI's link: the operating system owns its addresses and routes.
pub(super) fn primary_steps(observed: &Observed, link: &Link, options: &HostOptions) -> Vec<Step> {
    let mut steps = mtu_step(link, options);
    if observed.is_strict(link) {
        steps.push(Step::LoosenReversePath(link.reference()));
    }
    steps
}

/// The steps that bring the node's rules to what `options` ask for; rules of others stay.
pub(super) fn rule_steps(observed: &[Rule], options: &HostOptions) -> Vec<Step> {
    let mark = options.needs_mark().then(|| Rule {
        mark: Some((options.connmark, options.connmark)),
        ..Rule::new(Family::V4, priority::MARK, RouteTable::MAIN)
    });
    let services = options.external_service_cidrs.iter().map(|block| Rule {
        to: Some(IpNet::V4(block.trunc())),
        ..Rule::new(Family::V4, priority::EXTERNAL_SERVICE, RouteTable::MAIN)
    });
    let mut wanted: Vec<Rule> = Vec::new();
    for rule in mark.into_iter().chain(services) {
        if !wanted.contains(&rule) {
            wanted.push(rule);
        }
    }

    let missing = wanted.iter().filter(|rule| !observed.contains(rule)).cloned().map(Step::AddRule);
    let stale = observed.iter().filter(|rule| is_of_this_node(rule) && !wanted.contains(rule));
    // New rules first, so that no packet finds neither.
    missing.chain(stale.cloned().map(Step::DeleteRule)).collect()
}

/// Whether a rule has the shape of those that [`rule_steps`] makes, whatever mark or block it
/// names: one from before the options changed.
fn is_of_this_node(rule: &Rule) -> bool {
    let plain = !rule.is_foreign
        && rule.from.is_none()
        && rule.input.is_none()
        && rule.table == Some(RouteTable::MAIN);
    plain
        && match rule.priority {
            priority::MARK => rule.to.is_none() && rule.mark.is_some_and(|(mark, mask)| mark == mask),
            priority::EXTERNAL_SERVICE => rule.to.is_some() && rule.mark.is_none(),
            _ => false,
        }
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
    // first address of a block deletes the others of the block.
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
    Address {
        link: link.reference(),
        net: IpNet::new(eni.address.into(), length).unwrap_or_else(|_| IpAddr::from(eni.address).into()),
        broadcast: (length < 31).then(|| eni.subnet.broadcast()),
    }
}

fn connected_route(link: &Link, eni: &EniNetwork) -> Route {
    Route {
        destination: IpNet::V4(eni.subnet.trunc()),
        gateway: None,
        link: Some(link.reference()),
        scope: Scope::Link,
        table: RouteTable::MAIN,
        preferred_source: Some(eni.address.into()),
    }
}

/// The routes of the ENI's own table: its router on the link, and everything through that.
fn table_routes(link: &Link, eni: &EniNetwork) -> [Route; 2] {
    let router = IpAddr::from(subnet_gateway(eni.subnet));
    let to_router = Route {
        destination: router.into(),
        gateway: None,
        link: Some(link.reference()),
        scope: Scope::Link,
        table: eni.table,
        preferred_source: None,
    };
    let default = Route {
        destination: Family::V4.everything(),
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
    let wanted = Rule::from_address(priority::FROM_ENI, eni.address.into(), eni.table);
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

    fn options() -> HostOptions {
        HostOptions {
            external_service_cidrs: vec!["10.100.3.4/16".parse().unwrap()],
            ..HostOptions::default()
        }
    }

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
            rp_filter: Some(0),
        }
    }

    fn eni() -> EniNetwork {
        EniNetwork {
            mac: "02:00:00:00:00:01".parse().unwrap(),
            table: RouteTable(2),
            address: Ipv4Addr::new(10, 0, 1, 20),
            subnet: "10.0.1.0/24".parse().unwrap(),
            is_trunk: false,
        }
    }

    #[test]
    fn a_fresh_node_gets_its_mark_and_service_rules() {
        assert_eq!(
            printed(&rule_steps(&[], &options())),
            [
                "add rule 1024: from all fwmark 0x80/0x80 lookup main",
                "add rule 1535: from all to 10.100.0.0/16 lookup main"
            ]
        );
    }

    #[test]
    fn rules_that_are_right_need_no_step() {
        let observed: Vec<Rule> = rule_steps(&[], &options())
            .into_iter()
            .filter_map(|step| if let Step::AddRule(rule) = step { Some(rule) } else { None })
            .collect();

        assert_eq!(rule_steps(&observed, &options()), []);
    }

    #[test]
    fn rules_of_earlier_options_go_and_those_of_others_stay() {
        let marked =
            |priority, mark| Rule { mark: Some(mark), ..Rule::new(Family::V4, priority, RouteTable::MAIN) };
        let observed = [marked(1024, (0x40, 0x40)), marked(1024, (0x40, 0xff)), marked(1023, (0x40, 0x40))];
        let silent = HostOptions { node_port: false, external_snat: true, ..HostOptions::default() };

        assert_eq!(
            printed(&rule_steps(&observed, &silent)),
            ["delete rule 1024: from all fwmark 0x40/0x40 lookup main"]
        );
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
