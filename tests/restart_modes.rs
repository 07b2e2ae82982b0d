//! The daemon goes and comes back in each mode, and nothing in the kernel changes: the monitors of
//! routing and of the packet filter print nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::facts::Facts;
use e2e::flows::Mode;
use e2e::look::{self, at_rest, at_rest_with_mtu};
use e2e::monitors::Monitors;
use e2e::scenarios;
use lab::cloud::CloudBuilder;
use lab::world::{IpamdOptions, KubeProxy, Lab, Pod, STATE_FILE, Service};

fn main() {
    e2e::main_with(
        scenarios![
            with_node_ports_and_snat_on_the_node,
            with_node_ports_and_snat_elsewhere,
            without_node_ports_and_with_snat_on_the_node,
            without_node_ports_and_with_snat_elsewhere,
            with_ports_by_hash,
            with_ports_as_they_are,
            with_excluded_and_service_ranges,
            with_another_mark_and_mtu,
            with_prefixes,
            with_ipv6_and_ipv4_egress,
            with_ipv6_egress_of_ipv4_pods,
        ],
        5,
    );
}

/// Silence before the daemon goes.
const BEFORE: Duration = Duration::from_secs(5);
/// Silence after it is back.
const AFTER: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(30);

async fn with_node_ports_and_snat_on_the_node() -> Result<()> {
    is_unseen(Mode::new(true, false).options()).await
}

async fn with_node_ports_and_snat_elsewhere() -> Result<()> {
    is_unseen(Mode::new(true, true).options()).await
}

async fn without_node_ports_and_with_snat_on_the_node() -> Result<()> {
    is_unseen(Mode::new(false, false).options()).await
}

async fn without_node_ports_and_with_snat_elsewhere() -> Result<()> {
    is_unseen(Mode::new(false, true).options()).await
}

async fn with_ports_by_hash() -> Result<()> {
    is_unseen(Mode { random: "hashrandom", ..Mode::new(true, false) }.options()).await
}

async fn with_ports_as_they_are() -> Result<()> {
    is_unseen(Mode { random: "none", ..Mode::new(true, false) }.options()).await
}

async fn with_excluded_and_service_ranges() -> Result<()> {
    let options = IpamdOptions::new()
        .env("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "192.168.0.0/16,192.168.7.7/32,10.0.0.0/16")
        .env("AWS_EXTERNAL_SERVICE_CIDRS", "203.0.113.0/24,198.18.0.0/15");
    is_unseen(options).await
}

async fn with_another_mark_and_mtu() -> Result<()> {
    is_unseen(IpamdOptions::new().env("AWS_VPC_K8S_CNI_CONNMARK", "0x300").env("AWS_VPC_ENI_MTU", 1500)).await
}

async fn with_prefixes() -> Result<()> {
    is_unseen(IpamdOptions::new().env("ENABLE_PREFIX_DELEGATION", true)).await
}

async fn with_ipv6_and_ipv4_egress() -> Result<()> {
    let options = IpamdOptions::new().env("ENABLE_IPv4", false).env("ENABLE_IPv6", true);
    is_unseen(options.env("ENABLE_PREFIX_DELEGATION", true)).await
}

async fn with_ipv6_egress_of_ipv4_pods() -> Result<()> {
    is_unseen(IpamdOptions::new().env("ENABLE_V6_EGRESS", true)).await
}

async fn is_unseen(options: IpamdOptions) -> Result<()> {
    let is_on = |name: &str| options.env.get(name).is_some_and(|it| it == "true");
    let has_v6 = is_on("ENABLE_IPv6") || is_on("ENABLE_V6_EGRESS");
    let cloud = CloudBuilder::two_zones(7);
    let cloud = if has_v6 { cloud.ipv6() } else { cloud };
    let lab = Lab::builder().cloud(cloud).rp_filter(1).node("t3.small", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    // The init container's part.
    node.place().sysctl("ipv4/conf/eth0/rp_filter", "2")?;
    if has_v6 {
        node.place().sysctl("ipv6/conf/all/forwarding", "1")?;
    }
    node.install_plugin(None).await?;
    let ipamd = node.start_ipamd(&options).await?;
    let pods = look::add_pods(node, "web", 4).await?;
    if is_on("ENABLE_PREFIX_DELEGATION") {
        // The first ENI's prefixes serve all pods.
        at_rest(node, 1, 1).await?;
    } else {
        let mtu = options.env.get("AWS_VPC_ENI_MTU").map_or(Ok(9001), |it| it.parse())?;
        at_rest_with_mtu(node, 3, 4, mtu).await?;
        let enis: BTreeSet<_> = pods.iter().filter_map(Pod::eni).collect();
        ensure!(enis.len() == 2, "the pods are on ENIs {enis:?}: expected two");
    }
    // Somebody else's packet filter and ours do not stir each other.
    let cluster_ip: IpAddr = if is_on("ENABLE_IPv6") { "fd00:10:100::1" } else { "10.100.0.1" }.parse()?;
    let service = Service::new("web", cluster_ip, 80).to_pod(&pods[3]).node_port(30_080);
    node.set_services(KubeProxy::Nftables, &[service]).await?;
    let (state, facts) = (node.read(STATE_FILE)?, Facts::of(node, &[]).await?);
    let monitors = Monitors::start(node).await?;

    // These are periods in which nothing may happen.
    tokio::time::sleep(BEFORE).await;
    let status = ipamd.terminate(PATIENCE).await?;
    ensure!(status.code() == Some(0), "ipamd answered SIGTERM with {status}");
    let again = node.start_ipamd(&options).await?;
    tokio::time::sleep(AFTER).await;

    let seen = monitors.seen();
    ensure!(seen.is_empty(), "the restart was seen: {seen:#?}\n{}", node.ipamd_output());
    monitors.prove(node).await.context("after the restart")?;
    Facts::of(node, &[]).await?.insist_on(&facts)?;
    ensure!(node.read(STATE_FILE)? == state, "the state file changed: {}", node.read(STATE_FILE)?);
    again.terminate(PATIENCE).await?;
    lab.shutdown().await
}
