//! How long a pod's ADD and DEL take with an IPv4 and with an IPv6 address, side by side.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use crate::cloud::CloudBuilder;
use crate::world::{IpamdOptions, Lab, Node, Pod, PodSpec};

/// Pods whose times do not count: the first reads binaries from disk.
const WARM_UP: usize = 3;

/// How long a node may take to hold as many addresses as pods will come.
const FILLS: Duration = Duration::from_secs(60);

/// From start to exit of `aws-cni`, one time for each pod, shortest first.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Of ADD.
    pub adds: Vec<Duration>,
    /// Of DEL.
    pub dels: Vec<Duration>,
}

/// The same pods on two nodes of one type.
#[derive(Debug, Clone, Default)]
pub struct Families {
    /// Of the node whose pods have IPv4 addresses, from prefixes.
    pub ipv4: Times,
    /// Of the node whose pods have IPv6 addresses.
    pub ipv6: Times,
}

impl Times {
    fn sort(&mut self) {
        self.adds.sort();
        self.dels.sort();
    }
}

/// The time that half of `sorted` stay below; zero for none.
pub fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

impl Families {
    /// How many times as long an ADD takes in IPv6 as in IPv4, by the medians.
    pub fn ratio(&self) -> f64 {
        median(&self.ipv6.adds).as_secs_f64() / median(&self.ipv4.adds).as_secs_f64()
    }
}

/// Adds `pods` pods to each of two nodes, by turns so that both see the same machine, and removes
/// them.
///
/// # Errors
/// The world cannot be made, or an ADD or DEL fails.
pub async fn families(pods: usize, bin_dir: Option<PathBuf>) -> Result<Families> {
    let mut builder = Lab::builder().cloud(CloudBuilder::two_zones(1).ipv6());
    if let Some(directory) = bin_dir {
        builder = builder.bin_dir(directory);
    }
    let lab = builder.node("m5.large", "us-west-2a").node("m5.large", "us-west-2a").start().await?;
    let [ipv4, ipv6] = [&lab.nodes()[0], &lab.nodes()[1]];
    let options = IpamdOptions::new().env("ENABLE_PREFIX_DELEGATION", true);
    let of_ipv6 = options.clone().env("ENABLE_IPv4", false).env("ENABLE_IPv6", true);
    let of_ipv4 = options.env("WARM_IP_TARGET", pods + WARM_UP);
    for node in [ipv4, ipv6] {
        node.install_plugin(None).await?;
    }
    let daemons = [ipv4.start_ipamd(&of_ipv4).await?, ipv6.start_ipamd(&of_ipv6).await?];
    filled(ipv4, pods + WARM_UP).await?;

    let mut measured = Families::default();
    let mut living = Vec::new();
    for number in 0..pods + WARM_UP {
        let spec = || PodSpec::new("default", &format!("pod-{number}"));
        let (on_ipv4, took_ipv4) = ipv4.add_pod_timed(spec()).await?;
        let (on_ipv6, took_ipv6) = ipv6.add_pod_timed(spec()).await?;
        if number >= WARM_UP {
            measured.ipv4.adds.push(took_ipv4.aws_cni());
            measured.ipv6.adds.push(took_ipv6.aws_cni());
        }
        living.push((on_ipv4, on_ipv6));
    }
    for (on_ipv4, on_ipv6) in living {
        measured.ipv4.dels.push(del(&on_ipv4).await?);
        measured.ipv6.dels.push(del(&on_ipv6).await?);
    }
    measured.ipv4.sort();
    measured.ipv6.sort();
    for daemon in daemons {
        daemon.terminate(Duration::from_secs(30)).await?;
    }
    lab.shutdown().await?;
    Ok(measured)
}

async fn del(pod: &Pod) -> Result<Duration> {
    Ok(pod.remove().await?.aws_cni())
}

/// Waits until the node holds prefixes for so many pods, so that no ADD waits for EC2.
async fn filled(node: &Node, pods: usize) -> Result<()> {
    let deadline = Instant::now() + FILLS;
    loop {
        let snapshot = node.cloud().snapshot();
        let held: usize =
            snapshot.attached(node.instance_id()).iter().map(|eni| 16 * eni.prefixes.len()).sum();
        if held >= pods {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{held} of {pods} addresses after {FILLS:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
