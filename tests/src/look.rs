//! What a node looks like to `ip`, and what its ENIs should make it look like.
//!
//! The expectations are computed from what EC2 says and from names alone; none of the shipped
//! crates takes part.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cloud::Eni;
use lab::world::{Node, Place, Pod, STATE_FILE};
use serde_json::Value;

use crate::until;

/// How long the kernel may take to end namespaces, and EC2's answers to become links.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command printed, line by line, each with single spaces.
///
/// # Errors
/// It failed.
pub async fn lines(place: &Place, words: &[&str]) -> Result<Vec<String>> {
    let text = place.exec(words).await?;
    Ok(text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

/// The suffix that the names of a pod's links share: 11 digits of a digest of its name.
///
/// # Errors
/// `sha1sum` is missing.
pub async fn suffix(node: &Node, namespace: &str, name: &str) -> Result<String> {
    let ran = node.place().exec_with(&["sha1sum"], Some(&format!("{namespace}.{name}"))).await?;
    ran.text().get(..11).map(str::to_owned).context("sha1sum printed no digest")
}

/// Links, addresses, routes, rules and neighbours of a node as sorted lines. A line that is there
/// twice counts twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump(Vec<String>);

impl Dump {
    /// Looks at a node. Left out are what IPv6 does on ENIs by itself, and what the kernel has
    /// learnt about neighbours on the wires of ENIs.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn of(node: &Node) -> Result<Dump> {
        let place = node.place();
        let mut dump = Vec::new();
        for (kind, words) in [
            ("rule", &["ip", "-4", "rule"][..]),
            ("rule6", &["ip", "-6", "rule"]),
            ("route", &["ip", "-4", "route", "show", "table", "all"]),
            ("route6", &["ip", "-6", "route", "show", "table", "all"]),
            ("addr", &["ip", "-4", "-o", "addr"]),
            ("neigh", &["ip", "-4", "neigh"]),
        ] {
            for line in lines(place, words).await? {
                let is_of_eni = line.contains("dev eth");
                match kind {
                    "route6" if is_of_eni => {}
                    "neigh" if is_of_eni && !line.contains("PERMANENT") => {}
                    // The index of a link is no part of its address.
                    "addr" => {
                        dump.push(format!("addr: {}", line.split_once(' ').unwrap_or_default().1));
                    }
                    _ => dump.push(format!("{kind}: {line}")),
                }
            }
        }
        for link in place.ip(&["-j", "link"]).await?.as_array().into_iter().flatten() {
            let word = |key: &str| link[key].as_str().unwrap_or_default().to_owned();
            let (name, state, mac) = (word("ifname"), word("operstate"), word("address"));
            dump.push(format!("link: {name} mtu {} {state} {mac}", link["mtu"]));
        }
        dump.sort();
        Ok(Dump(dump))
    }

    /// The same but for neighbours that the kernel has asked for, which come and go with traffic.
    #[must_use]
    pub fn without_learnt_neighbours(mut self) -> Dump {
        self.0.retain(|line| !line.starts_with("neigh: ") || line.contains("PERMANENT"));
        self
    }

    /// This and what the secondary ENIs put on the node that were attached since.
    ///
    /// # Errors
    /// An ENI is in no subnet.
    pub fn with_enis_beyond(&self, node: &Node, before: &BTreeSet<String>) -> Result<Dump> {
        let mut all = self.0.clone();
        for eni in node.cloud().snapshot().attached(node.instance_id()) {
            if !before.contains(&eni.id) {
                all.extend(eni_lines(node, eni, 9001)?);
            }
        }
        all.sort();
        Ok(Dump(all))
    }

    /// What is only here, and what is only in `other`.
    ///
    /// # Errors
    /// They are not the same.
    pub fn insist_on(&self, wanted: &Dump) -> Result<()> {
        let beyond = |more: &Dump, less: &Dump| {
            let mut left = less.0.clone();
            let is_new = |line: &&String| match left.iter().position(|it| it == *line) {
                Some(index) => {
                    left.remove(index);
                    false
                }
                None => true,
            };
            more.0.iter().filter(is_new).cloned().collect::<Vec<_>>()
        };
        let (more, less) = (beyond(self, wanted), beyond(wanted, self));
        ensure!(more.is_empty() && less.is_empty(), "too much: {more:#?}\nmissing: {less:#?}");
        Ok(())
    }
}

/// Where a secondary ENI belongs on its node.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The link's name.
    pub link: String,
    /// Its route table.
    pub table: u32,
    /// The ENI's own address.
    pub own: Ipv4Addr,
    /// The subnet's router.
    pub gateway: Ipv4Addr,
    /// The subnet's length and broadcast address.
    pub subnet: (u8, Ipv4Addr),
}

/// Where EC2's facts place a secondary ENI.
///
/// # Errors
/// It is not attached, or in no subnet.
pub fn placed(node: &Node, eni: &Eni) -> Result<Placed> {
    let snapshot = node.cloud().snapshot();
    let attachment = eni.attachment.as_ref().with_context(|| format!("{} is not attached", eni.id))?;
    let subnet = snapshot.subnets.get(&eni.subnet_id).context("an ENI without subnet")?;
    Ok(Placed {
        link: format!("eth{}", attachment.device_index),
        table: u32::from(attachment.device_index) + 1,
        own: eni.primary_ip(),
        gateway: Ipv4Addr::from(u32::from(subnet.cidr.network()) + 1),
        subnet: (subnet.cidr.prefix_len(), subnet.cidr.broadcast()),
    })
}

fn eni_lines(node: &Node, eni: &Arc<Eni>, mtu: u32) -> Result<Vec<String>> {
    let Placed { link, table, own, gateway, subnet: (length, broadcast) } = placed(node, eni)?;
    Ok(vec![
        format!("link: {link} mtu {mtu} UP {}", eni.mac),
        format!(
            "addr: {link} inet {own}/{length} brd {broadcast} scope global {link}\\ \
             valid_lft forever preferred_lft forever"
        ),
        format!("rule: 32765: from {own} lookup {table}"),
        format!("route: default via {gateway} dev {link} table {table}"),
        format!("route: {gateway} dev {link} table {table} scope link"),
        format!("route: local {own} dev {link} table local proto kernel scope host src {own}"),
        format!("route: broadcast {broadcast} dev {link} table local proto kernel scope link src {own}"),
    ])
}

/// The ids of the ENIs that the node has now.
#[must_use]
pub fn attached(node: &Node) -> BTreeSet<String> {
    node.cloud().snapshot().attached(node.instance_id()).iter().map(|it| it.id.clone()).collect()
}

/// Waits until the node has `enis` ENIs of `addresses` addresses each, wired and at rest.
///
/// # Errors
/// It does not come to that.
pub async fn at_rest(node: &Node, enis: usize, addresses: usize) -> Result<()> {
    at_rest_with_mtu(node, enis, addresses, 9001).await
}

/// The same where ENIs have another MTU than usual.
///
/// # Errors
/// It does not come to that.
pub async fn at_rest_with_mtu(node: &Node, enis: usize, addresses: usize, mtu: u32) -> Result<()> {
    until(&format!("{enis} ENIs of {addresses} addresses are set up"), Duration::from_secs(60), || async {
        let snapshot = node.cloud().snapshot();
        let attached = snapshot.attached(node.instance_id());
        if attached.len() != enis || attached.iter().any(|it| it.addresses.len() != addresses) {
            return Ok(false);
        }
        let now = Dump::of(node).await?;
        for eni in attached.into_iter().skip(1) {
            if eni_lines(node, eni, mtu)?.iter().any(|line| !now.0.contains(line)) {
                return Ok(false);
            }
        }
        // A new link's own IPv6 address is announced once more when the kernel is sure of it.
        Ok(node.exec(&["ip", "-6", "addr", "show", "tentative"]).await?.trim().is_empty())
    })
    .await
}

/// Waits until the node looks as `wanted`.
///
/// # Errors
/// It does not come to that; the text has the difference.
pub async fn becomes(node: &Node, wanted: &Dump) -> Result<()> {
    let reached = until("the node looks as expected", PATIENCE, || async {
        Ok(Dump::of(node).await?.insist_on(wanted).is_ok())
    });
    if let Err(error) = reached.await {
        Dump::of(node).await?.insist_on(wanted).context(error)?;
    }
    Ok(())
}

/// The allocations that the state file holds.
///
/// # Errors
/// It is absent or has another form.
pub fn allocations(node: &Node) -> Result<Vec<Value>> {
    let state: Value = serde_json::from_str(&node.read(STATE_FILE)?).context("read the state file")?;
    ensure!(state["version"] == "vpc-cni-ipam/1", "the state file's version: {state}");
    state["allocations"].as_array().cloned().context("the state file has no allocations")
}

/// The pods' addresses.
#[must_use]
pub fn addresses(pods: &[Pod]) -> BTreeSet<Ipv4Addr> {
    pods.iter().map(Pod::address).collect()
}

/// Adds this many pods.
///
/// # Errors
/// An ADD failed.
pub async fn add_pods(node: &Node, prefix: &str, count: usize) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for index in 0..count {
        pods.push(node.add_pod("default", &format!("{prefix}{index}")).await?);
    }
    Ok(pods)
}

/// Removes pods and forgets them, so that their namespaces end.
///
/// # Errors
/// A DEL failed.
pub async fn remove(pods: Vec<Pod>) -> Result<()> {
    for pod in &pods {
        pod.remove().await.with_context(|| format!("remove {}", pod.label()))?;
    }
    Ok(())
}
