//! Changing: what is sent, and what is made of the answer.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ec2::{AttachEni, Class, ConnectionTracking, CreateEni, Ec2, NewAddresses, Priority, Tags};
use vpc::{EniSlot, Prefix};

use crate::answers::{answer, done, enis, free_eni, full_eni, refusal};
use crate::server::Seen;
use crate::{id, paced, plain};

fn wanted(addresses: NewAddresses) -> CreateEni {
    CreateEni {
        subnet: id("subnet-0b1"),
        security_groups: vec![id("sg-0d2"), id("sg-0d1")],
        description: "aws-K8S-i-0aa".to_owned(),
        tags: Tags::from([("a".to_owned(), "1".to_owned()), ("b/c".to_owned(), "é & <x>".to_owned())]),
        client_token: "token-1".to_owned(),
        addresses,
        connection_tracking: None,
    }
}

/// The fields of a request without those that every request has.
fn own_fields(seen: &Seen) -> BTreeMap<&str, &str> {
    let own = seen.form.iter().filter(|(name, _)| !matches!(name.as_str(), "Action" | "Version"));
    own.map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[tokio::test]
async fn an_eni_is_made_with_all_that_was_asked_for() {
    let (server, aws) = plain(|_| {
        answer(
            "CreateNetworkInterface",
            &format!("<networkInterface>{}</networkInterface>", free_eni("eni-01", "i-0aa")),
        )
    })
    .await;
    let tracking = ConnectionTracking { udp_stream_secs: Some(60), ..ConnectionTracking::default() };
    let wanted = CreateEni { connection_tracking: Some(tracking), ..wanted(NewAddresses::SecondaryIps(14)) };

    let eni = aws.create_eni(&wanted).await.unwrap();

    assert_eq!((eni.id, eni.attachment), (id("eni-01"), None));
    assert_eq!(
        own_fields(&server.only()),
        BTreeMap::from([
            ("SubnetId", "subnet-0b1"),
            ("SecurityGroupId.1", "sg-0d2"),
            ("SecurityGroupId.2", "sg-0d1"),
            ("Description", "aws-K8S-i-0aa"),
            ("ClientToken", "token-1"),
            ("SecondaryPrivateIpAddressCount", "14"),
            ("ConnectionTrackingSpecification.UdpStreamTimeout", "60"),
            ("TagSpecification.1.ResourceType", "network-interface"),
            ("TagSpecification.1.Tag.1.Key", "a"),
            ("TagSpecification.1.Tag.1.Value", "1"),
            ("TagSpecification.1.Tag.2.Key", "b/c"),
            ("TagSpecification.1.Tag.2.Value", "é & <x>"),
        ])
    );
}

#[tokio::test]
async fn an_eni_whose_answer_was_lost_is_asked_for_again_with_the_same_token() {
    let lost_once = std::sync::atomic::AtomicBool::new(false);
    let (server, client) = paced(move |_| {
        if lost_once.swap(true, std::sync::atomic::Ordering::Relaxed) {
            let eni = free_eni("eni-01", "i-0aa");
            answer("CreateNetworkInterface", &format!("<networkInterface>{eni}</networkInterface>"))
        } else {
            crate::Reply::Close
        }
    })
    .await;

    let eni = client.at(Priority::WarmFill).create_eni(&wanted(NewAddresses::Ipv4Prefixes(2))).await.unwrap();

    assert_eq!(eni.id, id("eni-01"));
    assert_eq!(server.fields("ClientToken"), ["token-1", "token-1"]);
    assert_eq!(server.fields("Ipv4PrefixCount"), ["2", "2"]);
}

#[tokio::test]
async fn every_change_sends_the_fields_that_ec2_expects() {
    let (server, aws) = plain(|seen: &Seen| match seen.action() {
        "AttachNetworkInterface" => answer(
            "AttachNetworkInterface",
            "<attachmentId>eni-attach-0e1</attachmentId><networkCardIndex>1</networkCardIndex>",
        ),
        action => done(action),
    })
    .await;
    let (eni, attachment) = (id("eni-01"), id("eni-attach-0e1"));
    let attach = AttachEni { eni: id("eni-01"), instance: id("i-0aa"), slot: EniSlot::new(1, 2) };

    assert_eq!(aws.attach_eni(&attach).await.unwrap(), attachment);
    aws.set_delete_on_termination(&eni, &attachment).await.unwrap();
    aws.set_security_groups(&eni, &[id("sg-0d1"), id("sg-0d2")]).await.unwrap();
    aws.detach_eni(&attachment).await.unwrap();
    aws.delete_eni(&eni).await.unwrap();
    aws.unassign_ips(&eni, &[id("10.0.1.11"), id("10.0.1.12")]).await.unwrap();
    aws.unassign_prefixes(&eni, &[id("10.0.1.32/28")]).await.unwrap();
    aws.tag(&eni, &Tags::from([("k".to_owned(), "v".to_owned())])).await.unwrap();

    let seen = server.seen();
    let sent: Vec<_> = seen.iter().map(|seen| (seen.action(), own_fields(seen))).collect();
    let eni = ("NetworkInterfaceId", "eni-01");
    let modify = "ModifyNetworkInterfaceAttribute";
    let unassign = "UnassignPrivateIpAddresses";
    assert_eq!(
        sent,
        [
            (
                "AttachNetworkInterface",
                BTreeMap::from([
                    eni,
                    ("InstanceId", "i-0aa"),
                    ("DeviceIndex", "2"),
                    ("NetworkCardIndex", "1")
                ])
            ),
            (
                modify,
                BTreeMap::from([
                    eni,
                    ("Attachment.AttachmentId", "eni-attach-0e1"),
                    ("Attachment.DeleteOnTermination", "true")
                ])
            ),
            (modify, BTreeMap::from([eni, ("SecurityGroupId.1", "sg-0d1"), ("SecurityGroupId.2", "sg-0d2")])),
            ("DetachNetworkInterface", BTreeMap::from([("AttachmentId", "eni-attach-0e1")])),
            ("DeleteNetworkInterface", BTreeMap::from([eni])),
            (
                unassign,
                BTreeMap::from([
                    eni,
                    ("PrivateIpAddress.1", "10.0.1.11"),
                    ("PrivateIpAddress.2", "10.0.1.12")
                ])
            ),
            (unassign, BTreeMap::from([eni, ("Ipv4Prefix.1", "10.0.1.32/28")])),
            (
                "CreateTags",
                BTreeMap::from([("ResourceId.1", "eni-01"), ("Tag.1.Key", "k"), ("Tag.1.Value", "v")])
            ),
        ]
    );
}

#[tokio::test]
async fn what_was_assigned_is_read_from_the_answer() {
    let (server, client) = paced(|seen: &Seen| {
        let content = if seen.field("Ipv4PrefixCount").is_empty() {
            "<assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.1.11</privateIpAddress></item>
             <item><privateIpAddress>10.0.1.12</privateIpAddress></item></assignedPrivateIpAddressesSet>"
        } else {
            "<assignedIpv4PrefixSet><item><ipv4Prefix>10.0.1.32/28</ipv4Prefix></item></assignedIpv4PrefixSet>"
        };
        answer("AssignPrivateIpAddresses", content)
    })
    .await;
    let at = client.at(Priority::WaitingPod);

    let ips = at.assign_ips(&id("eni-01"), 2).await.unwrap();
    let prefixes = at.assign_prefixes(&id("eni-01"), 1).await.unwrap();

    assert_eq!(ips, [Ipv4Addr::new(10, 0, 1, 11), Ipv4Addr::new(10, 0, 1, 12)]);
    assert_eq!(prefixes, ["10.0.1.32/28".parse::<Prefix>().unwrap()]);
    assert_eq!(server.fields("SecondaryPrivateIpAddressCount"), ["2", ""]);
    assert_eq!(server.fields("Ipv4PrefixCount"), ["", "1"]);
}

#[tokio::test]
async fn ipv6_prefixes_are_asked_for_by_number_and_read_from_the_answer_or_else_from_the_eni() {
    let (server, client) = paced(|seen: &Seen| match (seen.action(), seen.field("Ipv6PrefixCount")) {
        ("AssignIpv6Addresses", "1") => answer(
            "AssignIpv6Addresses",
            "<networkInterfaceId>eni-01</networkInterfaceId>
             <assignedIpv6PrefixSet><item>2001:db8:0:1:d81e::/80</item></assignedIpv6PrefixSet>",
        ),
        ("AssignIpv6Addresses", _) => answer("AssignIpv6Addresses", ""),
        _ => {
            let prefix =
                "<ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:1:1::/80</ipv6Prefix></item></ipv6PrefixSet>";
            enis(&[full_eni("eni-01") + prefix], None)
        }
    })
    .await;
    let at = client.at(Priority::WaitingPod);

    let told = at.assign_ipv6_prefixes(&id("eni-01"), 1).await.unwrap();
    let read = at.assign_ipv6_prefixes(&id("eni-01"), 2).await.unwrap();

    assert_eq!(told, ["2001:db8:0:1:d81e::/80".parse::<Prefix>().unwrap()]);
    assert!(read.contains(&"2001:db8:0:1:1::/80".parse().unwrap()), "{read:?}");
    assert!(read.iter().all(|prefix| prefix.net().addr().is_ipv6()), "{read:?}");
    assert_eq!(server.fields("Ipv6PrefixCount"), ["1", "2", ""]);
    assert_eq!(server.fields("NetworkInterfaceId"), ["eni-01", "eni-01", ""]);
}

#[tokio::test]
async fn where_the_answer_does_not_say_what_was_assigned_the_eni_is_read_again() {
    let (server, client) = paced(|seen: &Seen| match seen.action() {
        "AssignPrivateIpAddresses" => done("AssignPrivateIpAddresses"),
        _ => enis(&[full_eni("eni-01")], None),
    })
    .await;
    let at = client.at(Priority::WaitingPod);

    let ips = at.assign_ips(&id("eni-01"), 2).await.unwrap();
    let prefixes = at.assign_prefixes(&id("eni-01"), 1).await.unwrap();

    assert_eq!(ips, [Ipv4Addr::new(10, 0, 1, 12), Ipv4Addr::new(10, 0, 1, 11)]);
    assert_eq!(prefixes, ["10.0.1.32/28".parse::<Prefix>().unwrap()]);
    assert_eq!(server.fields("NetworkInterfaceId.1"), ["", "eni-01", "", "eni-01"]);
}

#[tokio::test]
async fn deleting_or_detaching_what_is_gone_is_success() {
    let (_server, client) = paced(|seen: &Seen| match seen.action() {
        "DeleteNetworkInterface" => refusal(
            400,
            "InvalidNetworkInterfaceID.NotFound",
            "The networkInterface ID 'eni-01' does not exist",
        ),
        _ => {
            refusal(400, "InvalidAttachmentID.NotFound", "The attachment ID 'eni-attach-0e1' does not exist")
        }
    })
    .await;
    let at = client.at(Priority::Shrink);

    at.delete_eni(&id("eni-01")).await.unwrap();
    at.detach_eni(&id("eni-attach-0e1")).await.unwrap();
}

#[tokio::test]
async fn an_eni_in_use_is_busy_and_the_caller_decides_when_to_try_again() {
    let (server, client) =
        paced(|_| refusal(400, "InvalidParameterValue", "Network interface 'eni-01' is currently in use."))
            .await;

    let error = client.at(Priority::Shrink).delete_eni(&id("eni-01")).await.unwrap_err();

    assert_eq!(error.class(), &Class::Busy);
    assert_eq!(server.seen().len(), 1);
}
