//! The released programs as the DaemonSet's containers run them: by its environment, mounts and
//! capabilities, on a read-only root file system, under the names that existing pod specs execute.

#[path = "../datapath/tests/support/reference.rs"]
mod reference;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Scenario, binary, find, until};
use lab::world::{ECHO_PORT, INTERNET_ECHO, Ipamd, IpamdOptions, Lab, Node, Ran, finish};
use reference::Reference;

const PATIENCE: Duration = Duration::from_secs(60);
const MANIFEST: &str = include_str!("../deploy/aws-vpc-cni.yaml");
const CONTAINER: &str = include_str!("container.sh");
/// Variables that lead to the lab's cloud; on a real node they have no values.
const FOREIGN_ENV: [&str; 3] = ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_ENDPOINT_URL_EC2", "PATH"];

fn main() {
    let is_root = nix::unistd::geteuid().is_root();
    let scenarios = [
        Scenario::new("the_container_is_as_narrow_as_the_manifest_says", the_container_is_narrow),
        Scenario::new("the_daemon_serves_pods_from_its_container", the_daemon_serves),
        Scenario::new("the_files_of_the_reference_may_be_executed", reference_names_work),
        Scenario::new("the_init_container_changes_only_what_differs", init_changes_what_differs),
        Scenario::new("rules_of_the_reference_can_be_removed_from_the_container", rules_are_removed)
            .needs("iptables-legacy")
            .needs("iptables-nft"),
        Scenario::new(
            "the_init_container_makes_a_node_forward_ipv6_once_and_leaves_pods_links_alone",
            init_forwards_once,
        ),
    ];
    let scenarios = scenarios.map(|it| {
        it.needs("setpriv")
            .needs("unshare")
            .needs("chroot")
            .only_with("root without a user namespace", is_root)
    });
    e2e::main(scenarios.into());
}

/// A container of the manifest.
#[derive(Debug, Default)]
struct Container {
    /// Variables with a value of their own.
    env: BTreeMap<String, String>,
    /// Path on the host to path in the container.
    mounts: Vec<(String, String)>,
    capabilities: Vec<String>,
    is_privileged: bool,
    is_root_read_only: bool,
    may_gain_privileges: bool,
}

impl Container {
    /// The container of that name in the manifest.
    ///
    /// Reads the few forms of YAML that the manifest is written in, line by line.
    fn of_manifest(name: &str) -> Result<Container> {
        let paths = volumes();
        let mut container = Container { may_gain_privileges: true, ..Container::default() };
        let begin = format!("        - name: {name}");
        let own = MANIFEST.lines().skip_while(|line| *line != begin).skip(1);
        // The next container, or the end of the list.
        let own = own.take_while(|line| line.starts_with("          ") || line.trim().is_empty());
        let mut last_name = String::new();
        for line in own {
            let Some((key, value)) = line.trim().trim_start_matches("- ").split_once(": ") else { continue };
            let value = value.trim_matches('"').to_owned();
            match key {
                "name" => last_name = value,
                "value" => drop(container.env.insert(last_name.clone(), value)),
                "fieldPath" => drop(container.env.insert(last_name.clone(), "node1".to_owned())),
                "mountPath" => {
                    let source = paths.get(&last_name).with_context(|| format!("no volume {last_name}"))?;
                    container.mounts.push((source.clone(), value));
                }
                "add" => {
                    let names = value.trim_matches(['[', ']']).split(',');
                    container.capabilities = names.map(|it| it.trim().to_ascii_lowercase()).collect();
                }
                "privileged" => container.is_privileged = value == "true",
                "readOnlyRootFilesystem" => container.is_root_read_only = value == "true",
                "allowPrivilegeEscalation" => container.may_gain_privileges = value == "true",
                _ => {}
            }
        }
        ensure!(!container.mounts.is_empty(), "no container {name:?} with mounts in the manifest");
        Ok(container)
    }

    /// A shell's words for a command in this container, to be started on a node.
    fn words(&self, command: &[&str]) -> Result<Vec<String>> {
        let binaries = binary("ipamd")?.parent().context("ipamd has no directory")?.display().to_string();
        let mounts: Vec<_> = self.mounts.iter().map(|(from, to)| format!("{from}={to}")).collect();
        let capabilities: Vec<_> = self.capabilities.iter().map(|it| format!("+{it}")).collect();
        let capabilities = if self.is_privileged { "all".to_owned() } else { capabilities.join(",") };
        let head = ["--mount", "--propagation", "private", "sh", "-c", CONTAINER, "container"];
        let own = [binaries, mounts.join(" "), capabilities];
        Ok(head
            .map(str::to_owned)
            .into_iter()
            .chain(own)
            .chain(command.iter().map(|it| (*it).to_owned()))
            .collect())
    }

    fn environment(&self, node: &Node) -> BTreeMap<String, String> {
        let foreign = node.ipamd_env().into_iter().filter(|(name, _)| FOREIGN_ENV.contains(&name.as_str()));
        self.env.clone().into_iter().chain(foreign).collect()
    }

    async fn run(&self, node: &Node, command: &[&str]) -> Result<Ran> {
        let mut unshare: Command = node.command(find("unshare").context("no unshare")?);
        unshare.args(self.words(command)?).env_clear().envs(self.environment(node));
        finish(unshare, None, PATIENCE).await
    }

    async fn start_daemon(&self, node: &Node, command: &[&str]) -> Result<Ipamd> {
        let env = self.environment(node);
        let without = node.ipamd_env().into_keys().filter(|name| !env.contains_key(name)).collect();
        let options = IpamdOptions {
            binary: find("unshare"),
            arguments: self.words(command)?,
            env,
            without,
            ready_within: PATIENCE,
        };
        node.start_ipamd(&options).await
    }
}

/// Path on the host by the volume's name.
fn volumes() -> BTreeMap<String, String> {
    let mut paths = BTreeMap::new();
    let mut name = "";
    for line in MANIFEST.lines().skip_while(|line| *line != "      volumes:") {
        match line.trim().trim_start_matches("- ").split_once(": ") {
            Some(("name", value)) => name = value,
            Some(("path", value)) => drop(paths.insert(name.to_owned(), value.to_owned())),
            _ => {}
        }
    }
    paths
}

async fn one_node() -> Result<Lab> {
    // Strict filtering on every link, as the kernel's own documentation recommends.
    let lab = Lab::builder().node("m5.large", "us-west-2a").rp_filter(1).start().await?;
    // `FileOrCreate` of the manifest.
    lab.nodes()[0].exec(&["touch", "/run/xtables.lock"]).await?;
    Ok(lab)
}

async fn initialised_node() -> Result<Lab> {
    let lab = one_node().await?;
    let init = Container::of_manifest("aws-vpc-cni-init")?;
    let ran = init.run(&lab.nodes()[0], &["/app/ipamd", "init-node"]).await?;
    ensure!(ran.status.success(), "init-node: {}", ran.complaint());
    Ok(lab)
}

async fn the_container_is_narrow() -> Result<()> {
    let lab = one_node().await?;
    let node = &lab.nodes()[0];
    let daemon = Container::of_manifest("aws-node")?;
    ensure!(daemon.is_root_read_only && !daemon.is_privileged && !daemon.may_gain_privileges, "{daemon:?}");
    ensure!(
        daemon.capabilities.iter().all(|it| ["net_admin", "net_raw"].contains(&it.as_str())),
        "{daemon:?}"
    );

    for (command, may) in [
        ("touch /app/x", false),
        ("touch /etc/x", false),
        ("touch /run/x", false),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", false),
        ("unshare --net true", false),
        ("touch /var/run/aws-node/x /host/opt/cni/bin/x /host/var/log/aws-routed-eni/x", true),
        ("ip link add one9 type veth peer two9 && ip link del one9", true),
    ] {
        let ran = daemon.run(node, &["sh", "-c", command]).await?;
        ensure!(ran.status.success() == may, "{command}: {} {}", ran.status, ran.complaint());
    }
    let status = daemon.run(node, &["cat", "/proc/self/status"]).await?.text();
    ensure!(status.contains("CapBnd:\t0000000000003000"), "{status}");
    ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    lab.shutdown().await
}

async fn pods_work(node: &Node) -> Result<()> {
    let mut pods = Vec::new();
    // More than the primary ENI takes.
    for index in 0..11 {
        pods.push(node.add_pod("default", &format!("web-{index}")).await?);
    }
    for pod in [&pods[0], &pods[10]] {
        let (seen, _) = pod.seen_by(INTERNET_ECHO, ECHO_PORT, PATIENCE).await?;
        ensure!(seen == node.primary_ip(), "{} is seen as {seen}", pod.label());
    }
    for pod in pods {
        node.del_pod(&pod).await?;
    }
    Ok(())
}

async fn the_daemon_serves() -> Result<()> {
    let lab = initialised_node().await?;
    let node = &lab.nodes()[0];
    let daemon = Container::of_manifest("aws-node")?;
    let ipamd = daemon.start_daemon(node, &["/app/ipamd", "run"]).await?;

    let status = std::fs::read_to_string(format!("/proc/{}/status", ipamd.pid()))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).context("no CapEff")?;
    let effective = u64::from_str_radix(effective.trim(), 16)?;
    ensure!(status.starts_with("Name:\tipamd") && effective & !0x3000 == 0, "{status}");
    pods_work(node).await?;
    let log = node.read("/var/log/aws-routed-eni/ipamd.log")?;
    ensure!(log.contains("serving"), "{log}");
    let probe =
        daemon.run(node, &["/app/ipamd", "probe", "--connect-timeout=5s", "--rpc-timeout=5s"]).await?;
    ensure!(probe.status.success(), "probe: {}", probe.complaint());

    let grace = Duration::from_secs(grace_period()?);
    let ended = ipamd.terminate(grace).await?;
    ensure!(ended.code() == Some(0), "after SIGTERM: {ended}");
    let probe = daemon.run(node, &["/app/ipamd", "probe", "--connect-timeout=1s"]).await?;
    ensure!(!probe.status.success(), "a daemon that has ended is healthy");
    lab.shutdown().await
}

/// Seconds that the manifest grants between SIGTERM and SIGKILL.
fn grace_period() -> Result<u64> {
    let line = MANIFEST.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "));
    Ok(line.context("no grace period in the manifest")?.parse()?)
}

async fn rules_are_removed() -> Result<()> {
    let lab = initialised_node().await?;
    let node = &lab.nodes()[0];
    let front_ends = ["iptables-legacy", "iptables-nft"];
    for iptables in front_ends {
        let reference = Reference::new(iptables, &node.primary_ip().to_string(), "10.0.0.0/16");
        node.place().exec_with(&["sh", "-e"], Some(&reference.script())).await?;
    }
    let daemon = Container::of_manifest("aws-node")?;

    let ipamd = daemon.start_daemon(node, &["/app/ipamd", "run"]).await?;

    for iptables in front_ends {
        until("the reference's rules are gone", PATIENCE, || async {
            Ok(!node.exec(&[&format!("{iptables}-save")]).await?.contains("AWS"))
        })
        .await
        .with_context(|| node.read("/var/log/aws-routed-eni/ipamd.log").unwrap_or_default())?;
    }
    pods_work(node).await?;
    ipamd.terminate(PATIENCE).await?;
    let uninstall = daemon.run(node, &["/app/ipamd", "uninstall"]).await?;
    ensure!(uninstall.text().starts_with("removed nft table ip vpc-cni\n"), "{uninstall:?}");
    lab.shutdown().await
}

async fn reference_names_work() -> Result<()> {
    let lab = one_node().await?;
    let node = &lab.nodes()[0];
    let init = Container::of_manifest("aws-vpc-cni-init")?;
    let ran = init.run(node, &["/init/aws-vpc-cni-init"]).await?;
    ensure!(ran.status.success(), "aws-vpc-cni-init: {}", ran.complaint());
    let daemon = Container::of_manifest("aws-node")?;

    for name in ["/app/aws-vpc-cni", "/app/aws-k8s-agent"] {
        let ipamd = daemon.start_daemon(node, &[name]).await?;
        node.add_pod("default", "web").await.with_context(|| format!("started as {name}"))?.remove().await?;
        let socket = "unix:///var/run/aws-node/ipamd.sock";
        for words in [
            &["/app/grpc-health-probe", "-addr", socket][..],
            &["/app/grpc-health-probe", &format!("-addr={socket}"), "-connect-timeout=5s", "-rpc-timeout=5s"],
        ] {
            // Its own patience is a second, unless told otherwise.
            until("the probe succeeds", PATIENCE, || async {
                Ok(daemon.run(node, words).await?.status.success())
            })
            .await
            .with_context(|| format!("{words:?}"))?;
        }
        let ended = ipamd.terminate(PATIENCE).await?;
        ensure!(ended.code() == Some(0), "{name} after SIGTERM: {ended}");
        let probe = daemon.run(node, &["/app/grpc-health-probe", "-addr", socket]).await?;
        ensure!(probe.status.code() == Some(2), "no server: {}", probe.status);
    }
    lab.shutdown().await
}

async fn init_changes_what_differs() -> Result<()> {
    let lab = one_node().await?;
    let node = &lab.nodes()[0];
    let init = Container::of_manifest("aws-vpc-cni-init")?;
    ensure!(init.is_privileged && init.is_root_read_only, "{init:?}");

    let first = init.run(node, &["/app/ipamd", "init-node"]).await?;
    let second = init.run(node, &["/app/ipamd", "init-node"]).await?;

    for ran in [&first, &second] {
        ensure!(ran.status.success(), "init-node: {}", ran.complaint());
    }
    let (first, second) = (first.text(), second.text());
    eprintln!("{first}---\n{second}");
    ensure!(first.contains("aws-cni") && first.contains("egress-cni"), "{first}");
    ensure!(first.contains("sysctl net/ipv4/conf/eth0/rp_filter: 1 -> 2"), "{first}");
    ensure!(!second.contains("installed") && !second.contains("sysctl"), "{second}");
    ensure!(second.contains("already in /host/opt/cni/bin"), "{second}");
    for name in ["aws-cni", "egress-cni"] {
        let mode = node.exec(&["stat", "-c", "%a", &format!("/opt/cni/bin/{name}")]).await?;
        ensure!(mode.trim() == "755", "{name} has mode {mode}");
    }
    let left = node.exec(&["ls", "-A", "/opt/cni/bin"]).await?;
    let Some(odd) = left.lines().find(|name| name.starts_with('.') || name.contains("tmp")) else {
        return lab.shutdown().await;
    };
    bail!("left behind: {odd}")
}

/// Writing `forwarding` of `all` sets it on every link, those of running pods included, even where
/// it is 1 already.
async fn init_forwards_once() -> Result<()> {
    let lab = one_node().await?;
    let node = &lab.nodes()[0];
    let mut init = Container::of_manifest("aws-vpc-cni-init")?;
    init.env.insert("ENABLE_V6_EGRESS".to_owned(), "true".to_owned());
    let setting = async |link: &str, name: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/{name}");
        Ok::<_, anyhow::Error>(node.exec(&["cat", &path]).await?.trim().to_owned())
    };

    let first = init.run(node, &["/app/ipamd", "init-node"]).await?;
    ensure!(first.status.success(), "init-node: {}", first.complaint());
    ensure!(setting("all", "forwarding").await? == "1", "{}", first.text());
    ensure!(setting("eth0", "accept_ra").await? == "2", "{}", first.text());

    // As the plugin leaves the host's end of a pod.
    node.exec(&["ip", "link", "add", "eni0123456789a", "type", "veth", "peer", "name", "pod"]).await?;
    node.exec(&["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eni0123456789a/forwarding"]).await?;
    let second = init.run(node, &["/app/ipamd", "init-node"]).await?;
    ensure!(second.status.success(), "init-node: {}", second.complaint());
    ensure!(!second.text().contains("sysctl"), "{}", second.text());
    ensure!(setting("eni0123456789a", "forwarding").await? == "0", "the pod's link forwards again");
    lab.shutdown().await
}
