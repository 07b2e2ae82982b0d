//! Which subnets ENIs go to, which may serve pods, and what else keeps an ENI from it.

use super::super::*;
use super::world::*;

fn discovering(enis: u32, slots: u32) -> Settings {
    Settings { reads_subnets: true, ..settings(enis, slots) }
}

fn excluded(id: &str) -> Subnet {
    Subnet { takes_enis: false, is_excluded: true, ..subnet(id, 100) }
}

fn in_subnet(mut eni: vpc::Eni, id: &str) -> vpc::Eni {
    eni.subnet = id.parse().unwrap();
    eni
}

fn subnets_of_new_enis(steps: &[Step]) -> Vec<String> {
    let subnets = steps.iter().filter_map(|step| match step {
        Step::AllocateEni { subnet, .. } => Some(subnet.to_string()),
        _ => None,
    });
    subnets.collect()
}

#[test]
fn subnets_are_read_anew_before_an_eni_is_made_and_once_for_a_burst() {
    let mut world = World::new(discovering(4, 1), vec![eni(0, &[1])]);
    world.pool.subnets_seen(vec![subnet("subnet-1", 100)], world.now);
    world.run();
    world.pass(60 * SECOND);
    for pod in ["a", "b", "c"] {
        let _ = world.add(pod);
    }

    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::ReadSubnets);
    assert_eq!(world.steps(), [], "what is being read is not read twice");
    world.finish(id, Outcome::Subnets(vec![subnet("subnet-2", 50), subnet("subnet-1", 100)]));
    let steps = world.steps();

    assert_eq!(subnets_of_new_enis(&steps), ["subnet-1"; 3]);
    assert!(!steps.contains(&Step::ReadSubnets));
}

#[test]
fn where_subnets_cannot_be_read_the_primary_one_serves() {
    let mut world = World::new(discovering(2, 1), vec![eni(0, &[1])]);
    world.added("a");
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::ReadSubnets);

    world.finish(id, failure(FailureClass::Denied));

    assert_eq!(subnets_of_new_enis(&world.steps()), ["subnet-1"]);
}

#[test]
fn an_excluded_primary_subnet_takes_no_eni_even_where_subnets_cannot_be_read_any_more() {
    let mut world = World::new(discovering(2, 1), vec![eni(0, &[1])]);
    world.pool.subnets_seen(vec![excluded("subnet-1")], world.now);
    world.pass(60 * SECOND);
    let (id, _) = world.plan().into_iter().find(|(_, step)| *step == Step::ReadSubnets).unwrap();

    world.finish(id, failure(FailureClass::Denied));

    assert!(subnets_of_new_enis(&world.steps()).is_empty());
}

#[test]
fn an_exhausted_subnet_is_passed_over_and_remembered_by_itself() {
    let mut world = World::new(discovering(3, 1), vec![eni(0, &[1])]);
    world.pool.subnets_seen(vec![subnet("subnet-1", 9), subnet("subnet-2", 5)], world.now);
    world.added("a");
    let (id, step) = world.plan().into_iter().find(|(_, step)| step.is_growth()).unwrap();
    assert_eq!(subnets_of_new_enis(&[step]), ["subnet-1"]);

    world.finish(id, failure(FailureClass::SubnetExhausted));

    assert_eq!(subnets_of_new_enis(&world.steps()), ["subnet-2"]);
}

#[test]
fn an_eni_whose_subnet_becomes_excluded_empties_as_its_pods_go() {
    let mut world =
        World::new(discovering(3, 2), vec![eni(0, &[1, 2]), in_subnet(eni(1, &[11, 12]), "subnet-2")]);
    world.pool.subnets_seen(vec![subnet("subnet-1", 99), subnet("subnet-2", 9)], world.now);
    world.run();
    for pod in ["a", "b", "c"] {
        world.added(pod);
    }
    world.pass(5 * SECOND);

    world.pool.subnets_seen(vec![subnet("subnet-1", 99), excluded("subnet-2")], world.now);
    let steps = world.steps();
    assert!(steps.contains(&Step::Unassign { eni: eni_id(1), blocks: vec![Block::Ip(ip(12))] }), "{steps:?}");
    assert_eq!(world.pool.allocations().len(), 3, "pods keep what they have");
    let unassign = world.pool.running().iter().find(|(_, step)| step.eni() == Some(&eni_id(1)));
    let id = *unassign.unwrap().0;
    world.finish(id, Outcome::Unassigned);
    assert_eq!(world.del("c"), address(11));
    world.pass(61 * SECOND);

    assert!(world.steps().contains(&Step::FreeEni { eni: eni_id(1) }));
}

#[test]
fn an_eni_whose_subnet_is_allowed_again_serves_again() {
    let mut world = World::new(discovering(1, 2), vec![eni(0, &[1, 2])]);
    world.pool.subnets_seen(vec![excluded("subnet-1")], world.now);
    let Answer::Refused(refusal) = world.add("a") else { panic!() };
    assert!(refusal.message.contains("subnet-1"), "{refusal}");
    assert!(refusal.message.contains("kubernetes.io/role/cni=0"), "{refusal}");

    world.pool.subnets_seen(vec![subnet("subnet-1", 9)], world.now);

    world.added("b");
}

#[test]
fn with_custom_networking_the_primary_eni_gets_nothing_more_and_what_it_has_still_serves() {
    let mut world = World::new(settings(3, 2), vec![eni(0, &[1])]);
    let custom = CustomNetwork { subnet: "subnet-9".parse().unwrap(), security_groups: Vec::new() };
    world.pool.set_custom_network(Some(custom));

    assert_eq!(world.added("a"), address(1));
    let steps = world.steps();

    assert!(steps.iter().all(|step| step.eni() != Some(&eni_id(0))), "{steps:?}");
    assert_eq!(subnets_of_new_enis(&steps), ["subnet-9"]);
}

#[test]
fn a_trunk_gets_nothing_more_and_is_never_given_back() {
    let trunk = vpc::Eni { kind: vpc::EniKind::Trunk, ..eni(1, &[]) };
    let mut world = World::new(settings(2, 2), vec![eni(0, &[1, 2]), trunk]);
    world.added("a");
    world.run();
    world.pass(400 * SECOND);

    let steps = world.run();

    assert!(steps.iter().all(|step| step.eni() != Some(&eni_id(1))), "{steps:?}");
}

#[test]
fn a_pod_on_a_cordoned_node_gets_an_address_although_nothing_is_kept_warm() {
    let mut world = World::bare(settings(3, 9));
    world.pool.set_cordoned(true);
    assert!(world.steps().is_empty());

    assert!(matches!(world.add("daemon"), Answer::Parked(_)));

    assert_eq!(world.steps(), [Step::Assign { eni: eni_id(0), blocks: Blocks::Ips(1) }]);
}

#[test]
fn an_eni_that_the_host_cannot_set_up_is_made_up_for_by_another() {
    let mut world = World::new(settings(3, 1), vec![eni(0, &[1]), eni(1, &[11])]);
    world.added("a");
    for _ in 0..3 {
        let steps = world.plan();
        let (id, step) = &steps[0];
        assert_eq!(*step, Step::SetUpEni { eni: eni_id(1) });
        world.finish(*id, failure(FailureClass::Host));
        world.now = world.pool.next_wake(world.now).unwrap();
    }

    assert_eq!(subnets_of_new_enis(&world.steps()), ["subnet-1"]);
}

#[test]
fn while_ec2_throttles_more_addresses_on_an_eni_no_other_eni_is_asked_for() {
    let mut world = World::bare(settings(3, 9));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::Throttled));

    assert!(world.steps().is_empty());
}

#[test]
fn a_look_at_ec2_that_was_overtaken_by_a_step_undoes_nothing() {
    let mut world = World::new(settings(2, 3), vec![eni(0, &[])]);
    let (assign, _) = world.plan().remove(0);
    world.pool.look_again();
    let (look, step) = world.plan().remove(0);
    assert_eq!(step, Step::ReadInventory);
    let blocks = world.fresh(Blocks::Ips(3));
    world.finish(assign, Outcome::Assigned(blocks));

    world.finish(look, Outcome::Inventory(vec![eni(0, &[])]));

    assert_eq!(world.layout(), [3]);
}

#[test]
fn a_subnet_without_addresses_is_looked_at_from_time_to_time_and_not_asked_in_vain() {
    let mut world = World::bare(discovering(2, 4));
    let full = || vec![subnet("subnet-1", 0)];
    world.pool.subnets_seen(full(), world.now);
    for class in [FailureClass::SubnetExhausted; 8] {
        for (id, step) in world.plan() {
            let outcome = if step.is_growth() { failure(class) } else { Outcome::Subnets(full()) };
            world.finish(id, outcome);
        }
    }

    let mut looks = 0;
    for _ in 0..360 {
        world.pass(10 * SECOND);
        for (id, step) in world.plan() {
            assert_eq!(step, Step::ReadSubnets);
            looks += 1;
            world.finish(id, Outcome::Subnets(full()));
        }
    }
    assert!(looks <= 35, "{looks} looks in an hour");

    world.pass(121 * SECOND);
    for (id, _) in world.plan() {
        world.finish(id, Outcome::Subnets(vec![subnet("subnet-1", 50)]));
    }
    assert!(world.steps().iter().any(Step::is_growth));
}

/// A node whose subnet had not a single address when it was last asked, and was looked at since.
fn exhausted() -> World {
    let mut world = World::bare(discovering(1, 4));
    for _ in 0..8 {
        for (id, step) in world.plan() {
            let none = || Outcome::Subnets(vec![subnet("subnet-1", 0)]);
            world.finish(id, if step.is_growth() { failure(FailureClass::SubnetExhausted) } else { none() });
        }
    }
    // In vain once more, so that the pause is longer than a pod waits.
    world.pass(31 * SECOND);
    let id = look(&mut world);
    world.finish(id, Outcome::Subnets(vec![subnet("subnet-1", 0)]));
    world
}

fn look(world: &mut World) -> StepId {
    let steps = world.plan();
    let [(id, Step::ReadSubnets)] = steps[..] else { panic!("{steps:?}") };
    id
}

#[test]
fn a_pod_has_an_exhausted_subnet_looked_at_and_gets_what_others_gave_back() {
    let mut world = exhausted();
    world.pass(11 * SECOND);
    assert!(world.steps().is_empty(), "nobody asks");
    assert!(matches!(world.add("a"), Answer::Parked(_)));

    let id = look(&mut world);
    assert!(world.pool.settle(world.now).is_empty(), "the look may show something");
    world.finish(id, Outcome::Subnets(vec![subnet("subnet-1", 7)]));

    assert_eq!(world.steps(), [Step::Assign { eni: eni_id(0), blocks: Blocks::Ips(1) }]);
}

#[test]
fn a_pod_is_refused_once_a_look_shows_that_its_subnet_is_exhausted_still() {
    let mut world = exhausted();
    world.pass(11 * SECOND);
    assert!(matches!(world.add("a"), Answer::Parked(_)));
    let id = look(&mut world);

    world.finish(id, Outcome::Subnets(vec![subnet("subnet-1", 0)]));

    assert_eq!(world.pool.settle(world.now)[0].1.as_ref().unwrap_err().reason, Reason::SubnetExhausted);
    assert!(matches!(world.add("b"), Answer::Refused(_)), "it was looked at just now");
    assert!(world.steps().is_empty());
}

#[test]
fn where_subnets_cannot_be_read_a_pod_does_not_wait_for_a_look_at_them() {
    let mut world = exhausted();
    world.pass(11 * SECOND);
    assert!(matches!(world.add("a"), Answer::Parked(_)));
    let id = look(&mut world);

    world.finish(id, failure(FailureClass::Denied));

    assert_eq!(world.pool.settle(world.now)[0].1.as_ref().unwrap_err().reason, Reason::SubnetExhausted);
}
