//! What the operator and the instance type ask of the pool.

use std::time::Duration;

use vpc::{Family, SecurityGroupId, SubnetId};

use super::block::BlockKind;

/// How many addresses to keep ready beyond those in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WarmTargets {
    /// WARM_ENI_TARGET: whole ENIs' worth of free addresses. Counts only in secondary-IP mode
    /// and while `warm_ip` and `minimum_ip` are 0.
    pub(crate) warm_eni: u32,
    /// WARM_IP_TARGET: free addresses; 0 is off.
    pub(crate) warm_ip: u32,
    /// MINIMUM_IP_TARGET: addresses held at least, in whatever state; 0 is off.
    pub(crate) minimum_ip: u32,
    /// WARM_PREFIX_TARGET: whole free prefixes. Counts only in prefix mode and while `warm_ip`
    /// and `minimum_ip` are 0.
    pub(crate) warm_prefix: u32,
}

impl WarmTargets {
    /// Whether single addresses are counted rather than whole ENIs or prefixes.
    pub(crate) fn counts_ips(self) -> bool {
        self.warm_ip > 0 || self.minimum_ip > 0
    }
}

/// Where pods' addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockMode {
    /// One secondary IP after the other.
    SecondaryIps,
    /// Delegated prefixes; single IPs only where a subnet has no free /28.
    Prefixes,
    /// One IPv6 prefix, which holds more addresses than any node needs.
    Ipv6Prefix,
}

impl BlockMode {
    /// The kind of block that this mode asks for.
    pub(crate) fn kind(self) -> BlockKind {
        match self {
            Self::SecondaryIps => BlockKind::Ip,
            Self::Prefixes => BlockKind::Prefix,
            Self::Ipv6Prefix => BlockKind::Ipv6Prefix,
        }
    }

    /// The family of pods' addresses.
    pub(crate) fn family(self) -> Family {
        self.kind().family()
    }
}

/// Where new ENIs of a node with custom networking go, and that its primary ENI gets no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CustomNetwork {
    pub(crate) subnet: SubnetId,
    /// In the order in which the operator named them; empty for those of the primary ENI.
    pub(crate) security_groups: Vec<SecurityGroupId>,
}

/// The pool's settings; constant for the life of the process.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) targets: WarmTargets,
    pub(crate) mode: BlockMode,
    /// For messages only.
    pub(crate) instance_type: String,
    /// ENIs on the default card: the instance's limit, lowered by MAX_ENI.
    pub(crate) eni_limit: u32,
    /// Whether MAX_ENI set that limit, for messages.
    pub(crate) is_eni_limit_configured: bool,
    /// Whether one ENI's place is kept for the trunk until there is one.
    pub(crate) reserves_trunk: bool,
    /// Blocks that one ENI can hold: the instance's IPv4 limit less the ENI's own address.
    pub(crate) slots_per_eni: u32,
    /// The pods that the kubelet may start; no warm address is kept beyond them.
    pub(crate) max_pods: u32,
    /// How long a released address rests.
    pub(crate) cooldown: Duration,
    /// How long a surplus must last before anything is given back.
    pub(crate) shrink_delay: Duration,
    /// Whether EC2 may be asked for changes at all.
    pub(crate) may_provision: bool,
    /// Whether EC2 may be asked for subnets and their tags.
    pub(crate) reads_subnets: bool,
    /// AWS_MANAGE_ENIS_NON_SCHEDULABLE: whether a cordoned node keeps its pool warm.
    pub(crate) grows_while_cordoned: bool,
}

impl Settings {
    /// The addresses that the node can hold at most.
    pub(super) fn capacity(&self) -> u32 {
        let per_eni = self.slots_per_eni.saturating_mul(self.mode.kind().size());
        self.eni_limit.saturating_mul(per_eni)
    }
}
