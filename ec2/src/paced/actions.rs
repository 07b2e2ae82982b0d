//! The EC2 actions of the paced client, with pages followed and partial answers completed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use vpc::{AttachmentId, EniId, EniSlot, InstanceId, InstanceLimits, Prefix, SecurityGroupId, VpcId};

use super::At;
use crate::{
    Action, AttachEni, Class, CreateEni, ENI_DESCRIPTION_PREFIX, Ec2, Ec2Error, EniQuery, EniRecord,
    EniStatus, Page, PageToken, Result, SubnetRecord, Tags,
};

/// The pages of one answer that are followed: a million records.
const PAGES_MAX: usize = 1000;

impl<E: Ec2> At<E> {
    /// What an instance type like `m5.large` can hold.
    ///
    /// # Errors
    /// [`Class::NotFound`] if EC2 does not know the type.
    pub async fn describe_instance_type(&self, name: &str) -> Result<InstanceLimits> {
        self.request(Action::DescribeInstanceTypes, &name, || self.ec2().describe_instance_type(name)).await
    }

    /// The positions that are taken on `instance`, those of ENIs on their way in or out included.
    ///
    /// # Errors
    /// [`Class::NotFound`] if EC2 does not know the instance.
    pub async fn taken_slots(&self, instance: &InstanceId) -> Result<Vec<EniSlot>> {
        self.request(Action::DescribeInstances, instance, || self.ec2().describe_instance_slots(instance))
            .await
    }

    /// The ENIs that are attached to `instance`, ordered by id. `shown` are those that instance
    /// metadata lists.
    ///
    /// EC2 looks for them by instance. Those of `shown` that its answer lacks are looked up by id,
    /// all of them if EC2 does not look by instance; ids it does not know are left out.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 answers neither way.
    pub async fn attached_enis(&self, instance: &InstanceId, shown: &[EniId]) -> Result<Vec<EniRecord>> {
        let refuses_filter = &self.paced.shared.refuses_instance_filter;
        let mut found = BTreeMap::new();
        let mut add = |records: Vec<EniRecord>| {
            let attached = records.into_iter().filter(|record| {
                record.attachment.as_ref().is_some_and(|attachment| attachment.instance == *instance)
            });
            found.extend(attached.map(|record| (record.id.clone(), record)));
        };
        if shown.is_empty() || !refuses_filter.load(Ordering::Relaxed) {
            match self.eni_pages(&EniQuery::AttachedTo(instance.clone())).await {
                Ok(records) => add(records),
                // Simulators of EC2 refuse filters they do not know, or fail on them.
                Err(error)
                    if !shown.is_empty() && matches!(error.class(), Class::Invalid | Class::Unavailable) =>
                {
                    tracing::info!(%error, "EC2 does not find ENIs by instance; asking for them by id");
                    refuses_filter.store(*error.class() == Class::Invalid, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let missing: Vec<EniId> = shown
            .iter()
            .filter(|&id| !found.contains_key(id))
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        if !missing.is_empty() {
            let records = self.enis(&missing).await?;
            let attached = records.into_iter().filter(|record| {
                record.attachment.as_ref().is_some_and(|attachment| attachment.instance == *instance)
            });
            found.extend(attached.map(|record| (record.id.clone(), record)));
        }
        Ok(found.into_values().collect())
    }

    /// These ENIs, ordered by id. Ids that EC2 does not know are left out.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 does not answer.
    pub async fn enis(&self, ids: &[EniId]) -> Result<Vec<EniRecord>> {
        let mut wanted: BTreeSet<EniId> = ids.iter().cloned().collect();
        // Every round leaves out at least one id, so this ends.
        while !wanted.is_empty() {
            let query = EniQuery::Ids(wanted.iter().cloned().collect());
            match self.eni_pages(&query).await {
                Ok(mut records) => {
                    records.retain(|record| wanted.contains(&record.id));
                    records.sort_by(|one, other| one.id.cmp(&other.id));
                    return Ok(records);
                }
                Err(error) if *error.class() == Class::NotFound => {
                    let before = wanted.len();
                    for id in error.unknown_enis() {
                        wanted.remove(&id);
                    }
                    if wanted.len() == before {
                        return self.enis_one_by_one(&wanted, error).await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Vec::new())
    }

    /// The ENIs of `wanted` that EC2 knows, where `error` does not say which ones it misses.
    async fn enis_one_by_one(&self, wanted: &BTreeSet<EniId>, error: Ec2Error) -> Result<Vec<EniRecord>> {
        let mut found = Vec::new();
        if wanted.len() == 1 {
            return Ok(found);
        }
        tracing::debug!(%error, "EC2 does not say which ENI it misses; asking for each");
        for id in wanted {
            match self.eni_pages(&EniQuery::Ids(vec![id.clone()])).await {
                Ok(records) => found.extend(records.into_iter().filter(|record| record.id == *id)),
                Err(error) if *error.class() == Class::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The unattached ENIs in `vpc` that were made for `instance`, by description and tag, and in
    /// `cluster` if one is named.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 does not answer.
    pub async fn unattached_enis_of(
        &self,
        instance: &InstanceId,
        vpc: &VpcId,
        cluster: Option<&str>,
    ) -> Result<Vec<EniRecord>> {
        let mut records = self.unattached(vpc, cluster, Some(instance)).await?;
        records.retain(|record| record.was_made_for(instance));
        Ok(records)
    }

    /// The unattached ENIs in `vpc` that were made for any instance, by description and tag, and
    /// in `cluster` if one is named.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 does not answer.
    pub async fn unattached_enis(&self, vpc: &VpcId, cluster: Option<&str>) -> Result<Vec<EniRecord>> {
        let mut records = self.unattached(vpc, cluster, None).await?;
        records.retain(|record| {
            record.description.starts_with(ENI_DESCRIPTION_PREFIX)
                && record.tags.contains_key(crate::INSTANCE_TAG)
        });
        Ok(records)
    }

    /// What EC2 answers, and of that only what was asked for: simulators ignore filters.
    async fn unattached(
        &self,
        vpc: &VpcId,
        cluster: Option<&str>,
        instance: Option<&InstanceId>,
    ) -> Result<Vec<EniRecord>> {
        let query = EniQuery::Unattached {
            vpc: vpc.clone(),
            cluster: cluster.map(str::to_owned),
            instance: instance.cloned(),
        };
        let mut records = self.eni_pages(&query).await?;
        records.retain(|record| {
            record.status == EniStatus::Available
                && record.attachment.is_none()
                && record.vpc == *vpc
                && cluster
                    .is_none_or(|name| record.tags.get(crate::CLUSTER_TAG).is_some_and(|tag| tag == name))
        });
        Ok(records)
    }

    /// The subnets of `vpc` in `availability_zone`, in EC2's order.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 does not answer.
    pub async fn subnets(&self, vpc: &VpcId, availability_zone: &str) -> Result<Vec<SubnetRecord>> {
        let resource = format!("of {vpc} in {availability_zone}");
        let mut subnets = Vec::new();
        let mut page: Option<PageToken> = None;
        for _ in 0..PAGES_MAX {
            let answer = self
                .request(Action::DescribeSubnets, &resource, || {
                    self.ec2().describe_subnets(vpc, availability_zone, page.as_ref())
                })
                .await?;
            if !take_page(answer, &mut subnets, &mut page) {
                return Ok(subnets);
            }
        }
        Err(endless(Action::DescribeSubnets, &resource))
    }

    /// Makes an ENI. The client token makes repeating safe, here and after a restart.
    ///
    /// # Errors
    /// [`Ec2Error`]; after one that [may have happened](Ec2Error::may_have_happened), ask again
    /// with the same token, or look for the ENI among the unattached.
    pub async fn create_eni(&self, eni: &CreateEni) -> Result<EniRecord> {
        let resource = format!("in {}", eni.subnet);
        self.request(Action::CreateNetworkInterface, &resource, || self.ec2().create_eni(eni)).await
    }

    /// Attaches an ENI.
    ///
    /// # Errors
    /// [`Ec2Error`]; after one that [may have happened](Ec2Error::may_have_happened), read the ENI.
    pub async fn attach_eni(&self, attach: &AttachEni) -> Result<AttachmentId> {
        let resource = format!("{} to {} at {}", attach.eni, attach.instance, attach.slot);
        self.request(Action::AttachNetworkInterface, &resource, || self.ec2().attach_eni(attach)).await
    }

    /// Has EC2 delete an attached ENI together with its instance.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 refuses or does not answer.
    pub async fn set_delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Result<()> {
        self.request(Action::ModifyNetworkInterfaceAttribute, eni, || {
            self.ec2().set_delete_on_termination(eni, attachment)
        })
        .await
    }

    /// Replaces the security groups of an ENI.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 refuses or does not answer.
    pub async fn set_security_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Result<()> {
        self.request(Action::ModifyNetworkInterfaceAttribute, eni, || {
            self.ec2().set_security_groups(eni, groups)
        })
        .await
    }

    /// Starts to detach an ENI; an attachment that is gone is detached. The answer comes before
    /// the ENI is free.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 refuses or does not answer.
    pub async fn detach_eni(&self, attachment: &AttachmentId) -> Result<()> {
        let outcome = self
            .request(Action::DetachNetworkInterface, attachment, || self.ec2().detach_eni(attachment))
            .await;
        match outcome {
            Err(error) if *error.class() == Class::AlreadyDone => Ok(()),
            outcome => outcome,
        }
    }

    /// Deletes an unattached ENI; one that EC2 does not know is deleted.
    ///
    /// # Errors
    /// [`Class::Busy`] while it is still being detached.
    pub async fn delete_eni(&self, eni: &EniId) -> Result<()> {
        self.request(Action::DeleteNetworkInterface, eni, || self.ec2().delete_eni(eni)).await
    }

    /// Assigns `count` secondary IPs of EC2's choice and gives them. Where EC2's answer does not
    /// list them, gives all the secondary IPs that the ENI holds now.
    ///
    /// # Errors
    /// [`Ec2Error`]; after one that [may have happened](Ec2Error::may_have_happened), read the ENI.
    pub async fn assign_ips(&self, eni: &EniId, count: u16) -> Result<Vec<Ipv4Addr>> {
        let resource = format!("of {count} secondary IPs to {eni}");
        let assigned = self
            .request(Action::AssignPrivateIpAddresses, &resource, || self.ec2().assign_ips(eni, count))
            .await?;
        if assigned.is_empty() { Ok(self.after_assigning(eni).await?.secondary_ips) } else { Ok(assigned) }
    }

    /// Assigns `count` IPv4 prefixes of EC2's choice and gives them. Where EC2's answer does not
    /// list them, gives all the IPv4 prefixes that the ENI holds now.
    ///
    /// # Errors
    /// [`Ec2Error`]; after one that [may have happened](Ec2Error::may_have_happened), read the ENI.
    pub async fn assign_prefixes(&self, eni: &EniId, count: u16) -> Result<Vec<Prefix>> {
        let resource = format!("of {count} prefixes to {eni}");
        let assigned = self
            .request(Action::AssignPrivateIpAddresses, &resource, || self.ec2().assign_prefixes(eni, count))
            .await?;
        if !assigned.is_empty() {
            return Ok(assigned);
        }
        let mut prefixes = self.after_assigning(eni).await?.prefixes;
        prefixes.retain(|prefix| matches!(prefix.net(), ipnet::IpNet::V4(_)));
        Ok(prefixes)
    }

    /// Assigns `count` IPv6 prefixes of EC2's choice and gives those. Where EC2 does not list them,
    /// gives all the IPv6 prefixes that the ENI holds now.
    ///
    /// # Errors
    /// [`Ec2Error`]; after one that [may have happened](Ec2Error::may_have_happened), read the ENI.
    pub async fn assign_ipv6_prefixes(&self, eni: &EniId, count: u16) -> Result<Vec<Prefix>> {
        let resource = format!("of {count} IPv6 prefixes to {eni}");
        let assigned = self
            .request(Action::AssignIpv6Addresses, &resource, || self.ec2().assign_ipv6_prefixes(eni, count))
            .await?;
        if !assigned.is_empty() {
            return Ok(assigned);
        }
        let mut prefixes = self.after_assigning(eni).await?.prefixes;
        prefixes.retain(|prefix| matches!(prefix.net(), ipnet::IpNet::V6(_)));
        Ok(prefixes)
    }

    /// The ENI as it is once EC2 assigned something without saying what.
    async fn after_assigning(&self, eni: &EniId) -> Result<EniRecord> {
        let record = self.enis(std::slice::from_ref(eni)).await?.pop();
        record.ok_or_else(|| {
            let detail = "addresses were assigned to it a moment ago";
            Ec2Error::new(Action::DescribeNetworkInterfaces, eni, Class::NotFound, detail)
        })
    }

    /// Takes secondary IPs from an ENI.
    ///
    /// # Errors
    /// [`Ec2Error`]; [`Class::NotFound`] if the ENI does not hold one of them, and then none is
    /// taken.
    pub async fn unassign_ips(&self, eni: &EniId, ips: &[Ipv4Addr]) -> Result<()> {
        let resource = format!("of {} secondary IPs from {eni}", ips.len());
        self.request(Action::UnassignPrivateIpAddresses, &resource, || self.ec2().unassign_ips(eni, ips))
            .await
    }

    /// Takes IPv4 prefixes from an ENI.
    ///
    /// # Errors
    /// As [`unassign_ips`](Self::unassign_ips).
    pub async fn unassign_prefixes(&self, eni: &EniId, prefixes: &[Prefix]) -> Result<()> {
        let resource = format!("of {} prefixes from {eni}", prefixes.len());
        self.request(Action::UnassignPrivateIpAddresses, &resource, || {
            self.ec2().unassign_prefixes(eni, prefixes)
        })
        .await
    }

    /// Adds tags to an ENI or replaces their values; other tags stay.
    ///
    /// # Errors
    /// [`Ec2Error`] if EC2 refuses or does not answer.
    pub async fn tag(&self, eni: &EniId, tags: &Tags) -> Result<()> {
        self.request(Action::CreateTags, eni, || self.ec2().tag(eni, tags)).await
    }

    /// All pages of the ENIs that `query` asks for.
    async fn eni_pages(&self, query: &EniQuery) -> Result<Vec<EniRecord>> {
        let mut enis = Vec::new();
        let mut page: Option<PageToken> = None;
        for _ in 0..PAGES_MAX {
            let answer = self
                .request(Action::DescribeNetworkInterfaces, query, || {
                    self.ec2().describe_enis(query, page.as_ref())
                })
                .await?;
            if !take_page(answer, &mut enis, &mut page) {
                return Ok(enis);
            }
        }
        Err(endless(Action::DescribeNetworkInterfaces, query))
    }
}

/// Adds a page to what was read; says whether there is another.
fn take_page<T>(answer: Page<T>, items: &mut Vec<T>, page: &mut Option<PageToken>) -> bool {
    items.extend(answer.items);
    *page = answer.next;
    page.is_some()
}

fn endless(action: Action, resource: &dyn std::fmt::Display) -> Ec2Error {
    Ec2Error::new(
        action,
        resource,
        Class::Malformed,
        &format!("the answer has no end after {PAGES_MAX} pages"),
    )
}
