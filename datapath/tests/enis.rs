//! ENIs that others have a hand in.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use support::node::Node;

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
