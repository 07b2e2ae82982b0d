//! The EC2 actions over the AWS SDK. Nothing of the SDK leaves this folder.

mod connect;
mod credentials;
mod failure;
mod limits;
mod translate;

use std::fmt::Display;
use std::net::Ipv4Addr;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::RequestId;
use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest, Filter, NetworkInterfaceAttachmentChanges, ResourceType, Tag,
    TagSpecification,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use vpc::{AttachmentId, EniId, EniSlot, InstanceId, InstanceLimits, Prefix, SecurityGroupId, VpcId};

pub use connect::AwsOptions;

use crate::{
    Action, AttachEni, CLUSTER_TAG, Class, CreateEni, Ec2, EniQuery, EniRecord, INSTANCE_TAG, NewAddresses,
    Page, PageToken, Result, SubnetRecord, Tags,
};
use credentials::Kept;
use translate::Answer;

/// The most records EC2 puts on a page.
const PAGE_SIZE: i32 = 1000;

/// EC2 over the AWS SDK. Cheap to clone.
///
/// It repeats nothing by itself and keeps no pace; that is [`Paced`](crate::Paced)'s business.
#[derive(Debug, Clone)]
pub struct Aws {
    client: Client,
    credentials: Kept,
}

/// What an action was about, for the errors of its answer.
struct Asked<'a> {
    action: Action,
    resource: &'a (dyn Display + Sync),
    credentials: &'a Kept,
}

impl Asked<'_> {
    /// The SDK's answer, or its failure in our words. Credentials that EC2 rejects are dropped.
    async fn answer<T, E>(&self, outcome: std::result::Result<T, SdkError<E, HttpResponse>>) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        SdkError<E, HttpResponse>: RequestId,
    {
        let outcome = outcome.map_err(|error| failure::of(self.action, self.resource, &error));
        if outcome.as_ref().is_err_and(|error| *error.class() == Class::Credentials) {
            self.credentials.forget().await;
        }
        outcome
    }

    fn reader(&self) -> Answer<'_> {
        Answer { action: self.action, resource: self.resource }
    }
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

fn sdk_tags(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

impl Aws {
    fn asked<'a>(&'a self, action: Action, resource: &'a (dyn Display + Sync)) -> Asked<'a> {
        Asked { action, resource, credentials: &self.credentials }
    }
}

impl Ec2 for Aws {
    async fn describe_instance_type(&self, name: &str) -> Result<InstanceLimits> {
        let asked = self.asked(Action::DescribeInstanceTypes, &name);
        let request = self.client.describe_instance_types().instance_types(name.into());

        let answer = asked.answer(request.send().await).await?;

        asked.reader().instance_limits(name, answer.instance_types())
    }

    async fn describe_instance_slots(&self, instance: &InstanceId) -> Result<Vec<EniSlot>> {
        let asked = self.asked(Action::DescribeInstances, instance);
        let request = self.client.describe_instances().instance_ids(instance.as_str());

        let answer = asked.answer(request.send().await).await?;

        asked.reader().slots(instance, answer.reservations())
    }

    async fn describe_enis(&self, query: &EniQuery, page: Option<&PageToken>) -> Result<Page<EniRecord>> {
        let resource = query.to_string();
        let asked = self.asked(Action::DescribeNetworkInterfaces, &resource);
        let request =
            self.client.describe_network_interfaces().set_next_token(page.map(|page| page.0.clone()));
        let request = match query {
            EniQuery::AttachedTo(instance) => {
                request.filters(filter("attachment.instance-id", instance.as_str())).max_results(PAGE_SIZE)
            }
            // EC2 refuses a page size together with ids.
            EniQuery::Ids(ids) => {
                request.set_network_interface_ids(Some(ids.iter().map(EniId::to_string).collect()))
            }
            EniQuery::Unattached { vpc, cluster, instance } => {
                let request = request
                    .filters(match instance {
                        Some(instance) => filter(&format!("tag:{INSTANCE_TAG}"), instance.as_str()),
                        None => filter("tag-key", INSTANCE_TAG),
                    })
                    .filters(filter("status", "available"))
                    .filters(filter("vpc-id", vpc.as_str()))
                    .max_results(PAGE_SIZE);
                match cluster {
                    Some(name) => request.filters(filter(&format!("tag:{CLUSTER_TAG}"), name)),
                    None => request,
                }
            }
        };

        let answer = asked.answer(request.send().await).await?;

        let reader = asked.reader();
        let items = answer.network_interfaces().iter().map(|eni| reader.eni(eni)).collect::<Result<_>>()?;
        Ok(Page { items, next: translate::next_page(answer.next_token()) })
    }

    async fn describe_subnets(
        &self,
        vpc: &VpcId,
        availability_zone: &str,
        page: Option<&PageToken>,
    ) -> Result<Page<SubnetRecord>> {
        let resource = format!("of {vpc} in {availability_zone}");
        let asked = self.asked(Action::DescribeSubnets, &resource);
        let request = self
            .client
            .describe_subnets()
            .filters(filter("vpc-id", vpc.as_str()))
            .filters(filter("availability-zone", availability_zone))
            .max_results(PAGE_SIZE)
            .set_next_token(page.map(|page| page.0.clone()));

        let answer = asked.answer(request.send().await).await?;

        let reader = asked.reader();
        let items = answer.subnets().iter().map(|subnet| reader.subnet(subnet)).collect::<Result<_>>()?;
        Ok(Page { items, next: translate::next_page(answer.next_token()) })
    }

    async fn create_eni(&self, eni: &CreateEni) -> Result<EniRecord> {
        let resource = format!("in {}", eni.subnet);
        let asked = self.asked(Action::CreateNetworkInterface, &resource);
        let tracking = eni.connection_tracking.map(|tracking| {
            let secs = |secs: Option<u32>| secs.and_then(|secs| i32::try_from(secs).ok());
            ConnectionTrackingSpecificationRequest::builder()
                .set_tcp_established_timeout(secs(tracking.tcp_established_secs))
                .set_udp_stream_timeout(secs(tracking.udp_stream_secs))
                .set_udp_timeout(secs(tracking.udp_secs))
                .build()
        });
        let tags = (!eni.tags.is_empty()).then(|| {
            let tags = sdk_tags(&eni.tags);
            vec![
                TagSpecification::builder()
                    .resource_type(ResourceType::NetworkInterface)
                    .set_tags(Some(tags))
                    .build(),
            ]
        });
        let request = self
            .client
            .create_network_interface()
            .subnet_id(eni.subnet.as_str())
            .description(&eni.description)
            .set_groups(Some(eni.security_groups.iter().map(SecurityGroupId::to_string).collect()))
            .set_connection_tracking_specification(tracking)
            .set_tag_specifications(tags)
            .client_token(&eni.client_token);
        let request = match eni.addresses {
            NewAddresses::None => request,
            NewAddresses::SecondaryIps(count) => request.secondary_private_ip_address_count(count.into()),
            NewAddresses::Ipv4Prefixes(count) => request.ipv4_prefix_count(count.into()),
            NewAddresses::Ipv6Address => request.ipv6_address_count(1),
        };

        let answer = asked.answer(request.send().await).await?;

        let reader = asked.reader();
        reader.eni(reader.required("networkInterface", answer.network_interface())?)
    }

    async fn attach_eni(&self, attach: &AttachEni) -> Result<AttachmentId> {
        let resource = format!("{} to {} at {}", attach.eni, attach.instance, attach.slot);
        let asked = self.asked(Action::AttachNetworkInterface, &resource);
        let request = self
            .client
            .attach_network_interface()
            .network_interface_id(attach.eni.as_str())
            .instance_id(attach.instance.as_str())
            .device_index(attach.slot.device.0.into())
            .network_card_index(attach.slot.card.0.into());

        let answer = asked.answer(request.send().await).await?;

        asked.reader().parsed("attachmentId", answer.attachment_id())
    }

    async fn set_delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Result<()> {
        let asked = self.asked(Action::ModifyNetworkInterfaceAttribute, eni);
        let changes = NetworkInterfaceAttachmentChanges::builder()
            .attachment_id(attachment.as_str())
            .delete_on_termination(true)
            .build();
        let request = self
            .client
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .attachment(changes);

        asked.answer(request.send().await).await.map(drop)
    }

    async fn set_security_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Result<()> {
        let asked = self.asked(Action::ModifyNetworkInterfaceAttribute, eni);
        let request = self
            .client
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .set_groups(Some(groups.iter().map(SecurityGroupId::to_string).collect()));

        asked.answer(request.send().await).await.map(drop)
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<()> {
        let asked = self.asked(Action::DetachNetworkInterface, attachment);
        let request = self.client.detach_network_interface().attachment_id(attachment.as_str());

        asked.answer(request.send().await).await.map(drop)
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<()> {
        let asked = self.asked(Action::DeleteNetworkInterface, eni);
        let request = self.client.delete_network_interface().network_interface_id(eni.as_str());

        match asked.answer(request.send().await).await {
            Err(error) if *error.class() == Class::NotFound => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn assign_ips(&self, eni: &EniId, count: u16) -> Result<Vec<Ipv4Addr>> {
        let resource = format!("of {count} secondary IPs to {eni}");
        let asked = self.asked(Action::AssignPrivateIpAddresses, &resource);
        let request = self
            .client
            .assign_private_ip_addresses()
            .network_interface_id(eni.as_str())
            .secondary_private_ip_address_count(count.into());

        let answer = asked.answer(request.send().await).await?;

        let reader = asked.reader();
        let assigned = answer.assigned_private_ip_addresses().iter();
        assigned
            .map(|item| {
                reader.parsed("assignedPrivateIpAddressesSet.privateIpAddress", item.private_ip_address())
            })
            .collect()
    }

    async fn assign_prefixes(&self, eni: &EniId, count: u16) -> Result<Vec<Prefix>> {
        let resource = format!("of {count} prefixes to {eni}");
        let asked = self.asked(Action::AssignPrivateIpAddresses, &resource);
        let request = self
            .client
            .assign_private_ip_addresses()
            .network_interface_id(eni.as_str())
            .ipv4_prefix_count(count.into());

        let answer = asked.answer(request.send().await).await?;

        let reader = asked.reader();
        let assigned = answer.assigned_ipv4_prefixes().iter();
        assigned.map(|item| reader.parsed("assignedIpv4PrefixSet.ipv4Prefix", item.ipv4_prefix())).collect()
    }

    async fn assign_ipv6_prefixes(&self, eni: &EniId, count: u16) -> Result<Vec<Prefix>> {
        let resource = format!("of {count} IPv6 prefixes to {eni}");
        let asked = self.asked(Action::AssignIpv6Addresses, &resource);
        let request = self
            .client
            .assign_ipv6_addresses()
            .network_interface_id(eni.as_str())
            .ipv6_prefix_count(count.into());

        let answer = asked.answer(request.send().await).await?;

        let reader = asked.reader();
        let assigned = answer.assigned_ipv6_prefixes().iter();
        assigned.map(|prefix| reader.parsed("assignedIpv6PrefixSet", Some(prefix))).collect()
    }

    async fn unassign_ips(&self, eni: &EniId, ips: &[Ipv4Addr]) -> Result<()> {
        let resource = format!("of {} secondary IPs from {eni}", ips.len());
        let asked = self.asked(Action::UnassignPrivateIpAddresses, &resource);
        let request = self
            .client
            .unassign_private_ip_addresses()
            .network_interface_id(eni.as_str())
            .set_private_ip_addresses(Some(ips.iter().map(Ipv4Addr::to_string).collect()));

        asked.answer(request.send().await).await.map(drop)
    }

    async fn unassign_prefixes(&self, eni: &EniId, prefixes: &[Prefix]) -> Result<()> {
        let resource = format!("of {} prefixes from {eni}", prefixes.len());
        let asked = self.asked(Action::UnassignPrivateIpAddresses, &resource);
        let request = self
            .client
            .unassign_private_ip_addresses()
            .network_interface_id(eni.as_str())
            .set_ipv4_prefixes(Some(prefixes.iter().map(Prefix::to_string).collect()));

        asked.answer(request.send().await).await.map(drop)
    }

    async fn tag(&self, eni: &EniId, tags: &Tags) -> Result<()> {
        let asked = self.asked(Action::CreateTags, eni);
        let request = self.client.create_tags().resources(eni.as_str()).set_tags(Some(sdk_tags(tags)));

        asked.answer(request.send().await).await.map(drop)
    }
}
