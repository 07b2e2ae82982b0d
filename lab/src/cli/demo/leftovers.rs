//! What is left on a node when its pods are gone.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::world::{Node, STATE_FILE};

/// How long the kernel may take to end the pods' namespaces, and their links with them.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node's IPv4 routes, rules and links as lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dump(BTreeSet<String>);

/// Looks at a node.
pub(super) async fn dump(node: &Node) -> Result<Dump> {
    let mut lines = BTreeSet::new();
    for (word, arguments) in [
        ("route", &["ip", "-4", "route", "show", "table", "all"][..]),
        ("rule", &["ip", "-4", "rule"]),
        ("addr", &["ip", "-4", "-o", "addr"]),
        ("link", &["ip", "-br", "link"]),
    ] {
        let text = node.exec(arguments).await?;
        let lines_of = text.lines().map(|line| match word {
            // Flags and MAC say nothing that the name does not.
            "link" => line.split(['@', ' ']).next().unwrap_or_default().to_owned(),
            // The index of a link is not part of its address.
            "addr" => line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "),
            _ => line.split_whitespace().collect::<Vec<_>>().join(" "),
        });
        lines.extend(lines_of.map(|line| format!("{word}: {line}")));
    }
    Ok(Dump(lines))
}

/// Whether the node is what it was, but for what the ENIs that are attached now ask for.
pub(super) async fn compare(node: &Node, first: &Dump, pods: &[Ipv4Addr]) -> Result<String> {
    let began = Instant::now();
    loop {
        match compare_once(node, first, pods).await {
            Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
            outcome => return outcome,
        }
    }
}

async fn compare_once(node: &Node, first: &Dump, pods: &[Ipv4Addr]) -> Result<String> {
    let now = dump(node).await?;
    let golden = enis_ask_for(node);
    let beyond = |dump: &Dump| dump.0.difference(&golden).cloned().collect::<BTreeSet<_>>();
    let (was, is) = (beyond(first), beyond(&now));
    let (more, less): (Vec<_>, Vec<_>) = (is.difference(&was).collect(), was.difference(&is).collect());
    ensure!(more.is_empty(), "{} keeps {more:?}", node.name());
    ensure!(less.is_empty(), "{} has lost {less:?}", node.name());
    let unmet: Vec<_> = golden.difference(&now.0).collect();
    ensure!(unmet.is_empty(), "{} lacks {unmet:?} of its ENIs", node.name());
    let neighbours = node.ip(&["-j", "-4", "neigh"]).await?;
    for neighbour in neighbours.as_array().into_iter().flatten() {
        let address = neighbour["dst"].as_str().unwrap_or_default();
        let is_pod = pods.iter().any(|it| it.to_string() == address);
        ensure!(!is_pod, "{} keeps the neighbour {neighbour}", node.name());
    }
    let text = node.read(STATE_FILE)?;
    let state: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("read {STATE_FILE}"))?;
    let kept = state["allocations"].as_array().map_or(0, Vec::len);
    ensure!(kept == 0, "{STATE_FILE} of {} keeps {kept} allocations", node.name());
    Ok(format!("{} is as at first, but for {} lines of its ENIs", node.name(), golden.len()))
}

/// What a secondary ENI puts on a node: address, table, rule, link.
fn enis_ask_for(node: &Node) -> BTreeSet<String> {
    let snapshot = node.cloud().snapshot();
    let mut lines = BTreeSet::new();
    for eni in snapshot.attached(node.instance_id()).into_iter().skip(1) {
        let Some(index) = eni.attachment.as_ref().map(|it| it.device_index) else { continue };
        let Some(subnet) = snapshot.subnets.get(&eni.subnet_id) else { continue };
        let (link, table, own) = (format!("eth{index}"), index + 1, eni.primary_ip());
        let gateway = Ipv4Addr::from(u32::from(subnet.cidr.network()) + 1);
        let (length, broadcast) = (subnet.cidr.prefix_len(), subnet.cidr.broadcast());
        lines.extend([
            format!("link: {link}"),
            format!("addr: {link} inet {own}/{length} brd {broadcast} scope global {link}\\ valid_lft forever preferred_lft forever"),
            format!("rule: 32765: from {own} lookup {table}"),
            format!("route: default via {gateway} dev {link} table {table}"),
            format!("route: {gateway} dev {link} table {table} scope link"),
            format!("route: local {own} dev {link} table local proto kernel scope host src {own}"),
            format!("route: broadcast {broadcast} dev {link} table local proto kernel scope link src {own}"),
        ]);
    }
    lines
}
