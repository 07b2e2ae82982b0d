//! Taking a pod's rules and routes off the host.

use std::net::IpAddr;

use vpc::RouteTable;

use super::TeardownErrors;
use crate::kernel::{KernelError, Netlink, Outcome, Route, Rule, Scope, Step};
use crate::wanted::priority;

/// How many rules from one address are removed at most.
const MAX_RULES: usize = 1000;

/// Removes rules and routes of pods' addresses from the host; the veths end with their pods.
///
/// `table` is that of the address's ENI; 0 means whichever table its rule names, 1 is what older
/// releases wrote for the main table. Deleting a veth would make the caller wait until all
/// processors have forgotten it; the end of the pod's namespace does it for free.
///
/// # Errors
/// [`TeardownErrors`] with all that could not be removed. What is absent counts as removed.
pub fn delete(host: &mut Netlink, addresses: &[(IpAddr, RouteTable)]) -> Result<(), TeardownErrors> {
    let steps: Vec<Step> = addresses.iter().flat_map(|(address, table)| steps(*address, *table)).collect();
    let mut errors = Vec::new();
    match host.apply(&steps) {
        Ok(outcomes) => {
            // The last rule deletion of an address finds nothing, unless there were many.
            let mut may_be_more = Vec::new();
            for (step, outcome) in steps.iter().zip(outcomes) {
                match outcome {
                    Outcome::Failed(error) => errors.push(error),
                    Outcome::Done if is_repeated(step) => may_be_more.push(step),
                    Outcome::Done => {}
                    Outcome::Satisfied => may_be_more.retain(|other| *other != step),
                }
            }
            may_be_more.dedup();
            for step in may_be_more {
                errors.extend(repeat(host, step).err());
            }
        }
        Err(error) => errors.push(error),
    }
    if errors.is_empty() { Ok(()) } else { Err(TeardownErrors(errors)) }
}

fn repeat(host: &mut Netlink, step: &Step) -> Result<(), KernelError> {
    for _ in 0..MAX_RULES {
        if !host.apply_one(step)? {
            break;
        }
    }
    Ok(())
}

fn is_repeated(step: &Step) -> bool {
    matches!(step, Step::DeleteRule(rule) if rule.priority == priority::FROM_POD)
}

/// The deletions for one address, in order; the rule from it twice, to see that none is left.
fn steps(address: IpAddr, table: RouteTable) -> Vec<Step> {
    let table = match table.0 {
        0 => None,
        1 => Some(RouteTable::MAIN),
        _ => Some(table),
    };
    let mut steps = vec![Step::DeleteRule(Rule::to_address(priority::TO_POD, address, RouteTable::MAIN))];
    if table != Some(RouteTable::MAIN) {
        let from_pod = Step::DeleteRule(Rule::from_address(priority::FROM_POD, address, table));
        steps.extend([from_pod.clone(), from_pod]);
    }
    steps.push(Step::DeleteRoute(Route {
        destination: address.into(),
        gateway: None,
        link: None,
        scope: Scope::Link,
        table: RouteTable::MAIN,
        preferred_source: None,
    }));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(table: u32) -> Vec<String> {
        let address = "10.0.1.7".parse().unwrap();
        steps(address, RouteTable(table)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_of_the_main_table_loses_one_rule_and_its_route() {
        let expected = ["delete rule 512: from all to 10.0.1.7 lookup main", "delete route 10.0.1.7"];

        assert_eq!(printed(254), expected);
        assert_eq!(printed(1), expected);
    }

    #[test]
    fn an_unknown_table_matches_any() {
        assert_eq!(printed(0)[1], "delete rule 1536: from 10.0.1.7");
        assert_eq!(printed(3)[1], "delete rule 1536: from 10.0.1.7 lookup 3");
    }
}
