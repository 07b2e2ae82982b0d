//! Whatever happens in whatever order, no address has two pods and no limit is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::super::*;
use super::world::*;

#[derive(Debug, Clone)]
enum Action {
    Add(u8),
    Del(u8),
    Pass(u16),
    Succeed(usize),
    Fail(usize, u8),
    Look,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => (0..12_u8).prop_map(Action::Add),
        3 => (0..12_u8).prop_map(Action::Del),
        2 => (0..400_u16).prop_map(Action::Pass),
        4 => (0..4_usize).prop_map(Action::Succeed),
        1 => ((0..4_usize), (0..6_u8)).prop_map(|(step, class)| Action::Fail(step, class)),
        1 => Just(Action::Look),
    ];
    proptest::collection::vec(action, 1..120)
}

/// What EC2 truly holds, beside what the pool believes.
struct Truth {
    world: World,
    ec2: BTreeMap<EniId, vpc::Eni>,
    pods: BTreeMap<u8, IpAddr>,
    released: BTreeMap<IpAddr, Instant>,
    limits: (usize, usize),
    waiting: BTreeMap<WaiterId, u8>,
}

impl Truth {
    fn give(&mut self, pod: u8, assignment: &Assignment) {
        let other =
            self.pods.iter().find(|(holder, address)| **holder != pod && **address == assignment.address);
        assert!(other.is_none(), "{} given to {pod} although {other:?} has it", assignment.address);
        assert!(
            self.ec2.values().any(|eni| holds(eni, assignment.address)),
            "{} is on no ENI",
            assignment.address
        );
        if assignment.is_new
            && let Some(at) = self.released.get(&assignment.address)
        {
            assert!(self.world.now - *at >= 30 * SECOND, "{} had not rested", assignment.address);
        }
        self.pods.insert(pod, assignment.address);
    }

    fn settle(&mut self) {
        for (waiter, answer) in self.world.pool.settle(self.world.now) {
            let pod = self.waiting.remove(&waiter).unwrap();
            if let Ok(assignment) = answer {
                self.give(pod, &assignment);
            }
        }
    }

    /// Does a step at EC2, as the executor would.
    fn perform(&mut self, step: &Step) -> Outcome {
        let outcome = match step {
            Step::ReadInventory => Outcome::Inventory(self.ec2.values().cloned().collect()),
            _ => self.world.outcome(step),
        };
        match (&outcome, step) {
            (Outcome::EniAllocated(eni), _) => {
                self.ec2.insert(eni.id.clone(), eni.clone());
            }
            (Outcome::Assigned(blocks), Step::Assign { eni, .. }) => {
                let eni = self.ec2.get_mut(eni).unwrap();
                for block in blocks {
                    match block {
                        Block::Ip(ip) => eni.secondary_ips.push(*ip),
                        Block::Prefix(prefix) => eni.prefixes.push(*prefix),
                    }
                }
            }
            (Outcome::Unassigned, Step::Unassign { eni, blocks }) => {
                let goes = |pod: &IpAddr| blocks.iter().any(|block| block.contains(*pod));
                assert!(!self.pods.values().any(goes), "a live pod's address went");
                let eni = self.ec2.get_mut(eni).unwrap();
                eni.secondary_ips.retain(|ip| !blocks.contains(&Block::Ip(*ip)));
                eni.prefixes.retain(|prefix| !blocks.contains(&Block::Prefix(*prefix)));
            }
            (Outcome::EniFreed, Step::FreeEni { eni }) => {
                let gone = self.ec2.remove(eni).unwrap();
                assert!(!self.pods.values().any(|pod| holds(&gone, *pod)), "a live pod's ENI went");
            }
            _ => {}
        }
        outcome
    }

    fn check(&self) {
        let allocations = self.world.pool.allocations();
        let distinct: BTreeSet<_> = allocations.iter().map(|allocation| allocation.address).collect();
        assert_eq!(distinct.len(), allocations.len());
        for (pod, address) in &self.pods {
            assert!(
                allocations.iter().any(|held| held.key == key(&pod.to_string()) && held.address == *address),
                "pod {pod} lost {address}"
            );
        }
        assert!(self.ec2.len() <= self.limits.0);
        assert!(self.ec2.values().all(|eni| eni.secondary_ips.len() + eni.prefixes.len() <= self.limits.1));
    }
}

fn holds(eni: &vpc::Eni, address: IpAddr) -> bool {
    eni.secondary_ips.iter().any(|ip| address == *ip)
        || eni.prefixes.iter().any(|prefix| prefix.contains(address))
}

/// Gives what EC2 holds at the end.
fn play(actions: Vec<Action>, mode: BlockMode, targets: WarmTargets) -> BTreeMap<EniId, vpc::Eni> {
    let mut chosen = settings(3, 4);
    chosen.targets = targets;
    chosen.mode = mode;
    let primary = eni(0, &[]);
    let mut truth = Truth {
        ec2: [(primary.id.clone(), primary)].into(),
        world: World::bare(chosen),
        pods: BTreeMap::new(),
        released: BTreeMap::new(),
        limits: (3, 4),
        waiting: BTreeMap::new(),
    };
    let mut open: Vec<(StepId, Step)> = Vec::new();
    for action in actions {
        match action {
            Action::Add(pod) => match truth.world.add(&pod.to_string()) {
                Answer::Assigned(assignment) => truth.give(pod, &assignment),
                Answer::Parked(waiter) => {
                    truth.waiting.insert(waiter, pod);
                }
                Answer::Refused(_) => {}
            },
            Action::Del(pod) => {
                let now = truth.world.now;
                truth.waiting.retain(|_, waiting| *waiting != pod);
                if let Ok(released) = truth.world.pool.release(&key(&pod.to_string()), now) {
                    assert_eq!(truth.pods.remove(&pod), Some(released.allocation.address));
                    truth.released.insert(released.allocation.address, now);
                } else {
                    assert!(!truth.pods.contains_key(&pod));
                }
            }
            Action::Pass(seconds) => truth.world.pass(u32::from(seconds) * SECOND),
            Action::Succeed(index) if index < open.len() => {
                let (id, step) = open.remove(index);
                let outcome = truth.perform(&step);
                truth.world.finish(id, outcome);
            }
            Action::Fail(index, class) if index < open.len() => {
                let (id, step) = open.remove(index);
                let class = match class {
                    0 => FailureClass::Throttled,
                    1 => FailureClass::SubnetExhausted,
                    2 => FailureClass::Unavailable,
                    5 => FailureClass::NoFreePrefix,
                    3 => {
                        // The work is done, but nobody says so.
                        truth.perform(&step);
                        FailureClass::AnswerLost
                    }
                    _ => FailureClass::AnswerLost,
                };
                truth.world.finish(id, failure(class));
            }
            Action::Look => {
                let routed = truth.pods.values().copied().collect();
                let kernel = KernelView { routed, ..KernelView::default() };
                let seen = truth.world.pool.witness(&kernel, truth.world.now);
                assert!(seen.iter().all(|note| matches!(note, RestoreNote::Cleared { .. })));
            }
            Action::Succeed(_) | Action::Fail(..) => {}
        }
        open.extend(truth.world.plan());
        truth.settle();
        truth.check();
    }
    // Once faults stop, everything comes to rest and the pool has what it wants.
    for _ in 0..60 {
        for (id, step) in std::mem::take(&mut open) {
            let outcome = truth.perform(&step);
            truth.world.finish(id, outcome);
        }
        truth.world.pass(10 * SECOND);
        truth.settle();
        open.extend(truth.world.plan());
        truth.check();
    }
    assert!(open.is_empty(), "still planning {open:?}");
    assert!(truth.waiting.is_empty());
    truth.ec2
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_address_has_two_pods_while_whole_enis_are_kept_warm(actions in actions(), warm_eni in 0..3_u32) {
        let targets = WarmTargets { warm_eni, warm_ip: 0, minimum_ip: 0, warm_prefix: 1 };
        play(actions, BlockMode::SecondaryIps, targets);
    }

    #[test]
    fn no_address_has_two_pods_while_single_addresses_are_kept_warm(
        actions in actions(), warm_ip in 0..5_u32, minimum_ip in 1..7_u32,
    ) {
        let targets = WarmTargets { warm_eni: 1, warm_ip, minimum_ip, warm_prefix: 1 };
        play(actions, BlockMode::SecondaryIps, targets);
    }

    #[test]
    fn no_address_has_two_pods_while_whole_prefixes_are_kept_warm(
        actions in actions(), warm_prefix in 0..3_u32,
    ) {
        let targets = WarmTargets { warm_eni: 1, warm_ip: 0, minimum_ip: 0, warm_prefix };
        play(actions, BlockMode::Prefixes, targets);
    }

    #[test]
    fn no_address_has_two_pods_while_addresses_of_prefixes_are_counted(
        actions in actions(), warm_ip in 0..20_u32, minimum_ip in 1..40_u32,
    ) {
        let targets = WarmTargets { warm_eni: 1, warm_ip, minimum_ip, warm_prefix: 0 };
        play(actions, BlockMode::Prefixes, targets);
    }

    #[test]
    fn no_address_has_two_pods_and_no_node_two_prefixes_with_ipv6(
        actions in actions(), warm_ip in 0..20_u32, warm_prefix in 0..3_u32,
    ) {
        let targets = WarmTargets { warm_eni: 1, warm_ip, minimum_ip: 0, warm_prefix };
        let held = play(actions, BlockMode::Ipv6Prefix, targets);
        assert_eq!(held.values().map(|eni| eni.prefixes.len()).sum::<usize>(), 1);
    }
}
