//! A node by the JSON of `ip` and `nft`, in words that hold for every node with the same options.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lab::world::Node;
use serde_json::{Value, json};

/// What may differ between equal nodes: numbers that the kernel gives, counters, and times.
const PASSING: [&str; 11] = [
    "handle",
    "index",
    "ifindex",
    "link",
    "link_index",
    "link_netnsid",
    "packets",
    "bytes",
    "metainfo",
    "valid_life_time",
    "preferred_life_time",
];

/// Links, addresses, routes, rules and the packet filter, as sorted lines. A line that is there
/// twice counts twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts(Vec<String>);

impl Facts {
    /// Looks at a node; `names` gives words for addresses that are the world's choice. Left out are
    /// link-layer addresses of pods' links, which are random, and what IPv6 derives from them.
    ///
    /// # Errors
    /// A tool fails.
    pub async fn of(node: &Node, names: &[(String, String)]) -> Result<Facts> {
        let mut lines = Vec::new();
        for (kind, words) in [
            ("rule", &["-j", "-4", "rule"][..]),
            ("rule", &["-j", "-6", "rule"]),
            ("route", &["-j", "-4", "route", "show", "table", "all"]),
            ("route", &["-j", "-6", "route", "show", "table", "all"]),
        ] {
            for object in items(node.ip(words).await?) {
                if !is_link_local(object["dst"].as_str()) {
                    lines.push(format!("{kind} {}", without_passing(object)));
                }
            }
        }
        for mut link in items(node.ip(&["-j", "addr"]).await?) {
            let name = link["ifname"].as_str().unwrap_or_default().to_owned();
            if !name.starts_with("eth") {
                link["address"] = json!("random");
            }
            for address in items(link["addr_info"].take()) {
                if !is_link_local(address["local"].as_str()) {
                    lines.push(format!("address of {name} {}", without_passing(address)));
                }
            }
            lines.push(format!("link {}", without_passing(link)));
        }
        let filter = node.nft(&["-j", "list", "ruleset"]).await?;
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for object in items(filter["nftables"].clone()) {
            let Some((kind, content)) = object.as_object().and_then(|it| it.iter().next()) else { continue };
            // Among themselves the rules of a chain have an order.
            let word = |key: &str| content[key].as_str().unwrap_or_default().to_owned();
            let place = format!("{} {} {}", word("family"), word("table"), word("chain"));
            let count = counts.entry(format!("{kind} {place}")).or_default();
            *count += 1;
            let number = if kind == "rule" { count.to_string() } else { String::new() };
            if kind != "metainfo" {
                lines.push(format!("{kind} {number} {}", without_passing(content.clone())));
            }
        }
        for line in &mut lines {
            for (address, name) in names {
                *line = line.replace(&format!("\"{address}\""), &format!("\"{name}\""));
            }
        }
        lines.sort();
        Ok(Facts(lines))
    }

    /// Insists that `wanted` is the same.
    ///
    /// # Errors
    /// It is not; the text has what is only here, and what is only there.
    pub fn insist_on(&self, wanted: &Facts) -> Result<()> {
        let beyond = |more: &Facts, less: &Facts| {
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

fn items(list: Value) -> Vec<Value> {
    match list {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn is_link_local(address: Option<&str>) -> bool {
    address.is_some_and(|it| it.starts_with("fe80:"))
}

fn without_passing(mut value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(strip),
            Value::Object(members) => {
                members.retain(|key, _| !PASSING.contains(&key.as_str()));
                members.values_mut().for_each(strip);
            }
            _ => {}
        }
    }
    strip(&mut value);
    value
}

/// Waits until a node is as `wanted`.
///
/// # Errors
/// It does not come to that; the text has the difference.
pub async fn becomes(node: &Node, names: &[(String, String)], wanted: &Facts) -> Result<()> {
    let patience = std::time::Duration::from_secs(20);
    let reached = crate::until("the node is as a fresh one", patience, || async {
        Ok(Facts::of(node, names).await?.insist_on(wanted).is_ok())
    });
    if let Err(error) = reached.await {
        Facts::of(node, names).await?.insist_on(wanted).context(error)?;
    }
    Ok(())
}
