//! What pods need that reach the other family through the node: IPv4 in an IPv6 cluster, IPv6 in
//! an IPv4 cluster. Their addresses for that are known on the node alone, and the same on every
//! node, so packets leave with the node's own address.
//!
//! The rules are the same for all pods, so nothing has to be added or removed with one.

use ipnet::IpNet;
use serde_json::{Value, json};
use vpc::Family;

use super::Part;
use super::expression::{FILTER, SRCNAT, address, chain, ct, matches, rule, snat};
use crate::wanted::HostNetwork;

const TRANSLATE: &str = "translate";
const FORWARD: &str = "forward";

/// The addresses that a node's pods have for egress, in that family.
#[must_use]
pub fn egress_range(family: Family) -> IpNet {
    const V4: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(169, 254, 172, 0), 22));
    const V6: IpNet =
        IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xac, 0), 118));
    match family {
        Family::V4 => V4,
        Family::V6 => V6,
    }
}

/// The chains of the family that is not the pods' own; none where no pod reaches it.
pub(super) fn part(family: Family, wanted: &HostNetwork) -> Part {
    let mut part = Part::default();
    let node = match family {
        Family::V4 => Some(wanted.primary.address.to_string()),
        Family::V6 => wanted.primary.address_v6.map(|address| address.to_string()),
    };
    let is_on = wanted.options.egress;
    // An IPv6 cluster's nodes keep their neighbours out of the range even without egress, as
    // the range is link-local and a pod of the host's network could reach it.
    if is_on || wanted.family == Family::V6 {
        part.chains.push(chain(family, FORWARD, "filter", "forward", FILTER));
        part.rules.push(reject_strangers(family));
    }
    if let (true, Some(node)) = (is_on, node) {
        part.chains.push(chain(family, TRANSLATE, "nat", "postrouting", SRCNAT));
        part.rules.push(translate(family, &node, wanted));
    }
    part
}

/// The rules among `objects` that are about egress addresses, with their chains and the table; nothing
/// if none of them translates.
pub(super) fn part_of(family: Family, objects: &[Value]) -> Vec<Value> {
    let range = block(egress_range(family));
    let expressions = |object: &Value| object["rule"]["expr"].as_array().cloned().unwrap_or_default();
    let is_rule = |object: &&Value| expressions(object).iter().any(|part| part["match"]["right"] == range);
    let rules = || objects.iter().filter(is_rule);
    if !rules().flat_map(expressions).any(|part| part.get("snat").is_some()) {
        return Vec::new();
    }
    let is_chain = |object: &Value| rules().any(|rule| rule["rule"]["chain"] == object["chain"]["name"]);
    let is_part = |object: &&Value| object.get("table").is_some() || is_rule(object) || is_chain(object);
    objects.iter().filter(is_part).cloned().collect()
}

/// Nobody opens a connection to an egress address.
fn reject_strangers(family: Family) -> Value {
    let to_range = matches("==", &address(family, "daddr"), block(egress_range(family)));
    let is_new = matches("in", &ct("state"), "new");
    let kind = match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    };
    let reject = json!({ "reject": { "type": kind, "expr": "port-unreachable" } });
    rule(family, FORWARD, &[to_range, is_new, reject])
}

fn translate(family: Family, node: &str, wanted: &HostNetwork) -> Value {
    let multicast = match family {
        Family::V4 => json!({ "prefix": { "addr": "224.0.0.0", "len": 4 } }),
        Family::V6 => json!({ "prefix": { "addr": "ff00::", "len": 8 } }),
    };
    let of_a_pod = matches("==", &address(family, "saddr"), block(egress_range(family)));
    let is_unicast = matches("!=", &address(family, "daddr"), multicast);
    rule(family, TRANSLATE, &[of_a_pod, is_unicast, snat(node, wanted.options.random_snat)])
}

fn block(block: IpNet) -> Value {
    json!({ "prefix": { "addr": block.addr(), "len": block.prefix_len() } })
}
