//! Prefix mode: packing, the fallback to single IPs, and the switch between the modes.

use super::super::*;
use super::world::*;

fn pd(enis: u32, slots: u32) -> Settings {
    Settings { mode: BlockMode::Prefixes, ..settings(enis, slots) }
}

fn with_prefixes(device: u16, ips: &[u8], numbers: &[u16]) -> vpc::Eni {
    let mut eni = eni(device, ips);
    for number in numbers {
        if let Block::Prefix(prefix) = prefix(*number) {
            eni.prefixes.push(prefix);
        }
    }
    eni
}

fn first_of(number: u16) -> IpAddr {
    prefix(number).addresses().next().unwrap()
}

#[test]
fn a_burst_asks_for_all_its_prefixes_in_one_go() {
    let mut world = World::bare(pd(3, 9));
    for pod in 0..110 {
        let _ = world.add(&format!("pod-{pod}"));
    }

    // Seven prefixes are 112 addresses, and the kubelet starts 110 pods: an eighth is not kept warm.
    assert_eq!(world.steps(), [Step::Assign { eni: eni_id(0), blocks: Blocks::Prefixes(7) }]);
}

#[test]
fn all_sixteen_addresses_of_a_prefix_serve_pods_in_order() {
    let mut world = World::new(pd(1, 9), vec![with_prefixes(0, &[], &[1])]);

    let given: Vec<_> = (0..16).map(|pod| world.added(&format!("pod-{pod}"))).collect();

    assert_eq!(given, prefix(1).addresses().collect::<Vec<_>>());
}

#[test]
fn pods_fill_the_prefix_that_has_most_pods_so_that_others_empty() {
    let mut world = World::new(pd(1, 9), vec![with_prefixes(0, &[], &[1, 2])]);
    for pod in 0..20 {
        world.added(&format!("pod-{pod}"));
    }
    for pod in 0..14 {
        world.del(&format!("pod-{pod}"));
    }
    world.pass(31 * SECOND);
    // Two pods are left in the first prefix, four in the second.

    assert!(prefix(2).addresses().any(|address| address == world.added("next")));
}

#[test]
fn free_prefixes_go_back_and_those_with_pods_or_resting_addresses_stay() {
    let mut world = World::new(pd(1, 9), vec![with_prefixes(0, &[], &[1, 2, 3])]);
    world.added("a");
    world.run();
    world.del("a");
    world.pass(10 * SECOND);

    world.pass(181 * SECOND);
    world.run();

    assert_eq!(world.layout(), [1], "one is kept warm");
}

#[test]
fn a_subnet_without_a_free_block_gives_single_addresses_instead() {
    let mut world = World::bare(pd(1, 9));
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::Assign { eni: eni_id(0), blocks: Blocks::Prefixes(1) });
    world.finish(id, failure(FailureClass::NoFreePrefix));

    let steps = world.steps();

    assert_eq!(steps, [Step::Assign { eni: eni_id(0), blocks: Blocks::Ips(9) }], "as many as fit");
}

#[test]
fn another_subnet_with_free_blocks_comes_before_the_fallback() {
    let mut world = World::bare(Settings { reads_subnets: true, ..pd(2, 9) });
    world.pool.subnets_seen(vec![subnet("subnet-1", 40), subnet("subnet-2", 20)], world.now);
    let (id, _) = world.plan().into_iter().find(|(_, step)| step.is_growth()).unwrap();
    world.finish(id, failure(FailureClass::NoFreePrefix));

    let steps: Vec<_> = world.steps().into_iter().filter(Step::is_growth).collect();

    assert_eq!(
        steps,
        [Step::AllocateEni {
            slot: EniSlot::new(0, 1),
            subnet: "subnet-2".parse().unwrap(),
            security_groups: None,
            blocks: Blocks::Prefixes(1)
        }]
    );
}

#[test]
fn once_a_subnet_has_got_addresses_back_the_single_ones_make_room_for_prefixes() {
    let mut world = World::bare(Settings { reads_subnets: true, ..pd(1, 9) });
    world.pool.subnets_seen(vec![subnet("subnet-1", 40)], world.now);
    let (id, _) = world.plan().into_iter().find(|(_, step)| step.is_growth()).unwrap();
    world.finish(id, failure(FailureClass::NoFreePrefix));
    world.run();
    assert_eq!(world.layout(), [9], "every slot holds a single address");
    world.pass(300 * SECOND);
    assert!(world.run().is_empty(), "nothing is tried that cannot be better than before");

    world.pool.subnets_seen(vec![subnet("subnet-1", 56)], world.now);
    world.run();

    assert_eq!(world.layout(), [1]);
    assert_eq!(world.pool.report(world.now).enis[0].prefixes.len(), 1);
}

#[test]
fn pods_wait_for_single_addresses_where_blocks_are_out() {
    let mut world = World::bare(pd(1, 9));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::NoFreePrefix));

    assert!(matches!(world.add("a"), Answer::Parked(_)));
    world.run();

    assert_eq!(world.pool.settle(world.now).len(), 1);
}

#[test]
fn a_node_without_blocks_or_addresses_says_that_its_subnet_is_exhausted() {
    let mut world = World::bare(pd(1, 9));
    for class in [FailureClass::NoFreePrefix, FailureClass::SubnetExhausted] {
        while let Some((id, _)) = world.plan().into_iter().find(|(_, step)| step.is_growth()) {
            world.finish(id, failure(class));
        }
    }

    let Answer::Refused(refusal) = world.add("a") else { panic!() };

    assert_eq!(refusal.reason, Reason::SubnetExhausted);
}

#[test]
fn switching_prefixes_on_keeps_the_pods_that_have_single_addresses() {
    let mut world = World::new(pd(1, 3), vec![eni(0, &[1, 2, 3])]);
    let single = world.added("a");
    let steps = world.run();

    assert!(matches!(&steps[0], Step::Unassign { blocks, .. } if blocks.len() == 2), "{steps:?}");
    assert_eq!(world.layout(), [2], "one single address and one prefix");
    assert_eq!(world.added("a"), single);
    assert!(prefix(1).addresses().any(|address| address == world.added("b")));
}

#[test]
fn switching_prefixes_off_keeps_the_pods_that_have_addresses_of_prefixes() {
    let mut world = World::new(settings(1, 3), vec![with_prefixes(0, &[], &[1, 2, 3])]);
    let held = world.added("a");
    let steps = world.run();

    assert!(matches!(&steps[0], Step::Unassign { blocks, .. } if blocks.len() == 2), "{steps:?}");
    assert_eq!(world.layout(), [3], "one prefix and two single addresses");
    world.del("a");
    assert_eq!(held, first_of(1));
    world.pass(31 * SECOND);
    world.run();
    world.pass(181 * SECOND);
    world.run();

    let prefixes: Vec<_> = world.pool.report(world.now).enis[0].prefixes.clone();
    assert_eq!(prefixes, [], "the last prefix goes when its pod has gone");
}

#[test]
fn leftovers_of_another_mode_serve_pods_that_find_nothing_else() {
    let mut fixed = settings(1, 3);
    fixed.may_provision = false;
    let mut world = World::new(fixed, vec![with_prefixes(0, &[1], &[1])]);

    assert_eq!(world.added("a"), address(1));
    assert_eq!(world.added("b"), first_of(1));
}

#[test]
fn where_blocks_are_out_a_pod_gets_a_single_address_on_a_new_eni_too() {
    let mut world = World::bare(Settings { reads_subnets: true, ..pd(2, 1) });
    let subnets = || vec![subnet("subnet-1", 40)];
    world.pool.subnets_seen(subnets(), world.now);
    for _ in 0..6 {
        for (id, step) in world.plan() {
            let outcome = match &step {
                Step::ReadSubnets => Outcome::Subnets(subnets()),
                Step::Assign { blocks: Blocks::Prefixes(_), .. }
                | Step::AllocateEni { blocks: Blocks::Prefixes(_), .. } => {
                    failure(FailureClass::NoFreePrefix)
                }
                Step::AllocateEni { .. } => failure(FailureClass::Throttled),
                other => world.outcome(other),
            };
            world.finish(id, outcome);
        }
    }
    world.added("a");
    // The subnets must be read again by now, and prefixes are not to be asked for yet.
    world.pass(15 * SECOND);
    assert!(matches!(world.add("b"), Answer::Parked(_)));

    let (look, step) = world.plan().remove(0);
    assert_eq!(step, Step::ReadSubnets);
    world.finish(look, Outcome::Subnets(subnets()));

    assert_eq!(world.steps(), [allocate(1, Blocks::Ips(1))]);
}
