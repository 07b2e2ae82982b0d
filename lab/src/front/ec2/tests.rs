//! One golden answer for each action, in `golden/ec2/`.
//!
//! With `UPDATE_GOLDEN=1` in the environment the files are written anew; read the difference
//! before committing it.

use std::path::Path;
use std::time::Duration;

use hyper::Request;
use hyper::body::Bytes;

use super::params::Params;
use super::{render, request};
use crate::cloud::{Cloud, CloudBuilder, LaunchSpec};

struct Play {
    cloud: Cloud,
    instance: String,
    subnet: String,
    eni: String,
}

impl Play {
    fn new() -> Play {
        Play::of(CloudBuilder::two_zones(1))
    }

    fn of(world: CloudBuilder) -> Play {
        let mut cloud = world.build();
        let subnet = cloud.snapshot().subnets.values().min_by_key(|it| it.cidr).unwrap().id.clone();
        let spec = LaunchSpec {
            instance_type: "m5.large".to_owned(),
            subnet_id: subnet.clone(),
            ..LaunchSpec::default()
        };
        let instance = cloud.run_instance(Duration::ZERO, spec).unwrap().id.clone();
        let mut play = Play { cloud, instance, subnet, eni: String::new() };
        let created = play.perform(&format!(
            "Action=CreateNetworkInterface&SubnetId={}&Description=%3Ca+%26+b%3E&SecondaryPrivateIpAddressCount=2\
             &TagSpecification.1.ResourceType=network-interface&TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=v\
             &ConnectionTrackingSpecification.UdpTimeout=30&ClientToken=t",
            play.subnet
        ));
        play.eni = between(&created, "<networkInterfaceId>", "</networkInterfaceId>");
        play
    }

    fn perform(&mut self, form: &str) -> String {
        let form = form
            .replace("{instance}", &self.instance)
            .replace("{subnet}", &self.subnet)
            .replace("{eni}", &self.eni);
        let body = Bytes::from(format!("Version=2016-11-15&{form}"));
        let params = Params::read(&Request::post("/").body(body).unwrap()).unwrap();
        let action = params.action().unwrap().to_owned();
        let typed = request::typed(&params).unwrap();
        let response = self.cloud.perform(Duration::from_secs(60), &typed).unwrap();
        render::success(&self.cloud, &action, "11111111-2222-4333-8444-555555555555", &response)
    }

    fn attach(&mut self) -> String {
        let answer = self.perform(
            "Action=AttachNetworkInterface&NetworkInterfaceId={eni}&InstanceId={instance}&DeviceIndex=1&NetworkCardIndex=0",
        );
        between(&answer, "<attachmentId>", "</attachmentId>")
    }
}

fn between(text: &str, start: &str, end: &str) -> String {
    let rest = text.split_once(start).unwrap().1;
    rest.split_once(end).unwrap().0.to_owned()
}

/// One element a line, indented by depth; content and markup stay as they are.
fn laid_out(xml: &str) -> String {
    let mut text = String::new();
    let mut depth = 0_usize;
    let pieces: Vec<&str> = xml.split_inclusive('>').map(str::trim).filter(|it| !it.is_empty()).collect();
    let mut line_open = false;
    for (index, piece) in pieces.iter().enumerate() {
        let closes = piece.contains("</");
        if closes {
            depth -= 1;
        }
        if !line_open {
            text.push_str(&"  ".repeat(depth));
        }
        text.push_str(piece);
        let opens = !closes && !piece.starts_with("<?");
        // An element that holds text, or nothing, closes on the line that opened it.
        line_open = opens && pieces.get(index + 1).is_some_and(|next| next.contains("</"));
        if opens {
            depth += 1;
        }
        if !line_open {
            text.push('\n');
        }
    }
    text
}

fn check_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/ec2").join(format!("{name}.xml"));
    let actual = laid_out(actual);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == expected, "{} differs; the answer is now\n{actual}", path.display());
}

macro_rules! golden {
    ($($test:ident: $action:literal, $form:literal;)*) => {$(
        #[test]
        fn $test() {
            let mut play = Play::new();
            let attachment = play.attach();
            let form = $form.replace("{attachment}", &attachment);
            let answer = play.perform(&format!("Action={}&{form}", $action));
            check_golden($action, &answer);
        }
    )*};
}

golden! {
    instances_are_told_as_ec2_does: "DescribeInstances", "InstanceId.1={instance}";
    instance_types_are_told_as_ec2_does: "DescribeInstanceTypes", "InstanceType.1=m5.large";
    subnets_are_told_as_ec2_does: "DescribeSubnets", "Filter.1.Name=availability-zone&Filter.1.Value.1=us-west-2a";
    enis_are_told_as_ec2_does: "DescribeNetworkInterfaces", "NetworkInterfaceId.1={eni}";
    tags_are_told_as_ec2_does: "DescribeTags", "Filter.1.Name=key&Filter.1.Value.1=k";
    a_new_eni_is_told_as_ec2_does: "CreateNetworkInterface", "SubnetId={subnet}&Ipv4PrefixCount=1&ClientToken=u";
    a_detachment_is_told_as_ec2_does: "DetachNetworkInterface", "AttachmentId={attachment}";
    a_change_is_told_as_ec2_does: "ModifyNetworkInterfaceAttribute", "NetworkInterfaceId={eni}&Attachment.AttachmentId={attachment}&Attachment.DeleteOnTermination=true";
    new_addresses_are_told_as_ec2_does: "AssignPrivateIpAddresses", "NetworkInterfaceId={eni}&SecondaryPrivateIpAddressCount=2";
    new_tags_are_told_as_ec2_does: "CreateTags", "ResourceId.1={eni}&Tag.1.Key=a&Tag.1.Value=b";
}

#[test]
fn an_attachment_is_told_as_ec2_does() {
    let answer = Play::new().perform(
        "Action=AttachNetworkInterface&NetworkInterfaceId={eni}&InstanceId={instance}&DeviceIndex=2",
    );
    check_golden("AttachNetworkInterface", &answer);
}

#[test]
fn a_deletion_is_told_as_ec2_does() {
    let answer = Play::new().perform("Action=DeleteNetworkInterface&NetworkInterfaceId={eni}");
    check_golden("DeleteNetworkInterface", &answer);
}

#[test]
fn addresses_given_back_are_told_as_ec2_does() {
    let mut play = Play::new();
    let eni = play.cloud.snapshot().enis[&play.eni].clone();
    let answer = play.perform(&format!(
        "Action=UnassignPrivateIpAddresses&NetworkInterfaceId={{eni}}&PrivateIpAddress.1={}",
        eni.addresses[1].address
    ));
    check_golden("UnassignPrivateIpAddresses", &answer);
}

#[test]
fn new_ipv6_prefixes_are_told_as_ec2_does() {
    let mut play = Play::of(CloudBuilder::two_zones(1).ipv6());
    let answer = play.perform("Action=AssignIpv6Addresses&NetworkInterfaceId={eni}&Ipv6PrefixCount=1");
    check_golden("AssignIpv6Addresses", &answer);
    let answer = play.perform("Action=DescribeNetworkInterfaces&NetworkInterfaceId.1={eni}");
    check_golden("DescribeNetworkInterfaces-ipv6", &answer);
    let answer =
        play.perform("Action=DescribeSubnets&Filter.1.Name=availability-zone&Filter.1.Value.1=us-west-2a");
    check_golden("DescribeSubnets-ipv6", &answer);
}
