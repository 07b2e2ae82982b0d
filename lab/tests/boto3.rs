//! Foreign eyes on the lab's EC2 and IMDS: boto3 parses every answer.

use std::process::Stdio;
use std::time::Duration;

use lab::cloud::{CloudBuilder, CloudHandle};
use lab::front::{serve_ec2, serve_imds};
use tokio::net::TcpListener;
use tokio::process::Command;

/// Every action that the script must have called.
const ACTIONS: [&str; 13] = [
    "AssignPrivateIpAddresses",
    "AttachNetworkInterface",
    "CreateNetworkInterface",
    "CreateTags",
    "DeleteNetworkInterface",
    "DescribeInstanceTypes",
    "DescribeInstances",
    "DescribeNetworkInterfaces",
    "DescribeSubnets",
    "DescribeTags",
    "DetachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "UnassignPrivateIpAddresses",
];

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "a skipped test says so by name")]
async fn boto3_understands_every_answer() {
    let has_boto3 = Command::new("python3")
        .args(["-c", "import boto3"])
        .stderr(Stdio::null())
        .status()
        .await
        .is_ok_and(|it| it.success());
    if !has_boto3 {
        println!("skipped: boto3 is not installed");
        return;
    }
    let cloud = CloudHandle::start(CloudBuilder::two_zones(1));
    let subnet = cloud.snapshot().subnets.values().min_by_key(|it| it.cidr).unwrap().id.clone();
    let instance = cloud.run_instance("m5.large", &subnet).unwrap();
    let ec2 = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let imds = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ec2_endpoint = format!("http://{}", ec2.local_addr().unwrap());
    let imds_endpoint = format!("http://{}", imds.local_addr().unwrap());
    tokio::spawn(serve_ec2(ec2, cloud.clone()));
    tokio::spawn(serve_imds(imds, cloud.clone(), instance.id.clone()));

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/boto3_calls.py");
    let mut command = Command::new("python3");
    // Nothing of the person who runs the test: the credentials come from IMDS.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    let run = command
        .args([script, &ec2_endpoint, &instance.id])
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds_endpoint)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), run).await.unwrap().unwrap();

    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\nlast calls: {:#?}", cloud.calls().last());
    println!("{}", String::from_utf8_lossy(&output.stdout).trim_end());
    let counts = cloud.counts_of(&instance.id);
    for action in ACTIONS {
        assert!(counts.get(action).is_some_and(|it| it.succeeded > 0), "{action}: {counts:?}");
    }
}
