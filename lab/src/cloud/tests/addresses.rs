//! Addresses and prefixes: limits, fragmentation, idempotency.

use super::*;

#[test]
fn an_eni_takes_no_more_addresses_than_its_instance_type_gives() {
    let mut world = World::new("m5.large");
    let primary = world.current(&world.instance.primary_eni);

    let nine = AssignPrivateIpAddresses { count: Some(9), ..assign(&primary) };
    let answer = world.ask(Request::AssignPrivateIpAddresses(nine)).unwrap();
    let Response::Assigned { addresses, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(addresses.len(), 9);

    let one = AssignPrivateIpAddresses { count: Some(1), ..assign(&primary) };
    assert_eq!(world.refusal(Request::AssignPrivateIpAddresses(one)), "PrivateIpAddressLimitExceeded");
    let prefix = AssignPrivateIpAddresses { prefix_count: Some(1), ..assign(&primary) };
    assert_eq!(world.refusal(Request::AssignPrivateIpAddresses(prefix)), "PrivateIpAddressLimitExceeded");
}

#[test]
fn a_prefix_fills_one_slot_and_takes_sixteen_addresses_of_the_subnet() {
    let mut world = World::new("m5.large");
    let primary = world.current(&world.instance.primary_eni);
    let before = world.free();

    let nine = AssignPrivateIpAddresses { prefix_count: Some(9), ..assign(&primary) };
    world.ask(Request::AssignPrivateIpAddresses(nine)).unwrap();

    let eni = world.current(&primary.id);
    assert_eq!((eni.prefixes.len(), eni.addresses.len()), (9, 1));
    assert_eq!(world.free(), before - 9 * 16);
    let back = UnassignPrivateIpAddresses {
        eni_id: eni.id.clone(),
        prefixes: eni.prefixes[..2].to_vec(),
        ..UnassignPrivateIpAddresses::default()
    };
    world.ask(Request::UnassignPrivateIpAddresses(back)).unwrap();
    assert_eq!(world.free(), before - 7 * 16);
}

#[test]
fn a_fragmented_subnet_and_a_full_one_are_told_apart() {
    let small = CloudBuilder::new(1).subnet("10.0.0.0/26".parse().unwrap(), "us-west-2a");
    let mut world = World::of(small, "c5.4xlarge");
    // 64 addresses less 5; the two blocks in the middle are the only ones without a reserved one.
    let in_the_way = |world: &mut World, address: [u8; 4]| {
        let subnet_id = world.instance.subnet_id.clone();
        let primary_ip = Some(address.into());
        world.create(CreateNetworkInterface { subnet_id, primary_ip, ..CreateNetworkInterface::default() })
    };
    let mut taken = vec![world.instance.private_ip.octets()];
    for wanted in [[10, 0, 0, 20], [10, 0, 0, 40]] {
        if !taken.contains(&wanted) {
            in_the_way(&mut world, wanted);
            taken.push(wanted);
        }
    }
    let primary = world.current(&world.instance.primary_eni);
    let one_prefix = AssignPrivateIpAddresses { prefix_count: Some(1), ..assign(&primary) };
    assert!(world.free() > 16);
    assert_eq!(
        world.refusal(Request::AssignPrivateIpAddresses(one_prefix.clone())),
        "InsufficientCidrBlocks"
    );

    let many = AssignPrivateIpAddresses { count: Some(29), ..assign(&primary) };
    world.ask(Request::AssignPrivateIpAddresses(many)).unwrap();
    let rest = u16::try_from(world.free()).unwrap() - 1;
    world.eni(rest - 10);
    let eni = world.create(CreateNetworkInterface {
        subnet_id: world.instance.subnet_id.clone(),
        ..CreateNetworkInterface::default()
    });
    assert!(world.free() < 16);
    let error = world.ask(Request::AssignPrivateIpAddresses(AssignPrivateIpAddresses {
        prefix_count: Some(1),
        ..assign(&eni)
    }));
    assert_eq!(error.unwrap_err().code, "InvalidParameterValue");
    let too_many = AssignPrivateIpAddresses { count: Some(20), ..assign(&eni) };
    assert_eq!(
        world.refusal(Request::AssignPrivateIpAddresses(too_many)),
        "InsufficientFreeAddressesInSubnet"
    );
}

#[test]
fn a_refused_create_leaves_no_address_taken() {
    let mut world = World::new("m5.large");
    let before = world.free();
    let in_use = world.instance.private_ip;

    let code = world.refusal(Request::CreateNetworkInterface(CreateNetworkInterface {
        subnet_id: world.instance.subnet_id.clone(),
        private_ips: vec![([10, 0, 1, 1].into(), false), (in_use, false)],
        ..CreateNetworkInterface::default()
    }));

    assert_eq!(code, "InvalidIPAddress.InUse");
    assert_eq!(world.free(), before);
}

#[test]
fn the_primary_address_stays_and_a_foreign_one_cannot_be_given_back() {
    let mut world = World::new("m5.large");
    let eni = world.eni(2);
    let unassign = |address| {
        Request::UnassignPrivateIpAddresses(UnassignPrivateIpAddresses {
            eni_id: eni.id.clone(),
            addresses: vec![address],
            prefixes: Vec::new(),
        })
    };

    assert_eq!(world.refusal(unassign(eni.primary_ip())), "InvalidParameterValue");
    assert_eq!(world.refusal(unassign(world.instance.private_ip)), "InvalidParameterValue");
    world.ask(unassign(eni.addresses[1].address)).unwrap();
    let error = world.ask(unassign(eni.addresses[1].address)).unwrap_err();
    assert!(error.message.starts_with("Some of ["), "{error}");
    assert_eq!(world.current(&eni.id).addresses.len(), 2);
}

#[test]
fn an_address_moves_to_another_eni_only_on_request() {
    let mut world = World::new("m5.large");
    let (from, to) = (world.eni(1), world.eni(0));
    let moving = from.addresses[1].address;
    let ask = AssignPrivateIpAddresses { addresses: vec![moving], ..assign(&to) };

    assert_eq!(world.refusal(Request::AssignPrivateIpAddresses(ask.clone())), "InvalidParameterValue");
    let allowed = AssignPrivateIpAddresses { allow_reassignment: true, ..ask };
    world.ask(Request::AssignPrivateIpAddresses(allowed)).unwrap();

    assert_eq!(world.current(&from.id).addresses.len(), 1);
    assert_eq!(world.current(&to.id).addresses[1].address, moving);
}

#[test]
fn the_same_client_token_makes_one_eni_and_refuses_another_question() {
    let mut world = World::new("m5.large");
    let ask = CreateNetworkInterface {
        subnet_id: world.instance.subnet_id.clone(),
        client_token: Some("a-token".to_owned()),
        ..CreateNetworkInterface::default()
    };

    let first = world.create(ask.clone());
    let second = world.create(ask.clone());

    assert_eq!(first.id, second.id);
    assert_eq!(world.cloud.snapshot().enis.len(), 2);
    let other = CreateNetworkInterface { secondary_count: Some(1), ..ask };
    assert_eq!(world.refusal(Request::CreateNetworkInterface(other)), "IdempotentParameterMismatch");
}

#[test]
fn ways_of_asking_for_addresses_do_not_mix() {
    let mut world = World::new("m5.large");
    let eni = world.eni(0);

    let both = AssignPrivateIpAddresses { count: Some(1), prefix_count: Some(1), ..assign(&eni) };
    assert_eq!(world.refusal(Request::AssignPrivateIpAddresses(both)), "InvalidParameterCombination");
    let neither = assign(&eni);
    assert_eq!(world.refusal(Request::AssignPrivateIpAddresses(neither)), "MissingParameter");
    let odd = AssignPrivateIpAddresses { prefixes: vec!["10.0.1.0/27".parse().unwrap()], ..assign(&eni) };
    assert_eq!(world.refusal(Request::AssignPrivateIpAddresses(odd)), "InvalidParameterValue");
}
