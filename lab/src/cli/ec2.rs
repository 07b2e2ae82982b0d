//! `lab ec2`: EC2 and IMDS alone, for any client on this machine.

use std::net::SocketAddr;

use clap::Args;
use lab::cloud::{CloudHandle, STATIC_ACCESS_KEY, STATIC_SECRET_KEY};
use lab::front::{Standalone, standalone};

/// Where to listen and what to simulate.
#[derive(Debug, Args)]
pub(crate) struct Ec2Args {
    /// Address of EC2; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the instance's metadata service
    #[arg(long, default_value = "127.0.0.1:0")]
    imds: SocketAddr,
    /// Type of the one instance
    #[arg(long, default_value = "m5.large")]
    instance_type: String,
    /// Seed of ids and addresses
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Serves until interrupted.
pub(crate) async fn run(args: Ec2Args) -> anyhow::Result<()> {
    let options =
        Standalone { ec2: args.listen, imds: args.imds, instance_type: args.instance_type, seed: args.seed };
    tokio::select! {
        ended = standalone(options, announce) => ended,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// Prints what a shell needs to point the AWS SDKs here.
#[expect(clippy::print_stdout, reason = "the command's output")]
fn announce(cloud: &CloudHandle, instance_id: &str, ec2: SocketAddr, imds: SocketAddr) {
    println!("# {instance_id}; credentials come from IMDS, or for a person:");
    println!("# AWS_ACCESS_KEY_ID={STATIC_ACCESS_KEY} AWS_SECRET_ACCESS_KEY={STATIC_SECRET_KEY}");
    println!("export AWS_REGION={}", cloud.snapshot().region);
    println!("export AWS_ENDPOINT_URL_EC2=http://{ec2} AWS_EC2_ENDPOINT=http://{ec2}");
    println!("export AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{imds}");
}
