//! Network namespaces of a test's own, looked at with iproute2.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where its world is not as expected")]

pub(crate) mod node;
pub(crate) mod reference;

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use datapath::kernel::{Netlink, Netns, inside};
use datapath::wanted::{PodInterface, PodNetwork};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use serde_json::Value;
use vpc::{PodName, RouteTable};

/// A network namespace that lives as long as this value.
pub(crate) struct Space {
    pub(crate) netns: Netns,
    _keeper: mpsc::Sender<()>,
}

impl Space {
    /// An empty namespace with its loopback up.
    pub(crate) fn new() -> Self {
        let (path_sender, path) = mpsc::channel();
        let (keeper, end) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("make a network namespace: run as root, or with unshare -r");
            let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid());
            path_sender.send(path).unwrap();
            // The namespace goes with this thread, once the test lets go of it.
            let _ = end.recv();
        });
        let netns = Netns::open(&PathBuf::from(path.recv().unwrap())).unwrap();
        let space = Self { netns, _keeper: keeper };
        space.run("ip link set lo up");
        space
    }

    pub(crate) fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.netns).unwrap()
    }

    /// Waits until the kernel has told all of the beginnings of so many links: that they are ready,
    /// which it does in its own time, and that their own IPv6 addresses are valid.
    pub(crate) fn settle(&self, links: usize) {
        let own = || self.lines("ip -6 -o addr show scope link");
        while own().iter().filter(|line| !line.contains("tentative")).count() < links {
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command
    }

    /// Runs a command inside and returns what it prints; it must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        let output = inside(&self.netns, || self.command(line).output().unwrap()).unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether a command succeeds inside.
    pub(crate) fn succeeds(&self, line: &str) -> bool {
        inside(&self.netns, || self.command(line).output().unwrap().status.success()).unwrap()
    }

    pub(crate) fn spawn(&self, line: &str) -> Child {
        let start = || self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        inside(&self.netns, start).unwrap()
    }

    /// Feeds a command's standard input.
    pub(crate) fn feed(&self, line: &str, input: &str) {
        let start = || self.command(line).stdin(Stdio::piped()).spawn().unwrap();
        let mut child = inside(&self.netns, start).unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{line}");
    }

    pub(crate) fn json(&self, line: &str) -> Vec<Value> {
        let text = self.run(line);
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
    }

    pub(crate) fn json_object(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(line)).unwrap()
    }

    /// The lines that a command prints, without trailing blanks, and without a word about links that
    /// are up: the kernel notes for a route in its own time that the other end has come up too.
    pub(crate) fn lines(&self, line: &str) -> Vec<String> {
        let printed = self.run(line).replace(" linkdown", "").replace('\t', " ");
        printed.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Rules, without those that every namespace has.
    pub(crate) fn rules(&self) -> Vec<String> {
        let all = self.lines("ip rule");
        let own = ["0:", "32766:", "32767:"];
        all.into_iter().filter(|line| !own.iter().any(|number| line.starts_with(number))).collect()
    }

    /// The IPv4 addresses of a link, in the kernel's order.
    pub(crate) fn addresses(&self, link: &str) -> Vec<String> {
        let shown = self.json(&format!("ip -j -4 addr show dev {link}"));
        let addresses = shown[0]["addr_info"].as_array().unwrap();
        addresses.iter().map(|one| one["local"].as_str().unwrap().to_owned()).collect()
    }

    /// One link as `ip -j -d link` tells it.
    pub(crate) fn link(&self, name: &str) -> Value {
        self.json(&format!("ip -j -d link show dev {name}")).remove(0)
    }

    pub(crate) fn write_sysctl(&self, key: &str, value: &str) {
        inside(&self.netns, || std::fs::write(format!("/proc/sys/{key}"), value).unwrap()).unwrap();
    }

    pub(crate) fn read_sysctl(&self, key: &str) -> String {
        let read = || std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap();
        inside(&self.netns, read).unwrap().trim().to_owned()
    }
}

/// A pod of one interface.
pub(crate) fn pod(name: &str, address: &str, table: u32) -> PodNetwork {
    let address: IpAddr = address.parse().unwrap();
    let pod = PodName::new("default", name);
    let interface = PodInterface {
        host_veth: vpc::host_veth("eni", &pod, 0),
        container_interface: "eth0".to_owned(),
        nic: 0,
        address,
        table: RouteTable(table),
        mtu: 9001,
    };
    PodNetwork { pod, interfaces: vec![interface] }
}
