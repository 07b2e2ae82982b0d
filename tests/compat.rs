//! What amazon-vpc-cni-k8s leaves on a node is understood: its state file, its results; and a
//! damaged state file takes no pod's address away.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::look::{self, at_rest, lines, suffix};
use e2e::{scenarios, until};
use lab::world::cni::PluginError;
use lab::world::{
    ECHO_PORT, INTERNET_ECHO, IPAMD_LOG, Ipamd, IpamdOptions, Lab, Node, Pod, PodSpec, STATE_FILE, finish,
};
use serde_json::{Value, json};

/// For how long addresses may rest after the state file was found damaged, and a margin.
const RESTS: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(30);
/// The directory of the state file.
const STATE_DIRECTORY: &str = "/run/aws-node";

fn main() {
    e2e::main(scenarios![
        a_state_file_of_the_reference_keeps_its_pods_addresses,
        results_of_the_reference_suffice_for_del_without_a_daemon,
        a_truncated_state_file_takes_no_address_away,
        an_empty_state_file_takes_no_address_away,
        a_state_file_with_duplicates_takes_no_address_away,
        a_state_file_of_a_foreign_version_takes_no_address_away,
    ])
}

/// A t3.small held to two ENIs, which is six addresses for pods.
const ROOM: usize = 6;

fn options() -> IpamdOptions {
    IpamdOptions::new().env("MAX_ENI", 2).env("WARM_ENI_TARGET", 2).env("IP_COOLDOWN_PERIOD", 1)
}

async fn node_with_two_enis() -> Result<(Lab, Node, Ipamd)> {
    let lab = Lab::builder().node("t3.small", "us-west-2a").start().await?;
    let node = lab.nodes()[0].clone();
    node.install_plugin(None).await?;
    let ipamd = node.start_ipamd(&options()).await?;
    at_rest(&node, 2, 4).await?;
    Ok((lab, node, ipamd))
}

/// Adds pods until the node refuses, and gives those that it took.
async fn fill(node: &Node, prefix: &str) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    loop {
        match node.add_pod("default", &format!("{prefix}{}", pods.len())).await {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                let reported = error.downcast_ref::<PluginError>().map(|it| it.code);
                ensure!(reported == Some(11), "ADD on a full node: {error:?}");
                return Ok(pods);
            }
        }
        ensure!(pods.len() <= ROOM, "the node took {} pods: expected at most {ROOM}", pods.len());
    }
}

/// A pod as the reference leaves it: namespace, link, address, routes and rules, made by hand.
struct Inherited {
    pod: Pod,
    address: Ipv4Addr,
    table: u32,
}

impl Inherited {
    async fn new(node: &Node, name: &str, eni: usize) -> Result<Inherited> {
        let snapshot = node.cloud().snapshot();
        let enis = snapshot.attached(node.instance_id());
        let address = enis.get(eni).context("too few ENIs")?.addresses[1].address;
        let table = if eni == 0 { 254 } else { u32::try_from(eni)? + 1 };
        let pod = node.sandbox(PodSpec::new("shop", name)).await?;
        let veth = format!("eni{}", suffix(node, "shop", name).await?);
        let netns = pod.netns().rsplit('/').next().context("a namespace without name")?.to_owned();
        node.exec(&words(&format!(
            "ip link add {veth} mtu 9001 type veth peer name eth0 mtu 9001 netns {netns}"
        )))
        .await?;
        let mac = node.ip(&["-j", "link", "show", &veth]).await?[0]["address"].clone();
        let mac = mac.as_str().context("a link without address")?;
        let on_node = format!(
            "link set {veth} up\n\
             route replace {address}/32 dev {veth} scope link protocol boot\n\
             rule add pref 512 to {address}/32 lookup main\n"
        );
        let rule = format!("rule add pref 1536 from {address}/32 lookup {table}\n");
        node.place().ip_batch(&format!("{on_node}{}", if eni == 0 { "" } else { &rule })).await?;
        pod.place()
            .ip_batch(&format!(
                "link set eth0 up\n\
                 route add 169.254.1.1/32 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n\
                 addr add {address}/32 dev eth0\n\
                 neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent\n"
            ))
            .await?;
        let this = Inherited { pod, address, table };
        this.pod.set_result(Some(this.result().await?));
        Ok(this)
    }

    /// Its entry in the state file, byte for byte.
    fn entry(&self) -> String {
        format!(
            r#"{{"networkName":"aws-cni","containerID":"{}","ifName":"eth0","ipv4":"{}","allocationTimestamp":1795245887457644830,"metadata":{{"k8sPodNamespace":"shop","k8sPodName":"{}","interfacesCount":1}}}}"#,
            self.pod.container_id(),
            self.address,
            self.pod.name()
        )
    }

    /// What the reference's plugin had printed for it.
    async fn result(&self) -> Result<Value> {
        let form = Form { version: "0.4.0", mac: Some(self.table), device: device(self.table) };
        form.result(&self.pod, self.address).await
    }

    async fn is_wired(&self) -> Result<bool> {
        Ok(!traces(self.pod.node(), self.address).await?.is_empty())
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn device(table: u32) -> u32 {
    if table == 254 { 0 } else { table - 1 }
}

/// The node's IPv4 rules and routes that name the address.
async fn traces(node: &Node, address: Ipv4Addr) -> Result<Vec<String>> {
    let mut all = rules_and_routes(node).await?;
    let address = address.to_string();
    all.retain(|line| line.split(' ').any(|word| word == address));
    Ok(all)
}

async fn rules_and_routes(node: &Node) -> Result<Vec<String>> {
    let mut all = lines(node.place(), &["ip", "-4", "rule"]).await?;
    all.extend(lines(node.place(), &["ip", "-4", "route", "show", "table", "all"]).await?);
    Ok(all)
}

/// Takes away what only this daemon writes, as on a node that has never run it.
async fn forget_ourselves(node: &Node) -> Result<()> {
    let script = format!(
        "find {STATE_DIRECTORY} -mindepth 1 ! -name npa.sock ! -type d -delete; nft delete table ip vpc-cni"
    );
    node.exec(&["sh", "-c", &script]).await?;
    Ok(())
}

async fn a_state_file_of_the_reference_keeps_its_pods_addresses() -> Result<()> {
    let (lab, node, ipamd) = node_with_two_enis().await?;
    ipamd.terminate(PATIENCE).await?;
    forget_ourselves(&node).await?;
    let inherited = [Inherited::new(&node, "cart-0", 0).await?, Inherited::new(&node, "cart-1", 1).await?];
    let file = format!(
        "{{\"version\":\"vpc-cni-ipam/1\",\"allocations\":[{},{}]}}\n",
        inherited[0].entry(),
        inherited[1].entry()
    );
    std::fs::write(node.path(STATE_FILE), &file)?;

    let ipamd = node.start_ipamd(&options()).await?;
    for it in &inherited {
        ensure!(it.is_wired().await?, "{} has lost its wires", it.pod.label());
        let (seen, _) = it.pod.seen_by(INTERNET_ECHO, ECHO_PORT, Duration::from_secs(10)).await?;
        ensure!(seen == node.primary_ip(), "the internet saw {seen} for {}", it.pod.label());
    }
    let others = fill(&node, "other").await?;
    ensure!(others.len() == ROOM - 2, "the node took {} pods beside the two inherited", others.len());
    let held: BTreeSet<_> = inherited.iter().map(|it| it.address).collect();
    let given = look::addresses(&others);
    ensure!(given.len() == ROOM - 2 && given.is_disjoint(&held), "given {given:?}, held {held:?}");
    let kept = node.read(STATE_FILE)?;
    for it in &inherited {
        ensure!(kept.contains(&it.entry()), "the state file lacks {}: {kept}", it.entry());
    }

    for it in &inherited {
        it.pod.remove().await?;
        ensure!(!it.is_wired().await?, "{} left {:?}", it.pod.label(), traces(&node, it.address).await?);
    }
    let kept: BTreeSet<_> = look::allocations(&node)?
        .iter()
        .map(|it| it["ipv4"].as_str().unwrap_or_default().to_owned())
        .collect();
    ensure!(kept == given.iter().map(Ipv4Addr::to_string).collect(), "the state file keeps {kept:?}");
    drop(inherited);
    // Both addresses are given again, now that they are free.
    let again = look::add_pods(&node, "again", 2).await?;
    ensure!(look::addresses(&again) == held);
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

/// A form of result that some release of the reference printed.
struct Form {
    version: &'static str,
    /// The route table in the container's interface; releases before 1.20 left it out.
    mac: Option<u32>,
    device: u32,
}

impl Form {
    async fn result(&self, pod: &Pod, address: Ipv4Addr) -> Result<Value> {
        if self.version == "0.2.0" {
            return Ok(json!({"cniVersion": "0.2.0", "ip4": {"ip": format!("{address}/32")}, "dns": {}}));
        }
        let suffix = suffix(pod.node(), pod.namespace(), pod.name()).await?;
        let mut container = json!({"name": "eth0", "sandbox": pod.netns()});
        if let Some(table) = self.mac {
            container["mac"] = table.to_string().into();
        }
        let mut result = json!({
            "cniVersion": self.version,
            "interfaces": [
                {"name": format!("eni{suffix}")},
                container,
                {"name": format!("dummy{suffix}"), "mac": "0", "sandbox": self.device.to_string()},
            ],
            "ips": [{"interface": 1, "address": format!("{address}/32")}],
        });
        if self.version == "0.4.0" {
            result["ips"][0]["version"] = "4".into();
            result["dns"] = json!({});
        }
        Ok(result)
    }
}

async fn results_of_the_reference_suffice_for_del_without_a_daemon() -> Result<()> {
    let (lab, node, ipamd) = node_with_two_enis().await?;
    let pods = fill(&node, "web").await?;
    ensure!(pods.len() == ROOM, "the node took {} pods", pods.len());
    ipamd.kill().await?;

    let primary = lab.cloud().snapshot().attached(node.instance_id())[0].id.clone();
    let (on_primary, on_secondary): (Vec<_>, Vec<_>) =
        pods.iter().partition(|pod| pod.eni().as_ref() == Some(&primary));
    ensure!(on_primary.len() == 3 && on_secondary.len() == 3);
    let cases = [
        (on_secondary[0], Form { version: "0.4.0", mac: Some(2), device: 1 }),
        (on_secondary[1], Form { version: "1.0.0", mac: Some(2), device: 1 }),
        (on_secondary[2], Form { version: "0.4.0", mac: None, device: 1 }),
        (on_primary[0], Form { version: "0.4.0", mac: Some(1), device: 0 }),
        (on_primary[1], Form { version: "0.2.0", mac: None, device: 0 }),
    ];
    for (pod, form) in &cases {
        let before = rules_and_routes(&node).await?;
        let own = traces(&node, pod.address()).await?;
        let count = if form.device == 0 { 2 } else { 3 };
        ensure!(own.len() == count, "{} has {own:#?}", pod.label());

        let list = node.conflist()?;
        let mut input =
            list.input(&list.plugins[0], Some(&form.result(pod, pod.address()).await?), &[].into());
        input["cniVersion"] = form.version.into();
        let call = pod.plugin_call("aws-cni", "DEL", &input);
        let ran = finish(call.command, Some(&call.input), PATIENCE).await?;
        ensure!(ran.status.success() && ran.stdout.is_empty(), "DEL: {} {}", ran.text(), ran.complaint());

        let wanted: Vec<_> = before.into_iter().filter(|line| !own.contains(line)).collect();
        let after = rules_and_routes(&node).await?;
        ensure!(after == wanted, "after DEL of {}: {after:#?}\nwanted: {wanted:#?}", pod.label());
        pod.drop_namespace()?;
    }

    let gone: BTreeSet<_> = cases.iter().map(|(pod, _)| pod.address()).collect();
    let kept: BTreeSet<_> = on_primary[2..].iter().map(|pod| pod.address()).collect();
    let ipamd = node.start_ipamd(&options()).await?;
    until("the daemon has freed the addresses", PATIENCE, || async {
        let held = look::allocations(&node)?;
        Ok(held.iter().filter_map(|it| it["ipv4"].as_str()?.parse().ok()).collect::<BTreeSet<_>>() == kept)
    })
    .await?;
    let again = look::add_pods(&node, "again", gone.len()).await?;
    ensure!(look::addresses(&again) == gone, "{:?} instead of {gone:?}", look::addresses(&again));
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn a_truncated_state_file_takes_no_address_away() -> Result<()> {
    damaged(|good| Ok(good[..good.len() * 2 / 3].to_owned())).await
}

async fn an_empty_state_file_takes_no_address_away() -> Result<()> {
    damaged(|_| Ok(String::new())).await
}

async fn a_state_file_with_duplicates_takes_no_address_away() -> Result<()> {
    damaged(|good| {
        let mut state: Value = serde_json::from_str(good)?;
        let entries = state["allocations"].as_array_mut().context("no allocations")?;
        // One pod twice with two addresses, and one address twice with two pods.
        let (mut one, mut other) = (entries[0].clone(), entries[1].clone());
        one["ipv4"] = entries[2]["ipv4"].clone();
        other["containerID"] = "another".into();
        other["metadata"]["k8sPodName"] = "another".into();
        entries.extend([one, other]);
        Ok(format!("{state}\n"))
    })
    .await
}

async fn a_state_file_of_a_foreign_version_takes_no_address_away() -> Result<()> {
    damaged(|good| Ok(good.replace("vpc-cni-ipam/1", "vpc-cni-ipam/2"))).await
}

/// Runs pods, replaces the state file behind the daemon's back, and looks who gets what.
async fn damaged(damage: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let (lab, node, ipamd) = node_with_two_enis().await?;
    let pods = look::add_pods(&node, "web", 4).await?;
    ipamd.kill().await?;
    let bad = damage(&node.read(STATE_FILE)?)?;
    std::fs::write(node.path(STATE_FILE), &bad)?;

    let ipamd = node.start_ipamd(&options()).await?;
    ensure!(is_kept_aside(&node, &bad)?, "the damaged file was not kept:\n{}", node.ipamd_output());
    let log = node.read(IPAMD_LOG)?;
    let is_told = log.lines().any(|it| it.contains("state file is damaged") && it.contains("\"error\""));
    ensure!(is_told, "the damage is not told:\n{log}");
    let held = look::addresses(&pods);
    // What looks free rests for 95 s, as it may be a pod's whose ADD was under way. Longer than
    // an ADD can wait, so it is refused, and the kubelet repeats it.
    let (mut others, began) = (Vec::new(), Instant::now());
    while others.len() < ROOM - pods.len() && began.elapsed() < RESTS {
        tokio::time::sleep(Duration::from_secs(2)).await;
        others.extend(fill(&node, &format!("other{}", others.len())).await?);
    }
    let given = look::addresses(&others);
    ensure!(given.len() == others.len() && given.is_disjoint(&held), "given {given:?}, held {held:?}");
    ensure!(others.len() == ROOM - pods.len(), "the node took {} pods beside {held:?}", others.len());
    for pod in &pods {
        pod.exec(&["ping", "-c1", "-W5", &node.primary_ip().to_string()]).await?;
    }

    // The pods go as ever, and then their addresses serve others.
    look::remove(pods).await?;
    for address in &held {
        let left = traces(&node, *address).await?;
        ensure!(left.is_empty(), "left of {address}: {left:?}");
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut again = Vec::new();
    while again.len() < held.len() {
        match node.add_pod("default", &format!("again{}", again.len())).await {
            Ok(pod) => again.push(pod),
            Err(error) if error.downcast_ref::<PluginError>().is_some() && Instant::now() < deadline => {}
            Err(error) => return Err(error.context(format!("{} of {held:?} are free again", again.len()))),
        }
    }
    ensure!(look::addresses(&again) == held);
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

/// Whether a file beside the state file has this content.
fn is_kept_aside(node: &Node, content: &str) -> Result<bool> {
    for entry in std::fs::read_dir(node.path(STATE_DIRECTORY))? {
        let path = entry?.path();
        let is_other = path.file_name().is_some_and(|it| it != "ipam.json");
        if is_other && path.is_file() && std::fs::read_to_string(&path)? == content {
            return Ok(true);
        }
    }
    Ok(false)
}
