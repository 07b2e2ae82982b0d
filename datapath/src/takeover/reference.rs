//! How the rules of amazon-vpc-cni-k8s are told from everybody else's.
//!
//! By what it cannot change without losing sight of them itself: the names of its chains, and
//! the comments of its rules together with the place and the target. Not by addresses, marks or
//! links, which follow from options that may have changed since.

use super::saved::Rule;

/// Chains that are the reference's with everything in them. Older releases numbered them.
const CHAINS: [&str; 2] = [SNAT_CHAIN, CONNMARK_CHAIN];
const SNAT_CHAIN: &str = "AWS-SNAT-CHAIN-";
const CONNMARK_CHAIN: &str = "AWS-CONNMARK-CHAIN-";

/// The chain that it makes at each start, whatever its options.
pub(super) const FIRST_CHAIN: &str = "AWS-SNAT-CHAIN-0";

/// A chain for each pod that leaves by the other family, and the digits of a digest behind it.
const EGRESS_CHAINS: [&str; 2] = ["CNI-E4-", "CNI-E6-"];
const EGRESS_DIGITS: usize = 21;

/// How the comments of a pod's egress rules begin: with the network's name, which is the list's.
const EGRESS_COMMENT: &str = "name: \"aws-cni\" id: \"";

/// Its table in nftables, of family `ip`, where it does not use iptables for marks.
pub(super) const NFT_TABLE: &str = "aws-cni";

/// Whether the reference alone makes chains of that name.
pub(super) fn is_chain(name: &str) -> bool {
    CHAINS.iter().any(|prefix| is_numbered(name, prefix))
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Whether a chain has the name of a pod's egress chain. Its rules say of which network.
pub(super) fn is_egress_chain(name: &str) -> bool {
    let digits = EGRESS_CHAINS.iter().find_map(|prefix| name.strip_prefix(prefix));
    digits.is_some_and(|digits| {
        digits.len() == EGRESS_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

/// Whether a rule bears the comment of a pod of the reference's network.
pub(super) fn is_of_egress(rule: &Rule) -> bool {
    rule.comment().starts_with(EGRESS_COMMENT)
}

/// Whether the reference put a rule into `table`, in a chain that is not its own. Leaves out
/// [`is_egress_jump`].
pub(super) fn is_rule(table: &str, rule: &Rule) -> bool {
    let target = rule.target();
    match (table, rule.chain.as_str(), rule.comment()) {
        ("nat", "POSTROUTING", "AWS SNAT CHAIN") => is_numbered(target, SNAT_CHAIN),
        // Its first releases had no chain of their own.
        ("nat", "POSTROUTING", "AWS, SNAT") => target == "SNAT",
        ("nat", "PREROUTING", "AWS, outbound connections") => is_numbered(target, CONNMARK_CHAIN),
        ("nat", "PREROUTING", "AWS, CONNMARK") | ("mangle", "PREROUTING", "AWS, primary ENI") => {
            target == "CONNMARK"
        }
        (
            "filter",
            "FORWARD",
            "Block Node Local Pod access via IPv4" | "Block Node Local Pod access via IPv6",
        ) => target == "REJECT",
        _ => false,
    }
}

/// Whether a rule leads a pod's packets to its egress chain.
pub(super) fn is_egress_jump(table: &str, rule: &Rule) -> bool {
    table == "nat" && rule.chain == "POSTROUTING" && is_of_egress(rule) && is_egress_chain(rule.target())
}
