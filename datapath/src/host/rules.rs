//! The node's rules that belong to no single ENI or pod.

use std::net::IpAddr;

use ipnet::IpNet;
use vpc::{Family, IPV6_VPC_ROUTER, RouteTable};

use super::observed::{InUse, Observed, eni_of};
use crate::kernel::{Rule, Step};
use crate::wanted::{HostNetwork, HostOptions, priority};

/// The number of ICMP over IPv6, with which neighbours are found.
const ICMPV6: u8 = 58;

/// The steps that bring the node's rules to what is wanted; rules of others stay.
pub(super) fn steps(observed: &Observed, wanted: &HostNetwork) -> Vec<Step> {
    let mut steps: Vec<Step> = mark_and_service_rules(&wanted.options, wanted.family)
        .into_iter()
        .filter(|rule| !observed.rules.contains(rule))
        .map(Step::AddRule)
        .collect();
    for family in Family::BOTH {
        let is_strict = wanted.options.strict_branches && family == wanted.family;
        steps.extend(local_rule_steps(&observed.rules, family, is_strict));
    }
    steps
}

/// The steps that remove rules from before the options or the ENIs changed. New rules and the packet
/// filter come first, so that no packet finds neither the old ones nor the new.
pub(super) fn stale_steps(observed: &Observed, wanted: &HostNetwork) -> Vec<Step> {
    let current = mark_and_service_rules(&wanted.options, wanted.family);
    let is_stale = |rule: &&Rule| is_mark_or_service(rule) && !current.contains(rule);
    let mut steps: Vec<Step> =
        observed.rules.iter().filter(is_stale).cloned().map(Step::DeleteRule).collect();
    steps.extend(dead_eni_rules(observed, wanted));
    steps
}

/// The rule for marked packets, in the family of pods, and those for services, which are always
/// IPv4.
fn mark_and_service_rules(options: &HostOptions, family: Family) -> Vec<Rule> {
    let mark = options.needs_mark().then(|| Rule {
        mark: Some((options.connmark, options.connmark)),
        ..Rule::new(family, priority::MARK, RouteTable::MAIN)
    });
    let services = options.external_service_cidrs.iter().map(|block| Rule {
        to: Some(IpNet::V4(block.trunc())),
        ..Rule::new(Family::V4, priority::EXTERNAL_SERVICE, RouteTable::MAIN)
    });
    let mut wanted: Vec<Rule> = Vec::new();
    for rule in mark.into_iter().chain(services) {
        if !wanted.contains(&rule) {
            wanted.push(rule);
        }
    }
    wanted
}

/// Whether a rule has the shape of those of [`mark_and_service_rules`], whatever mark or
/// block it names: one from before the options changed.
fn is_mark_or_service(rule: &Rule) -> bool {
    let plain = Rule { to: None, mark: None, ..rule.clone() };
    if !plain.takes_all() || rule.table != Some(RouteTable::MAIN) {
        return false;
    }
    match rule.priority {
        priority::MARK => rule.to.is_none() && rule.mark.is_some_and(|(mark, mask)| mark == mask),
        priority::EXTERNAL_SERVICE => rule.to.is_some() && rule.mark.is_none(),
        _ => false,
    }
}

/// With strict branch ENIs, rules by incoming link come before the rule for local addresses, so
/// that a pod reaches the node through its branch ENI too. That rule is moved there and back;
/// where somebody else has moved it, it stays.
fn local_rule_steps(observed: &[Rule], family: Family, is_strict: bool) -> Vec<Step> {
    let local = |priority| Rule::new(family, priority, RouteTable::LOCAL);
    let (usual, moved) = (local(priority::LOCAL), local(priority::LOCAL_BEHIND_BRANCHES));
    // The router's answers must reach the node itself, whatever link they come in by.
    let router = Rule {
        from: Some(IpAddr::from(IPV6_VPC_ROUTER).into()),
        protocol: Some(ICMPV6),
        ..local(priority::LOCAL)
    };
    let (has_usual, has_moved) = (observed.contains(&usual), observed.contains(&moved));
    let has_router = observed.contains(&router);
    let mut steps = Vec::new();
    if is_strict {
        if !has_moved {
            steps.push(Step::AddRule(moved));
        }
        if has_usual {
            // A deletion that names no selector takes the first rule of the priority, so the
            // router's goes first and comes back.
            if has_router {
                steps.push(Step::DeleteRule(router.clone()));
            }
            steps.push(Step::DeleteRule(usual));
        }
        if family == Family::V6 && (has_usual || !has_router) {
            steps.push(Step::AddRule(router));
        }
    } else {
        if has_router {
            steps.push(Step::DeleteRule(router));
        }
        if has_moved {
            if !has_usual {
                steps.push(Step::AddRule(usual));
            }
            steps.push(Step::DeleteRule(moved));
        }
    }
    steps
}

/// Rules from addresses of ENIs that are gone, with their routes: an ENI that comes with the same
/// address would inherit them. A rule that leads to a table with a route, or from an address that
/// some link has, is in use, whoever made it: an ENI of another network card, or one that we do not
/// manage.
fn dead_eni_rules(observed: &Observed, wanted: &HostNetwork) -> Vec<Step> {
    let is_in_use = |family: Family, source: IpAddr, table: RouteTable| {
        if family != wanted.family {
            let InUse { addresses, tables } = &observed.other_family;
            return addresses.contains(&source) || tables.contains(&table);
        }
        wanted.enis.iter().any(|eni| eni.address == source)
            || observed.addresses.iter().any(|address| address.net.addr() == source)
            || observed.routes.iter().any(|route| route.table == table)
    };
    let is_dead =
        |rule: &&Rule| eni_of(rule).is_some_and(|(source, table)| !is_in_use(rule.family, source, table));
    observed.rules.iter().filter(is_dead).cloned().map(Step::DeleteRule).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use vpc::Mac;

    use super::*;
    use crate::wanted::PrimaryLink;

    fn network(family: Family, options: HostOptions) -> HostNetwork {
        HostNetwork {
            family,
            primary: PrimaryLink {
                mac: Mac::new([2, 0, 0, 0, 0, 1]),
                address: Ipv4Addr::new(10, 0, 0, 10),
                address_v6: None,
            },
            vpc_cidrs: Vec::new(),
            options,
            enis: Vec::new(),
        }
    }

    fn options() -> HostOptions {
        HostOptions {
            external_service_cidrs: vec!["10.100.3.4/16".parse().unwrap()],
            ..HostOptions::default()
        }
    }

    /// The steps for a node that has these rules, in words: first, and last.
    fn planned(rules: &[Rule], wanted: &HostNetwork) -> (Vec<String>, Vec<String>) {
        let observed = Observed { rules: rules.to_vec(), ..Observed::default() };
        let printed = |steps: Vec<Step>| steps.iter().map(ToString::to_string).collect();
        (printed(steps(&observed, wanted)), printed(stale_steps(&observed, wanted)))
    }

    fn marked(family: Family, priority: u32, mark: (u32, u32)) -> Rule {
        Rule { mark: Some(mark), ..Rule::new(family, priority, RouteTable::MAIN) }
    }

    #[test]
    fn a_fresh_node_gets_its_mark_and_service_rules() {
        let (first, last) = planned(&[], &network(Family::V4, options()));

        assert_eq!(
            first,
            [
                "add rule 1024: from all fwmark 0x80/0x80 lookup main",
                "add rule 1535: from all to 10.100.0.0/16 lookup main"
            ]
        );
        assert_eq!(last, Vec::<String>::new());
    }

    #[test]
    fn rules_that_are_right_need_no_step() {
        for family in Family::BOTH {
            let rules = mark_and_service_rules(&options(), family);

            assert_eq!(planned(&rules, &network(family, options())), (Vec::new(), Vec::new()), "{family}");
        }
    }

    #[test]
    fn rules_of_earlier_options_go_and_those_of_others_stay() {
        let observed = [
            marked(Family::V4, 1024, (0x40, 0x40)),
            marked(Family::V4, 1024, (0x40, 0xff)),
            marked(Family::V4, 1023, (0x40, 0x40)),
        ];
        let silent = HostOptions { node_port: false, external_snat: true, ..HostOptions::default() };

        let (first, last) = planned(&observed, &network(Family::V4, silent));

        assert_eq!(first, Vec::<String>::new());
        assert_eq!(last, ["delete rule 1024: from all fwmark 0x40/0x40 lookup main"]);
    }

    #[test]
    fn the_rules_of_the_other_family_go_when_the_cluster_changes() {
        let old = marked(Family::V4, 1024, (0x80, 0x80));

        let (first, last) = planned(&[old], &network(Family::V6, HostOptions::default()));

        assert_eq!(first, ["add rule 1024: from all fwmark 0x80/0x80 lookup main"]);
        assert_eq!(last, ["delete rule 1024: from all fwmark 0x80/0x80 lookup main"]);
    }

    fn after(mut rules: Vec<Rule>, steps: &[Step]) -> Vec<String> {
        for step in steps {
            match step {
                Step::AddRule(rule) => {
                    let behind = rules.iter().position(|other| other.priority > rule.priority);
                    rules.insert(behind.unwrap_or(rules.len()), rule.clone());
                }
                Step::DeleteRule(rule) => {
                    // As the kernel does it: what is not named matches anything.
                    let matches = |other: &Rule| {
                        other.priority == rule.priority
                            && (rule.from.is_none() || other.from == rule.from)
                            && (rule.protocol.is_none() || other.protocol == rule.protocol)
                            && other.table == rule.table
                    };
                    if let Some(first) = rules.iter().position(matches) {
                        rules.remove(first);
                    }
                }
                _ => {}
            }
        }
        rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_local_rule_moves_behind_branches_and_back() {
        let fresh = |family| vec![Rule::new(family, 0, RouteTable::LOCAL)];
        let to_strict = local_rule_steps(&fresh(Family::V6), Family::V6, true);
        let strict = ["0: from fe80:ec2::1 ipproto 58 lookup local", "20: from all lookup local"];
        assert_eq!(after(fresh(Family::V6), &to_strict), strict);

        let router = Rule {
            from: Some("fe80:ec2::1/128".parse().unwrap()),
            protocol: Some(58),
            ..Rule::new(Family::V6, 0, RouteTable::LOCAL)
        };
        let moved = Rule::new(Family::V6, 20, RouteTable::LOCAL);
        let observed = vec![router.clone(), moved.clone()];
        assert_eq!(local_rule_steps(&observed, Family::V6, true), [], "nothing is left to do");

        let back = local_rule_steps(&observed, Family::V6, false);
        assert_eq!(after(observed, &back), ["0: from all lookup local"]);

        let interrupted = vec![router, fresh(Family::V6).remove(0), moved];
        let steps = local_rule_steps(&interrupted, Family::V6, true);
        assert_eq!(after(interrupted, &steps), strict, "the wildcard deletion takes the right one");
    }

    #[test]
    fn a_local_rule_that_somebody_else_moved_stays() {
        let observed = [Rule::new(Family::V4, 100, RouteTable::LOCAL)];

        assert_eq!(local_rule_steps(&observed, Family::V4, false), []);
    }
}
