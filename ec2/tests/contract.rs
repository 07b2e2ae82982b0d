//! Every action of [`Aws`] against the simulated EC2 of the lab, with credentials from its
//! instance metadata.
#![expect(clippy::unwrap_used, reason = "the functions beside the tests are part of them")]

use std::time::Duration;

use ec2::{
    AttachEni, Aws, AwsOptions, Class, CreateEni, Ec2Error, EniRecord, EniStatus, Imds, ImdsOptions,
    NewAddresses, PaceOptions, Paced, Priority, Tags, eni_description,
};
use lab::cloud::{CloudBuilder, CloudHandle, Fault};
use lab::front::{serve_ec2, serve_imds};
use tokio::net::TcpListener;
use vpc::{EniSlot, InstanceId, SecurityGroupId, SubnetId, VpcId};

const ZONE: &str = "us-west-2a";

/// A world with one m5.large, and our client on it.
struct World {
    cloud: CloudHandle,
    client: Paced<Aws>,
    imds: Imds,
    instance: InstanceId,
    subnet: SubnetId,
    vpc: VpcId,
}

async fn world() -> World {
    world_of(CloudBuilder::two_zones(1)).await
}

async fn world_of(builder: CloudBuilder) -> World {
    let cloud = CloudHandle::start(builder);
    let snapshot = cloud.snapshot();
    let subnet = snapshot.subnets.values().find(|it| it.zone == ZONE).unwrap().id.clone();
    let instance = cloud.run_instance("m5.large", &subnet).unwrap().id.clone();
    let (ec2, imds) = (listener().await, listener().await);
    let (ec2_url, imds_url) = (url(&ec2), url(&imds));
    tokio::spawn(serve_ec2(ec2, cloud.clone()));
    tokio::spawn(serve_imds(imds, cloud.clone(), instance.clone()));
    let imds = Imds::new(&ImdsOptions { endpoint: Some(imds_url), ..ImdsOptions::default() }).unwrap();
    let options = AwsOptions { endpoint: Some(ec2_url), ..AwsOptions::new("us-west-2") };
    let aws = Aws::new(&options, &imds).await;
    World {
        client: Paced::new(aws, PaceOptions::default()),
        imds,
        instance: instance.parse().unwrap(),
        subnet: subnet.parse().unwrap(),
        vpc: snapshot.vpc.id.parse().unwrap(),
        cloud,
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn url(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().unwrap())
}

impl World {
    fn at(&self) -> ec2::At<Aws> {
        self.client.at(Priority::WarmFill)
    }

    async fn primary(&self) -> EniRecord {
        self.at().attached_enis(&self.instance, &[]).await.unwrap().remove(0)
    }

    fn wanted(&self, groups: Vec<SecurityGroupId>, token: &str) -> CreateEni {
        CreateEni {
            subnet: self.subnet.clone(),
            security_groups: groups,
            description: eni_description(&self.instance),
            tags: Tags::from([
                (ec2::INSTANCE_TAG.to_owned(), self.instance.to_string()),
                (ec2::CLUSTER_TAG.to_owned(), "blue".to_owned()),
            ]),
            client_token: token.to_owned(),
            addresses: NewAddresses::SecondaryIps(3),
            connection_tracking: None,
        }
    }

    /// The error that an assignment gives while `fault` is at work.
    async fn error_under(&self, fault: Fault) -> Ec2Error {
        let primary = self.primary().await;
        self.cloud.fault(fault);
        let at = self.at().within(Duration::from_secs(2));
        let error = at.assign_ips(&primary.id, 1).await.unwrap_err();
        self.cloud.clear_faults();
        error
    }
}

#[tokio::test]
async fn an_eni_lives_from_its_making_to_its_end() {
    let world = world().await;
    let at = world.at();
    let primary = world.primary().await;
    assert_eq!(primary.attachment.as_ref().unwrap().slot, EniSlot::PRIMARY);
    assert_eq!(at.taken_slots(&world.instance).await.unwrap(), [EniSlot::PRIMARY]);

    let wanted = world.wanted(primary.security_groups.clone(), "one");
    let made = at.create_eni(&wanted).await.unwrap();
    assert_eq!(made.secondary_ips.len(), 3);
    assert_eq!(at.create_eni(&wanted).await.unwrap().id, made.id, "the same token gives the same ENI");
    let free = at.unattached_enis_of(&world.instance, &world.vpc, Some("blue")).await.unwrap();
    assert_eq!(free.iter().map(|eni| &eni.id).collect::<Vec<_>>(), [&made.id]);
    assert!(at.unattached_enis(&world.vpc, Some("green")).await.unwrap().is_empty());

    let slot = EniSlot::new(0, 1);
    let attach = AttachEni { eni: made.id.clone(), instance: world.instance.clone(), slot };
    let attachment = at.attach_eni(&attach).await.unwrap();
    at.set_delete_on_termination(&made.id, &attachment).await.unwrap();
    at.set_security_groups(&made.id, &primary.security_groups).await.unwrap();
    at.tag(&made.id, &Tags::from([("k".to_owned(), "v".to_owned())])).await.unwrap();

    let enis = at.attached_enis(&world.instance, &[]).await.unwrap();
    let attached = enis.iter().find(|eni| eni.id == made.id).unwrap();
    let place = attached.attachment.as_ref().unwrap();
    assert_eq!((&place.id, place.slot, place.delete_on_termination), (&attachment, slot, true));
    assert_eq!(attached.status, EniStatus::InUse);
    assert_eq!(attached.tags["k"], "v");
    assert!(attached.was_made_for(&world.instance));

    at.detach_eni(&attachment).await.unwrap();
    at.detach_eni(&attachment).await.unwrap();
    at.delete_eni(&made.id).await.unwrap();
    at.delete_eni(&made.id).await.unwrap();
    assert!(at.enis(std::slice::from_ref(&made.id)).await.unwrap().is_empty());
}

#[tokio::test]
async fn addresses_and_prefixes_come_and_go() {
    let world = world().await;
    let at = world.at();
    let eni = world.primary().await.id;

    let ips = at.assign_ips(&eni, 2).await.unwrap();
    let prefixes = at.assign_prefixes(&eni, 1).await.unwrap();
    let held = world.primary().await;
    at.unassign_ips(&eni, &ips).await.unwrap();
    at.unassign_prefixes(&eni, &prefixes).await.unwrap();
    let left = world.primary().await;

    assert_eq!((ips.len(), prefixes.len()), (2, 1));
    assert_eq!((held.secondary_ips, held.prefixes), (ips, prefixes));
    assert_eq!((left.secondary_ips, left.prefixes), (vec![], vec![]));
}

#[tokio::test]
async fn an_ipv6_prefix_comes_and_an_eni_has_an_ipv6_address_of_its_own() {
    let world = world_of(CloudBuilder::two_zones(1).ipv6()).await;
    let at = world.at();
    let primary = world.primary().await;
    let cidr = at.subnets(&world.vpc, ZONE).await.unwrap();
    let cidr = cidr.into_iter().find(|subnet| subnet.id == world.subnet).unwrap().ipv6_cidr.unwrap();
    assert!(primary.prefixes.is_empty() && cidr.contains(&primary.ipv6_addresses[0]), "{primary:?}");

    let prefixes = at.assign_ipv6_prefixes(&primary.id, 1).await.unwrap();
    let wanted = CreateEni {
        addresses: NewAddresses::Ipv6Address,
        ..world.wanted(primary.security_groups.clone(), "one")
    };
    let made = at.create_eni(&wanted).await.unwrap();

    assert!(ipnet::IpNet::from(cidr).contains(&prefixes[0].net()), "{prefixes:?}");
    assert_eq!(world.primary().await.prefixes, prefixes);
    assert_eq!((made.ipv6_addresses.len(), made.prefixes.len()), (1, 0));
}

#[tokio::test]
async fn why_there_is_no_ipv6_prefix_is_told_by_class_and_text() {
    let error_of = async |world: &World| {
        let at = world.at().within(Duration::from_secs(2));
        at.assign_ipv6_prefixes(&world.primary().await.id, 1).await.unwrap_err()
    };
    let on = || Fault::on("AssignIpv6Addresses");
    let denied = Class::Unauthorized { iam_action: "ec2:AssignIpv6Addresses".into() };
    let world = world_of(CloudBuilder::two_zones(1).ipv6()).await;
    for (fault, class, text) in [
        (on().deny(), denied, "allow ec2:AssignIpv6Addresses"),
        (on().error("InsufficientCidrBlocks"), Class::NoFreePrefix, "no free /80"),
        (on().lose_answer(), Class::AnswerLost, "it may be done"),
        (on().throttle(), Class::Throttled, "throttles"),
    ] {
        world.cloud.fault(fault);
        let error = error_of(&world).await;
        world.cloud.clear_faults();

        assert_eq!(error.class(), &class, "{error}");
        assert!(error.to_string().contains(text), "{error} lacks {text}");
    }
    let error = error_of(&self::world().await).await;
    assert_eq!(error.class(), &Class::NoIpv6Block, "{error}");
    assert!(error.to_string().contains("the subnet has no IPv6 block"), "{error}");
}

#[tokio::test]
async fn limits_subnets_and_metadata_are_read() {
    let world = world().await;
    let at = world.at();

    let limits = at.describe_instance_type("m5.large").await.unwrap();
    let subnets = at.subnets(&world.vpc, ZONE).await.unwrap();
    let id = world.imds.get("/latest/meta-data/instance-id").await.unwrap();

    assert_eq!((limits.enis, limits.ipv4_per_eni, limits.vcpus), (3, 10, 2));
    assert_eq!(at.describe_instance_type("x9.none").await.unwrap_err().class(), &Class::NotFound);
    assert!(subnets.iter().any(|it| it.id == world.subnet && it.free_addresses > 4000), "{subnets:?}");
    assert_eq!(id.as_deref(), Some(world.instance.as_str()));
    assert_eq!(world.imds.get("/latest/meta-data/no-such-thing").await.unwrap(), None);
}

#[tokio::test]
async fn limits_of_an_eni_and_an_instance_are_told_apart() {
    let world = world().await;
    let at = world.at();
    let primary = world.primary().await;
    let attach = |eni: &EniRecord, device| AttachEni {
        eni: eni.id.clone(),
        instance: world.instance.clone(),
        slot: EniSlot::new(0, device),
    };

    let full = at.assign_ips(&primary.id, 10).await.unwrap_err();
    let mut made = Vec::new();
    for token in ["one", "two", "three"] {
        made.push(at.create_eni(&world.wanted(primary.security_groups.clone(), token)).await.unwrap());
    }
    at.attach_eni(&attach(&made[0], 1)).await.unwrap();
    let taken = at.attach_eni(&attach(&made[1], 1)).await.unwrap_err();
    at.attach_eni(&attach(&made[1], 2)).await.unwrap();
    let too_many = at.attach_eni(&attach(&made[2], 3)).await.unwrap_err();
    let in_use = at.delete_eni(&made[0].id).await.unwrap_err();

    assert_eq!(full.class(), &Class::AddressLimit, "{full}");
    assert_eq!(taken.class(), &Class::SlotInUse, "{taken}");
    assert_eq!(too_many.class(), &Class::AttachmentLimit, "{too_many}");
    assert_eq!(in_use.class(), &Class::Busy, "{in_use}");
}

#[tokio::test]
async fn faults_come_out_as_their_class() {
    let world = world().await;
    let on = || Fault::on("AssignPrivateIpAddresses");
    let denied = Class::Unauthorized { iam_action: "ec2:AssignPrivateIpAddresses".into() };
    for (fault, class) in [
        (on().deny(), denied),
        (on().auth_failure(), Class::Credentials),
        (on().expired(), Class::Credentials),
        (on().expired_token(), Class::Credentials),
        (on().error("InsufficientFreeAddressesInSubnet"), Class::SubnetExhausted),
        (on().error("InsufficientCidrBlocks"), Class::NoFreePrefix),
        (on().error("InternalError"), Class::Unavailable),
        (on().drop_request(), Class::AnswerLost),
        (on().lose_answer(), Class::AnswerLost),
        (on().hang(), Class::AnswerLost),
        (on().throttle(), Class::Throttled),
    ] {
        let described = format!("{fault:?}");

        let error = world.error_under(fault).await;

        assert_eq!(error.class(), &class, "{described}: {error}");
    }
}
