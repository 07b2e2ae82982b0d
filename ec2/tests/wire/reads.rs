//! Reading: ENIs, subnets, positions, limits.

use ec2::{
    Attachment, AttachmentStatus, Class, ConnectionTracking, Ec2, EniQuery, EniRecord, EniStatus, Priority,
    Tags,
};
use vpc::{EniKind, EniSlot};

use crate::answers::{answer, enis, free_eni, full_eni, refusal};
use crate::server::{Reply, Seen};
use crate::{id, paced, plain};

const UNKNOWN: &str = "InvalidNetworkInterfaceID.NotFound";

fn ids(records: &[EniRecord]) -> Vec<&str> {
    records.iter().map(|record| record.id.as_str()).collect()
}

#[tokio::test]
async fn an_eni_is_read_with_all_that_it_holds() {
    let (server, aws) = plain(|_| enis(&[full_eni("eni-01")], None)).await;

    let page = aws.describe_enis(&EniQuery::AttachedTo(id("i-0aa")), None).await.unwrap();

    assert_eq!(page.next, None);
    assert_eq!(
        page.items,
        [EniRecord {
            id: id("eni-01"),
            mac: id("02:7d:5c:01:02:03"),
            subnet: id("subnet-0b1"),
            vpc: id("vpc-0c1"),
            availability_zone: "us-west-2a".to_owned(),
            status: EniStatus::InUse,
            attachment: Some(Attachment {
                id: id("eni-attach-0e1"),
                instance: id("i-0aa"),
                slot: EniSlot::new(2, 1),
                delete_on_termination: true,
                status: AttachmentStatus::Attached,
            }),
            kind: EniKind::Trunk,
            primary_ip: Some(id("10.0.1.10")),
            secondary_ips: vec![id("10.0.1.12"), id("10.0.1.11")],
            ipv6_addresses: vec![id("2001:db8::5")],
            prefixes: vec![id("10.0.1.32/28"), id("2001:db8:0:0:1::/80")],
            security_groups: vec![id("sg-0d2"), id("sg-0d1")],
            connection_tracking: Some(ConnectionTracking {
                tcp_established_secs: Some(350),
                udp_stream_secs: None,
                udp_secs: Some(30),
            }),
            tags: Tags::from([
                ("node.k8s.amazonaws.com/instance_id".to_owned(), "i-0aa".to_owned()),
                ("empty".to_owned(), String::new()),
            ]),
            description: "aws-K8S-i-0aa".to_owned(),
        }]
    );
    let seen = server.only();
    assert_eq!(seen.action(), "DescribeNetworkInterfaces");
    assert_eq!(seen.field("Filter.1.Name"), "attachment.instance-id");
    assert_eq!(seen.field("Filter.1.Value.1"), "i-0aa");
    assert_eq!(seen.field("MaxResults"), "1000");
    assert!(seen.headers["authorization"].contains("Credential=AKIATEST/"), "{seen:?}");
    assert!(seen.headers["authorization"].contains("/us-west-2/ec2/"), "{seen:?}");
    assert!(seen.headers["user-agent"].ends_with(" amazon-vpc-cni-k8s/v9.8.7"), "{seen:?}");
}

#[tokio::test]
async fn a_field_that_is_missing_or_makes_no_sense_is_named_with_its_value() {
    for (field, bad, text) in [
        ("<macAddress>02:7d:5c:01:02:03</macAddress>", "", "eni-01.macAddress is missing"),
        ("02:7d:5c:01:02:03", "zz", r#"eni-01.macAddress is "zz": "#),
        ("<networkInterfaceId>eni-01</networkInterfaceId>", "", "networkInterfaceId is missing"),
        ("<subnetId>subnet-0b1", "<subnetId>eni-0b1", r#"eni-01.subnetId is "eni-0b1": "#),
        ("<status>in-use", "<status>sleeping", r#"eni-01.status is "sleeping": expected available"#),
        ("<status>attached", "<status>stuck", r#"eni-01.attachment.status is "stuck": expected attaching"#),
        ("<deviceIndex>1</deviceIndex>", "", "eni-01.attachment.deviceIndex is missing"),
        ("<deviceIndex>1", "<deviceIndex>-1", "eni-01.attachment.deviceIndex is -1: "),
        ("<networkCardIndex>2", "<networkCardIndex>70000", "eni-01.attachment.networkCardIndex is 70000: "),
        ("10.0.1.12", "10.0.1.256", r#"privateIpAddressesSet.privateIpAddress is "10.0.1.256": "#),
        ("10.0.1.32/28", "10.0.1.32/27", r#"ipv4PrefixSet.ipv4Prefix is "10.0.1.32/27": "#),
        ("eni-attach-0e1", "x", r#"eni-01.attachment.attachmentId is "x": "#),
    ] {
        let content = full_eni("eni-01").replace(field, bad);
        let (_server, aws) = plain(move |_| enis(std::slice::from_ref(&content), None)).await;

        let error = aws.describe_enis(&EniQuery::AttachedTo(id("i-0aa")), None).await.unwrap_err();

        assert_eq!(error.class(), &Class::Malformed, "{error}");
        let start = "DescribeNetworkInterfaces attached to i-0aa: EC2's answer makes no sense (";
        assert!(error.to_string().starts_with(start), "{error}");
        assert!(error.to_string().contains(text), "{error} lacks {text}");
    }
}

#[tokio::test]
async fn an_eni_of_an_aws_service_is_read_as_attached_to_no_instance() {
    let content =
        full_eni("eni-01").replace("<instanceId>i-0aa</instanceId>", "").replace("eni-attach", "ela-attach");
    let (_server, aws) = plain(move |_| enis(std::slice::from_ref(&content), None)).await;

    let page = aws.describe_enis(&EniQuery::Ids(vec![id("eni-01")]), None).await.unwrap();

    assert_eq!(page.items[0].attachment, None);
}

#[tokio::test]
async fn pages_are_followed_to_the_last() {
    let (server, client) = paced(|seen: &Seen| match seen.field("NextToken") {
        "" => enis(&[full_eni("eni-01")], Some("second")),
        "second" => enis(&[full_eni("eni-02")], Some("third")),
        _ => enis(&[full_eni("eni-03")], None),
    })
    .await;

    let records = client.at(Priority::Reconcile).attached_enis(&id("i-0aa"), &[]).await.unwrap();

    assert_eq!(ids(&records), ["eni-01", "eni-02", "eni-03"]);
    assert_eq!(server.fields("NextToken"), ["", "second", "third"]);
}

#[tokio::test]
async fn what_metadata_shows_and_the_answer_lacks_is_looked_up_by_id() {
    let (server, client) = paced(|seen: &Seen| {
        if !seen.field("Filter.1.Name").is_empty() {
            return enis(&[full_eni("eni-01")], None);
        }
        match (seen.field("NetworkInterfaceId.1"), seen.field("NetworkInterfaceId.2")) {
            ("eni-02", "eni-03") => refusal(400, UNKNOWN, "The networkInterface ID 'eni-02' does not exist"),
            ("eni-03", "") => enis(&[full_eni("eni-03")], None),
            other => panic!("{other:?}"),
        }
    })
    .await;
    let shown = [id("eni-03"), id("eni-01"), id("eni-02")];

    let records = client.at(Priority::Reconcile).attached_enis(&id("i-0aa"), &shown).await.unwrap();

    assert_eq!(ids(&records), ["eni-01", "eni-03"]);
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn enis_of_other_instances_are_left_out_whatever_ec2_answers() {
    let other = full_eni("eni-02").replace("i-0aa", "i-0bb");
    let (_server, client) =
        paced(move |_| enis(&[full_eni("eni-01"), other.clone(), free_eni("eni-03", "i-0aa")], None)).await;

    let records = client.at(Priority::Reconcile).attached_enis(&id("i-0aa"), &[]).await.unwrap();

    assert_eq!(ids(&records), ["eni-01"]);
}

#[tokio::test]
async fn an_ec2_that_knows_no_filters_is_asked_by_id_and_not_with_the_filter_again() {
    let (server, client) = paced(|seen: &Seen| {
        if seen.field("Filter.1.Name").is_empty() {
            enis(&[full_eni("eni-01")], None)
        } else {
            refusal(400, "InvalidParameterValue", "The filter 'attachment.instance-id' is invalid")
        }
    })
    .await;
    let at = client.at(Priority::Reconcile);

    let first = at.attached_enis(&id("i-0aa"), &[id("eni-01")]).await.unwrap();
    let second = at.attached_enis(&id("i-0aa"), &[id("eni-01")]).await.unwrap();

    assert_eq!((ids(&first), ids(&second)), (vec!["eni-01"], vec!["eni-01"]));
    assert_eq!(server.fields("Filter.1.Name"), ["attachment.instance-id", "", ""]);
}

#[tokio::test]
async fn a_missing_permission_is_no_reason_to_ask_in_another_way() {
    let (server, client) = paced(|_| refusal(403, "UnauthorizedOperation", "You are not authorized")).await;

    let error =
        client.at(Priority::Reconcile).attached_enis(&id("i-0aa"), &[id("eni-01")]).await.unwrap_err();

    assert_eq!(error.class(), &Class::Unauthorized { iam_action: "ec2:DescribeNetworkInterfaces".into() });
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn where_ec2_does_not_say_which_eni_it_misses_each_is_asked_for() {
    let (_server, client) = paced(|seen: &Seen| match seen.field("NetworkInterfaceId.2") {
        "" if seen.field("NetworkInterfaceId.1") == "eni-02" => enis(&[full_eni("eni-02")], None),
        _ => refusal(400, UNKNOWN, "no such thing"),
    })
    .await;

    let records = client.at(Priority::Reconcile).enis(&[id("eni-01"), id("eni-02")]).await.unwrap();

    assert_eq!(ids(&records), ["eni-02"]);
}

#[tokio::test]
async fn unattached_enis_are_kept_only_if_description_and_tag_say_whose_they_are() {
    let foreign = free_eni("eni-03", "i-0aa").replace("aws-K8S-i-0aa", "made by hand");
    let in_use = full_eni("eni-04");
    let other_cluster = free_eni("eni-05", "i-0aa").replace("blue", "green");
    let (server, client) = paced(move |_| {
        let all = [
            free_eni("eni-01", "i-0aa"),
            free_eni("eni-02", "i-0bb"),
            foreign.clone(),
            in_use.clone(),
            other_cluster.clone(),
        ];
        enis(&all, None)
    })
    .await;
    let at = client.at(Priority::Sweep);
    let (vpc, instance) = (id("vpc-0c1"), id("i-0aa"));

    let own = at.unattached_enis_of(&instance, &vpc, Some("blue")).await.unwrap();
    let all = at.unattached_enis(&vpc, Some("blue")).await.unwrap();
    let elsewhere = at.unattached_enis(&id("vpc-0c2"), None).await.unwrap();

    assert_eq!(ids(&own), ["eni-01"]);
    assert_eq!(ids(&all), ["eni-01", "eni-02"]);
    assert!(elsewhere.is_empty());
    let seen = server.seen();
    assert_eq!(seen[0].field("Filter.1.Name"), "tag:node.k8s.amazonaws.com/instance_id");
    assert_eq!(seen[0].field("Filter.1.Value.1"), "i-0aa");
    assert_eq!(seen[1].field("Filter.1.Name"), "tag-key");
    assert_eq!(seen[1].field("Filter.1.Value.1"), "node.k8s.amazonaws.com/instance_id");
    for (number, name, value) in [
        (2, "status", "available"),
        (3, "vpc-id", "vpc-0c1"),
        (4, "tag:cluster.k8s.amazonaws.com/name", "blue"),
    ] {
        assert_eq!(seen[0].field(&format!("Filter.{number}.Name")), name);
        assert_eq!(seen[0].field(&format!("Filter.{number}.Value.1")), value);
    }
}

#[tokio::test]
async fn subnets_come_with_their_free_addresses_and_tags() {
    let (server, client) = paced(|_| {
        answer(
            "DescribeSubnets",
            r"<subnetSet><item><subnetId>subnet-0b1</subnetId><state>available</state><vpcId>vpc-0c1</vpcId>
              <cidrBlock>10.0.0.0/20</cidrBlock><availableIpAddressCount>4087</availableIpAddressCount>
              <availabilityZone>us-west-2a</availabilityZone>
              <tagSet><item><key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item></subnetSet>",
        )
    })
    .await;

    let subnets = client.at(Priority::WarmFill).subnets(&id("vpc-0c1"), "us-west-2a").await.unwrap();

    assert_eq!(subnets.len(), 1);
    assert_eq!(subnets[0].id, id("subnet-0b1"));
    assert_eq!(subnets[0].ipv4_cidr, Some(id("10.0.0.0/20")));
    assert_eq!(subnets[0].free_addresses, 4087);
    assert_eq!(subnets[0].tags["kubernetes.io/role/cni"], "1");
    let seen = server.only();
    assert_eq!((seen.field("Filter.1.Name"), seen.field("Filter.1.Value.1")), ("vpc-id", "vpc-0c1"));
    assert_eq!(
        (seen.field("Filter.2.Name"), seen.field("Filter.2.Value.1")),
        ("availability-zone", "us-west-2a")
    );
}

fn instance_type(content: &str) -> Reply {
    answer("DescribeInstanceTypes", &format!("<instanceTypeSet><item>{content}</item></instanceTypeSet>"))
}

const TWO_CARDS: &str = "<instanceType>x9.huge</instanceType><bareMetal>false</bareMetal>
    <hypervisor>nitro</hypervisor><vCpuInfo><defaultVCpus>96</defaultVCpus></vCpuInfo><networkInfo>
    <maximumNetworkInterfaces>19</maximumNetworkInterfaces><maximumNetworkCards>2</maximumNetworkCards>
    <defaultNetworkCardIndex>0</defaultNetworkCardIndex><networkCards>
    <item><networkCardIndex>1</networkCardIndex><maximumNetworkInterfaces>4</maximumNetworkInterfaces></item>
    <item><networkCardIndex>0</networkCardIndex><maximumNetworkInterfaces>15</maximumNetworkInterfaces></item>
    </networkCards><ipv4AddressesPerInterface>50</ipv4AddressesPerInterface></networkInfo>";

#[tokio::test]
async fn limits_count_the_enis_of_each_card() {
    let (server, client) = paced(|_| instance_type(TWO_CARDS)).await;

    let limits = client.at(Priority::WaitingPod).describe_instance_type("x9.huge").await.unwrap();

    assert_eq!((limits.enis, limits.ipv4_per_eni, limits.vcpus), (15, 50, 96));
    assert_eq!(*limits.cards, [15, 4]);
    assert!(limits.supports_prefixes());
    assert_eq!(server.only().field("InstanceType.1"), "x9.huge");
}

#[tokio::test]
async fn limits_that_make_no_sense_are_refused_by_field() {
    for (field, bad, text) in [
        ("<ipv4AddressesPerInterface>50", "<ipv4AddressesPerInterface>0", "ipv4AddressesPerInterface is 0"),
        ("<networkCardIndex>1<", "<networkCardIndex>7<", "networkCardIndex is 7: expected less than 2"),
        ("<defaultNetworkCardIndex>0", "<defaultNetworkCardIndex>5", "defaultNetworkCardIndex is 5"),
        ("<defaultVCpus>96</defaultVCpus>", "", "vCpuInfo.defaultVCpus is missing"),
    ] {
        let content = TWO_CARDS.replace(field, bad);
        let (_server, aws) = plain(move |_| instance_type(&content)).await;

        let error = aws.describe_instance_type("x9.huge").await.unwrap_err();

        assert_eq!(error.class(), &Class::Malformed, "{error}");
        assert!(error.to_string().contains(text), "{error} lacks {text}");
    }
}

#[tokio::test]
async fn an_instance_type_that_ec2_does_not_know_is_not_found() {
    let (_refusing, aws) = plain(|_| {
        refusal(400, "InvalidInstanceType", "The following supplied instance types do not exist: [y]")
    })
    .await;
    assert_eq!(aws.describe_instance_type("y").await.unwrap_err().class(), &Class::NotFound);

    let (_empty, aws) = plain(|_| answer("DescribeInstanceTypes", "<instanceTypeSet/>")).await;
    assert_eq!(aws.describe_instance_type("y").await.unwrap_err().class(), &Class::NotFound);
}

#[tokio::test]
async fn the_positions_that_are_taken_are_read_from_the_instance() {
    let (_server, client) = paced(|_| {
        answer(
            "DescribeInstances",
            "<reservationSet><item><instancesSet><item><instanceId>i-0aa</instanceId><networkInterfaceSet>
             <item><networkInterfaceId>eni-01</networkInterfaceId>
                   <attachment><deviceIndex>0</deviceIndex><networkCardIndex>0</networkCardIndex></attachment></item>
             <item><networkInterfaceId>eni-02</networkInterfaceId>
                   <attachment><deviceIndex>3</deviceIndex></attachment></item>
             </networkInterfaceSet></item></instancesSet></item></reservationSet>",
        )
    })
    .await;
    let at = client.at(Priority::WarmFill);

    assert_eq!(at.taken_slots(&id("i-0aa")).await.unwrap(), [EniSlot::PRIMARY, EniSlot::new(0, 3)]);
    assert_eq!(at.taken_slots(&id("i-0bb")).await.unwrap_err().class(), &Class::NotFound);
}
