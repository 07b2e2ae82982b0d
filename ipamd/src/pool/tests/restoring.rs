//! The state file, EC2 and the kernel held against each other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vpc::{PodName, RouteTable, host_veth};

use super::super::*;
use super::world::*;

fn allocation(pod: &str, last: u8) -> Allocation {
    Allocation {
        key: key(pod),
        pod: PodName::new("default", pod),
        address: address(last),
        assigned_unix_ns: i64::from(last),
    }
}

fn journal(allocations: Vec<Allocation>) -> Journal {
    // An hour after the pods came, so that no ADD of theirs can be under way.
    Journal { allocations, read_unix_ns: 3_600_000_000_000, ..Journal::default() }
}

/// A kernel in which these addresses are routed and ruled, each through its pod's link.
fn kernel(pods: &[(&str, u8)]) -> KernelView {
    let addresses: BTreeSet<IpAddr> = pods.iter().map(|(_, last)| address(*last)).collect();
    KernelView {
        routed: addresses.clone(),
        ruled: addresses,
        routed_elsewhere: BTreeSet::new(),
        links: pods.iter().map(|(pod, _)| host_veth("eni", &PodName::new("default", pod), 0)).collect(),
    }
}

#[test]
fn a_pod_that_the_kernel_knows_keeps_its_address() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1, 2, 3])]);

    let notes = world.pool.restore(journal(vec![allocation("a", 2)]), &kernel(&[("a", 2)]), world.now);

    assert_eq!(notes, []);
    assert_eq!(world.added("a"), address(2));
}

#[test]
fn a_pod_whose_link_alone_is_left_keeps_its_address() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);
    let links = kernel(&[("a", 1)]).links;

    world.pool.restore(
        journal(vec![allocation("a", 1)]),
        &KernelView { links, ..KernelView::default() },
        world.now,
    );

    assert_eq!(world.added("a"), address(1));
}

#[test]
fn a_pod_that_went_meanwhile_frees_its_address_into_a_cooldown() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);

    let notes = world.pool.restore(journal(vec![allocation("a", 1)]), &KernelView::default(), world.now);

    assert!(matches!(notes[0], RestoreNote::Freed { .. }));
    assert_eq!(world.pool.cooling(), [(address(1), world.now + 30 * SECOND)]);
}

#[test]
fn an_address_that_ec2_does_not_show_stays_pinned_until_its_pod_goes() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);

    let notes = world.pool.restore(journal(vec![allocation("a", 77)]), &kernel(&[("a", 77)]), world.now);

    assert!(matches!(notes[0], RestoreNote::Pinned { .. }));
    assert_eq!(world.pool.allocations(), [allocation("a", 77)]);
    let released = world.pool.release(&key("a"), world.now).unwrap();
    assert_eq!((released.allocation.address, released.table), (address(77), RouteTable(0)));
    assert!(world.pool.allocations().is_empty());
}

#[test]
fn a_pinned_address_moves_to_its_eni_when_ec2_shows_it() {
    let mut world = World::new(settings(2, 3), vec![eni(0, &[1])]);
    world.pool.restore(journal(vec![allocation("a", 11)]), &kernel(&[("a", 11)]), world.now);
    assert!(matches!(world.add("a"), Answer::Parked(_)), "its table is not known yet");

    world.pool.observe(vec![eni(0, &[1]), eni(1, &[11, 12])], world.now);
    let answers = world.pool.settle(world.now);

    let assignment = answers[0].1.as_ref().unwrap();
    assert_eq!(
        (assignment.address, assignment.table, assignment.is_new),
        (address(11), RouteTable(2), false)
    );
}

#[test]
fn an_address_that_only_the_kernel_knows_is_held_back_until_it_no_longer_does() {
    let mut world = World::new(settings(1, 1), vec![eni(0, &[1])]);

    world.pool.restore(Journal::default(), &kernel(&[("stranger", 1)]), world.now);
    assert!(matches!(world.add("a"), Answer::Refused(Refusal { reason: Reason::Quarantined, .. })));

    let notes = world.pool.witness(&KernelView::default(), world.now);
    assert_eq!(notes, [RestoreNote::Cleared { address: address(1) }]);
    world.pass(31 * SECOND);
    assert_eq!(world.added("a"), address(1));
}

#[test]
fn a_rule_without_a_link_is_named_for_removal() {
    let mut world = World::new(settings(1, 1), vec![eni(0, &[1])]);
    let ruled = KernelView { ruled: [address(1)].into(), ..KernelView::default() };

    let notes = world.pool.restore(Journal::default(), &ruled, world.now);

    assert_eq!(notes, [RestoreNote::StaleRule { address: address(1) }]);
    assert_eq!(world.pool.stats().quarantined, 1);
}

#[test]
fn of_two_records_of_one_address_the_one_with_a_link_counts() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);
    let mut impostor = allocation("b", 1);
    impostor.assigned_unix_ns = 99;

    let notes =
        world.pool.restore(journal(vec![impostor, allocation("a", 1)]), &kernel(&[("a", 1)]), world.now);

    assert_eq!(notes, [RestoreNote::Contested { address: address(1), key: key("b") }]);
    assert_eq!(world.pool.allocations(), [allocation("a", 1)]);
}

#[test]
fn of_two_addresses_of_one_pod_the_other_is_held_back() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1, 2])]);
    let mut older = allocation("a", 1);
    older.assigned_unix_ns = 0;

    world.pool.restore(journal(vec![older, allocation("a", 2)]), &kernel(&[("a", 1), ("a", 2)]), world.now);

    assert_eq!(world.added("a"), address(2));
    assert_eq!(world.pool.quarantined(), [(address(1), QuarantineReason::ContestedRecord)]);
}

#[test]
fn a_cooldown_goes_on_where_it_was() {
    let mut world = World::new(settings(1, 1), vec![eni(0, &[1])]);
    let until = world.now + 25 * SECOND;
    let journal = Journal { cooling: vec![(address(1), until)], ..Journal::default() };

    world.pool.restore(journal, &KernelView::default(), world.now);

    assert!(matches!(world.add("a"), Answer::Refused(_)), "its deadline is before the end of the cooldown");
    world.pass(25 * SECOND);
    assert_eq!(world.added("a"), address(1));
}

#[test]
fn an_eni_that_vanishes_takes_no_pods_address_with_it() {
    let mut world = World::new(settings(2, 2), vec![eni(0, &[]), eni(1, &[11, 12])]);
    world.run();
    world.added("a");
    world.added("b");
    let held = world.pool.allocations();

    world.pool.observe(vec![eni(0, &[])], world.now);

    assert!(held.iter().all(|allocation| world.pool.allocations().contains(allocation)));
}

#[test]
fn an_address_out_of_a_prefix_stays_with_its_pod_after_prefixes_were_switched_off() {
    let mut primary = eni(0, &[1]);
    primary.prefixes = vec!["10.0.0.16/28".parse().unwrap()];
    let mut world = World::new(settings(1, 9), vec![primary]);

    world.pool.restore(journal(vec![allocation("a", 17)]), &kernel(&[("a", 17)]), world.now);

    assert_eq!(world.added("a"), address(17));
    assert_eq!(world.added("b"), address(1), "other pods get single addresses");
}

#[test]
fn a_pod_whose_add_may_be_under_way_keeps_its_address_until_that_is_over() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);
    let just_now = Journal { read_unix_ns: 5_000_000_000, ..journal(vec![allocation("a", 1)]) };

    let notes = world.pool.restore(just_now, &KernelView::default(), world.now);

    assert!(matches!(notes[0], RestoreNote::InFlight { .. }));
    world.pass(29 * SECOND);
    assert_eq!(world.pool.witness(&KernelView::default(), world.now), []);
    world.pass(2 * SECOND);
    let notes = world.pool.witness(&KernelView::default(), world.now);
    assert!(matches!(notes[0], RestoreNote::Freed { .. }));
    assert_eq!(world.pool.cooling(), [(address(1), world.now + 30 * SECOND)]);
}

#[test]
fn a_pod_that_repeats_its_add_after_a_restart_gets_the_address_that_was_recorded() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1, 2])]);
    let just_now = Journal { read_unix_ns: 5_000_000_000, ..journal(vec![allocation("a", 2)]) };
    world.pool.restore(just_now, &KernelView::default(), world.now);

    assert_eq!(world.added("a"), address(2));

    world.pass(34 * SECOND);
    world.pool.witness(&KernelView::default(), world.now);
    assert_eq!(world.added("a"), address(2), "its new ADD may be under way as long");
}

#[test]
fn a_wall_clock_that_was_set_back_frees_nothing_early() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);
    let early = Journal { read_unix_ns: -7, ..journal(vec![allocation("a", 1)]) };

    let notes = world.pool.restore(early, &KernelView::default(), world.now);

    assert!(matches!(notes[0], RestoreNote::InFlight { .. }));
}

#[test]
fn an_address_that_left_the_node_while_it_rested_rests_on_when_it_comes_back() {
    let mut world = World::new(settings(2, 1), vec![eni(0, &[1]), eni(1, &[11])]);
    world.run();
    world.added("a");
    world.added("b");
    world.del("b");
    world.pool.observe(vec![eni(0, &[1])], world.now);
    world.pass(10 * SECOND);

    world.pool.observe(vec![eni(0, &[1]), eni(1, &[11])], world.now);

    assert_eq!(world.pool.cooling(), [(address(11), world.now + 20 * SECOND)]);
}

#[test]
fn an_address_that_comes_to_the_node_while_the_kernel_uses_it_is_held_back() {
    let mut world = World::new(settings(2, 1), vec![eni(0, &[1])]);
    world.pool.restore(Journal::default(), &kernel(&[("stranger", 11)]), world.now);

    world.pool.observe(vec![eni(0, &[1]), eni(1, &[11])], world.now);

    assert_eq!(world.pool.quarantined(), [(address(11), QuarantineReason::KernelOnly)]);
}

#[test]
fn an_eni_that_only_instance_metadata_names_serves_its_pods_and_nobody_else() {
    let mut world = World::new(settings(2, 2), Vec::new());
    world.pool.observe_hints(vec![eni(0, &[1, 2])], world.now);
    world.pool.restore(journal(vec![allocation("a", 1)]), &kernel(&[("a", 1)]), world.now);

    assert_eq!(world.added("a"), address(1));
    assert!(matches!(world.add("b"), Answer::Parked(_)));
    assert_eq!(world.steps(), [Step::ReadInventory]);
    assert!(world.pool.settle(world.now).is_empty());

    world.pool.observe(vec![eni(0, &[1, 2])], world.now);

    assert_eq!(world.pool.settle(world.now).len(), 1);
}

#[test]
fn a_pod_of_which_the_kernel_shows_nothing_for_longer_than_an_add_takes_has_gone() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);
    world.added("a");
    assert_eq!(world.pool.witness(&KernelView::default(), world.now), [], "its ADD is under way");
    world.pass(30 * SECOND);
    assert_eq!(world.pool.witness(&KernelView::default(), world.now), []);
    world.pass(30 * SECOND);

    let notes = world.pool.witness(&KernelView::default(), world.now);

    assert!(matches!(notes[..], [RestoreNote::Freed { .. }]));
    assert_eq!(world.pool.cooling(), [(address(1), world.now + 30 * SECOND)]);
}

#[test]
fn a_pod_that_the_kernel_shows_again_is_no_longer_in_doubt() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1])]);
    world.added("a");
    for shown in [KernelView::default(), kernel(&[("a", 1)]), KernelView::default()] {
        world.pool.witness(&shown, world.now);
        world.pass(30 * SECOND);
    }

    assert_eq!(world.pool.allocations().len(), 1);
}

#[test]
fn the_link_of_a_pods_next_sandbox_does_not_speak_for_its_last_one() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1, 2])]);
    let mut next = allocation("a", 2);
    next.key = key("a-again");
    let only_next = KernelView { routed: [address(2)].into(), ..kernel(&[("a", 2)]) };

    let notes = world.pool.restore(journal(vec![allocation("a", 1), next]), &only_next, world.now);

    assert!(matches!(notes[..], [RestoreNote::Freed { address: gone, .. }] if gone == address(1)));
}

#[test]
fn an_address_that_ec2_brings_on_another_eni_moves_there_with_its_pod() {
    let mut world = World::new(settings(3, 2), vec![eni(0, &[]), eni(1, &[11, 12])]);
    world.run();
    assert_eq!(world.added("a"), address(11));

    // Somebody took it from its ENI; EC2 gives it to a new one.
    world.pool.observe(vec![eni(0, &[]), eni(1, &[11, 12]), eni(2, &[11])], world.now);

    let Answer::Assigned(again) = world.add("a") else { panic!() };
    assert_eq!((again.address, again.eni), (address(11), Some(eni_id(2))));
    let held: Vec<_> = world.pool.report(world.now).enis.iter().map(|eni| eni.addresses.len()).collect();
    assert_eq!(held, [0, 1, 1]);
}

#[test]
fn a_link_speaks_for_the_address_that_the_kernel_uses_whatever_the_wall_clock_says_of_its_age() {
    let mut world = World::new(settings(1, 3), vec![eni(0, &[1, 2])]);
    let sandbox = |name: &str, last| Allocation { key: key(name), ..allocation("a", last) };

    // The one with the later time came first: the clock was set back in between.
    let notes = world.pool.restore(
        journal(vec![sandbox("new", 1), sandbox("old", 2)]),
        &kernel(&[("a", 1)]),
        world.now,
    );

    assert!(
        matches!(notes[..], [RestoreNote::Freed { address: freed, .. }] if freed == address(2)),
        "{notes:?}"
    );
}

#[test]
fn after_a_damaged_state_file_nothing_is_given_out_before_an_add_under_way_shows_in_the_kernel() {
    let mut world = World::new(settings(1, 2), vec![eni(0, &[1, 2])]);
    let damaged = Journal { is_incomplete: true, ..journal(Vec::new()) };
    world.pool.restore(damaged, &KernelView::default(), world.now);
    assert_eq!(world.pool.stats().free, 0);

    for _ in 0..3 {
        world.pass(30 * SECOND);
        world.pool.witness(&kernel(&[("unknown", 1)]), world.now);
    }
    world.pass(5 * SECOND);

    assert_eq!(world.added("b"), address(2));
    assert_eq!(world.pool.quarantined(), [(address(1), QuarantineReason::KernelOnly)]);
}

#[test]
fn an_address_that_the_kernel_uses_when_its_rest_is_over_is_held_back() {
    let mut world = World::new(settings(1, 1), vec![eni(0, &[1])]);
    world.added("a");
    world.pool.witness(&kernel(&[("a", 1)]), world.now);
    world.del("a");
    world.pass(10 * SECOND);
    world.pool.witness(&kernel(&[("a", 1)]), world.now);
    world.pass(20 * SECOND);
    assert_eq!(world.pool.settle(world.now), []);
    assert_eq!(world.pool.stats().quarantined, 1);

    world.pool.witness(&KernelView::default(), world.now);

    assert_eq!((world.pool.stats().quarantined, world.pool.stats().cooling), (0, 1));
}

#[test]
fn an_address_that_another_hand_uses_is_held_back_even_if_it_was_just_given_back() {
    let mut world = World::new(settings(1, 1), vec![eni(0, &[1])]);
    world.added("a");
    world.del("a");
    world.pass(SECOND);
    let of_another = BTreeSet::from([address(1)]);
    let foreign =
        KernelView { routed: of_another.clone(), routed_elsewhere: of_another, ..KernelView::default() };
    world.pool.witness(&foreign, world.now);

    world.pass(30 * SECOND);

    assert_eq!(world.pool.settle(world.now), []);
    assert_eq!(world.pool.quarantined(), [(address(1), QuarantineReason::KernelOnly)]);
}
