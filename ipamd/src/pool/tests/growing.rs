//! How many addresses the pool wants, and how it gets there.

use super::super::*;
use super::world::*;

/// How many addresses each ENI holds once `pods` pods came.
fn settled(settings: Settings, pods: usize) -> Vec<usize> {
    World::grown(settings, pods).layout()
}

fn counting(mut settings: Settings, warm_ip: u32, minimum_ip: u32) -> Settings {
    settings.targets = WarmTargets { warm_ip, minimum_ip, ..settings.targets };
    settings
}

fn warm_enis(mut settings: Settings, warm_eni: u32) -> Settings {
    settings.targets.warm_eni = warm_eni;
    settings
}

#[test]
fn several_or_no_whole_enis_are_kept_warm_on_request() {
    assert_eq!(settled(warm_enis(settings(4, 5), 2), 0), [5, 5]);
    assert_eq!(settled(warm_enis(settings(4, 5), 2), 1), [5, 5, 5]);
    assert_eq!(settled(warm_enis(settings(3, 3), 0), 0), [3]);
    assert_eq!(settled(warm_enis(settings(3, 3), 0), 3), [3, 3]);
}

#[test]
fn no_warm_address_is_kept_beyond_the_pods_that_the_kubelet_may_start() {
    let mut capped = settings(3, 3);
    capped.max_pods = 3;

    assert_eq!(settled(capped, 3), [3]);
}

#[test]
fn a_cooling_address_does_not_count_as_free() {
    let mut world = World::bare(settings(3, 3));
    world.run();
    world.added("a");
    world.run();
    world.added("b");
    world.del("b");

    // 3 + 3 held, one assigned, one cooling: 4 free is still an ENI's worth.
    assert!(world.run().is_empty());
    for pod in ["c", "d"] {
        world.added(pod);
        world.del(pod);
    }

    assert!(world.run().iter().any(|step| matches!(step, Step::AllocateEni { .. })));
}

#[test]
fn a_burst_of_pods_is_planned_for_at_once_and_on_slots_of_their_own() {
    let mut world = World::bare(settings(4, 9));
    for pod in 0..20 {
        let _ = world.add(&format!("pod-{pod}"));
    }

    let steps = world.steps();

    assert_eq!(
        steps,
        [
            Step::Assign { eni: eni_id(0), blocks: Blocks::Ips(9) },
            allocate(1, Blocks::Ips(9)),
            allocate(2, Blocks::Ips(9)),
            allocate(3, Blocks::Ips(9)),
        ]
    );
    assert!(world.steps().is_empty(), "what is under way is counted");
}

#[test]
fn prefixes_on_an_eni_take_slots_from_single_addresses() {
    let mut primary = eni(0, &[1]);
    primary.prefixes = vec!["10.0.2.0/28".parse().unwrap(), "10.0.2.16/28".parse().unwrap()];
    let mut world = World::new(settings(1, 9), vec![primary]);

    assert_eq!(world.steps(), [Step::Assign { eni: eni_id(0), blocks: Blocks::Ips(6) }]);
}

#[test]
fn a_subnet_that_is_nearly_empty_is_asked_for_less_and_less() {
    let mut world = World::bare(settings(1, 9));
    let mut asked = Vec::new();
    for _ in 0..4 {
        let (id, step) = world.plan().remove(0);
        let Step::Assign { blocks, .. } = step else { panic!("{step:?}") };
        asked.push(blocks.count());
        world.finish(id, failure(FailureClass::SubnetExhausted));
    }

    assert_eq!(asked, [9, 4, 2, 1]);
    assert!(world.steps().is_empty(), "then it is left alone for a while");
    world.pass(31 * SECOND);
    assert!(matches!(world.steps()[..], [Step::Assign { .. }]));
}

#[test]
fn a_failed_step_is_tried_again_after_a_pause_that_grows() {
    let mut world = World::new(settings(2, 1), vec![eni(0, &[1])]);
    world.added("a");
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let (id, step) = world.plan().remove(0);
        assert!(matches!(step, Step::AllocateEni { .. }));
        world.finish(id, failure(FailureClass::Throttled));
        let wake = world.pool.next_wake(world.now).unwrap();
        pauses.push((wake - world.now).as_secs());
        world.now = wake;
    }

    assert_eq!(pauses, [1, 2, 4, 8]);
}

#[test]
fn when_an_answer_is_lost_ec2_is_read_before_anything_else_is_asked() {
    let mut world = World::bare(settings(2, 3));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::AnswerLost));

    let steps = world.plan();
    assert_eq!(steps[0].1, Step::ReadInventory);
    assert_eq!(steps.len(), 1);
    world.finish(steps[0].0, Outcome::Inventory(vec![eni(0, &[1, 2, 3])]));

    assert!(world.run().is_empty(), "the lost answer was a yes, so nothing is missing");
    assert_eq!(world.layout(), [3]);
}

#[test]
fn an_eni_that_was_attached_behind_a_running_step_is_not_counted_twice() {
    let mut world = World::new(settings(3, 2), vec![eni(0, &[1, 2])]);
    world.added("a");
    let steps = world.plan();
    let (allocate, _) = &steps[0];

    world.pool.observe(vec![eni(0, &[1, 2]), eni(1, &[11, 12])], world.now);
    assert_eq!(world.pool.stats().enis, 1);
    world.finish(*allocate, Outcome::EniAllocated(eni(1, &[11, 12])));

    assert_eq!(world.pool.stats().enis, 2);
}

#[test]
fn addresses_of_a_new_eni_serve_pods_only_once_the_host_has_set_it_up() {
    let mut world = World::new(settings(2, 1), vec![eni(0, &[1])]);
    world.added("a");
    assert!(matches!(world.add("b"), Answer::Parked(_)));
    let (id, _) = world.plan().remove(0);
    world.finish(id, Outcome::EniAllocated(eni(1, &[11])));
    assert!(world.pool.settle(world.now).is_empty());

    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::SetUpEni { eni: eni_id(1) });
    world.finish(id, Outcome::EniSetUp);

    assert_eq!(world.pool.settle(world.now)[0].1.as_ref().unwrap().address, address(11));
}

#[test]
fn a_pod_that_comes_while_an_eni_is_made_waits_for_its_room_and_not_for_another_eni() {
    let mut world = World::new(counting(settings(3, 3), 1, 0), vec![eni(0, &[1, 2, 3])]);
    for pod in ["a", "b", "c"] {
        world.added(pod);
    }
    assert_eq!(world.steps(), [allocate(1, Blocks::Ips(1))]);

    assert!(matches!(world.add("d"), Answer::Parked(_)));

    assert!(world.steps().is_empty());
}

#[test]
fn pods_are_not_refused_while_enis_under_way_will_have_room_for_them() {
    let mut world = World::new(counting(settings(2, 3), 1, 0), vec![eni(0, &[1, 2, 3])]);
    for pod in ["a", "b", "c"] {
        world.added(pod);
    }
    assert_eq!(world.steps(), [allocate(1, Blocks::Ips(1))]);

    for pod in ["d", "e", "f"] {
        assert!(matches!(world.add(pod), Answer::Parked(_)), "{pod}");
    }

    assert!(matches!(world.add("too-many"), Answer::Refused(_)));
}
