//! What has to go from a listing, as one transaction for each of its tables.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use super::reference;
use super::saved::{Rule, Table};

/// What goes from one table, and what has to stay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Removal {
    /// `nat`, `mangle` or `filter`.
    pub(super) table: String,
    /// Rules in chains of others.
    rules: Vec<Rule>,
    /// Chains that are emptied.
    emptied: Vec<String>,
    /// Chains that go.
    chains: Vec<String>,
    /// What cannot go, and why.
    pub(super) left: Vec<String>,
}

impl Removal {
    /// What of `table` is the reference's. Egress chains of pods whose address is among `kept`
    /// stay, since nothing of ours stands in for them.
    pub(super) fn of(table: &Table, kept: &BTreeSet<IpAddr>) -> Self {
        let mut removal = Self { table: table.name.clone(), ..Self::default() };
        // Chains have names of their own in each table, and the reference's are in this one.
        let is_nat = table.name == "nat";
        let egress = if is_nat { egress_chains(table, kept) } else { BTreeSet::new() };
        let own: BTreeSet<&str> = table
            .chains
            .iter()
            .map(String::as_str)
            .filter(|chain| egress.contains(chain) || (is_nat && reference::is_chain(chain)))
            .collect();

        let mut others: Vec<&Rule> = Vec::new();
        for rule in table.rules.iter().filter(|rule| !own.contains(rule.chain.as_str())) {
            let is_jump = reference::is_egress_jump(&table.name, rule) && egress.contains(rule.target());
            if is_jump || reference::is_rule(&table.name, rule) {
                removal.rules.push(rule.clone());
            } else {
                others.push(rule);
            }
        }
        for chain in own {
            if table.rules.iter().any(|rule| rule.chain == chain) {
                removal.emptied.push(chain.to_owned());
            }
            match others.iter().find(|rule| rule.target() == chain) {
                None => removal.chains.push(chain.to_owned()),
                Some(rule) => removal.left.push(format!(
                    "the chain {chain}, now empty: a rule that is not amazon-vpc-cni-k8s's leads to it: -A {} {}",
                    rule.chain, rule.text
                )),
            }
        }
        removal
    }

    /// Whether nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.emptied.is_empty() && self.chains.is_empty()
    }

    /// The input of a restore tool: all or nothing.
    pub(super) fn transaction(&self) -> String {
        let mut text = format!("*{}\n", self.table);
        for Rule { chain, text: rule, .. } in &self.rules {
            let _ = writeln!(text, "-D {chain} {rule}");
        }
        for chain in &self.emptied {
            let _ = writeln!(text, "-F {chain}");
        }
        for chain in &self.chains {
            let _ = writeln!(text, "-X {chain}");
        }
        text + "COMMIT\n"
    }

    /// What goes, in words for the log.
    pub(super) fn summary(&self) -> String {
        let mut parts = Vec::new();
        match self.rules.len() {
            0 => {}
            1 => parts.push("1 rule".to_owned()),
            count => parts.push(format!("{count} rules")),
        }
        let emptied_only = self.emptied.iter().filter(|chain| !self.chains.contains(chain));
        parts.extend(self.chains.iter().map(|chain| format!("chain {chain}")));
        parts.extend(emptied_only.map(|chain| format!("the content of chain {chain}")));
        format!("table {}: {}", self.table, parts.join(", "))
    }
}

/// The pods that the rules of `table` lead to an egress chain, by their addresses.
pub(super) fn egress_sources(table: &Table) -> impl Iterator<Item = IpAddr> {
    table.rules.iter().filter(|rule| reference::is_egress_jump(&table.name, rule)).filter_map(source)
}

/// The address whose packets a rule is about.
fn source(rule: &Rule) -> Option<IpAddr> {
    rule.value("-s")?.split('/').next()?.parse().ok()
}

/// The egress chains that are the reference's and may go: every rule in them bears its comment,
/// and no pod of `kept` is led there. One that is empty and that nobody is led to is what a
/// deletion left that was cut short.
fn egress_chains<'a>(table: &'a Table, kept: &BTreeSet<IpAddr>) -> BTreeSet<&'a str> {
    let is_kept = |jump: &Rule| source(jump).is_some_and(|address| kept.contains(&address));
    let may_go = |chain: &&str| {
        let jumps = || table.rules.iter().filter(|rule| rule.target() == *chain);
        let content = || table.rules.iter().filter(|rule| rule.chain == *chain);
        let is_own = content().all(reference::is_of_egress)
            && jumps().all(|jump| reference::is_egress_jump(&table.name, jump));
        is_own && !jumps().any(is_kept)
    };
    table
        .chains
        .iter()
        .map(String::as_str)
        .filter(|name| reference::is_egress_chain(name))
        .filter(may_go)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::saved::tables;
    use super::*;

    const EGRESS: &str = "CNI-E4-77b8e585a13c64e496587";
    const OF_E9: &str = r#"-m comment --comment "name: \"aws-cni\" id: \"e9\"""#;

    /// What goes from the one table `name` with these chains and rules.
    fn removal(name: &str, chains: &[&str], rules: &[&str]) -> Removal {
        removal_keeping(name, chains, rules, &[])
    }

    fn removal_keeping(name: &str, chains: &[&str], rules: &[&str], kept: &[&str]) -> Removal {
        let mut text = format!("*{name}\n:PREROUTING ACCEPT [0:0]\n");
        for chain in chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for rule in rules {
            let _ = writeln!(text, "-A {rule}");
        }
        let kept = kept.iter().map(|address| address.parse().unwrap()).collect();
        Removal::of(&tables(&(text + "COMMIT\n")).unwrap()[0], &kept)
    }

    #[test]
    fn what_the_reference_has_by_default_goes_in_one_transaction() {
        let removal = removal(
            "nat",
            &["AWS-CONNMARK-CHAIN-0", "AWS-SNAT-CHAIN-0", "KUBE-SERVICES"],
            &[
                "PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
                "PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0",
                "PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
                "POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0",
                "AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN",
                "AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j RETURN",
                "KUBE-SERVICES -d 10.100.0.1/32 -j DNAT --to-destination 10.0.0.9",
            ],
        );

        assert_eq!(
            removal.transaction(),
            "*nat\n\
             -D PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0\n\
             -D PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
             -D POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
             -F AWS-CONNMARK-CHAIN-0\n-F AWS-SNAT-CHAIN-0\n-X AWS-CONNMARK-CHAIN-0\n-X AWS-SNAT-CHAIN-0\nCOMMIT\n"
        );
        assert_eq!(
            removal.summary(),
            "table nat: 3 rules, chain AWS-CONNMARK-CHAIN-0, chain AWS-SNAT-CHAIN-0"
        );
        assert_eq!(removal.left, Vec::<String>::new());
    }

    #[test]
    fn chains_that_older_releases_numbered_go_however_full() {
        let removal = removal(
            "nat",
            &["AWS-CONNMARK-CHAIN-1", "AWS-SNAT-CHAIN-0", "AWS-SNAT-CHAIN-1", "AWS-SNAT-CHAIN-"],
            &[
                "AWS-SNAT-CHAIN-0 ! -d 10.0.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-1",
                "AWS-CONNMARK-CHAIN-1 -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark 0x80/0x80",
            ],
        );

        assert_eq!(
            removal.transaction(),
            "*nat\n-F AWS-CONNMARK-CHAIN-1\n-F AWS-SNAT-CHAIN-0\n\
             -X AWS-CONNMARK-CHAIN-1\n-X AWS-SNAT-CHAIN-0\n-X AWS-SNAT-CHAIN-1\nCOMMIT\n"
        );
    }

    #[test]
    fn rules_of_every_prefix_and_mark_and_in_two_copies_go() {
        let jump = "PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -m state --state NEW -j AWS-CONNMARK-CHAIN-0";
        let removal = removal("nat", &[], &[jump, jump]);
        assert_eq!(removal.transaction(), format!("*nat\n-D {jump}\n-D {jump}\nCOMMIT\n"));

        for rule in [
            "PREROUTING -i eth0 -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80",
            "PREROUTING -i old+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x40 --ctmask 0x40",
            "PREROUTING -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
        ] {
            assert_eq!(self::removal("mangle", &[], &[rule]).rules.len(), 1, "{rule}");
        }
        let reject = "FORWARD -d 169.254.172.0/22 -m conntrack --ctstate NEW -m comment --comment \"Block Node Local Pod access via IPv4\" -j REJECT --reject-with icmp-port-unreachable";
        assert_eq!(self::removal("filter", &[], &[reject]).summary(), "table filter: 1 rule");
    }

    #[test]
    fn what_only_resembles_the_references_stays() {
        let stays = |table: &str, chains: &[&str], rules: &[&str]| {
            let removal = removal(table, chains, rules);
            assert!(removal.is_empty(), "{}", removal.transaction());
        };
        stays("nat", &["AWS-SNAT-CHAIN", "AWS-SNAT-CHAIN-0x", "MY-AWS-SNAT-CHAIN-0"], &[]);
        // Another table, another chain, another target, a comment that says more.
        stays("mangle", &["AWS-SNAT-CHAIN-0"], &[]);
        stays("mangle", &[], &["OUTPUT -m comment --comment \"AWS, primary ENI\" -j CONNMARK --save-mark"]);
        stays("mangle", &[], &["PREROUTING -m comment --comment \"AWS, primary ENI\" -j ACCEPT"]);
        stays(
            "mangle",
            &[],
            &["PREROUTING -m comment --comment \"AWS, primary ENI of ours\" -j CONNMARK --save-mark"],
        );
        stays("nat", &[], &["PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80"]);
        stays("filter", &[], &["FORWARD -d 169.254.172.0/22 -m conntrack --ctstate NEW -j REJECT"]);
        // Egress of another network, and something else under the name of an egress chain.
        let other = OF_E9.replace("aws-cni", "aws-cni-2");
        stays(
            "nat",
            &[EGRESS],
            &[
                &format!("POSTROUTING -s 169.254.172.3/32 {other} -j {EGRESS}"),
                &format!("{EGRESS} {other} -j ACCEPT"),
            ],
        );
        stays("nat", &[EGRESS], &[&format!("{EGRESS} -j ACCEPT")]);
        stays("nat", &["CNI-E4-77b8", "CNI-77b8e585a13c64e496587"], &[]);
    }

    #[test]
    fn egress_chains_go_with_what_leads_there_and_leaked_ones_too() {
        let (jump, snat) = (
            format!("POSTROUTING -s 169.254.172.3/32 {OF_E9} -j {EGRESS}"),
            format!("{EGRESS} {OF_E9} -j SNAT --to-source 10.0.0.20 --random-fully"),
        );
        let whole = format!("*nat\n-D {jump}\n-F {EGRESS}\n-X {EGRESS}\nCOMMIT\n");
        assert_eq!(removal("nat", &[EGRESS], &[&jump, &snat]).transaction(), whole);

        let leaked = format!("*nat\n-F {EGRESS}\n-X {EGRESS}\nCOMMIT\n");
        assert_eq!(removal("nat", &[EGRESS], &[&snat]).transaction(), leaked);
        assert_eq!(removal("nat", &[EGRESS], &[]).transaction(), format!("*nat\n-X {EGRESS}\nCOMMIT\n"));
    }

    #[test]
    fn egress_that_nothing_of_ours_stands_in_for_stays() {
        let rules = [
            format!("POSTROUTING -s 169.254.172.3/32 {OF_E9} -j {EGRESS}"),
            format!("{EGRESS} {OF_E9} -j SNAT --to-source 10.0.0.20"),
        ];
        let rules = [rules[0].as_str(), rules[1].as_str()];

        assert!(removal_keeping("nat", &[EGRESS], &rules, &["169.254.172.3"]).is_empty());
        assert!(!removal_keeping("nat", &[EGRESS], &rules, &["169.254.172.4"]).is_empty());
    }

    #[test]
    fn a_chain_that_somebody_else_uses_is_emptied_and_told_of() {
        let rules = [
            "SOMEBODY -j AWS-SNAT-CHAIN-0",
            "AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j RETURN",
        ];
        let removal = removal("nat", &["SOMEBODY", "AWS-SNAT-CHAIN-0"], &rules);

        assert_eq!(removal.transaction(), "*nat\n-F AWS-SNAT-CHAIN-0\nCOMMIT\n");
        assert_eq!(removal.summary(), "table nat: the content of chain AWS-SNAT-CHAIN-0");
        assert!(
            removal.left[0].ends_with("leads to it: -A SOMEBODY -j AWS-SNAT-CHAIN-0"),
            "{:?}",
            removal.left
        );
        // The next look finds nothing more to do, and still tells.
        let next = self::removal("nat", &["SOMEBODY", "AWS-SNAT-CHAIN-0"], &rules[..1]);
        assert!(next.is_empty());
        assert_eq!(next.left.len(), 1);
    }
}
