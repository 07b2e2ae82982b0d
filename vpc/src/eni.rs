//! An elastic network interface as EC2 and IMDS describe it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{EniId, EniSlot, Mac, Prefix, RouteTable, SubnetId};

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
    /// The secondary IPs that EC2 assigned one by one.
    pub secondary_ips: Vec<Ipv4Addr>,
    /// The prefixes that EC2 delegated to it.
    pub prefixes: Vec<Prefix>,
}

impl Eni {
    /// The route table that carries this ENI's pods.
    #[must_use]
    pub fn route_table(&self) -> RouteTable {
        RouteTable::of(self.slot)
    }
}
