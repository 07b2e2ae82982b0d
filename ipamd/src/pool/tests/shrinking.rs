//! What goes back to EC2, and when.

use super::super::*;
use super::world::*;

#[test]
fn a_surplus_eni_goes_back_after_the_delay_and_not_before() {
    let mut world = World::bare(settings(3, 3));
    world.run();
    for pod in ["a", "b", "c", "d"] {
        world.added(pod);
        world.run();
    }
    assert_eq!(world.layout(), [3, 3, 3]);
    for pod in ["a", "b", "c", "d"] {
        world.del(pod);
    }
    world.pass(31 * SECOND);
    assert!(world.run().is_empty());
    world.pass(179 * SECOND);
    assert!(world.run().is_empty());

    world.pass(SECOND);
    let freed = world.run();

    assert_eq!(freed.len(), 2, "{freed:?}");
    assert!(freed.iter().all(|step| matches!(step, Step::FreeEni { .. })));
    assert_eq!(world.layout(), [3]);
}

#[test]
fn the_pool_asks_to_be_woken_when_a_surplus_is_due() {
    let mut world = World::new(settings(3, 3), vec![eni(0, &[1, 2, 3]), eni(1, &[11, 12, 13])]);
    world.run();

    assert_eq!(world.pool.next_wake(world.now), Some(world.now + 180 * SECOND));
}

#[test]
fn an_eni_with_a_pod_or_a_resting_address_stays() {
    let mut world =
        World::new(settings(3, 3), vec![eni(0, &[1, 2, 3]), eni(1, &[11, 12, 13]), eni(2, &[21, 22, 23])]);
    world.run();
    for pod in ["a", "b", "c", "d"] {
        world.added(pod);
    }
    for pod in ["a", "b", "c"] {
        world.del(pod);
    }
    world.pass(31 * SECOND);
    world.run();

    world.pass(181 * SECOND);
    let freed = world.run();

    assert_eq!(freed, [Step::FreeEni { eni: eni_id(2) }]);
}

#[test]
fn a_pod_that_comes_during_the_delay_starts_it_anew() {
    let mut world = World::new(settings(3, 3), vec![eni(0, &[1, 2, 3]), eni(1, &[11, 12, 13])]);
    world.run();
    world.pass(100 * SECOND);
    world.added("a");
    world.run();
    world.del("a");
    world.pass(31 * SECOND);
    world.run();
    world.pass(100 * SECOND);

    assert!(world.run().is_empty());
}

#[test]
fn addresses_of_an_eni_on_its_way_out_are_given_to_nobody() {
    let mut world = World::new(settings(2, 1), vec![eni(0, &[1]), eni(1, &[11])]);
    world.run_until_freeing();

    world.added("a");

    assert!(matches!(world.add("b"), Answer::Parked(_) | Answer::Refused(_)));
}

#[test]
fn what_the_kernel_still_uses_is_kept_and_held_back() {
    let mut world = World::new(settings(2, 1), vec![eni(0, &[1]), eni(1, &[11])]);
    let id = world.run_until_freeing();

    world.finish(id, Outcome::InUse(vec![address(11)]));

    assert_eq!(world.pool.quarantined(), [(address(11), QuarantineReason::KernelOnly)]);
    assert!(!world.steps().iter().any(|step| matches!(step, Step::FreeEni { .. })));
}

#[test]
fn surplus_single_addresses_go_back_from_the_eni_with_fewest_pods() {
    let mut counting = settings(3, 3);
    counting.targets = WarmTargets { warm_ip: 1, minimum_ip: 1, ..counting.targets };
    let mut world = World::bare(counting);
    world.run();
    for pod in 0..9 {
        let _ = world.add(&format!("pod-{pod}"));
        world.run();
        world.pool.settle(world.now);
    }
    assert_eq!(world.layout(), [3, 3, 3]);
    for pod in 0..9 {
        world.del(&format!("pod-{pod}"));
    }
    world.pass(31 * SECOND);
    world.run();

    world.pass(181 * SECOND);
    world.run();

    assert_eq!(world.layout(), [1], "the last warm address stays on the primary ENI");
}

#[test]
fn a_refused_return_leaves_the_addresses_in_use() {
    let mut counting = settings(1, 5);
    counting.targets = WarmTargets { warm_ip: 1, ..counting.targets };
    let mut world = World::new(counting, vec![eni(0, &[1, 2, 3])]);
    world.run();
    world.pass(181 * SECOND);
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::Unassign { eni: eni_id(0), blocks: vec![Block::Ip(ip(3)), Block::Ip(ip(2))] });

    world.finish(id, failure(FailureClass::Throttled));

    assert_eq!(world.pool.stats().free, 3);
}

impl World {
    fn run_until_freeing(&mut self) -> StepId {
        self.run();
        self.pass(200 * SECOND);
        let steps = self.plan();
        assert!(matches!(steps[0].1, Step::FreeEni { .. }), "{steps:?}");
        steps[0].0
    }
}

#[test]
fn what_may_yet_go_back_to_ec2_is_given_to_nobody_until_a_later_look_shows_that_it_stayed() {
    let mut node = settings(1, 2);
    node.targets.warm_ip = 1;
    let mut world = World::new(node, vec![eni(0, &[1, 2])]);
    world.run();
    world.steps();
    world.pass(181 * SECOND);
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::Unassign { eni: eni_id(0), blocks: vec![Block::Ip(ip(2))] });
    world.finish(id, failure(FailureClass::AnswerLost));
    let look = |world: &mut World| {
        let (id, step) = world.plan().remove(0);
        assert_eq!(step, Step::ReadInventory);
        world.finish(id, Outcome::Inventory(vec![eni(0, &[1, 2])]));
    };
    look(&mut world);
    world.added("a");
    assert_eq!(world.pool.stats().free, 0);

    world.now = world.pool.next_wake(world.now).unwrap();
    world.pass(60 * SECOND);
    look(&mut world);

    assert_eq!(world.added("b"), address(2));
}

#[test]
fn it_is_told_why_addresses_that_are_too_many_stay() {
    let mut world =
        World::new(settings(3, 3), vec![eni(0, &[1, 2, 3]), eni(1, &[11, 12, 13]), eni(2, &[21, 22, 23])]);
    world.run();
    // One pod on each ENI: 6 free addresses, of which one ENI's 3 are wanted.
    for pod in 0..7 {
        world.added(&format!("pod-{pod}"));
    }
    for pod in [0, 1, 3, 4] {
        world.del(&format!("pod-{pod}"));
    }
    world.pass(400 * SECOND);
    assert_eq!(world.steps(), []);

    let report = world.pool.report(world.now);

    assert_eq!((report.wants.surplus, report.wants.surplus_goes_at), (3, None));
    let held_back = report.held_back.iter().map(|held| format!("{}: {}", held.what, held.because));
    assert_eq!(
        held_back.collect::<Vec<_>>(),
        ["give back 3 addresses: they go with a whole ENI, and none that may go is without pods"]
    );
}
