//! Lag, faults, throttling and credentials.

use super::*;

fn describe() -> Request {
    Request::DescribeNetworkInterfaces(Describe::default())
}

impl World {
    /// One call of a person through the front door: its error code, `ok`, or how it was left.
    fn call(&mut self, request: &Request) -> String {
        self.call_as(&Caller::person(), request)
    }

    fn call_as(&mut self, caller: &Caller, request: &Request) -> String {
        match self.cloud.call(self.now, caller, request) {
            Reply::Answer(Ok(_)) => "ok".to_owned(),
            Reply::Answer(Err(error)) => error.code.to_string(),
            Reply::Closed => "closed".to_owned(),
            Reply::Never => "never".to_owned(),
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.cloud.fault(self.now, fault);
    }

    fn role(&mut self) -> Caller {
        let id = self.instance.id.clone();
        let it = self.cloud.role_credentials(self.now, &id).unwrap();
        Caller { access_key: Some(it.access_key), token: it.token }
    }
}

#[test]
fn imds_shows_what_was_true_a_lag_ago() {
    let mut world = World::new("m5.large");
    world.pass(Duration::from_secs(100));
    world.cloud.set_imds_lag(world.now, Duration::from_secs(30));
    let eni = world.eni(2);
    world.attach(&eni, 1);
    let path = format!("/latest/meta-data/network/interfaces/macs/{}/local-ipv4s", eni.mac);

    world.pass(Duration::from_secs(29));
    assert_eq!(world.imds(&path), Err(404));
    world.pass(Duration::from_secs(1));

    let expected: Vec<_> = eni.addresses.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(world.imds(&path), Ok(expected.join("\n")));
    assert_eq!(world.imds("/latest/meta-data/instance-id"), Ok(world.instance.id.clone()));
}

#[test]
fn a_lag_that_grows_stops_imds_but_takes_nothing_back() {
    let mut world = World::new("m5.large");
    let macs =
        |world: &mut World| world.imds("/latest/meta-data/network/interfaces/macs").unwrap().lines().count();
    let at = |world: &mut World, seconds| world.now = Duration::from_secs(seconds);
    at(&mut world, 50);
    let first = world.eni(0);
    world.attach(&first, 1);
    at(&mut world, 60);
    world.cloud.set_imds_lag(world.now, Duration::from_secs(30));
    assert_eq!(macs(&mut world), 2);

    at(&mut world, 70);
    let second = world.eni(0);
    let attachment_id = world.attach(&second, 2);
    assert_eq!(macs(&mut world), 2);
    at(&mut world, 99);
    let detach = DetachNetworkInterface { attachment_id, force: false };
    world.ask(Request::DetachNetworkInterface(detach)).unwrap();
    assert_eq!(macs(&mut world), 2);
    at(&mut world, 100);
    assert_eq!(macs(&mut world), 3);
    at(&mut world, 129);
    assert_eq!(macs(&mut world), 2);
}

#[test]
fn a_new_instance_knows_itself_however_long_the_lag() {
    let mut world = World::new("m5.large");
    world.pass(Duration::from_secs(100));
    world.cloud.set_imds_lag(world.now, Duration::from_secs(60));
    let subnet_id = world.instance.subnet_id.clone();
    let spec = LaunchSpec { instance_type: "m5.large".to_owned(), subnet_id, ..LaunchSpec::default() };
    world.instance = world.cloud.run_instance(world.now, spec).unwrap();

    assert_eq!(world.imds("/latest/meta-data/local-ipv4"), Ok(world.instance.private_ip.to_string()));
}

#[test]
fn imds_lists_directories_and_leaves_out_what_is_not_there() {
    let mut world = World::new("m5.large");
    let mac = world.current(&world.instance.primary_eni).mac.clone();
    let macs = "/latest/meta-data/network/interfaces/macs";

    assert_eq!(world.imds(macs), Ok(format!("{mac}/")));
    assert_eq!(world.imds(&format!("{macs}/")), Ok(format!("{mac}/")));
    let fields = world.imds(&format!("{macs}/{mac}/")).unwrap();
    let expected = "device-number\ninterface-id\nlocal-hostname\nlocal-ipv4s\nmac\nowner-id\n\
                    security-group-ids\nsecurity-groups\nsubnet-id\nsubnet-ipv4-cidr-block\nvpc-id\n\
                    vpc-ipv4-cidr-block\nvpc-ipv4-cidr-blocks";
    assert_eq!(fields, expected);
    assert_eq!(world.imds(&format!("{macs}/{mac}/ipv4-prefix")), Err(404));
    assert_eq!(world.imds("/latest/meta-data/ipv6"), Err(404));
    assert_eq!(world.imds("/latest/meta-data/mac/"), Err(404));
    assert_eq!(world.imds("/latest/meta-data/placement/"), {
        Ok("availability-zone\navailability-zone-id\nregion".to_owned())
    });
    assert_eq!(world.imds("/latest/meta-data/iam/security-credentials/"), Ok("lab-node".to_owned()));
    world.cloud.set_role_credentials(RoleCredentials::Missing);
    assert_eq!(world.imds("/latest/meta-data/iam/security-credentials/"), Err(404));
}

#[test]
fn prefixes_and_network_cards_appear_where_there_are_any() {
    let mut world = World::new("p5.48xlarge");
    let primary = world.current(&world.instance.primary_eni);
    let one = AssignPrivateIpAddresses { prefix_count: Some(1), ..assign(&primary) };
    world.ask(Request::AssignPrivateIpAddresses(one)).unwrap();
    let prefix = world.current(&primary.id).prefixes[0];
    let of = format!("/latest/meta-data/network/interfaces/macs/{}", primary.mac);

    assert_eq!(world.imds(&format!("{of}/ipv4-prefix")), Ok(prefix.to_string()));
    assert_eq!(world.imds(&format!("{of}/network-card")), Ok("0".to_owned()));
}

#[test]
fn a_fault_strikes_as_often_as_told_and_only_its_action() {
    let mut world = World::new("m5.large");
    world.fault(Fault::on("AttachNetworkInterface").error("InternalError").times(1));
    let eni = world.eni(0);
    let attach = world.attach_request(&eni, 0, 1);

    assert_eq!(world.call(&describe()), "ok");
    assert_eq!(world.call(&attach), "InternalError");
    assert_eq!(world.current(&eni.id).status(), "available");
    assert_eq!(world.call(&attach), "ok");
}

#[test]
fn a_lost_answer_means_work_done_and_a_dropped_request_means_none() {
    let mut world = World::new("m5.large");
    world.fault(Fault::on("CreateNetworkInterface").lose_answer().times(1));
    world.fault(Fault::on("CreateNetworkInterface").drop_request().times(1));
    world.fault(Fault::on("CreateNetworkInterface").hang().times(1));
    let subnet_id = world.instance.subnet_id.clone();
    let create = Request::CreateNetworkInterface(CreateNetworkInterface { subnet_id, ..Default::default() });
    let enis = |world: &World| world.cloud.snapshot().enis.len();

    assert_eq!((world.call(&create).as_str(), enis(&world)), ("closed", 2));
    assert_eq!((world.call(&create).as_str(), enis(&world)), ("closed", 2));
    assert_eq!((world.call(&create).as_str(), enis(&world)), ("never", 2));
    assert_eq!((world.call(&create).as_str(), enis(&world)), ("ok", 3));
    let outcomes: Vec<_> = world.cloud.calls().into_iter().filter_map(|it| it.outcome).collect();
    assert_eq!(outcomes, [Outcome::AnswerLost, Outcome::Dropped, Outcome::Hung, Outcome::Success]);
}

#[test]
fn a_fault_ends_with_its_time_and_minds_its_condition() {
    let mut world = World::new("m5.large");
    world.fault(Fault::on("*").throttle().lasting(Duration::from_secs(10)));
    world.fault(Fault::on("*").deny().when(|call| call.instance.is_some()));
    let role = world.role();

    assert_eq!(world.call(&describe()), "RequestLimitExceeded");
    world.pass(Duration::from_secs(10));
    assert_eq!(world.call(&describe()), "ok");
    assert_eq!(world.call_as(&role, &describe()), "UnauthorizedOperation");
    assert_eq!(world.cloud.counts()["DescribeNetworkInterfaces"].throttled, 1);
    let of_node = world.cloud.counts_of(&world.instance.id);
    assert_eq!(of_node["DescribeNetworkInterfaces"].received, 1);
}

#[test]
fn changing_and_reading_drain_different_buckets() {
    let mut world = World::new("m5.large");
    let spec = BucketSpec { capacity: 1.0, refill: 0.1 };
    world.cloud.set_bucket(world.now, ActionClass::Describe, Some(spec));
    let eni = world.eni(0);
    let delete = Request::DeleteNetworkInterface { eni_id: eni.id.clone() };

    assert_eq!(world.call(&describe()), "ok");
    assert_eq!(world.call(&describe()), "RequestLimitExceeded");
    assert_eq!(world.call(&delete), "ok");
    world.pass(Duration::from_secs(10));
    assert_eq!(world.call(&describe()), "ok");
}

#[test]
fn only_known_and_current_credentials_are_let_in() {
    let mut world = World::new("m5.large");
    world.cloud.set_credential_lifetime(Duration::from_secs(3600));
    let role = world.role();
    let stranger = Caller { access_key: Some("AKIAWHO".to_owned()), token: None };
    let tokenless = Caller { token: None, ..role.clone() };

    assert_eq!(world.call_as(&role, &describe()), "ok");
    assert_eq!(world.call_as(&stranger, &describe()), "AuthFailure");
    assert_eq!(world.call_as(&tokenless, &describe()), "AuthFailure");
    assert_eq!(world.call_as(&Caller::default(), &describe()), "MissingAuthenticationToken");
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.call_as(&role, &describe()), "RequestExpired");
    let fresh = world.role();
    assert_eq!(world.call_as(&fresh, &describe()), "ok");
}

#[test]
fn credentials_rotate_before_their_end_unless_told_to_go_stale() {
    let mut world = World::new("m5.large");
    world.cloud.set_credential_lifetime(Duration::from_secs(3600));
    let first = world.role();

    world.pass(Duration::from_secs(3290));
    assert_eq!(world.role(), first);
    world.pass(Duration::from_secs(20));
    let second = world.role();
    assert_ne!(second, first);
    assert_eq!(world.call_as(&first, &describe()), "ok", "the old one lives to its end");
    world.cloud.set_role_credentials(RoleCredentials::Stale);
    world.pass(Duration::from_secs(4000));
    assert_eq!(world.role(), second);
    assert_eq!(world.call_as(&second, &describe()), "RequestExpired");
}

#[test]
fn the_same_seed_and_calls_give_the_same_world() {
    let play = |seed| {
        let mut world = World::of(CloudBuilder::two_zones(seed), "m5.large");
        let eni = world.eni(3);
        world.attach(&eni, 1);
        (*world.cloud.snapshot()).clone()
    };

    assert_eq!(play(5), play(5));
    assert_ne!(play(5), play(6));
}

#[test]
fn a_fragmented_subnet_has_addresses_and_no_prefix_until_the_others_leave() {
    let mut world = World::new("m5.large");
    let subnet = world.instance.subnet_id.clone();
    let prefix = |eni_id: &str| {
        Request::AssignPrivateIpAddresses(AssignPrivateIpAddresses {
            eni_id: eni_id.to_owned(),
            prefix_count: Some(1),
            ..AssignPrivateIpAddresses::default()
        })
    };
    let primary = world.instance.primary_eni.clone();

    world.cloud.fragment_subnet(world.now, &subnet).unwrap();

    assert!(world.free() > 3000);
    assert_eq!(world.refusal(prefix(&primary)), "InsufficientCidrBlocks");
    world.cloud.vacate_subnet(world.now, &subnet).unwrap();
    world.ask(prefix(&primary)).unwrap();
}

#[test]
fn an_occupied_subnet_has_as_many_addresses_as_were_left() {
    let mut world = World::new("m5.large");
    let subnet = world.instance.subnet_id.clone();
    let before = world.free();

    world.cloud.occupy_subnet(world.now, &subnet, 2).unwrap();

    assert_eq!(world.free(), 2);
    world.cloud.vacate_subnet(world.now, &subnet).unwrap();
    assert_eq!(world.free(), before);
    assert_eq!(
        world.cloud.occupy_subnet(world.now, "subnet-1", 2).unwrap_err().code,
        "InvalidSubnetID.NotFound"
    );
}

#[test]
fn tags_come_and_go_by_any_hand() {
    let mut world = World::new("m5.large");
    let subnet = world.instance.subnet_id.clone();
    let tags = |world: &World| world.cloud.snapshot().subnets[&subnet].tags.clone();

    world.cloud.set_tag(world.now, &subnet, "kubernetes.io/role/cni", Some("0")).unwrap();

    assert_eq!(tags(&world)["kubernetes.io/role/cni"], "0");
    world.cloud.set_tag(world.now, &subnet, "kubernetes.io/role/cni", None).unwrap();
    assert!(tags(&world).is_empty());
}
