//! What `ip` shows on a node and in its pods, and what the plugin prints, to the letter.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::look::{self, Dump, at_rest, lines, placed, suffix};
use e2e::scenarios;
use lab::world::{IpamdOptions, Lab, Node, Pod, PodSpec, finish};
use serde_json::Value;

fn main() {
    e2e::main(scenarios![
        node_and_pods_on_two_enis_look_as_documented,
        a_result_has_the_documented_bytes,
        without_pods_only_the_enis_are_left_on_the_node,
    ])
}

/// A t3.small: three ENIs with three addresses for pods each.
async fn small_node() -> Result<Lab> {
    let lab = Lab::builder().node("t3.small", "us-west-2a").start().await?;
    lab.nodes()[0].install_plugin(None).await?;
    Ok(lab)
}

/// The ENI of a pod: 0 for the primary one, else its position on the instance.
fn position(pod: &Pod) -> Option<usize> {
    let id = pod.eni()?;
    let snapshot = pod.node().cloud().snapshot();
    snapshot.attached(pod.node().instance_id()).iter().position(|it| it.id == id)
}

async fn node_and_pods_on_two_enis_look_as_documented() -> Result<()> {
    let lab = small_node().await?;
    let node = &lab.nodes()[0];
    let image = lines(node.place(), &["ip", "route"]).await?;
    let _ipamd = node.start_ipamd(&IpamdOptions::new().env("MAX_ENI", 2)).await?;

    // The primary ENI is filled first; two of its pods only make the third go elsewhere.
    let on_primary = node.add_pod("default", "p0").await?;
    let fillers = look::add_pods(node, "filler", 2).await?;
    let on_secondary = node.add_pod("default", "w0").await?;
    ensure!((position(&on_primary), position(&on_secondary)) == (Some(0), Some(1)));
    look::remove(fillers).await?;
    at_rest(node, 2, 4).await?;

    let snapshot = lab.cloud().snapshot();
    let eth1 = placed(node, snapshot.attached(node.instance_id())[1])?;
    let (p0, w0, own, gateway) = (on_primary.address(), on_secondary.address(), eth1.own, eth1.gateway);
    same(
        lines(node.place(), &["ip", "rule"]).await?,
        [
            "0: from all lookup local".to_owned(),
            format!("512: from all to {p0} lookup main"),
            format!("512: from all to {w0} lookup main"),
            "1024: from all fwmark 0x80/0x80 lookup main".to_owned(),
            format!("1536: from {w0} lookup 2"),
            format!("32765: from {own} lookup 2"),
            "32766: from all lookup main".to_owned(),
            "32767: from all lookup default".to_owned(),
        ],
    )?;

    let veths = [veth(&on_primary).await?, veth(&on_secondary).await?];
    let mut main = image;
    main.push(format!("{p0} dev {} scope link", veths[0]));
    main.push(format!("{w0} dev {} scope link", veths[1]));
    main.sort();
    let mut shown = lines(node.place(), &["ip", "route"]).await?;
    shown.sort();
    same(shown, main)?;
    same(
        lines(node.place(), &["ip", "route", "show", "table", "2"]).await?,
        [format!("default via {gateway} dev eth1"), format!("{gateway} dev eth1 scope link")],
    )?;

    let shown = lines(node.place(), &["ip", "-4", "addr", "show", "eth1"]).await?;
    let (length, broadcast) = eth1.subnet;
    ensure!(shown.len() == 3 && shown[0].contains(",UP,LOWER_UP> mtu 9001 "), "{shown:#?}");
    same(
        shown[1..].to_vec(),
        [
            format!("inet {own}/{length} brd {broadcast} scope global eth1"),
            "valid_lft forever preferred_lft forever".to_owned(),
        ],
    )?;

    for neighbour in lines(node.place(), &["ip", "-4", "neigh"]).await? {
        ensure!(!neighbour.contains("PERMANENT"), "the node has a neighbour of ours: {neighbour}");
    }
    for (pod, veth) in [&on_primary, &on_secondary].into_iter().zip(&veths) {
        inside_of_pod(pod, veth).await.with_context(|| pod.label())?;
    }
    lab.shutdown().await
}

/// The name that the pod's link must have on the node.
async fn veth(pod: &Pod) -> Result<String> {
    Ok(format!("eni{}", suffix(pod.node(), pod.namespace(), pod.name()).await?))
}

async fn inside_of_pod(pod: &Pod, veth: &str) -> Result<()> {
    let (place, address) = (pod.place(), pod.address());
    let mac = host_end(pod.node(), veth).await?;

    same(
        lines(place, &["ip", "route"]).await?,
        ["default via 169.254.1.1 dev eth0", "169.254.1.1 dev eth0 scope link"].map(str::to_owned),
    )?;
    let mut all = lines(place, &["ip", "-4", "route", "show", "table", "local"]).await?;
    all.retain(|line| !line.contains("dev lo"));
    same(all, [format!("local {address} dev eth0 proto kernel scope host src {address}")])?;
    same(
        lines(place, &["ip", "rule"]).await?,
        ["0: from all lookup local", "32766: from all lookup main", "32767: from all lookup default"]
            .map(str::to_owned),
    )?;
    same(
        lines(place, &["ip", "-4", "neigh", "show", "nud", "permanent"]).await?,
        [format!("169.254.1.1 dev eth0 lladdr {mac} PERMANENT")],
    )?;

    let shown = lines(place, &["ip", "-4", "addr", "show", "eth0"]).await?;
    ensure!(shown.len() == 3, "{shown:#?}");
    same(
        shown[1..].to_vec(),
        [
            format!("inet {address}/32 scope global eth0"),
            "valid_lft forever preferred_lft forever".to_owned(),
        ],
    )?;
    let shown = lines(place, &["ip", "link", "show", "eth0"]).await?;
    let head = "<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 9001 qdisc noqueue state UP";
    ensure!(shown[0].contains(head) && !shown[0].contains("qlen"), "{shown:#?}");
    let links = place.ip(&["-j", "link"]).await?;
    let names: Vec<_> = links.as_array().into_iter().flatten().map(|it| it["ifname"].clone()).collect();
    ensure!(names == ["lo", "eth0"], "{names:?}");
    Ok(())
}

/// Checks the pod's link on the node and gives its MAC address.
async fn host_end(node: &Node, veth: &str) -> Result<String> {
    let shown = lines(node.place(), &["ip", "link", "show", veth]).await?;
    let head = format!(": {veth}@");
    ensure!(shown[0].contains(&head) && shown[0].contains("mtu 9001 qdisc noqueue state UP"), "{shown:#?}");
    ensure!(!shown[0].contains("qlen"), "{shown:#?}");
    let addresses = lines(node.place(), &["ip", "-4", "addr", "show", veth]).await?;
    ensure!(addresses.is_empty(), "{addresses:#?}");
    let link = node.ip(&["-j", "-d", "link", "show", veth]).await?;
    ensure!(link[0]["linkinfo"]["info_kind"] == "veth", "{link}");
    let mac = link[0]["address"].as_str().context("a link without address")?;
    let first = u8::from_str_radix(&mac[..2], 16)?;
    ensure!(first & 3 == 2, "{mac} is not a locally administered unicast address");
    Ok(mac.to_owned())
}

async fn a_result_has_the_documented_bytes() -> Result<()> {
    let lab = small_node().await?;
    let node = &lab.nodes()[0];
    let _ipamd = node.start_ipamd(&IpamdOptions::new().env("MAX_ENI", 2)).await?;
    let mut pods = Vec::new();
    for index in 0..6 {
        let pod = node.sandbox(PodSpec::new("shop", &format!("cart-{index}"))).await?;
        let call = pod.first_plugin_call("ADD")?;
        // The newer form, as a runtime with a newer list asks for it, in the last pod of each ENI.
        let newer = index % 3 == 2;
        let mut input: Value = serde_json::from_slice(&call.input)?;
        if newer {
            input["cniVersion"] = "1.0.0".into();
        }
        let ran = finish(call.command, Some(input.to_string().as_bytes()), Duration::from_secs(60)).await?;
        let printed = ran.text();
        ensure!(ran.status.success(), "ADD: {printed} {}", ran.complaint());
        pod.set_result(Some(serde_json::from_str(&printed)?));
        let wanted = if newer { newer_result(&pod).await? } else { older_result(&pod).await? };
        ensure!(printed == wanted, "printed:\n{printed}\nwanted:\n{wanted}");
        pods.push(pod);
    }
    let positions: Vec<_> = pods.iter().filter_map(position).collect();
    ensure!(positions == [0, 0, 0, 1, 1, 1], "the pods are on ENIs {positions:?}");
    lab.shutdown().await
}

/// What is the pod's own in its result: suffix, table, device, namespace, address.
async fn parts(pod: &Pod) -> Result<(String, String, usize, String, String)> {
    let device = position(pod).context("the pod is on no ENI")?;
    let table = if device == 0 { 254 } else { device + 1 };
    let suffix = suffix(pod.node(), pod.namespace(), pod.name()).await?;
    Ok((suffix, table.to_string(), device, pod.netns().to_owned(), pod.address().to_string()))
}

async fn older_result(pod: &Pod) -> Result<String> {
    let (suffix, table, device, netns, address) = parts(pod).await?;
    Ok(format!(
        r#"{{
    "cniVersion": "0.4.0",
    "interfaces": [
        {{
            "name": "eni{suffix}"
        }},
        {{
            "name": "eth0",
            "mac": "{table}",
            "sandbox": "{netns}"
        }},
        {{
            "name": "dummy{suffix}",
            "mac": "0",
            "sandbox": "{device}"
        }}
    ],
    "ips": [
        {{
            "version": "4",
            "interface": 1,
            "address": "{address}/32"
        }}
    ],
    "dns": {{}}
}}"#
    ))
}

async fn newer_result(pod: &Pod) -> Result<String> {
    let (suffix, table, device, netns, address) = parts(pod).await?;
    Ok(format!(
        r#"{{
    "cniVersion": "1.0.0",
    "interfaces": [
        {{
            "name": "eni{suffix}"
        }},
        {{
            "mac": "{table}",
            "name": "eth0",
            "sandbox": "{netns}"
        }},
        {{
            "mac": "0",
            "name": "dummy{suffix}",
            "sandbox": "{device}"
        }}
    ],
    "ips": [
        {{
            "address": "{address}/32",
            "interface": 1
        }}
    ]
}}"#
    ))
}

async fn without_pods_only_the_enis_are_left_on_the_node() -> Result<()> {
    let lab = small_node().await?;
    let node = &lab.nodes()[0];
    let _ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    at_rest(node, 1, 4).await?;
    let (first, enis) = (Dump::of(node).await?, look::attached(node));

    let pods = look::add_pods(node, "web", 7).await?;
    at_rest(node, 3, 4).await?;
    ensure!(look::allocations(node)?.len() == 7);
    ensure!(first.insist_on(&Dump::of(node).await?).is_err(), "seven pods are not to be seen");
    look::remove(pods).await?;

    let wanted = first.with_enis_beyond(node, &enis)?;
    look::becomes(node, &wanted).await?;
    ensure!(look::allocations(node)?.is_empty(), "the state file keeps allocations");
    lab.shutdown().await
}

fn same(shown: Vec<String>, wanted: impl Into<Vec<String>>) -> Result<()> {
    let wanted = wanted.into();
    ensure!(shown == wanted, "shown: {shown:#?}\nwanted: {wanted:#?}");
    Ok(())
}
