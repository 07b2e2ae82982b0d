//! The Describe actions.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cloud::eni::Eni;
use crate::cloud::error::Ec2Error;
use crate::cloud::instance::Instance;
use crate::cloud::model::Cloud;
use crate::cloud::request::{Describe, InstanceWithEnis, Listing, Page, Response, TagRecord};
use crate::cloud::subnet::Subnet;

use super::filter::{Values, accepts, tag_values};

/// EC2's bounds for `MaxResults`.
const PAGE: std::ops::RangeInclusive<u32> = 5..=1000;

impl Cloud {
    pub(in crate::cloud) fn describe_network_interfaces(
        &self,
        request: &Describe,
    ) -> Result<Response, Ec2Error> {
        let listing = select(request, &self.enis, |id| self.eni(id), |eni, name| eni_values(eni, name))?;
        Ok(Response::NetworkInterfaces(listing))
    }

    pub(in crate::cloud) fn describe_subnets(&self, request: &Describe) -> Result<Response, Ec2Error> {
        let listing =
            select(request, &self.subnets, |id| self.subnet(id), |it, name| subnet_values(it, name))?;
        Ok(Response::Subnets(listing))
    }

    pub(in crate::cloud) fn describe_instances(&self, request: &Describe) -> Result<Response, Ec2Error> {
        let listing =
            select(request, &self.instances, |id| self.instance(id), |it, name| instance_values(it, name))?;
        let items = listing
            .items
            .into_iter()
            .map(|instance| InstanceWithEnis { enis: self.enis_of(&instance.id), instance })
            .collect();
        Ok(Response::Instances(Listing { items, next_token: listing.next_token }))
    }

    pub(in crate::cloud) fn describe_instance_types(&self, request: &Describe) -> Result<Response, Ec2Error> {
        let find = |name: &str| self.instance_type(name).cloned();
        let values = |it: &crate::cloud::InstanceType, name: &str| match name {
            "instance-type" => Some(vec![it.name.clone()]),
            "bare-metal" => Some(vec![it.bare_metal.to_string()]),
            "hypervisor" => Some(vec![it.hypervisor.clone()]),
            _ => None,
        };
        Ok(Response::InstanceTypes(select(request, &self.types, find, values)?))
    }

    pub(in crate::cloud) fn describe_tags(&self, request: &Describe) -> Result<Response, Ec2Error> {
        let tags = |id: &String, resource_type, tags: &BTreeMap<String, String>| {
            tags.iter()
                .map(|(key, value)| TagRecord {
                    resource_id: id.clone(),
                    resource_type,
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect::<Vec<_>>()
        };
        let enis = self.enis.iter().flat_map(|(id, it)| tags(id, "network-interface", &it.tags));
        let instances = self.instances.iter().flat_map(|(id, it)| tags(id, "instance", &it.tags));
        let subnets = self.subnets.iter().flat_map(|(id, it)| tags(id, "subnet", &it.tags));
        let mut found = Vec::new();
        for tag in enis.chain(instances).chain(subnets) {
            let values = |name: &str| match name {
                "key" => Some(vec![tag.key.clone()]),
                "value" => Some(vec![tag.value.clone()]),
                "resource-id" => Some(vec![tag.resource_id.clone()]),
                "resource-type" => Some(vec![tag.resource_type.to_owned()]),
                _ => name
                    .strip_prefix("tag:")
                    .map(|key| if key == tag.key { vec![tag.value.clone()] } else { Vec::new() }),
            };
            if accepts(&request.filters, values)? {
                found.push(tag);
            }
        }
        Ok(Response::Tags(cut(found, &request.page)?))
    }

    /// The ENIs with an attachment to `instance`, in whatever state, by card and device index.
    fn enis_of(&self, instance: &str) -> Vec<Arc<Eni>> {
        let mut enis: Vec<_> = self
            .enis
            .values()
            .filter_map(|eni| Some((eni.attachment.as_ref()?, eni)))
            .filter(|(attachment, _)| attachment.instance_id == instance)
            .map(|(it, eni)| ((it.network_card, it.device_index), eni.clone()))
            .collect();
        enis.sort_by_key(|(place, _)| *place);
        enis.into_iter().map(|(_, eni)| eni).collect()
    }
}

/// The things with the ids asked for, or all of them, that pass the filters, cut to the page.
fn select<T: Clone>(
    request: &Describe,
    all: &BTreeMap<String, T>,
    find: impl Fn(&str) -> Result<T, Ec2Error>,
    values: impl Fn(&T, &str) -> Values,
) -> Result<Listing<T>, Ec2Error> {
    if request.page.max_results.is_some() && !request.ids.is_empty() {
        return Err(Ec2Error::combination("The parameter MaxResults cannot be used with a list of ids"));
    }
    let candidates: Vec<T> = if request.ids.is_empty() {
        all.values().cloned().collect()
    } else {
        request.ids.iter().map(|id| find(id)).collect::<Result<_, _>>()?
    };
    let mut items = Vec::new();
    for item in candidates {
        if accepts(&request.filters, |name| values(&item, name))? {
            items.push(item);
        }
    }
    cut(items, &request.page)
}

/// A token is the position of the next item. It is only good for the same question.
fn cut<T>(mut items: Vec<T>, page: &Page) -> Result<Listing<T>, Ec2Error> {
    if let Some(size) = page.max_results.filter(|size| !PAGE.contains(size)) {
        return Err(Ec2Error::invalid_value(format!(
            "Value ( {size} ) for parameter maxResults is invalid. Expecting a value from {} to {}.",
            PAGE.start(),
            PAGE.end()
        )));
    }
    let start = match &page.next_token {
        None => 0,
        Some(token) => token
            .strip_prefix("page-")
            .and_then(|position| position.parse::<usize>().ok())
            .filter(|position| *position <= items.len())
            .ok_or_else(|| Ec2Error::new("InvalidNextToken", format!("Invalid NextToken '{token}'")))?,
    };
    items.drain(..start);
    let size = page.max_results.map_or(usize::MAX, |size| size as usize);
    if items.len() <= size {
        return Ok(Listing { items, next_token: None });
    }
    items.truncate(size);
    Ok(Listing { items, next_token: Some(format!("page-{}", start + size)) })
}

fn eni_values(eni: &Eni, name: &str) -> Values {
    let attachment = |value: &dyn Fn(&crate::cloud::Attachment) -> String| {
        eni.attachment.iter().map(value).collect::<Vec<String>>()
    };
    Some(match name {
        "network-interface-id" => vec![eni.id.clone()],
        "attachment.instance-id" => attachment(&|it| it.instance_id.clone()),
        "attachment.attachment-id" => attachment(&|it| it.id.clone()),
        "attachment.status" => attachment(&|it| it.status.as_str().to_owned()),
        "attachment.device-index" => attachment(&|it| it.device_index.to_string()),
        "attachment.delete-on-termination" => attachment(&|it| it.delete_on_termination.to_string()),
        "status" => vec![eni.status().to_owned()],
        "vpc-id" => vec![eni.vpc_id.clone()],
        "subnet-id" => vec![eni.subnet_id.clone()],
        "availability-zone" => vec![eni.zone.clone()],
        "description" => vec![eni.description.clone()],
        "mac-address" => vec![eni.mac.clone()],
        "owner-id" | "requester-id" => vec![eni.requester_id.clone()],
        "interface-type" => vec![eni.kind.as_str().to_owned()],
        "group-id" => eni.groups.clone(),
        "source-dest-check" => vec![eni.source_dest_check.to_string()],
        "private-ip-address" => vec![eni.primary_ip().to_string()],
        "addresses.private-ip-address" => eni.addresses.iter().map(|ip| ip.address.to_string()).collect(),
        "addresses.primary" => eni.addresses.iter().map(|ip| ip.is_primary.to_string()).collect(),
        _ => return tag_values(name, &eni.tags),
    })
}

fn subnet_values(subnet: &Subnet, name: &str) -> Values {
    Some(match name {
        "subnet-id" => vec![subnet.id.clone()],
        "vpc-id" => vec![subnet.vpc_id.clone()],
        "availability-zone" | "availabilityZone" => vec![subnet.zone.clone()],
        "availability-zone-id" | "availabilityZoneId" => vec![subnet.zone_id.clone()],
        "cidr-block" | "cidr" | "cidrBlock" => vec![subnet.cidr.to_string()],
        "available-ip-address-count" => vec![subnet.available.to_string()],
        "state" => vec!["available".to_owned()],
        _ => return tag_values(name, &subnet.tags),
    })
}

fn instance_values(instance: &Instance, name: &str) -> Values {
    let (code, state) = instance.state.code_and_name();
    Some(match name {
        "instance-id" => vec![instance.id.clone()],
        "instance-type" => vec![instance.instance_type.clone()],
        "instance-state-name" => vec![state.to_owned()],
        "instance-state-code" => vec![code.to_string()],
        "vpc-id" => vec![instance.vpc_id.clone()],
        "subnet-id" => vec![instance.subnet_id.clone()],
        "availability-zone" => vec![instance.zone.clone()],
        "private-ip-address" => vec![instance.private_ip.to_string()],
        _ => return tag_values(name, &instance.tags),
    })
}
