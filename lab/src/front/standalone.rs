//! The fronts by themselves, with one instance, for any client on this machine.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::cloud::{CloudBuilder, CloudHandle, LaunchSpec};

use super::{serve_ec2, serve_imds};

/// What `standalone` serves.
#[derive(Debug, Clone)]
pub struct Standalone {
    /// Where EC2 listens; port 0 takes a free one.
    pub ec2: SocketAddr,
    /// Where the instance's IMDS listens.
    pub imds: SocketAddr,
    /// Type of the one instance.
    pub instance_type: String,
    /// Seed of the world.
    pub seed: u64,
}

/// Serves a two-zone VPC with one instance until the future is dropped. `ready` is called once
/// with the world, the instance's id and the addresses that were taken.
///
/// # Errors
/// Listening on an address that is taken, or an instance type that is not known.
pub async fn standalone(
    options: Standalone,
    ready: impl FnOnce(&CloudHandle, &str, SocketAddr, SocketAddr),
) -> anyhow::Result<()> {
    use anyhow::Context;

    let cloud = CloudHandle::start(CloudBuilder::two_zones(options.seed));
    let snapshot = cloud.snapshot();
    let subnet = snapshot.subnets.values().min_by_key(|it| it.cidr).context("the world has no subnet")?;
    let instance = cloud
        .launch(LaunchSpec {
            instance_type: options.instance_type.clone(),
            subnet_id: subnet.id.clone(),
            ..LaunchSpec::default()
        })
        .with_context(|| format!("start an instance of type {}", options.instance_type))?;
    let ec2 = listen(options.ec2).await?;
    let imds = listen(options.imds).await?;
    ready(&cloud, &instance.id, ec2.local_addr()?, imds.local_addr()?);
    match tokio::join!(serve_ec2(ec2, cloud.clone()), serve_imds(imds, cloud, instance.id.clone())) {}
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    use anyhow::Context;

    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}
