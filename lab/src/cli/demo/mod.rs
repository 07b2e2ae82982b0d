//! The show: two nodes, their daemons, and pods that reach each other and the internet.

mod leftovers;
mod reach;
mod report;
mod restart;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use lab::cloud::IMDS;
use lab::world::{Ipamd, IpamdOptions, Lab, Node, Pod, PodSpec, finish};

use self::report::{Report, distribution};
pub(crate) use self::report::{listed, table};
use super::screen::Screen;

/// How the demo runs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoOptions {
    /// Pods on each node; more than 9 need a second ENI on an m5.large.
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u16).range(1..=27))]
    pods: u16,
    /// Measured ADDs and DELs on a warm node.
    #[arg(long, default_value_t = 100)]
    runs: u16,
    /// Seed of EC2's ids and addresses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where `ipamd` and `aws-cni` are; else LAB_BIN_DIR, else beside this program.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// A pod with what its ADD took.
#[derive(Debug)]
struct Added {
    pod: Pod,
    took: Duration,
}

/// Runs the demo. True if every check was good.
pub(crate) async fn run(options: DemoOptions, screen: &Screen) -> Result<bool> {
    let mut builder = Lab::builder().seed(options.seed);
    if let Some(directory) = &options.bin_dir {
        builder = builder.bin_dir(directory);
    }
    screen.now("laying the wires of a VPC with two zones");
    let lab = builder.node("m5.large", "us-west-2a").node("m5.large", "us-west-2b").start().await?;
    screen.step("a VPC of two zones, with an m5.large in each");
    let mut report = Report::default();
    let outcome = scenes(&lab, &options, screen, &mut report).await;
    if let Err(error) = &outcome {
        screen.step(&format!("FAILED {error:#}"));
    }
    let is_good = outcome.is_ok() && report.is_good();
    report.print(screen);
    if !is_good {
        let path = std::env::temp_dir().join(format!("lab-demo-{}.txt", uuid_like()));
        std::fs::write(&path, lab.dump().await).with_context(|| format!("write {}", path.display()))?;
        screen.line(&format!("\nEverything there was to see is in {}", path.display()));
    }
    lab.shutdown().await?;
    Ok(is_good)
}

/// Something that no other run uses in a file name.
fn uuid_like() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |it| it.as_millis())
}

async fn scenes(lab: &Lab, options: &DemoOptions, screen: &Screen, report: &mut Report) -> Result<()> {
    let daemon = IpamdOptions::new();
    screen.now("starting ipamd on both nodes");
    let mut daemons = try_join_all(lab.nodes().iter().map(|node| start(node, &daemon, screen))).await?;
    let first = try_join_all(lab.nodes().iter().map(leftovers::dump)).await?;

    let added = try_join_all(lab.nodes().iter().map(|node| add_pods(node, options.pods, screen))).await?;
    lab.settled().await?;
    let added: Vec<Added> = added.into_iter().flatten().collect();
    let pods: Vec<Pod> = added.iter().map(|it| it.pod.clone()).collect();
    let enis: std::collections::BTreeSet<_> = pods.iter().filter_map(Pod::eni).collect();
    screen.step(&format!("{} pods have addresses on {} ENIs", pods.len(), enis.len()));
    let rows = rows(&added);

    report.check(screen, "pod to pod, TCP", reach::tcp_all_pairs(&pods).await);
    report.check(screen, "pod to pod, ICMP", reach::icmp_all_pairs(&pods).await);
    report.check(screen, "pod to internet", reach::internet(&pods).await);

    let (from, to) = stream_ends(&pods)?;
    screen.now("killing ipamd under traffic");
    let old = daemons.remove(0);
    let (restarted, verdict) = restart::under_traffic(&from, &to, old, &daemon, &pods).await;
    report.check(screen, "ipamd killed and back", verdict);
    daemons.insert(0, restarted?);
    for (node, ipamd) in lab.nodes().iter().zip(&daemons) {
        if let Ok(kib) = ipamd.resident_kib() {
            report.figure(&format!("ipamd on {}, resident", node.name()), format!("{:.1} MiB", mib(kib)));
        }
    }

    let measured = measure(&lab.nodes()[1], daemons.remove(1), options.runs, screen, report).await?;
    daemons.insert(1, measured);

    let addresses: Vec<Ipv4Addr> = pods.iter().map(Pod::address).collect();
    screen.now("deleting every pod");
    let deleted = try_join_all(pods.iter().map(Pod::remove)).await;
    report.check(screen, "DEL of every pod", deleted.map(|it| format!("{} pods", it.len())));
    // The pods' namespaces end with their last handle.
    drop((added, pods, from, to));
    for (node, first) in lab.nodes().iter().zip(&first) {
        let outcome = leftovers::compare(node, first, &addresses).await;
        report.check(screen, &format!("nothing left on {}", node.name()), outcome);
    }

    ec2_calls(lab, report);
    let drops = lab.fabric().drops().await?;
    report.figure("dropped by the VPC", format!("{} with a foreign source", drops.spoofed));
    screen.line("");
    table(screen, &["NODE", "POD", "ADDRESS", "ENI", "ADD"], &rows);
    for ipamd in daemons {
        ipamd.terminate(Duration::from_secs(10)).await?;
    }
    Ok(())
}

async fn start(node: &Node, daemon: &IpamdOptions, screen: &Screen) -> Result<Ipamd> {
    node.install_plugin(None).await?;
    let ipamd = node.start_ipamd(daemon).await?;
    screen.step(&format!(
        "{} ({}): ipamd serves after {:.0?}",
        node.name(),
        node.primary_ip(),
        ipamd.ready_after
    ));
    Ok(ipamd)
}

async fn add_pods(node: &Node, count: u16, screen: &Screen) -> Result<Vec<Added>> {
    let mut added = Vec::new();
    for index in 1..=count {
        let name = format!("web-{}-{index}", node.name());
        let spec = PodSpec::new("default", &name);
        let (pod, timings) = node.add_pod_timed(spec).await.with_context(|| format!("add {name}"))?;
        if index == 1 && !timings.skipped.is_empty() {
            let skipped = timings.skipped.join(", ");
            screen.step(&format!("{}: not installed and skipped in the chain: {skipped}", node.name()));
        }
        let enis = node.cloud().snapshot().attached(node.instance_id()).len();
        screen.now(&format!("{}: pod {index} of {count} is {}, {enis} ENIs", node.name(), pod.address()));
        added.push(Added { pod, took: timings.aws_cni() });
    }
    if !screen.is_live() {
        screen.step(&format!("{}: {count} pods added", node.name()));
    }
    Ok(added)
}

fn rows(added: &[Added]) -> Vec<Vec<String>> {
    let row = |it: &Added| {
        vec![
            it.pod.node().name().to_owned(),
            it.pod.label(),
            it.pod.address().to_string(),
            it.pod.eni().unwrap_or_else(|| "unknown".to_owned()),
            format!("{:.2} ms", it.took.as_secs_f64() * 1e3),
        ]
    };
    added.iter().map(row).collect()
}

/// The last pod of the second node, and the first node's last pod, which sits on a secondary ENI
/// if any does.
fn stream_ends(pods: &[Pod]) -> Result<(Pod, Pod)> {
    let node1 = pods.first().context("no pods")?.node().name().to_owned();
    let primary = |pod: &Pod| {
        let snapshot = pod.node().cloud().snapshot();
        snapshot.attached(pod.node().instance_id()).first().map(|it| it.id.clone()) == pod.eni()
    };
    let to = pods.iter().filter(|it| it.node().name() == node1).max_by_key(|it| !primary(it));
    let from = pods.iter().filter(|it| it.node().name() != node1).max_by_key(|it| !primary(it));
    Ok((from.context("no pod on the second node")?.clone(), to.context("no pod on the first node")?.clone()))
}

/// ADDs and DELs on a node that has addresses to give. Its daemon is started again without a
/// cooldown, else the node would soon have none left.
async fn measure(
    node: &Node,
    ipamd: Ipamd,
    runs: u16,
    screen: &Screen,
    report: &mut Report,
) -> Result<Ipamd> {
    let stopped = ipamd.terminate(Duration::from_secs(10)).await?;
    ensure!(stopped.success(), "ipamd on {} answered SIGTERM with {stopped}", node.name());
    let ipamd = node.start_ipamd(&IpamdOptions::new().env("IP_COOLDOWN_PERIOD", 0)).await?;
    let (mut adds, mut dels, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for index in 1..=runs {
        screen.now(&format!("measuring ADD and DEL: {index} of {runs}"));
        let pod = node.sandbox(PodSpec::new("default", &format!("measured-{index}"))).await?;
        let call = pod.plugin_call("aws-cni", "VERSION", &serde_json::json!({"cniVersion": "1.1.0"}));
        floor.push(finish(call.command, Some(&call.input), Duration::from_secs(10)).await?.elapsed);
        adds.push(pod.add().await?.aws_cni());
        dels.push(pod.remove().await?.aws_cni());
    }
    report.figure("ADD, aws-cni start to exit", distribution(adds));
    report.figure("DEL, aws-cni start to exit", distribution(dels));
    report.figure("VERSION, the process alone", distribution(floor));
    Ok(ipamd)
}

fn ec2_calls(lab: &Lab, report: &mut Report) {
    for node in lab.nodes() {
        let counts = lab.cloud().counts_of(node.instance_id());
        let (imds, ec2): (BTreeMap<_, _>, BTreeMap<_, _>) =
            counts.into_iter().map(|(name, it)| (name, it.received)).partition(|(name, _)| name == IMDS);
        let total: u64 = ec2.values().sum();
        report.figure(&format!("EC2 calls of {}", node.name()), format!("{total}: {}", listed(&ec2)));
        report.figure(&format!("IMDS reads of {}", node.name()), imds.values().sum::<u64>().to_string());
    }
}

/// KiB as MiB.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
