//! What this instance can hold: from the table, or from EC2 for a type that the table lacks.

use ec2::{At, Ec2};
use tracing::{info, warn};
use vpc::limits::max_pods::{MaxPods, PodAddressing};
use vpc::{Family, InstanceLimits};

use anyhow::{Context, ensure};

use crate::config::Ec2Access;
use crate::pool::BlockMode;

/// The limits of an instance type.
///
/// # Errors
/// Whatever EC2 says of a type that the table lacks; or that it may not be asked.
pub(super) async fn of_instance<E: Ec2>(
    name: &str,
    ec2: &At<E>,
    access: Ec2Access,
) -> anyhow::Result<InstanceLimits> {
    if let Some(limits) = InstanceLimits::of(name) {
        return Ok(limits.clone());
    }
    ensure!(
        access.may_read(),
        "instance type {name} is not in this release's table, and ENABLE_IMDS_ONLY_MODE forbids asking EC2 \
         for its limits: use a release that knows the type, or switch the mode off"
    );
    info!(name, "instance type not in the table; asking EC2");
    ec2.describe_instance_type(name).await.with_context(|| format!("find the limits of instance type {name}"))
}

/// Where pods' addresses come from: from prefixes if they are wanted and the type takes them.
///
/// # Errors
/// IPv6 is wanted and the type takes no prefixes: there is nothing to fall back to.
pub(super) fn mode(
    family: Family,
    delegates_prefixes: bool,
    name: &str,
    limits: &InstanceLimits,
) -> anyhow::Result<BlockMode> {
    if family == Family::V6 {
        ensure!(
            limits.supports_prefixes(),
            "ENABLE_IPv6 is on, but ENIs of a {name} take no prefixes (not Nitro, not bare metal), from \
             which IPv6 pods get their addresses: use a Nitro instance type"
        );
        return Ok(BlockMode::Ipv6Prefix);
    }
    Ok(match (delegates_prefixes, limits.supports_prefixes()) {
        (true, true) => BlockMode::Prefixes,
        (true, false) => {
            warn!(
                "ENABLE_PREFIX_DELEGATION is on, but ENIs of a {name} take no prefixes (not Nitro, not bare \
                 metal): going on with secondary IPs, so the node has fewer addresses than a Nitro node"
            );
            BlockMode::SecondaryIps
        }
        (false, _) => BlockMode::SecondaryIps,
    })
}

/// The pods that the kubelet may start by these limits, those on the host's network included.
pub(super) fn max_pods(limits: &InstanceLimits, max_enis: Option<u32>, mode: BlockMode) -> u32 {
    let how = PodAddressing {
        prefixes: mode != BlockMode::SecondaryIps,
        custom_networking: false,
        max_enis: max_enis.map(|most| u16::try_from(most).unwrap_or(u16::MAX)),
        ipv6: mode == BlockMode::Ipv6Prefix,
    };
    MaxPods::of(limits, &how).map_or(u32::MAX, |pods| pods.advised())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, prefixes: bool) -> (BlockMode, u32) {
        let limits = InstanceLimits::of(name).unwrap();
        let mode = mode(Family::V4, prefixes, name, limits).unwrap();
        (mode, max_pods(limits, None, mode))
    }

    #[test]
    fn prefixes_are_used_where_the_type_takes_them_and_count_for_the_pods() {
        assert_eq!(of("m5.large", false), (BlockMode::SecondaryIps, 29));
        assert_eq!(of("m5.large", true), (BlockMode::Prefixes, 110));
        assert_eq!(of("m4.large", true), (BlockMode::SecondaryIps, 20));
    }

    #[test]
    fn ipv6_takes_one_prefix_and_the_recommended_number_of_pods() {
        let limits = InstanceLimits::of("m5.large").unwrap();
        let mode = mode(Family::V6, true, "m5.large", limits).unwrap();

        assert_eq!((mode, max_pods(limits, None, mode)), (BlockMode::Ipv6Prefix, 110));
    }

    #[test]
    fn ipv6_on_a_type_without_prefixes_is_an_error_that_says_what_to_do() {
        let limits = InstanceLimits::of("m4.large").unwrap();

        let error = mode(Family::V6, true, "m4.large", limits).unwrap_err().to_string();

        assert!(error.starts_with("ENABLE_IPv6 is on, but ENIs of a m4.large take no prefixes"), "{error}");
        assert!(error.ends_with("use a Nitro instance type"), "{error}");
    }
}
