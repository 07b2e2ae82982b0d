//! The kernel's messages as our objects.
//!
//! Only the attributes that we look at are read. What a newer kernel adds, or another driver
//! reports in its own way, can then not make a dump unreadable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLA_TYPE_MASK, NlaBuffer, NlasIterator};
use vpc::{Family, Mac, RouteTable};

use super::object::Scope;

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEIGHBOUR_HEADER: usize = 12;

/// The place of `rp_filter` in the kernel's list of IPv4 link settings.
const RP_FILTER_POSITION: usize = 7;
const IFLA_INET_CONF: u16 = 1;

/// An address as a dump tells it, its link by number.
pub(super) struct RawAddress {
    pub(super) link: u32,
    pub(super) net: IpNet,
    pub(super) broadcast: Option<Ipv4Addr>,
}

/// A route as a dump tells it, its link by number.
pub(super) struct RawRoute {
    pub(super) destination: IpNet,
    pub(super) gateway: Option<IpAddr>,
    pub(super) link: Option<u32>,
    pub(super) scope: Scope,
    pub(super) table: RouteTable,
    pub(super) preferred_source: Option<IpAddr>,
}

/// A neighbour as a dump tells it, its link by number.
pub(super) struct RawNeighbour {
    pub(super) link: u32,
    pub(super) address: IpAddr,
    pub(super) mac: Mac,
    pub(super) is_permanent: bool,
}

/// The attributes after a header of `header` bytes; a broken one ends the list.
fn attributes(message: &[u8], header: usize) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
    nested(message.get(header..).unwrap_or_default())
}

fn nested(bytes: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|attribute: NlaBuffer<&[u8]>| (attribute.kind() & NLA_TYPE_MASK, attribute.value().to_vec()))
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

fn mac(value: &[u8]) -> Option<Mac> {
    Some(Mac::new(value.try_into().ok()?))
}

fn family(code: u8) -> Option<Family> {
    match i32::from(code) {
        libc::AF_INET => Some(Family::V4),
        libc::AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

pub(crate) fn link(message: &[u8]) -> Option<super::Link> {
    let index = number(message.get(4..)?)?;
    let flags = number(message.get(8..)?)?;
    let mut link = super::Link {
        index,
        name: String::new(),
        mac: None,
        mtu: 0,
        is_up: flags & libc::IFF_UP.cast_unsigned() != 0,
        peer: None,
        peer_namespace: None,
        rp_filter: None,
    };
    for (kind, value) in attributes(message, LINK_HEADER) {
        match kind {
            libc::IFLA_ADDRESS => link.mac = mac(&value),
            libc::IFLA_IFNAME => link.name = text(&value),
            libc::IFLA_MTU => link.mtu = number(&value).unwrap_or(0),
            libc::IFLA_LINK => link.peer = number(&value),
            // A negative number is none.
            libc::IFLA_LINK_NETNSID => {
                link.peer_namespace = number(&value).filter(|namespace| namespace.cast_signed() >= 0);
            }
            libc::IFLA_AF_SPEC => link.rp_filter = rp_filter(&value),
            _ => {}
        }
    }
    Some(link)
}

fn rp_filter(af_spec: &[u8]) -> Option<i32> {
    let (_, inet) = nested(af_spec).find(|(kind, _)| i32::from(*kind) == libc::AF_INET)?;
    let (_, conf) = nested(&inet).find(|(kind, _)| *kind == IFLA_INET_CONF)?;
    number(conf.get(RP_FILTER_POSITION * 4..)?).map(u32::cast_signed)
}

pub(super) fn address(message: &[u8]) -> Option<RawAddress> {
    let length = *message.get(1)?;
    let link = number(message.get(4..)?)?;
    let (mut local, mut peer, mut broadcast) = (None, None, None);
    for (kind, value) in attributes(message, ADDRESS_HEADER) {
        match kind {
            libc::IFA_LOCAL => local = ip(&value),
            libc::IFA_ADDRESS => peer = ip(&value),
            libc::IFA_BROADCAST => {
                broadcast = ip(&value).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
            }
            _ => {}
        }
    }
    Some(RawAddress { link, net: IpNet::new(local.or(peer)?, length).ok()?, broadcast })
}

pub(super) fn route(message: &[u8]) -> Option<RawRoute> {
    let [family_code, length, _, _, table, _, scope, kind, ..] = *message else { return None };
    let family = family(family_code)?;
    if kind != libc::RTN_UNICAST {
        return None;
    }
    let mut route = RawRoute {
        destination: family.everything(),
        gateway: None,
        link: None,
        scope: match scope {
            libc::RT_SCOPE_UNIVERSE => Scope::Universe,
            libc::RT_SCOPE_LINK => Scope::Link,
            _ => Scope::Other,
        },
        table: RouteTable(table.into()),
        preferred_source: None,
    };
    for (kind, value) in attributes(message, ROUTE_HEADER) {
        match kind {
            libc::RTA_DST => route.destination = IpNet::new(ip(&value)?, length).ok()?,
            libc::RTA_GATEWAY => route.gateway = ip(&value),
            libc::RTA_OIF => route.link = number(&value),
            libc::RTA_PREFSRC => route.preferred_source = ip(&value),
            libc::RTA_TABLE => route.table = RouteTable(number(&value)?),
            _ => {}
        }
    }
    Some(route)
}

pub(super) fn rule(message: &[u8]) -> Option<super::Rule> {
    // Attributes as include/uapi/linux/fib_rules.h numbers them.
    const DST: u16 = 1;
    const SRC: u16 = 2;
    const IIFNAME: u16 = 3;
    const PRIORITY: u16 = 6;
    const FWMARK: u16 = 10;
    const SUPPRESS_PREFIXLEN: u16 = 14;
    const TABLE: u16 = 15;
    const FWMASK: u16 = 16;
    const PAD: u16 = 18;
    const PROTOCOL: u16 = 21;
    const IP_PROTOCOL: u16 = 22;
    const TO_TABLE: u8 = 1;
    const INVERT: u32 = 2;

    let [family_code, to_length, from_length, tos, table, _, _, action, ..] = *message else { return None };
    let family = family(family_code)?;
    let flags = number(message.get(8..)?)?;
    let mut rule = super::Rule::new(family, 0, RouteTable(table.into()));
    rule.is_foreign = action != TO_TABLE || tos != 0 || flags & INVERT != 0;
    let (mut mark, mut mask) = (None, None);
    for (kind, value) in attributes(message, ROUTE_HEADER) {
        match kind {
            DST => rule.to = IpNet::new(ip(&value)?, to_length).ok(),
            SRC => rule.from = IpNet::new(ip(&value)?, from_length).ok(),
            IIFNAME => rule.input = Some(text(&value)),
            PRIORITY => rule.priority = number(&value)?,
            FWMARK => mark = number(&value),
            FWMASK => mask = number(&value),
            TABLE => rule.table = Some(RouteTable(number(&value)?)),
            IP_PROTOCOL => rule.protocol = value.first().copied(),
            PROTOCOL | PAD => {}
            SUPPRESS_PREFIXLEN if number(&value) == Some(u32::MAX) => {}
            _ => rule.is_foreign = true,
        }
    }
    if mark.is_some() || mask.is_some() {
        rule.mark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
    }
    Some(rule)
}

pub(super) fn neighbour(message: &[u8]) -> Option<RawNeighbour> {
    let link = number(message.get(4..)?)?;
    let state = u16::from_ne_bytes(message.get(8..10)?.try_into().ok()?);
    let (mut address, mut lladdr) = (None, None);
    for (kind, value) in attributes(message, NEIGHBOUR_HEADER) {
        match kind {
            libc::NDA_DST => address = ip(&value),
            libc::NDA_LLADDR => lladdr = mac(&value),
            _ => {}
        }
    }
    Some(RawNeighbour {
        link,
        address: address?,
        mac: lladdr?,
        is_permanent: state & libc::NUD_PERMANENT != 0,
    })
}
