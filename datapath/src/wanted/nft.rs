//! The node's packet filter as a value: which packets get the mark, which the node's address.
//!
//! Packets that bear the mark are routed by the main table, out of the primary ENI, whatever
//! ENI their pod belongs to. Three chains see to that:
//!
//! - `restore-mark` gives the packets of a known connection the mark of their connection, and
//!   marks connections that come in over the primary ENI, as node ports do;
//! - `mark-outbound` marks new connections of pods to the world outside. It stands behind
//!   destination NAT, so that it sees where a service's connection really goes;
//! - `translate` gives what leaves for the outside the node's own address.
//!
//! Objects are written in the very form in which `nft -j` lists them, so that observed and
//! wanted are compared as values.

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{HostNetwork, HostOptions, RandomSnat};

/// The table, of family `ip`, that holds everything of ours.
pub const TABLE: &str = "vpc-cni";
const FAMILY: &str = "ip";
const INTERNAL: &str = "internal";
const RESTORE_MARK: &str = "restore-mark";
const MARK_OUTBOUND: &str = "mark-outbound";
const TRANSLATE: &str = "translate";

/// Host links of pods with security groups of their own, as nft matches them.
const BRANCH_LINKS: &str = "vlan*";

/// Priorities as `nft` numbers them: mangle, behind dstnat, srcnat.
const MANGLE: i32 = -150;
const BEHIND_DSTNAT: i32 = -90;
const SRCNAT: i32 = 100;

/// The content of our table, in the order and form of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset(Vec<Value>);

impl Ruleset {
    /// What a node needs whose primary ENI is the link `primary_link`; none if it needs no table.
    #[must_use]
    pub fn of(wanted: &HostNetwork, primary_link: &str) -> Option<Self> {
        let options = &wanted.options;
        if !options.needs_mark() {
            return None;
        }
        let pods = format!("{}*", options.veth_prefix);
        let mut objects = vec![json!({ "table": { "family": FAMILY, "name": TABLE } })];
        let mut rules = restore_mark(options, primary_link, &pods);
        if !options.external_snat {
            objects.push(internal(&wanted.vpc_cidrs, &options.exclude_snat_cidrs));
        }
        objects.push(chain(RESTORE_MARK, "filter", "prerouting", MANGLE));
        if !options.external_snat {
            objects.push(chain(MARK_OUTBOUND, "filter", "prerouting", BEHIND_DSTNAT));
            objects.push(chain(TRANSLATE, "nat", "postrouting", SRCNAT));
            rules.push(mark_outbound(options.connmark, &pods));
            rules.push(translate(wanted));
        }
        objects.append(&mut rules);
        Some(Self(objects))
    }

    /// A ruleset from its parts as listed.
    pub(crate) fn listed(objects: Vec<Value>) -> Self {
        Self(objects)
    }

    /// Whether both say the same. Releases of nft differ in whether they list a single flag by
    /// itself or in a list of one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let canonical = |ruleset: &Self| {
            let mut objects = ruleset.0.clone();
            objects.iter_mut().for_each(list_flags);
            objects
        };
        canonical(self) == canonical(other)
    }

    /// One transaction that puts this in the place of whatever the table holds.
    #[must_use]
    pub fn transaction(&self) -> Value {
        let added = self.0.iter().map(|object| json!({ "add": object }));
        json!({ "nftables": Self::clearing().into_iter().chain(added).collect::<Vec<_>>() })
    }

    /// One transaction after which there is no table.
    #[must_use]
    pub fn removal() -> Value {
        json!({ "nftables": Self::clearing() })
    }

    /// Deleting what may not exist fails, so it is added first.
    fn clearing() -> Vec<Value> {
        let table = json!({ "table": { "family": FAMILY, "name": TABLE } });
        vec![json!({ "add": table }), json!({ "delete": table })]
    }
}

/// Puts every single flag in a list of one.
fn list_flags(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(list_flags),
        Value::Object(members) => {
            for (key, member) in members {
                if key == "flags" && member.is_string() {
                    *member = json!([member.take()]);
                }
                list_flags(member);
            }
        }
        _ => {}
    }
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
        "family": FAMILY, "name": INTERNAL, "table": TABLE, "type": "ipv4_addr", "flags": ["interval"],
        "elem": elements.collect::<Vec<_>>(),
    }})
}

fn chain(name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({ "chain": {
        "family": FAMILY, "table": TABLE, "name": name, "type": kind, "hook": hook, "prio": priority,
        "policy": "accept",
    }})
}

fn rule(chain: &str, expressions: &[Value]) -> Value {
    json!({ "rule": { "family": FAMILY, "table": TABLE, "chain": chain, "expr": expressions } })
}

fn matches(operator: &str, left: &Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": operator, "left": left, "right": right.into() } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn ct(key: &str) -> Value {
    json!({ "ct": { "key": key } })
}

fn set(key: &Value, operator: &str, operand: u32) -> Value {
    json!({ "mangle": { "key": key, "value": { operator: [key, operand] } } })
}

fn is_not_local() -> Value {
    matches("!=", &json!({ "fib": { "result": "type", "flags": ["daddr"] } }), "local")
}

fn is_not_internal() -> Value {
    matches("!=", &json!({ "payload": { "protocol": "ip", "field": "daddr" } }), format!("@{INTERNAL}"))
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

fn restore_mark(options: &HostOptions, primary_link: &str, pods: &str) -> Vec<Value> {
    let mark = options.connmark;
    let mut rules = Vec::new();
    let mut restore = |links: &str| {
        let from = matches("==", &meta("iifname"), links);
        let with = |bits: u32| [from.clone(), connection_mark_is(bits, mark)];
        // Two rules, as nft cannot combine a packet's mark with a connection's in one
        // expression, and the bits of others must stay.
        rules.push(rule(RESTORE_MARK, &[&with(mark)[..], &[set(&meta("mark"), "|", mark)]].concat()));
        rules.push(rule(RESTORE_MARK, &[&with(0)[..], &[set(&meta("mark"), "&", !mark)]].concat()));
    };
    restore(pods);
    if options.node_port {
        restore(BRANCH_LINKS);
        // To an address of this link itself: then the answer must leave by it too.
        let to_the_link = json!({ "fib": { "result": "type", "flags": ["daddr", "iif"] } });
        rules.insert(
            0,
            rule(
                RESTORE_MARK,
                &[
                    matches("==", &meta("iifname"), primary_link),
                    matches("==", &to_the_link, "local"),
                    set(&ct("mark"), "|", mark),
                ],
            ),
        );
    }
    rules
}

/// Only packets that open a connection, in its direction: an answer to somebody who came in
/// over another ENI has to leave by that one.
fn mark_outbound(mark: u32, pods: &str) -> Value {
    rule(
        MARK_OUTBOUND,
        &[
            matches("==", &meta("iifname"), pods),
            matches("in", &ct("state"), "new"),
            matches("==", &ct("direction"), "original"),
            is_not_local(),
            is_not_internal(),
            set(&ct("mark"), "|", mark),
            set(&meta("mark"), "|", mark),
        ],
    )
}

fn translate(wanted: &HostNetwork) -> Value {
    let address = wanted.primary.address;
    let snat = match wanted.options.random_snat {
        RandomSnat::Prng => json!({ "snat": { "addr": address, "flags": "fully-random" } }),
        RandomSnat::HashRandom => json!({ "snat": { "addr": address, "flags": "random" } }),
        RandomSnat::None => json!({ "snat": { "addr": address } }),
    };
    let leaves_by_an_eni = matches("!=", &meta("oifname"), BRANCH_LINKS);
    rule(TRANSLATE, &[leaves_by_an_eni, is_not_local(), is_not_internal(), snat])
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
    fn a_flag_alone_and_a_list_of_one_are_the_same() {
        let alone = Ruleset::listed(vec![json!({ "rule": { "expr": [{ "snat": { "flags": "random" } }] } })]);
        let list =
            Ruleset::listed(vec![json!({ "rule": { "expr": [{ "snat": { "flags": ["random"] } }] } })]);
        let other = Ruleset::listed(vec![json!({ "rule": { "expr": [{ "snat": {} }] } })]);

        assert!(alone.is_same(&list));
        assert!(!alone.is_same(&other));
    }

    #[test]
    fn an_exclusion_of_everything_swallows_the_rest() {
        assert_eq!(
            elements(&["10.0.0.0/16"], &["0.0.0.0/0"]),
            json!([{ "prefix": { "addr": "0.0.0.0", "len": 0 } }])
        );
    }
}
