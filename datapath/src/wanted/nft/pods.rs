//! What the packets of an IPv4 cluster's pods need. Pods of an IPv6 cluster need nothing: their
//! addresses are valid everywhere, and all of them belong to the primary ENI as a rule.
//!
//! Packets that bear the mark are routed by the main table, out of the primary ENI, whatever
//! ENI their pod belongs to. Three chains see to that:
//!
//! - `restore-mark` gives the packets of a known connection the mark of their connection, and
//!   marks connections that come in over the primary ENI, as node ports do. A connection that
//!   carries the node's own address in the pod's place belongs to the primary ENI whatever its
//!   mark says: it may be from before the operator chose another mark;
//! - `mark-outbound` marks connections of pods to the world outside, each with the packet with
//!   which its translation is settled. It stands behind destination NAT, so that it sees where a
//!   service's connection really goes;
//! - `translate` gives what leaves for the outside the node's own address.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use vpc::Family;

use super::expression::{BEHIND_DSTNAT, MANGLE, SRCNAT, address, chain, ct, matches, meta, rule, set, snat};
use super::{Part, TABLE, nft_family};
use crate::wanted::HostNetwork;

const FAMILY: Family = Family::V4;
const INTERNAL: &str = "internal";
const RESTORE_MARK: &str = "restore-mark";
const MARK_OUTBOUND: &str = "mark-outbound";
const TRANSLATE: &str = "translate";

/// Host links of pods with security groups of their own, as nft matches them.
const BRANCH_LINKS: &str = "vlan*";

/// The chains that `wanted` needs; none if it needs no mark. `prefixes` begin the names of pods'
/// host veths.
pub(super) fn part(wanted: &HostNetwork, primary_link: &str, prefixes: &BTreeSet<String>) -> Part {
    let options = &wanted.options;
    let mut part = Part::default();
    if wanted.family != FAMILY || !options.needs_mark() {
        return part;
    }
    let pods: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix}*")).collect();
    part.chains.push(chain(FAMILY, RESTORE_MARK, "filter", "prerouting", MANGLE));
    part.rules = restore_mark(wanted, primary_link, &pods);
    if !options.external_snat {
        part.sets.push(internal(&wanted.vpc_cidrs, &options.exclude_snat_cidrs));
        part.chains.push(chain(FAMILY, MARK_OUTBOUND, "filter", "prerouting", BEHIND_DSTNAT));
        part.chains.push(chain(FAMILY, TRANSLATE, "nat", "postrouting", SRCNAT));
        part.rules.extend(pods.iter().map(|links| mark_outbound(options.connmark, links)));
        part.rules.push(translate(wanted));
    }
    part
}

/// The set of blocks to which packets keep the pod's address.
///
/// Aggregated: nft refuses a set whose blocks overlap.
fn internal(vpc: &[Ipv4Net], excluded: &[Ipv4Net]) -> Value {
    let blocks: Vec<Ipv4Net> = vpc.iter().chain(excluded).map(Ipv4Net::trunc).collect();
    let mut blocks = Ipv4Net::aggregate(&blocks);
    blocks.sort();
    let elements = blocks.iter().map(|block| match block.prefix_len() {
        32 => json!(block.addr()),
        length => json!({ "prefix": { "addr": block.addr(), "len": length } }),
    });
    json!({ "set": {
        "family": nft_family(FAMILY), "name": INTERNAL, "table": TABLE, "type": "ipv4_addr", "flags": ["interval"],
        "elem": elements.collect::<Vec<_>>(),
    }})
}

fn is_not_local() -> Value {
    matches("!=", &json!({ "fib": { "result": "type", "flags": ["daddr"] } }), "local")
}

fn is_not_internal() -> Value {
    matches("!=", &address(FAMILY, "daddr"), format!("@{INTERNAL}"))
}

/// Matches connections whose mark has `bits` among those of `mask`.
///
/// A mask of the highest bits is listed as a prefix, and one of all bits not at all.
fn connection_mark_is(bits: u32, mask: u32) -> Value {
    match mask.leading_ones() {
        32 => matches("==", &ct("mark"), bits),
        length if length == mask.count_ones() => {
            matches("==", &ct("mark"), json!({ "prefix": { "addr": bits, "len": length } }))
        }
        _ => matches("==", &json!({ "&": [ct("mark"), mask] }), bits),
    }
}

fn restore_mark(wanted: &HostNetwork, primary_link: &str, pods: &[String]) -> Vec<Value> {
    let mark = wanted.options.connmark;
    let set_mark = || set(&meta("mark"), "|", mark);
    let restore = |expressions: &[Value]| rule(FAMILY, RESTORE_MARK, expressions);
    let mut rules = Vec::new();
    if wanted.options.node_port {
        // To an address of this link itself: then the answer must leave by it too.
        let to_the_link = json!({ "fib": { "result": "type", "flags": ["daddr", "iif"] } });
        rules.push(restore(&[
            matches("==", &meta("iifname"), primary_link),
            matches("==", &to_the_link, "local"),
            set(&ct("mark"), "|", mark),
        ]));
    }
    let branches = wanted.options.node_port.then_some(BRANCH_LINKS);
    for links in pods.iter().map(String::as_str).chain(branches) {
        let from = || matches("==", &meta("iifname"), links);
        // Two rules, as nft cannot combine a packet's mark with a connection's in one
        // expression, and the bits of others must stay.
        rules.push(restore(&[from(), connection_mark_is(mark, mark), set_mark()]));
        rules.push(restore(&[from(), connection_mark_is(0, mark), set(&meta("mark"), "&", !mark)]));
    }
    let node = wanted.primary.address.to_string();
    for links in pods {
        let of_the_node = |direction: &str, tuple: &str| {
            let address = json!({ "ct": { "key": "ip daddr", "dir": tuple } });
            restore(&[
                matches("==", &meta("iifname"), links.as_str()),
                matches("==", &ct("direction"), direction),
                matches("==", &address, node.as_str()),
                set_mark(),
            ])
        };
        // Translated on its way out, and called through a node port.
        rules.push(of_the_node("original", "reply"));
        if wanted.options.node_port {
            rules.push(of_the_node("reply", "original"));
        }
    }
    rules
}

/// Only a connection's first packet, which alone is not confirmed yet: with it `translate` decides
/// for good. A stream that nobody answers stays new for ever; marked later, under other options, it
/// would leave by the primary ENI with an address that is not the primary ENI's. And an answer to
/// somebody who came in over another ENI has to leave by that one.
fn mark_outbound(mark: u32, pods: &str) -> Value {
    rule(
        FAMILY,
        MARK_OUTBOUND,
        &[
            matches("==", &meta("iifname"), pods),
            matches("!", &ct("status"), "confirmed"),
            is_not_local(),
            is_not_internal(),
            set(&ct("mark"), "|", mark),
            set(&meta("mark"), "|", mark),
        ],
    )
}

fn translate(wanted: &HostNetwork) -> Value {
    let snat = snat(&wanted.primary.address.to_string(), wanted.options.random_snat);
    let leaves_by_an_eni = matches("!=", &meta("oifname"), BRANCH_LINKS);
    rule(FAMILY, TRANSLATE, &[leaves_by_an_eni, is_not_local(), is_not_internal(), snat])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(vpc: &[&str], excluded: &[&str]) -> Value {
        let blocks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        internal(&blocks(vpc), &blocks(excluded))["set"]["elem"].clone()
    }

    #[test]
    fn blocks_that_overlap_become_one() {
        assert_eq!(
            elements(&["10.0.0.0/16", "10.0.3.0/24"], &["10.0.0.0/16", "192.168.7.7/32"]),
            json!([{ "prefix": { "addr": "10.0.0.0", "len": 16 } }, "192.168.7.7"])
        );
    }

    #[test]
    fn an_exclusion_of_everything_swallows_the_rest() {
        assert_eq!(
            elements(&["10.0.0.0/16"], &["0.0.0.0/0"]),
            json!([{ "prefix": { "addr": "0.0.0.0", "len": 0 } }])
        );
    }
}
