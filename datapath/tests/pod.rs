//! A pod's network, made in real namespaces and looked at with `ip`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

mod support;

use std::net::IpAddr;

use datapath::{evidence, pod};
use support::{Space, pod as pod_of};
use vpc::RouteTable;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Names of links other than those that every namespace has.
fn links(space: &Space) -> Vec<String> {
    let all = space.json("ip -j link");
    let names = all.iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
    names.filter(|name| name != "lo" && !name.starts_with("ifb")).collect()
}

#[test]
fn a_pod_of_the_primary_eni_is_wired_as_the_goldens_say() {
    let (host, sandbox) = (Space::new(), Space::new());

    pod::add(&pod_of("sample-pod", "10.0.1.7", 254), &host.netns, &sandbox.netns).unwrap();

    assert_eq!(host.rules(), ["512: from all to 10.0.1.7 lookup main"]);
    assert_eq!(host.lines("ip route"), ["10.0.1.7 dev enicc21c2d7785 scope link"]);
    assert_eq!(
        sandbox.lines("ip route"),
        ["default via 169.254.1.1 dev eth0", "169.254.1.1 dev eth0 scope link"]
    );
    assert_eq!(sandbox.rules(), Vec::<String>::new());
    assert_eq!(
        sandbox.lines("ip -4 -o addr show dev eth0")[0]
            .split('\\')
            .next()
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["2:", "eth0", "inet", "10.0.1.7/32", "scope", "global", "eth0"]
    );
    let mac = host.link("enicc21c2d7785")["address"].as_str().unwrap().to_owned();
    assert_eq!(sandbox.lines("ip neigh"), [format!("169.254.1.1 dev eth0 lladdr {mac} PERMANENT")]);
}

#[test]
fn both_ends_have_the_mtu_and_no_queue() {
    let (host, sandbox) = (Space::new(), Space::new());

    pod::add(&pod_of("sample-pod", "10.0.1.7", 254), &host.netns, &sandbox.netns).unwrap();

    for link in [host.link("enicc21c2d7785"), sandbox.link("eth0")] {
        assert_eq!(link["mtu"], 9001);
        assert_eq!(link["operstate"], "UP");
        assert!(link["txqlen"].is_null(), "{link}");
    }
    let mac = host.link("enicc21c2d7785")["address"].as_str().unwrap().to_owned();
    let first = u8::from_str_radix(&mac[..2], 16).unwrap();
    assert_eq!(first & 0b11, 0b10, "{mac} is local and unicast");
}

#[test]
fn a_pod_of_a_secondary_eni_also_gets_a_rule_to_its_table() {
    let (host, sandbox) = (Space::new(), Space::new());

    pod::add(&pod_of("w0", "10.0.7.153", 2), &host.netns, &sandbox.netns).unwrap();

    assert_eq!(host.rules(), ["512: from all to 10.0.7.153 lookup main", "1536: from 10.0.7.153 lookup 2"]);
}

#[test]
fn a_table_number_beyond_a_byte_is_kept() {
    let (host, sandbox) = (Space::new(), Space::new());

    pod::add(&pod_of("w0", "10.0.7.153", 10_101), &host.netns, &sandbox.netns).unwrap();

    assert_eq!(host.rules()[1], "1536: from 10.0.7.153 lookup 10101");
}

#[test]
fn a_further_interface_has_a_table_and_a_rule_in_the_pod() {
    let (host, sandbox) = (Space::new(), Space::new());
    let mut wanted = pod_of("web-2", "10.0.9.97", 254);
    let mut second = wanted.interfaces[0].clone();
    second.host_veth = vpc::host_veth("eni", &wanted.pod, 1);
    second.container_interface = vpc::container_interface("eth0", 1);
    second.nic = 1;
    second.address = address("10.0.9.98");
    second.table = RouteTable(10_100);
    wanted.interfaces.push(second);

    pod::add(&wanted, &host.netns, &sandbox.netns).unwrap();

    assert_eq!(sandbox.rules(), ["1: from 10.0.9.98 lookup 1"]);
    assert_eq!(
        sandbox.lines("ip route show table 1"),
        ["default via 169.254.1.2 dev mNicIf1", "169.254.1.2 dev mNicIf1 scope link"]
    );
    assert_eq!(pod::check(&wanted, &host.netns, &sandbox.netns).unwrap(), []);
}

#[test]
fn an_ipv6_pod_is_reachable_at_once() {
    let (host, sandbox) = (Space::new(), Space::new());
    sandbox.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1");

    pod::add(&pod_of("six", "2001:db8::7", 254), &host.netns, &sandbox.netns).unwrap();

    let addresses = sandbox.run("ip -6 addr show dev eth0 scope global");
    assert!(addresses.contains("2001:db8::7/128 scope global nodad"), "{addresses}");
    let routes = sandbox.run("ip -6 route");
    assert!(routes.contains("default via fe80::1 dev eth0 metric 1024"), "{routes}");
    assert!(routes.contains("fe80::1 dev eth0 metric 1024"), "{routes}");
    assert_eq!(host.run("ip -6 addr show tentative"), "", "the host can ask for its pod");
    assert_eq!(host.lines("ip -6 rule")[1], "512: from all to 2001:db8::7 lookup main");
    assert_eq!(pod::check(&pod_of("six", "2001:db8::7", 254), &host.netns, &sandbox.netns).unwrap(), []);
}

#[test]
fn the_hosts_end_takes_no_routes_from_the_pod() {
    let (host, sandbox) = (Space::new(), Space::new());
    host.write_sysctl("net/ipv6/conf/default/forwarding", "1");

    pod::add(&pod_of("sample-pod", "10.0.1.7", 254), &host.netns, &sandbox.netns).unwrap();

    for setting in ["accept_ra", "accept_redirects", "forwarding"] {
        assert_eq!(host.read_sysctl(&format!("net/ipv6/conf/enicc21c2d7785/{setting}")), "0", "{setting}");
    }
}

#[test]
fn two_pods_reach_each_other_through_the_host() {
    let (host, one, other) = (Space::new(), Space::new(), Space::new());
    host.write_sysctl("net/ipv4/ip_forward", "1");
    pod::add(&pod_of("one", "10.0.1.7", 254), &host.netns, &one.netns).unwrap();
    pod::add(&pod_of("other", "10.0.1.8", 2), &host.netns, &other.netns).unwrap();

    assert!(one.succeeds("ping -c 1 -W 5 10.0.1.8"));
    assert!(other.succeeds("ping -c 1 -W 5 10.0.1.7"));
}

#[test]
fn an_interface_name_that_is_taken_fails_and_changes_nothing() {
    let (host, sandbox) = (Space::new(), Space::new());
    sandbox.run("ip link add eth0 type veth peer name elsewhere");
    let before = sandbox.run("ip -j link");

    let error = pod::add(&pod_of("sample-pod", "10.0.1.7", 254), &host.netns, &sandbox.netns).unwrap_err();

    assert!(
        error.to_string().starts_with(
            "SetupPodNetwork: failed to setup veth pair: failed to setup veth network: file exists"
        ),
        "{error}"
    );
    assert_eq!(links(&host), Vec::<String>::new());
    assert_eq!(host.rules(), Vec::<String>::new());
    assert_eq!(sandbox.run("ip -j link"), before);
}

#[test]
fn a_failure_in_the_pod_takes_back_what_was_made() {
    let (host, sandbox) = (Space::new(), Space::new());
    sandbox.run("ip route add default dev lo");

    let error = pod::add(&pod_of("sample-pod", "10.0.1.7", 2), &host.netns, &sandbox.netns).unwrap_err();

    assert!(
        error.to_string().contains("add route default via 169.254.1.1 dev eth0: File exists (os error 17)"),
        "{error}"
    );
    assert_eq!(sandbox.lines("ip route"), ["default dev lo scope link"]);
    assert_eq!((links(&host), links(&sandbox)), (vec![], vec![]));
    assert_eq!(host.rules(), Vec::<String>::new());
}

#[test]
fn a_pair_that_the_kernel_refuses_is_named_with_both_ends() {
    let (host, sandbox) = (Space::new(), Space::new());
    let mut wanted = pod_of("sample-pod", "10.0.1.7", 254);
    wanted.interfaces[0].mtu = 100_000;

    assert_eq!(
        pod::add(&wanted, &host.netns, &sandbox.netns).unwrap_err().to_string(),
        "SetupPodNetwork: failed to setup veth pair: failed to setup veth network: \
         create veth eth0 with peer enicc21c2d7785: Invalid argument (os error 22)"
    );
}

#[test]
fn many_leftovers_of_an_address_are_all_deleted() {
    let host = Space::new();
    for table in 3..9 {
        host.run(&format!("ip rule add from 10.0.1.7 lookup {table} priority 1536"));
    }

    pod::delete(&mut host.netlink(), &[(address("10.0.1.7"), RouteTable(0))]).unwrap();

    assert_eq!(host.rules(), Vec::<String>::new());
}

#[test]
fn a_failure_of_the_second_interface_takes_back_the_first() {
    let (host, sandbox) = (Space::new(), Space::new());
    let mut wanted = pod_of("sample-pod", "10.0.1.7", 2);
    let mut second = wanted.interfaces[0].clone();
    second.host_veth = "enisecond".to_owned();
    second.address = address("10.0.1.8");
    wanted.interfaces.push(second);

    pod::add(&wanted, &host.netns, &sandbox.netns).unwrap_err();

    assert_eq!((links(&host), links(&sandbox)), (vec![], vec![]));
    assert_eq!(host.rules(), Vec::<String>::new());
    assert_eq!(host.lines("ip route"), Vec::<String>::new());
}

#[test]
fn a_missing_namespace_is_named_as_people_search_for_it() {
    let error = datapath::kernel::Netns::open("/var/run/netns/x".as_ref()).unwrap_err();

    assert_eq!(
        pod::PodError::from(error).to_string(),
        "SetupPodNetwork: failed to setup veth pair: failed to setup veth network: \
         failed to Statfs \"/var/run/netns/x\": no such file or directory"
    );
}

#[test]
fn the_link_of_an_earlier_sandbox_gives_way() {
    let (host, earlier, sandbox) = (Space::new(), Space::new(), Space::new());
    pod::add(&pod_of("web-0", "10.0.1.7", 2), &host.netns, &earlier.netns).unwrap();
    pod::delete(&mut host.netlink(), &[(address("10.0.1.7"), RouteTable(2))]).unwrap();

    pod::add(&pod_of("web-0", "10.0.1.8", 254), &host.netns, &sandbox.netns).unwrap();

    assert_eq!(links(&earlier), Vec::<String>::new());
    assert_eq!(host.rules(), ["512: from all to 10.0.1.8 lookup main"]);
}

#[test]
fn the_link_of_a_running_pod_stays() {
    let (host, running, sandbox) = (Space::new(), Space::new(), Space::new());
    pod::add(&pod_of("web-0", "10.0.1.7", 254), &host.netns, &running.netns).unwrap();

    let error = pod::add(&pod_of("web-0", "10.0.1.8", 254), &host.netns, &sandbox.netns).unwrap_err();

    assert!(error.to_string().ends_with("is in use: 10.0.1.7 is reached through it"), "{error}");
    assert_eq!(pod::check(&pod_of("web-0", "10.0.1.7", 254), &host.netns, &running.netns).unwrap(), []);
    assert_eq!(host.rules(), ["512: from all to 10.0.1.7 lookup main"]);
}

#[test]
fn a_leaked_rule_does_not_misroute_the_next_pod() {
    let (host, sandbox) = (Space::new(), Space::new());
    for table in [3, 4] {
        host.run(&format!("ip rule add from 10.0.1.7 lookup {table} priority 1536"));
    }
    host.run("ip rule add from 10.0.1.70 lookup 3 priority 1536");

    pod::add(&pod_of("sample-pod", "10.0.1.7", 2), &host.netns, &sandbox.netns).unwrap();

    assert_eq!(
        host.rules(),
        [
            "512: from all to 10.0.1.7 lookup main",
            "1536: from 10.0.1.70 lookup 3",
            "1536: from 10.0.1.7 lookup 2"
        ]
    );
}

#[test]
fn deletion_leaves_nothing_on_the_host_but_the_link_and_repeats_well() {
    let (host, sandbox) = (Space::new(), Space::new());
    pod::add(&pod_of("sample-pod", "10.0.1.7", 2), &host.netns, &sandbox.netns).unwrap();
    let mut netlink = host.netlink();

    for _ in 0..2 {
        pod::delete(&mut netlink, &[(address("10.0.1.7"), RouteTable(2))]).unwrap();

        assert_eq!(host.rules(), Vec::<String>::new());
        assert_eq!(host.lines("ip route"), Vec::<String>::new());
        assert_eq!(links(&host), ["enicc21c2d7785"]);
    }
}

#[test]
fn deletion_takes_exactly_the_pods_rules() {
    let host = Space::new();
    let foreign = [
        "ip rule add from 10.0.1.7 lookup 9 priority 100",
        "ip rule add to 10.0.1.7 lookup 9 priority 512",
        "ip rule add from 10.0.1.8 lookup 2 priority 1536",
        "ip rule add from 10.0.1.7 lookup 3 priority 1536",
    ];
    for line in foreign {
        host.run(line);
    }
    let before = host.rules();
    host.run("ip rule add to 10.0.1.7 lookup main priority 512");
    host.run("ip rule add from 10.0.1.7 lookup 2 priority 1536");

    pod::delete(&mut host.netlink(), &[(address("10.0.1.7"), RouteTable(2))]).unwrap();
    assert_eq!(host.rules(), before);

    pod::delete(&mut host.netlink(), &[(address("10.0.1.7"), RouteTable(0))]).unwrap();
    assert_eq!(host.rules(), [&before[..2], &before[2..3]].concat());
}

#[test]
fn a_check_names_each_thing_that_is_missing() {
    let (host, sandbox) = (Space::new(), Space::new());
    let wanted = pod_of("sample-pod", "10.0.1.7", 2);
    pod::add(&wanted, &host.netns, &sandbox.netns).unwrap();
    assert_eq!(pod::check(&wanted, &host.netns, &sandbox.netns).unwrap(), []);

    host.run("ip rule del priority 1536");
    host.run("ip route del 10.0.1.7");
    sandbox.run("ip neigh del 169.254.1.1 dev eth0");
    sandbox.run("ip link set eth0 mtu 1500");

    let found = pod::check(&wanted, &host.netns, &sandbox.netns).unwrap();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    let mac = host.link("enicc21c2d7785")["address"].as_str().unwrap().to_owned();
    assert_eq!(
        found,
        [
            "link eth0 in the pod has mtu 1500, not 9001".to_owned(),
            "route 10.0.1.7 dev enicc21c2d7785 is missing on the host".to_owned(),
            "rule 1536: from 10.0.1.7 lookup 2 is missing on the host".to_owned(),
            format!("neighbour 169.254.1.1 lladdr {mac} dev eth0 is missing in the pod"),
        ]
    );
}

#[test]
fn the_kernel_bears_witness_to_addresses_in_use() {
    let (host, sandbox) = (Space::new(), Space::new());
    pod::add(&pod_of("sample-pod", "10.0.1.7", 2), &host.netns, &sandbox.netns).unwrap();
    host.run("ip rule add from 10.0.1.9 lookup 3 priority 1536");

    let evidence = evidence::read(&mut host.netlink()).unwrap();

    assert_eq!(evidence.routes[&address("10.0.1.7")], "enicc21c2d7785");
    assert_eq!(evidence.rules[&address("10.0.1.7")].len(), 2);
    assert_eq!(evidence.rules[&address("10.0.1.9")][0].table, RouteTable(3));
    assert!(evidence.links.contains("enicc21c2d7785"));
    let mac = host.link("enicc21c2d7785")["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(evidence.macs[&mac], "enicc21c2d7785");
}
