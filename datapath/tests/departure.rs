//! Leaving a node to somebody else: our tables go, and what running pods need of them stays.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use datapath::kernel::inside;
use datapath::takeover::{self, Departure, KeptTable};
use datapath::wanted::HostNetwork;
use support::Space;
use support::node::Node;
use support::reference::Reference;
use vpc::Family;

fn remove(space: &Space) -> Departure {
    inside(&space.netns, takeover::remove_our_tables).unwrap().unwrap()
}

/// Removes, where nothing has to stay.
fn remove_wholly(space: &Space) -> Vec<String> {
    let Departure { removed, kept } = remove(space);
    assert_eq!(kept, []);
    removed
}

fn with_egress(family: Family) -> HostNetwork {
    let mut wanted = Node::wanted_of(family);
    wanted.options.egress = true;
    wanted
}

/// Links and routes as pods with egress have them on the node, one for each address.
fn pods(space: &Space, addresses: &[&str]) {
    for (index, address) in addresses.iter().enumerate() {
        space.run(&format!("ip link add veth{index} type veth peer name pod{index}"));
        space.run(&format!("ip link set veth{index} up"));
        space.run(&format!("ip route add {address} dev veth{index}"));
    }
}

fn kept(family: Family, pods: &[&str]) -> KeptTable {
    let table = if family == Family::V4 { "ip" } else { "ip6" };
    let pods = pods.iter().map(|address| address.parse().unwrap()).collect();
    KeptTable { name: format!("nft table {table} vpc-cni"), family, pods }
}

#[test]
fn our_tables_can_be_removed() {
    let node = Node::new();
    node.converge(&Node::wanted());
    node.space.run("nft add table ip6 vpc-cni");
    node.space.run("nft add table ip somebody");

    assert_eq!(remove_wholly(&node.space), ["nft table ip vpc-cni", "nft table ip6 vpc-cni"]);

    assert_eq!(node.space.run("nft list tables"), "table ip somebody\n");
    assert_eq!(remove_wholly(&node.space), Vec::<String>::new());
}

#[test]
fn the_table_for_egress_stays_while_pods_need_it() {
    for (family, table, addresses) in [
        (Family::V4, "ip6", ["fd00::ac:2", "fd00::ac:3"]),
        (Family::V6, "ip", ["169.254.172.2", "169.254.175.254"]),
    ] {
        let node = Node::of(Family::V6);
        node.converge(&with_egress(family));
        pods(&node.space, &addresses);
        let egress = node.space.run(&format!("nft -a list table {table} vpc-cni"));
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };

        let first = remove(&node.space);

        let removed: &[&str] = if family == Family::V4 { &["nft table ip vpc-cni"] } else { &[] };
        assert_eq!(first.removed, removed, "{family}");
        assert_eq!(first.kept, [kept(other, &addresses)], "{family}");
        // Nobody touched it, not even to put the same in its place.
        assert_eq!(node.space.run("nft -a list ruleset"), egress, "{family}");

        node.space.run("ip link del veth0");
        assert_eq!(remove(&node.space).kept, [kept(other, &addresses[1..])], "{family}");
        node.space.run("ip link del veth1");
        assert_eq!(remove_wholly(&node.space), [format!("nft table {table} vpc-cni")], "{family}");
    }
}

#[test]
fn a_table_that_serves_no_egress_goes_although_pods_have_such_addresses() {
    for wanted in [Node::wanted_of(Family::V4), Node::wanted_of(Family::V6)] {
        let node = Node::of(Family::V6);
        node.converge(&wanted);
        pods(&node.space, &["169.254.172.2", "fd00::ac:2"]);

        assert_eq!(remove_wholly(&node.space), ["nft table ip vpc-cni"], "{wanted:?}");
        assert_eq!(node.space.run("nft list tables"), "", "{wanted:?}");
    }
}

#[test]
fn of_a_table_with_more_in_it_the_rules_for_egress_stay() {
    let node = Node::of(Family::V6);
    node.converge(&with_egress(Family::V6));
    pods(&node.space, &["169.254.172.2"]);
    let egress = node.space.run("nft list table ip vpc-cni");
    node.space.feed(
        "nft -f -",
        "table ip vpc-cni {
            set internal { type ipv4_addr; flags interval; elements = { 10.0.0.0/16 }; }
            chain mark-outbound { type filter hook prerouting priority -90
                iifname \"eni*\" ip daddr != @internal meta mark set 0x80
            }
            chain translate { ip daddr != @internal snat to 10.0.0.10; }
        }\n",
    );

    assert_eq!(remove(&node.space).kept, [kept(Family::V4, &["169.254.172.2"])]);

    assert_eq!(node.space.run("nft list ruleset"), egress);
}

#[test]
fn pods_for_which_the_reference_translates_do_not_keep_our_table() {
    let (ours, theirs) = ("169.254.172.2", "169.254.172.3");
    let node = Node::of(Family::V6);
    let iptables = "iptables-nft";
    if !node.space.succeeds(&format!("{iptables} -t nat -S")) {
        eprintln!("skipped: {iptables} does not work here");
        return;
    }
    node.converge(&with_egress(Family::V6));
    pods(&node.space, &[ours, theirs]);
    let reference = Reference::new(iptables, "10.0.0.10", "10.0.0.0/16");
    node.space.feed("sh", &reference.egress("CNI-E4-77b8e585a13c64e496587", "e9", theirs));

    assert_eq!(remove(&node.space).kept, [kept(Family::V4, &[ours])]);

    node.space.run("ip link del veth0");
    assert_eq!(remove_wholly(&node.space), ["nft table ip vpc-cni"]);
}
