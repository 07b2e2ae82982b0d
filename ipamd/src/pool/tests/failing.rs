//! Steps that fail again and again: how long they rest, and what pods are told.

use std::time::Duration;

use vpc::Eni;

use super::super::failures::Kind;
use super::super::*;
use super::world::*;

/// A node that wants a second ENI and cannot have one.
fn growing(primary: &str) -> World {
    let first = Eni { id: primary.parse().unwrap(), ..eni(0, &[1]) };
    let mut world = World::new(settings(2, 1), vec![first]);
    world.added("a");
    world
}

/// Fails the next step and returns how many seconds it rests then.
fn rests(world: &mut World, class: FailureClass) -> u64 {
    let (id, step) = world.plan().remove(0);
    assert!(matches!(step, Step::AllocateEni { .. }), "{step}");
    world.finish(id, failure(class));
    let retry_at = world.pool.failures.retry_at(&Kind::AllocateEni).unwrap();
    // What the limit makes unclear is as it was.
    let before = Eni { id: world.pool.book.primary_eni().unwrap().clone(), ..eni(0, &[1]) };
    for (id, step) in world.plan() {
        assert_eq!(step, Step::ReadInventory);
        world.finish(id, Outcome::Inventory(vec![before.clone()]));
    }
    (retry_at - world.now).as_secs()
}

fn rests_of(primary: &str, class: FailureClass, times: usize) -> Vec<u64> {
    let mut world = growing(primary);
    let mut pauses = Vec::new();
    for _ in 0..times {
        let pause = rests(&mut world, class);
        pauses.push(pause);
        world.pass(Duration::from_secs(pause + 1));
    }
    pauses
}

#[test]
fn what_fails_again_and_again_in_the_same_way_is_left_alone_for_up_to_ten_minutes() {
    for class in [FailureClass::EniLimit, FailureClass::Refused, FailureClass::Other] {
        let pauses = rests_of("eni-0", class, 14);

        assert_eq!(pauses[..8], [1, 2, 4, 8, 16, 30, 30, 30], "{class:?}");
        for (pause, most) in pauses[8..].iter().zip([60, 120, 240, 480, 600, 600]) {
            assert!((most * 3 / 4..=most).contains(pause), "{class:?}: {pauses:?}");
        }
    }
    assert_eq!(rests_of("eni-0", FailureClass::Throttled, 12)[11], 30);
}

#[test]
fn nodes_that_failed_together_do_not_ask_together() {
    let last = |primary| rests_of(primary, FailureClass::EniLimit, 13)[12];
    let all: BTreeSet<_> = ["eni-0", "eni-a1", "eni-b2", "eni-c3"].map(last).into();

    assert!(all.len() > 2, "{all:?}");
    assert_eq!(last("eni-0"), last("eni-0"));
}

#[test]
fn a_pod_that_comes_ends_a_long_pause() {
    let mut world = growing("eni-0");
    for _ in 0..13 {
        let pause = rests(&mut world, FailureClass::EniLimit);
        world.pass(Duration::from_secs(pause + 1));
    }
    assert!(rests(&mut world, FailureClass::EniLimit) > 400);
    world.pass(40 * SECOND);
    assert!(!world.steps().iter().any(|step| matches!(step, Step::AllocateEni { .. })));

    let answer = world.add("b");

    assert!(matches!(answer, Answer::Parked(_)), "{answer:?}");
    assert_eq!(rests(&mut world, FailureClass::EniLimit), 30);
}

#[test]
fn an_eni_that_went_ends_a_long_pause() {
    let mut node = settings(3, 1);
    node.targets.warm_eni = 2;
    let mut world = World::new(node, vec![eni(0, &[1]), eni(1, &[11])]);
    for (id, step) in world.plan() {
        if matches!(step, Step::SetUpEni { .. }) {
            world.finish(id, Outcome::EniSetUp);
        } else {
            world.finish(id, failure(FailureClass::Refused));
        }
    }
    world.added("a");
    for _ in 0..13 {
        world.pass(601 * SECOND);
        for (id, step) in world.plan() {
            assert!(matches!(step, Step::AllocateEni { .. }), "{step}");
            world.finish(id, failure(FailureClass::Refused));
        }
    }
    world.pass(40 * SECOND);
    assert!(world.steps().is_empty());

    world.pool.observe(vec![eni(0, &[1])], world.now);

    assert!(matches!(world.steps()[..], [Step::AllocateEni { .. }, ..]));
}

/// What a pod is told in the end that waits for an ENI.
fn told(class: FailureClass) -> Refusal {
    let mut world = growing("eni-0");
    assert!(matches!(world.add("b"), Answer::Parked(_)));
    rests(&mut world, class);
    world.pass(21 * SECOND);
    world.pool.settle(world.now).remove(0).1.unwrap_err()
}

#[test]
fn a_request_that_ec2_refuses_is_told_with_what_an_operator_can_do() {
    let refusal = told(FailureClass::Refused);

    assert_eq!(refusal.reason, Reason::Ec2Refuses);
    assert!(refusal.message.contains("security group of the primary ENI"), "{refusal}");
    assert!(!refusal.message.contains("free addresses in the subnet"), "{refusal}");
}

#[test]
fn a_node_that_ec2_allows_fewer_enis_is_full() {
    let refusal = told(FailureClass::EniLimit);

    assert_eq!(refusal.reason, Reason::NodeFull);
    assert!(refusal.message.contains("EC2 allows this instance fewer ENIs"), "{refusal}");
    assert!(refusal.message.contains("MAX_ENI"), "{refusal}");
}
