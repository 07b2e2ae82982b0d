//! A node made of temporary directories.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use clap::Parser;
use tempfile::TempDir;

use super::*;

const MAC: &str = "02:00:00:00:00:07";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: InitNodeArgs,
}

struct Node {
    root: TempDir,
}

impl Node {
    /// A node whose link ens5 has [`MAC`], and an image that brings aws-cni and portmap.
    fn new() -> Self {
        let node = Self { root: tempfile::tempdir().expect("make a directory") };
        node.link("ens5", MAC, 2, &["device"]);
        for (path, value) in [
            ("net/ipv4/conf/ens5/rp_filter", "1\n"),
            ("net/ipv4/tcp_early_demux", "1\n"),
            ("net/ipv4/ip_forward", "1\n"),
            ("net/ipv6/conf/all/disable_ipv6", "1\n"),
            ("net/ipv6/conf/all/forwarding", "0\n"),
            ("net/ipv6/conf/ens5/accept_ra", "1\n"),
        ] {
            node.write(&format!("sys/{path}"), value);
        }
        node.write("image/aws-cni", "ours");
        node.write("image/portmap", "theirs");
        fs::create_dir(node.path("bin")).expect("make a directory");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("make directories");
        fs::write(path, contents).expect("write");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("read").trim().to_owned()
    }

    fn link(&self, name: &str, mac: &str, index: u32, entries: &[&str]) {
        self.write(&format!("links/{name}/address"), &format!("{mac}\n"));
        self.write(&format!("links/{name}/ifindex"), &format!("{index}\n"));
        for entry in entries {
            fs::create_dir_all(self.path(&format!("links/{name}/{entry}"))).expect("make a directory");
        }
    }

    async fn init(&self, arguments: &str) -> Result<String> {
        let bin = self.path("bin").display().to_string();
        let line = ["init-node", "--cni-bin-dir", &bin].into_iter().chain(arguments.split_whitespace());
        let args = Cli::try_parse_from(line).expect("the arguments are good").args;
        let roots = NodeRoots {
            sysctl: self.path("sys"),
            links: self.path("links"),
            plugins: vec![self.path("absent"), self.path("image")],
        };
        let mut out = Vec::new();
        run(&args, &roots, async || Ok(MAC.parse().expect("a MAC")), &mut out).await?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }
}

#[tokio::test]
async fn plugins_arrive_executable_and_the_egress_plugin_is_the_same_binary() {
    let node = Node::new();
    let report = node.init("").await.expect("set up");
    for (name, contents) in [("aws-cni", "ours"), ("egress-cni", "ours"), ("portmap", "theirs")] {
        assert_eq!(node.read(&format!("bin/{name}")), contents);
        let mode = fs::metadata(node.path(&format!("bin/{name}"))).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
    }
    assert_eq!(fs::read_dir(node.path("bin")).expect("list").count(), 3);
    assert!(report.contains(": portmap egress-cni aws-cni\n"), "{report}");
    assert!(report.contains("the image: loopback bandwidth tuning;"), "{report}");
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_says_so() {
    let node = Node::new();
    node.init("--ipv6 true --disable-tcp-early-demux true").await.expect("set up");
    let inode = fs::metadata(node.path("bin/aws-cni")).expect("stat").ino();
    let forwarding = fs::metadata(node.path("sys/net/ipv6/conf/all/forwarding")).expect("stat");
    let report = node.init("--ipv6 true --disable-tcp-early-demux true").await.expect("set up");
    assert_eq!(fs::metadata(node.path("bin/aws-cni")).expect("stat").ino(), inode);
    let after = fs::metadata(node.path("sys/net/ipv6/conf/all/forwarding")).expect("stat");
    assert_eq!((forwarding.mtime(), forwarding.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    assert!(!report.contains("sysctl") && !report.contains("installed"), "{report}");
}

#[tokio::test]
async fn an_ipv4_node_gets_rp_filter_and_nothing_else_changes() {
    let node = Node::new();
    let report = node.init("").await.expect("set up");
    assert!(report.contains("sysctl net/ipv4/conf/ens5/rp_filter: 1 -> 2\n"), "{report}");
    assert_eq!(node.read("sys/net/ipv4/conf/ens5/rp_filter"), "2");
    assert_eq!(node.read("sys/net/ipv4/tcp_early_demux"), "1");
    assert_eq!(node.read("sys/net/ipv6/conf/all/forwarding"), "0");
    assert_eq!(node.read("sys/net/ipv6/conf/all/disable_ipv6"), "1");
}

#[tokio::test]
async fn early_demux_follows_its_variable_and_is_left_alone_without_it() {
    let node = Node::new();
    node.init("--disable-tcp-early-demux true").await.expect("set up");
    assert_eq!(node.read("sys/net/ipv4/tcp_early_demux"), "0");
    node.init("").await.expect("set up");
    assert_eq!(node.read("sys/net/ipv4/tcp_early_demux"), "0");
    node.init("--disable-tcp-early-demux false").await.expect("set up");
    assert_eq!(node.read("sys/net/ipv4/tcp_early_demux"), "1");
    fs::remove_file(node.path("sys/net/ipv4/tcp_early_demux")).expect("remove");
    node.init("--disable-tcp-early-demux true").await.expect("a kernel without it is fine");
}

#[tokio::test]
async fn ipv6_needs_forwarding_and_router_advertisements() {
    for (arguments, disabled) in [("--ipv6 true", "0"), ("--v6-egress true", "1")] {
        let node = Node::new();
        node.init(arguments).await.expect("set up");
        assert_eq!(node.read("sys/net/ipv6/conf/all/forwarding"), "1", "{arguments}");
        assert_eq!(node.read("sys/net/ipv6/conf/ens5/accept_ra"), "2", "{arguments}");
        assert_eq!(node.read("sys/net/ipv6/conf/all/disable_ipv6"), disabled, "{arguments}");
    }
}

#[tokio::test]
async fn a_node_that_does_not_forward_is_reported() {
    let node = Node::new();
    node.write("sys/net/ipv4/ip_forward", "0\n");
    let report = node.init("").await.expect("set up");
    assert!(report.contains("warning: net.ipv4.ip_forward is 0"), "{report}");
    assert_eq!(node.read("sys/net/ipv4/ip_forward"), "0");
}

#[tokio::test]
async fn every_fault_is_reported_and_the_rest_is_done() {
    let node = Node::new();
    fs::remove_file(node.path("image/aws-cni")).expect("remove");
    fs::remove_file(node.path("sys/net/ipv4/conf/ens5/rp_filter")).expect("remove");
    let error = node.init("--ipv6 true").await.expect_err("two faults").to_string();
    assert!(error.contains("aws-cni is not in") && error.contains("ens5/rp_filter"), "{error}");
    assert_eq!(node.read("sys/net/ipv6/conf/all/forwarding"), "1");
}

#[tokio::test]
async fn a_mac_that_no_link_has_is_named() {
    let node = Node::new();
    node.link("ens5", "02:00:00:00:00:08", 2, &[]);
    let error = node.init("").await.expect_err("no such link").to_string();
    assert!(error.contains(MAC) && error.contains("ens5 02:00:00:00:00:08"), "{error}");
}

#[test]
fn a_link_with_a_device_comes_before_those_that_borrowed_its_mac() {
    let node = Node::new();
    node.link("br0", MAC, 1, &["bridge"]);
    node.link("aaa", MAC, 3, &[]);
    let mac = MAC.parse().expect("a MAC");
    assert_eq!(link::with_mac(&node.path("links"), mac).expect("found"), "ens5");
    fs::remove_dir(node.path("links/ens5/device")).expect("remove");
    fs::remove_dir_all(node.path("links/ens5")).expect("remove");
    assert_eq!(link::with_mac(&node.path("links"), mac).expect("found"), "aaa");
}
