//! What happens in one run, as plain data: drawn from a seed, and easy to make smaller.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ipnet::Ipv4Net;
use vpc::InstanceLimits;

use super::disk::DiskTrouble;

/// How a call to EC2 goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    Error(&'static str),
    Throttle,
    Deny,
    Expired,
    Hang,
    LoseAnswer,
    Drop,
}

/// What a person does to the ENIs of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByHand {
    Detach,
    Unassign,
    AttachUntagged,
    AttachUnmanaged,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A pod comes, and goes after `life`; so many times, under the same name.
    Pod { node: usize, name: u32, lives: u32, life: Duration, salt: u64 },
    /// Calls of an action go wrong, at most so many, for so long.
    Fault { action: &'static str, wrong: Wrong, times: u32, lasts: Duration },
    /// The daemon is killed: now, or at its so many'th operation from now.
    Kill { node: usize, after: Option<u32> },
    /// The daemon is asked to end, and started anew.
    Restart { node: usize },
    /// The machine is switched off and on.
    Reboot { node: usize },
    /// The wall clock jumps by so many seconds.
    WallJump { node: usize, secs: i64 },
    /// The disk is out of order for a while.
    Disk { node: usize, trouble: DiskTrouble, lasts: Duration },
    /// The daemon is killed, and a state file is damaged before it starts again.
    Damage { node: usize, is_sidecar: bool },
    /// The daemon starts anew with prefix delegation where it had none, or the other way round.
    Switch { node: usize },
    /// The tag that offers a subnet to pods, or with 0 forbids it, is set; or removed, if empty.
    Tag { subnet: usize, value: &'static str },
    /// Kubernetes cordons the node, or ends that.
    Cordon { node: usize, is_on: bool },
    /// The runtime tells which pods there are, and the daemon lets go of all others.
    Collect { node: usize },
    /// Somebody uses free addresses of the node, one after the other, without asking anybody.
    AnotherHand { node: usize, salt: u64, lasts: Duration },
    /// Somebody takes single addresses all over the subnets, so that few /28 blocks are whole.
    Fragment { every: u32, lasts: Duration },
    /// Somebody changes the node's ENIs.
    Hand { node: usize, what: ByHand, salt: u64 },
    /// The subnets are filled up to so many free addresses, for a while.
    Fill { leave: u32, lasts: Duration },
    /// IMDS shows the state of so long ago, for a while.
    ImdsLag { lag: Duration, lasts: Duration },
    /// IMDS does not answer, for a while.
    ImdsDown { lasts: Duration },
    /// Links take so long to appear, for a while.
    LateLinks { node: usize, delay: Duration, lasts: Duration },
    /// The account's buckets are this small, for a while.
    Throttle { capacity: u32, lasts: Duration },
    /// Every call takes so long, for a while.
    Slow { latency: Duration, lasts: Duration },
}

/// The blocks that others have assigned to a node's ENIs before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Provided {
    pub(super) on_primary: u16,
    /// On a second ENI; none without one.
    pub(super) on_second: u16,
}

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) instance_type: &'static str,
    /// The daemon's environment.
    pub(super) vars: BTreeMap<&'static str, String>,
    pub(super) subnets: Vec<Ipv4Net>,
    /// How long things happen.
    pub(super) active: Duration,
    /// How long nothing may happen in the end.
    pub(super) idle: Duration,
    /// EC2's latency and as much again at random.
    pub(super) latency: Duration,
    pub(super) attach_delay: Duration,
    pub(super) detach_delay: Duration,
    /// What others give a node, where the daemon may not ask for anything.
    pub(super) provided: Option<Provided>,
    /// Whether pods get addresses of the second subnet only, by custom networking.
    pub(super) is_custom: bool,
    /// Of a hundred DELs so many get lost.
    pub(super) lost_dels: u64,
    /// Whether the state files outlast a reboot.
    pub(super) keeps_run: bool,
    /// By time, in order.
    pub(super) events: Vec<(Duration, Event)>,
}

impl Scenario {
    pub(super) fn limits(&self) -> &'static InstanceLimits {
        InstanceLimits::of(self.instance_type).expect("a known type")
    }

    fn number(&self, name: &str, default: u32) -> u32 {
        self.vars.get(name).map_or(default, |value| value.parse().expect("a number"))
    }

    pub(super) fn cooldown(&self) -> Duration {
        Duration::from_secs(self.number("IP_COOLDOWN_PERIOD", 30).into())
    }

    pub(super) fn shrink_delay(&self) -> Duration {
        Duration::from_secs(self.number("POOL_SHRINK_DELAY", 180).into())
    }

    pub(super) fn warm_eni(&self) -> u32 {
        self.number("WARM_ENI_TARGET", 1)
    }

    pub(super) fn warm_ip(&self) -> u32 {
        self.number("WARM_IP_TARGET", 0)
    }

    pub(super) fn minimum_ip(&self) -> u32 {
        self.number("MINIMUM_IP_TARGET", 0)
    }

    /// How long it takes at most until an ENI has left and another has come in its place: nine
    /// calls one after the other, the changes at EC2, and the pauses between looks at them.
    pub(super) fn longest_way(&self) -> Duration {
        9 * 2 * self.latency + self.attach_delay + self.detach_delay + Duration::from_secs(4)
    }

    /// Whether prefixes are delegated, or may be at some time.
    pub(super) fn has_prefixes(&self) -> bool {
        let switches = |(_, event): &(Duration, Event)| matches!(event, Event::Switch { .. });
        self.vars.contains_key(PREFIXES) || self.events.iter().any(switches)
    }

    pub(super) fn warm_prefix(&self) -> u32 {
        self.number("WARM_PREFIX_TARGET", 1)
    }

    /// Whether EC2 may not be asked for anything, not even what there is.
    pub(super) fn is_imds_only(&self) -> bool {
        self.vars.contains_key(IMDS_ONLY)
    }

    /// Whether subnets' tags, or what is free in them, change what a node can reach.
    pub(super) fn changes_subnets(&self) -> bool {
        self.events.iter().any(|(_, event)| matches!(event, Event::Tag { .. }))
    }

    /// Whether a subnet may have too little at some time.
    pub(super) fn has_tight_subnets(&self) -> bool {
        let fills = |event: &Event| matches!(event, Event::Fill { .. } | Event::Fragment { .. });
        self.changes_subnets()
            || self.subnets.iter().any(|subnet| subnet.prefix_len() > 22)
            || self.events.iter().any(|(_, event)| fills(event))
    }

    /// Whether the file that tells of ENIs in the making is lost at some time.
    pub(super) fn damages_second_file(&self) -> bool {
        self.events.iter().any(|(_, event)| matches!(event, Event::Damage { is_sidecar: true, .. }))
    }

    /// The ENIs that a node may have.
    pub(super) fn eni_limit(&self) -> usize {
        let most = usize::from(self.limits().enis);
        match self.number("MAX_ENI", 0) {
            0 => most,
            limit => most.min(usize::try_from(limit).unwrap_or(most)),
        }
    }

    pub(super) fn ips_per_eni(&self) -> usize {
        usize::from(self.limits().slots_per_eni())
    }

    /// The pods that the kubelet starts at most with prefix delegation.
    pub(super) fn max_pods(&self) -> u32 {
        if self.limits().vcpus > 30 { 250 } else { 110 }
    }

    /// The ENIs of a node that may serve pods.
    pub(super) fn serving_enis(&self) -> usize {
        self.eni_limit() - usize::from(self.is_custom)
    }

    /// The pods that a node can have at most, if each takes one slot.
    pub(super) fn capacity(&self) -> usize {
        match self.provided {
            Some(Provided { on_primary, on_second }) => {
                let size = if self.vars.contains_key(PREFIXES) { 16 } else { 1 };
                usize::from(on_primary + on_second) * size
            }
            None => self.serving_enis() * self.ips_per_eni(),
        }
    }
}

/// The variable of prefix delegation.
pub(super) const PREFIXES: &str = "ENABLE_PREFIX_DELEGATION";
/// With it nothing is asked of EC2.
pub(super) const IMDS_ONLY: &str = "ENABLE_IMDS_ONLY_MODE";
/// With it EC2 is asked for no changes.
pub(super) const NO_PROVISIONING: &str = "DISABLE_NETWORK_RESOURCE_PROVISIONING";

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} x {}, {:?}; active {:?}, idle {:?}, latency {:?}, attach {:?}, detach {:?}{}",
            self.seed,
            self.nodes,
            self.instance_type,
            self.vars,
            self.active,
            self.idle,
            self.latency,
            self.attach_delay,
            self.detach_delay,
            if self.keeps_run { ", /run outlasts reboots" } else { "" },
        )?;
        let pods = self.events.iter().filter(|(_, event)| matches!(event, Event::Pod { .. })).count();
        let Self { subnets, provided, is_custom, lost_dels, .. } = self;
        writeln!(f, "  {pods} pods, subnets {subnets:?}, provided {provided:?}")?;
        writeln!(f, "  custom networking {is_custom}, {lost_dels} % of DELs lost")?;
        for (at, event) in &self.events {
            if !matches!(event, Event::Pod { .. }) || pods <= 6 {
                writeln!(f, "  {:>9.3} {event:?}", at.as_secs_f64())?;
            }
        }
        Ok(())
    }
}
