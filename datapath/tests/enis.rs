//! ENIs that others have a hand in: addresses beside our own, and rules of ENIs that are gone.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use datapath::wanted::HostNetwork;
use support::Space;
use support::node::Node;
use vpc::Family;

#[test]
fn an_address_beside_the_own_one_goes_and_the_own_one_stays_or_comes_back() {
    // Whether the kernel deletes an address together with the first one of its block.
    for promotes in ["0", "1"] {
        for (first, second) in [("10.0.16.131", "10.0.16.77"), ("10.0.16.77", "10.0.16.131")] {
            let node = Node::new();
            node.space.write_sysctl("net/ipv4/conf/eth1/promote_secondaries", promotes);
            node.space.run("ip link set eth1 up");
            for address in [first, second] {
                node.space.run(&format!("ip addr add {address}/20 brd + dev eth1"));
            }

            let changes = node.converge(&Node::wanted());

            let what = format!("{first} before {second}, promoting {promotes}: {changes:?}");
            assert!(changes.contains(&"delete address 10.0.16.77/20 dev eth1".to_owned()), "{what}");
            assert_eq!(node.space.addresses("eth1"), ["10.0.16.131"], "{what}");
            assert_eq!(
                node.space.lines("ip route show table 2"),
                ["default via 10.0.16.1 dev eth1", "10.0.16.1 dev eth1 scope link"],
                "{what}"
            );
            assert_eq!(node.converge(&Node::wanted()), Vec::<String>::new(), "{what}");
        }
    }
}

/// The node without any secondary ENI.
fn without_enis(family: Family) -> HostNetwork {
    HostNetwork { enis: Vec::new(), ..Node::wanted_of(family) }
}

/// The rules from ENIs' addresses.
fn eni_rules(space: &Space, family: &str) -> Vec<String> {
    space.lines(&format!("ip {family} rule")).into_iter().filter(|line| line.starts_with("32765:")).collect()
}

#[test]
fn the_rule_of_an_eni_that_was_detached_unasked_goes() {
    for family in Family::BOTH {
        let node = Node::of(family);
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        node.converge(&Node::wanted_of(family));
        assert_eq!(eni_rules(&node.space, flag).len(), 1, "{family}");

        node.space.run("ip link del eth1");
        let changes = node.converge(&without_enis(family));

        assert!(changes.len() == 1 && changes[0].starts_with("delete rule 32765: from "), "{changes:?}");
        assert_eq!(eni_rules(&node.space, flag), Vec::<String>::new(), "{family}");
    }
}

#[test]
fn rules_of_enis_that_are_there_stay_whoever_set_them_up() {
    let node = Node::of(Family::V6);
    let space = &node.space;
    // On another network card, not managed, and one whose link is down.
    for (link, table, v4, v6) in [
        ("eth2", 10_100, "10.0.32.5", "2001:db8:0:2::5"),
        ("eth3", 3, "10.0.48.5", "2001:db8:0:3::5"),
        ("eth4", 4, "10.0.64.5", "2001:db8:0:4::5"),
    ] {
        space.run(&format!("ip link add {link} type veth peer name far-{link}"));
        if link != "eth4" {
            space.run(&format!("ip link set {link} up"));
        }
        space.run(&format!("ip addr add {v4}/20 dev {link}"));
        space.run(&format!("ip addr add {v6}/64 dev {link} nodad"));
        space.run(&format!("ip rule add from {v4} lookup {table} priority 32765"));
        space.run(&format!("ip -6 rule add from {v6} lookup {table} priority 32765"));
    }
    // From an address that no link has, to a table that somebody fills.
    space.run("ip route add 192.0.2.0/24 dev eth2 table 5");
    space.run("ip rule add from 10.0.80.5 lookup 5 priority 32765");
    let rules = || [eni_rules(space, "-4"), eni_rules(space, "-6")];
    let before = rules();
    assert_eq!([before[0].len(), before[1].len()], [4, 3]);

    for family in Family::BOTH {
        node.converge(&without_enis(family));
        assert_eq!(rules(), before, "{family}");
    }
}

#[test]
fn rules_of_the_other_family_go_with_their_eni_after_the_cluster_has_changed() {
    let node = Node::of(Family::V6);
    node.converge(&Node::wanted());
    assert_eq!(eni_rules(&node.space, "-4"), ["32765: from 10.0.16.131 lookup 2"]);

    node.converge(&Node::wanted_of(Family::V6));
    assert_eq!(eni_rules(&node.space, "-4"), ["32765: from 10.0.16.131 lookup 2"]);

    node.space.run("ip link del eth1");
    node.converge(&without_enis(Family::V6));
    assert_eq!(eni_rules(&node.space, "-4"), Vec::<String>::new());
    assert_eq!(eni_rules(&node.space, "-6"), Vec::<String>::new());
}
