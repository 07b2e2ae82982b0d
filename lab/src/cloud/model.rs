//! The model itself: everything EC2 remembers, and how a change becomes visible.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::bucket::Buckets;
use super::credentials::Keyring;
use super::eni::{Attachment, AttachmentStatus, Eni, InterfaceType, PrivateIp};
use super::error::Ec2Error;
use super::fault::Faults;
use super::history::History;
use super::ids::Dice;
use super::instance::{Instance, InstanceState, SecurityGroup, Vpc, private_dns};
use super::latency::Latencies;
use super::limits::InstanceType;
use super::log::CallLog;
use super::request::{CreateNetworkInterface, Request, Response};
use super::snapshot::Snapshot;
use super::strangers::Strangers;
use super::subnet::{FreeSpace, Placement, Subnet};

/// EC2, as plain synchronous code: time comes in as an argument, chance from a seed.
///
/// Every method that takes `now` expects it not to run backwards; it is the time since the
/// world began.
#[derive(Debug)]
pub struct Cloud {
    pub(super) region: String,
    pub(super) account: String,
    pub(super) epoch_unix: u64,
    pub(super) dice: Dice,
    pub(super) vpc: Arc<Vpc>,
    pub(super) subnets: BTreeMap<String, Arc<Subnet>>,
    pub(super) space: BTreeMap<String, FreeSpace>,
    pub(super) strangers: Strangers,
    pub(super) groups: Arc<BTreeMap<String, SecurityGroup>>,
    pub(super) default_group: String,
    pub(super) types: BTreeMap<String, InstanceType>,
    pub(super) instances: BTreeMap<String, Arc<Instance>>,
    pub(super) enis: BTreeMap<String, Arc<Eni>>,
    pub(super) client_tokens: BTreeMap<String, (CreateNetworkInterface, String)>,
    pub(super) transitions: BTreeMap<(Duration, u64), Transition>,
    pub(super) history: History,
    pub(super) knobs: Knobs,
    pub(super) keyring: Keyring,
    pub(super) faults: Faults,
    pub(super) buckets: Buckets,
    pub(super) latencies: Latencies,
    pub(super) log: CallLog,
    /// What instance metadata shows, by instance, with the version of the state that it shows.
    pub(super) trees: BTreeMap<String, (u64, Arc<BTreeMap<String, String>>)>,
}

/// Settings that a test turns while the world runs.
#[derive(Debug, Clone)]
pub(super) struct Knobs {
    pub(super) placement: Placement,
    pub(super) attach_delay: Duration,
    pub(super) detach_delay: Duration,
}

/// A change that time brings.
#[derive(Debug, Clone)]
pub(super) enum Transition {
    Attached { eni_id: String, attachment_id: String },
    Detached { eni_id: String, attachment_id: String },
}

/// What a new instance is made of.
#[derive(Debug, Clone, Default)]
pub struct LaunchSpec {
    /// Instance type; must be known.
    pub instance_type: String,
    /// Subnet of the primary ENI.
    pub subnet_id: String,
    /// First address of the primary ENI; any when `None`.
    pub private_ip: Option<Ipv4Addr>,
    /// Security groups of the primary ENI; the default group when empty.
    pub groups: Vec<String>,
    /// Role whose credentials IMDS hands out; a default one when `None`.
    pub role: Option<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl Cloud {
    /// The account that everything belongs to.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The DNS name that EC2 gives `address`.
    pub fn private_dns(&self, address: Ipv4Addr) -> String {
        private_dns(address, &self.region)
    }

    /// The text of a new IMDS session token.
    pub(crate) fn imds_token(&mut self) -> String {
        self.dice.key(56)
    }

    /// The current state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.history.latest()
    }

    /// Lets everything happen that was due by `now`, each at its own time.
    pub fn advance(&mut self, now: Duration) {
        while let Some(entry) = self.transitions.first_entry()
            && entry.key().0 <= now
        {
            let due = entry.key().0;
            match entry.remove() {
                Transition::Attached { eni_id, attachment_id } => {
                    if let Some(attachment) = self.attachment_mut(&eni_id, &attachment_id) {
                        attachment.status = AttachmentStatus::Attached;
                    }
                }
                Transition::Detached { eni_id, attachment_id } => {
                    if self.attachment_mut(&eni_id, &attachment_id).is_some()
                        && let Some(eni) = self.enis.get_mut(&eni_id)
                    {
                        Arc::make_mut(eni).attachment = None;
                    }
                }
            }
            self.publish(due);
        }
    }

    /// When `advance` next has something to do.
    pub fn next_transition(&self) -> Option<Duration> {
        self.transitions.first_key_value().map(|((due, _), _)| *due)
    }

    /// Carries out one action at `now`, without log, faults or throttling.
    ///
    /// # Errors
    /// EC2's own, for what EC2 would refuse.
    pub fn perform(&mut self, now: Duration, request: &Request) -> Result<Response, Ec2Error> {
        self.advance(now);
        match request {
            Request::DescribeInstanceTypes(it) => self.describe_instance_types(it),
            Request::DescribeInstances(it) => self.describe_instances(it),
            Request::DescribeSubnets(it) => self.describe_subnets(it),
            Request::DescribeNetworkInterfaces(it) => self.describe_network_interfaces(it),
            Request::DescribeTags(it) => self.describe_tags(it),
            Request::CreateNetworkInterface(it) => self.create_network_interface(now, it),
            Request::AttachNetworkInterface(it) => self.attach_network_interface(now, it),
            Request::DetachNetworkInterface(it) => self.detach_network_interface(now, it),
            Request::DeleteNetworkInterface { eni_id } => self.delete_network_interface(now, eni_id),
            Request::ModifyNetworkInterfaceAttribute(it) => self.modify_network_interface(now, it),
            Request::AssignPrivateIpAddresses(it) => self.assign_private_ips(now, it),
            Request::UnassignPrivateIpAddresses(it) => self.unassign_private_ips(now, it),
            Request::AssignIpv6Addresses(it) => self.assign_ipv6(now, it),
            Request::UnassignIpv6Addresses(it) => self.unassign_ipv6(now, it),
            Request::CreateTags { resources, tags } => self.create_tags(now, resources, tags),
        }
    }

    /// Starts an instance; it runs at once, its primary ENI attached.
    ///
    /// # Errors
    /// EC2's own: unknown type or subnet, no free address.
    pub fn run_instance(&mut self, now: Duration, spec: LaunchSpec) -> Result<Arc<Instance>, Ec2Error> {
        self.advance(now);
        self.instance_type(&spec.instance_type)?;
        let primary = self.new_eni(&CreateNetworkInterface {
            subnet_id: spec.subnet_id.clone(),
            primary_ip: spec.private_ip,
            groups: spec.groups,
            ..CreateNetworkInterface::default()
        })?;
        let subnet = self.subnet(&spec.subnet_id)?;
        let id = self.dice.id("i");
        let role = spec.role.unwrap_or_else(|| "lab-node".to_owned());
        let instance = Arc::new(Instance {
            id: id.clone(),
            instance_type: spec.instance_type,
            subnet_id: spec.subnet_id,
            vpc_id: self.vpc.id.clone(),
            zone: subnet.zone.clone(),
            zone_id: subnet.zone_id.clone(),
            private_ip: primary.primary_ip(),
            primary_eni: primary.id.clone(),
            role: (!role.is_empty()).then_some(role),
            image_id: self.dice.id("ami"),
            reservation_id: self.dice.id("r"),
            launched: now,
            state: InstanceState::Running,
            imds_v1: false,
            tags: spec.tags,
        });
        let attachment = Attachment {
            id: self.dice.id("eni-attach"),
            instance_id: id.clone(),
            device_index: 0,
            network_card: 0,
            delete_on_termination: true,
            status: AttachmentStatus::Attached,
            since: now,
        };
        let primary = Eni { attachment: Some(attachment), ..primary };
        self.enis.insert(primary.id.clone(), Arc::new(primary));
        self.instances.insert(id, instance.clone());
        self.publish(now);
        Ok(instance)
    }

    /// Ends an instance: its ENIs go, or become available, as their attachments say.
    ///
    /// # Errors
    /// `InvalidInstanceID.NotFound`.
    pub fn terminate_instance(&mut self, now: Duration, id: &str) -> Result<(), Ec2Error> {
        self.advance(now);
        let instance = self.instance(id)?;
        let attached: Vec<_> = self
            .enis
            .values()
            .filter_map(|eni| eni.attachment.as_ref().map(|it| (eni.id.clone(), it.clone())))
            .filter(|(_, attachment)| attachment.instance_id == id)
            .collect();
        for (eni_id, attachment) in attached {
            if attachment.delete_on_termination {
                self.drop_eni(&eni_id);
            } else if let Some(eni) = self.enis.get_mut(&eni_id) {
                Arc::make_mut(eni).attachment = None;
            }
        }
        let gone = Instance { state: InstanceState::Terminated, ..(*instance).clone() };
        self.instances.insert(id.to_owned(), Arc::new(gone));
        self.publish(now);
        Ok(())
    }

    /// Replaces the VPC's ranges, the primary one first, as when an operator associates another.
    pub fn set_vpc_cidrs(&mut self, now: Duration, cidrs: Vec<Ipv4Net>) {
        self.advance(now);
        Arc::make_mut(&mut self.vpc).cidrs = cidrs;
        self.publish(now);
    }

    /// Replaces the VPC's IPv6 ranges.
    pub fn set_vpc_ipv6_cidrs(&mut self, now: Duration, cidrs: Vec<Ipv6Net>) {
        self.advance(now);
        Arc::make_mut(&mut self.vpc).ipv6_cidrs = cidrs;
        self.publish(now);
    }

    /// Gives a subnet an IPv6 range, or takes it away.
    pub fn set_subnet_ipv6_cidr(&mut self, now: Duration, id: &str, cidr: Option<Ipv6Net>) {
        self.advance(now);
        if let Some(subnet) = self.subnets.get_mut(id) {
            Arc::make_mut(subnet).ipv6_cidr = cidr;
        }
        self.publish(now);
    }

    /// Adds a subnet and returns its id. In a VPC with IPv6 it gets the next /64.
    pub fn add_subnet(&mut self, now: Duration, cidr: Ipv4Net, zone: &str) -> String {
        let id = self.insert_subnet(cidr, zone);
        self.publish(now);
        id
    }

    pub(super) fn insert_subnet(&mut self, cidr: Ipv4Net, zone: &str) -> String {
        let id = self.dice.id("subnet");
        let space = FreeSpace::new(cidr);
        let ipv6_cidr = self.next_ipv6_cidr();
        let letter = zone.bytes().last().unwrap_or(b'a').saturating_sub(b'a');
        let subnet = Subnet {
            id: id.clone(),
            vpc_id: self.vpc.id.clone(),
            cidr,
            ipv6_cidr,
            zone: zone.to_owned(),
            zone_id: format!("{}-az{}", short_region(&self.region), letter + 1),
            available: space.available(),
            tags: BTreeMap::new(),
        };
        self.subnets.insert(id.clone(), Arc::new(subnet));
        self.space.insert(id.clone(), space);
        id
    }

    /// Adds a security group and returns its id.
    pub fn add_security_group(&mut self, now: Duration, name: &str) -> String {
        let id = self.dice.id("sg");
        let group = SecurityGroup { id: id.clone(), name: name.to_owned() };
        Arc::make_mut(&mut self.groups).insert(id.clone(), group);
        self.publish(now);
        id
    }

    /// Makes the state as it is now the visible one.
    pub(super) fn publish(&mut self, now: Duration) {
        for (id, space) in &self.space {
            if let Some(subnet) = self.subnets.get_mut(id)
                && subnet.available != space.available()
            {
                Arc::make_mut(subnet).available = space.available();
            }
        }
        let snapshot = Snapshot {
            version: self.history.latest().version + 1,
            at: now,
            region: self.region.clone(),
            vpc: self.vpc.clone(),
            subnets: self.subnets.clone(),
            groups: self.groups.clone(),
            instances: self.instances.clone(),
            enis: self.enis.clone(),
        };
        self.history.push(snapshot);
    }

    pub(super) fn at(&mut self, due: Duration, transition: Transition) {
        let unique = self.dice.next_u64();
        self.transitions.insert((due, unique), transition);
    }

    pub(super) fn attachment_mut(&mut self, eni_id: &str, attachment_id: &str) -> Option<&mut Attachment> {
        let eni = self.enis.get_mut(eni_id)?;
        Arc::make_mut(eni).attachment.as_mut().filter(|it| it.id == attachment_id)
    }

    pub(super) fn eni(&self, id: &str) -> Result<Arc<Eni>, Ec2Error> {
        check_id(id, "eni", "InvalidNetworkInterfaceId.Malformed")?;
        self.enis.get(id).cloned().ok_or_else(|| {
            Ec2Error::new(
                "InvalidNetworkInterfaceID.NotFound",
                format!("The networkInterface ID '{id}' does not exist"),
            )
        })
    }

    pub(super) fn instance(&self, id: &str) -> Result<Arc<Instance>, Ec2Error> {
        check_id(id, "i", "InvalidInstanceID.Malformed")?;
        self.instances.get(id).cloned().ok_or_else(|| {
            Ec2Error::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
        })
    }

    pub(super) fn subnet(&self, id: &str) -> Result<Arc<Subnet>, Ec2Error> {
        self.subnets.get(id).cloned().ok_or_else(|| {
            Ec2Error::new("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
        })
    }

    pub(super) fn instance_type(&self, name: &str) -> Result<&InstanceType, Ec2Error> {
        self.types.get(name).ok_or_else(|| {
            Ec2Error::new(
                "InvalidInstanceType",
                format!("The following supplied instance types do not exist: [{name}]"),
            )
        })
    }

    pub(super) fn drop_eni(&mut self, id: &str) {
        let Some(eni) = self.enis.remove(id) else { return };
        self.client_tokens.retain(|_, (_, eni_id)| eni_id != id);
        if let Some(space) = self.space.get_mut(&eni.subnet_id) {
            for ip in &eni.addresses {
                space.release(ip.address);
            }
            for prefix in &eni.prefixes {
                space.release_block(*prefix);
            }
        }
    }

    pub(super) fn blank_eni(&mut self, subnet: &Subnet, groups: Vec<String>) -> Eni {
        Eni {
            id: self.dice.id("eni"),
            mac: self.dice.mac(),
            subnet_id: subnet.id.clone(),
            vpc_id: subnet.vpc_id.clone(),
            zone: subnet.zone.clone(),
            addresses: Vec::<PrivateIp>::new(),
            prefixes: Vec::new(),
            ipv6_addresses: Vec::new(),
            ipv6_prefixes: Vec::new(),
            groups,
            description: String::new(),
            tags: BTreeMap::new(),
            kind: InterfaceType::Interface,
            source_dest_check: true,
            connection_tracking: None,
            requester_id: self.account.clone(),
            attachment: None,
        }
    }
}

/// An id is its prefix, a dash and hexadecimal digits.
fn check_id(id: &str, prefix: &str, code: &'static str) -> Result<(), Ec2Error> {
    let digits = id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    match digits {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_hexdigit()) => Ok(()),
        _ => Err(Ec2Error::new(code, format!("Invalid id: \"{id}\""))),
    }
}

/// `us-west-2` in zone ids is `usw2`.
fn short_region(region: &str) -> String {
    let mut parts = region.split('-');
    let (a, b, c) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next_back().unwrap_or(""));
    format!("{a}{}{c}", b.get(..1).unwrap_or(""))
}
