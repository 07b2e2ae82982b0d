//! EC2's answers, written by hand after its API reference.

use crate::server::Reply;

/// The answer to `action` with this content.
pub(crate) fn answer(action: &str, content: &str) -> Reply {
    Reply::Text(
        200,
        format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<{action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
    <requestId>7a62c49f-347e-4fc4-9331-6e8eEXAMPLE</requestId>
    {content}
</{action}Response>"#
        ),
    )
}

/// The answer to a change that gives nothing back.
pub(crate) fn done(action: &str) -> Reply {
    answer(action, "<return>true</return>")
}

/// EC2's refusal.
pub(crate) fn refusal(status: u16, code: &str, message: &str) -> Reply {
    Reply::Text(
        status,
        format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>
<RequestID>ea966190-f9aa-478e-9ede-example</RequestID></Response>"#
        ),
    )
}

/// A page of ENIs.
pub(crate) fn enis(items: &[String], next: Option<&str>) -> Reply {
    let items: String = items.iter().map(|item| format!("<item>{item}</item>")).collect();
    let next = next.map_or(String::new(), |token| format!("<nextToken>{token}</nextToken>"));
    answer("DescribeNetworkInterfaces", &format!("<networkInterfaceSet>{items}</networkInterfaceSet>{next}"))
}

/// An ENI with everything EC2 may say of it, attached to `i-0aa` at device 1.
pub(crate) fn full_eni(id: &str) -> String {
    format!(
        r#"<networkInterfaceId>{id}</networkInterfaceId>
        <subnetId>subnet-0b1</subnetId>
        <vpcId>vpc-0c1</vpcId>
        <availabilityZone>us-west-2a</availabilityZone>
        <description>aws-K8S-i-0aa</description>
        <ownerId>123456789012</ownerId>
        <requesterManaged>false</requesterManaged>
        <status>in-use</status>
        <macAddress>02:7d:5c:01:02:03</macAddress>
        <privateIpAddress>10.0.1.10</privateIpAddress>
        <privateDnsName>ip-10-0-1-10.us-west-2.compute.internal</privateDnsName>
        <sourceDestCheck>true</sourceDestCheck>
        <groupSet>
            <item><groupId>sg-0d2</groupId><groupName>pods</groupName></item>
            <item><groupId>sg-0d1</groupId><groupName>nodes</groupName></item>
        </groupSet>
        <attachment>
            <attachmentId>eni-attach-0e1</attachmentId>
            <instanceId>i-0aa</instanceId>
            <instanceOwnerId>123456789012</instanceOwnerId>
            <deviceIndex>1</deviceIndex>
            <networkCardIndex>2</networkCardIndex>
            <status>attached</status>
            <attachTime>2026-01-01T00:00:00.000Z</attachTime>
            <deleteOnTermination>true</deleteOnTermination>
        </attachment>
        <connectionTrackingConfiguration>
            <tcpEstablishedTimeout>350</tcpEstablishedTimeout>
            <udpTimeout>30</udpTimeout>
        </connectionTrackingConfiguration>
        <tagSet>
            <item><key>node.k8s.amazonaws.com/instance_id</key><value>i-0aa</value></item>
            <item><key>empty</key><value/></item>
        </tagSet>
        <privateIpAddressesSet>
            <item><privateIpAddress>10.0.1.10</privateIpAddress><primary>true</primary></item>
            <item><privateIpAddress>10.0.1.12</privateIpAddress><primary>false</primary></item>
            <item><privateIpAddress>10.0.1.11</privateIpAddress><primary>false</primary></item>
        </privateIpAddressesSet>
        <ipv6AddressesSet><item><ipv6Address>2001:db8::5</ipv6Address></item></ipv6AddressesSet>
        <ipv4PrefixSet><item><ipv4Prefix>10.0.1.32/28</ipv4Prefix></item></ipv4PrefixSet>
        <ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:0:1::/80</ipv6Prefix></item></ipv6PrefixSet>
        <interfaceType>trunk</interfaceType>"#
    )
}

/// An unattached ENI that was made for `instance`, in `vpc-0c1` and cluster `blue`.
pub(crate) fn free_eni(id: &str, instance: &str) -> String {
    format!(
        r#"<networkInterfaceId>{id}</networkInterfaceId><subnetId>subnet-0b1</subnetId><vpcId>vpc-0c1</vpcId>
        <availabilityZone>us-west-2a</availabilityZone><description>aws-K8S-{instance}</description>
        <status>available</status><macAddress>02:7d:5c:01:02:04</macAddress>
        <privateIpAddress>10.0.1.20</privateIpAddress>
        <tagSet>
            <item><key>node.k8s.amazonaws.com/instance_id</key><value>{instance}</value></item>
            <item><key>cluster.k8s.amazonaws.com/name</key><value>blue</value></item>
        </tagSet>
        <privateIpAddressesSet>
            <item><privateIpAddress>10.0.1.20</privateIpAddress><primary>true</primary></item>
        </privateIpAddressesSet>"#
    )
}
