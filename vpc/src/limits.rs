//! What an instance type can hold.
//!
//! The table is `data/instance-types.txt`, turned into constants when the crate is built, so
//! that a look-up is a binary search over static memory.

use std::borrow::Cow;
use std::fmt;

pub mod max_pods;
mod table;

/// How an instance type runs guests; decides whether it takes prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hypervisor {
    /// The Nitro hypervisor.
    Nitro,
    /// Xen, on older generations.
    Xen,
    /// EC2 does not say; bare metal as a rule.
    Unknown,
}

/// The limits of one instance type, as DescribeInstanceTypes reports them.
///
/// The fields are public so that an answer of DescribeInstanceTypes about a type that the table
/// does not know becomes the same value; its cards are then owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceLimits {
    /// The ENIs that the default network card takes.
    pub enis: u16,
    /// The IPv4 addresses of one ENI, its own included.
    pub ipv4_per_eni: u16,
    /// The ENIs that each network card takes, by card index; the default card is among them.
    pub cards: Cow<'static, [u16]>,
    /// The index of the default card.
    pub default_card: u16,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// How it runs guests.
    pub hypervisor: Hypervisor,
    /// Whether it is bare metal.
    pub is_bare_metal: bool,
}

impl InstanceLimits {
    /// The limits of a type such as `m5.large`; nothing when the table does not know it.
    pub fn of(instance_type: &str) -> Option<&'static Self> {
        table::find(instance_type)
    }

    /// Every known type with its limits, in the order of their names' bytes.
    pub fn all() -> impl ExactSizeIterator<Item = (&'static str, &'static Self)> {
        table::all()
    }

    /// Whether its ENIs take prefixes: /28 of IPv4, /80 of IPv6.
    pub fn supports_prefixes(&self) -> bool {
        self.hypervisor == Hypervisor::Nitro || self.is_bare_metal
    }

    /// The IPv4 addresses of one ENI that pods can have, or the prefixes it takes instead.
    pub fn slots_per_eni(&self) -> u16 {
        self.ipv4_per_eni.saturating_sub(1)
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nitro => "nitro",
            Self::Xen => "xen",
            Self::Unknown => "unknown",
        })
    }
}
