//! What is asked of EC2 and what it answers, as values of our own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use vpc::{AttachmentId, EniId, EniKind, EniSlot, InstanceId, Mac, Prefix, SecurityGroupId, SubnetId, VpcId};

/// Tags of a resource, by key.
pub type Tags = BTreeMap<String, String>;

/// The tag that names the instance an ENI was made for.
pub const INSTANCE_TAG: &str = "node.k8s.amazonaws.com/instance_id";
/// The tag that names the cluster an ENI was made in.
pub const CLUSTER_TAG: &str = "cluster.k8s.amazonaws.com/name";
/// The tag that says when an ENI was made.
pub const CREATED_AT_TAG: &str = "node.k8s.amazonaws.com/createdAt";

/// The description of every ENI made for `instance`, by us and by amazon-vpc-cni-k8s.
#[must_use]
pub fn eni_description(instance: &InstanceId) -> String {
    format!("{ENI_DESCRIPTION_PREFIX}{instance}")
}

/// How the description of an ENI begins that was made for some instance.
pub const ENI_DESCRIPTION_PREFIX: &str = "aws-K8S-";

/// What an ENI is doing, as EC2 reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EniStatus {
    /// Made, attached to nothing.
    Available,
    /// Made, attached to nothing, and tied to an instance or service.
    Associated,
    /// Being attached.
    Attaching,
    /// Attached and usable.
    InUse,
    /// Being detached.
    Detaching,
    /// Being made.
    Pending,
}

/// How far an attachment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttachmentStatus {
    /// On the way in.
    Attaching,
    /// In place.
    Attached,
    /// On the way out.
    Detaching,
    /// Gone.
    Detached,
}

/// Where an ENI is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The attachment's own identifier, by which it is detached.
    pub id: AttachmentId,
    /// The instance.
    pub instance: InstanceId,
    /// The card and the position on it.
    pub slot: EniSlot,
    /// Whether the ENI is deleted with its instance.
    pub delete_on_termination: bool,
    /// How far it has come.
    pub status: AttachmentStatus,
}

/// How long the security groups of an ENI remember idle connections; a time that is absent is
/// EC2's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ConnectionTracking {
    /// Seconds for an established TCP connection.
    pub tcp_established_secs: Option<u32>,
    /// Seconds for a UDP flow that saw more than one exchange.
    pub udp_stream_secs: Option<u32>,
    /// Seconds for any other UDP flow.
    pub udp_secs: Option<u32>,
}

/// An ENI as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniRecord {
    /// Its identifier.
    pub id: EniId,
    /// Its link-layer address.
    pub mac: Mac,
    /// The subnet it lies in.
    pub subnet: SubnetId,
    /// The VPC of that subnet.
    pub vpc: VpcId,
    /// The availability zone of that subnet, like `eu-central-1a`; empty when EC2 leaves it out.
    pub availability_zone: String,
    /// What it is doing.
    pub status: EniStatus,
    /// Where it is attached, if it is attached to an instance.
    pub attachment: Option<Attachment>,
    /// What kind of device it is.
    pub kind: EniKind,
    /// Its own address; absent on an EFA-only or IPv6-only ENI.
    pub primary_ip: Option<Ipv4Addr>,
    /// The secondary IPs assigned one by one, in EC2's order.
    pub secondary_ips: Vec<Ipv4Addr>,
    /// Its IPv6 addresses assigned one by one, in EC2's order.
    pub ipv6_addresses: Vec<Ipv6Addr>,
    /// The prefixes delegated to it, IPv4 before IPv6, in EC2's order.
    pub prefixes: Vec<Prefix>,
    /// Its security groups, in EC2's order.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its connection tracking; `None` when EC2 reports none.
    pub connection_tracking: Option<ConnectionTracking>,
    /// Its tags.
    pub tags: Tags,
    /// Its description; empty when there is none.
    pub description: String,
}

impl EniRecord {
    /// Whether this ENI was made for `instance`: the description and the tag both say so.
    ///
    /// Both, because either alone is copied easily by people and tools.
    #[must_use]
    pub fn was_made_for(&self, instance: &InstanceId) -> bool {
        self.description == eni_description(instance)
            && self.tags.get(INSTANCE_TAG).is_some_and(|value| value == instance.as_str())
    }
}

/// A subnet as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetRecord {
    /// Its identifier.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its availability zone, like `eu-central-1a`.
    pub availability_zone: String,
    /// Its IPv4 block; absent on an IPv6-only subnet.
    pub ipv4_cidr: Option<Ipv4Net>,
    /// Its IPv6 block, if it has one.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// The addresses that EC2 counts as free, those inside delegated prefixes excluded.
    pub free_addresses: u32,
    /// Its tags.
    pub tags: Tags,
}

/// How many addresses a new ENI comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NewAddresses {
    /// Only its own.
    None,
    /// So many secondary IPs.
    SecondaryIps(u16),
    /// So many IPv4 prefixes.
    Ipv4Prefixes(u16),
    /// One IPv6 address.
    Ipv6Address,
}

/// An ENI to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateEni {
    /// The subnet it shall lie in.
    pub subnet: SubnetId,
    /// Its security groups, in the order to be sent.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its description; see [`eni_description`].
    pub description: String,
    /// Its tags.
    pub tags: Tags,
    /// What makes a repeated request the same request: at most 64 ASCII characters, new for
    /// every ENI, kept by the caller across a restart until the outcome is known.
    pub client_token: String,
    /// What it comes with beyond its own address.
    pub addresses: NewAddresses,
    /// Its connection tracking; `None` leaves EC2's defaults.
    pub connection_tracking: Option<ConnectionTracking>,
}

/// An ENI to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachEni {
    /// The ENI.
    pub eni: EniId,
    /// The instance.
    pub instance: InstanceId,
    /// Where on the instance.
    pub slot: EniSlot,
}

/// Which ENIs to describe. One request each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EniQuery {
    /// Those that are attached to an instance, or on their way in or out.
    AttachedTo(InstanceId),
    /// These; EC2 refuses the whole request when it does not know one of them.
    Ids(Vec<EniId>),
    /// Unattached ones that carry the instance tag.
    Unattached {
        /// The VPC they lie in.
        vpc: VpcId,
        /// The cluster whose tag they carry; `None` takes any.
        cluster: Option<String>,
        /// The instance that the tag names; `None` takes any.
        instance: Option<InstanceId>,
    },
}

impl fmt::Display for EniQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AttachedTo(instance) => write!(f, "attached to {instance}"),
            Self::Ids(ids) => match ids.as_slice() {
                [] => f.write_str("by no id"),
                [id] => write!(f, "{id}"),
                [id, rest @ ..] => write!(f, "{id} and {} more", rest.len()),
            },
            Self::Unattached { vpc, instance: Some(instance), .. } => {
                write!(f, "unattached in {vpc}, made for {instance}")
            }
            Self::Unattached { vpc, instance: None, .. } => write!(f, "unattached in {vpc}"),
        }
    }
}

/// Where the next page of an answer begins; opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken(pub(crate) String);

impl PageToken {
    /// A token of the text that an answer carried.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text as EC2 wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One page of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What the page holds.
    pub items: Vec<T>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<PageToken>,
}
