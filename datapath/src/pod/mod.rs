//! One pod's network, from both sides of its veth pairs.

mod add;
mod check;
mod delete;
mod plan;

use std::fmt;
use std::net::IpAddr;

use crate::kernel::{KernelError, NetnsError};

pub use add::add;
pub use check::check;
pub use delete::delete;

/// Why a pod's network could not be built or looked at. Whatever was made has been undone.
///
/// The texts begin as amazon-vpc-cni-k8s words them, since people search for these, and hold the
/// cause; there is no chain behind them.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// A namespace cannot be used.
    #[error("SetupPodNetwork: failed to setup veth pair: failed to setup veth network: {0}")]
    Netns(NetnsError),
    /// The pod has an interface of that name already.
    #[error(
        "SetupPodNetwork: failed to setup veth pair: failed to setup veth network: file exists: \
         the pod has an interface {interface} already"
    )]
    InterfaceExists {
        /// Its name.
        interface: String,
    },
    /// The host's end would need a name that another, running pod's link has.
    #[error(
        "SetupPodNetwork: failed to setup veth pair: failed to setup veth network: \
         link {link} is in use: {address} is reached through it"
    )]
    HostLinkInUse {
        /// The link's name.
        link: String,
        /// An address that a route leads to through it.
        address: IpAddr,
    },
    /// The veth pair could not be made.
    #[error("SetupPodNetwork: failed to setup veth pair: failed to setup veth network: {0}")]
    Pair(KernelError),
    /// The pod's side could not be made.
    #[error(
        "SetupPodNetwork: failed to setup veth pair: failed to setup veth network: setup NS network: {0}"
    )]
    PodSide(KernelError),
    /// The host's side could not be made.
    #[error("SetupPodNetwork: unable to setup IP based container routes and rules: {0}")]
    HostSide(KernelError),
    /// The kernel could not be asked.
    #[error("look at pod network: {0}")]
    Observe(KernelError),
}

impl From<NetnsError> for PodError {
    fn from(error: NetnsError) -> Self {
        Self::Netns(error)
    }
}

/// What a pod lacks, or has otherwise than wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference(String);

impl Difference {
    /// The difference that `text` describes.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What could not be removed; everything else is gone.
#[derive(Debug)]
pub struct TeardownErrors(pub Vec<KernelError>);

impl fmt::Display for TeardownErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("; ")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for TeardownErrors {}
