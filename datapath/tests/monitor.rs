//! Being told of what changes, by whoever.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::time::Duration;

use datapath::kernel::inside;
use datapath::monitor::{Changed, Monitor};
use support::Space;

const NETWORK: Changed = Changed { network: true, filter: false };
const FILTER: Changed = Changed { network: false, filter: true };

#[test]
fn every_kind_of_change_is_told() {
    let space = Space::new();
    space.run("ip link add veth0 type veth peer name veth1");
    space.run("ip link set veth0 up");
    space.run("ip link set veth1 up");
    space.run("nft add table ip vpc-cni");
    let mut monitor = inside(&space.netns, Monitor::open).unwrap().unwrap();
    space.settle(2);
    monitor.changed().unwrap();

    for (line, expected) in [
        ("ip link set veth0 mtu 1400", NETWORK),
        ("ip addr add 10.0.0.1/24 dev veth0", NETWORK),
        ("ip route add 10.1.0.0/24 dev veth0 table 7", NETWORK),
        ("ip rule add from 10.0.0.1 lookup 7", NETWORK),
        ("ip -6 rule add from 2001:db8::1 lookup 7", NETWORK),
        ("ip rule del from 10.0.0.1", NETWORK),
        ("nft add chain ip vpc-cni somewhere", FILTER),
        ("nft delete table ip vpc-cni", FILTER),
    ] {
        space.run(line);

        assert_eq!(monitor.changed().unwrap(), expected, "{line}");
    }
    space.write_sysctl("net/ipv4/conf/veth0/rp_filter", "1");
    assert_eq!(monitor.changed().unwrap(), NETWORK, "a link's setting");
}

#[test]
fn what_others_do_with_their_packet_filters_is_not_told() {
    let space = Space::new();
    let mut monitor = inside(&space.netns, Monitor::open).unwrap().unwrap();

    space.run("nft add table ip somebody");
    space.run("nft add chain ip somebody vpc-cni");
    space.run("nft add table ip vpc-cni-not");

    assert_eq!(monitor.changed().unwrap(), Changed::default());
    assert_eq!(monitor.changed().unwrap(), Changed::default());
}

#[test]
fn a_change_ends_the_wait() {
    let space = Space::new();
    let mut monitor = inside(&space.netns, Monitor::open).unwrap().unwrap();
    let waiter = std::thread::spawn(move || monitor.wait(None).unwrap());

    space.run("nft add table ip somebody");
    space.run("ip rule add from 10.0.0.1 lookup 7");

    assert_eq!(waiter.join().unwrap(), NETWORK);
}

#[test]
fn a_wait_with_patience_ends_without_a_change() {
    let space = Space::new();
    let mut monitor = inside(&space.netns, Monitor::open).unwrap().unwrap();

    assert_eq!(monitor.wait(Some(Duration::from_millis(20))).unwrap(), Changed::default());
    assert!(monitor.filter_fault().is_none());
}
