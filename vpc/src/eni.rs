//! An elastic network interface as EC2 and IMDS describe it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{EniId, EniSlot, Family, Mac, Prefix, RouteTable, SubnetId};

/// What an ENI is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EniRole {
    /// The instance's own: device 0 on card 0. It cannot be detached.
    Primary,
    /// Attached later, to carry more addresses.
    Secondary,
}

/// What kind of device EC2 made the ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum EniKind {
    /// An ordinary interface.
    #[default]
    Interface,
    /// Carries branch ENIs behind VLAN ids.
    Trunk,
    /// An Elastic Fabric Adapter with an IP interface.
    Efa,
    /// An Elastic Fabric Adapter without one: no address, never usable for pods.
    EfaOnly,
}

/// The blocks of a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetBlocks {
    /// The IPv4 block.
    pub ipv4: Ipv4Net,
    /// The IPv6 block, if it has one.
    pub ipv6: Option<Ipv6Net>,
}

/// An ENI attached to this instance, with what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// Its identifier.
    pub id: EniId,
    /// Its link-layer address, by which its kernel link is found.
    pub mac: Mac,
    /// Where it is attached.
    pub slot: EniSlot,
    /// What it is for.
    pub role: EniRole,
    /// What kind of device it is.
    pub kind: EniKind,
    /// Whether its tags let us use and change it; one that is not ours still takes its slot.
    pub is_managed: bool,
    /// The subnet it lies in.
    pub subnet: SubnetId,
    /// The IPv4 block of that subnet.
    pub subnet_cidr: Ipv4Net,
    /// Its own address; never given to a pod.
    pub primary_ip: Ipv4Addr,
    /// Its own IPv6 address and the IPv6 block of its subnet, where it has one.
    pub ipv6: Option<(Ipv6Addr, Ipv6Net)>,
    /// The secondary IPs that EC2 assigned one by one.
    pub secondary_ips: Vec<Ipv4Addr>,
    /// The prefixes that EC2 delegated to it.
    pub prefixes: Vec<Prefix>,
}

impl Eni {
    /// Its own address of `family`, with the block of its subnet; none if it has none.
    #[must_use]
    pub fn own(&self, family: Family) -> Option<(IpAddr, IpNet)> {
        match family {
            Family::V4 => Some((self.primary_ip.into(), self.subnet_cidr.into())),
            Family::V6 => self.ipv6.map(|(address, block)| (address.into(), block.into())),
        }
    }

    /// The route table that carries this ENI's pods.
    #[must_use]
    pub fn route_table(&self) -> RouteTable {
        RouteTable::of(self.slot)
    }
}
