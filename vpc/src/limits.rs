//! What an instance type can hold.

use std::fmt;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceLimits {
    /// The ENIs that the default network card takes.
    pub enis: u16,
    /// The IPv4 addresses of one ENI, its own included.
    pub ipv4_per_eni: u16,
    /// The ENIs that each network card takes, by card index; the default card is among them.
    pub cards: Vec<u16>,
    /// The index of the default card.
    pub default_card: u16,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// How it runs guests.
    pub hypervisor: Hypervisor,
    /// Whether it is bare metal.
    pub is_bare_metal: bool,
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
