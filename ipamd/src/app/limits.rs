//! What this instance can hold: from the table, or from EC2 for a type that the table lacks.

use ec2::{At, Ec2};
use tracing::info;
use vpc::InstanceLimits;
use vpc::limits::max_pods::{MaxPods, PodAddressing};

use anyhow::Context;

/// The limits of an instance type.
///
/// # Errors
/// Whatever EC2 says of a type that the table lacks.
pub(super) async fn of_instance<E: Ec2>(name: &str, ec2: &At<E>) -> anyhow::Result<InstanceLimits> {
    if let Some(limits) = InstanceLimits::of(name) {
        return Ok(limits.clone());
    }
    info!(name, "instance type not in the table; asking EC2");
    ec2.describe_instance_type(name).await.with_context(|| format!("find the limits of instance type {name}"))
}

/// The pods that the kubelet may start by these limits, those on the host's network included.
pub(super) fn max_pods(limits: &InstanceLimits, max_enis: Option<u32>) -> u32 {
    let how = PodAddressing {
        prefixes: false,
        custom_networking: false,
        max_enis: max_enis.map(|most| u16::try_from(most).unwrap_or(u16::MAX)),
        ipv6: false,
    };
    MaxPods::of(limits, &how).map_or(u32::MAX, |pods| pods.advised())
}
