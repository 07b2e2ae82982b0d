//! The worked examples of amazon-vpc-cni-k8s, numbered as in its behavioural specification, 4.10.
//!
//! Where its documentation and its code disagree the code's figures stand here. Where its code is
//! at fault, the example says what is right instead.

use super::super::targets::{Holdings, Surplus};
use super::super::*;
use super::world::*;

/// W and Mi, `None` for a target that is not set.
fn single(mode: BlockMode, warm_ip: u32, minimum_ip: u32) -> Settings {
    let mut settings = settings(3, 3);
    settings.mode = mode;
    settings.targets = WarmTargets { warm_eni: 1, warm_ip, minimum_ip, warm_prefix: 0 };
    settings
}

fn sip(warm_ip: u32, minimum_ip: u32) -> Settings {
    single(BlockMode::SecondaryIps, warm_ip, minimum_ip)
}

fn pd(warm_ip: u32, minimum_ip: u32) -> Settings {
    single(BlockMode::Prefixes, warm_ip, minimum_ip)
}

/// Secondary-IP mode with L addresses per ENI and We whole ENIs to keep warm.
fn whole_enis(slots: u32, warm_eni: u32) -> Settings {
    let mut settings = settings(3, slots);
    settings.targets.warm_eni = warm_eni;
    settings
}

/// Prefix mode with Wp whole prefixes to keep warm.
fn whole_prefixes(warm_prefix: u32) -> Settings {
    let mut settings = settings(3, 3);
    settings.mode = BlockMode::Prefixes;
    settings.targets.warm_prefix = warm_prefix;
    settings
}

/// T addresses held as single IPs, A of them assigned.
fn ips(total: u32, assigned: u32) -> Holdings {
    Holdings { total, occupied: assigned, ips: total, free_ips: total - assigned, ..Holdings::default() }
}

/// Pt prefixes, F of them free, A addresses assigned.
fn prefixes(held: u32, free: u32, assigned: u32) -> Holdings {
    Holdings {
        total: held * 16,
        occupied: assigned,
        prefixes: held,
        free_prefixes: free,
        ..Holdings::default()
    }
}

fn short(settings: &Settings, held: &Holdings) -> u32 {
    let kind = settings.mode.kind();
    settings.shortage(held, kind, false).div_ceil(kind.size())
}

#[test]
fn examples_1_to_8_and_40_to_44_of_single_addresses() {
    // number, settings, holdings, blocks short, blocks over
    let rows = [
        (2, sip(5, 0), ips(0, 0), 5, 0),
        (3, sip(5, 0), ips(2, 0), 3, 0),
        (4, sip(5, 0), ips(5, 0), 0, 0),
        (5, pd(5, 0), prefixes(0, 0, 0), 1, 0),
        (6, pd(5, 0), prefixes(2, 2, 0), 0, 1),
        (7, pd(5, 0), prefixes(1, 1, 0), 0, 0),
        (8, sip(1, 0), ips(4, 2), 0, 1),
        (40, pd(16, 0), prefixes(1, 0, 1), 1, 0),
        (41, pd(15, 0), prefixes(3, 2, 1), 0, 2),
        (42, pd(16, 0), prefixes(2, 1, 1), 0, 0),
        (43, pd(7, 20), prefixes(0, 0, 0), 2, 0),
        // The reference frees the only prefix of a network card above 0, and takes it back 30 s later.
        (44, whole_prefixes(0), prefixes(1, 1, 0), 0, 0),
    ];
    assert!(!settings(3, 3).targets.counts_ips(), "1: without W and Mi single addresses do not count");
    for (number, settings, held, shortage, over) in rows {
        assert_eq!(short(&settings, &held), shortage, "example {number}, short");
        let surplus = match settings.surplus(&held) {
            Surplus::None => 0,
            Surplus::Blocks(blocks) => blocks.count(),
            Surplus::Enis { .. } => panic!("example {number}: whole ENIs are not counted"),
        };
        assert_eq!(surplus, over, "example {number}, over");
    }
}

#[test]
fn examples_9_to_25_and_39_of_low_and_high() {
    let capped = |mut settings: Settings, max_pods| {
        settings.max_pods = max_pods;
        settings
    };
    let with_ips = |mut settings: Settings, warm_ip| {
        settings.targets.warm_ip = warm_ip;
        settings
    };
    // number, settings, holdings, is the pool too low
    let rows = [
        (9, whole_enis(14, 1), ips(0, 0), true),
        (10, whole_enis(14, 0), ips(0, 0), true),
        (11, with_ips(whole_enis(14, 0), 3), ips(0, 0), true),
        (12, with_ips(whole_enis(3, 1), 1), ips(3, 0), false),
        (13, whole_enis(3, 1), ips(3, 1), true),
        (14, whole_enis(3, 0), ips(3, 1), false),
        (15, whole_enis(3, 1), ips(3, 3), true),
        (16, whole_enis(3, 0), ips(3, 3), true),
        (17, capped(with_ips(whole_enis(3, 1), 5), 3), ips(3, 3), false),
        (18, whole_prefixes(1), prefixes(0, 0, 0), true),
        (19, whole_prefixes(0), prefixes(0, 0, 0), true),
        (20, whole_prefixes(1), prefixes(1, 1, 0), false),
        (21, whole_prefixes(1), prefixes(1, 0, 1), true),
        (22, whole_prefixes(0), prefixes(1, 0, 1), false),
        (23, whole_prefixes(1), prefixes(1, 0, 3), true),
        (24, whole_prefixes(0), prefixes(1, 0, 3), false),
        (25, capped(whole_prefixes(1), 4), prefixes(1, 0, 3), false),
    ];
    for (number, settings, held, is_low) in rows {
        assert_eq!(short(&settings, &held) > 0, is_low, "example {number}");
    }
    let of_nine = whole_enis(9, 1);
    assert_eq!(of_nine.surplus(&ips(27, 9)), Surplus::Enis { keep_free: 9 }, "example 39");
    assert_eq!(of_nine.surplus(&ips(27, 10)), Surplus::None, "example 39");
}

/// The first ENI or blocks that a node asks for whose ENIs are these.
fn first_step(settings: Settings, enis: Vec<vpc::Eni>) -> Option<Step> {
    let mut world = World::new(Settings { reads_subnets: true, ..settings }, enis);
    world.pool.subnets_seen(vec![subnet("subnet-1", 100)], world.now);
    world.steps().into_iter().find(|step| !matches!(step, Step::ReadSubnets | Step::SetUpEni { .. }))
}

#[test]
fn examples_26_to_32_of_growth() {
    let of_14 = || settings(3, 14);
    assert_eq!(first_step(of_14(), vec![]), Some(allocate(1, Blocks::Ips(14))), "27");
    assert_eq!(first_step(sip(3, 0), vec![]), Some(allocate(1, Blocks::Ips(3))), "29");
    let mut of_16 = whole_prefixes(1);
    of_16.slots_per_eni = 16;
    assert_eq!(first_step(of_16, vec![]), Some(allocate(1, Blocks::Prefixes(1))), "30");

    // 26: an excluded primary ENI counts for nothing.
    let two_warm = || {
        let mut settings = settings(4, 10);
        settings.targets.warm_eni = 2;
        settings
    };
    let ten = |device: u16| {
        let mut eni = eni(device, &(0..10).map(|ip| ip + 40 * device.to_be_bytes()[1]).collect::<Vec<_>>());
        eni.subnet = if device == 0 { "subnet-0" } else { "subnet-1" }.parse().unwrap();
        eni
    };
    for (secondary, is_low) in [(0, true), (1, true), (2, false)] {
        let mut world = World::new(two_warm(), (0..=secondary).map(ten).collect());
        let excluded = Subnet { takes_enis: false, is_excluded: true, ..subnet("subnet-0", 100) };
        world.pool.subnets_seen(vec![excluded, subnet("subnet-1", 100)], world.now);
        let grows = world.steps().iter().any(|step| step.is_growth());
        assert_eq!(grows, is_low, "26 with {secondary} other ENIs");
    }

    // 31: custom networking names subnet and security groups.
    let mut world = World::new(of_14(), vec![eni(0, &[])]);
    let groups: Vec<vpc::SecurityGroupId> = vec!["sg-1".parse().unwrap(), "sg-2".parse().unwrap()];
    let custom = CustomNetwork { subnet: "subnet-9".parse().unwrap(), security_groups: groups.clone() };
    world.pool.set_custom_network(Some(custom));
    let expected = Step::AllocateEni {
        slot: EniSlot::new(0, 1),
        subnet: "subnet-9".parse().unwrap(),
        security_groups: Some(groups),
        blocks: Blocks::Ips(14),
    };
    assert_eq!(world.steps(), [expected], "31");

    // 32: a cordoned node.
    for (manages, grows) in [(false, false), (true, true)] {
        let mut cordoned = of_14();
        cordoned.grows_while_cordoned = manages;
        let mut world = World::bare(cordoned);
        world.pool.set_cordoned(true);
        assert_eq!(!world.steps().is_empty(), grows, "32");
    }
}

#[test]
fn example_28_a_full_subnet_leads_to_an_eni_in_another() {
    let mut world = World::bare(Settings { reads_subnets: true, ..settings(3, 14) });
    world.pool.subnets_seen(vec![subnet("subnet-1", 0), subnet("subnet-2", 100)], world.now);
    let mut allocated = None;
    for _ in 0..10 {
        for (id, step) in world.plan() {
            if matches!(step, Step::AllocateEni { .. }) {
                allocated = Some(step);
            } else if step.is_growth() {
                world.finish(id, failure(FailureClass::SubnetExhausted));
            }
        }
    }

    let in_the_other = Step::AllocateEni {
        slot: EniSlot::new(0, 1),
        subnet: "subnet-2".parse().unwrap(),
        security_groups: None,
        blocks: Blocks::Ips(14),
    };
    assert_eq!(allocated, Some(in_the_other));
}

/// The ENIs that leave a node on which `used` pods run on the first ENI, at W and Mi.
fn freed(enis: Vec<vpc::Eni>, used: usize, warm_ip: u32, minimum_ip: u32) -> Vec<EniId> {
    let mut world = World::new(sip(warm_ip, minimum_ip), enis);
    // Pods go to the lowest ENI first, so these fill it before the others are set up.
    for pod in 0..used {
        world.added(&format!("pod-{pod}"));
    }
    world.run();
    world.pass(181 * SECOND);
    let steps = world.steps();
    steps
        .into_iter()
        .filter_map(|step| match step {
            Step::FreeEni { eni } => Some(eni),
            _ => None,
        })
        .collect()
}

#[test]
fn examples_33_to_37_of_removable_enis() {
    let three = || vec![eni(0, &[1, 2]), eni(1, &[11, 12]), eni(2, &[21])];
    assert!(freed(three(), 2, 3, 1).is_empty(), "33");
    assert!(freed(three(), 2, 1, 5).is_empty(), "34");
    assert_eq!(freed(three(), 2, 2, 4), [eni_id(2)], "35");
    let two = || vec![eni(0, &[1, 2]), eni(1, &[11, 12])];
    assert!(freed(two(), 2, 0, 3).is_empty(), "36");
    assert_eq!(freed(two(), 2, 0, 2), [eni_id(1)], "36");
    let special = |kind, device, ip| vpc::Eni { kind, ..eni(device, &[ip]) };
    let mut with_trunk_and_efa =
        vec![eni(0, &[1, 2]), special(vpc::EniKind::Trunk, 1, 11), special(vpc::EniKind::Efa, 2, 21)];
    assert!(freed(with_trunk_and_efa.clone(), 2, 0, 2).is_empty(), "37");
    with_trunk_and_efa.push(eni(3, &[]));
    assert_eq!(freed(with_trunk_and_efa, 2, 0, 2), [eni_id(3)], "37");
}

#[test]
fn examples_45_and_46_of_room_for_enis() {
    let mut four = settings(4, 3);
    four.reserves_trunk = true;
    let unmanaged = vpc::Eni { is_managed: false, ..eni(2, &[]) };
    let world = World::new(four, vec![eni(0, &[]), eni(1, &[]), unmanaged]);
    assert_eq!(world.pool.eni_room(), 0, "45");

    let excluded = vpc::Eni { subnet: "subnet-2".parse().unwrap(), ..eni(1, &[]) };
    let mut world = World::new(settings(3, 3), vec![eni(0, &[]), excluded]);
    world.pool.subnets_seen(vec![Subnet { is_excluded: true, ..subnet("subnet-2", 9) }], world.now);
    assert_eq!(world.pool.eni_room(), 1, "46");
}

/// How many blocks each ENI holds once `pods` pods came.
fn settled(settings: Settings, pods: usize) -> Vec<usize> {
    World::grown(settings, pods).layout()
}

/// The same after all pods have gone for good.
fn emptied(settings: Settings, pods: usize) -> Vec<usize> {
    let mut world = World::grown(settings, pods);
    for pod in 0..pods {
        world.del(&format!("pod-{pod}"));
    }
    for _ in 0..8 {
        world.pass(100 * SECOND);
        world.run();
    }
    world.layout()
}

fn of(mut settings: Settings, enis: u32, slots: u32) -> Settings {
    (settings.eni_limit, settings.slots_per_eni, settings.max_pods) = (enis, slots, 1000);
    settings
}

#[test]
fn examples_38_and_47_to_51_of_layouts_in_secondary_ip_mode() {
    let rows: [(u32, Settings, usize, &[usize]); 18] = [
        (38, whole_enis(9, 1), 0, &[9]),
        (38, whole_enis(9, 1), 1, &[9, 9]),
        (47, whole_enis(3, 1), 0, &[3]),
        (47, whole_enis(3, 1), 5, &[3, 3, 3]),
        (47, whole_enis(3, 1), 9, &[3, 3, 3]),
        (48, sip(1, 1), 0, &[1]),
        (48, sip(1, 1), 5, &[3, 3]),
        (48, sip(1, 1), 9, &[3, 3, 3]),
        (49, sip(2, 5), 0, &[3, 2]),
        (49, sip(2, 5), 5, &[3, 3, 1]),
        (49, sip(2, 5), 9, &[3, 3, 3]),
        (50, of(whole_enis(49, 1), 15, 49), 0, &[49]),
        (50, of(whole_enis(49, 1), 15, 49), 3, &[49, 49]),
        (50, of(whole_enis(49, 1), 15, 49), 95, &[49, 49, 49]),
        (51, of(sip(5, 10), 15, 49), 0, &[10]),
        (51, of(sip(5, 10), 15, 49), 7, &[12]),
        (51, of(sip(5, 10), 15, 49), 15, &[20]),
        (51, of(sip(5, 10), 15, 49), 45, &[49, 1]),
    ];
    for (number, settings, pods, layout) in rows {
        assert_eq!(settled(settings, pods), layout, "example {number} with {pods} pods");
    }
}

#[test]
fn examples_52_to_55_of_layouts_in_prefix_mode() {
    // The last two of 54: its documentation says 1 prefix for no pods, the code 2.
    let rows: [(u32, Settings, usize, &[usize], usize); 17] = [
        (52, whole_prefixes(1), 0, &[1], 16),
        (52, whole_prefixes(1), 5, &[2], 27),
        (52, whole_prefixes(1), 16, &[2], 16),
        (52, whole_prefixes(1), 17, &[3], 31),
        (52, whole_prefixes(1), 58, &[3, 2], 22),
        (53, pd(1, 1), 0, &[1], 16),
        (53, pd(1, 1), 5, &[1], 11),
        (53, pd(1, 1), 17, &[2], 15),
        (53, pd(1, 1), 58, &[3, 1], 6),
        (54, pd(7, 20), 5, &[2], 27),
        (54, pd(7, 20), 17, &[2], 15),
        (54, pd(7, 20), 58, &[3, 2], 22),
        (54, pd(7, 20), 0, &[2], 32),
        (55, of(pd(5, 10), 15, 49), 0, &[1], 16),
        (55, of(pd(5, 10), 15, 49), 7, &[1], 9),
        (55, of(pd(5, 10), 15, 49), 15, &[2], 17),
        (55, of(pd(5, 10), 15, 49), 45, &[4], 19),
    ];
    for (number, settings, pods, layout, unused) in rows {
        assert_eq!(layout.iter().sum::<usize>() * 16 - pods, unused, "example {number} with {pods} pods");
        assert_eq!(
            settled(of(settings.clone(), settings.eni_limit, settings.slots_per_eni), pods),
            layout,
            "example {number} with {pods} pods"
        );
    }
}

#[test]
fn examples_56_to_59_of_limits_and_of_a_minimum_alone() {
    let max_enis = |most| of(whole_enis(5, 1), most, 5);
    assert_eq!(settled(max_enis(2), 0), [5], "56");
    assert_eq!(settled(max_enis(2), 4), [5, 5], "56");
    assert_eq!(settled(max_enis(2), 10), [5, 5], "56");
    assert_eq!(settled(of(whole_enis(5, 2), 4, 5), 0), [5, 5], "57");
    assert_eq!(settled(of(whole_enis(5, 2), 4, 5), 1), [5, 5, 5], "57");
    assert_eq!(settled(of(whole_enis(5, 2), 4, 5), 11), [5, 5, 5, 5], "57");
    assert_eq!(emptied(of(whole_enis(5, 2), 4, 5), 11), [5, 5], "57");
    assert_eq!(settled(whole_enis(3, 0), 0), [3], "58");
    assert_eq!(settled(whole_enis(3, 0), 3), [3, 3], "58");
    assert_eq!(settled(whole_enis(3, 0), 5), [3, 3], "58");
    assert_eq!(emptied(whole_enis(3, 0), 5), [3], "58");
    // 59: with Mi alone the reference never serves the pod beyond it; here it is a floor.
    assert_eq!(settled(of(sip(0, 5), 4, 5), 3), [5], "59");
    assert_eq!(settled(of(sip(0, 5), 4, 5), 6), [5, 1], "59");
}

#[test]
fn examples_60_to_65_of_nodes_whose_pods_have_gone() {
    let rows: [(u32, Settings, usize, &[usize]); 6] = [
        (60, whole_enis(3, 1), 9, &[3]),
        // In 61, 62 and 65 the reference leaves the remainder on random ENIs; here it stays on the
        // primary one, so that the others can go.
        (61, sip(1, 1), 9, &[1]),
        (62, sip(2, 5), 9, &[3, 2]),
        (63, whole_prefixes(1), 58, &[1]),
        (64, of(pd(5, 10), 15, 49), 45, &[1]),
        (65, pd(7, 20), 58, &[2]),
    ];
    for (number, settings, pods, layout) in rows {
        assert_eq!(emptied(settings, pods), layout, "example {number}");
    }
}

#[test]
fn example_66_of_prefixes_switched_on() {
    let mut on = whole_prefixes(1);
    on.slots_per_eni = 3;
    let mut world = World::new(on, vec![eni(0, &[1, 2, 3])]);

    let steps = world.run();

    let blocks = vec![Block::Ip(ip(1)), Block::Ip(ip(2)), Block::Ip(ip(3))];
    assert_eq!(
        steps,
        [
            Step::Unassign { eni: eni_id(0), blocks },
            Step::Assign { eni: eni_id(0), blocks: Blocks::Prefixes(1) },
        ]
    );
}
