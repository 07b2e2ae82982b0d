//! `egress-cni` as a runtime executes it behind `aws-cni`, beside host-local where that is there.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world should fail at once")]

mod world;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use world::{Outcome, World};

const HOST_LOCAL: &str = "/usr/lib/cni/host-local";

/// Both ways, as the daemon's list configures them: nodeIP, subnet, data directory, interface.
const V4: Way = Way("10.0.0.20", "169.254.172.0/22", "/run/cni/v6pd/egress-v4-ipam", "v4if0");
const V6: Way = Way("2001:db8::20", "fd00::ac:00/118", "/run/cni/v4pd/egress-v6-ipam", "v6if0");

#[derive(Clone, Copy)]
struct Way(&'static str, &'static str, &'static str, &'static str);

impl Way {
    fn config(self, more: &str) -> String {
        let Self(node, subnet, directory, _) = self;
        format!(
            r#"{{"cniVersion":"1.1.0","name":"aws-cni","type":"egress-cni","mtu":"9001","enabled":"true",
            "randomizeSNAT":"prng","nodeIP":"{node}","ipam":{{"type":"host-local","dataDir":"{directory}",
            "ranges":[[{{"subnet":"{subnet}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}{more}}}"#
        )
    }

    /// What the runtime says in an ADD, after `aws-cni`.
    fn add(self) -> String {
        self.config(&format!(r#","prevResult":{}"#, previous()))
    }

    /// What it says in a DEL or a CHECK, after an ADD that answered `result`.
    fn after(self, result: &str) -> String {
        self.config(&format!(r#","prevResult":{result}"#))
    }
}

fn previous() -> String {
    include_str!("../golden/result-1.0.0.json").trim_end().replace("1.0.0", "1.1.0")
}

/// A node with host-local, `egress-cni` and a pod with an interface.
struct Node(World);

impl Node {
    fn new() -> Option<Self> {
        let world = World::new()?;
        std::os::unix::fs::symlink(world::plugin(), world.path("egress-cni")).unwrap();
        let node = Self(world);
        // Without the search for duplicates no address of the kernel's own comes later.
        node.run(
            "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo 1 > /proc/sys/net/ipv4/ip_forward",
        );
        node.new_pod("pod");
        Some(node)
    }

    /// What a line of the shell prints, which may wait for a state for half a minute.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        let output = self.0.command("timeout").args(["30", "sh", "-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn new_pod(&self, name: &str) {
        self.run(&format!(
            "ip netns add {name} 2>/dev/null || ip netns list | grep -q '^{name}'
             ip netns exec {name} sh -c 'echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad'
             ip -n {name} link show eth0 >/dev/null 2>&1 ||
                ip -n {name} link add eth0 up type veth peer name eni-{name} netns $$
             ip link set eni-{name} up
             until ip -6 addr show dev eni-{name} | grep -q fe80 &&
                ip -n {name} -6 addr show dev eth0 | grep -q fe80; do :; done"
        ));
    }

    fn call(&self, verb: &str, variables: &[(&str, &str)], stdin: &str) -> Outcome {
        self.0.call_as(self.0.path("egress-cni").to_str().unwrap(), verb, variables, stdin)
    }

    fn host_local(&self, verb: &str, variables: &[(&str, &str)], way: Way) -> Outcome {
        // The Debian release does not speak 1.1.0.
        self.0.call_as(HOST_LOCAL, verb, variables, &way.config("").replace("1.1.0", "1.0.0"))
    }

    /// The names of the files with leases, sorted.
    fn leases(&self, way: Way) -> Vec<String> {
        let list = self.run(&format!("ls -A {}/aws-cni 2>/dev/null || :", way.2));
        let address = |name: &&str| name.parse::<std::net::IpAddr>().is_ok();
        list.lines().filter(address).map(str::to_owned).collect()
    }

    /// All links, addresses and routes of the node and of the pod.
    fn dump(&self) -> String {
        let dump = "ip -o addr; ip route show table all; ip -6 route show table all";
        let dump =
            format!("{dump}; ip netns exec pod sh -c '{dump}; cat /proc/sys/net/ipv6/conf/*/disable_ipv6'");
        // How long addresses are valid is left out, and states that links come to in their own time.
        self.run(&format!("({dump}) | sed 's/ linkdown//; s/ tentative//; s/valid_lft.*//'"))
    }
}

fn interfaces(outcome: &Outcome) -> Vec<(String, String, String)> {
    let result: serde_json::Value = serde_json::from_str(&outcome.success().stdout).unwrap();
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let entries = result["interfaces"].as_array().unwrap();
    entries.iter().map(|it| (text(it, "name"), text(it, "mac"), text(it, "sandbox"))).collect()
}

#[test]
fn a_pod_is_wired_checked_and_unwired_both_ways() {
    for way in [V4, V6] {
        let Some(node) = Node::new() else { return };
        let host = "ip -o addr; ip route show table all; ip -6 route show table all";
        let before = node.run(host);

        let added = node.call("ADD", &[], &way.add());

        let interfaces = interfaces(&added);
        let [.., (host_end, host_mac, _), (pod_end, pod_mac, sandbox)] = interfaces.as_slice() else {
            panic!()
        };
        assert_eq!((interfaces.len(), pod_end.as_str(), sandbox.as_str()), (5, way.3, "/run/netns/pod"));
        assert!(node.run(&format!("ip link show {host_end}")).contains(host_mac));
        assert!(node.run(&format!("ip -n pod link show {pod_end}")).contains(pod_mac));
        let lease = node.leases(way);
        assert_eq!(lease, [if way.3 == "v4if0" { "169.254.172.2" } else { "fd00::ac:2" }]);
        node.call("CHECK", &[], &way.after(&added.stdout)).success();
        let family = if way.3 == "v4if0" { "-4" } else { "-6" };
        node.run(&format!("ip {family} route del {}", lease[0]));
        let (code, message) = node.call("CHECK", &[], &way.after(&added.stdout)).error();
        assert!(code == 110 && message.contains("is missing on the host"), "{code} {message}");

        assert_eq!(node.call("DEL", &[], &way.after(&added.stdout)).success().stdout, "");
        assert_eq!(node.leases(way), Vec::<String>::new());
        let (code, message) = node.call("CHECK", &[], &way.after(&added.stdout)).error();
        assert!(code == 110 && message.contains("holds no lease of container abc"), "{code} {message}");
        node.call("DEL", &[], &way.after(&added.stdout)).success();
        node.run(&format!("ip netns del pod; while ip link show {host_end} 2>/dev/null; do :; done"));
        node.run("until ! ip link show eni-pod 2>/dev/null; do :; done");
        let gone = |line: &&str| !line.contains("eni-pod");
        let rest: Vec<&str> = before.lines().filter(gone).collect();
        assert_eq!(node.run(host).lines().collect::<Vec<_>>(), rest);
    }
}

#[test]
fn what_is_off_passes_results_through_and_still_releases() {
    let Some(node) = Node::new() else { return };
    let off = |text: String| text.replace(r#""enabled":"true""#, r#""enabled":"false""#);
    let added = node.call("ADD", &[], &V4.add());

    assert_eq!(node.call("ADD", &[], &off(V4.add())).success().stdout, previous());
    node.call("CHECK", &[], &off(V4.after(&added.success().stdout))).success();
    node.call("STATUS", &[], &off(V4.config(""))).success();
    node.call("DEL", &[], &off(V4.after(&added.stdout))).success();
    assert_eq!(node.leases(V4), Vec::<String>::new());

    let without_ipam = r#"{"cniVersion":"0.4.0","name":"aws-cni","enabled":"false","mtu":"x"}"#;
    node.call("DEL", &[], without_ipam).success();
}

#[test]
fn errors_are_those_of_the_reference() {
    let Some(node) = Node::new() else { return };
    let error = |verb: &str, stdin: &str| node.call(verb, &[], stdin).error();
    let mandatory = "global unicast IPv6 not found in host primary interface which is mandatory to support \
                     IPv6 egress";
    for (verb, stdin, message) in [
        ("ADD", V4.config(""), "must be called as a chained plugin"),
        ("ADD", V4.add().replace("9001", "x"), "strconv.Atoi: parsing \"x\": invalid syntax"),
        ("ADD", V4.add().replace("10.0.0.20", ""), mandatory),
        ("ADD", V6.add().replace("2001:db8::20", "fe80::1"), mandatory),
        ("ADD", V4.add().replace("10.0.0.20", "xx"), "failed to parse config: invalid IP address: xx"),
        ("DEL", V4.config("").replace("10.0.0.20", "xx"), "failed to parse config: invalid IP address: xx"),
        (
            "DEL",
            V4.config("").replace("\"9001\"", "9001"),
            "failed to parse config: json: cannot unmarshal number into Go struct field NetConf.mtu of type string",
        ),
        (
            "ADD",
            V4.config(r#","prevResult":{"ips":[{"address":"x"}]}"#),
            "failed to parse config: could not parse prevResult: could not parse prevResult: invalid CIDR \
             address: x",
        ),
    ] {
        assert_eq!(error(verb, &stdin), (999, message.to_owned()));
    }
    assert_eq!(node.leases(V4), Vec::<String>::new());
    let own = node.call("ADD", &[("CNI_NETNS", "/proc/self/ns/net")], &V4.add());
    assert_eq!(own.error().0, 8);
}

#[test]
fn a_failed_add_leaves_nothing_behind() {
    for (way, hurdle) in [
        (V4, "ip -n pod link add v4if0 type veth peer name other"),
        (V6, "ip -n pod link add v6if0 type veth peer name other"),
        // The host's end then takes no IPv6 address.
        (V6, "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"),
    ] {
        let Some(node) = Node::new() else { return };
        node.run(hurdle);
        let before = node.dump();

        let (code, message) = node.call("ADD", &[], &way.add()).error();

        assert_eq!(code, 999, "{message}");
        if hurdle.contains("other") {
            let begins = format!("container veth name (\"{}\") peer provided (\"veth", way.3);
            assert!(message.starts_with(&begins) && message.ends_with("\") already exists"), "{message}");
        }
        assert_eq!(node.leases(way), Vec::<String>::new());
        node.run("until ip -n pod -6 addr show dev eth0 | grep -q fe80; do :; done");
        assert_eq!(node.dump(), before);
    }
}

#[test]
fn a_repeated_add_fails_and_keeps_the_lease_of_the_first() {
    let Some(node) = Node::new() else { return };
    node.call("ADD", &[], &V4.add()).success();
    node.run("until [ $(ip -6 -o addr show | grep -c veth) = 1 ]; do :; done");
    node.run("until ip -n pod -6 addr show dev v4if0 | grep -q fe80; do :; done");
    let before = node.dump();

    node.call("ADD", &[], &V4.add()).error();

    assert_eq!(node.leases(V4), ["169.254.172.2"]);
    assert_eq!(node.dump(), before);
}

#[test]
fn a_del_without_a_namespace_removes_what_lives_on() {
    for way in [V4, V6] {
        for (netns, has_result) in [("", true), ("", false), ("/run/netns/gone", true)] {
            let Some(node) = Node::new() else { return };
            let before = node.run("ip -o link; ip route; ip -6 route");
            let added = node.call("ADD", &[], &way.add());
            let stdin = if has_result { way.after(&added.success().stdout) } else { way.config("") };

            node.call("DEL", &[("CNI_NETNS", netns)], &stdin).success();

            assert_eq!(node.leases(way), Vec::<String>::new());
            assert_eq!(node.run("ip -o link; ip route; ip -6 route"), before);
        }
    }
}

#[test]
fn fifty_adds_at_once_get_fifty_addresses() {
    let Some(node) = Node::new() else { return };
    let pods: Vec<String> = (0..50).map(|number| format!("p{number}")).collect();
    node.run(&pods.iter().map(|pod| format!("ip netns add {pod}\n")).collect::<String>());

    thread::scope(|scope| {
        for pod in &pods {
            let node = &node;
            scope.spawn(move || {
                let netns = format!("/run/netns/{pod}");
                node.call("ADD", &[("CNI_NETNS", &netns), ("CNI_CONTAINERID", pod)], &V6.add()).success();
            });
        }
    });

    assert_eq!(node.leases(V6).len(), 50);
    let routes = node.run("ip -6 route | grep -c '^fd00::ac:'");
    assert_eq!(routes.trim(), "50");
    let addresses: BTreeSet<String> = pods
        .iter()
        .map(|pod| node.run(&format!("ip -n {pod} -6 -o addr show dev v6if0 scope global")))
        .map(|line| line.split_whitespace().nth(3).unwrap().to_owned())
        .collect();
    assert_eq!(addresses.len(), 50);
}

#[test]
fn leases_are_shared_with_host_local_both_ways() {
    for way in [V4, V6] {
        if !Path::new(HOST_LOCAL).exists() {
            return eprintln!("skipped: {HOST_LOCAL} is missing (containernetworking-plugins)");
        }
        let Some(node) = Node::new() else { return };
        let address = |number: u32| {
            if way.3 == "v4if0" { format!("169.254.172.{number}") } else { format!("fd00::ac:{number}") }
        };
        node.run("ip netns add one; ip netns add two");
        let variables = |id: &'static str| {
            [
                ("CNI_CONTAINERID", id),
                ("CNI_NETNS", if id == "one" { "/run/netns/one" } else { "/run/netns/two" }),
            ]
        };

        // Ours, then its, then ours: each passes over what the other leased.
        node.call("ADD", &variables("one"), &way.add()).success();
        node.host_local("ADD", &[("CNI_CONTAINERID", "foreign")], way).success();
        node.call("ADD", &variables("two"), &way.add()).success();
        assert_eq!(node.leases(way), [address(2), address(3), address(4)]);
        assert_eq!(node.run(&format!("cat {}/aws-cni/last_reserved_ip.0", way.2)), address(4));
        let text = node.run(&format!("cat {}/aws-cni/{}", way.2, address(3)));
        assert_eq!(text, "foreign\r\neth0");
        let ours = node.run(&format!("cat {}/aws-cni/{}", way.2, address(4)));
        assert_eq!(ours, "two\r\neth0");

        // It finds and releases ours, we release its.
        node.host_local("CHECK", &variables("one"), way).success();
        node.host_local("DEL", &variables("one"), way).success();
        assert_eq!(node.leases(way), [address(3), address(4)]);
        node.call("DEL", &[("CNI_CONTAINERID", "foreign")], &way.config("")).success();
        assert_eq!(node.leases(way), [address(4)]);
        node.host_local("ADD", &[("CNI_CONTAINERID", "next")], way).success();
        assert_eq!(node.leases(way), [address(4), address(5)]);
    }
}

#[test]
fn adds_of_host_local_and_ours_at_once_get_an_address_each() {
    if !Path::new(HOST_LOCAL).exists() {
        return eprintln!("skipped: {HOST_LOCAL} is missing (containernetworking-plugins)");
    }
    let Some(node) = Node::new() else { return };
    let pods: Vec<String> = (0..20).map(|number| format!("p{number}")).collect();
    node.run(&pods.iter().map(|pod| format!("ip netns add {pod}\n")).collect::<String>());

    thread::scope(|scope| {
        for pod in &pods {
            let (node, foreign) = (&node, format!("foreign-{pod}"));
            scope.spawn(move || {
                let netns = format!("/run/netns/{pod}");
                node.call("ADD", &[("CNI_NETNS", &netns), ("CNI_CONTAINERID", pod)], &V4.add()).success();
            });
            scope.spawn(move || node.host_local("ADD", &[("CNI_CONTAINERID", &foreign)], V4).success().code);
        }
    });

    assert_eq!(node.leases(V4).len(), 40);
}

#[test]
fn an_add_waits_for_whoever_holds_the_lock() {
    let Some(node) = Node::new() else { return };
    let directory = format!("{}/aws-cni", V4.2);
    node.run(&format!("mkdir -p {directory} && touch {directory}/lock"));
    let mut holder = node
        .0
        .command("flock")
        .arg(format!("{directory}/lock"))
        .args(["sh", "-c", "echo held; read go"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();

    thread::scope(|scope| {
        let add = scope.spawn(|| node.call("ADD", &[], &V4.add()));
        // The kernel's list has an arrow before whoever waits.
        node.run(&format!(
            "inode=$(stat -c %i {directory}/lock); until grep -e '->' /proc/locks | grep -q \":$inode \"; do :; done"
        ));
        assert_eq!(node.leases(V4), Vec::<String>::new());
        holder.stdin.take().unwrap().write_all(b"go\n").unwrap();
        add.join().unwrap().success();
    });

    assert!(holder.wait().unwrap().success());
}

#[test]
fn a_full_range_is_said_to_be_full() {
    let Some(node) = Node::new() else { return };
    let small = |text: String| text.replace("169.254.172.0/22", "169.254.172.0/30");
    node.run("ip netns add late");
    node.call("STATUS", &[], &small(V4.config(""))).success();
    node.call("ADD", &[], &small(V4.add())).success();

    let late = [("CNI_NETNS", "/run/netns/late"), ("CNI_CONTAINERID", "late")];
    let (code, message) = node.call("ADD", &late, &small(V4.add())).error();

    assert_eq!(code, 11);
    let begins = "running IPAM plugin failed: failed to allocate for range 0: no IP addresses available in \
                  range set: 169.254.172.1-169.254.172.2: ";
    assert!(message.starts_with(begins), "{message}");
    let (code, message) = node.call("STATUS", &[], &small(V4.config(""))).error();
    assert_eq!((code, message.as_str()), (50, "all 1 addresses of 169.254.172.0/30 are leased"));
}

#[test]
fn gc_releases_leases_of_containers_that_are_gone() {
    let Some(node) = Node::new() else { return };
    node.run("ip netns add gone");
    node.call("ADD", &[], &V4.add()).success();
    node.call("ADD", &[("CNI_NETNS", "/run/netns/gone"), ("CNI_CONTAINERID", "gone")], &V4.add()).success();
    let gc = |valid: &str| V4.config(&format!(r#","cni.dev/valid-attachments":[{valid}]"#));
    let listed = r#"{"containerID":"abc","ifname":"eth0"}"#;

    // A namespace that lives may hold a pod of which this runtime knows nothing.
    node.call("GC", &[], &gc(listed)).success();
    assert_eq!(node.leases(V4).len(), 2);
    node.run("ip netns del gone; while ip route | grep -q 169.254.172.3; do :; done");
    node.call("GC", &[], &gc(listed)).success();
    assert_eq!(node.leases(V4), ["169.254.172.2"]);
    node.call("CHECK", &[], &V4.config("").replace("1.1.0", "0.3.0")).error();
}

/// Kills an ADD at every system call of its main thread that changes something, on both sides of
/// it, and follows with a DEL and a new ADD as kubelet does.
#[test]
fn an_add_killed_anywhere_is_undone_by_del() {
    let Some(node) = Node::new() else { return };
    let directory = format!("{}/aws-cni", V4.2);
    let mut kills = 0;
    for nth in 1.. {
        node.new_pod("pod");
        let plugin = node.0.start(node.0.path("egress-cni").to_str().unwrap(), "ADD", &[]);
        let was_killed = kill_at_change(plugin, &V4.add(), nth);
        let leases = node.leases(V4);
        assert!(leases.len() <= 1, "{nth}: {leases:?}");
        for address in &leases {
            let text = node.run(&format!("cat {directory}/{address}"));
            assert_eq!(text, "abc\r\neth0", "kill number {nth}");
        }
        node.call("DEL", &[], &V4.config("")).success();
        assert_eq!(node.leases(V4), Vec::<String>::new(), "kill number {nth}");
        if !was_killed {
            break;
        }
        kills = nth;
        node.run("ip netns del pod; while ip -o link | grep -q veth || ip link show eni-pod; do :; done 2>/dev/null");
        assert_eq!(node.run("ip route; ip -o link | grep veth || :"), "", "kill number {nth}");
    }
    assert!(kills > 20, "only {kills} places");
    eprintln!("killed at {kills} places");
}

/// Feeds the plugin and kills it at the `nth` stop before or after a system call that may change
/// something; false if it came to its end before.
fn kill_at_change(mut plugin: Child, stdin: &str, nth: usize) -> bool {
    // Those that every call makes many of, and that change nothing which outlives the process.
    const HARMLESS: [i64; 10] = [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_read,
        libc::SYS_close,
        libc::SYS_recvfrom,
        libc::SYS_rt_sigprocmask,
        libc::SYS_statx,
    ];
    let pid = Pid::from_raw(i32::try_from(plugin.id()).unwrap());
    // It reads its input before it does anything, so it cannot run ahead of us.
    while !std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("aws-cni")) {
        thread::yield_now();
    }
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    plugin.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let mut stops = 0;
    let mut signal: Option<Signal> = None;
    let mut under_way = None;
    loop {
        ptrace::syscall(pid, signal.take()).unwrap();
        match waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                // A stop is at the end of the call that the stop before was at the beginning of.
                let ending = under_way.take();
                let call = ending.unwrap_or_else(|| system_call(pid));
                under_way = ending.is_none().then_some(call);
                if !HARMLESS.contains(&call) {
                    stops += 1;
                }
                if stops == nth {
                    kill(pid, Signal::SIGKILL).unwrap();
                    let status = plugin.wait().unwrap();
                    assert_eq!(status.signal(), Some(libc::SIGKILL));
                    return true;
                }
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0);
                return false;
            }
            _ => {}
        }
    }
}

/// The number of the call that the stopped main thread is in.
fn system_call(pid: Pid) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
