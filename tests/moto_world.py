"""An instance in moto's EC2, and the metadata service that goes with it.

usage: moto_world.py EC2_PORT IMDS_PORT PRIVATE_IP

Serves both on loopback and prints one line of JSON with the instance's ids once all is ready.
"""

import itertools
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from moto.ec2.models import elastic_network_interfaces
from moto.server import ThreadedMotoServer

REGION, ZONE, TYPE = "us-west-2", "us-west-2a", "m5.large"
VPC_CIDR, SUBNET_CIDR = "10.0.0.0/16", "10.0.0.0/20"


def launch(url, private_ip):
    """Makes a VPC with a subnet and one instance in it; gives the ids and the primary ENI."""
    ec2 = boto3.client(
        "ec2", region_name=REGION, endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret"
    )
    vpc = ec2.create_vpc(CidrBlock=VPC_CIDR)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=SUBNET_CIDR, AvailabilityZone=ZONE)["Subnet"]["SubnetId"]
    images = ec2.describe_images(Owners=["amazon"])["Images"]
    instance = ec2.run_instances(
        ImageId=images[0]["ImageId"],
        InstanceType=TYPE,
        MinCount=1,
        MaxCount=1,
        SubnetId=subnet,
        PrivateIpAddress=private_ip,
    )["Instances"][0]
    eni = ec2.describe_network_interfaces(
        Filters=[{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}]
    )["NetworkInterfaces"][0]
    return vpc, subnet, instance["InstanceId"], eni


def metadata(vpc, subnet, instance, eni):
    """What IMDS answers, by path."""
    mac = eni["MacAddress"]
    groups = [it["GroupId"] for it in eni["Groups"]]
    top = {
        "placement/availability-zone": ZONE,
        "placement/region": REGION,
        "instance-id": instance,
        "instance-type": TYPE,
        "mac": mac,
        "local-ipv4": eni["PrivateIpAddress"],
        "network/interfaces/macs/": mac + "/",
    }
    of_eni = {
        "interface-id": eni["NetworkInterfaceId"],
        "device-number": "0",
        "network-card": "0",
        "subnet-id": subnet,
        "subnet-ipv4-cidr-block": SUBNET_CIDR,
        "vpc-id": vpc,
        "vpc-ipv4-cidr-block": VPC_CIDR,
        "vpc-ipv4-cidr-blocks": VPC_CIDR,
        "security-group-ids": "\n".join(groups),
        "local-ipv4s": eni["PrivateIpAddress"],
    }
    paths = {f"/latest/meta-data/{leaf}": value for leaf, value in top.items()}
    paths |= {f"/latest/meta-data/network/interfaces/macs/{mac}/{leaf}": value for leaf, value in of_eni.items()}
    document = {"region": REGION, "availabilityZone": ZONE, "instanceId": instance, "instanceType": TYPE}
    paths["/latest/dynamic/instance-identity/document"] = json.dumps(document)
    return {path.rstrip("/"): value for path, value in paths.items()}


def imds(port, paths):
    """Version 2 of the metadata service on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status, body, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_PUT(self):
            self.answer(200, "token", x_aws_ec2_metadata_token_ttl_seconds="21600")

        def do_GET(self):
            value = paths.get(self.path.rstrip("/"))
            if self.headers.get("x-aws-ec2-metadata-token") != "token":
                self.answer(401, "")
            elif value is None:
                self.answer(404, "")
            else:
                self.answer(200, value)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main():
    # Some releases of moto make MACs that are none, such as 02:00:00:21102x:25502x:11502x.
    numbers = itertools.count(1)
    elastic_network_interfaces.random_mac_address = lambda: f"02:00:00:00:00:{next(numbers):02x}"
    ec2_port, imds_port, private_ip = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=ec2_port, verbose=False)
    server.start()
    vpc, subnet, instance, eni = launch(f"http://127.0.0.1:{ec2_port}", private_ip)
    service = imds(imds_port, metadata(vpc, subnet, instance, eni))
    ids = {"instance": instance, "eni": eni["NetworkInterfaceId"], "mac": eni["MacAddress"]}
    print(json.dumps(ids), flush=True)
    service.serve_forever()


main()
