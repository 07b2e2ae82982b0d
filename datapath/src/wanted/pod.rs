//! A pod's interfaces, one per address that it was given.

use std::net::IpAddr;

use vpc::{PodName, RouteTable};

/// What a pod should have: one interface per allocation, in the order of the allocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    /// Whose network it is; used in messages only.
    pub pod: PodName,
    /// The interfaces; the first one carries the pod's default route.
    pub interfaces: Vec<PodInterface>,
}

/// A veth pair between the pod and the host, its address and what leads there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInterface {
    /// The name of the host's end.
    pub host_veth: String,
    /// The name of the pod's end.
    pub container_interface: String,
    /// The interface's number in the pod, from 0.
    ///
    /// Number 0 has its routes in the pod's main table. A later number n has them in the pod's
    /// table n, and a rule that leads there from its address.
    pub nic: u8,
    /// The pod's address.
    pub address: IpAddr,
    /// The host's route table of the ENI that the address belongs to. For [`RouteTable::MAIN`]
    /// no rule from the address is needed.
    pub table: RouteTable,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
}

/// A running pod's interface as the node knows it: what leads to and from its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodOnHost {
    /// Whose it is; the name of its host veth follows from it.
    pub pod: PodName,
    /// The interface's number in the pod, from 0.
    pub nic: u8,
    /// The pod's address.
    pub address: IpAddr,
    /// The route table of the ENI that the address belongs to.
    pub table: RouteTable,
}
