//! EC2 for one process: the lab's model, asked without any socket.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ec2::{
    Action, AttachEni, Attachment, AttachmentStatus, CLUSTER_TAG, Class, CreateEni, Ec2, Ec2Error, EniQuery,
    EniRecord, EniStatus, INSTANCE_TAG, NewAddresses, Page, PageToken, Result, SubnetRecord, Tags,
};
use lab::cloud::{self, Caller, Describe, EniChange, Filter, InterfaceType, Reply, Request, Response};
use vpc::{
    AttachmentId, EniId, EniKind, EniSlot, InstanceId, InstanceLimits, Prefix, SecurityGroupId, VpcId,
};

use super::kernel::Kernel;
use super::life::Life;
use super::world::{World, addresses_of, prefix_addresses};

/// As the SDK gives up on an answer.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// From the daemon's look at the kernel to its request.
const BETWEEN: Duration = Duration::from_secs(5);

/// EC2, as one process of one instance reaches it.
#[derive(Clone)]
pub(super) struct SimEc2 {
    pub(super) world: Arc<World>,
    pub(super) instance: String,
    pub(super) life: Arc<Life>,
    pub(super) kernel: Kernel,
}

impl SimEc2 {
    /// Notes that addresses are about to go back.
    fn returns(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        // Another hand may come between the daemon's look at the kernel and this.
        let looked_at = self.world.now().saturating_sub(BETWEEN);
        for address in addresses {
            self.world.oracle().returns([address]);
            if let Some(link) = self.kernel.route_since(address, looked_at) {
                self.world.oracle().returned_in_use(&self.instance, address, link);
            }
        }
    }

    /// Notes that addresses are about to be asked for on an ENI, so many of them single ones.
    fn grows(&self, eni: &EniId, singles: u16) {
        let snapshot = self.world.cloud.snapshot();
        let mut oracle = self.world.oracle();
        oracle.asks_for(&self.instance, singles.into(), &snapshot);
        if let Some(eni) = snapshot.enis.get(eni.as_str()) {
            oracle.grows(&self.instance, &eni.subnet_id, Some(eni));
        }
    }

    /// The same on a new ENI.
    fn grows_anew(&self, subnet: &str, singles: u16) {
        let snapshot = self.world.cloud.snapshot();
        let mut oracle = self.world.oracle();
        oracle.asks_for(&self.instance, singles.into(), &snapshot);
        oracle.grows(&self.instance, subnet, None);
    }

    async fn ask(&self, action: Action, resource: &str, request: Request) -> Result<Response> {
        if !self.life.acts() {
            return std::future::pending().await;
        }
        let credentials = self.world.cloud.with(|cloud, now| cloud.role_credentials(now, &self.instance));
        let Some(credentials) = credentials else {
            return Err(Ec2Error::new(action, &resource, Class::Credentials, "no credentials"));
        };
        let caller = Caller { access_key: Some(credentials.access_key), token: credentials.token };
        self.world.note(|| format!("{} asks {} {resource}", self.instance, action.name()));
        self.world.oracle().asks(&self.instance, action);
        let call = self.world.cloud.call(caller, action.name().to_owned(), Ok(request), String::new());
        let outcome = match tokio::time::timeout(HTTP_TIMEOUT, call).await {
            Ok(Reply::Answer((_, Ok(response)))) => Ok(response),
            Ok(Reply::Answer((_, Err(error)))) => {
                Err(Ec2Error::answered(action, &resource, error.status, &error.code, &error.message))
            }
            Ok(Reply::Closed) => {
                let class = if action.is_read() { Class::Unavailable } else { Class::AnswerLost };
                Err(Ec2Error::new(action, &resource, class, "connection closed"))
            }
            Ok(Reply::Never) => {
                tokio::time::sleep(HTTP_TIMEOUT).await;
                Err(unanswered(action, resource))
            }
            Err(_) => Err(unanswered(action, resource)),
        };
        if self.life.is_over() {
            return std::future::pending().await;
        }
        if let Err(error) = &outcome {
            self.world.note(|| format!("{} refused: {error}", self.instance));
            self.world.oracle().ec2_refused(&self.instance, error.class());
        }
        outcome
    }
}

fn unanswered(action: Action, resource: &str) -> Ec2Error {
    let class = if action.is_read() { Class::Timeout } else { Class::AnswerLost };
    Ec2Error::new(action, &resource, class, "no answer")
}

fn filter(name: &str, value: &str) -> Filter {
    Filter { name: name.to_owned(), values: vec![value.to_owned()] }
}

fn parsed<T: FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("the model makes well-formed names")
}

fn eni_record(eni: &cloud::Eni) -> EniRecord {
    let attachment = eni.attachment.as_ref().map(|found| Attachment {
        id: parsed(&found.id),
        instance: parsed(&found.instance_id),
        slot: EniSlot::new(found.network_card, found.device_index),
        delete_on_termination: found.delete_on_termination,
        status: match found.status {
            cloud::AttachmentStatus::Attaching => AttachmentStatus::Attaching,
            cloud::AttachmentStatus::Attached => AttachmentStatus::Attached,
            cloud::AttachmentStatus::Detaching => AttachmentStatus::Detaching,
        },
    });
    EniRecord {
        id: parsed(&eni.id),
        mac: parsed(&eni.mac),
        subnet: parsed(&eni.subnet_id),
        vpc: parsed(&eni.vpc_id),
        availability_zone: eni.zone.clone(),
        status: if attachment.is_some() { EniStatus::InUse } else { EniStatus::Available },
        attachment,
        kind: match eni.kind {
            InterfaceType::Efa => EniKind::Efa,
            InterfaceType::EfaOnly => EniKind::EfaOnly,
            InterfaceType::Trunk => EniKind::Trunk,
            InterfaceType::Interface | InterfaceType::Branch => EniKind::Interface,
        },
        primary_ip: eni.addresses.first().map(|ip| ip.address),
        secondary_ips: eni.addresses.iter().filter(|ip| !ip.is_primary).map(|ip| ip.address).collect(),
        ipv6_addresses: Vec::new(),
        prefixes: eni.prefixes.iter().map(|prefix| parsed(&prefix.to_string())).collect(),
        security_groups: eni.groups.iter().map(|group| parsed(group)).collect(),
        connection_tracking: None,
        tags: eni.tags.clone(),
        description: eni.description.clone(),
    }
}

fn unexpected<T>(response: &Response) -> T {
    panic!("the model answered something else: {response:?}")
}

impl Ec2 for SimEc2 {
    async fn describe_instance_type(&self, name: &str) -> Result<InstanceLimits> {
        Err(Ec2Error::new(Action::DescribeInstanceTypes, &name, Class::NotFound, "not simulated"))
    }

    async fn describe_instance_slots(&self, instance: &InstanceId) -> Result<Vec<EniSlot>> {
        let request =
            Request::DescribeInstances(Describe { ids: vec![instance.to_string()], ..Describe::default() });
        match self.ask(Action::DescribeInstances, instance.as_str(), request).await? {
            Response::Instances(found) => Ok(found
                .items
                .iter()
                .flat_map(|item| &item.enis)
                .filter_map(|eni| eni.attachment.as_ref())
                .map(|at| EniSlot::new(at.network_card, at.device_index))
                .collect()),
            other => unexpected(&other),
        }
    }

    async fn describe_enis(&self, query: &EniQuery, page: Option<&PageToken>) -> Result<Page<EniRecord>> {
        let mut describe = Describe::default();
        describe.page.next_token = page.map(|page| page.as_str().to_owned());
        match query {
            EniQuery::AttachedTo(instance) => {
                describe.filters.push(filter("attachment.instance-id", instance.as_str()));
            }
            EniQuery::Ids(ids) => {
                ids.iter().for_each(|id| self.world.oracle().looks_at(id.as_str()));
                describe.ids = ids.iter().map(EniId::to_string).collect();
            }
            EniQuery::Unattached { vpc, cluster, instance } => {
                describe.filters.push(match instance {
                    Some(instance) => filter(&format!("tag:{INSTANCE_TAG}"), instance.as_str()),
                    None => filter("tag-key", INSTANCE_TAG),
                });
                describe.filters.push(filter("status", "available"));
                describe.filters.push(filter("vpc-id", vpc.as_str()));
                describe
                    .filters
                    .extend(cluster.as_ref().map(|name| filter(&format!("tag:{CLUSTER_TAG}"), name)));
            }
        }
        let request = Request::DescribeNetworkInterfaces(describe);
        match self.ask(Action::DescribeNetworkInterfaces, &query.to_string(), request).await? {
            Response::NetworkInterfaces(found) => Ok(Page {
                items: found.items.iter().map(|eni| eni_record(eni)).collect(),
                next: found.next_token.map(PageToken::new),
            }),
            other => unexpected(&other),
        }
    }

    async fn describe_subnets(
        &self,
        vpc: &VpcId,
        availability_zone: &str,
        page: Option<&PageToken>,
    ) -> Result<Page<SubnetRecord>> {
        let mut describe = Describe {
            filters: vec![filter("vpc-id", vpc.as_str()), filter("availability-zone", availability_zone)],
            ..Describe::default()
        };
        describe.page.next_token = page.map(|page| page.as_str().to_owned());
        match self.ask(Action::DescribeSubnets, "of the zone", Request::DescribeSubnets(describe)).await? {
            Response::Subnets(found) => Ok(Page {
                items: found
                    .items
                    .iter()
                    .map(|subnet| SubnetRecord {
                        id: parsed(&subnet.id),
                        vpc: parsed(&subnet.vpc_id),
                        availability_zone: subnet.zone.clone(),
                        ipv4_cidr: Some(subnet.cidr),
                        ipv6_cidr: subnet.ipv6_cidr,
                        free_addresses: subnet.available,
                        tags: subnet.tags.clone(),
                    })
                    .collect(),
                next: found.next_token.map(PageToken::new),
            }),
            other => unexpected(&other),
        }
    }

    async fn create_eni(&self, eni: &CreateEni) -> Result<EniRecord> {
        let (secondary_count, prefix_count) = match eni.addresses {
            NewAddresses::None => (None, None),
            NewAddresses::SecondaryIps(count) => (Some(count), None),
            NewAddresses::Ipv4Prefixes(count) => (None, Some(count)),
            NewAddresses::Ipv6Address => panic!("an IPv6 node in a world of IPv4"),
        };
        let request = Request::CreateNetworkInterface(cloud::CreateNetworkInterface {
            subnet_id: eni.subnet.to_string(),
            description: eni.description.clone(),
            groups: eni.security_groups.iter().map(ToString::to_string).collect(),
            secondary_count,
            prefix_count,
            tags: eni.tags.clone(),
            client_token: Some(eni.client_token.clone()),
            ..cloud::CreateNetworkInterface::default()
        });
        self.grows_anew(eni.subnet.as_str(), secondary_count.unwrap_or(0));
        let resource = format!("in {} with {:?}", eni.subnet, eni.addresses);
        match self.ask(Action::CreateNetworkInterface, &resource, request).await? {
            Response::Created { eni, .. } => Ok(eni_record(&eni)),
            other => unexpected(&other),
        }
    }

    async fn attach_eni(&self, attach: &AttachEni) -> Result<AttachmentId> {
        let request = Request::AttachNetworkInterface(cloud::AttachNetworkInterface {
            eni_id: attach.eni.to_string(),
            instance_id: attach.instance.to_string(),
            device_index: attach.slot.device.0,
            network_card: attach.slot.card.0,
        });
        let resource = format!("{} at {}", attach.eni, attach.slot);
        match self.ask(Action::AttachNetworkInterface, &resource, request).await? {
            Response::Attached { attachment_id, .. } => Ok(parsed(&attachment_id)),
            other => unexpected(&other),
        }
    }

    async fn set_delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Result<()> {
        let change = EniChange::DeleteOnTermination { attachment_id: attachment.to_string(), value: true };
        self.modify(eni, change).await
    }

    async fn set_security_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Result<()> {
        self.modify(eni, EniChange::Groups(groups.iter().map(ToString::to_string).collect())).await
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<()> {
        let snapshot = self.world.cloud.snapshot();
        let is_meant = |eni: &&Arc<cloud::Eni>| {
            eni.attachment.as_ref().is_some_and(|found| found.id == attachment.as_str())
        };
        self.returns(snapshot.enis.values().filter(is_meant).flat_map(addresses_of));
        let request = Request::DetachNetworkInterface(cloud::DetachNetworkInterface {
            attachment_id: attachment.to_string(),
            force: false,
        });
        match self.ask(Action::DetachNetworkInterface, attachment.as_str(), request).await {
            // As the real client has it: what is detached is detached.
            Err(error) if *error.class() == Class::AlreadyDone => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<()> {
        let request = Request::DeleteNetworkInterface { eni_id: eni.to_string() };
        match self.ask(Action::DeleteNetworkInterface, eni.as_str(), request).await {
            Err(error) if *error.class() == Class::NotFound => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn assign_ips(&self, eni: &EniId, count: u16) -> Result<Vec<Ipv4Addr>> {
        self.grows(eni, count);
        let wish = cloud::AssignPrivateIpAddresses { count: Some(count), ..assign(eni) };
        let resource = format!("{count} to {eni}");
        let request = Request::AssignPrivateIpAddresses(wish);
        match self.ask(Action::AssignPrivateIpAddresses, &resource, request).await? {
            Response::Assigned { addresses, .. } => Ok(addresses),
            other => unexpected(&other),
        }
    }

    async fn assign_prefixes(&self, eni: &EniId, count: u16) -> Result<Vec<Prefix>> {
        self.grows(eni, 0);
        let wish = cloud::AssignPrivateIpAddresses { prefix_count: Some(count), ..assign(eni) };
        let resource = format!("{count} prefixes to {eni}");
        let request = Request::AssignPrivateIpAddresses(wish);
        match self.ask(Action::AssignPrivateIpAddresses, &resource, request).await? {
            Response::Assigned { prefixes, .. } => {
                Ok(prefixes.iter().map(|prefix| parsed(&prefix.to_string())).collect())
            }
            other => unexpected(&other),
        }
    }

    async fn assign_ipv6_prefixes(&self, _: &EniId, _: u16) -> Result<Vec<Prefix>> {
        panic!("an IPv6 node in a world of IPv4")
    }

    async fn unassign_ips(&self, eni: &EniId, ips: &[Ipv4Addr]) -> Result<()> {
        self.returns(ips.iter().copied().map(IpAddr::from));
        let request = Request::UnassignPrivateIpAddresses(cloud::UnassignPrivateIpAddresses {
            eni_id: eni.to_string(),
            addresses: ips.to_vec(),
            prefixes: Vec::new(),
        });
        let resource = format!("{ips:?} from {eni}");
        self.ask(Action::UnassignPrivateIpAddresses, &resource, request).await.map(drop)
    }

    async fn unassign_prefixes(&self, eni: &EniId, prefixes: &[Prefix]) -> Result<()> {
        self.returns(prefixes.iter().flat_map(|prefix| prefix_addresses(parsed(&prefix.to_string()))));
        let request = Request::UnassignPrivateIpAddresses(cloud::UnassignPrivateIpAddresses {
            eni_id: eni.to_string(),
            addresses: Vec::new(),
            prefixes: prefixes.iter().map(|prefix| parsed(&prefix.to_string())).collect(),
        });
        let resource = format!("{} prefixes from {eni}", prefixes.len());
        self.ask(Action::UnassignPrivateIpAddresses, &resource, request).await.map(drop)
    }

    async fn tag(&self, eni: &EniId, tags: &Tags) -> Result<()> {
        let request = Request::CreateTags { resources: vec![eni.to_string()], tags: tags.clone() };
        self.ask(Action::CreateTags, eni.as_str(), request).await.map(drop)
    }
}

impl SimEc2 {
    async fn modify(&self, eni: &EniId, change: EniChange) -> Result<()> {
        let request = Request::ModifyNetworkInterfaceAttribute(cloud::ModifyNetworkInterfaceAttribute {
            eni_id: eni.to_string(),
            change,
        });
        self.ask(Action::ModifyNetworkInterfaceAttribute, eni.as_str(), request).await.map(drop)
    }
}

fn assign(eni: &EniId) -> cloud::AssignPrivateIpAddresses {
    cloud::AssignPrivateIpAddresses { eni_id: eni.to_string(), ..Default::default() }
}
