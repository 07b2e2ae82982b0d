//! What the operator and the instance type ask of the pool.

use std::time::Duration;

/// How many addresses to keep ready beyond those in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WarmTargets {
    /// WARM_ENI_TARGET: whole ENIs' worth of free addresses. Counts only while the two below are 0.
    pub(crate) warm_eni: u32,
    /// WARM_IP_TARGET: free addresses; 0 is off.
    pub(crate) warm_ip: u32,
    /// MINIMUM_IP_TARGET: addresses held at least, in whatever state; 0 is off.
    pub(crate) minimum_ip: u32,
}

impl WarmTargets {
    /// Whether single addresses are counted rather than whole ENIs.
    pub(crate) fn counts_ips(self) -> bool {
        self.warm_ip > 0 || self.minimum_ip > 0
    }
}

/// The pool's settings; constant for the life of the process.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) targets: WarmTargets,
    /// For messages only.
    pub(crate) instance_type: String,
    /// ENIs on the default card: the instance's limit, lowered by MAX_ENI.
    pub(crate) eni_limit: u32,
    /// Whether MAX_ENI set that limit, for messages.
    pub(crate) is_eni_limit_configured: bool,
    /// Secondary IPs that one ENI can hold: the instance's IPv4 limit less the ENI's own address.
    pub(crate) ips_per_eni: u32,
    /// The pods that the kubelet may start; no warm address is kept beyond them.
    pub(crate) max_pods: u32,
    /// How long a released address rests.
    pub(crate) cooldown: Duration,
    /// How long a surplus must last before anything is given back.
    pub(crate) shrink_delay: Duration,
    /// Whether EC2 may be asked for changes at all.
    pub(crate) may_provision: bool,
}
