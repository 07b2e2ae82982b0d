//! Whatever is asked in whatever order, the books of the world balance.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;

/// A request that may make sense or not.
fn some_request(world: &World, dice: &mut Dice) -> Request {
    let enis: Vec<Arc<Eni>> = world.cloud.snapshot().enis.values().cloned().collect();
    let eni = enis[usize::try_from(dice.below(enis.len() as u64)).unwrap()].clone();
    let small = |dice: &mut Dice| u16::try_from(dice.below(5)).unwrap();
    match dice.below(8) {
        0 => Request::CreateNetworkInterface(CreateNetworkInterface {
            subnet_id: world.instance.subnet_id.clone(),
            secondary_count: Some(small(dice)),
            ..CreateNetworkInterface::default()
        }),
        1 => Request::CreateNetworkInterface(CreateNetworkInterface {
            subnet_id: world.instance.subnet_id.clone(),
            prefix_count: Some(small(dice)),
            ..CreateNetworkInterface::default()
        }),
        2 => world.attach_request(&eni, 0, small(dice)),
        3 => Request::DetachNetworkInterface(DetachNetworkInterface {
            attachment_id: eni.attachment.as_ref().map(|it| it.id.clone()).unwrap_or_default(),
            force: dice.below(2) == 0,
        }),
        4 => Request::DeleteNetworkInterface { eni_id: eni.id.clone() },
        5 => Request::AssignPrivateIpAddresses(AssignPrivateIpAddresses {
            count: Some(small(dice)),
            ..assign(&eni)
        }),
        6 => Request::AssignPrivateIpAddresses(AssignPrivateIpAddresses {
            prefix_count: Some(small(dice)),
            ..assign(&eni)
        }),
        _ => Request::UnassignPrivateIpAddresses(UnassignPrivateIpAddresses {
            eni_id: eni.id.clone(),
            addresses: eni.addresses.iter().skip(1).take(2).map(|ip| ip.address).collect(),
            prefixes: eni.prefixes.iter().take(1).copied().collect(),
        }),
    }
}

fn check(world: &World) {
    let snapshot = world.cloud.snapshot();
    let subnet = &snapshot.subnets[&world.instance.subnet_id];
    let mut used: BTreeSet<Ipv4Addr> = BTreeSet::new();
    for eni in snapshot.enis.values() {
        let own = eni.addresses.iter().map(|ip| ip.address);
        let delegated = eni
            .prefixes
            .iter()
            .flat_map(|it| (u32::from(it.network())..=u32::from(it.broadcast())).map(Ipv4Addr::from));
        for address in own.chain(delegated) {
            assert!(subnet.cidr.contains(&address), "{address} is outside of {}", subnet.cidr);
            assert!(used.insert(address), "{address} is used twice");
        }
        assert!(eni.addresses.first().is_some_and(|ip| ip.is_primary));
        assert!(eni.attachment.is_none() || eni.slots_used() <= 10, "{eni:?}");
    }
    let size = 1_u32 << (32 - subnet.cidr.prefix_len());
    assert_eq!(subnet.available, size - 5 - u32::try_from(used.len()).unwrap());
    let attached: Vec<_> = snapshot.enis.values().filter(|it| it.attachment.is_some()).collect();
    assert!(attached.len() <= 3, "{attached:?}");
}

#[test]
fn addresses_are_used_once_and_counted_right_whatever_is_asked() {
    for seed in 0..40 {
        let builder = CloudBuilder::new(seed).subnet("10.0.0.0/24".parse().unwrap(), "us-west-2a");
        let mut world = World::of(builder, "m5.large");
        world.cloud.set_attach_delay(Duration::from_secs(seed % 3));
        world.cloud.set_detach_delay(Duration::from_secs(seed % 4));
        let dice = &mut Dice::new(seed);
        let mut granted = 0;

        for _ in 0..300 {
            let request = some_request(&world, dice);
            granted += u32::from(world.ask(request).is_ok());
            world.pass(Duration::from_millis(dice.below(1500)));
            check(&world);
        }

        assert!(granted > 60, "seed {seed}: only {granted} requests were granted");
    }
}
