//! How many pods an instance type's addresses allow, with the arithmetic that leads there.

use std::fmt;

use super::InstanceLimits;

/// IPv4 addresses of one /28 prefix.
const ADDRESSES_PER_PREFIX: u32 = 16;

/// Pods on the host's network that need no address of their own: the network daemon and kube-proxy.
const HOST_NETWORK_PODS: u32 = 2;

/// Kubernetes' advice for a node of up to [`FEW_VCPUS`] CPUs, and for a larger one.
const RECOMMENDED_SMALL: u32 = 110;
const RECOMMENDED_LARGE: u32 = 250;
const FEW_VCPUS: u16 = 30;

/// How the node hands addresses to pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodAddressing {
    /// Prefixes of 16 addresses in place of single addresses.
    pub prefixes: bool,
    /// Pods keep off the primary ENI, because an ENIConfig places them elsewhere.
    pub custom_networking: bool,
    /// The operator's own maximum of ENIs.
    pub max_enis: Option<u16>,
    /// Pods have IPv6 addresses.
    pub ipv6: bool,
}

/// Why an instance type cannot address pods as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MaxPodsError {
    /// IPv6 pods live on prefixes, which Xen instances do not take.
    #[error("IPv6 needs prefixes, which only Nitro and bare metal types take")]
    Ipv6NeedsPrefixes,
    /// ENIConfigs choose subnets for IPv4 only.
    #[error("custom networking and IPv6 exclude each other")]
    CustomNetworkingWithIpv6,
}

/// The answer, with every figure that leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPods {
    /// ENIs of the type's default card.
    pub enis: u16,
    /// ENIs left under the operator's maximum.
    pub enis_allowed: u16,
    /// ENIs whose addresses go to pods.
    pub enis_for_pods: u16,
    /// Addresses or prefixes of one ENI besides its own address.
    pub slots_per_eni: u16,
    /// Whether a slot holds a prefix.
    pub prefixes: bool,
    /// Whether prefixes were asked of a type that takes none; it then gets single addresses.
    pub prefixes_refused: bool,
    /// Whether the pods have IPv6 addresses.
    pub ipv6: bool,
    /// Virtual CPUs, which choose the recommendation.
    pub vcpus: u16,
    /// Pods that the addresses allow, host-network ones included; nothing where the addresses
    /// set no limit, as with IPv6.
    pub by_addresses: Option<u32>,
    /// Kubernetes' recommendation for a node of this size.
    pub recommended: u32,
}

impl MaxPods {
    /// Works out how many pods a node of these limits can run.
    pub fn of(limits: &InstanceLimits, how: &PodAddressing) -> Result<Self, MaxPodsError> {
        if how.ipv6 && how.custom_networking {
            return Err(MaxPodsError::CustomNetworkingWithIpv6);
        }
        if how.ipv6 && !limits.supports_prefixes() {
            return Err(MaxPodsError::Ipv6NeedsPrefixes);
        }
        let wants_prefixes = how.prefixes || how.ipv6;
        let prefixes = wants_prefixes && limits.supports_prefixes();
        let enis_allowed = how.max_enis.map_or(limits.enis, |max| max.min(limits.enis));
        let enis_for_pods = enis_allowed.saturating_sub(u16::from(how.custom_networking));
        let slots_per_eni = limits.slots_per_eni();
        let slots = u32::from(enis_for_pods).saturating_mul(u32::from(slots_per_eni));
        let addresses = slots.saturating_mul(if prefixes { ADDRESSES_PER_PREFIX } else { 1 });
        let recommended = if limits.vcpus > FEW_VCPUS { RECOMMENDED_LARGE } else { RECOMMENDED_SMALL };
        Ok(Self {
            enis: limits.enis,
            enis_allowed,
            enis_for_pods,
            slots_per_eni,
            prefixes,
            prefixes_refused: wants_prefixes && !prefixes,
            ipv6: how.ipv6,
            vcpus: limits.vcpus,
            by_addresses: (!how.ipv6).then(|| addresses.saturating_add(HOST_NETWORK_PODS)),
            recommended,
        })
    }

    /// Whether the recommendation stands above the addresses.
    ///
    /// Single addresses are scarce and were always used to the last one, so a node that can have
    /// 234 of them gets 234 pods. Prefixes make addresses plentiful, and then it is the kubelet
    /// and the container runtime that need a limit.
    pub fn is_recommendation_applied(&self) -> bool {
        self.prefixes
    }

    /// The figure to give to the kubelet.
    pub fn advised(&self) -> u32 {
        match self.by_addresses {
            Some(pods) if self.prefixes => pods.min(self.recommended),
            Some(pods) => pods,
            None => self.recommended,
        }
    }

    /// The figure without the recommendation; IPv6 addresses set no limit, so it stays there.
    pub fn allowed(&self) -> u32 {
        self.by_addresses.unwrap_or(self.recommended)
    }
}

/// The arithmetic, a line for each step.
impl fmt::Display for MaxPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefixes_refused {
            writeln!(f, "the type takes no prefixes (not Nitro, not bare metal): single addresses")?;
        }
        writeln!(f, "{} ENIs on the default network card", self.enis)?;
        if self.enis_allowed < self.enis {
            writeln!(f, "{} ENIs under the given maximum", self.enis_allowed)?;
        }
        if self.enis_for_pods < self.enis_allowed {
            writeln!(f, "{} ENIs for pods, the primary one being kept from them", self.enis_for_pods)?;
        }
        let Some(pods) = self.by_addresses else {
            writeln!(f, "one /80 prefix holds 2^48 IPv6 addresses: they set no limit")?;
            return self.write_recommendation(f);
        };
        let (enis, slots) = (self.enis_for_pods, self.slots_per_eni);
        let times = if self.prefixes { format!(" x {ADDRESSES_PER_PREFIX}") } else { String::new() };
        let what = if self.prefixes { "prefixes" } else { "addresses" };
        writeln!(f, "{slots} {what} per ENI, its own address being kept from pods")?;
        writeln!(f, "{enis} x {slots}{times} + {HOST_NETWORK_PODS} on the host's network = {pods}")?;
        if self.is_recommendation_applied() {
            self.write_recommendation(f)?;
        }
        Ok(())
    }
}

impl MaxPods {
    fn write_recommendation(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comparison = if self.vcpus > FEW_VCPUS { "more than" } else { "at most" };
        let (cpus, recommended) = (self.vcpus, self.recommended);
        writeln!(f, "{recommended} recommended for {comparison} {FEW_VCPUS} vCPUs (this type: {cpus})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, how: PodAddressing) -> MaxPods {
        let limits = InstanceLimits::of(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        MaxPods::of(limits, &how).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    const SINGLE: PodAddressing =
        PodAddressing { prefixes: false, custom_networking: false, max_enis: None, ipv6: false };
    const PREFIXES: PodAddressing = PodAddressing { prefixes: true, ..SINGLE };

    #[test]
    fn single_addresses_give_what_the_published_list_says() {
        for (name, pods) in [
            ("t3.small", 11),
            ("t3.large", 35),
            ("c5.large", 29),
            ("m5.large", 29),
            ("c5.4xlarge", 234),
            ("p5.48xlarge", 100),
        ] {
            assert_eq!(of(name, SINGLE).advised(), pods, "{name}");
        }
    }

    #[test]
    fn prefixes_multiply_by_sixteen_and_heed_the_recommendation() {
        let small = of("m5.large", PREFIXES);
        assert_eq!((small.allowed(), small.advised()), (434, 110));
        let large = of("m5.24xlarge", PREFIXES);
        assert_eq!((large.allowed(), large.advised()), (15 * 49 * 16 + 2, 250));
        let tiny = of("t3.nano", PREFIXES);
        assert_eq!((tiny.allowed(), tiny.advised()), (2 * 16 + 2, 34));
    }

    #[test]
    fn custom_networking_keeps_pods_off_the_primary_eni() {
        let how = PodAddressing { custom_networking: true, ..SINGLE };
        assert_eq!(of("m5.large", how).advised(), 20);
        assert_eq!(of("m5.large", PodAddressing { max_enis: Some(1), ..how }).advised(), 2);
    }

    #[test]
    fn the_operators_maximum_of_enis_lowers_and_never_raises() {
        assert_eq!(of("m5.large", PodAddressing { max_enis: Some(2), ..SINGLE }).advised(), 20);
        assert_eq!(of("m5.large", PodAddressing { max_enis: Some(90), ..SINGLE }).advised(), 29);
    }

    #[test]
    fn ipv6_is_bounded_by_the_recommendation_alone() {
        let how = PodAddressing { ipv6: true, ..SINGLE };
        assert_eq!((of("m5.large", how).advised(), of("m5.large", how).allowed()), (110, 110));
        assert_eq!(of("m5.24xlarge", how).advised(), 250);
    }

    #[test]
    fn ipv6_is_refused_where_it_cannot_work() {
        let xen = InstanceLimits::of("m4.large").expect("m4.large is in the table");
        let how = PodAddressing { ipv6: true, ..SINGLE };
        assert_eq!(MaxPods::of(xen, &how), Err(MaxPodsError::Ipv6NeedsPrefixes));
        let nitro = InstanceLimits::of("m5.large").expect("m5.large is in the table");
        let how = PodAddressing { custom_networking: true, ..how };
        assert_eq!(MaxPods::of(nitro, &how), Err(MaxPodsError::CustomNetworkingWithIpv6));
    }

    #[test]
    fn a_type_without_prefixes_falls_back_to_single_addresses_and_says_so() {
        let answer = of("m4.large", PREFIXES);
        assert_eq!(answer.advised(), 20);
        assert!(answer.prefixes_refused);
        assert!(answer.to_string().starts_with("the type takes no prefixes"), "{answer}");
    }

    #[test]
    fn the_explanation_shows_the_arithmetic() {
        let how = PodAddressing { prefixes: true, custom_networking: true, max_enis: Some(2), ipv6: false };
        let lines = of("m5.large", how).to_string();
        assert_eq!(
            lines,
            "3 ENIs on the default network card\n\
             2 ENIs under the given maximum\n\
             1 ENIs for pods, the primary one being kept from them\n\
             9 prefixes per ENI, its own address being kept from pods\n\
             1 x 9 x 16 + 2 on the host's network = 146\n\
             110 recommended for at most 30 vCPUs (this type: 2)\n"
        );
    }
}
