//! The SDK's records as ours. A field that is missing or makes no sense is an error by its name.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::str::FromStr;

use aws_sdk_ec2::types as sdk;
use ipnet::Ipv6Net;
use vpc::{EniKind, EniSlot, InstanceId};

use crate::{
    Action, Attachment, AttachmentStatus, Class, ConnectionTracking, Ec2Error, EniRecord, EniStatus,
    PageToken, Result, SubnetRecord, Tags,
};

/// Reads EC2's answer to one request.
pub(super) struct Answer<'a> {
    pub(super) action: Action,
    pub(super) resource: &'a (dyn Display + Sync),
}

/// Where the next page begins; EC2 writes no token or an empty one on the last.
pub(super) fn next_page(token: Option<&str>) -> Option<PageToken> {
    token.filter(|token| !token.is_empty()).map(PageToken::new)
}

impl Answer<'_> {
    pub(super) fn malformed(&self, detail: &str) -> Ec2Error {
        Ec2Error::new(self.action, self.resource, Class::Malformed, detail)
    }

    /// The value of a field that must be there.
    pub(super) fn required<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.malformed(&format!("{field} is missing")))
    }

    /// The parsed text of a field that must be there.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self, field: &str, text: Option<&str>) -> Result<T> {
        self.parsed_text(field, self.required(field, text)?)
    }

    fn parsed_text<T: FromStr<Err: Display>>(&self, field: &str, text: &str) -> Result<T> {
        text.parse().map_err(|error| self.malformed(&format!("{field} is {text:?}: {error}")))
    }

    /// A number of a field that must be there, in the range of `T`.
    pub(super) fn number<T: TryFrom<i32>>(&self, field: &str, number: Option<i32>) -> Result<T> {
        let number = self.required(field, number)?;
        T::try_from(number).map_err(|_| {
            self.malformed(&format!("{field} is {number}: expected a number of {} bits", 8 * size_of::<T>()))
        })
    }

    pub(super) fn eni(&self, eni: &sdk::NetworkInterface) -> Result<EniRecord> {
        let id: vpc::EniId = self.parsed("networkInterfaceId", eni.network_interface_id())?;
        let field = |name: &str| format!("{id}.{name}");
        let primary_ip: Option<Ipv4Addr> = match eni.private_ip_address().filter(|text| !text.is_empty()) {
            Some(text) => Some(self.parsed_text(&field("privateIpAddress"), text)?),
            None => None,
        };
        let mut secondary_ips = Vec::with_capacity(eni.private_ip_addresses().len());
        for item in eni.private_ip_addresses() {
            let ip =
                self.parsed(&field("privateIpAddressesSet.privateIpAddress"), item.private_ip_address())?;
            if item.primary() != Some(true) && Some(ip) != primary_ip {
                secondary_ips.push(ip);
            }
        }
        let mut prefixes = Vec::with_capacity(eni.ipv4_prefixes().len() + eni.ipv6_prefixes().len());
        for item in eni.ipv4_prefixes() {
            prefixes.push(self.parsed(&field("ipv4PrefixSet.ipv4Prefix"), item.ipv4_prefix())?);
        }
        for item in eni.ipv6_prefixes() {
            prefixes.push(self.parsed(&field("ipv6PrefixSet.ipv6Prefix"), item.ipv6_prefix())?);
        }
        let ipv6_addresses = eni
            .ipv6_addresses()
            .iter()
            .map(|item| self.parsed(&field("ipv6AddressesSet.ipv6Address"), item.ipv6_address()))
            .collect::<Result<_>>()?;
        let security_groups = eni
            .groups()
            .iter()
            .map(|item| self.parsed(&field("groupSet.groupId"), item.group_id()))
            .collect::<Result<_>>()?;
        Ok(EniRecord {
            mac: self.parsed(&field("macAddress"), eni.mac_address())?,
            subnet: self.parsed(&field("subnetId"), eni.subnet_id())?,
            vpc: self.parsed(&field("vpcId"), eni.vpc_id())?,
            availability_zone: eni.availability_zone().unwrap_or_default().to_owned(),
            status: self.eni_status(&field("status"), eni.status())?,
            attachment: match eni.attachment() {
                Some(attachment) => self.attachment(&id, attachment)?,
                None => None,
            },
            kind: eni_kind(&id, eni.interface_type()),
            primary_ip,
            secondary_ips,
            ipv6_addresses,
            prefixes,
            security_groups,
            connection_tracking: match eni.connection_tracking_configuration() {
                Some(tracking) => self.connection_tracking(&id, tracking)?,
                None => None,
            },
            tags: tags(eni.tag_set()),
            description: eni.description().unwrap_or_default().to_owned(),
            id,
        })
    }

    fn eni_status(&self, field: &str, status: Option<&sdk::NetworkInterfaceStatus>) -> Result<EniStatus> {
        match self.required(field, status)?.as_str() {
            "available" => Ok(EniStatus::Available),
            "associated" => Ok(EniStatus::Associated),
            "attaching" => Ok(EniStatus::Attaching),
            "in-use" => Ok(EniStatus::InUse),
            "detaching" => Ok(EniStatus::Detaching),
            "pending" => Ok(EniStatus::Pending),
            other => Err(self.malformed(&format!(
                "{field} is {other:?}: expected available, associated, attaching, in-use, detaching or pending"
            ))),
        }
    }

    /// The attachment to an instance; `None` for one to a load balancer and the like.
    fn attachment(
        &self,
        eni: &vpc::EniId,
        attachment: &sdk::NetworkInterfaceAttachment,
    ) -> Result<Option<Attachment>> {
        let field = |name: &str| format!("{eni}.attachment.{name}");
        let Some(instance) = attachment.instance_id().filter(|id| !id.is_empty()) else {
            return Ok(None);
        };
        let status = match attachment.status().map(sdk::AttachmentStatus::as_str) {
            Some("attaching") => AttachmentStatus::Attaching,
            // Only simulators leave it out, and those attach at once.
            Some("attached") | None => AttachmentStatus::Attached,
            Some("detaching") => AttachmentStatus::Detaching,
            Some("detached") => AttachmentStatus::Detached,
            Some(other) => {
                return Err(self.malformed(&format!(
                    "{} is {other:?}: expected attaching, attached, detaching or detached",
                    field("status")
                )));
            }
        };
        Ok(Some(Attachment {
            id: self.parsed(&field("attachmentId"), attachment.attachment_id())?,
            instance: self.parsed_text(&field("instanceId"), instance)?,
            slot: self.slot(
                &format!("{eni}.attachment"),
                attachment.device_index(),
                attachment.network_card_index(),
            )?,
            delete_on_termination: attachment.delete_on_termination().unwrap_or(false),
            status,
        }))
    }

    /// A position. Instances with one card need not name it.
    fn slot(&self, field: &str, device: Option<i32>, card: Option<i32>) -> Result<EniSlot> {
        let device = self.number(&format!("{field}.deviceIndex"), device)?;
        let card = self.number(&format!("{field}.networkCardIndex"), Some(card.unwrap_or(0)))?;
        Ok(EniSlot::new(card, device))
    }

    fn connection_tracking(
        &self,
        eni: &vpc::EniId,
        tracking: &sdk::ConnectionTrackingConfiguration,
    ) -> Result<Option<ConnectionTracking>> {
        let secs = |name: &str, number: Option<i32>| -> Result<Option<u32>> {
            number
                .map(|number| {
                    self.number(&format!("{eni}.connectionTrackingConfiguration.{name}"), Some(number))
                })
                .transpose()
        };
        let tracking = ConnectionTracking {
            tcp_established_secs: secs("tcpEstablishedTimeout", tracking.tcp_established_timeout())?,
            udp_stream_secs: secs("udpStreamTimeout", tracking.udp_stream_timeout())?,
            udp_secs: secs("udpTimeout", tracking.udp_timeout())?,
        };
        Ok((tracking != ConnectionTracking::default()).then_some(tracking))
    }

    pub(super) fn subnet(&self, subnet: &sdk::Subnet) -> Result<SubnetRecord> {
        let id: vpc::SubnetId = self.parsed("subnetId", subnet.subnet_id())?;
        let field = |name: &str| format!("{id}.{name}");
        Ok(SubnetRecord {
            vpc: self.parsed(&field("vpcId"), subnet.vpc_id())?,
            availability_zone: self
                .required(&field("availabilityZone"), subnet.availability_zone())?
                .to_owned(),
            ipv4_cidr: match subnet.cidr_block().filter(|text| !text.is_empty()) {
                Some(text) => Some(self.parsed_text(&field("cidrBlock"), text)?),
                None => None,
            },
            ipv6_cidr: self.ipv6_cidr(&field("ipv6CidrBlockAssociationSet"), subnet)?,
            free_addresses: self
                .number(&field("availableIpAddressCount"), subnet.available_ip_address_count())?,
            tags: tags(subnet.tags()),
            id,
        })
    }

    /// The IPv6 block of a subnet; a subnet has one at most, beside those it lost.
    fn ipv6_cidr(&self, field: &str, subnet: &sdk::Subnet) -> Result<Option<Ipv6Net>> {
        let blocks = subnet.ipv6_cidr_block_association_set().iter().filter(|block| {
            let state = block.ipv6_cidr_block_state().and_then(|state| state.state());
            state.is_none_or(|state| matches!(state.as_str(), "associated" | "associating"))
        });
        match blocks.filter_map(|block| block.ipv6_cidr_block()).next() {
            Some(text) => self.parsed_text(&format!("{field}.ipv6CidrBlock"), text).map(Some),
            None => Ok(None),
        }
    }

    /// The positions that are taken on `instance`.
    pub(super) fn slots(
        &self,
        instance: &InstanceId,
        reservations: &[sdk::Reservation],
    ) -> Result<Vec<EniSlot>> {
        let found = reservations
            .iter()
            .flat_map(sdk::Reservation::instances)
            .find(|record| record.instance_id() == Some(instance.as_str()));
        let Some(record) = found else {
            return Err(Ec2Error::new(
                self.action,
                self.resource,
                Class::NotFound,
                "the answer does not hold the instance",
            ));
        };
        record
            .network_interfaces()
            .iter()
            .map(|eni| {
                let name =
                    format!("networkInterfaceSet.{}.attachment", eni.network_interface_id().unwrap_or("?"));
                let attachment = self.required(&name, eni.attachment())?;
                self.slot(&name, attachment.device_index(), attachment.network_card_index())
            })
            .collect()
    }
}

/// The kind of device. Kinds we do not know are those of AWS services; like
/// amazon-vpc-cni-k8s we take one that is attached to an instance for an ordinary interface.
fn eni_kind(id: &vpc::EniId, kind: Option<&sdk::NetworkInterfaceType>) -> EniKind {
    match kind.map(sdk::NetworkInterfaceType::as_str) {
        Some("trunk") => EniKind::Trunk,
        Some("efa") => EniKind::Efa,
        Some("efa-only") => EniKind::EfaOnly,
        Some("interface") | None => EniKind::Interface,
        Some(other) => {
            tracing::warn!(eni_id = %id, kind = other, "unknown kind of ENI; taken for an ordinary one");
            EniKind::Interface
        }
    }
}

fn tags(tags: &[sdk::Tag]) -> Tags {
    tags.iter()
        .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
        .collect()
}
