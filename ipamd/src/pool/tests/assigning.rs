//! Which address a pod gets, and what becomes of it.

use super::super::*;
use super::world::*;

#[test]
fn a_repeated_add_gets_the_address_of_the_first() {
    let mut world = World::new(settings(3, 9), vec![eni(0, &[1, 2])]);
    let first = world.added("a");

    let Answer::Assigned(again) = world.add("a") else { panic!() };

    assert_eq!((again.address, again.is_new), (first, false));
    assert_eq!(world.pool.stats().assigned, 1);
}

#[test]
fn pods_fill_the_eni_that_has_most_pods_so_that_others_empty() {
    let mut world = World::new(settings(2, 3), vec![eni(0, &[1, 2, 3]), eni(1, &[11, 12, 13])]);
    world.run();
    for pod in ["a", "b", "c", "d", "e"] {
        world.added(pod);
    }
    for pod in ["a", "b"] {
        world.del(pod);
    }
    world.pass(31 * SECOND);

    let next = world.added("f");

    assert_eq!(next, address(13), "the secondary ENI has two pods, the primary one");
}

#[test]
fn an_address_rests_for_its_cooldown_and_the_longest_rested_goes_first() {
    let mut world = World::new(settings(1, 9), vec![eni(0, &[1, 2, 3])]);
    for pod in ["a", "b", "c"] {
        world.added(pod);
    }
    let second = world.del("b");
    world.pass(5 * SECOND);
    let first = world.del("a");
    world.pass(24 * SECOND);
    assert!(matches!(world.add("d"), Answer::Parked(_)), "nothing has rested long enough");
    world.pass(6 * SECOND);

    let answers = world.pool.settle(world.now);

    assert_eq!(answers[0].1.as_ref().unwrap().address, second);
    assert_eq!(world.added("e"), first);
}

#[test]
fn a_fresh_address_goes_before_one_that_a_pod_had() {
    let mut world = World::new(settings(1, 9), vec![eni(0, &[1, 2])]);
    world.added("a");
    world.del("a");
    world.pass(60 * SECOND);

    assert_eq!(world.added("b"), address(2));
}

#[test]
fn an_unknown_pod_is_told_so_in_the_words_that_every_plugin_knows() {
    let mut world = World::bare(settings(1, 9));

    let error = world.pool.release(&key("nobody"), world.now).unwrap_err();

    assert_eq!(error.to_string(), "datastore: unknown pod");
}

#[test]
fn an_assignment_that_could_not_be_recorded_is_as_if_it_had_never_been() {
    let mut world = World::new(settings(1, 9), vec![eni(0, &[1])]);
    world.added("a");

    world.pool.undo_request(&key("a"));

    assert!(world.pool.allocations().is_empty());
    assert_eq!(world.added("b"), address(1));
}

#[test]
fn a_release_that_could_not_be_recorded_leaves_the_address_with_its_pod() {
    let mut world = World::new(settings(1, 9), vec![eni(0, &[1])]);
    world.added("a");
    let released = world.pool.release(&key("a"), world.now).unwrap();

    world.pool.undo_release(released);

    assert_eq!(world.added("a"), address(1));
    assert_eq!(world.pool.stats().cooling, 0);
}

#[test]
fn an_eni_that_is_not_ours_serves_no_pod_but_keeps_its_place() {
    let mut foreign = eni(1, &[11, 12]);
    foreign.is_managed = false;
    let mut world = World::new(settings(3, 9), vec![eni(0, &[]), foreign]);

    assert!(matches!(world.add("a"), Answer::Parked(_)));
    let steps = world.steps();

    assert!(!steps.iter().any(|step| step.eni() == Some(&eni_id(1))), "{steps:?}");
    assert!(steps.iter().all(|step| !matches!(step, Step::AllocateEni { slot, .. } if slot.device.0 == 1)));
}
