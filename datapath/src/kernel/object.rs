//! Links, addresses, routes, rules and neighbours: as the kernel holds them, and as we want them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use vpc::{Family, Mac, RouteTable};

/// A link's number, and its name for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkRef {
    pub(crate) index: u32,
    pub(crate) name: String,
}

/// A link that the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    pub(crate) is_up: bool,
    /// The number of the link that this one is paired with or stands on; of a veth, the other
    /// end's number in its namespace.
    pub(crate) peer: Option<u32>,
    /// The number that the namespace of its other end has here, if that is another one.
    pub(crate) peer_namespace: Option<u32>,
    /// `rp_filter` of the link by itself; the kernel uses the larger of it and that of `all`.
    pub(crate) rp_filter: Option<i32>,
}

impl Link {
    pub(crate) fn reference(&self) -> LinkRef {
        LinkRef { index: self.index, name: self.name.clone() }
    }
}

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: LinkRef,
    /// The address with the length of the block it came from.
    pub(crate) net: IpNet,
    pub(crate) broadcast: Option<Ipv4Addr>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.net, self.link.name)
    }
}

/// How far away a route's destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Behind a gateway.
    Universe,
    /// On the link itself.
    Link,
    /// Another one, which we never set.
    Other,
}

impl Scope {
    /// Of a route to what is on the link itself. IPv6 routes have no scope; the kernel tells 0.
    pub(crate) fn on_link(family: Family) -> Self {
        match family {
            Family::V4 => Self::Link,
            Family::V6 => Self::Universe,
        }
    }
}

/// A route to a block, through a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    /// The link it leads to; in a deletion, none means any.
    pub(crate) link: Option<LinkRef>,
    pub(crate) scope: Scope,
    pub(crate) table: RouteTable,
    /// The source address of packets that the node itself sends.
    pub(crate) preferred_source: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.destination.prefix_len() == 0 {
            f.write_str("default")?;
        } else {
            write_block(f, self.destination)?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = &self.link {
            write!(f, " dev {}", link.name)?;
        }
        if let Some(source) = self.preferred_source {
            write!(f, " src {source}")?;
        }
        if self.table != RouteTable::MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// A routing rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) family: Family,
    pub(crate) priority: u32,
    pub(crate) from: Option<IpNet>,
    pub(crate) to: Option<IpNet>,
    pub(crate) input: Option<String>,
    /// Mark and mask.
    pub(crate) mark: Option<(u32, u32)>,
    /// The number of an IP protocol.
    pub(crate) protocol: Option<u8>,
    /// The table it leads to; in a deletion, none means any.
    pub(crate) table: Option<RouteTable>,
    /// It has selectors or an action besides these, so it is nobody's of ours.
    pub(crate) is_foreign: bool,
}

impl Rule {
    /// A rule without selectors yet.
    pub(crate) fn new(family: Family, priority: u32, table: impl Into<Option<RouteTable>>) -> Self {
        Self {
            family,
            priority,
            from: None,
            to: None,
            input: None,
            mark: None,
            protocol: None,
            table: table.into(),
            is_foreign: false,
        }
    }

    /// The rule that leads packets from `address` to `table`.
    pub(crate) fn from_address(priority: u32, address: IpAddr, table: impl Into<Option<RouteTable>>) -> Self {
        Self { from: Some(address.into()), ..Self::new(Family::of(address), priority, table) }
    }

    /// Whether nothing but its priority selects packets.
    pub(crate) fn takes_all(&self) -> bool {
        !self.is_foreign && *self == Self::new(self.family, self.priority, self.table)
    }

    /// The rule that leads packets to `address` to `table`.
    pub(crate) fn to_address(priority: u32, address: IpAddr, table: impl Into<Option<RouteTable>>) -> Self {
        Self { to: Some(address.into()), ..Self::new(Family::of(address), priority, table) }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match self.from {
            Some(from) => write_block(f, from)?,
            None => f.write_str("all")?,
        }
        if let Some(to) = self.to {
            f.write_str(" to ")?;
            write_block(f, to)?;
        }
        if let Some(input) = &self.input {
            write!(f, " iif {input}")?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, " ipproto {protocol}")?;
        }
        match self.table {
            Some(RouteTable::MAIN) => f.write_str(" lookup main"),
            Some(RouteTable::LOCAL) => f.write_str(" lookup local"),
            Some(table) => write!(f, " lookup {table}"),
            None => Ok(()),
        }
    }
}

/// A neighbour that needs no asking for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) link: LinkRef,
    pub(crate) address: IpAddr,
    pub(crate) mac: Mac,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} dev {}", self.address, self.mac, self.link.name)
    }
}

/// Writes a single address without its length, as `ip` does.
fn write_block(f: &mut fmt::Formatter<'_>, block: IpNet) -> fmt::Result {
    if block.prefix_len() == block.max_prefix_len() {
        write!(f, "{}", block.addr())
    } else {
        write!(f, "{block}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_prints_as_ip_prints_it() {
        let address: IpAddr = "10.0.1.7".parse().unwrap();
        let marked = Rule { mark: Some((0x80, 0x80)), ..Rule::new(Family::V4, 1024, RouteTable::MAIN) };

        assert_eq!(
            Rule::from_address(1536, address, RouteTable(3)).to_string(),
            "1536: from 10.0.1.7 lookup 3"
        );
        assert_eq!(
            Rule::to_address(512, address, RouteTable::MAIN).to_string(),
            "512: from all to 10.0.1.7 lookup main"
        );
        assert_eq!(marked.to_string(), "1024: from all fwmark 0x80/0x80 lookup main");
    }
}
