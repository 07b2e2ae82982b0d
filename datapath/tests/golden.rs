//! What `ip -j` and `nft -j` show of a node with its pods, for every pair of options and in both
//! families, as files in `golden/nodes/`.
//!
//! Each node has a pod on its primary ENI (mode A), one on a secondary ENI (mode B), and one on
//! both, the second of them on another network card (mode C). With `UPDATE_GOLDEN=1` in the
//! environment the files are written instead.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::fmt::Write;
use std::path::PathBuf;

use datapath::pod;
use datapath::wanted::{HostNetwork, PodInterface, PodNetwork};
use serde_json::Value;
use support::Space;
use support::node::Node;
use vpc::{Family, PodName, RouteTable};

/// The ENI of the second network card, which the third pod uses too.
const SECOND_CARD: RouteTable = RouteTable(10_100);

/// Compares a node's listing with the golden file of that name.
fn check(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/nodes").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(found, golden, "{}", path.display());
}

/// A node of `wanted` with a pod in each mode, as a listing; a second run must change nothing.
fn listing(wanted: &HostNetwork) -> String {
    let node = Node::of(wanted.family);
    node.converge(wanted);
    let secondary = wanted.enis[0].table;
    let sandboxes: Vec<Space> = std::iter::repeat_with(Space::new).take(3).collect();
    let pods = [
        network("p0", &[(address(wanted.family, 1), RouteTable::MAIN)]),
        network("w0", &[(address(wanted.family, 2), secondary)]),
        network(
            "m0",
            &[(address(wanted.family, 3), RouteTable::MAIN), (address(wanted.family, 4), SECOND_CARD)],
        ),
    ];
    for (pod, sandbox) in pods.iter().zip(&sandboxes) {
        pod::add(pod, &node.space.netns, &sandbox.netns).unwrap();
    }
    assert_eq!(node.converge(wanted), Vec::<String>::new());
    show(&node.space, wanted.family, secondary)
}

/// An address for a pod.
fn address(family: Family, number: u8) -> String {
    match family {
        Family::V4 => format!("10.0.{}.7", if number == 1 { 9 } else { 16 + number }),
        Family::V6 => format!("2001:db8:0:1{number}::7"),
    }
}

fn network(name: &str, addresses: &[(String, RouteTable)]) -> PodNetwork {
    let pod = PodName::new("default", name);
    let interface = |(nic, (address, table)): (u8, &(String, RouteTable))| PodInterface {
        host_veth: vpc::host_veth("eni", &pod, nic),
        container_interface: if nic == 0 { "eth0".to_owned() } else { format!("mNicIf{nic}") },
        nic,
        address: address.parse().unwrap(),
        table: *table,
        mtu: 9001,
    };
    PodNetwork { interfaces: (0..).zip(addresses).map(interface).collect(), pod: pod.clone() }
}

/// Rules, routes, addresses and packet filter: one object a line.
fn show(space: &Space, family: Family, secondary: RouteTable) -> String {
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let mut text = String::new();
    let mut section = |title: &str, objects: Vec<Value>| {
        let _ = writeln!(text, "# {title}");
        for object in objects {
            let _ = writeln!(text, "{object}");
        }
    };
    section("ip rule", space.json(&format!("ip -j {flag} rule")));
    for table in ["main".to_owned(), secondary.to_string()] {
        let routes = space.json(&format!("ip -j {flag} route show table {table}"));
        section(&format!("ip route, table {table}"), routes.into_iter().filter(is_not_link_local).collect());
    }
    for link in ["eth0", "eth1"] {
        let shown = space.json(&format!("ip -j {flag} addr show dev {link}")).remove(0);
        let global = |one: &&Value| one["scope"] == "global";
        let addresses = shown["addr_info"].as_array().unwrap().iter().filter(global);
        let words = ["local", "prefixlen", "broadcast", "scope"];
        let addresses = addresses.map(|one| words.iter().map(|word| ((*word).to_owned(), one[word].clone())));
        section(
            &format!("ip addr, {link}, mtu {}", shown["mtu"]),
            addresses.map(|words| words.filter(|(_, value)| !value.is_null()).collect()).collect(),
        );
    }
    let mut ruleset = space.json_object("nft -j list ruleset")["nftables"].as_array().unwrap().clone();
    ruleset.retain(|object| object.get("metainfo").is_none());
    ruleset.iter_mut().for_each(without_handle);
    section("nft list ruleset", ruleset);
    text
}

/// The kernel gives every link such an address of its own.
fn is_not_link_local(route: &Value) -> bool {
    route["dst"] != "fe80::/64"
}

fn without_handle(object: &mut Value) {
    for content in object.as_object_mut().unwrap().values_mut() {
        content.as_object_mut().unwrap().remove("handle");
    }
}

fn with(family: Family, change: impl FnOnce(&mut HostNetwork)) -> HostNetwork {
    let mut wanted = Node::wanted_of(family);
    wanted.options.exclude_snat_cidrs = vec!["192.168.7.7/32".parse().unwrap()];
    change(&mut wanted);
    wanted
}

#[test]
fn every_pair_of_options_in_an_ipv4_cluster_is_as_its_golden() {
    for (node_port, external_snat, golden) in [
        (true, false, "v4-node-port-snat.txt"),
        (true, true, "v4-node-port-external-snat.txt"),
        (false, false, "v4-snat.txt"),
        (false, true, "v4-external-snat.txt"),
    ] {
        let wanted = with(Family::V4, |wanted| {
            wanted.options.node_port = node_port;
            wanted.options.external_snat = external_snat;
        });

        check(golden, &listing(&wanted));
    }
}

#[test]
fn egress_services_and_strict_branches_of_an_ipv4_cluster_are_as_their_goldens() {
    check("v4-egress.txt", &listing(&with(Family::V4, |wanted| wanted.options.egress = true)));
    let services = with(Family::V4, |wanted| {
        wanted.options.external_service_cidrs = vec!["10.100.0.0/16".parse().unwrap()];
        wanted.options.strict_branches = true;
    });
    check("v4-services-strict-branches.txt", &listing(&services));
}

#[test]
fn every_pair_of_options_in_an_ipv6_cluster_is_as_its_golden() {
    // The mark's rule is all that the pair decides about: no packet of IPv6 gets the mark.
    for (node_port, external_snat, golden) in [
        (true, false, "v6-egress.txt"),
        (true, true, "v6-egress.txt"),
        (false, false, "v6-egress.txt"),
        (false, true, "v6-egress-external-snat.txt"),
    ] {
        let wanted = with(Family::V6, |wanted| {
            wanted.options.egress = true;
            wanted.options.node_port = node_port;
            wanted.options.external_snat = external_snat;
        });

        check(golden, &listing(&wanted));
    }
}

#[test]
fn an_ipv6_cluster_without_egress_and_with_strict_branches_is_as_its_goldens() {
    check("v6.txt", &listing(&with(Family::V6, |wanted| wanted.options.egress = false)));
    let strict = with(Family::V6, |wanted| {
        wanted.options.egress = true;
        wanted.options.strict_branches = true;
    });
    check("v6-egress-strict-branches.txt", &listing(&strict));
}
