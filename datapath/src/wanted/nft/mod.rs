//! The node's packet filter as a value: which packets get the mark, which the node's address.
//!
//! There is a table of ours for each family, as far as the node's options need one. `pods` has
//! the chains for pods of an IPv4 cluster, `egress` those for pods that reach the other family
//! through the node.
//!
//! Objects are written in the very form in which `nft -j` lists them, so that observed and
//! wanted are compared as values.

mod egress;
mod expression;
mod pods;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vpc::Family;

use super::HostNetwork;

pub use egress::egress_range;

/// The name of our tables, one of each family.
pub const TABLE: &str = "vpc-cni";

/// What nft calls a family.
#[must_use]
pub fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Chains and what is in them: for one part of a table.
#[derive(Debug, Default)]
struct Part {
    sets: Vec<Value>,
    chains: Vec<Value>,
    rules: Vec<Value>,
}

/// The content of our table of a family, in the order and form of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    family: Family,
    objects: Vec<Value>,
}

impl Ruleset {
    /// What the table of `family` holds on a node whose primary ENI is the link `primary_link`,
    /// with pods whose host veths' names begin with one of `prefixes`; none if the node needs no
    /// such table.
    #[must_use]
    pub fn of(
        family: Family,
        wanted: &HostNetwork,
        primary_link: &str,
        prefixes: &BTreeSet<String>,
    ) -> Option<Self> {
        let part = if family == wanted.family {
            pods::part(wanted, primary_link, prefixes)
        } else {
            egress::part(family, wanted)
        };
        if part.chains.is_empty() {
            return None;
        }
        let table = json!({ "table": { "family": nft_family(family), "name": TABLE } });
        let parts = [vec![table], part.sets, part.chains, part.rules];
        Some(Self { family, objects: parts.into_iter().flatten().collect() })
    }

    /// A ruleset from its parts as listed.
    pub(crate) fn listed(family: Family, objects: Vec<Value>) -> Self {
        Self { family, objects }
    }

    /// Whether both say the same. Releases of nft differ in whether they list a single flag by
    /// itself or in a list of one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let canonical = |ruleset: &Self| {
            let mut objects = ruleset.objects.clone();
            objects.iter_mut().for_each(list_flags);
            objects
        };
        canonical(self) == canonical(other)
    }

    /// What of a listed table pods need that reach its family through the node; none if it does
    /// not translate for them.
    pub(crate) fn of_egress(&self) -> Option<Self> {
        let objects = egress::part_of(self.family, &self.objects);
        (!objects.is_empty()).then_some(Self { family: self.family, objects })
    }

    /// One transaction that puts this in the place of whatever the table holds.
    #[must_use]
    pub fn transaction(&self) -> Value {
        let added = self.objects.iter().map(|object| json!({ "add": object }));
        json!({ "nftables": clearing(self.family).into_iter().chain(added).collect::<Vec<_>>() })
    }

    /// One transaction after which there is no table of `family`.
    #[must_use]
    pub fn removal(family: Family) -> Value {
        json!({ "nftables": clearing(family) })
    }
}

/// Deleting what may not exist fails, so it is added first.
fn clearing(family: Family) -> Vec<Value> {
    let table = json!({ "table": { "family": nft_family(family), "name": TABLE } });
    vec![json!({ "add": table }), json!({ "delete": table })]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_alone_and_a_list_of_one_are_the_same() {
        let listed = |snat: Value| {
            Ruleset::listed(Family::V4, vec![json!({ "rule": { "expr": [{ "snat": snat }] } })])
        };
        let alone = listed(json!({ "flags": "random" }));
        let list = listed(json!({ "flags": ["random"] }));
        let other = listed(json!({}));

        assert!(alone.is_same(&list));
        assert!(!alone.is_same(&other));
    }
}
