//! A node's own network, made in real namespaces and looked at with `ip`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use datapath::egress::{self, EgressNetwork};
use datapath::host::{self, EniSetupError, Extent, HostError, HostWarning, PodLink};
use datapath::kernel::inside;
use datapath::pod;
use datapath::wanted::{HostNetwork, PodOnHost};
use support::node::Node;
use support::{Space, pod as pod_of};
use vpc::{Family, PodName, RouteTable};

#[test]
fn a_node_with_pods_is_as_the_goldens_say() {
    let node = Node::new();
    let (on_primary, on_secondary) = (Space::new(), Space::new());

    node.converge(&Node::wanted());
    pod::add(&pod_of("p0", "10.0.9.47", 254), &node.space.netns, &on_primary.netns).unwrap();
    pod::add(&pod_of("w0", "10.0.23.153", 2), &node.space.netns, &on_secondary.netns).unwrap();

    assert_eq!(
        node.space.lines("ip rule"),
        [
            "0: from all lookup local",
            "512: from all to 10.0.9.47 lookup main",
            "512: from all to 10.0.23.153 lookup main",
            "1024: from all fwmark 0x80/0x80 lookup main",
            "1536: from 10.0.23.153 lookup 2",
            "32765: from 10.0.16.131 lookup 2",
            "32766: from all lookup main",
            "32767: from all lookup default",
        ]
    );
    assert_eq!(
        node.space.lines("ip route"),
        [
            "default via 10.0.0.1 dev eth0 proto dhcp src 10.0.0.10 metric 512",
            "10.0.0.0/20 dev eth0 proto kernel scope link src 10.0.0.10",
            "10.0.9.47 dev eni2c1f6c05f3a scope link",
            "10.0.23.153 dev eni432851509ae scope link",
        ]
    );
    assert_eq!(
        node.space.lines("ip route show table 2"),
        ["default via 10.0.16.1 dev eth1", "10.0.16.1 dev eth1 scope link"]
    );
    let address = node.space.run("ip -4 addr show dev eth1");
    assert!(address.contains("inet 10.0.16.131/20 brd 10.0.31.255 scope global eth1\n"), "{address}");
    assert!(address.contains("mtu 9001") && address.contains("state UP"), "{address}");
    assert_eq!(node.space.link("eth0")["mtu"], 9001);
}

#[test]
fn a_second_run_writes_nothing() {
    let node = Node::new();
    let mut wanted = Node::wanted();
    wanted.options.external_service_cidrs = vec!["10.100.0.0/16".parse().unwrap()];
    assert_ne!(node.converge(&wanted), Vec::<String>::new());
    let filter = node.space.run("nft -a list ruleset");
    node.space.settle(2);
    let monitor = Monitor::start(&node.space);

    assert_eq!(node.converge(&wanted), Vec::<String>::new());

    assert_eq!(monitor.stop(), Vec::<String>::new());
    assert_eq!(node.space.run("nft -a list ruleset"), filter);
}

#[test]
fn drift_is_repaired_and_nothing_else_is_touched() {
    let node = Node::new();
    let wanted = Node::wanted();
    node.converge(&wanted);
    node.space.run("ip rule add from 10.9.9.9 lookup 99 priority 32765");
    node.space.run("ip rule add fwmark 0x1/0x3 lookup main priority 1024");
    node.space.run("ip route add 192.0.2.0/24 dev eth1 table 2");
    node.space.run("nft add table ip somebody");
    let rules = node.space.rules();

    node.space.run("ip rule del priority 32765 from 10.0.16.131");
    node.space.run("ip route del default table 2");
    node.space.run("ip link set eth1 mtu 1500");
    node.space.run("nft flush chain ip vpc-cni translate");

    assert_eq!(
        node.converge(&wanted),
        [
            "set mtu of link eth1 to 9001",
            "replace route default via 10.0.16.1 dev eth1 table 2",
            "add rule 32765: from 10.0.16.131 lookup 2",
            "replace nft table ip vpc-cni",
        ]
    );
    let mut repaired = node.space.rules();
    let mut expected = rules;
    repaired.sort();
    expected.sort();
    assert_eq!(repaired, expected);
    assert!(node.space.run("ip route show table 2").contains("192.0.2.0/24 dev eth1"));
    assert!(node.space.succeeds("nft list table ip somebody"));
}

#[test]
fn a_link_that_went_down_gets_its_routes_again() {
    let node = Node::new();
    let wanted = Node::wanted();
    node.converge(&wanted);
    node.space.run("ip link set eth1 down");

    node.converge(&wanted);

    assert_eq!(
        node.space.lines("ip route show table 2"),
        ["default via 10.0.16.1 dev eth1", "10.0.16.1 dev eth1 scope link"]
    );
    assert_eq!(node.converge(&wanted), Vec::<String>::new());
}

#[test]
fn an_address_of_the_image_on_a_secondary_eni_gives_way() {
    let node = Node::new();
    node.space.run("ip link set eth1 up");
    node.space.run("ip addr add 10.0.16.77/20 dev eth1");
    node.space.run("ip addr add 169.254.7.7/16 dev eth1");

    node.converge(&Node::wanted());

    assert_eq!(node.space.addresses("eth1"), ["169.254.7.7", "10.0.16.131"]);
    assert!(!node.space.run("ip route").contains("10.0.16.0/20"));
    assert_eq!(node.converge(&Node::wanted()), Vec::<String>::new());
}

#[test]
fn changed_options_leave_nothing_of_the_old_ones() {
    let node = Node::new();
    let mut wanted = Node::wanted();
    wanted.options.external_service_cidrs = vec!["10.100.0.0/16".parse().unwrap()];
    node.converge(&wanted);

    wanted.options.connmark = 0x40;
    wanted.options.external_service_cidrs = vec!["10.101.0.0/16".parse().unwrap()];
    node.converge(&wanted);
    assert_eq!(
        node.space.rules(),
        [
            "1024: from all fwmark 0x40/0x40 lookup main",
            "1535: from all to 10.101.0.0/16 lookup main",
            "32765: from 10.0.16.131 lookup 2"
        ]
    );

    wanted.options.external_service_cidrs.clear();
    wanted.options.external_snat = true;
    wanted.options.node_port = false;
    node.converge(&wanted);
    assert_eq!(node.space.rules(), ["32765: from 10.0.16.131 lookup 2"]);
    assert!(!node.space.succeeds("nft list table ip vpc-cni"));
}

#[test]
fn reverse_path_filtering_is_loosened_where_it_is_strict() {
    let node = Node::new();
    node.space.write_sysctl("net/ipv4/conf/all/rp_filter", "1");

    node.converge(&Node::wanted());

    for link in ["eth0", "eth1"] {
        assert_eq!(node.space.read_sysctl(&format!("net/ipv4/conf/{link}/rp_filter")), "2", "{link}");
    }
    assert_eq!(node.space.read_sysctl("net/ipv4/conf/lo/rp_filter"), "0");
    assert_eq!(node.converge(&Node::wanted()), Vec::<String>::new());
}

#[test]
fn an_eni_without_a_link_does_not_keep_the_others_waiting() {
    let node = Node::new();
    let mut wanted = Node::wanted();
    let absent = "02:00:00:00:00:99".parse().unwrap();
    wanted
        .enis
        .insert(0, datapath::wanted::EniNetwork { mac: absent, table: RouteTable(3), ..wanted.enis[0] });

    let error = node.try_converge(&wanted).unwrap_err();

    assert!(matches!(error, HostError::Eni(EniSetupError::LinkMissing(mac)) if mac == absent), "{error}");
    assert!(node.space.rules().contains(&"32765: from 10.0.16.131 lookup 2".to_owned()));
    assert!(node.space.succeeds("nft list table ip vpc-cni"));
}

#[test]
fn a_missing_primary_link_is_an_error_that_names_its_address() {
    let node = Node::new();
    let mut wanted = Node::wanted();
    wanted.primary.mac = "02:00:00:00:00:99".parse().unwrap();

    assert_eq!(
        node.try_converge(&wanted).unwrap_err().to_string(),
        "find the link of the primary ENI: no link has the address 02:00:00:00:00:99"
    );
}

#[test]
fn an_error_repeats_what_the_kernel_explains() {
    let node = Node::new();
    let mut wanted = Node::wanted();
    wanted.options.eni_mtu = 100_000;

    assert_eq!(
        node.try_converge(&wanted).unwrap_err().to_string(),
        "set mtu of link eth0 to 100000: Invalid argument (os error 22) (mtu greater than device maximum)"
    );
}

#[test]
fn an_eni_that_left_is_forgotten() {
    let node = Node::new();
    let mut netlink = node.space.netlink();
    let wanted = Node::wanted();
    let eni = wanted.enis[0];
    host::set_up_eni(&mut netlink, &eni, &wanted.options).unwrap();
    assert_eq!(node.space.rules(), ["32765: from 10.0.16.131 lookup 2"]);

    node.space.run("ip link del eth1");
    let changes = host::forget_eni(&mut netlink, eni.address, eni.table).unwrap();

    assert_eq!(changes.len(), 1);
    assert_eq!(node.space.rules(), Vec::<String>::new());
    assert_eq!(host::forget_eni(&mut netlink, eni.address, eni.table).unwrap(), []);
}

#[test]
fn rules_and_link_of_a_vanished_pod_can_be_removed() {
    let (space, sandbox) = (Space::new(), Space::new());
    let address = IpAddr::from(Ipv4Addr::new(10, 0, 1, 7));
    pod::add(&pod_of("sample-pod", "10.0.1.7", 2), &space.netns, &sandbox.netns).unwrap();
    let mut netlink = space.netlink();

    assert_eq!(host::remove_pod_rules(&mut netlink, address).unwrap().len(), 2);
    assert_eq!(host::remove_pod_rules(&mut netlink, address).unwrap(), []);
    assert_eq!(host::remove_link(&mut netlink, "enicc21c2d7785").unwrap().len(), 1);
    assert_eq!(host::remove_link(&mut netlink, "enicc21c2d7785").unwrap(), []);

    assert_eq!(space.rules(), Vec::<String>::new());
    assert!(!space.succeeds("ip link show dev enicc21c2d7785"));
}

#[test]
fn a_link_of_a_pod_is_found_while_it_lives_and_one_of_the_same_name_is_another() {
    let (node, sandbox) = (Node::new(), Space::new());
    let wanted = Node::wanted();
    node.converge(&wanted);
    pod::add(&pod_of("sample-pod", "10.0.1.7", 2), &node.space.netns, &sandbox.netns).unwrap();
    let mut netlink = node.space.netlink();
    let pods = [on_host("sample-pod", "10.0.1.7", 2), on_host("other", "10.0.1.8", 2)];

    let seen = host::observe(&mut netlink, wanted.family).unwrap();
    let links: Vec<_> = host::whole_links(&seen, &pods);

    let [Some(link), None] = links.as_slice() else { panic!("{links:?}") };
    let left = BTreeSet::from([link.clone()]);
    assert_eq!(host::reached_links(&mut netlink, &left).unwrap(), BTreeMap::from([(link.clone(), true)]));
    node.space.run("ip route del 10.0.1.7");
    assert_eq!(host::reached_links(&mut netlink, &left).unwrap(), BTreeMap::from([(link.clone(), false)]));

    assert_eq!(host::remove_links(&mut netlink, [link]).unwrap().len(), 1);
    node.space.run("ip link add enicc21c2d7785 type veth peer name heir");
    assert_eq!(host::reached_links(&mut netlink, &left).unwrap(), BTreeMap::new());
    assert_eq!(host::remove_links(&mut netlink, [link]).unwrap(), []);
    assert!(node.space.succeeds("ip link show dev enicc21c2d7785"));
}

/// Whoever flushes its addresses leaves the node nothing to ask the pod with.
#[test]
fn an_ipv6_pod_is_heard_again_after_its_links_addresses_were_flushed() {
    let (node, sandbox) = (Node::of(Family::V6), Space::new());
    let wanted = HostNetwork { enis: Vec::new(), ..Node::wanted_of(Family::V6) };
    pod::add(&pod_of("six", "2001:db8:1::7", 254), &node.space.netns, &sandbox.netns).unwrap();
    let pods = [on_host("six", "2001:db8:1::7", 254)];
    let veth = vpc::host_veth("eni", &pods[0].pod, 0);
    let mut netlink = node.space.netlink();
    let mut converge = || {
        let seen = host::observe(&mut netlink, wanted.family).unwrap();
        let is_whole = host::whole_links(&seen, &pods)[0].is_some();
        let extent = Extent { pods: &pods, filter: false };
        let done = host::converge(&mut netlink, &seen, &wanted, extent, &mut |_| true);
        assert!(done.fault.is_none(), "{:?}", done.fault);
        (is_whole, done.changes.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    while node.space.run(&format!("ip -6 addr show dev {veth} scope link")).is_empty() {}
    converge();
    assert_eq!(converge(), (true, Vec::new()));

    node.space.run(&format!("ip -6 addr flush dev {veth}"));
    node.space.run(&format!("ip -6 neigh flush dev {veth}"));
    assert!(!node.space.succeeds("ping -6 -c 1 -W 1 2001:db8:1::7"), "the kernel asks without an address");

    let (was_whole, changes) = converge();
    assert!(!was_whole && changes.len() == 1 && changes[0].starts_with("add address fe80::"), "{changes:?}");
    assert!(node.space.succeeds("ping -6 -c 1 -W 5 2001:db8:1::7"));
    assert_eq!(converge(), (true, Vec::new()));
}

#[test]
fn a_pods_egress_is_put_back_as_it_was_seen() {
    for (own, family, address, block) in [
        ("2001:db8:1::7", Family::V4, "169.254.172.2", "169.254.172.0/22"),
        ("10.0.1.7", Family::V6, "fd00::ac:2", "fd00::ac:0/118"),
    ] {
        let (space, sandbox) = (Space::new(), Space::new());
        pod::add(&pod_of("sample-pod", own, 254), &space.netns, &sandbox.netns).unwrap();
        let wanted = EgressNetwork {
            pod_interface: "eth0".to_owned(),
            address: address.parse().unwrap(),
            block: block.parse().unwrap(),
            mtu: 9001,
        };
        let veth = egress::add(&wanted, &space.netns, &sandbox.netns).unwrap().host_veth;
        let mut netlink = space.netlink();
        let mut observe = || {
            let seen = host::observe(&mut netlink, Family::V4).unwrap();
            host::observe_egress(&mut netlink, &seen, family).unwrap()
        };
        let name = vpc::host_veth("eni", &PodName::new("default", "sample-pod"), 0);
        let index = u32::try_from(space.link(&name)["ifindex"].as_u64().unwrap()).unwrap();
        let pods = BTreeSet::from([PodLink { index, name }]);
        let ip = if family == Family::V4 { "ip -4" } else { "ip -6" };

        let whole = host::whole_egress(&observe(), &pods);

        assert_eq!(whole.len(), 1, "{address}");
        assert_eq!((&whole[0].link.name, whole[0].address), (&veth, wanted.address));
        for loss in [
            format!("{ip} route del {address}"),
            format!("{ip} addr flush dev {veth}"),
            format!("ip link set {veth} down"),
        ] {
            space.run(&loss);
            let seen = observe();
            assert_eq!(host::whole_egress(&seen, &pods), [], "{loss}");

            let (changes, fault) = host::mend_egress(&mut space.netlink(), &seen, &whole, &mut |_| true);

            assert!(fault.is_none() && !changes.is_empty(), "{loss}: {fault:?}");
            // The kernel makes a link-local address in its own time.
            while host::whole_egress(&observe(), &pods) != whole {}
        }
        host::remove_egress(&mut space.netlink(), &whole).unwrap();
        assert!(!space.run(&format!("{ip} route")).contains(address));
        host::remove_egress(&mut space.netlink(), &whole).unwrap();
    }
}

#[test]
fn a_node_that_drops_or_does_not_forward_is_warned_about() {
    let node = Node::new();
    let wanted = Node::wanted();
    node.converge(&wanted);
    let warnings = || {
        let mut netlink = node.space.netlink();
        inside(&node.space.netns, || host::warnings(&mut netlink, &wanted)).unwrap()
    };
    node.space.write_sysctl("net/ipv4/ip_forward", "1");
    assert_eq!(warnings(), []);

    node.space.write_sysctl("net/ipv4/ip_forward", "0");
    node.space.write_sysctl("net/ipv4/conf/eth0/rp_filter", "1");
    node.space.feed(
        "nft -f -",
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }\n",
    );

    assert_eq!(
        warnings(),
        [
            HostWarning::ForwardingOff,
            HostWarning::ForwardDropped { table: "ip filter".to_owned() },
            HostWarning::StrictReversePath { link: "eth0".to_owned() },
        ]
    );
}

#[test]
fn a_filter_that_drops_ipv6_is_warned_about_where_pods_have_ipv6() {
    let with_egress = |has_address: bool| {
        let mut wanted = Node::wanted_of(Family::V4);
        wanted.options.egress = true;
        wanted.primary.address_v6 = wanted.primary.address_v6.filter(|_| has_address);
        wanted
    };
    for (wanted, is_warned) in [
        (Node::wanted_of(Family::V6), true),
        (with_egress(true), true),
        (with_egress(false), false),
        (Node::wanted_of(Family::V4), false),
    ] {
        let node = Node::of(Family::V6);
        node.space.feed(
            "nft -f -",
            "table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }\n",
        );

        let mut netlink = node.space.netlink();
        let warnings = inside(&node.space.netns, || host::warnings(&mut netlink, &wanted)).unwrap();

        let dropped = HostWarning::ForwardDropped { table: "ip6 filter".to_owned() };
        assert_eq!(warnings.contains(&dropped), is_warned, "{wanted:?}: {warnings:?}");
    }
}

/// A pod of one interface as the node knows it.
fn on_host(name: &str, address: &str, table: u32) -> PodOnHost {
    PodOnHost {
        pod: PodName::new("default", name),
        nic: 0,
        address: address.parse().unwrap(),
        table: RouteTable(table),
    }
}

/// `ip monitor` in a namespace, with everything that it prints.
struct Monitor<'a> {
    space: &'a Space,
    process: std::process::Child,
    lines: mpsc::Receiver<String>,
}

impl<'a> Monitor<'a> {
    const BEFORE: &'static str = "50001:";
    const AFTER: &'static str = "50002:";

    fn start(space: &'a Space) -> Self {
        let mut process = space.spawn("ip monitor link address route rule");
        let output = process.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let monitor = Self { space, process, lines };
        // It listens once it tells of a change; what was changed until then it may miss.
        loop {
            monitor.mark("add", "50000:");
            monitor.mark("del", "50000:");
            if monitor.lines.recv_timeout(Duration::from_millis(50)).is_ok() {
                break;
            }
        }
        monitor.mark("add", Self::BEFORE);
        monitor.until(Self::BEFORE);
        monitor
    }

    fn mark(&self, verb: &str, priority: &str) {
        let priority = priority.trim_end_matches(':');
        self.space.run(&format!("ip rule {verb} lookup 9999 priority {priority}"));
    }

    fn until(&self, mark: &str) -> Vec<String> {
        let next =
            || self.lines.recv_timeout(Duration::from_secs(20)).expect("ip monitor tells of every change");
        std::iter::from_fn(|| Some(next()).filter(|line| !line.starts_with(mark))).collect()
    }

    /// What it printed since the start.
    fn stop(mut self) -> Vec<String> {
        self.mark("add", Self::AFTER);
        let lines = self.until(Self::AFTER);
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        lines
    }
}
