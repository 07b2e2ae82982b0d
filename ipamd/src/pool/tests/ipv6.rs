//! One IPv6 prefix, which serves every pod and is never given back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vpc::{PodName, host_veth};

use super::super::*;
use super::world::*;

const ONE: Blocks = Blocks::Ipv6Prefixes(1);

fn v6(enis: u32) -> Settings {
    Settings { mode: BlockMode::Ipv6Prefix, ..settings(enis, 9) }
}

/// An ENI that holds these prefixes, by number, beside what only IPv4 pods could use.
fn holding(device: u16, numbers: &[u16]) -> vpc::Eni {
    let mut eni = eni(device, &[200]);
    eni.prefixes.push("10.0.0.16/28".parse().unwrap());
    for number in numbers {
        if let Block::Prefix(prefix) = ipv6_prefix(*number) {
            eni.prefixes.push(prefix);
        }
    }
    eni
}

/// Address `last` of prefix `number`.
fn at(number: u16, last: u16) -> IpAddr {
    format!("2001:db8:0:1:{number:x}::{last:x}").parse().unwrap()
}

fn assign_one(device: u16) -> Step {
    Step::Assign { eni: eni_id(device), blocks: ONE }
}

fn refusal(world: &mut World, pod: &str) -> Refusal {
    match world.add(pod) {
        Answer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_node_asks_for_one_prefix_on_its_primary_eni_and_then_for_nothing() {
    let mut world = World::bare(v6(3));

    assert_eq!(world.run(), [assign_one(0)]);

    for pod in 0..300 {
        world.added(&format!("pod-{pod}"));
    }
    assert_eq!(world.steps(), []);
    world.pass(1000 * SECOND);
    assert_eq!(world.steps(), [], "nothing is given back either");
}

#[test]
fn what_ec2_already_delegated_is_used_and_ipv4_blocks_are_left_alone() {
    let mut world = World::new(v6(3), vec![holding(0, &[7])]);

    assert_eq!(world.run(), []);

    assert_eq!(world.added("a"), at(7, 0));
    world.pass(1000 * SECOND);
    assert_eq!(world.steps(), []);
}

#[test]
fn addresses_are_given_out_from_the_lowest_up_and_past_those_that_rest() {
    let mut world = World::new(v6(1), vec![holding(0, &[7])]);
    for (pod, last) in [("a", 0), ("b", 1), ("c", 2)] {
        assert_eq!(world.added(pod), at(7, last));
    }
    world.del("a");
    world.del("b");

    assert_eq!(world.added("d"), at(7, 3), "the first two rest");
    world.pass(31 * SECOND);
    assert_eq!(world.added("e"), at(7, 0));
    assert_eq!(world.added("f"), at(7, 1));
    assert_eq!(world.added("g"), at(7, 4));
}

#[test]
fn a_repeated_add_gets_the_same_address() {
    let mut world = World::new(v6(1), vec![holding(0, &[7])]);

    assert_eq!(world.added("a"), world.added("a"));
    assert_eq!(world.pool.stats().assigned, 1);
}

#[test]
fn a_prefix_counts_as_more_than_can_be_counted() {
    let mut world = World::new(v6(1), vec![holding(0, &[7, 8])]);
    world.added("a");

    let stats = world.pool.stats();

    assert_eq!((stats.total, stats.free, stats.prefixes), (u32::MAX, u32::MAX, 2));
    assert_eq!((stats.assigned, stats.cooling), (1, 0));
    let report = world.pool.report(world.now);
    assert_eq!(report.enis[0].addresses.len(), 1, "only what pods had is listed");
}

#[test]
fn pods_that_come_before_the_prefix_wait_for_it() {
    let mut world = World::bare(v6(1));
    let Answer::Parked(first) = world.add("a") else { panic!() };
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, assign_one(0));

    world.finish(id, Outcome::Assigned(vec![ipv6_prefix(7)]));

    let (waiter, answer) = world.pool.settle(world.now).remove(0);
    assert_eq!(waiter, first);
    assert_eq!(answer.unwrap().address, at(7, 0));
}

#[test]
fn a_lost_answer_is_looked_up_before_a_second_prefix_is_asked_for() {
    let mut world = World::bare(v6(1));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::AnswerLost));
    world.pass(2 * SECOND);

    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::ReadInventory);
    world.finish(id, Outcome::Inventory(vec![holding(0, &[7])]));

    assert_eq!(world.steps(), []);
    assert_eq!(world.added("a"), at(7, 0));
}

#[test]
fn a_restart_keeps_every_pods_address_and_holds_back_what_only_the_kernel_knows() {
    let mut world = World::new(v6(1), vec![holding(0, &[7])]);
    let pod = |name: &str, last| Allocation {
        key: key(name),
        pod: PodName::new("default", name),
        address: at(7, last),
        assigned_unix_ns: 1,
    };
    let links = ["a", "b"].map(|name| host_veth("eni", &PodName::new("default", name), 0));
    let kernel = KernelView {
        routed: BTreeSet::from([at(7, 0), at(7, 2), at(7, 1)]),
        links: links.into_iter().collect(),
        ..KernelView::default()
    };
    let journal = Journal {
        allocations: vec![pod("a", 0), pod("b", 2), pod("gone", 5)],
        cooling: vec![(at(7, 3), world.now + 20 * SECOND)],
        read_unix_ns: 3_600_000_000_000,
        ..Journal::default()
    };

    world.pool.restore(journal, &kernel, world.now);

    assert_eq!((world.added("a"), world.added("b")), (at(7, 0), at(7, 2)));
    assert_eq!(world.pool.quarantined(), [(at(7, 1), QuarantineReason::KernelOnly)]);
    assert_eq!(world.added("c"), at(7, 4), "the addresses between are in use, held back or at rest");
}

#[test]
fn a_prefix_that_is_lost_is_replaced_and_its_pods_keep_what_they_have() {
    let mut world = World::new(v6(1), vec![holding(0, &[7])]);
    world.added("a");

    world.pool.observe(vec![holding(0, &[])], world.now);

    assert_eq!(world.pool.report(world.now).pinned[0].address, at(7, 0));
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, assign_one(0));
    world.finish(id, Outcome::Assigned(vec![ipv6_prefix(8)]));
    assert_eq!(world.added("b"), at(8, 0));

    // Somebody puts the old one back: its pod is found again.
    world.pool.look_again();
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::ReadInventory);
    world.finish(id, Outcome::Inventory(vec![holding(0, &[7, 8])]));
    assert!(world.pool.report(world.now).pinned.is_empty());
    assert_eq!(world.added("a"), at(7, 0));
    assert_eq!(world.steps(), []);
}

#[test]
fn without_a_free_prefix_pods_hear_why_and_it_is_asked_for_again() {
    let mut world = World::bare(v6(3));
    let (id, _) = world.plan().remove(0);
    let why = "AssignIpv6Addresses: the subnet has no free /80".to_owned();
    let failure = StepFailure { class: FailureClass::NoFreePrefix, message: why.clone(), retry_after: None };
    world.finish(id, Outcome::Failed(failure));

    let refusal = refusal(&mut world, "a");

    assert_eq!(refusal.reason, Reason::SubnetExhausted);
    assert_eq!(
        refusal.message,
        format!("{why}; 0 assigned, 0 cooling, 0 quarantined, and no IPv6 prefix on 1 ENI")
    );
    assert!(refusal.retry_after.unwrap() >= SECOND);
    assert!(world.steps().iter().all(|step| !matches!(step, Step::Assign { .. })));
    world.pass(31 * SECOND);
    assert!(world.steps().contains(&assign_one(0)));
}

#[test]
fn a_denied_action_is_told_at_once_and_brings_no_eni_instead() {
    let mut world = World::bare(v6(3));
    let (id, _) = world.plan().remove(0);
    world.finish(id, failure(FailureClass::Denied));

    let refusal = refusal(&mut world, "a");

    assert_eq!(refusal.reason, Reason::PermissionDenied);
    assert_eq!(world.steps(), []);
    world.pass(11 * SECOND);
    assert_eq!(world.steps(), [assign_one(0)]);
}

#[test]
fn where_the_primary_eni_is_excluded_one_new_eni_gets_the_prefix() {
    let mut world = World::bare(Settings { reads_subnets: true, ..v6(3) });
    let (id, step) = world.plan().remove(0);
    assert_eq!(step, Step::ReadSubnets, "a prefix should not come to an ENI that is excluded");
    let excluded = Subnet { is_excluded: true, takes_enis: false, ..subnet("subnet-1", 100) };
    world.finish(id, Outcome::Subnets(vec![excluded, subnet("subnet-2", 100)]));

    let (id, step) = world.plan().remove(0);
    let Step::AllocateEni { subnet, blocks, .. } = &step else { panic!("{step:?}") };
    assert_eq!((subnet.as_str(), *blocks), ("subnet-2", ONE));
    let outcome = world.outcome(&step);
    world.finish(id, outcome);
    let rest = world.run();

    assert!(matches!(&rest[..], [Step::SetUpEni { .. }, Step::Assign { blocks: ONE, .. }]), "{rest:?}");
    assert_eq!(world.added("a"), at(1, 0));
    world.pass(1000 * SECOND);
    assert_eq!(world.steps(), []);
}

#[test]
fn a_node_that_may_not_provision_says_who_should() {
    let mut world = World::bare(Settings { may_provision: false, ..v6(3) });

    let refusal = refusal(&mut world, "a");

    assert_eq!(refusal.reason, Reason::ProvisioningOff);
    assert!(refusal.message.contains("must assign an IPv6 prefix to this node's primary ENI"), "{refusal}");
}

#[test]
fn where_no_subnet_has_ipv6_the_refusal_says_so() {
    let mut world = World::bare(Settings { reads_subnets: true, ..v6(3) });
    let (id, _) = world.plan().remove(0);
    let excluded = Subnet { is_excluded: true, takes_enis: false, ..subnet("subnet-1", 100) };
    world.finish(id, Outcome::Subnets(vec![excluded]));

    let refusal = refusal(&mut world, "a");

    assert_eq!(refusal.reason, Reason::SubnetExhausted);
    assert!(refusal.message.ends_with("excluded by their tags or have no IPv6 block"), "{refusal}");
}
