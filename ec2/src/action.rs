//! The EC2 actions this crate sends, and what each needs and allows.

use std::fmt;

/// An EC2 action, by the name that EC2, its IAM permissions and its throttling know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Reads ENIs.
    DescribeNetworkInterfaces,
    /// Reads the instance, for the positions its ENIs take.
    DescribeInstances,
    /// Reads what an instance type can hold.
    DescribeInstanceTypes,
    /// Reads subnets and their free addresses.
    DescribeSubnets,
    /// Makes an ENI, with its addresses.
    CreateNetworkInterface,
    /// Attaches an ENI to the instance.
    AttachNetworkInterface,
    /// Changes delete-on-termination or the security groups of an ENI.
    ModifyNetworkInterfaceAttribute,
    /// Detaches an ENI.
    DetachNetworkInterface,
    /// Deletes an ENI.
    DeleteNetworkInterface,
    /// Assigns IPv4 addresses or prefixes to an ENI.
    AssignPrivateIpAddresses,
    /// Takes IPv4 addresses or prefixes from an ENI.
    UnassignPrivateIpAddresses,
    /// Assigns IPv6 prefixes to an ENI.
    AssignIpv6Addresses,
    /// Tags an ENI.
    CreateTags,
}

impl Action {
    /// Every action, in the order of declaration.
    pub const ALL: [Self; 13] = [
        Self::DescribeNetworkInterfaces,
        Self::DescribeInstances,
        Self::DescribeInstanceTypes,
        Self::DescribeSubnets,
        Self::CreateNetworkInterface,
        Self::AttachNetworkInterface,
        Self::ModifyNetworkInterfaceAttribute,
        Self::DetachNetworkInterface,
        Self::DeleteNetworkInterface,
        Self::AssignPrivateIpAddresses,
        Self::UnassignPrivateIpAddresses,
        Self::AssignIpv6Addresses,
        Self::CreateTags,
    ];

    /// The name as EC2 writes it, like `AttachNetworkInterface`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DescribeNetworkInterfaces => "DescribeNetworkInterfaces",
            Self::DescribeInstances => "DescribeInstances",
            Self::DescribeInstanceTypes => "DescribeInstanceTypes",
            Self::DescribeSubnets => "DescribeSubnets",
            Self::CreateNetworkInterface => "CreateNetworkInterface",
            Self::AttachNetworkInterface => "AttachNetworkInterface",
            Self::ModifyNetworkInterfaceAttribute => "ModifyNetworkInterfaceAttribute",
            Self::DetachNetworkInterface => "DetachNetworkInterface",
            Self::DeleteNetworkInterface => "DeleteNetworkInterface",
            Self::AssignPrivateIpAddresses => "AssignPrivateIpAddresses",
            Self::UnassignPrivateIpAddresses => "UnassignPrivateIpAddresses",
            Self::AssignIpv6Addresses => "AssignIpv6Addresses",
            Self::CreateTags => "CreateTags",
        }
    }

    /// Whether the action only reads.
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(
            self,
            Self::DescribeNetworkInterfaces
                | Self::DescribeInstances
                | Self::DescribeInstanceTypes
                | Self::DescribeSubnets
        )
    }

    /// Whether sending the same request twice leaves EC2 as sending it once does, and the second
    /// answer is as good as the first.
    ///
    /// Creating counts, since it carries a client token. Assigning does not: it has no token and
    /// would assign as many again. Attaching and unassigning do not: their second answer is an
    /// error that cannot be told from a real one.
    #[must_use]
    pub const fn is_repeatable(self) -> bool {
        !matches!(
            self,
            Self::AttachNetworkInterface
                | Self::AssignPrivateIpAddresses
                | Self::UnassignPrivateIpAddresses
                | Self::AssignIpv6Addresses
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
