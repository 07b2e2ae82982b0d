//! What the wires should look like for a state of the cloud. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::cloud::{AttachmentStatus, Eni, Snapshot};

/// Where the internet begins, seen from the VPC.
pub(crate) const INTERNET_LINK: &str = "internet";
/// Where the network on premises begins, seen from the VPC.
pub(crate) const PREMISES_LINK: &str = "premises";
/// The VPC's router towards hosts on an ENI's link, in IPv6.
pub(crate) const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);
/// What the router calls the host on an ENI's link, in IPv6: its neighbour table says which MAC
/// that is, so that nobody needs to be asked.
pub(crate) const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 2);
/// Jumbo frames, as between instances.
pub(crate) const VPC_MTU: u16 = 9001;

/// One attached ENI as a pair of links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wire {
    /// The link in the `vpc` namespace.
    pub(crate) far: String,
    /// The node's namespace, by name.
    pub(crate) node: String,
    /// The link in the node.
    pub(crate) near: String,
    /// The ENI's MAC address, which the near end has.
    pub(crate) mac: String,
    /// The ENI's first address.
    pub(crate) primary: Ipv4Addr,
    /// Prefix length of the subnet.
    pub(crate) length: u8,
    /// The subnet's router.
    pub(crate) gateway: Ipv4Addr,
    /// Everything else that is routed to the ENI, IPv6 included.
    pub(crate) others: BTreeSet<IpNet>,
    /// The ENI's first IPv6 address.
    pub(crate) primary_v6: Option<Ipv6Addr>,
    /// Whether source and destination are checked.
    pub(crate) is_checked: bool,
    /// Whether it is the instance's first ENI, which the image configures.
    pub(crate) is_first: bool,
}

impl Wire {
    /// Written on the far end, so that a look at it tells whether it still joins the same things.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}/{}/{}", self.node, self.near, self.mac, self.primary)
    }

    /// All that may be source or destination of the ENI's packets.
    pub(crate) fn owned(&self) -> impl Iterator<Item = IpNet> + '_ {
        std::iter::once(IpNet::from(IpAddr::V4(self.primary))).chain(self.others.iter().copied())
    }
}

/// The wires of the whole VPC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// By far end.
    pub(crate) wires: BTreeMap<String, Wire>,
    /// Ranges whose unused addresses lead nowhere, instead of to the internet.
    pub(crate) cidrs: BTreeSet<IpNet>,
}

impl Wanted {
    /// What `snapshot` asks for; `nodes` gives the namespace of each instance that has one.
    pub(crate) fn of(snapshot: &Snapshot, nodes: &BTreeMap<String, String>) -> Wanted {
        let wires = snapshot.enis.values().filter_map(|eni| wire(eni, snapshot, nodes));
        let cidrs = snapshot.vpc.cidrs.iter().map(|it| IpNet::V4(it.trunc()));
        let cidrs_v6 = snapshot.vpc.ipv6_cidrs.iter().map(|it| IpNet::V6(it.trunc()));
        Wanted {
            wires: wires.map(|wire| (wire.far.clone(), wire)).collect(),
            cidrs: cidrs.chain(cidrs_v6).collect(),
        }
    }

    /// The elements of the VPC's source/destination check, as one nft transaction.
    pub(crate) fn checks(&self) -> String {
        let mut text = String::new();
        for set in ["owned", "owned_v6", "unchecked", "public"] {
            let _ = writeln!(text, "flush set inet fabric {set}");
        }
        for wire in self.wires.values() {
            for net in wire.owned() {
                let set = if matches!(net, IpNet::V4(_)) { "owned" } else { "owned_v6" };
                let _ =
                    writeln!(text, "add element inet fabric {set} {{ \"{}\" . {} }}", wire.far, plain(net));
            }
            if !wire.is_checked {
                let _ = writeln!(text, "add element inet fabric unchecked {{ \"{}\" }}", wire.far);
            }
        }
        for address in self.public() {
            let _ = writeln!(text, "add element inet fabric public {{ {address} }}");
        }
        text
    }

    /// The IPv4 addresses of the VPC that have a public one: those of instances' first ENIs. Every
    /// IPv6 address is public.
    pub(crate) fn public(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.wires.values().filter(|it| it.is_first).map(|it| it.primary)
    }
}

/// A network as `ip` and `nft` print it: a single address without its length.
pub(crate) fn plain(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// The link name in the VPC of an ENI: the end of its id, which is the random part.
pub(crate) fn far_end(eni: &str) -> String {
    let random = eni.trim_start_matches("eni-");
    let from = random.len().saturating_sub(13);
    format!("e-{}", random.get(from..).unwrap_or(random))
}

/// The kernel's name for the ENI at a device index. Cards after the first continue far away, so
/// that no attachment order changes a name.
pub(crate) fn near_end(card: u16, index: u16) -> String {
    format!("eth{}", u32::from(card) * 32 + u32::from(index))
}

fn wire(eni: &Eni, snapshot: &Snapshot, nodes: &BTreeMap<String, String>) -> Option<Wire> {
    let attachment = eni.attachment.as_ref().filter(|it| it.status == AttachmentStatus::Attached)?;
    let node = nodes.get(&attachment.instance_id)?;
    let cidr = snapshot.subnets.get(&eni.subnet_id)?.cidr;
    let primary = eni.primary_ip();
    let single = eni.addresses.iter().map(|it| it.address).filter(|it| *it != primary);
    let single = single.map(|it| IpNet::from(IpAddr::V4(it)));
    let prefixes = eni.prefixes.iter().map(|it| IpNet::V4(it.trunc()));
    let v6 = eni.ipv6_addresses.iter().map(|it| IpNet::from(IpAddr::V6(*it)));
    let v6 = v6.chain(eni.ipv6_prefixes.iter().map(|it| IpNet::V6(it.trunc())));
    Some(Wire {
        far: far_end(&eni.id),
        node: node.clone(),
        near: near_end(attachment.network_card, attachment.device_index),
        mac: eni.mac.clone(),
        primary,
        length: cidr.prefix_len(),
        gateway: Ipv4Addr::from(u32::from(cidr.network()).saturating_add(1)),
        others: single.chain(prefixes).chain(v6).collect(),
        primary_v6: eni.ipv6_addresses.first().copied(),
        is_checked: eni.source_dest_check,
        is_first: attachment.network_card == 0 && attachment.device_index == 0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cloud::{AssignPrivateIpAddresses, Cloud, CloudBuilder, LaunchSpec, Request};

    const NOW: Duration = Duration::ZERO;

    /// A world with one instance; its id and that of its ENI.
    fn world() -> (Cloud, String, String) {
        let mut cloud = CloudBuilder::two_zones(7).build();
        let subnet_id = cloud.snapshot().subnets.keys().next().unwrap().clone();
        let spec = LaunchSpec { instance_type: "m5.large".to_owned(), subnet_id, ..LaunchSpec::default() };
        let instance = cloud.run_instance(NOW, spec).unwrap();
        (cloud, instance.id.clone(), instance.primary_eni.clone())
    }

    fn wanted(cloud: &Cloud, instance: &str) -> Wanted {
        Wanted::of(&cloud.snapshot(), &[(instance.to_owned(), "l0-node1".to_owned())].into())
    }

    #[test]
    fn an_instance_without_a_place_is_not_wired() {
        let (cloud, ..) = world();

        assert_eq!(Wanted::of(&cloud.snapshot(), &BTreeMap::new()).wires, BTreeMap::new());
    }

    #[test]
    fn the_first_eni_becomes_eth0_with_the_subnets_router_as_gateway() {
        let (cloud, instance, eni) = world();

        let wires = wanted(&cloud, &instance).wires;

        let wire = &wires[&far_end(&eni)];
        assert_eq!((wire.near.as_str(), wire.is_first, wire.length), ("eth0", true, 20));
        assert_eq!(wire.gateway.octets()[3], 1);
        assert!(wire.far.len() < 16, "{} is too long for a link", wire.far);
    }

    #[test]
    fn an_eni_may_send_from_its_addresses_and_prefixes_but_only_its_first_is_public() {
        let (mut cloud, instance, eni) = world();
        let more = AssignPrivateIpAddresses { eni_id: eni.clone(), count: Some(1), ..Default::default() };
        cloud.perform(NOW, &Request::AssignPrivateIpAddresses(more)).unwrap();
        let prefix =
            AssignPrivateIpAddresses { eni_id: eni.clone(), prefix_count: Some(1), ..Default::default() };
        cloud.perform(NOW, &Request::AssignPrivateIpAddresses(prefix)).unwrap();

        let wanted = wanted(&cloud, &instance);

        let lengths: Vec<_> = wanted.wires[&far_end(&eni)].owned().map(|it| it.prefix_len()).collect();
        assert_eq!(lengths.iter().filter(|it| **it == 32).count(), 2);
        assert_eq!(lengths.iter().filter(|it| **it == 28).count(), 1);
        assert_eq!(wanted.public().count(), 1);
        assert_eq!(wanted.checks().matches("fabric owned {").count(), 3);
    }

    #[test]
    fn names_of_links_on_later_cards_do_not_collide() {
        assert_eq!(near_end(0, 1), "eth1");
        assert_eq!(near_end(1, 1), "eth33");
    }
}
