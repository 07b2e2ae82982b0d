"""Calls every action of the lab's EC2 with boto3 and checks the fields it parses.

Credentials come from the lab's IMDS, as on a node. Arguments: the EC2 endpoint and the id of the
instance whose IMDS the environment points at.
"""

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint, instance_id = sys.argv[1:]
ec2 = boto3.client(
    "ec2",
    region_name="us-west-2",
    endpoint_url=endpoint,
    config=Config(retries={"total_max_attempts": 1}),
)


def refused(code, status, call, **parameters):
    try:
        call(**parameters)
    except ClientError as error:
        found = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert found == (code, status), (found, code, status)
        assert error.response["ResponseMetadata"]["RequestId"]
        return error.response["Error"]["Message"]
    raise AssertionError(f"{call.__name__} should answer {code}")


# DescribeInstances, DescribeInstanceTypes
reservations = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
assert len(reservations) == 1
instance = reservations[0]["Instances"][0]
assert instance["InstanceId"] == instance_id
assert instance["State"]["Name"] == "running"
assert instance["InstanceType"] == "m5.large"
primary = instance["NetworkInterfaces"][0]
assert primary["Attachment"]["DeviceIndex"] == 0
assert primary["Attachment"]["DeleteOnTermination"] is True
assert primary["PrivateIpAddress"] == instance["PrivateIpAddress"]
assert instance["LaunchTime"].tzinfo is not None

types = ec2.describe_instance_types(InstanceTypes=["m5.large"])["InstanceTypes"]
network = types[0]["NetworkInfo"]
assert network["MaximumNetworkInterfaces"] == 3
assert network["Ipv4AddressesPerInterface"] == 10
assert network["DefaultNetworkCardIndex"] == 0
assert network["NetworkCards"][0]["MaximumNetworkInterfaces"] == 3
assert types[0]["Hypervisor"] == "nitro" and types[0]["BareMetal"] is False
assert types[0]["VCpuInfo"]["DefaultVCpus"] == 2
cards = ec2.describe_instance_types(InstanceTypes=["p5.48xlarge"])["InstanceTypes"][0]["NetworkInfo"]
assert cards["MaximumNetworkCards"] == len(cards["NetworkCards"]) == 32
refused("InvalidInstanceType", 400, ec2.describe_instance_types, InstanceTypes=["m5.nonsense"])

# DescribeSubnets
zone = instance["Placement"]["AvailabilityZone"]
subnets = ec2.describe_subnets(
    Filters=[
        {"Name": "vpc-id", "Values": [instance["VpcId"]]},
        {"Name": "availability-zone", "Values": [zone]},
    ]
)["Subnets"]
assert len(subnets) == 2
subnet = next(it for it in subnets if it["SubnetId"] == instance["SubnetId"])
assert subnet["AvailabilityZone"] == zone and subnet["VpcId"] == instance["VpcId"]
assert subnet["AvailableIpAddressCount"] == 4096 - 5 - 1
assert subnet["State"] == "available"


def free():
    return ec2.describe_subnets(SubnetIds=[subnet["SubnetId"]])["Subnets"][0]["AvailableIpAddressCount"]


# CreateNetworkInterface
create = {
    "SubnetId": subnet["SubnetId"],
    "Description": f"aws-K8S-{instance_id}",
    "Groups": [primary["Groups"][0]["GroupId"]],
    "SecondaryPrivateIpAddressCount": 3,
    "ConnectionTrackingSpecification": {"UdpTimeout": 45},
    "TagSpecifications": [
        {
            "ResourceType": "network-interface",
            "Tags": [
                {"Key": "node.k8s.amazonaws.com/instance_id", "Value": instance_id},
                {"Key": "odd <&> key", "Value": ""},
            ],
        }
    ],
    "ClientToken": "one-and-the-same",
}
created = ec2.create_network_interface(**create)
eni = created["NetworkInterface"]
assert created["ClientToken"] == "one-and-the-same"
assert eni["Status"] == "available" and "Attachment" not in eni
assert [ip["Primary"] for ip in eni["PrivateIpAddresses"]] == [True, False, False, False]
assert eni["ConnectionTrackingConfiguration"] == {"UdpTimeout": 45}
assert {it["Key"]: it["Value"] for it in eni["TagSet"]} == {
    "node.k8s.amazonaws.com/instance_id": instance_id,
    "odd <&> key": "",
}
again = ec2.create_network_interface(**create)["NetworkInterface"]
assert again["NetworkInterfaceId"] == eni["NetworkInterfaceId"]
refused(
    "IdempotentParameterMismatch",
    400,
    ec2.create_network_interface,
    **{**create, "SecondaryPrivateIpAddressCount": 4},
)
eni_id = eni["NetworkInterfaceId"]
assert free() == 4096 - 5 - 1 - 4

# AttachNetworkInterface
place = {"NetworkInterfaceId": eni_id, "InstanceId": instance_id, "NetworkCardIndex": 0}
message = refused("InvalidParameterValue", 400, ec2.attach_network_interface, DeviceIndex=0, **place)
assert "device index '0'" in message
attached = ec2.attach_network_interface(DeviceIndex=1, **place)
assert attached["NetworkCardIndex"] == 0
attachment_id = attached["AttachmentId"]
refused("InvalidNetworkInterface.InUse", 400, ec2.attach_network_interface, DeviceIndex=2, **place)

# DescribeNetworkInterfaces: by id, by filter, by page
found = ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])["NetworkInterfaces"][0]
assert found["Status"] == "in-use"
assert found["Attachment"]["Status"] == "attached"
assert found["Attachment"]["InstanceId"] == instance_id
assert found["Attachment"]["DeviceIndex"] == 1
assert found["Attachment"]["DeleteOnTermination"] is False
assert found["Description"] == f"aws-K8S-{instance_id}"
assert found["InterfaceType"] == "interface" and found["SourceDestCheck"] is True
message = refused(
    "InvalidNetworkInterfaceID.NotFound",
    400,
    ec2.describe_network_interfaces,
    NetworkInterfaceIds=["eni-0123456789abcdef0"],
)
assert "'eni-0123456789abcdef0'" in message
mine = ec2.describe_network_interfaces(
    Filters=[{"Name": "attachment.instance-id", "Values": [instance_id]}]
)["NetworkInterfaces"]
assert {it["NetworkInterfaceId"] for it in mine} == {eni_id, primary["NetworkInterfaceId"]}
refused(
    "InvalidParameterValue",
    400,
    ec2.describe_network_interfaces,
    Filters=[{"Name": "no-such-filter", "Values": ["x"]}],
)
loose = [
    ec2.create_network_interface(SubnetId=subnet["SubnetId"])["NetworkInterface"]["NetworkInterfaceId"]
    for _ in range(7)
]
pages = ec2.get_paginator("describe_network_interfaces").paginate(
    Filters=[{"Name": "status", "Values": ["available"]}], PaginationConfig={"PageSize": 5}
)
sizes = [len(page["NetworkInterfaces"]) for page in pages]
assert sizes == [5, 2], sizes
for id in loose:
    ec2.delete_network_interface(NetworkInterfaceId=id)

# ModifyNetworkInterfaceAttribute
ec2.modify_network_interface_attribute(
    NetworkInterfaceId=eni_id,
    Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True},
)
ec2.modify_network_interface_attribute(NetworkInterfaceId=eni_id, SourceDestCheck={"Value": False})
ec2.modify_network_interface_attribute(NetworkInterfaceId=eni_id, Description={"Value": "renamed"})
ec2.modify_network_interface_attribute(
    NetworkInterfaceId=eni_id, Groups=[primary["Groups"][0]["GroupId"]]
)
refused(
    "InvalidSecurityGroupID.NotFound",
    400,
    ec2.modify_network_interface_attribute,
    NetworkInterfaceId=eni_id,
    Groups=["sg-0123456789abcdef0"],
)
found = ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])["NetworkInterfaces"][0]
assert found["Attachment"]["DeleteOnTermination"] is True
assert found["SourceDestCheck"] is False and found["Description"] == "renamed"

# AssignPrivateIpAddresses, UnassignPrivateIpAddresses
answer = ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=2)
assert answer["NetworkInterfaceId"] == eni_id
new = [ip["PrivateIpAddress"] for ip in answer["AssignedPrivateIpAddresses"]]
assert len(new) == 2
answer = ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4PrefixCount=1)
prefixes = [it["Ipv4Prefix"] for it in answer["AssignedIpv4Prefixes"]]
assert len(prefixes) == 1 and prefixes[0].endswith("/28")
found = ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])["NetworkInterfaces"][0]
assert [it["Ipv4Prefix"] for it in found["Ipv4Prefixes"]] == prefixes
assert len(found["PrivateIpAddresses"]) == 6
message = refused(
    "PrivateIpAddressLimitExceeded",
    400,
    ec2.assign_private_ip_addresses,
    NetworkInterfaceId=eni_id,
    SecondaryPrivateIpAddressCount=4,
)
assert message == "Number of private addresses will exceed limit."
before = free()
ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4Prefixes=prefixes)
ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, PrivateIpAddresses=new)
assert free() == before + 16 + 2

# CreateTags, DescribeTags
ec2.create_tags(Resources=[eni_id], Tags=[{"Key": "colour", "Value": "blue"}])
tags = ec2.describe_tags(Filters=[{"Name": "key", "Values": ["colour"]}])["Tags"]
assert tags == [
    {"Key": "colour", "ResourceId": eni_id, "ResourceType": "network-interface", "Value": "blue"}
]

# DetachNetworkInterface, DeleteNetworkInterface
refused("InvalidParameterValue", 400, ec2.delete_network_interface, NetworkInterfaceId=eni_id)
refused(
    "OperationNotPermitted",
    400,
    ec2.detach_network_interface,
    AttachmentId=primary["Attachment"]["AttachmentId"],
)
ec2.detach_network_interface(AttachmentId=attachment_id)
ec2.delete_network_interface(NetworkInterfaceId=eni_id)
refused(
    "InvalidNetworkInterfaceID.NotFound", 400, ec2.delete_network_interface, NetworkInterfaceId=eni_id
)
refused("InvalidAttachmentID.NotFound", 400, ec2.detach_network_interface, AttachmentId=attachment_id)
assert free() == 4096 - 5 - 1

# What concerns no action in particular
refused("DryRunOperation", 412, ec2.describe_instances, DryRun=True)
refused("InvalidAction", 400, ec2.describe_images)

print("boto3", boto3.__version__, "understood every answer")
