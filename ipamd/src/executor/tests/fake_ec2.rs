//! EC2 in memory: it keeps what it made, and fails when and as the test says.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use ec2::{
    Action, AttachEni, Attachment, AttachmentStatus, Class, CreateEni, Ec2, Ec2Error, EniQuery, EniRecord,
    EniStatus, NewAddresses, Page, PageToken, Result, SubnetRecord, Tags,
};
use vpc::{
    AttachmentId, EniId, EniKind, EniSlot, InstanceId, InstanceLimits, Prefix, SecurityGroupId, VpcId,
};

/// How a request goes wrong.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// EC2 refuses, and does nothing.
    Refuse(Class),
    /// EC2 does it, and the answer is lost.
    LoseAnswer,
    /// EC2 does it, and the process dies before the answer comes.
    DieAfter,
}

#[derive(Debug, Default)]
pub(super) struct Cloud {
    pub(super) enis: BTreeMap<EniId, EniRecord>,
    pub(super) calls: Vec<&'static str>,
    pub(super) subnets: Vec<SubnetRecord>,
    faults: VecDeque<(Action, Fault)>,
    tokens: BTreeMap<String, EniId>,
    made: u8,
    addresses: u8,
}

/// A handle to the cloud. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct FakeEc2(pub(super) Arc<Mutex<Cloud>>);

impl FakeEc2 {
    /// Has the next request of this action go wrong.
    pub(super) fn fail(&self, action: Action, fault: Fault) {
        self.0.lock().unwrap().faults.push_back((action, fault));
    }

    pub(super) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    pub(super) fn enis(&self) -> Vec<EniRecord> {
        self.0.lock().unwrap().enis.values().cloned().collect()
    }

    pub(super) fn put(&self, record: EniRecord) {
        self.0.lock().unwrap().enis.insert(record.id.clone(), record);
    }

    async fn request<T>(&self, action: Action, work: impl FnOnce(&mut Cloud) -> Result<T>) -> Result<T> {
        let (outcome, fault) = {
            let mut cloud = self.0.lock().unwrap();
            cloud.calls.push(action.name());
            let fault = match cloud.faults.front() {
                Some((failing, _)) if *failing == action => cloud.faults.pop_front().map(|(_, fault)| fault),
                _ => None,
            };
            if let Some(Fault::Refuse(class)) = fault {
                return Err(Ec2Error::new(action, &"test", class, "refused by the test"));
            }
            (work(&mut cloud), fault)
        };
        match fault {
            None => outcome,
            Some(Fault::DieAfter) => std::future::pending().await,
            Some(_) => Err(Ec2Error::new(action, &"test", Class::AnswerLost, "lost by the test")),
        }
    }
}

impl Cloud {
    fn address(&mut self) -> Ipv4Addr {
        self.addresses += 1;
        Ipv4Addr::new(10, 0, 1, 100 + self.addresses)
    }

    fn create(&mut self, wish: &CreateEni) -> EniRecord {
        if let Some(made) = self.tokens.get(&wish.client_token) {
            return self.enis[made].clone();
        }
        self.made += 1;
        let NewAddresses::SecondaryIps(count) = wish.addresses else { panic!("{wish:?}") };
        let record = EniRecord {
            primary_ip: Some(self.address()),
            secondary_ips: (0..count).map(|_| self.address()).collect(),
            security_groups: wish.security_groups.clone(),
            tags: wish.tags.clone(),
            description: wish.description.clone(),
            subnet: wish.subnet.clone(),
            ..record(&format!("eni-new{}", self.made), 0x10 + self.made, None)
        };
        self.tokens.insert(wish.client_token.clone(), record.id.clone());
        self.enis.insert(record.id.clone(), record.clone());
        record
    }

    fn attach(&mut self, wish: &AttachEni) -> Result<AttachmentId> {
        let id: AttachmentId = wish.eni.as_str().replace("eni-", "eni-attach-").parse().unwrap();
        let Some(record) = self.enis.get_mut(&wish.eni) else {
            return Err(Ec2Error::new(Action::AttachNetworkInterface, &wish.eni, Class::NotFound, ""));
        };
        record.status = EniStatus::InUse;
        record.attachment = Some(attachment(&id, wish.slot));
        Ok(id)
    }

    fn matching(&self, query: &EniQuery) -> Vec<EniRecord> {
        let all = self.enis.values();
        let is_meant = |record: &&EniRecord| match query {
            EniQuery::AttachedTo(_) => record.attachment.is_some(),
            EniQuery::Ids(ids) => ids.contains(&record.id),
            EniQuery::Unattached { .. } => record.attachment.is_none(),
        };
        all.filter(is_meant).cloned().collect()
    }
}

pub(super) fn attachment(id: &AttachmentId, slot: EniSlot) -> Attachment {
    Attachment {
        id: id.clone(),
        instance: "i-1".parse().unwrap(),
        slot,
        delete_on_termination: false,
        status: AttachmentStatus::Attached,
    }
}

/// An ENI without addresses or tags.
pub(super) fn record(id: &str, mac: u8, slot: Option<EniSlot>) -> EniRecord {
    let attachment_id: AttachmentId = id.replace("eni-", "eni-attach-").parse().unwrap();
    EniRecord {
        id: id.parse().unwrap(),
        mac: format!("02:00:00:00:00:{mac:02x}").parse().unwrap(),
        subnet: "subnet-1".parse().unwrap(),
        vpc: "vpc-1".parse().unwrap(),
        availability_zone: "eu-central-1a".to_owned(),
        status: if slot.is_some() { EniStatus::InUse } else { EniStatus::Available },
        attachment: slot.map(|slot| attachment(&attachment_id, slot)),
        kind: EniKind::Interface,
        primary_ip: Some(Ipv4Addr::new(10, 0, 1, mac)),
        secondary_ips: Vec::new(),
        ipv6_addresses: Vec::new(),
        prefixes: Vec::new(),
        security_groups: Vec::new(),
        connection_tracking: None,
        tags: Tags::new(),
        description: String::new(),
    }
}

fn page<T>(items: Vec<T>) -> Page<T> {
    Page { items, next: None }
}

impl Ec2 for FakeEc2 {
    async fn describe_instance_type(&self, name: &str) -> Result<InstanceLimits> {
        Err(Ec2Error::new(Action::DescribeInstanceTypes, &name, Class::NotFound, ""))
    }

    async fn describe_instance_slots(&self, _: &InstanceId) -> Result<Vec<EniSlot>> {
        Ok(Vec::new())
    }

    async fn describe_enis(&self, query: &EniQuery, _: Option<&PageToken>) -> Result<Page<EniRecord>> {
        self.request(Action::DescribeNetworkInterfaces, |cloud| Ok(page(cloud.matching(query)))).await
    }

    async fn describe_subnets(
        &self,
        _: &VpcId,
        _: &str,
        _: Option<&PageToken>,
    ) -> Result<Page<SubnetRecord>> {
        self.request(Action::DescribeSubnets, |cloud| Ok(page(cloud.subnets.clone()))).await
    }

    async fn create_eni(&self, eni: &CreateEni) -> Result<EniRecord> {
        self.request(Action::CreateNetworkInterface, |cloud| Ok(cloud.create(eni))).await
    }

    async fn attach_eni(&self, attach: &AttachEni) -> Result<AttachmentId> {
        self.request(Action::AttachNetworkInterface, |cloud| cloud.attach(attach)).await
    }

    async fn set_delete_on_termination(&self, eni: &EniId, _: &AttachmentId) -> Result<()> {
        self.request(Action::ModifyNetworkInterfaceAttribute, |cloud| {
            let attachment = cloud.enis.get_mut(eni).and_then(|record| record.attachment.as_mut());
            attachment.unwrap().delete_on_termination = true;
            Ok(())
        })
        .await
    }

    async fn set_security_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Result<()> {
        self.request(Action::ModifyNetworkInterfaceAttribute, |cloud| {
            cloud.enis.get_mut(eni).unwrap().security_groups = groups.to_vec();
            Ok(())
        })
        .await
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<()> {
        self.request(Action::DetachNetworkInterface, |cloud| {
            for record in cloud.enis.values_mut() {
                if record.attachment.as_ref().is_some_and(|found| found.id == *attachment) {
                    record.attachment = None;
                    record.status = EniStatus::Available;
                }
            }
            Ok(())
        })
        .await
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<()> {
        self.request(Action::DeleteNetworkInterface, |cloud| {
            let is_attached = cloud.enis.get(eni).is_some_and(|record| record.attachment.is_some());
            if is_attached {
                return Err(Ec2Error::new(Action::DeleteNetworkInterface, eni, Class::Busy, ""));
            }
            cloud.enis.remove(eni);
            Ok(())
        })
        .await
    }

    async fn assign_ips(&self, eni: &EniId, count: u16) -> Result<Vec<Ipv4Addr>> {
        self.request(Action::AssignPrivateIpAddresses, |cloud| {
            let new: Vec<_> = (0..count).map(|_| cloud.address()).collect();
            cloud.enis.get_mut(eni).unwrap().secondary_ips.extend(&new);
            Ok(new)
        })
        .await
    }

    async fn assign_prefixes(&self, eni: &EniId, _: u16) -> Result<Vec<Prefix>> {
        Err(Ec2Error::new(Action::AssignPrivateIpAddresses, eni, Class::Invalid, ""))
    }

    async fn assign_ipv6_prefixes(&self, eni: &EniId, _: u16) -> Result<Vec<Prefix>> {
        Err(Ec2Error::new(Action::AssignIpv6Addresses, eni, Class::Invalid, ""))
    }

    async fn unassign_ips(&self, eni: &EniId, ips: &[Ipv4Addr]) -> Result<()> {
        self.request(Action::UnassignPrivateIpAddresses, |cloud| {
            cloud.enis.get_mut(eni).unwrap().secondary_ips.retain(|address| !ips.contains(address));
            Ok(())
        })
        .await
    }

    async fn unassign_prefixes(&self, eni: &EniId, _: &[Prefix]) -> Result<()> {
        Err(Ec2Error::new(Action::UnassignPrivateIpAddresses, eni, Class::Invalid, ""))
    }

    async fn tag(&self, eni: &EniId, tags: &Tags) -> Result<()> {
        self.request(Action::CreateTags, |cloud| {
            cloud.enis.get_mut(eni).unwrap().tags.extend(tags.clone());
            Ok(())
        })
        .await
    }
}
