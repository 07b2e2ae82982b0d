//! A node with IPv6 pods that amazon-vpc-cni-k8s set up, made by hand as `migration_node` makes one
//! with IPv4: pods with an address of the node's prefix and a way to IPv4 through the node.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::flows::all_delivered;
use e2e::look::{self, Dump, lines};
use e2e::until;
use lab::cloud::{AssignIpv6Addresses, CloudBuilder, Request};
use lab::world::{
    ECHO_PORT, INTERNET_ECHO, INTERNET_ECHO_V6, IpamdOptions, Lab, Node, Pod, PodSpec, Protocol, at, traffic,
};
use serde_json::json;

use crate::migration_node::{PATIENCE, write_state};
use crate::reference::{Reference, content, foreign};
use crate::{NFT, is_done, old};

/// Where the reference's host-local notes the addresses by which pods reach IPv4.
const LEASES: &str = "/run/cni/v6pd/egress-v4-ipam/aws-cni";

struct OldNode {
    lab: Lab,
    pods: Vec<Pod>,
    /// What the reference has its front end of iptables make.
    script: String,
    /// The rules of others.
    others: Vec<String>,
}

pub(crate) async fn there_and_back() -> Result<()> {
    let old = OldNode::new().await?;
    let acted = there_and_back_with(&old).await;
    e2e::end(old.lab, acted).await
}

async fn there_and_back_with(old: &OldNode) -> Result<()> {
    let node = old.node();
    for pod in &old.pods {
        speaks(pod).await.context("before the take-over")?;
    }
    let dump = Dump::of(node).await?;
    let options = IpamdOptions::new()
        .env("ENABLE_IPv4", false)
        .env("ENABLE_IPv6", true)
        .env("ENABLE_PREFIX_DELEGATION", true);

    let taken_over = async {
        let ipamd = node.start_ipamd(&options).await?;
        is_done(node).await?;
        let rules = old.rules().await?;
        ensure!(rules == old.others, "left {rules:#?}\nof others {:#?}", old.others);
        Dump::of(node).await?.insist_on(&dump).context("after the take-over")?;
        speaks(&old.pods[1]).await.context("after the take-over")?;

        // A new pod shares no address with an old one, of either family.
        let new = node.add_pod("default", "new").await?;
        ensure!(old.pods.iter().all(|pod| pod.ip() != new.ip()), "{} is given twice", new.ip());
        speaks(&new).await.context("a new pod")?;
        new.remove().await?;
        // A pod that the reference made goes, with the result that the reference printed.
        let gone = &old.pods[2];
        gone.del().await?;
        let rules = lines(node.place(), &["ip", "-6", "rule"]).await?;
        ensure!(!rules.iter().any(|line| line.contains(&gone.ip().to_string())), "{rules:#?}");
        ensure!(!node.path(&lease(2)).exists(), "the lease of a pod that is gone is still there");
        ensure!(look::allocations(node)?.len() == 2);
        ipamd.terminate(PATIENCE).await?;

        // The reference makes what it misses, and ours is still there.
        node.place().exec_with(&["sh", "-e"], Some(&old.script)).await?;
        speaks(&old.pods[1]).await.context("after the return")?;
        // For the numbered datagrams, which would show a loss.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    };
    let internet = old.lab.fabric().internet();
    let line = |name: &str, to| traffic::Line {
        name: name.to_owned(),
        from: old.pods[0].place().clone(),
        to,
        at: internet.clone(),
    };
    let ways = [
        line("to the internet", at(INTERNET_ECHO_V6, ECHO_PORT)),
        line("to the internet over IPv4", at(INTERNET_ECHO, ECHO_PORT)),
    ];
    let (done, delivered) = traffic::on_lines(&ways, taken_over).await;
    done?;
    all_delivered(delivered)
}

/// The pod is seen as itself over IPv6, and as its node over IPv4.
async fn speaks(pod: &Pod) -> Result<()> {
    let as_who = async |to| anyhow::Ok(pod.place().seen(Protocol::Tcp, to, PATIENCE).await?.ip());
    let seen = as_who(at(INTERNET_ECHO_V6, ECHO_PORT)).await?;
    ensure!(seen == pod.ip(), "{} is seen as {seen}", pod.label());
    let seen = as_who(at(INTERNET_ECHO, ECHO_PORT)).await?;
    ensure!(seen == pod.node().primary_ip(), "{} is seen as {seen} over IPv4", pod.label());
    Ok(())
}

/// The address by which pod `number` reaches IPv4: the first of the range is the gateway's.
fn way_out(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 172, 2 + number)
}

fn lease(number: u8) -> String {
    format!("{LEASES}/{}", way_out(number))
}

impl OldNode {
    async fn new() -> Result<OldNode> {
        let cloud = CloudBuilder::two_zones(7).ipv6();
        let lab = Lab::builder().cloud(cloud).node("m5.large", "us-west-2a").start().await?;
        let node = lab.nodes()[0].clone();
        node.install_plugin(None).await?;
        let prefix = delegated_prefix(&lab, &node).await?;
        // As its init container does.
        node.place().sysctl("ipv6/conf/all/forwarding", "1")?;
        node.exec(&["ip", "-6", "rule", "add", "pref", "1024", "fwmark", "0x80/0x80", "lookup", "main"])
            .await?;
        std::fs::create_dir_all(node.path(LEASES))?;

        let [before, after] = foreign(NFT);
        for script in [before, after] {
            node.place().exec_with(&["sh", "-e"], Some(&script)).await?;
        }
        let others = content(&node.exec(&[&format!("{NFT}-save")]).await?);
        let reference = Reference { node: node.primary_ip().to_string(), ..old(NFT) };
        let mut this = OldNode { lab, pods: Vec::new(), script: String::new(), others };
        for number in 0..3 {
            let address = Ipv6Addr::from(u128::from(prefix) + u128::from(number));
            let pod = wire(&node, number, address).await?;
            this.script +=
                &reference.egress(&chain(&pod).await?, pod.container_id(), &way_out(number).to_string());
            this.pods.push(pod);
        }
        node.place().exec_with(&["sh", "-e"], Some(&this.script)).await?;
        write_state(this.node(), this.pods.iter())?;
        for place in this.pods.iter().map(Pod::place).chain([node.place()]) {
            until("the kernel is sure of all addresses", PATIENCE, || async {
                Ok(place.exec(&["ip", "-6", "addr", "show", "tentative"]).await?.trim().is_empty())
            })
            .await?;
        }
        Ok(this)
    }

    fn node(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    async fn rules(&self) -> Result<Vec<String>> {
        Ok(content(&self.node().exec(&[&format!("{NFT}-save")]).await?))
    }
}

/// The first address of a prefix that the primary ENI gets.
async fn delegated_prefix(lab: &Lab, node: &Node) -> Result<Ipv6Addr> {
    let eni_id = node.instance().primary_eni.clone();
    let wish = AssignIpv6Addresses { eni_id, prefix_count: Some(1), ..Default::default() };
    let answer = lab.cloud().ask(Request::AssignIpv6Addresses(wish)).await;
    answer.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    lab.settled().await?;
    let snapshot = lab.cloud().snapshot();
    let eni = snapshot.enis.get(&node.instance().primary_eni).context("no primary ENI")?;
    Ok(eni.ipv6_prefixes.first().context("no prefix")?.network())
}

/// The chain that the reference's egress plugin names by a pod's sandbox.
async fn chain(pod: &Pod) -> Result<String> {
    let text = format!("aws-cni{}", pod.container_id());
    let ran = pod.node().place().exec_with(&["sha512sum"], Some(&text)).await?;
    Ok(format!("CNI-E4-{}", ran.text().get(..21).context("sha512sum printed no digest")?))
}

/// Wires a pod as the reference's plugins do, and keeps the result that they would print.
async fn wire(node: &Node, number: u8, address: Ipv6Addr) -> Result<Pod> {
    let pod = node.sandbox(PodSpec::new("default", &format!("p{number}"))).await?;
    let suffix = look::suffix(node, pod.namespace(), pod.name()).await?;
    let (veth, egress, way_out) = (format!("eni{suffix}"), format!("veth0000000{number}"), way_out(number));
    let netns = pod.netns().rsplit('/').next().context("a namespace without a name")?;
    node.place()
        .ip_batch(&format!(
            "link add {veth} mtu 9001 type veth peer name eth0 mtu 9001 netns {netns}\n\
             link set {veth} up\n\
             link add {egress} mtu 9001 type veth peer name v4if0 mtu 9001 netns {netns}\n\
             link set {egress} up\n"
        ))
        .await?;
    let link = node.ip(&["-j", "link", "show", &veth]).await?;
    let mac = link[0]["address"].as_str().context("a link without address")?;
    pod.place()
        .ip_batch(&format!(
            "link set eth0 up\n\
             route replace fe80::1 dev eth0\n\
             route add default via fe80::1 dev eth0\n\
             addr add {address}/128 dev eth0\n\
             neigh add fe80::1 lladdr {mac} dev eth0 nud permanent\n\
             addr add {way_out}/22 brd 169.254.175.255 dev v4if0\n\
             link set v4if0 up\n\
             route add default via 169.254.172.1 dev v4if0\n\
             route del 169.254.172.0/22 dev v4if0\n\
             route add 169.254.172.1 dev v4if0 scope link src {way_out}\n\
             route add 169.254.172.0/22 via 169.254.172.1 dev v4if0 src {way_out}\n"
        ))
        .await?;
    node.place()
        .ip_batch(&format!(
            "route replace {address}/128 dev {veth}\n\
             addr add 169.254.172.1/32 scope link dev {egress}\n\
             route add {way_out} dev {egress} scope link\n"
        ))
        .await?;
    let to = format!("{address}/128");
    node.exec(&["ip", "-6", "rule", "add", "pref", "512", "to", &to, "lookup", "main"]).await?;
    std::fs::write(node.path(&lease(number)), format!("{}\r\neth0", pod.container_id()))?;
    std::fs::write(node.path(&format!("{LEASES}/last_reserved_ip.0")), way_out.to_string())?;
    pod.set_result(Some(json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            { "name": veth },
            { "name": "eth0", "mac": "254", "sandbox": pod.netns() },
            { "name": format!("dummy{suffix}"), "mac": "0", "sandbox": "0" },
            { "name": egress, "mac": "12:8b:bc:2f:94:38" },
            { "name": "v4if0", "mac": "9a:a3:98:ff:c9:1c", "sandbox": pod.netns() },
        ],
        "ips": [{ "version": "6", "interface": 1, "address": format!("{address}/128") }],
        "dns": {},
    })));
    Ok(pod)
}
