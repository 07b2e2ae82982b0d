//! The node's packet filter: what it holds, and what it does to packets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use datapath::kernel::inside;
use datapath::pod;
use datapath::wanted::{HostNetwork, RandomSnat};
use support::node::Node;
use support::{Space, pod as pod_of};

/// Compares a listing with the file of that name in `golden/`. With `UPDATE_GOLDEN=1` in the
/// environment it writes the file instead.
fn check_golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(found, golden, "{}", path.display());
}

fn with_options(node_port: bool, external_snat: bool) -> HostNetwork {
    let mut wanted = Node::wanted();
    wanted.options.node_port = node_port;
    wanted.options.external_snat = external_snat;
    wanted.options.exclude_snat_cidrs = vec!["192.168.7.7/32".parse().unwrap()];
    wanted
}

#[test]
fn the_rulesets_are_the_golden_ones_and_stay() {
    for (node_port, external_snat, golden) in [
        (true, false, "node-port-snat.nft"),
        (true, true, "node-port-external-snat.nft"),
        (false, false, "snat.nft"),
        (false, true, "none.nft"),
    ] {
        let node = Node::new();
        let wanted = with_options(node_port, external_snat);

        node.converge(&wanted);

        check_golden(golden, &node.space.run("nft list ruleset"));
        assert_eq!(node.converge(&wanted), Vec::<String>::new(), "{golden}");
    }
}

#[test]
fn every_choice_of_ports_is_read_back_as_written() {
    let node = Node::new();
    for (random_snat, text) in [
        (RandomSnat::Prng, "snat to 10.0.0.10 fully-random\n"),
        (RandomSnat::HashRandom, "snat to 10.0.0.10 random\n"),
        (RandomSnat::None, "snat to 10.0.0.10\n"),
    ] {
        let mut wanted = Node::wanted();
        wanted.options.random_snat = random_snat;

        node.converge(&wanted);

        let listing = node.space.run("nft list table ip vpc-cni");
        assert!(listing.contains(text), "{listing}");
        assert_eq!(node.converge(&wanted), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn awkward_blocks_and_marks_are_read_back_as_written() {
    for (vpc, excluded, connmark) in [
        (vec!["10.0.0.0/16"], vec!["0.0.0.0/0"], 0x80),
        (vec!["10.0.0.0/16", "10.1.0.0/17"], vec!["10.0.3.0/24", "10.0.3.0/24"], 0x80),
        (vec!["10.0.0.0/16", "100.64.0.0/10"], vec!["255.255.255.255/32", "0.0.0.0/32"], 0x8000_0000),
        (vec!["10.0.0.0/16"], vec!["10.1.2.3/16"], 0x180),
        (vec!["10.0.0.0/16"], vec![], 0xffff_ffff),
        (vec!["10.0.0.0/16"], vec![], 0xf000_0000),
        (vec!["10.0.0.0/16"], vec![], 1),
    ] {
        let node = Node::new();
        let mut wanted = Node::wanted();
        wanted.vpc_cidrs = vpc.iter().map(|text| text.parse().unwrap()).collect();
        wanted.options.exclude_snat_cidrs = excluded.iter().map(|text| text.parse().unwrap()).collect();
        wanted.options.connmark = connmark;

        node.converge(&wanted);

        assert_eq!(node.converge(&wanted), Vec::<String>::new(), "{vpc:?} {excluded:?} {connmark:#x}");
    }
}

/// A node with a pod of its second ENI, and peers inside and outside the VPC.
///
/// The VPC takes a packet only from the ENI that its source belongs to, as the real one does.
struct Wires {
    node: Node,
    pod: Space,
}

const OUTSIDE: &str = "198.51.100.1:9000";
const INSIDE: &str = "10.0.200.1:9000";
const POD: &str = "10.0.16.7:8000";

impl Wires {
    fn new() -> Self {
        let node = Node::new();
        let pod = Space::new();
        node.space.write_sysctl("net/ipv4/ip_forward", "1");
        node.vpc.run("ip addr add 198.51.100.1/32 dev lo");
        node.vpc.run("ip addr add 10.0.200.1/32 dev lo");
        node.vpc.run("ip route add 10.0.16.7 via 10.0.16.131 dev far1");
        node.vpc.write_sysctl("net/ipv4/conf/far0/rp_filter", "1");
        node.vpc.write_sysctl("net/ipv4/conf/far1/rp_filter", "1");
        node.converge(&Node::wanted());
        pod::add(&pod_of("w0", "10.0.16.7", 2), &node.space.netns, &pod.netns).unwrap();
        // A link carries packets a moment after it is up.
        while !node.space.succeeds("ping -c 1 -W 1 -I 10.0.16.131 10.0.16.1") {}
        while !pod.succeeds("ping -c 1 -W 1 10.0.16.131") {}
        Self { node, pod }
    }
}

fn socket(space: &Space, address: &str) -> UdpSocket {
    let socket = inside(&space.netns, || UdpSocket::bind(address).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// Sends from one to the other and back; returns who the other saw, and whom the answer came from.
fn exchange(one: &UdpSocket, other: &UdpSocket, to: &str) -> (SocketAddr, SocketAddr) {
    let mut buffer = [0; 16];
    one.send_to(b"question", to).unwrap();
    let (_, seen) = other.recv_from(&mut buffer).expect("the question arrives");
    other.send_to(b"answer", seen).unwrap();
    let (_, answered) = one.recv_from(&mut buffer).expect("the answer arrives");
    (seen, answered)
}

#[test]
fn a_pod_speaks_to_the_outside_with_the_nodes_address_by_the_primary_eni() {
    let wires = Wires::new();
    let (pod, outside) = (socket(&wires.pod, POD), socket(&wires.node.vpc, OUTSIDE));

    for _ in 0..2 {
        let (seen, answered) = exchange(&pod, &outside, OUTSIDE);

        assert_eq!(seen.ip().to_string(), "10.0.0.10");
        assert_eq!(answered.to_string(), OUTSIDE);
    }
}

#[test]
fn a_pod_speaks_within_the_vpc_with_its_own_address_by_its_own_eni() {
    let wires = Wires::new();
    let (pod, peer) = (socket(&wires.pod, POD), socket(&wires.node.vpc, INSIDE));

    let (seen, _) = exchange(&pod, &peer, INSIDE);

    assert_eq!(seen.to_string(), POD);
}

#[test]
fn a_pod_answers_the_outside_by_the_eni_that_the_question_came_from() {
    let wires = Wires::new();
    let (pod, outside) = (socket(&wires.pod, POD), socket(&wires.node.vpc, OUTSIDE));

    let (seen, answered) = exchange(&outside, &pod, POD);

    assert_eq!(seen.to_string(), OUTSIDE);
    assert_eq!(answered.to_string(), POD);
}

#[test]
fn a_stream_that_nobody_answers_goes_on_as_it_began_when_the_options_change() {
    let node_translates = Node::wanted();
    let mut excluded = Node::wanted();
    excluded.options.exclude_snat_cidrs = vec!["198.51.100.0/24".parse().unwrap()];
    let mut external = Node::wanted();
    external.options.external_snat = true;
    let mut without_a_table = external.clone();
    without_a_table.options.node_port = false;
    for (before, after, source) in [
        (&external, &node_translates, "10.0.16.7"),
        (&without_a_table, &node_translates, "10.0.16.7"),
        (&excluded, &node_translates, "10.0.16.7"),
        (&node_translates, &external, "10.0.0.10"),
        (&node_translates, &excluded, "10.0.0.10"),
    ] {
        let wires = Wires::new();
        // Connections are tracked whatever our options, as kube-proxy makes the kernel do.
        add_services(&wires.node);
        wires.node.converge(before);
        let (pod, outside) = (socket(&wires.pod, POD), socket(&wires.node.vpc, OUTSIDE));
        let sees = || {
            pod.send_to(b"line", OUTSIDE).unwrap();
            let (_, seen) = outside.recv_from(&mut [0; 16]).expect("the datagram arrives");
            seen.ip().to_string()
        };

        assert_eq!([sees(), sees()], [source, source], "from {before:?}");
        assert_ne!(wires.node.converge(after), Vec::<String>::new());

        assert_eq!([sees(), sees()], [source, source], "from {before:?} to {after:?}");
    }
}

/// Two services as kube-proxy leads to them: one of a pod in the VPC, one of somebody outside.
fn add_services(node: &Node) {
    node.space.feed(
        "nft -f -",
        "table ip services {
            chain pre {
                type nat hook prerouting priority dstnat
                ip daddr 172.20.0.1 udp dport 53 dnat to 10.0.200.1:9000
                ip daddr 172.20.0.2 udp dport 53 dnat to 198.51.100.1:9000
            }
        }\n",
    );
}

#[test]
fn a_service_is_judged_by_where_its_connection_really_goes() {
    let wires = Wires::new();
    add_services(&wires.node);
    let pod = socket(&wires.pod, POD);

    let (seen, answered) = exchange(&pod, &socket(&wires.node.vpc, INSIDE), "172.20.0.1:53");
    assert_eq!((seen.to_string(), answered.to_string()), (POD.to_owned(), "172.20.0.1:53".to_owned()));

    let (seen, answered) = exchange(&pod, &socket(&wires.node.vpc, OUTSIDE), "172.20.0.2:53");
    assert_eq!(seen.ip().to_string(), "10.0.0.10");
    assert_eq!(answered.to_string(), "172.20.0.2:53");
}

#[test]
fn a_node_port_answers_by_the_primary_eni() {
    let wires = Wires::new();
    wires.node.space.feed(
        "nft -f -",
        "table ip services {
            chain pre {
                type nat hook prerouting priority dstnat
                fib daddr type local udp dport 30000 dnat to 10.0.16.7:8000
            }
        }\n",
    );
    let (pod, outside) = (socket(&wires.pod, POD), socket(&wires.node.vpc, OUTSIDE));

    let (seen, answered) = exchange(&outside, &pod, "10.0.0.10:30000");

    assert_eq!(seen.to_string(), OUTSIDE);
    assert_eq!(answered.to_string(), "10.0.0.10:30000");
}

#[test]
fn mark_bits_of_others_are_kept() {
    let wires = Wires::new();
    wires.node.space.feed(
        "nft -f -",
        "table ip somebody {
            chain before { type filter hook prerouting priority raw
                iifname \"eni*\" meta mark set 0x4000
            }
            chain after { type filter hook forward priority 0
                iifname \"eni*\" meta mark 0x4080 counter
                iifname \"eni*\" meta mark 0x4000 counter
            }
        }\n",
    );
    let pod = socket(&wires.pod, POD);
    // Bound once: a program that another test is just starting holds a closed socket a moment longer.
    let (outside, inside) = (socket(&wires.node.vpc, OUTSIDE), socket(&wires.node.vpc, INSIDE));
    for _ in 0..2 {
        exchange(&pod, &outside, OUTSIDE);
    }
    exchange(&pod, &inside, INSIDE);

    let chain = wires.node.space.run("nft list chain ip somebody after");
    assert!(chain.contains("0x00004080 counter packets 2 "), "{chain}");
    assert!(chain.contains("0x00004000 counter packets 1 "), "{chain}");
}
