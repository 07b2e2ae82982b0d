//! Asking the kernel what it holds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use vpc::{Family, Mac, RouteTable};

use super::object::{Address, Link, LinkRef, Neighbour, Route, Rule};
use super::{KernelError, Netlink, parse};

/// The links of a namespace by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(BTreeMap<u32, Link>);

impl FromIterator<Link> for Links {
    fn from_iter<T: IntoIterator<Item = Link>>(links: T) -> Self {
        Self(links.into_iter().map(|link| (link.index, link)).collect())
    }
}

impl Links {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }

    pub(crate) fn by_index(&self, index: u32) -> Option<&Link> {
        self.0.get(&index)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Link> {
        self.iter().find(|link| link.name == name)
    }

    pub(crate) fn by_mac(&self, mac: Mac) -> Option<&Link> {
        self.iter().find(|link| link.mac == Some(mac))
    }

    /// The link of that number; one that came after the links were read has a made-up name.
    fn reference(&self, index: u32) -> LinkRef {
        self.0.get(&index).map_or_else(|| LinkRef { index, name: format!("if{index}") }, Link::reference)
    }
}

fn code(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

impl Netlink {
    pub(crate) fn links(&mut self) -> Result<Links, KernelError> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let found = self.dump("list links", &RouteNetlinkMessage::GetLink(question))?;
        Ok(found.iter().filter_map(|message| parse::link(message)).collect())
    }

    pub(crate) fn addresses(&mut self, family: Family, links: &Links) -> Result<Vec<Address>, KernelError> {
        let mut question = AddressMessage::default();
        question.header.family = code(family);
        let found = self.dump("list addresses", &RouteNetlinkMessage::GetAddress(question))?;
        let addresses = found.iter().filter_map(|message| parse::address(message));
        // Of a family that it lacks the kernel tells as of any.
        Ok(addresses
            .filter(|raw| Family::of(raw.net.addr()) == family)
            .map(|raw| Address { link: links.reference(raw.link), net: raw.net, broadcast: raw.broadcast })
            .collect())
    }

    /// The unicast routes of one table, or of all.
    pub(crate) fn routes(
        &mut self,
        family: Family,
        table: Option<RouteTable>,
        links: &Links,
    ) -> Result<Vec<Route>, KernelError> {
        let mut question = RouteMessage::default();
        question.header.address_family = code(family);
        if let Some(table) = table {
            question.attributes.push(RouteAttribute::Table(table.0));
        }
        let found = self.dump("list routes", &RouteNetlinkMessage::GetRoute(question))?;
        let routes = found.iter().filter_map(|message| parse::route(message));
        Ok(routes
            .filter(|raw| Family::of(raw.destination.addr()) == family)
            .filter(|raw| table.is_none_or(|table| raw.table == table))
            .map(|raw| Route {
                destination: raw.destination,
                gateway: raw.gateway,
                link: raw.link.map(|index| links.reference(index)),
                scope: raw.scope,
                table: raw.table,
                preferred_source: raw.preferred_source,
            })
            .collect())
    }

    pub(crate) fn rules(&mut self, family: Family) -> Result<Vec<Rule>, KernelError> {
        let mut question = RuleMessage::default();
        question.header.family = code(family);
        let found = self.dump("list rules", &RouteNetlinkMessage::GetRule(question))?;
        let rules = found.iter().filter_map(|message| parse::rule(message));
        Ok(rules.filter(|rule| rule.family == family).collect())
    }

    /// The permanent neighbours.
    pub(crate) fn neighbours(
        &mut self,
        family: Family,
        links: &Links,
    ) -> Result<Vec<Neighbour>, KernelError> {
        let mut question = NeighbourMessage::default();
        question.header.family = code(family);
        let found = self.dump("list neighbours", &RouteNetlinkMessage::GetNeighbour(question))?;
        let neighbours = found.iter().filter_map(|message| parse::neighbour(message));
        Ok(neighbours
            .filter(|raw| raw.is_permanent)
            .map(|raw| Neighbour { link: links.reference(raw.link), address: raw.address, mac: raw.mac })
            .collect())
    }
}

/// The single address that a block is, if it is one.
pub(crate) fn single(block: ipnet::IpNet) -> Option<IpAddr> {
    (block.prefix_len() == block.max_prefix_len()).then(|| block.addr())
}
