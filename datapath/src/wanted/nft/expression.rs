//! The parts of nft rules, in the form in which they are listed.

use serde_json::{Value, json};
use vpc::Family;

use super::{TABLE, nft_family};
use crate::wanted::RandomSnat;

/// Priorities as `nft` numbers them: mangle, behind dstnat, filter, srcnat.
pub(super) const MANGLE: i32 = -150;
pub(super) const BEHIND_DSTNAT: i32 = -90;
pub(super) const FILTER: i32 = 0;
pub(super) const SRCNAT: i32 = 100;

pub(super) fn chain(family: Family, name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({ "chain": {
        "family": nft_family(family), "table": TABLE, "name": name, "type": kind, "hook": hook,
        "prio": priority, "policy": "accept",
    }})
}

pub(super) fn rule(family: Family, chain: &str, expressions: &[Value]) -> Value {
    json!({ "rule": { "family": nft_family(family), "table": TABLE, "chain": chain, "expr": expressions } })
}

pub(super) fn matches(operator: &str, left: &Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": operator, "left": left, "right": right.into() } })
}

pub(super) fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

pub(super) fn ct(key: &str) -> Value {
    json!({ "ct": { "key": key } })
}

pub(super) fn set(key: &Value, operator: &str, operand: u32) -> Value {
    json!({ "mangle": { "key": key, "value": { operator: [key, operand] } } })
}

/// A field of the IP header: `saddr` or `daddr`.
pub(super) fn address(family: Family, field: &str) -> Value {
    json!({ "payload": { "protocol": nft_family(family), "field": field } })
}

/// Translation of the source address, with source ports as the operator chose.
pub(super) fn snat(address: &str, random: RandomSnat) -> Value {
    match random {
        RandomSnat::Prng => json!({ "snat": { "addr": address, "flags": "fully-random" } }),
        RandomSnat::HashRandom => json!({ "snat": { "addr": address, "flags": "random" } }),
        RandomSnat::None => json!({ "snat": { "addr": address } }),
    }
}
