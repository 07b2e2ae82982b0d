//! Attaching and detaching: limits, delays, refusals.

use super::*;

#[test]
fn an_instance_takes_no_more_enis_than_its_type_gives() {
    let mut world = World::new("t3.small");
    for index in 1..3 {
        let eni = world.eni(0);
        world.attach(&eni, index);
    }

    let fourth = world.eni(0);
    let error = world.ask(world.attach_request(&fourth, 0, 3)).unwrap_err();

    assert_eq!(error.code, "AttachmentLimitExceeded");
    assert_eq!(error.message, "Interface count 4 exceeds the limit for t3.small");
    assert_eq!(world.current(&fourth.id).status(), "available");
}

#[test]
fn each_network_card_has_its_own_limit_and_its_own_device_indexes() {
    let mut world = World::new("p5.48xlarge");
    let enis: Vec<_> = (0..4).map(|_| world.eni(0)).collect();

    world.ask(world.attach_request(&enis[0], 7, 0)).unwrap();
    world.ask(world.attach_request(&enis[1], 7, 1)).unwrap();

    assert_eq!(world.refusal(world.attach_request(&enis[2], 7, 2)), "AttachmentLimitExceeded");
    assert_eq!(world.refusal(world.attach_request(&enis[2], 32, 0)), "InvalidParameterValue");
    world.ask(world.attach_request(&enis[2], 8, 1)).unwrap();
    let places: Vec<_> = world
        .cloud
        .snapshot()
        .attached(&world.instance.id)
        .iter()
        .map(|eni| eni.attachment.as_ref().map(|it| (it.network_card, it.device_index)).unwrap())
        .collect();
    assert_eq!(places, [(0, 0), (7, 0), (7, 1), (8, 1)]);
}

#[test]
fn attach_refuses_what_ec2_refuses() {
    let mut world = World::new("m5.large");
    let eni = world.eni(0);
    assert_eq!(world.refusal(world.attach_request(&eni, 0, 0)), "InvalidParameterValue");
    world.attach(&eni, 1);

    assert_eq!(world.refusal(world.attach_request(&eni, 0, 2)), "InvalidNetworkInterface.InUse");
    let other = world.eni(0);
    assert_eq!(world.refusal(world.attach_request(&other, 0, 1)), "InvalidParameterValue");
    let crowded = world.eni(10);
    assert_eq!(world.refusal(world.attach_request(&crowded, 0, 2)), "PrivateIpAddressLimitExceeded");
    let subnets = world.cloud.snapshot().subnets.clone();
    let elsewhere = subnets.values().find(|it| it.zone == "us-west-2b").unwrap();
    let far = world.create(CreateNetworkInterface {
        subnet_id: elsewhere.id.clone(),
        ..CreateNetworkInterface::default()
    });
    assert_eq!(world.refusal(world.attach_request(&far, 0, 2)), "InvalidParameterCombination");
}

#[test]
fn an_eni_in_use_stays_and_a_detached_one_goes() {
    let mut world = World::new("m5.large");
    let before = world.free();
    let eni = world.eni(3);
    let attachment_id = world.attach(&eni, 1);
    let delete = Request::DeleteNetworkInterface { eni_id: eni.id.clone() };

    let error = world.ask(delete.clone()).unwrap_err();
    assert_eq!(error.message, format!("Network interface '{}' is currently in use.", eni.id));
    let detach = |attachment_id: &str| {
        let attachment_id = attachment_id.to_owned();
        Request::DetachNetworkInterface(DetachNetworkInterface { attachment_id, force: false })
    };
    world.ask(detach(&attachment_id)).unwrap();
    world.ask(delete.clone()).unwrap();

    assert_eq!(world.free(), before);
    assert_eq!(world.refusal(delete), "InvalidNetworkInterfaceID.NotFound");
    assert_eq!(world.refusal(detach(&attachment_id)), "InvalidAttachmentID.NotFound");
    let primary = world.current(&world.instance.primary_eni).attachment.clone().unwrap();
    assert_eq!(world.refusal(detach(&primary.id)), "OperationNotPermitted");
}

#[test]
fn attaching_and_detaching_take_their_time() {
    let mut world = World::new("m5.large");
    world.cloud.set_attach_delay(Duration::from_secs(2));
    world.cloud.set_detach_delay(Duration::from_secs(3));
    let eni = world.eni(0);
    let attachment_id = world.attach(&eni, 1);
    let state = |world: &mut World| {
        world.cloud.advance(world.now);
        world.current(&eni.id).attachment.as_ref().map(|it| it.status)
    };

    assert_eq!(state(&mut world), Some(AttachmentStatus::Attaching));
    assert_eq!(world.cloud.snapshot().attached(&world.instance.id).len(), 1);
    assert_eq!(world.cloud.next_transition(), Some(Duration::from_secs(2)));
    world.pass(Duration::from_secs(2));
    assert_eq!(state(&mut world), Some(AttachmentStatus::Attached));
    assert_eq!(world.cloud.snapshot().attached(&world.instance.id).len(), 2);

    let detach = DetachNetworkInterface { attachment_id, force: false };
    world.ask(Request::DetachNetworkInterface(detach)).unwrap();
    assert_eq!(state(&mut world), Some(AttachmentStatus::Detaching));
    let delete = Request::DeleteNetworkInterface { eni_id: eni.id.clone() };
    assert_eq!(world.refusal(delete.clone()), "InvalidParameterValue");
    world.pass(Duration::from_secs(3));
    world.ask(delete).unwrap();
}

#[test]
fn a_terminated_instance_takes_along_what_was_marked_so() {
    let mut world = World::new("m5.large");
    let (goes, stays) = (world.eni(0), world.eni(0));
    let attachment_id = world.attach(&goes, 1);
    world.attach(&stays, 2);
    let change = EniChange::DeleteOnTermination { attachment_id, value: true };
    let eni_id = goes.id.clone();
    world
        .ask(Request::ModifyNetworkInterfaceAttribute(ModifyNetworkInterfaceAttribute { eni_id, change }))
        .unwrap();

    world.cloud.terminate_instance(world.now, &world.instance.id.clone()).unwrap();

    let snapshot = world.cloud.snapshot();
    assert_eq!(snapshot.enis.keys().collect::<Vec<_>>(), [&stays.id]);
    assert_eq!(snapshot.enis[&stays.id].status(), "available");
    assert_eq!(world.imds("/latest/meta-data/instance-id"), Err(404));
}

#[test]
fn every_visible_change_has_a_version_of_its_own() {
    let mut world = World::new("m5.large");
    let mut last = world.cloud.snapshot().version;
    let eni = world.eni(0);
    let mut is_new = |world: &World| {
        let version = world.cloud.snapshot().version;
        std::mem::replace(&mut last, version) != version
    };

    assert!(is_new(&world));
    world.attach(&eni, 1);
    assert!(is_new(&world));
    world.ask(Request::DescribeSubnets(Describe::default())).unwrap();
    world.refusal(world.attach_request(&eni, 0, 1));
    assert!(!is_new(&world));
    world
        .cloud
        .set_vpc_cidrs(world.now, vec!["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()]);
    assert!(is_new(&world));
}
