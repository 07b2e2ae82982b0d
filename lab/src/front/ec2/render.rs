//! From typed answers to EC2's XML.

use std::collections::BTreeMap;

use crate::cloud::{
    Cloud, Ec2Error, Eni, InstanceType, InstanceWithEnis, Listing, Response, Snapshot, Subnet,
};

use super::xml::Xml;

const NAMESPACE: &str = " xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"";

/// The document of an error.
pub(super) fn failure(request_id: &str, error: &Ec2Error) -> String {
    let mut xml = Xml::new();
    xml.nest("Response", |xml| {
        xml.nest("Errors", |xml| {
            xml.nest("Error", |xml| {
                xml.text("Code", &error.code).text("Message", &error.message);
            });
        });
        xml.text("RequestID", request_id);
    });
    xml.finish()
}

/// The document of an answer to `action`.
pub(super) fn success(cloud: &Cloud, action: &str, request_id: &str, response: &Response) -> String {
    let mut xml = Xml::new();
    let teller = Teller { cloud, snapshot: &cloud.snapshot() };
    xml.open(&format!("{action}Response"), NAMESPACE, |xml| {
        xml.text("requestId", request_id);
        teller.body(xml, response);
    });
    xml.finish()
}

/// Tells of things, with the world at hand for names and times.
struct Teller<'a> {
    cloud: &'a Cloud,
    snapshot: &'a Snapshot,
}

impl Teller<'_> {
    fn body(&self, xml: &mut Xml, response: &Response) {
        match response {
            Response::Done => {
                xml.text("return", true);
            }
            Response::InstanceTypes(listing) => {
                page(xml, "instanceTypeSet", listing, instance_type);
            }
            Response::Instances(listing) => {
                page(xml, "reservationSet", listing, |xml, it| self.reservation(xml, it));
            }
            Response::Subnets(listing) => page(xml, "subnetSet", listing, |xml, it| self.subnet(xml, it)),
            Response::NetworkInterfaces(listing) => {
                page(xml, "networkInterfaceSet", listing, |xml, it| self.eni(xml, it));
            }
            Response::Tags(listing) => page(xml, "tagSet", listing, |xml, tag| {
                xml.text("resourceId", &tag.resource_id)
                    .text("resourceType", tag.resource_type)
                    .text("key", &tag.key)
                    .text("value", &tag.value);
            }),
            Response::Created { eni, client_token } => {
                xml.nest("networkInterface", |xml| self.eni(xml, eni));
                xml.option("clientToken", client_token.as_ref());
            }
            Response::Attached { attachment_id, network_card } => {
                xml.text("attachmentId", attachment_id).text("networkCardIndex", network_card);
            }
            Response::Assigned { eni_id, addresses, prefixes } => {
                xml.text("return", true).text("networkInterfaceId", eni_id);
                xml.list("assignedPrivateIpAddressesSet", addresses, |xml, ip| {
                    xml.text("privateIpAddress", ip);
                });
                xml.list("assignedIpv4PrefixSet", prefixes, |xml, prefix| {
                    xml.text("ipv4Prefix", prefix);
                });
            }
            Response::AssignedIpv6 { eni_id, addresses, prefixes } => {
                xml.text("networkInterfaceId", eni_id);
                items(xml, "assignedIpv6Addresses", addresses);
                items(xml, "assignedIpv6PrefixSet", prefixes);
            }
            Response::UnassignedIpv6 { eni_id, addresses, prefixes } => {
                xml.text("networkInterfaceId", eni_id);
                items(xml, "unassignedIpv6Addresses", addresses);
                items(xml, "unassignedIpv6PrefixSet", prefixes);
            }
        }
    }

    fn eni(&self, xml: &mut Xml, eni: &Eni) {
        self.eni_core(xml, eni);
        xml.text("availabilityZone", &eni.zone)
            .text("requesterId", &eni.requester_id)
            .text("requesterManaged", false);
        tags(xml, &eni.tags);
        if let Some(it) = &eni.attachment {
            xml.nest("attachment", |xml| {
                self.attachment(xml, it);
                xml.text("instanceId", &it.instance_id).text("instanceOwnerId", self.cloud.account());
            });
        }
    }

    /// What both DescribeNetworkInterfaces and DescribeInstances tell of an ENI.
    fn eni_core(&self, xml: &mut Xml, eni: &Eni) {
        let dns = self.cloud.private_dns(eni.primary_ip());
        xml.text("networkInterfaceId", &eni.id)
            .text("subnetId", &eni.subnet_id)
            .text("vpcId", &eni.vpc_id)
            .text("description", &eni.description)
            .text("ownerId", self.cloud.account())
            .text("status", eni.status())
            .text("macAddress", &eni.mac)
            .text("privateIpAddress", eni.primary_ip())
            .text("privateDnsName", dns)
            .text("sourceDestCheck", eni.source_dest_check)
            .text("interfaceType", eni.kind.as_str());
        self.groups(xml, &eni.groups);
        xml.list("privateIpAddressesSet", &eni.addresses, |xml, ip| {
            xml.text("privateIpAddress", ip.address)
                .text("privateDnsName", self.cloud.private_dns(ip.address))
                .text("primary", ip.is_primary);
        });
        xml.list("ipv6AddressesSet", &eni.ipv6_addresses, |xml, address| {
            xml.text("ipv6Address", address);
        });
        if !eni.ipv6_prefixes.is_empty() {
            xml.list("ipv6PrefixSet", &eni.ipv6_prefixes, |xml, prefix| {
                xml.text("ipv6Prefix", prefix);
            });
        }
        if !eni.prefixes.is_empty() {
            xml.list("ipv4PrefixSet", &eni.prefixes, |xml, prefix| {
                xml.text("ipv4Prefix", prefix);
            });
        }
        if let Some(it) = &eni.connection_tracking {
            xml.nest("connectionTrackingConfiguration", |xml| {
                xml.option("tcpEstablishedTimeout", it.tcp_established)
                    .option("udpStreamTimeout", it.udp_stream)
                    .option("udpTimeout", it.udp);
            });
        }
    }

    fn attachment(&self, xml: &mut Xml, it: &crate::cloud::Attachment) {
        xml.text("attachmentId", &it.id)
            .text("deviceIndex", it.device_index)
            .text("networkCardIndex", it.network_card)
            .text("status", it.status.as_str())
            .text("attachTime", self.cloud.timestamp(it.since))
            .text("deleteOnTermination", it.delete_on_termination);
    }

    fn groups(&self, xml: &mut Xml, ids: &[String]) {
        xml.list("groupSet", ids, |xml, id| {
            xml.text("groupId", id).option("groupName", self.snapshot.groups.get(id).map(|it| &it.name));
        });
    }

    fn subnet(&self, xml: &mut Xml, subnet: &Subnet) {
        let (region, account) = (&self.snapshot.region, self.cloud.account());
        xml.text("subnetId", &subnet.id)
            .text("subnetArn", format!("arn:aws:ec2:{region}:{account}:subnet/{}", subnet.id))
            .text("state", "available")
            .text("ownerId", account)
            .text("vpcId", &subnet.vpc_id)
            .text("cidrBlock", subnet.cidr)
            .text("availableIpAddressCount", subnet.available)
            .text("availabilityZone", &subnet.zone)
            .text("availabilityZoneId", &subnet.zone_id)
            .text("defaultForAz", false)
            .text("mapPublicIpOnLaunch", false)
            .text("assignIpv6AddressOnCreation", subnet.ipv6_cidr.is_some())
            .text("ipv6Native", false);
        xml.list("ipv6CidrBlockAssociationSet", subnet.ipv6_cidr, |xml, cidr| {
            xml.text("ipv6CidrBlock", cidr).text("associationId", format!("subnet-cidr-assoc-{}", subnet.id));
            xml.nest("ipv6CidrBlockState", |xml| {
                xml.text("state", "associated");
            });
        });
        tags(xml, &subnet.tags);
    }

    /// Each instance was started by itself, so each is a reservation.
    fn reservation(&self, xml: &mut Xml, it: &InstanceWithEnis) {
        xml.text("reservationId", &it.instance.reservation_id).text("ownerId", self.cloud.account());
        xml.list("groupSet", [(); 0], |_, ()| {});
        xml.list("instancesSet", [it], |xml, it| self.instance(xml, it));
    }

    fn instance(&self, xml: &mut Xml, it: &InstanceWithEnis) {
        let instance = &it.instance;
        let (code, name) = instance.state.code_and_name();
        let account = self.cloud.account();
        xml.text("instanceId", &instance.id).text("imageId", &instance.image_id);
        xml.nest("instanceState", |xml| {
            xml.text("code", code).text("name", name);
        });
        xml.text("privateDnsName", self.cloud.private_dns(instance.private_ip))
            .text("amiLaunchIndex", 0)
            .text("instanceType", &instance.instance_type)
            .text("launchTime", self.cloud.timestamp(instance.launched));
        xml.nest("placement", |xml| {
            xml.text("availabilityZone", &instance.zone)
                .text("availabilityZoneId", &instance.zone_id)
                .text("tenancy", "default");
        });
        xml.nest("monitoring", |xml| {
            xml.text("state", "disabled");
        });
        xml.text("subnetId", &instance.subnet_id)
            .text("vpcId", &instance.vpc_id)
            .text("privateIpAddress", instance.private_ip)
            .text("architecture", "x86_64")
            .text("virtualizationType", "hvm")
            .text("hypervisor", "xen")
            .text("enaSupport", true);
        if let Some(primary) = it.enis.first() {
            xml.text("sourceDestCheck", primary.source_dest_check);
            self.groups(xml, &primary.groups);
        }
        if let Some(role) = &instance.role {
            xml.nest("iamInstanceProfile", |xml| {
                xml.text("arn", format!("arn:aws:iam::{account}:instance-profile/{role}"))
                    .text("id", "AIPALABPROFILE000000");
            });
        }
        xml.nest("metadataOptions", |xml| {
            xml.text("state", "applied")
                .text("httpTokens", if instance.imds_v1 { "optional" } else { "required" })
                .text("httpPutResponseHopLimit", 2)
                .text("httpEndpoint", "enabled");
        });
        tags(xml, &instance.tags);
        xml.list("networkInterfaceSet", &it.enis, |xml, eni| {
            self.eni_core(xml, eni);
            if let Some(it) = &eni.attachment {
                xml.nest("attachment", |xml| self.attachment(xml, it));
            }
        });
    }
}

fn page<T>(xml: &mut Xml, name: &str, listing: &Listing<T>, each: impl Fn(&mut Xml, &T)) {
    xml.list(name, &listing.items, each);
    xml.option("nextToken", listing.next_token.as_ref());
}

/// A list whose items are plain texts.
fn items<T: std::fmt::Display>(xml: &mut Xml, name: &str, items: &[T]) {
    xml.nest(name, |xml| {
        for item in items {
            xml.text("item", item);
        }
    });
}

fn tags(xml: &mut Xml, tags: &BTreeMap<String, String>) {
    xml.list("tagSet", tags, |xml, (key, value)| {
        xml.text("key", key).text("value", value);
    });
}

fn instance_type(xml: &mut Xml, it: &InstanceType) {
    xml.text("instanceType", &it.name)
        .text("currentGeneration", true)
        .text("freeTierEligible", false)
        .text("bareMetal", it.bare_metal);
    if !it.hypervisor.is_empty() {
        xml.text("hypervisor", &it.hypervisor);
    }
    xml.nest("processorInfo", |xml| {
        xml.nest("supportedArchitectures", |xml| {
            xml.text("item", "x86_64");
        });
    });
    xml.nest("vCpuInfo", |xml| {
        xml.text("defaultVCpus", it.vcpus);
    });
    xml.nest("memoryInfo", |xml| {
        xml.text("sizeInMiB", it.memory_mib);
    });
    xml.nest("networkInfo", |xml| {
        xml.text("networkPerformance", "Up to 10 Gigabit")
            .text("maximumNetworkInterfaces", it.enis)
            .text("maximumNetworkCards", it.cards.len())
            .text("defaultNetworkCardIndex", 0);
        xml.list("networkCards", it.cards.iter().enumerate(), |xml, (index, room)| {
            xml.text("networkCardIndex", index)
                .text("networkPerformance", "Up to 10 Gigabit")
                .text("maximumNetworkInterfaces", room);
        });
        xml.text("ipv4AddressesPerInterface", it.ipv4_per_eni)
            .text("ipv6AddressesPerInterface", it.ipv4_per_eni)
            .text("ipv6Supported", true)
            .text("enaSupport", "required")
            .text("efaSupported", it.cards.len() > 1);
    });
}
