//! What the kernel holds of the node's own network.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vpc::{Family, RouteTable};

use crate::kernel::{Address, KernelError, Link, Links, Netlink, Route, Rule, single, sysctl};
use crate::wanted::priority;

/// Tables that ENIs of network card 0 can have; those of other cards begin at [`CARD_TABLES`].
const ENI_TABLES: std::ops::RangeInclusive<u32> = 2..=33;
const CARD_TABLES: u32 = 10_000;

/// `rp_filter` that drops packets whose answers would leave by another link.
const STRICT: i32 = 1;

/// Links, addresses, routes and rules of a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    pub(super) links: Links,
    /// Of the family of pods.
    pub(super) addresses: Vec<Address>,
    /// Of the family of pods.
    pub(super) routes: Vec<Route>,
    /// Of both families, in the kernel's order.
    pub(super) rules: Vec<Rule>,
    /// Of the family that is not the pods'.
    pub(super) other_family: InUse,
    /// `rp_filter` of `all`; the kernel uses the larger of it and the link's own.
    pub(super) rp_filter_of_all: i32,
}

/// Of a family, what a rule of an ENI may still be there for. Read only where there is such a rule:
/// a node has none in the family that is not the pods', unless it had pods in it once.
#[derive(Debug, Clone, Default)]
pub(super) struct InUse {
    /// Addresses of links.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Tables with a route.
    pub(super) tables: BTreeSet<RouteTable>,
}

impl InUse {
    fn read(netlink: &mut Netlink, family: Family, links: &Links) -> Result<Self, KernelError> {
        let addresses = netlink.addresses(family, links)?.into_iter().map(|address| address.net.addr());
        let routes = netlink.routes(family, None, links)?.into_iter().map(|route| route.table);
        Ok(Self { addresses: addresses.collect(), tables: routes.collect() })
    }
}

impl Observed {
    pub(super) fn read(netlink: &mut Netlink, family: Family) -> Result<Self, KernelError> {
        let links = netlink.links()?;
        let mut rules = Vec::new();
        for family in Family::BOTH {
            rules.append(&mut netlink.rules(family)?);
        }
        let mut other_family = InUse::default();
        let stranger = rules.iter().find(|rule| rule.family != family && eni_of(rule).is_some());
        if let Some(rule) = stranger {
            other_family = InUse::read(netlink, rule.family, &links)?;
        }
        Ok(Self {
            addresses: netlink.addresses(family, &links)?,
            routes: netlink.routes(family, None, &links)?,
            rules,
            other_family,
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

/// The address and the table of the ENI that a rule has the shape to be of.
pub(super) fn eni_of(rule: &Rule) -> Option<(IpAddr, RouteTable)> {
    let (source, table) = (single(rule.from?)?, rule.table?);
    let is_plain = *rule == Rule::from_address(priority::FROM_ENI, source, table);
    let is_of_an_eni = ENI_TABLES.contains(&table.0) || table.0 >= CARD_TABLES;
    (is_plain && is_of_an_eni).then_some((source, table))
}
