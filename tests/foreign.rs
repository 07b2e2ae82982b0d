//! Our programs among foreign ones: a runtime's own library, Debian's portmap, moto's EC2, and
//! the environment of the manifest that they replace.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Scenario, binary, find, until};
use lab::world::{ECHO_PORT, IPAMD_LOG, IpamdOptions, Lab, Node, Pod, PodSpec, Ran, finish};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

const PATIENCE: Duration = Duration::from_secs(60);
const PORTMAP: &str = "/usr/lib/cni/portmap";
const HOST_PORT: u16 = 8080;
const MOTO_WORLD: &str = include_str!("moto_world.py");

fn main() {
    let has_portmap = std::path::Path::new(PORTMAP).is_file();
    e2e::main(vec![
        Scenario::new("cnitool_runs_the_list_with_portmap_behind_ours", cnitool_runs_the_list)
            .needs("cnitool")
            .needs("iptables")
            .needs("unshare")
            .only_with("portmap of Debian's containernetworking-plugins", has_portmap),
        Scenario::new("the_daemon_starts_against_moto", the_daemon_starts_against_moto)
            .needs("python3")
            .only_with("moto for python3", has_moto()),
        Scenario::new("the_environment_of_the_reference_is_accepted", the_environment_is_accepted),
    ]);
}

fn has_moto() -> bool {
    let mut python = Command::new("python3");
    python.args(["-c", "import boto3, moto.server"]).stdout(Stdio::null()).stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

/// `cnitool VERB`, which keeps its results below `/var/lib`, here a directory of the node.
async fn cnitool(pod: &Pod, verb: &str, capabilities: &str) -> Result<Ran> {
    let script = "mkdir -p /run/var-lib && mount --bind /run/var-lib /var/lib && exec \"$0\" \"$@\"";
    let tool = find("cnitool").context("no cnitool")?;
    let mut command = pod.node().command(find("unshare").context("no unshare")?);
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(tool);
    command.args([verb, "aws-cni", pod.netns()]).env_clear();
    let args = pod.cni_env("ADD").into_iter().find(|(name, _)| name == "CNI_ARGS").context("no CNI_ARGS")?;
    command.envs([args]).env("CNI_PATH", "/opt/cni/bin").env("NETCONFPATH", "/etc/cni/net.d");
    command.env("CAP_ARGS", capabilities).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    finish(command, None, PATIENCE).await
}

async fn add_with_cnitool(pod: &Pod, capabilities: &str) -> Result<()> {
    let ran = cnitool(pod, "add", capabilities).await?;
    ensure!(ran.status.success(), "cnitool add: {} {}", ran.text(), ran.complaint());
    pod.set_result(Some(serde_json::from_slice(&ran.stdout).context("read what cnitool printed")?));
    ensure!(!pod.address().is_unspecified(), "no address in {}", ran.text());
    Ok(())
}

/// The source address that the pod's echo service sees of a connection from `node` to `to`.
async fn seen(node: &Node, to: Ipv4Addr, port: u16) -> Result<Ipv4Addr> {
    let stream = node.place().connect(std::net::SocketAddrV4::new(to, port), PATIENCE).await?;
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, BufReader::new(stream).read_line(&mut line)).await??;
    let peer: std::net::SocketAddrV4 = line.trim().parse().with_context(|| format!("{line:?}"))?;
    Ok(*peer.ip())
}

async fn cnitool_runs_the_list() -> Result<()> {
    let lab = Lab::builder().node("m5.large", "us-west-2a").node("m5.large", "us-west-2b").start().await?;
    let [node, other] = lab.nodes() else { unreachable!("two were asked for") };
    for name in ["aws-cni", "egress-cni"] {
        node.install(&binary("aws-cni")?, name).await?;
    }
    node.install(PORTMAP.as_ref(), "portmap").await?;
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let list = node.conflist()?;
    ensure!(list.plugins.iter().any(|it| it["type"] == "portmap"), "no portmap in {list:?}");

    let pod = node.sandbox(PodSpec::new("default", "web")).await?;
    let mappings = format!(
        r#"{{"portMappings":[{{"hostPort":{HOST_PORT},"containerPort":{ECHO_PORT},"protocol":"tcp"}}]}}"#
    );
    let capabilities = match iptables_fault(node).await? {
        None => mappings.as_str(),
        Some(fault) => {
            eprintln!("portmap's rules cannot be made in this kernel, so no port is mapped: {fault}");
            "{}"
        }
    };
    add_with_cnitool(&pod, capabilities).await?;
    let check = cnitool(&pod, "check", capabilities).await?;
    ensure!(check.status.success(), "cnitool check: {} {}", check.text(), check.complaint());
    ensure!(seen(other, pod.address(), ECHO_PORT).await? == other.primary_ip());
    if capabilities != "{}" {
        ensure!(seen(other, node.primary_ip(), HOST_PORT).await? == other.primary_ip());
    }

    let ran = cnitool(&pod, "del", capabilities).await?;
    ensure!(ran.status.success(), "cnitool del: {} {}", ran.text(), ran.complaint());
    let again = cnitool(&pod, "del", capabilities).await?;
    ensure!(again.status.success(), "a second DEL: {} {}", again.text(), again.complaint());
    let rules = node.ip(&["rule"]).await?.to_string();
    ensure!(!rules.contains(&format!(" {} ", pod.address())), "{rules}");
    ensure!(!node.path("/run/var-lib/cni/results").read_dir()?.any(|_| true), "a result is still cached");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

/// What iptables says where it cannot make the kinds of rules that portmap makes.
async fn iptables_fault(node: &Node) -> Result<Option<String>> {
    let rules = "set -e; iptables -t nat -N PROBE\n\
         iptables -t nat -A PROBE -p tcp -m multiport --destination-ports 1 -m comment --comment x -j RETURN\n\
         iptables -t nat -A PROBE -m addrtype --dst-type LOCAL -j MARK --set-xmark 0x2000/0x2000\n\
         iptables -t nat -A PROBE -p tcp --dport 1 -j DNAT --to-destination 127.0.0.1:1\n\
         iptables -t nat -A PROBE -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
         iptables -t nat -F PROBE; iptables -t nat -X PROBE";
    let mut command = node.command("sh");
    command.args(["-c", rules]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let ran = finish(command, None, PATIENCE).await?;
    Ok(if ran.status.success() { None } else { Some(ran.complaint()) })
}

async fn the_daemon_starts_against_moto() -> Result<()> {
    const EC2_PORT: u16 = 5000;
    const IMDS_PORT: u16 = 5001;
    let lab = Lab::builder().node("m5.large", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;
    let mut python = node.command("python3");
    python.args(["-c", MOTO_WORLD, &EC2_PORT.to_string(), &IMDS_PORT.to_string()]);
    python.arg(node.primary_ip().to_string());
    python.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut python = tokio::process::Command::from(python);
    let mut moto = python.kill_on_drop(true).spawn().context("start moto")?;
    let complaints = moto.stderr.take().context("moto has no standard error")?;
    let complaints = tokio::spawn(async move {
        let mut lines = BufReader::new(complaints).lines();
        let mut text = String::new();
        while let Ok(Some(line)) = lines.next_line().await {
            text.push_str(&line);
            text.push('\n');
        }
        text
    });
    let mut said = String::new();
    let mut stdout = BufReader::new(moto.stdout.take().context("moto has no standard output")?);
    while !said.ends_with("}\n") {
        said.clear();
        let bytes =
            tokio::time::timeout(PATIENCE, stdout.read_line(&mut said)).await.context("await moto")??;
        if bytes == 0 {
            anyhow::bail!("moto has ended: {}", complaints.await?);
        }
    }
    let ids: Value = serde_json::from_str(&said)?;
    let mac = ids["mac"].as_str().context("moto gave no MAC")?;
    // The node's own link becomes that of moto's ENI.
    node.exec(&["ip", "link", "set", "eth0", "address", mac]).await?;

    // Moto's second ENI would have no link here.
    let options = IpamdOptions::new()
        .env("AWS_ENDPOINT_URL_EC2", format!("http://127.0.0.1:{EC2_PORT}"))
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://127.0.0.1:{IMDS_PORT}"))
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("MAX_ENI", 1);
    let ipamd = node.start_ipamd(&options).await?;
    let pod = node.add_pod("default", "web").await.with_context(|| node.ipamd_output())?;

    let ours = lab.cloud().calls().iter().filter(|it| it.call.action != lab::cloud::IMDS).count();
    ensure!(ours == 0, "the lab's own EC2 was asked {ours} times");
    ensure!(seen(node, pod.address(), ECHO_PORT).await?.octets()[0] == 10);
    let log = node.read(IPAMD_LOG)?;
    ensure!(log.contains(ids["eni"].as_str().unwrap_or("no ENI")), "{log}");
    node.del_pod(&pod).await?;
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn the_environment_is_accepted() -> Result<()> {
    // Besides what the manifest sets: everything else that the reference reads, as it is by
    // default, and what it once read.
    let others = [
        ("ANNOTATE_POD_IP", "false"),
        ("AWS_EXTERNAL_SERVICE_CIDRS", ""),
        ("AWS_MANAGE_ENIS_NON_SCHEDULABLE", "false"),
        ("AWS_VPC_K8S_CNI_BACKING_STORE", "/var/run/aws-node/ipam.json"),
        ("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "false"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x80"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", ""),
        ("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/egress-v4-plugin.log"),
        ("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/egress-v6-plugin.log"),
        ("CLUSTER_ENDPOINT", "https://example.invalid"),
        ("DISABLE_LEAKED_ENI_CLEANUP", "false"),
        ("DISABLE_POD_V6", "false"),
        ("ENABLE_BANDWIDTH_PLUGIN", "false"),
        ("ENABLE_NFTABLES", "true"),
        ("ENABLE_V4_EGRESS", "true"),
        ("ENABLE_V6_EGRESS", "false"),
        ("ENI_CONFIG_ANNOTATION_DEF", "k8s.amazonaws.com/eniConfig"),
        ("ENI_CONFIG_LABEL_DEF", "k8s.amazonaws.com/eniConfig"),
        ("HTTP_TIMEOUT", "10"),
        ("INTROSPECTION_BIND_ADDRESS", "127.0.0.1:61679"),
        ("IP_COOLDOWN_PERIOD", "30"),
        ("MANAGE_UNTAGGED_ENI", "true"),
        ("MAX_ENI", "-1"),
        ("MINIMUM_IP_TARGET", "0"),
        ("POD_MTU", ""),
        ("POD_SECURITY_GROUP_ENFORCING_MODE", "strict"),
        ("WARM_IP_TARGET", "0"),
        ("WARM_PREFIX_TARGET", "1"),
    ];
    // Root's home may hold AWS settings of this machine, or be closed to an ordinary user.
    let options = IpamdOptions::new().env("HOME", "/run");
    let options = others.iter().fold(options, |options, (name, value)| options.env(name, value));
    let lab = Lab::builder().node("m5.large", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;

    let ipamd = node.start_ipamd(&options).await?;

    let pod = node.add_pod("default", "web").await?;
    ensure!(seen(node, pod.address(), ECHO_PORT).await? == node.primary_ip());
    until("the daemon's log is written", PATIENCE, || async {
        Ok(node.read(IPAMD_LOG)?.contains("serving"))
    })
    .await?;
    let complaints =
        |line: &&str| line.contains("\"level\":\"error\"") || line.contains("\"level\":\"warn\"");
    let log = node.read(IPAMD_LOG)?;
    let complaints: Vec<_> = log.lines().filter(complaints).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}
