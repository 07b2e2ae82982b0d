//! Pods that wait, and what they are told.

use super::super::*;
use super::world::*;

fn refused(answer: Answer) -> Refusal {
    match answer {
        Answer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// A node whose ENIs are all there and all taken.
fn full() -> World {
    let mut world = World::new(settings(2, 2), vec![eni(0, &[1, 2]), eni(1, &[11, 12])]);
    world.run();
    for pod in ["a", "b", "c", "d"] {
        world.added(pod);
    }
    world
}

#[test]
fn a_full_node_refuses_at_once_with_the_figures_and_the_limit() {
    let mut world = full();

    let refusal = refused(world.add("e"));

    assert_eq!(refusal.reason, Reason::NodeFull);
    assert_eq!(
        refusal.message,
        "no free address: 4 assigned, 0 cooling on 2 ENIs, and m5.large takes 2 ENIs with 2 addresses each, \
         4 addresses in all; delete pods from this node or use a larger instance type, and compare the kubelet's max pods \
         with `ipamd max-pods`"
    );
}

#[test]
fn a_full_node_waits_while_an_address_cools_and_gives_it_out() {
    let mut world = full();
    world.pass(15 * SECOND);
    let freed = world.del("b");
    world.pass(15 * SECOND);
    assert!(matches!(world.add("e"), Answer::Parked(_)));
    assert!(world.pool.settle(world.now).is_empty());

    world.now = world.pool.next_wake(world.now).unwrap();
    let answers = world.pool.settle(world.now);

    assert_eq!(answers[0].1.as_ref().unwrap().address, freed);
}

#[test]
fn a_pod_whose_time_ends_before_any_cooldown_does_is_told_when_to_come_back() {
    let mut world = full();
    world.del("b");

    let refusal = refused(world.add("e"));

    assert_eq!(refusal.reason, Reason::CoolingDown);
    assert_eq!(refusal.retry_after, Some(30 * SECOND));
}

#[test]
fn a_caller_that_allows_it_waits_out_a_cooldown_longer_than_any_other_wait() {
    let mut world = full();
    let freed = world.del("b");
    assert!(matches!(world.add_patiently("e", 34 * SECOND), Answer::Parked(_)));
    world.pass(20 * SECOND);
    assert!(world.pool.settle(world.now).is_empty(), "twenty seconds are not the end");
    assert_eq!(world.pool.next_wake(world.now), Some(world.now + 10 * SECOND));

    world.pass(10 * SECOND);
    let answers = world.pool.settle(world.now);

    assert_eq!(answers[0].1.as_ref().unwrap().address, freed);
}

#[test]
fn more_pods_than_the_node_can_hold_are_refused_while_the_others_wait() {
    let mut world = World::bare(settings(2, 2));

    let parked = (0..4).filter(|pod| matches!(world.add(&format!("pod-{pod}")), Answer::Parked(_))).count();
    let refusal = refused(world.add("too-many"));

    assert_eq!(parked, 4);
    assert_eq!(refusal.reason, Reason::NodeFull);
}

#[test]
fn waiting_pods_are_served_first_come_first_served() {
    let mut world = World::bare(settings(1, 2));
    let Answer::Parked(first) = world.add("a") else { panic!() };
    let Answer::Parked(second) = world.add("b") else { panic!() };
    let (id, _) = world.plan().remove(0);
    let ips = world.fresh(Blocks::Ips(2));
    world.finish(id, Outcome::Assigned(ips));

    let answered: Vec<_> = world.pool.settle(world.now).into_iter().map(|(waiter, _)| waiter).collect();

    assert_eq!(answered, [first, second]);
}

#[test]
fn a_pod_that_arrives_later_does_not_overtake_one_that_waits() {
    let mut world = World::bare(settings(1, 2));
    let Answer::Parked(first) = world.add("a") else { panic!() };
    let (id, _) = world.plan().remove(0);
    world.finish(id, Outcome::Assigned(vec![Block::Ip(ip(1))]));

    let late = world.add("b");

    assert!(matches!(late, Answer::Parked(_)), "{late:?}");
    assert_eq!(world.pool.settle(world.now)[0].0, first);
}

#[test]
fn denied_permission_is_told_at_once_because_waiting_cannot_help() {
    let mut world = World::bare(settings(1, 2));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::Denied));

    let refusal = refused(world.add("a"));

    assert_eq!(refusal.reason, Reason::PermissionDenied);
    assert!(refusal.message.starts_with("Denied; 0 assigned"), "{}", refusal.message);
}

#[test]
fn a_throttled_node_lets_pods_wait_and_then_says_that_it_is_throttled() {
    let mut world = World::bare(settings(1, 2));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::Throttled));
    assert!(matches!(world.add("a"), Answer::Parked(_)));

    world.pass(20 * SECOND);
    let answers = world.pool.settle(world.now);

    assert_eq!(answers[0].1.as_ref().unwrap_err().reason, Reason::Throttled);
}

#[test]
fn a_pod_whose_time_is_up_hears_what_it_was_waiting_for() {
    let mut world = World::bare(settings(1, 2));
    assert!(matches!(world.add("a"), Answer::Parked(_)));
    world.plan();

    world.pass(20 * SECOND);
    let answers = world.pool.settle(world.now);
    let refusal = answers[0].1.as_ref().unwrap_err();

    assert_eq!(refusal.reason, Reason::PoolFilling);
    assert!(refusal.message.contains("assign 2 secondary IPs to eni-0"), "{}", refusal.message);
}

#[test]
fn a_pod_that_went_away_takes_no_address() {
    let mut world = World::bare(settings(1, 2));
    let Answer::Parked(waiter) = world.add("a") else { panic!() };
    world.pool.abandon(waiter);
    world.run();

    assert!(world.pool.settle(world.now).is_empty());
    assert_eq!(world.pool.stats().assigned, 0);
}

#[test]
fn without_the_right_to_provision_the_pool_says_so() {
    let mut fixed = settings(2, 2);
    fixed.may_provision = false;
    let mut world = World::new(fixed, vec![eni(0, &[1])]);
    world.added("a");

    assert_eq!(refused(world.add("b")).reason, Reason::ProvisioningOff);
    assert!(world.steps().is_empty());
}

#[test]
fn a_delete_ends_the_wait_of_its_pod() {
    let mut world = World::bare(settings(1, 2));
    assert!(matches!(world.add("a"), Answer::Parked(_)));

    assert_eq!(world.pool.release(&key("a"), world.now), Err(UnknownPod));

    world.run();
    assert_eq!(world.pool.stats().assigned, 0);
}

#[test]
fn a_pod_whose_add_is_repeated_while_it_waits_takes_one_place() {
    let mut world = World::bare(settings(1, 2));
    for pod in ["a", "b", "b"] {
        assert!(matches!(world.add(pod), Answer::Parked(_)), "{pod}");
    }

    assert!(world.pool.settle(world.now).is_empty(), "there will be an address for each of the two");
}

#[test]
fn a_full_node_says_so_whatever_ec2_refused_before() {
    let mut world = World::new(settings(2, 1), vec![eni(0, &[1])]);
    world.added("a");
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::SubnetExhausted));
    world.pool.observe(vec![eni(0, &[1]), eni(1, &[11])], world.now);
    world.run();
    world.added("b");

    assert_eq!(refused(world.add("c")).reason, Reason::NodeFull);
}

#[test]
fn a_pod_waits_while_an_eni_leaves_whose_place_another_can_take() {
    let mut world = World::new(counting(settings(2, 1)), vec![eni(0, &[1]), eni(1, &[11])]);
    world.run();
    world.pass(400 * SECOND);
    assert!(world.steps().contains(&Step::FreeEni { eni: eni_id(1) }) || !world.pool.running().is_empty());
    world.added("a");

    assert!(matches!(world.add("b"), Answer::Parked(_)));
}

fn counting(mut settings: Settings) -> Settings {
    settings.targets.minimum_ip = 1;
    settings
}

#[test]
fn an_address_counts_as_assigned_from_when_the_pod_got_it_not_from_when_it_asked() {
    let mut world = full();
    world.del("b");
    assert!(matches!(world.add_patiently("e", 34 * SECOND), Answer::Parked(_)));

    world.pass(30 * SECOND);
    world.pool.settle(world.now);

    let held = world.pool.allocations().into_iter().find(|held| held.key == key("e")).unwrap();
    assert_eq!(held.assigned_unix_ns, 1 + 30_000_000_000);
}

#[test]
fn a_pod_that_comes_when_a_denied_step_is_due_again_has_it_tried() {
    let mut world = World::bare(settings(1, 2));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::Denied));
    assert!(matches!(world.add("a"), Answer::Refused(_)));
    world.pass(10 * SECOND);

    assert!(matches!(world.add("a"), Answer::Parked(_)));
    assert_eq!(world.steps(), [Step::Assign { eni: eni_id(0), blocks: Blocks::Ips(2) }]);
}
