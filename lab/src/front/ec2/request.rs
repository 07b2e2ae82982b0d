//! From parameters to a typed request.

use crate::cloud::{
    AssignIpv6Addresses, AssignPrivateIpAddresses, AttachNetworkInterface, ConnectionTracking,
    CreateNetworkInterface, Describe, DetachNetworkInterface, Ec2Error, EniChange, InterfaceType,
    ModifyNetworkInterfaceAttribute, Page, Request, UnassignIpv6Addresses, UnassignPrivateIpAddresses,
};

use super::params::Params;

/// Reads the request, or says what is wrong with its parameters.
pub(super) fn typed(params: &Params) -> Result<Request, Ec2Error> {
    let action = params
        .action()
        .ok_or_else(|| Ec2Error::new("MissingAction", "The request must contain the parameter Action"))?;
    let is_dry_run = params.flag("DryRun")?.unwrap_or(false);
    let request = match action {
        "DescribeInstanceTypes" => Request::DescribeInstanceTypes(describe(params, "InstanceType")?),
        "DescribeInstances" => Request::DescribeInstances(describe(params, "InstanceId")?),
        "DescribeSubnets" => Request::DescribeSubnets(describe(params, "SubnetId")?),
        "DescribeNetworkInterfaces" => {
            Request::DescribeNetworkInterfaces(describe(params, "NetworkInterfaceId")?)
        }
        // Tags have no ids of their own, and no parameter is called so.
        "DescribeTags" => Request::DescribeTags(describe(params, "-")?),
        "CreateNetworkInterface" => Request::CreateNetworkInterface(create(params)?),
        "AttachNetworkInterface" => Request::AttachNetworkInterface(AttachNetworkInterface {
            eni_id: params.required("NetworkInterfaceId")?,
            instance_id: params.required("InstanceId")?,
            device_index: params.parsed("DeviceIndex")?.ok_or_else(|| Ec2Error::missing("DeviceIndex"))?,
            network_card: params.parsed("NetworkCardIndex")?.unwrap_or(0),
        }),
        "DetachNetworkInterface" => Request::DetachNetworkInterface(DetachNetworkInterface {
            attachment_id: params.required("AttachmentId")?,
            force: params.flag("Force")?.unwrap_or(false),
        }),
        "DeleteNetworkInterface" => {
            Request::DeleteNetworkInterface { eni_id: params.required("NetworkInterfaceId")? }
        }
        "ModifyNetworkInterfaceAttribute" => {
            Request::ModifyNetworkInterfaceAttribute(ModifyNetworkInterfaceAttribute {
                eni_id: params.required("NetworkInterfaceId")?,
                change: change(params)?,
            })
        }
        "AssignPrivateIpAddresses" => Request::AssignPrivateIpAddresses(AssignPrivateIpAddresses {
            eni_id: params.required("NetworkInterfaceId")?,
            count: params.parsed("SecondaryPrivateIpAddressCount")?,
            addresses: params.parsed_list("PrivateIpAddress")?,
            prefix_count: params.parsed("Ipv4PrefixCount")?,
            prefixes: params.parsed_list("Ipv4Prefix")?,
            allow_reassignment: params.flag("AllowReassignment")?.unwrap_or(false),
        }),
        "UnassignPrivateIpAddresses" => Request::UnassignPrivateIpAddresses(UnassignPrivateIpAddresses {
            eni_id: params.required("NetworkInterfaceId")?,
            addresses: params.parsed_list("PrivateIpAddress")?,
            prefixes: params.parsed_list("Ipv4Prefix")?,
        }),
        "AssignIpv6Addresses" => Request::AssignIpv6Addresses(AssignIpv6Addresses {
            eni_id: params.required("NetworkInterfaceId")?,
            count: params.parsed("Ipv6AddressCount")?,
            addresses: params.parsed_list("Ipv6Addresses")?,
            prefix_count: params.parsed("Ipv6PrefixCount")?,
            prefixes: params.parsed_list("Ipv6Prefix")?,
        }),
        "UnassignIpv6Addresses" => Request::UnassignIpv6Addresses(UnassignIpv6Addresses {
            eni_id: params.required("NetworkInterfaceId")?,
            addresses: params.parsed_list("Ipv6Addresses")?,
            prefixes: params.parsed_list("Ipv6Prefix")?,
        }),
        "CreateTags" => create_tags(params)?,
        _ => {
            return Err(Ec2Error::new(
                "InvalidAction",
                format!("The action {action} is not valid for this web service."),
            ));
        }
    };
    params.finish()?;
    if is_dry_run {
        return Err(Ec2Error {
            code: "DryRunOperation".into(),
            message: "Request would have succeeded, but DryRun flag is set.".to_owned(),
            status: 412,
        });
    }
    Ok(request)
}

fn describe(params: &Params, ids: &str) -> Result<Describe, Ec2Error> {
    Ok(Describe {
        ids: params.list(ids),
        filters: params.filters()?,
        page: Page {
            max_results: params.parsed("MaxResults")?,
            next_token: params.owned("NextToken").filter(|it| !it.is_empty()),
        },
    })
}

fn create(params: &Params) -> Result<CreateNetworkInterface, Ec2Error> {
    let mut private_ips = Vec::new();
    for index in params.indices("PrivateIpAddresses") {
        let name = format!("PrivateIpAddresses.{index}.PrivateIpAddress");
        let address = params.parsed(&name)?.ok_or_else(|| Ec2Error::missing(&name))?;
        let is_primary = params.flag(&format!("PrivateIpAddresses.{index}.Primary"))?.unwrap_or(false);
        private_ips.push((address, is_primary));
    }
    let mut tags = std::collections::BTreeMap::new();
    for index in params.indices("TagSpecification") {
        let kind = params.required(&format!("TagSpecification.{index}.ResourceType"))?;
        if kind != "network-interface" {
            return Err(Ec2Error::invalid_value(format!("'{kind}' is not a valid taggable resource type")));
        }
        tags.extend(params.tags(&format!("TagSpecification.{index}.Tag"))?);
    }
    let kind = match params.text("InterfaceType") {
        None => InterfaceType::Interface,
        Some(word) => InterfaceType::parse(word).ok_or_else(|| {
            Ec2Error::invalid_value(format!("Value ({word}) for parameter InterfaceType is invalid."))
        })?,
    };
    Ok(CreateNetworkInterface {
        subnet_id: params.required("SubnetId")?,
        description: params.owned("Description").unwrap_or_default(),
        groups: params.list("SecurityGroupId"),
        primary_ip: params.parsed("PrivateIpAddress")?,
        private_ips,
        secondary_count: params.parsed("SecondaryPrivateIpAddressCount")?,
        prefix_count: params.parsed("Ipv4PrefixCount")?,
        prefixes: params.parsed_list("Ipv4Prefix")?,
        ipv6_count: params.parsed("Ipv6AddressCount")?,
        ipv6_prefix_count: params.parsed("Ipv6PrefixCount")?,
        kind,
        connection_tracking: tracking(params)?,
        tags,
        client_token: params.owned("ClientToken"),
    })
}

fn tracking(params: &Params) -> Result<Option<ConnectionTracking>, Ec2Error> {
    let seconds = |name: &str| params.parsed(&format!("ConnectionTrackingSpecification.{name}"));
    let spec = ConnectionTracking {
        tcp_established: seconds("TcpEstablishedTimeout")?,
        udp_stream: seconds("UdpStreamTimeout")?,
        udp: seconds("UdpTimeout")?,
    };
    Ok((spec != ConnectionTracking::default()).then_some(spec))
}

/// The one attribute that the call changes; EC2 refuses none and several.
fn change(params: &Params) -> Result<EniChange, Ec2Error> {
    let mut changes = Vec::new();
    if let Some(value) = params.flag("Attachment.DeleteOnTermination")? {
        let attachment_id = params.required("Attachment.AttachmentId")?;
        changes.push(EniChange::DeleteOnTermination { attachment_id, value });
    }
    let groups = params.list("SecurityGroupId");
    if !groups.is_empty() {
        changes.push(EniChange::Groups(groups));
    }
    if let Some(value) = params.flag("SourceDestCheck.Value")? {
        changes.push(EniChange::SourceDestCheck(value));
    }
    if let Some(text) = params.owned("Description.Value") {
        changes.push(EniChange::Description(text));
    }
    if let Some(spec) = tracking(params)? {
        changes.push(EniChange::ConnectionTracking(spec));
    }
    match (changes.pop(), changes.is_empty()) {
        (Some(change), true) => Ok(change),
        (Some(_), false) => Err(Ec2Error::combination("Only one attribute can be modified at a time")),
        (None, _) => Err(Ec2Error::combination("No attributes specified.")),
    }
}

fn create_tags(params: &Params) -> Result<Request, Ec2Error> {
    let resources = params.list("ResourceId");
    if resources.is_empty() {
        return Err(Ec2Error::missing("resourceIdSet"));
    }
    let tags = params.tags("Tag")?;
    if tags.is_empty() {
        return Err(Ec2Error::missing("tagSet"));
    }
    Ok(Request::CreateTags { resources, tags })
}
