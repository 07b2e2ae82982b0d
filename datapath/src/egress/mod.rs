//! A pod's way to the other IP family through its node: IPv4 for pods with IPv6 addresses, and
//! the other way round.
//!
//! The pod gets a second veth pair and an address of a block that is the same on every node. What
//! it sends there leaves the node with the node's own address, by the packet filter's rules for
//! the block, which the daemon makes once ([`crate::wanted::nft`]).

mod add;
mod check;
mod delete;
mod plan;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use vpc::{Family, Mac, RouteTable};

use crate::kernel::{KernelError, Links, Netlink, NetnsError, single};

pub use add::add;
pub use check::check;
pub use delete::{delete_link, delete_route};
pub(crate) use plan::{LINK_LOCAL_PREFIX, link_local, route};

/// A pod's link to the other family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressNetwork {
    /// The interface that the pod has already. If `address` is an IPv6 one, IPv6 is turned off on
    /// it, so that the pod sends none by it.
    pub pod_interface: String,
    /// The pod's address, out of `block`.
    pub address: IpAddr,
    /// The block of all pods' addresses on this node.
    pub block: IpNet,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
}

impl EgressNetwork {
    /// The name of the pod's end.
    #[must_use]
    pub fn interface(&self) -> &'static str {
        interface(self.block)
    }
}

/// The name of the end in pods with addresses of `block`.
#[must_use]
pub fn interface(block: IpNet) -> &'static str {
    if block.addr().is_ipv4() { "v4if0" } else { "v6if0" }
}

/// The first address of `block`, which stands for the node on the link of every pod.
///
/// Pods with IPv6 egress reach the node by its link-local address instead; nobody has the first
/// address there, and no pod gets it.
#[must_use]
pub fn gateway(block: IpNet) -> IpAddr {
    match block {
        IpNet::V4(block) => Ipv4Addr::from_bits(block.network().to_bits().saturating_add(1)).into(),
        IpNet::V6(block) => Ipv6Addr::from_bits(block.network().to_bits().saturating_add(1)).into(),
    }
}

/// Both ends of the pair that [`add`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressEnds {
    /// The name of the host's end: `veth` and eight random digits.
    pub host_veth: String,
    /// Its link-layer address.
    pub host_mac: Mac,
    /// The name of the pod's end.
    pub container_interface: &'static str,
    /// Its link-layer address.
    pub container_mac: Mac,
}

/// Why a pod's egress could not be built or looked at. Whatever was made has been undone.
///
/// The texts hold the cause; there is no chain behind them.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// A namespace cannot be used.
    #[error("{0}")]
    Netns(#[from] NetnsError),
    /// The pod has the interface already.
    #[error("container veth name ({container:?}) peer provided ({host:?}) already exists")]
    InterfaceExists {
        /// Its name in the pod.
        container: String,
        /// The name that the host's end would have had.
        host: String,
    },
    /// The veth pair could not be made.
    #[error("failed to make veth pair: {0}")]
    Pair(KernelError),
    /// The pod's side could not be made.
    #[error("failed to set up the pod's side: {0}")]
    PodSide(KernelError),
    /// The host's side could not be made.
    #[error("failed to set up the host's side: {0}")]
    HostSide(KernelError),
    /// The kernel could not be asked.
    #[error("look at egress network: {0}")]
    Observe(KernelError),
}

/// The addresses of `block` that a route on the host leads to, whoever says that they are free.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked; then none may be presumed free.
pub fn addresses_in_use(host: &mut Netlink, block: IpNet) -> Result<BTreeSet<IpAddr>, KernelError> {
    let family = Family::of(block.addr());
    let routes = host.routes(family, Some(RouteTable::MAIN), &Links::default())?;
    let single_ones = routes.into_iter().filter_map(|route| single(route.destination));
    Ok(single_ones.filter(|address| block.contains(address)).collect())
}
