use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use super::*;

fn world() -> World {
    World::of(CloudBuilder::two_zones(1).ipv6(), "m5.large")
}

fn primary(world: &World) -> Arc<Eni> {
    world.cloud.snapshot().enis[&world.instance.primary_eni].clone()
}

fn ask(eni: &Eni) -> AssignIpv6Addresses {
    AssignIpv6Addresses { eni_id: eni.id.clone(), ..AssignIpv6Addresses::default() }
}

fn prefix(world: &mut World) -> Ipv6Net {
    let eni = primary(world);
    let one = AssignIpv6Addresses { prefix_count: Some(1), ..ask(&eni) };
    match world.ask(Request::AssignIpv6Addresses(one)).unwrap() {
        Response::AssignedIpv6 { prefixes, .. } => prefixes[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_eni_in_a_subnet_with_ipv6_has_an_address_of_it() {
    let mut world = world();
    let eni = primary(&world);
    let subnet = world.cloud.snapshot().subnets[&eni.subnet_id].clone();

    assert!(subnet.ipv6_cidr.unwrap().contains(&eni.ipv6_addresses[0]));
    assert_eq!(world.imds("/latest/meta-data/ipv6").unwrap(), eni.ipv6_addresses[0].to_string());
    assert_eq!(world.eni(0).ipv6_addresses.len(), 1);
}

#[test]
fn a_delegated_ipv6_prefix_is_a_free_80_of_the_subnet_and_metadata_shows_it() {
    let mut world = world();
    let path = |world: &World, leaf: &str| {
        format!("/latest/meta-data/network/interfaces/macs/{}/{leaf}", primary(world).mac)
    };
    let at = path(&world, "ipv6-prefix");
    assert_eq!(world.imds(&at), Err(404));

    let (one, two) = (prefix(&mut world), prefix(&mut world));

    assert_ne!(one, two);
    assert_eq!(one.prefix_len(), 80);
    let subnet = world.cloud.snapshot().subnets[&primary(&world).subnet_id].clone();
    assert!(subnet.ipv6_cidr.unwrap().contains(&one));
    assert_eq!(world.imds(&at).unwrap(), format!("{one}\n{two}"));
    let cidrs = path(&world, "subnet-ipv6-cidr-blocks");
    assert_eq!(world.imds(&cidrs).unwrap(), subnet.ipv6_cidr.unwrap().to_string());
    let vpc = path(&world, "vpc-ipv6-cidr-blocks");
    assert_eq!(world.imds(&vpc).unwrap(), "2001:db8:1234:1a00::/56");
}

#[test]
fn a_prefix_that_was_given_back_is_gone_and_can_be_asked_for_by_name() {
    let mut world = world();
    let one = prefix(&mut world);
    let eni = primary(&world);
    let back = UnassignIpv6Addresses {
        eni_id: eni.id.clone(),
        prefixes: vec![one],
        ..UnassignIpv6Addresses::default()
    };
    world.ask(Request::UnassignIpv6Addresses(back.clone())).unwrap();
    assert!(primary(&world).ipv6_prefixes.is_empty());

    assert_eq!(world.refusal(Request::UnassignIpv6Addresses(back)), "InvalidParameterValue");
    let again = AssignIpv6Addresses { prefixes: vec![one], ..ask(&eni) };
    world.ask(Request::AssignIpv6Addresses(again.clone())).unwrap();
    assert_eq!(world.refusal(Request::AssignIpv6Addresses(again)), "InvalidParameterValue");
}

#[test]
fn a_subnet_without_ipv6_gives_none() {
    let mut world = World::new("m5.large");
    let eni = primary(&world);
    let one = AssignIpv6Addresses { prefix_count: Some(1), ..ask(&eni) };

    assert!(eni.ipv6_addresses.is_empty());
    assert_eq!(world.imds("/latest/meta-data/ipv6"), Err(404));
    let error = world.ask(Request::AssignIpv6Addresses(one)).unwrap_err();
    assert_eq!(error.code, "InvalidParameterValue");
    assert!(error.message.contains("does not have an IPv6 CIDR block"), "{error}");
}

#[test]
fn ipv6_slots_are_limited_by_the_instance_type_and_wishes_do_not_mix() {
    let mut world = world();
    let eni = primary(&world);
    let nine = AssignIpv6Addresses { prefix_count: Some(9), ..ask(&eni) };
    world.ask(Request::AssignIpv6Addresses(nine)).unwrap();

    let one = AssignIpv6Addresses { count: Some(1), ..ask(&eni) };
    assert_eq!(world.refusal(Request::AssignIpv6Addresses(one)), "PrivateIpAddressLimitExceeded");
    let both = AssignIpv6Addresses { count: Some(1), prefix_count: Some(1), ..ask(&eni) };
    assert_eq!(world.refusal(Request::AssignIpv6Addresses(both)), "InvalidParameterCombination");
    assert_eq!(world.refusal(Request::AssignIpv6Addresses(ask(&eni))), "MissingParameter");
    let foreign = AssignIpv6Addresses { addresses: vec![Ipv6Addr::LOCALHOST], ..ask(&eni) };
    assert_eq!(world.refusal(Request::AssignIpv6Addresses(foreign)), "PrivateIpAddressLimitExceeded");
}

#[test]
fn a_subnet_whose_80s_are_all_delegated_has_none_left() {
    let mut world = world();
    let subnet = primary(&world).subnet_id.clone();
    // A range of four /80 blocks, of which EC2 keeps the first.
    let small: Ipv6Net = "2001:db8:1234:1aff::/78".parse().unwrap();
    world.cloud.set_subnet_ipv6_cidr(world.now, &subnet, Some(small));

    let mut given = vec![prefix(&mut world), prefix(&mut world), prefix(&mut world)];
    given.sort();

    given.dedup();
    assert_eq!(given.len(), 3);
    let one = AssignIpv6Addresses { prefix_count: Some(1), ..ask(&primary(&world)) };
    assert_eq!(world.refusal(Request::AssignIpv6Addresses(one)), "InsufficientCidrBlocks");
}
