//! Pods reach the other family through their node: IPv6 from IPv4 pods, IPv4 from IPv6 pods.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{scenarios, until};
use lab::cloud::CloudBuilder;
use lab::world::{ECHO_PORT, INTERNET_ECHO, INTERNET_ECHO_V6, IpamdOptions, Lab, Node, Protocol};

const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    e2e::main(scenarios![
        ipv4_pods_reach_ipv6_with_the_nodes_address,
        ipv6_pods_reach_ipv4_with_the_nodes_address,
        ipv6_egress_stays_off_on_a_node_without_ipv6,
    ]);
}

async fn start(cloud: CloudBuilder) -> Result<Lab> {
    let lab = Lab::builder().cloud(cloud).node("m5.large", "us-west-2a").start().await?;
    lab.nodes()[0].install_plugin(None).await?;
    // What `init-node` sets.
    lab.nodes()[0].exec(&["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"]).await?;
    Ok(lab)
}

/// Links that egress made on the node, and leases below `directory`.
async fn left(node: &Node, directory: &str) -> Result<String> {
    let count = format!("ip -o link | grep -c ': veth' ; ls {directory}/aws-cni | grep -c '[.:].*[.:]'");
    Ok(node.exec(&["sh", "-c", &format!("({count}) 2>/dev/null || :")]).await?.replace('\n', " "))
}

/// Two pods speak with `target` at once after their ADD and are seen as `node_address`; nothing is
/// left of them afterwards.
async fn two_pods(node: &Node, directory: &str, target: IpAddr, node_address: IpAddr) -> Result<()> {
    let pods = [node.add_pod("default", "one").await?, node.add_pod("default", "two").await?];
    for pod in &pods {
        for protocol in Protocol::ALL {
            let seen = pod.place().seen(protocol, SocketAddr::new(target, ECHO_PORT), PATIENCE).await;
            let seen = seen.with_context(|| format!("{protocol:?} from {} to {target}", pod.label()))?;
            ensure!(seen.ip() == node_address, "{target} saw {seen}, not {node_address}");
        }
    }
    ensure!(left(node, directory).await? == "2 2 ", "{}", left(node, directory).await?);
    for pod in pods {
        pod.remove().await?;
    }
    until("nothing is left of the pods", PATIENCE, || async { Ok(left(node, directory).await? == "0 0 ") })
        .await
}

async fn ipv4_pods_reach_ipv6_with_the_nodes_address() -> Result<()> {
    let lab = start(CloudBuilder::two_zones(7).ipv6()).await?;
    let node = &lab.nodes()[0];
    let _ipamd = node.start_ipamd(&IpamdOptions::new().env("ENABLE_V6_EGRESS", true)).await?;
    let own = lab.cloud().snapshot().attached(node.instance_id())[0].ipv6_addresses[0];

    two_pods(node, "/run/cni/v4pd/egress-v6-ipam", INTERNET_ECHO_V6.into(), own.into()).await?;
    lab.shutdown().await
}

async fn ipv6_pods_reach_ipv4_with_the_nodes_address() -> Result<()> {
    let lab = start(CloudBuilder::two_zones(7).ipv6()).await?;
    let node = &lab.nodes()[0];
    let options = IpamdOptions::new().env("ENABLE_IPv6", true).env("ENABLE_IPv4", false);
    let _ipamd = node.start_ipamd(&options.env("ENABLE_PREFIX_DELEGATION", true)).await?;

    two_pods(node, "/run/cni/v6pd/egress-v4-ipam", INTERNET_ECHO.into(), node.primary_ip().into()).await?;
    lab.shutdown().await
}

async fn ipv6_egress_stays_off_on_a_node_without_ipv6() -> Result<()> {
    let lab = start(CloudBuilder::two_zones(7)).await?;
    let node = &lab.nodes()[0];
    let _ipamd = node.start_ipamd(&IpamdOptions::new().env("ENABLE_V6_EGRESS", true)).await?;

    let pod = node.add_pod("default", "web").await?;

    let links = pod.exec(&["ip", "-o", "link"]).await?;
    ensure!(!links.contains("v6if0"), "{links}");
    ensure!(node.read("/etc/cni/net.d/10-aws.conflist")?.contains(r#""nodeIP": """#));
    lab.shutdown().await
}
