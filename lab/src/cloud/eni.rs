//! Network interfaces and their attachments.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

/// A network interface as EC2 knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eni {
    /// `eni-…`.
    pub id: String,
    /// MAC address, lower case with colons.
    pub mac: String,
    /// The subnet that its addresses come from.
    pub subnet_id: String,
    /// The VPC of that subnet.
    pub vpc_id: String,
    /// The zone of that subnet.
    pub zone: String,
    /// Its own addresses, the primary first, the others in the order of their assignment.
    pub addresses: Vec<PrivateIp>,
    /// Delegated /28 prefixes in the order of their assignment.
    pub prefixes: Vec<Ipv4Net>,
    /// Its own IPv6 addresses, the primary first.
    pub ipv6_addresses: Vec<Ipv6Addr>,
    /// Delegated /80 prefixes in the order of their assignment.
    pub ipv6_prefixes: Vec<Ipv6Net>,
    /// Security group ids.
    pub groups: Vec<String>,
    /// Free text; the daemon recognises its own ENIs by it.
    pub description: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// What kind of interface it is.
    pub kind: InterfaceType,
    /// Whether VPC drops what is not from or to one of its addresses.
    pub source_dest_check: bool,
    /// Idle timeouts of VPC's connection tracking, where set.
    pub connection_tracking: Option<ConnectionTracking>,
    /// Account or service that asked for it.
    pub requester_id: String,
    /// The instance it sits in, or is on its way to or from.
    pub attachment: Option<Attachment>,
}

impl Eni {
    /// The first address. An ENI always has one.
    pub fn primary_ip(&self) -> Ipv4Addr {
        self.addresses.first().map_or(Ipv4Addr::UNSPECIFIED, |ip| ip.address)
    }

    /// EC2's `status` word: `in-use` with an attachment, else `available`.
    pub fn status(&self) -> &'static str {
        if self.attachment.is_some() { "in-use" } else { "available" }
    }

    /// How many of the ENI's address slots are filled: a prefix takes one, like an address.
    pub fn slots_used(&self) -> usize {
        self.addresses.len() + self.prefixes.len()
    }

    /// The same for IPv6, whose slots are counted apart.
    pub fn ipv6_slots_used(&self) -> usize {
        self.ipv6_addresses.len() + self.ipv6_prefixes.len()
    }

    /// The attachment, if it is complete and to `instance`.
    pub fn attached_to(&self, instance: &str) -> Option<&Attachment> {
        self.attachment
            .as_ref()
            .filter(|it| it.instance_id == instance && it.status == AttachmentStatus::Attached)
    }
}

/// One address of an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrivateIp {
    /// The address.
    pub address: Ipv4Addr,
    /// Whether it is the ENI's first one, which stays for life.
    pub is_primary: bool,
}

/// EC2's `InterfaceType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InterfaceType {
    /// An ordinary ENI.
    #[default]
    Interface,
    /// Elastic Fabric Adapter with an IP path.
    Efa,
    /// Elastic Fabric Adapter without addresses.
    EfaOnly,
    /// The ENI that carries branch ENIs.
    Trunk,
    /// An ENI behind a trunk.
    Branch,
}

impl InterfaceType {
    /// The word that EC2 uses.
    pub fn as_str(self) -> &'static str {
        match self {
            InterfaceType::Interface => "interface",
            InterfaceType::Efa => "efa",
            InterfaceType::EfaOnly => "efa-only",
            InterfaceType::Trunk => "trunk",
            InterfaceType::Branch => "branch",
        }
    }

    /// Reads EC2's word.
    pub fn parse(word: &str) -> Option<InterfaceType> {
        use InterfaceType::{Branch, Efa, EfaOnly, Interface, Trunk};
        [Interface, Efa, EfaOnly, Trunk, Branch].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Idle timeouts in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionTracking {
    /// Established TCP.
    pub tcp_established: Option<u32>,
    /// UDP with traffic both ways.
    pub udp_stream: Option<u32>,
    /// UDP otherwise.
    pub udp: Option<u32>,
}

/// How an ENI sits in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `eni-attach-…`.
    pub id: String,
    /// The instance.
    pub instance_id: String,
    /// Position on the network card; 0 on card 0 is the primary ENI.
    pub device_index: u16,
    /// Network card.
    pub network_card: u16,
    /// Whether the ENI goes when the instance goes.
    pub delete_on_termination: bool,
    /// How far it is.
    pub status: AttachmentStatus,
    /// When it was asked for.
    pub since: Duration,
}

/// EC2's attachment states. `detached` has no value: the attachment is gone then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentStatus {
    /// Asked for; the instance does not see it yet.
    Attaching,
    /// The instance sees it.
    Attached,
    /// On its way out; the instance no longer sees it.
    Detaching,
}

impl AttachmentStatus {
    /// The word that EC2 uses.
    pub fn as_str(self) -> &'static str {
        match self {
            AttachmentStatus::Attaching => "attaching",
            AttachmentStatus::Attached => "attached",
            AttachmentStatus::Detaching => "detaching",
        }
    }
}
