//! The actions in typed form: what a caller asks and what EC2 answers.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use super::eni::{ConnectionTracking, Eni, InterfaceType};
use super::instance::Instance;
use super::limits::InstanceType;
use super::subnet::Subnet;

/// A filter of a Describe action: any of `values` matches, `*` and `?` are wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// E.g. `attachment.instance-id` or `tag:Name`.
    pub name: String,
    /// Accepted values.
    pub values: Vec<String>,
}

/// Which part of a long answer is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// At most so many.
    pub max_results: Option<u32>,
    /// Continue where the last answer ended.
    pub next_token: Option<String>,
}

/// A Describe action: ids, filters and page. Empty ids and filters mean everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Describe {
    /// The ids (or instance type names) asked for.
    pub ids: Vec<String>,
    /// Further conditions, all of which must hold.
    pub filters: Vec<Filter>,
    /// The part wanted.
    pub page: Page,
}

/// `CreateNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreateNetworkInterface {
    /// Subnet to take addresses from.
    pub subnet_id: String,
    /// Free text.
    pub description: String,
    /// Security groups; empty means the VPC's default group.
    pub groups: Vec<String>,
    /// `PrivateIpAddress`: the primary address.
    pub primary_ip: Option<Ipv4Addr>,
    /// `PrivateIpAddresses`: addresses with their `Primary` flag.
    pub private_ips: Vec<(Ipv4Addr, bool)>,
    /// `SecondaryPrivateIpAddressCount`.
    pub secondary_count: Option<u16>,
    /// `Ipv4PrefixCount`.
    pub prefix_count: Option<u16>,
    /// `Ipv4Prefixes`.
    pub prefixes: Vec<Ipv4Net>,
    /// `Ipv6AddressCount`; none leaves it to the subnet.
    pub ipv6_count: Option<u16>,
    /// `Ipv6PrefixCount`.
    pub ipv6_prefix_count: Option<u16>,
    /// `InterfaceType`.
    pub kind: InterfaceType,
    /// Connection tracking timeouts.
    pub connection_tracking: Option<ConnectionTracking>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Makes a repeat harmless.
    pub client_token: Option<String>,
}

/// `AttachNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachNetworkInterface {
    /// The ENI.
    pub eni_id: String,
    /// The instance.
    pub instance_id: String,
    /// Position on the card.
    pub device_index: u16,
    /// Card; 0 when the caller says nothing.
    pub network_card: u16,
}

/// `DetachNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachNetworkInterface {
    /// `eni-attach-…`.
    pub attachment_id: String,
    /// Without waiting for the instance.
    pub force: bool,
}

/// `ModifyNetworkInterfaceAttribute`: EC2 takes one attribute in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModifyNetworkInterfaceAttribute {
    /// The ENI.
    pub eni_id: String,
    /// What changes.
    pub change: EniChange,
}

/// One attribute with its new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EniChange {
    /// `Attachment.DeleteOnTermination`.
    DeleteOnTermination {
        /// Which attachment.
        attachment_id: String,
        /// The new value.
        value: bool,
    },
    /// `SecurityGroupId.N`.
    Groups(Vec<String>),
    /// `SourceDestCheck.Value`.
    SourceDestCheck(bool),
    /// `Description.Value`.
    Description(String),
    /// `ConnectionTrackingSpecification`.
    ConnectionTracking(ConnectionTracking),
}

/// `AssignPrivateIpAddresses`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignPrivateIpAddresses {
    /// The ENI.
    pub eni_id: String,
    /// `SecondaryPrivateIpAddressCount`.
    pub count: Option<u16>,
    /// Addresses of the caller's choice.
    pub addresses: Vec<Ipv4Addr>,
    /// `Ipv4PrefixCount`.
    pub prefix_count: Option<u16>,
    /// Prefixes of the caller's choice.
    pub prefixes: Vec<Ipv4Net>,
    /// Whether an address may come from another ENI.
    pub allow_reassignment: bool,
}

/// `UnassignPrivateIpAddresses`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnassignPrivateIpAddresses {
    /// The ENI.
    pub eni_id: String,
    /// Addresses to give back.
    pub addresses: Vec<Ipv4Addr>,
    /// Prefixes to give back.
    pub prefixes: Vec<Ipv4Net>,
}

/// `AssignIpv6Addresses`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignIpv6Addresses {
    /// The ENI.
    pub eni_id: String,
    /// `Ipv6AddressCount`.
    pub count: Option<u16>,
    /// Addresses of the caller's choice.
    pub addresses: Vec<Ipv6Addr>,
    /// `Ipv6PrefixCount`.
    pub prefix_count: Option<u16>,
    /// Prefixes of the caller's choice.
    pub prefixes: Vec<Ipv6Net>,
}

/// `UnassignIpv6Addresses`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnassignIpv6Addresses {
    /// The ENI.
    pub eni_id: String,
    /// Addresses to give back.
    pub addresses: Vec<Ipv6Addr>,
    /// Prefixes to give back.
    pub prefixes: Vec<Ipv6Net>,
}

/// Every action of this EC2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Limits of instance types.
    DescribeInstanceTypes(Describe),
    /// Instances with their ENIs.
    DescribeInstances(Describe),
    /// Subnets.
    DescribeSubnets(Describe),
    /// ENIs.
    DescribeNetworkInterfaces(Describe),
    /// Tags of everything.
    DescribeTags(Describe),
    /// A new ENI.
    CreateNetworkInterface(CreateNetworkInterface),
    /// ENI into instance.
    AttachNetworkInterface(AttachNetworkInterface),
    /// ENI out of instance.
    DetachNetworkInterface(DetachNetworkInterface),
    /// ENI gone.
    DeleteNetworkInterface {
        /// The ENI.
        eni_id: String,
    },
    /// Change one attribute.
    ModifyNetworkInterfaceAttribute(ModifyNetworkInterfaceAttribute),
    /// More addresses or prefixes.
    AssignPrivateIpAddresses(AssignPrivateIpAddresses),
    /// Fewer.
    UnassignPrivateIpAddresses(UnassignPrivateIpAddresses),
    /// More IPv6 addresses or prefixes.
    AssignIpv6Addresses(AssignIpv6Addresses),
    /// Fewer.
    UnassignIpv6Addresses(UnassignIpv6Addresses),
    /// Tag things.
    CreateTags {
        /// Ids of ENIs, instances or subnets.
        resources: Vec<String>,
        /// What to set.
        tags: BTreeMap<String, String>,
    },
}

impl Request {
    /// EC2's name of the action.
    pub fn action(&self) -> &'static str {
        match self {
            Request::DescribeInstanceTypes(_) => "DescribeInstanceTypes",
            Request::DescribeInstances(_) => "DescribeInstances",
            Request::DescribeSubnets(_) => "DescribeSubnets",
            Request::DescribeNetworkInterfaces(_) => "DescribeNetworkInterfaces",
            Request::DescribeTags(_) => "DescribeTags",
            Request::CreateNetworkInterface(_) => "CreateNetworkInterface",
            Request::AttachNetworkInterface(_) => "AttachNetworkInterface",
            Request::DetachNetworkInterface(_) => "DetachNetworkInterface",
            Request::DeleteNetworkInterface { .. } => "DeleteNetworkInterface",
            Request::ModifyNetworkInterfaceAttribute(_) => "ModifyNetworkInterfaceAttribute",
            Request::AssignPrivateIpAddresses(_) => "AssignPrivateIpAddresses",
            Request::UnassignPrivateIpAddresses(_) => "UnassignPrivateIpAddresses",
            Request::AssignIpv6Addresses(_) => "AssignIpv6Addresses",
            Request::UnassignIpv6Addresses(_) => "UnassignIpv6Addresses",
            Request::CreateTags { .. } => "CreateTags",
        }
    }
}

/// An instance with the ENIs attached to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceWithEnis {
    /// The instance.
    pub instance: Arc<Instance>,
    /// Its ENIs, by card and device index.
    pub enis: Vec<Arc<Eni>>,
}

/// A tag with what it hangs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRecord {
    /// Id.
    pub resource_id: String,
    /// `network-interface`, `instance` or `subnet`.
    pub resource_type: &'static str,
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

/// A page of a Describe action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// The things found.
    pub items: Vec<T>,
    /// Present when more follows.
    pub next_token: Option<String>,
}

/// What EC2 answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To `DescribeInstanceTypes`.
    InstanceTypes(Listing<InstanceType>),
    /// To `DescribeInstances`.
    Instances(Listing<InstanceWithEnis>),
    /// To `DescribeSubnets`.
    Subnets(Listing<Arc<Subnet>>),
    /// To `DescribeNetworkInterfaces`.
    NetworkInterfaces(Listing<Arc<Eni>>),
    /// To `DescribeTags`.
    Tags(Listing<TagRecord>),
    /// To `CreateNetworkInterface`.
    Created {
        /// The new ENI.
        eni: Arc<Eni>,
        /// Echo of the token.
        client_token: Option<String>,
    },
    /// To `AttachNetworkInterface`.
    Attached {
        /// `eni-attach-…`.
        attachment_id: String,
        /// Card.
        network_card: u16,
    },
    /// To `AssignPrivateIpAddresses`.
    Assigned {
        /// The ENI.
        eni_id: String,
        /// New addresses.
        addresses: Vec<Ipv4Addr>,
        /// New prefixes.
        prefixes: Vec<Ipv4Net>,
    },
    /// To `AssignIpv6Addresses`.
    AssignedIpv6 {
        /// The ENI.
        eni_id: String,
        /// New addresses.
        addresses: Vec<Ipv6Addr>,
        /// New prefixes.
        prefixes: Vec<Ipv6Net>,
    },
    /// To `UnassignIpv6Addresses`.
    UnassignedIpv6 {
        /// The ENI.
        eni_id: String,
        /// Addresses that it had.
        addresses: Vec<Ipv6Addr>,
        /// Prefixes that it had.
        prefixes: Vec<Ipv6Net>,
    },
    /// To everything that only answers `true`.
    Done,
}
