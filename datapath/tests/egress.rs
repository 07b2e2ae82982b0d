//! A pod's egress, made in real namespaces and looked at with `ip` and sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use datapath::egress::{self, EgressEnds, EgressError, EgressNetwork};
use datapath::host;
use datapath::kernel::inside;
use datapath::wanted::{HostNetwork, HostOptions, PrimaryLink};
use support::Space;
use vpc::Family;

fn v4(address: &str) -> EgressNetwork {
    EgressNetwork {
        pod_interface: "eth0".to_owned(),
        address: address.parse().unwrap(),
        block: "169.254.172.0/22".parse().unwrap(),
        mtu: 9001,
    }
}

fn v6(address: &str) -> EgressNetwork {
    EgressNetwork { block: "fd00::ac:0/118".parse().unwrap(), ..v4(address) }
}

/// Everything that an ADD could change in a namespace; of addresses that the kernel makes itself
/// only that they are there.
fn dump(space: &Space) -> Vec<String> {
    let mut lines = Vec::new();
    for command in ["ip -d -o link", "ip -o addr", "ip route show table all", "ip -6 route show table all"] {
        lines.extend(space.lines(command).into_iter().map(|line| line.replace(" tentative", "")));
    }
    for setting in ["eth0/disable_ipv6", "lo/disable_ipv6"] {
        let read = || std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{setting}"));
        lines.push(format!("{setting} {:?}", inside(&space.netns, read).unwrap().ok()));
    }
    lines.iter_mut().for_each(|line| {
        // Links come up in their own time, and `ip` counts down.
        for state in ["state UP", "state LOWERLAYERDOWN", "state UNKNOWN"] {
            *line = line.replace(state, "");
        }
    });
    lines
}

/// A pod that has an interface to its host already, of the other family.
fn pod_with(host: &Space, name: &str, address: &str) -> Space {
    let pod = Space::new();
    let search_for_duplicates = |value| {
        for space in [&pod, host] {
            space.write_sysctl("net/ipv6/conf/default/accept_dad", value);
        }
    };
    search_for_duplicates("0");
    pod.run(&format!("ip link add eth0 type veth peer name {name} netns {}", host.netns.path().display()));
    pod.run(&format!("ip addr add {address} dev eth0"));
    pod.run("ip link set eth0 up");
    host.run(&format!("ip link set {name} up"));
    search_for_duplicates("1");
    // The kernel gives both ends their link-local addresses in its own time.
    for (space, link) in [(&pod, "eth0"), (host, name)] {
        wait_until(|| {
            let addresses = space.run(&format!("ip -6 addr show dev {link} scope link"));
            addresses.contains("fe80::") && !addresses.contains("tentative")
        });
    }
    pod
}

/// Waits for a state that the kernel comes to by itself.
#[track_caller]
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not become so");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Fails the test unless `spaces` come to look as they did `before`.
#[track_caller]
fn assert_as_before(spaces: [&Space; 2], before: &[Vec<String>; 2]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while spaces.map(dump) != *before && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(spaces.map(dump), *before);
}

/// A node, and a server behind its eth0 that knows nobody but the node.
fn node_and_server() -> (Space, Space) {
    let (node, server) = (Space::new(), Space::new());
    node.run(&format!("ip link add eth0 type veth peer name eth0 netns {}", server.netns.path().display()));
    for (space, host) in [(&node, 20), (&server, 99)] {
        space.run("ip link set eth0 up");
        space.run(&format!("ip addr add 10.0.0.{host}/24 dev eth0"));
        space.run(&format!("ip addr add 2001:db8::{host}/64 dev eth0 nodad"));
    }
    node.write_sysctl("net/ipv6/conf/all/forwarding", "1");
    (node, server)
}

/// Who `server` sees when `pod` connects to it.
fn seen_by(server: &Space, pod: &Space, address: &str) -> IpAddr {
    let address: IpAddr = address.parse().unwrap();
    let listener = inside(&server.netns, || TcpListener::bind(SocketAddr::new(address, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let seen = thread::spawn(move || listener.accept().unwrap().1.ip());
    let mut stream = inside(&pod.netns, || TcpStream::connect(target).unwrap()).unwrap();
    let seen = seen.join().unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    seen
}

fn add(wanted: &EgressNetwork, host: &Space, pod: &Space) -> EgressEnds {
    egress::add(wanted, &host.netns, &pod.netns).unwrap()
}

#[test]
fn ipv4_egress_is_wired_as_the_reference_does() {
    let (host, pod) = (Space::new(), Space::new());

    let ends = add(&v4("169.254.172.2"), &host, &pod);

    assert_eq!(
        pod.lines("ip route"),
        [
            "default via 169.254.172.1 dev v4if0",
            "169.254.172.0/22 via 169.254.172.1 dev v4if0 src 169.254.172.2",
            "169.254.172.1 dev v4if0 scope link src 169.254.172.2",
        ]
    );
    let address = &pod.json("ip -j -4 addr show dev v4if0")[0]["addr_info"][0];
    assert_eq!(
        (&address["local"], &address["prefixlen"], &address["broadcast"], &address["scope"]),
        (&"169.254.172.2".into(), &22.into(), &"169.254.175.255".into(), &"global".into())
    );
    let veth = &ends.host_veth;
    let route = host.run("ip route");
    assert!(route.starts_with(&format!("169.254.172.2 dev {veth} scope link")), "{route}");
    let address = &host.json(&format!("ip -j -4 addr show dev {veth}"))[0]["addr_info"][0];
    assert_eq!(
        (&address["local"], &address["prefixlen"], &address["scope"]),
        (&"169.254.172.1".into(), &32.into(), &"link".into())
    );
    assert!(address["broadcast"].is_null());
    assert_eq!(host.read_sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(host.read_sysctl(&format!("net/ipv6/conf/{veth}/accept_ra")), "0");
}

#[test]
fn ipv6_egress_is_wired_as_the_reference_does() {
    let host = Space::new();
    let pod = pod_with(&host, "eni4", "10.0.1.7/32");

    let ends = add(&v6("fd00::ac:2"), &host, &pod);

    let next_hop = host.json(&format!("ip -j -6 addr show dev {}", ends.host_veth))[0]["addr_info"].clone();
    assert_eq!(next_hop.as_array().unwrap().len(), 1, "{next_hop}");
    assert_eq!(next_hop[0]["tentative"].as_bool(), None, "{next_hop}");
    let next_hop = next_hop[0]["local"].as_str().unwrap();
    let routes = pod.json("ip -j -6 route");
    let default = routes.iter().find(|route| route["dst"] == "default").unwrap();
    assert_eq!((&default["gateway"], &default["dev"]), (&next_hop.into(), &"v6if0".into()));
    assert!(routes.iter().any(|route| route["dst"] == "fd00::ac:0/118" && route["protocol"] == "kernel"));
    let addresses = pod.run("ip -6 addr show dev v6if0 scope global");
    assert!(addresses.contains("fd00::ac:2/118 scope global nodad"), "{addresses}");
    assert_eq!(pod.run("ip -6 addr show dev eth0"), "");
    assert_eq!(pod.read_sysctl("net/ipv6/conf/v6if0/keep_addr_on_down"), "1");
    assert_eq!(host.json("ip -j -6 route show fd00::ac:2")[0]["dev"], ends.host_veth);
}

#[test]
fn the_pods_end_has_the_kernels_queue_and_the_hosts_end_none() {
    let (host, pod) = (Space::new(), Space::new());

    let ends = add(&v4("169.254.172.2"), &host, &pod);

    let (in_pod, on_host) = (pod.link("v4if0"), host.link(&ends.host_veth));
    assert_eq!((&in_pod["txqlen"], &in_pod["mtu"]), (&1000.into(), &9001.into()));
    assert_eq!((&on_host["txqlen"], &on_host["mtu"]), (&serde_json::Value::Null, &9001.into()));
    assert_eq!(in_pod["address"], ends.container_mac.to_string());
    assert_eq!(on_host["address"], ends.host_mac.to_string());
    let digits = ends.host_veth.strip_prefix("veth").unwrap();
    assert!(digits.len() == 8 && u32::from_str_radix(digits, 16).is_ok(), "{}", ends.host_veth);
}

/// What the daemon makes of the node for pods with addresses of `family`.
fn converge(node: &Space, family: Family) {
    let mac = node.link("eth0")["address"].as_str().unwrap().parse().unwrap();
    let wanted = HostNetwork {
        family,
        primary: PrimaryLink {
            mac,
            address: "10.0.0.20".parse().unwrap(),
            address_v6: Some("2001:db8::20".parse().unwrap()),
        },
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        options: HostOptions { egress: true, ..HostOptions::default() },
        enis: Vec::new(),
    };
    let mut netlink = node.netlink();
    inside(&node.netns, || host::observe_and_converge(&mut netlink, &wanted).unwrap()).unwrap();
}

#[test]
fn a_pod_reaches_a_server_of_the_other_family_at_once_as_its_node() {
    for (family, own, egress, address, expected) in [
        (Family::V6, "2001:db8:1::7/128", v4("169.254.172.2"), "10.0.0.99", "10.0.0.20"),
        (Family::V4, "10.0.1.7/32", v6("fd00::ac:2"), "2001:db8::99", "2001:db8::20"),
    ] {
        let (node, server) = node_and_server();
        converge(&node, family);
        let pod = pod_with(&node, "eni4", own);

        add(&egress, &node, &pod);

        assert_eq!(seen_by(&server, &pod, address).to_string(), expected);
    }
}

#[test]
fn an_interface_that_the_pod_has_already_is_left_as_it_is() {
    let (host, pod) = (Space::new(), Space::new());
    add(&v4("169.254.172.2"), &host, &pod);
    [&host, &pod].into_iter().for_each(|space| space.settle(1));
    let before = [&host, &pod].map(dump);

    let error = egress::add(&v4("169.254.172.3"), &host.netns, &pod.netns).unwrap_err();

    assert!(matches!(error, EgressError::InterfaceExists { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("container veth name (\"v4if0\") peer provided (\"veth"), "{text}");
    assert!(text.ends_with("\") already exists"), "{text}");
    assert_as_before([&host, &pod], &before);
}

#[test]
fn a_failure_on_either_side_leaves_both_as_they_were() {
    let host = Space::new();
    host.write_sysctl("net/ipv4/ip_forward", "1");
    let too_small = EgressNetwork { mtu: 1000, ..v6("fd00::ac:2") };
    // The first address of such a block is its broadcast address, and so no gateway.
    let two_addresses = EgressNetwork { block: "169.254.172.0/31".parse().unwrap(), ..v4("169.254.172.0") };
    for (wanted, is_pod_side) in [(too_small, true), (two_addresses, true), (v6("fd00::ac:2"), false)] {
        let pod = pod_with(&host, "eni4", "10.0.1.7/32");
        // The host's side then cannot have an IPv6 address.
        host.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        let before = [&host, &pod].map(dump);

        let error = egress::add(&wanted, &host.netns, &pod.netns).unwrap_err();

        assert_eq!(matches!(error, EgressError::PodSide(_)), is_pod_side, "{error}");
        assert_eq!(matches!(error, EgressError::HostSide(_)), !is_pod_side, "{error}");
        assert_as_before([&host, &pod], &before);
        host.write_sysctl("net/ipv6/conf/default/disable_ipv6", "0");
        pod.run("ip link del eth0");
    }
}

#[test]
fn deleting_the_route_leaves_the_link_to_the_pods_end() {
    for wanted in [v4("169.254.172.2"), v6("fd00::ac:2")] {
        let (host, pod) = (Space::new(), Space::new());
        let ends = add(&wanted, &host, &pod);
        let mut netlink = host.netlink();
        assert_eq!(
            egress::addresses_in_use(&mut netlink, wanted.block).unwrap().into_iter().collect::<Vec<_>>(),
            [wanted.address]
        );

        egress::delete_route(&mut netlink, wanted.address).unwrap();
        egress::delete_route(&mut netlink, wanted.address).unwrap();

        assert_eq!(egress::addresses_in_use(&mut netlink, wanted.block).unwrap().len(), 0);
        assert!(host.succeeds(&format!("ip link show {}", ends.host_veth)));
    }
}

#[test]
fn a_link_whose_pod_should_be_gone_is_found_by_its_address_or_its_name() {
    for by_address in [true, false] {
        let (host, pod) = (Space::new(), Space::new());
        let before = [&host, &pod].map(dump);
        let ends = add(&v6("fd00::ac:2"), &host, &pod);
        let address = by_address.then(|| "fd00::ac:2".parse().unwrap());
        let end = (!by_address).then_some((ends.host_veth.as_str(), ends.host_mac));

        let mut netlink = host.netlink();
        egress::delete_link(&mut netlink, address, end).unwrap();
        egress::delete_link(&mut netlink, address, end).unwrap();

        assert_as_before([&host, &pod], &before);
    }
}

#[test]
fn a_link_of_that_name_with_another_mac_is_somebody_elses() {
    let (host, pod) = (Space::new(), Space::new());
    let ends = add(&v4("169.254.172.2"), &host, &pod);

    let other = "02:00:00:00:00:99".parse().unwrap();
    egress::delete_link(&mut host.netlink(), None, Some((&ends.host_veth, other))).unwrap();

    assert!(pod.succeeds("ip link show v4if0"));
}

#[test]
fn check_names_what_is_not_as_add_left_it() {
    for wanted in [v4("169.254.172.2"), v6("fd00::ac:2")] {
        let (host, pod) = (Space::new(), Space::new());
        let ends = add(&wanted, &host, &pod);
        let check = || {
            let found = egress::check(&wanted, &ends.host_veth, &host.netns, &pod.netns).unwrap();
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(check(), Vec::<String>::new());

        let family = if wanted.address.is_ipv4() { "-4" } else { "-6" };
        host.run(&format!("ip {family} route del {}", wanted.address));
        pod.run(&format!("ip {family} route del default"));

        let found = check();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].ends_with("is missing on the host") && found[1].contains("route default via"));
    }
}
