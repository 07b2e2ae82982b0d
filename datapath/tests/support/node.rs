//! A node with two ENIs, whose far ends are in a namespace that stands for the VPC.

use std::net::Ipv4Addr;

use datapath::host::{self, Change, HostError};
use datapath::kernel::inside;
use datapath::wanted::{EniNetwork, HostNetwork, HostOptions, PrimaryLink};
use vpc::{Family, RouteTable};

use super::Space;

const PRIMARY_MAC: &str = "02:00:00:00:00:10";
const SECONDARY_MAC: &str = "02:00:00:00:00:11";

/// Subnets 10.0.0.0/20 of eth0 and 10.0.16.0/20 of eth1, in VPC 10.0.0.0/16.
pub(crate) struct Node {
    pub(crate) space: Space,
    pub(crate) vpc: Space,
}

impl Node {
    pub(crate) fn new() -> Self {
        let (space, vpc) = (Space::new(), Space::new());
        let far = vpc.netns.path().display();
        for (link, peer, mac) in [("eth0", "far0", PRIMARY_MAC), ("eth1", "far1", SECONDARY_MAC)] {
            space.run(&format!("ip link add {link} address {mac} type veth peer name {peer} netns {far}"));
            vpc.run(&format!("ip link set {peer} up"));
        }
        vpc.run("ip addr add 10.0.0.1/20 dev far0");
        vpc.run("ip addr add 10.0.16.1/20 dev far1");
        space.run("ip link set eth0 up");
        space.run("ip addr add 10.0.0.10/20 brd + dev eth0");
        space.run("ip route add default via 10.0.0.1 dev eth0 proto dhcp src 10.0.0.10 metric 512");
        Self { space, vpc }
    }

    /// The same for pods of `family`; for IPv6 with addresses and a router of that family too.
    pub(crate) fn of(family: Family) -> Self {
        let node = Self::new();
        if family == Family::V6 {
            for (space, command) in [
                (&node.vpc, "ip addr add fe80:ec2::1/64 dev far0 nodad"),
                (&node.vpc, "ip addr add fe80:ec2::1/64 dev far1 nodad"),
                (&node.space, "ip addr add 2001:db8::10/64 dev eth0 nodad"),
                (&node.space, "ip -6 route add default via fe80:ec2::1 dev eth0 proto ra metric 512"),
            ] {
                space.run(command);
            }
        }
        node
    }

    /// What the reference's defaults want of a node of `family`. It has an IPv6 address in both.
    pub(crate) fn wanted_of(family: Family) -> HostNetwork {
        let wanted = Self::wanted();
        let primary = PrimaryLink { address_v6: Some("2001:db8::10".parse().unwrap()), ..wanted.primary };
        match family {
            Family::V4 => HostNetwork { primary, ..wanted },
            Family::V6 => {
                let eni = EniNetwork {
                    address: "2001:db8:0:1::131".parse().unwrap(),
                    subnet: "2001:db8:0:1::/64".parse().unwrap(),
                    ..wanted.enis[0]
                };
                HostNetwork { family, primary, enis: vec![eni], ..wanted }
            }
        }
    }

    /// What the reference's defaults want of it.
    pub(crate) fn wanted() -> HostNetwork {
        HostNetwork {
            family: Family::V4,
            primary: PrimaryLink {
                mac: PRIMARY_MAC.parse().unwrap(),
                address: Ipv4Addr::new(10, 0, 0, 10),
                address_v6: None,
            },
            vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
            options: HostOptions::default(),
            enis: vec![EniNetwork {
                mac: SECONDARY_MAC.parse().unwrap(),
                table: RouteTable(2),
                address: Ipv4Addr::new(10, 0, 16, 131).into(),
                subnet: "10.0.16.0/20".parse().unwrap(),
                is_trunk: false,
            }],
        }
    }

    pub(crate) fn try_converge(&self, wanted: &HostNetwork) -> Result<Vec<Change>, HostError> {
        let mut netlink = self.space.netlink();
        inside(&self.space.netns, || host::observe_and_converge(&mut netlink, wanted)).unwrap()
    }

    /// What converging changes, in words.
    pub(crate) fn converge(&self, wanted: &HostNetwork) -> Vec<String> {
        self.try_converge(wanted).unwrap().iter().map(ToString::to_string).collect()
    }
}
