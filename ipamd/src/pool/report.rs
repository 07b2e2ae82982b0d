//! The pool as people and tools see it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use ipnet::Ipv4Net;
use vpc::{EniId, EniKind, EniRole, EniSlot, Prefix, RouteTable, SubnetId};

use super::block::{Block, BlockKind};
use super::eni::{EniEntry, EniPhase, QuarantineReason, State};
use super::failures::Kind;
use super::settings::BlockMode;
use super::targets::{Holdings, Surplus};
use super::{Allocation, Pool, Stats, Subnet};

/// Everything that the pool can tell at one moment.
#[derive(Debug, Clone)]
pub(crate) struct PoolReport {
    pub(crate) stats: Stats,
    /// In order of their slots.
    pub(crate) enis: Vec<EniReport>,
    /// Addresses in pods' hands whose ENI EC2 has not shown.
    pub(crate) pinned: Vec<Allocation>,
    pub(crate) wants: Wants,
    /// What the planner would do but does not do now.
    pub(crate) held_back: Vec<HeldBack>,
    /// The subnets of this zone, as EC2 last showed them; best first.
    pub(crate) subnets: Vec<SubnetReport>,
}

/// One ENI.
#[derive(Debug, Clone)]
pub(crate) struct EniReport {
    pub(crate) id: EniId,
    pub(crate) slot: EniSlot,
    /// The route table of its pods' traffic.
    pub(crate) table: RouteTable,
    pub(crate) role: EniRole,
    pub(crate) kind: EniKind,
    /// Whether its tags let us use and change it.
    pub(crate) is_managed: bool,
    pub(crate) phase: EniPhase,
    pub(crate) subnet: SubnetId,
    /// The ENI's own address, which no pod gets.
    pub(crate) primary_ip: Ipv4Addr,
    /// The same of IPv6, where it has one.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Why pods get nothing from it; none if they do.
    pub(crate) unused_because: Option<&'static str>,
    pub(crate) prefixes: Vec<Prefix>,
    /// Every address that pods may have, those of prefixes included, in order; of an IPv6 prefix
    /// those that are not free.
    pub(crate) addresses: Vec<AddressReport>,
}

/// One address on an ENI.
#[derive(Debug, Clone)]
pub(crate) struct AddressReport {
    pub(crate) address: IpAddr,
    pub(crate) state: AddressState,
}

/// What an address is doing.
#[derive(Debug, Clone)]
pub(crate) enum AddressState {
    Free,
    Assigned(Allocation),
    /// It rests after its last pod.
    Cooling {
        until: Instant,
    },
    Quarantined(QuarantineReason),
    /// On its way back to EC2.
    Leaving,
}

/// What the operator and the instance type ask for, and how far that is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wants {
    /// Where addresses come from: `secondary IPs`, `prefixes` or `an IPv6 prefix`.
    pub(crate) mode: &'static str,
    /// The warm targets as they are set; 0 is off.
    pub(crate) warm_eni: u32,
    pub(crate) warm_prefix: u32,
    pub(crate) warm_ip: u32,
    pub(crate) minimum_ip: u32,
    /// ENIs at most, and whether MAX_ENI says so rather than the instance type.
    pub(crate) eni_limit: u32,
    pub(crate) is_eni_limit_configured: bool,
    /// Addresses for pods at most.
    pub(crate) address_limit: u32,
    /// The pods that the kubelet may start.
    pub(crate) max_pods: u32,
    /// Addresses that are wanted beyond those held and coming.
    pub(crate) missing: u32,
    /// Addresses beyond what is wanted.
    pub(crate) surplus: u32,
    /// When the surplus goes back, if it lasts.
    pub(crate) surplus_goes_at: Option<Instant>,
    /// Whether EC2 may be asked for changes.
    pub(crate) may_provision: bool,
    /// Whether Kubernetes sends no more pods here.
    pub(crate) is_cordoned: bool,
}

#[cfg(test)]
impl Wants {
    /// A node of three ENIs with nine single addresses each that holds what it wants.
    pub(crate) fn of_three_enis() -> Self {
        Self {
            mode: "secondary IPs",
            warm_eni: 1,
            warm_prefix: 0,
            warm_ip: 0,
            minimum_ip: 0,
            eni_limit: 3,
            is_eni_limit_configured: false,
            address_limit: 27,
            max_pods: 29,
            missing: 0,
            surplus: 0,
            surplus_goes_at: None,
            may_provision: true,
            is_cordoned: false,
        }
    }
}

/// Something that the planner would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldBack {
    /// What, as a step says it.
    pub(crate) what: String,
    /// Until when; none if something else must change first.
    pub(crate) until: Option<Instant>,
    pub(crate) because: String,
}

/// What is known of a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubnetReport {
    pub(crate) id: SubnetId,
    pub(crate) cidr: Ipv4Net,
    pub(crate) free_addresses: u32,
    /// /28 blocks at most; fewer if the free addresses are scattered, and 0 if it had none when
    /// it was last asked.
    pub(crate) free_prefixes_at_most: u32,
    pub(crate) read_at: Option<Instant>,
    /// Until when it is left alone, since it had too little.
    pub(crate) exhausted_until: Option<Instant>,
    /// Whether its tags allow new ENIs.
    pub(crate) takes_enis: bool,
    /// Whether its tags forbid that the ENIs in it serve pods.
    pub(crate) is_excluded: bool,
}

impl Pool {
    /// What the pool tells of itself at `now`.
    pub(crate) fn report(&self, now: Instant) -> PoolReport {
        let mut enis: Vec<_> = self.book.enis.values().map(eni).collect();
        enis.sort_by_key(|eni| eni.slot);
        let wants = self.wants();
        PoolReport {
            stats: self.stats(),
            enis,
            pinned: self.book.pinned.values().cloned().collect(),
            held_back: self.held_back(&wants, now),
            wants,
            subnets: self.subnets.known().iter().map(|known| self.subnet_report(known, now)).collect(),
        }
    }

    fn wants(&self) -> Wants {
        let settings = &self.settings;
        let held = self.running.coming().fold(self.holdings(), Holdings::with);
        let kind = settings.mode.kind();
        let surplus = match settings.surplus(&self.holdings()) {
            Surplus::None => 0,
            Surplus::Blocks(over) => over.addresses(),
            Surplus::Enis { keep_free } => {
                u32::try_from(self.holdings().spare()).unwrap_or(0).saturating_sub(keep_free)
            }
        };
        Wants {
            mode: match settings.mode {
                BlockMode::SecondaryIps => "secondary IPs",
                BlockMode::Prefixes => "prefixes",
                BlockMode::Ipv6Prefix => "an IPv6 prefix",
            },
            warm_eni: settings.targets.warm_eni,
            warm_prefix: settings.targets.warm_prefix,
            warm_ip: settings.targets.warm_ip,
            minimum_ip: settings.targets.minimum_ip,
            eni_limit: settings.eni_limit,
            is_eni_limit_configured: settings.is_eni_limit_configured,
            address_limit: settings.capacity(),
            max_pods: settings.max_pods,
            missing: settings.shortage(&held, kind, self.is_dormant()),
            surplus,
            surplus_goes_at: self.surplus_since.map(|since| since + settings.shrink_delay),
            may_provision: settings.may_provision,
            is_cordoned: self.is_cordoned,
        }
    }

    fn held_back(&self, wants: &Wants, now: Instant) -> Vec<HeldBack> {
        let failed = self.failures.iter().filter(|(_, last)| last.retry_at > now);
        let mut held_back: Vec<_> = failed
            .map(|(kind, last)| HeldBack {
                what: what(kind),
                until: Some(last.retry_at),
                because: last.failure.message.clone(),
            })
            .collect();
        if wants.missing > 0 && self.running.coming().next().is_none() {
            let because = if !wants.may_provision {
                Some("provisioning is off".to_owned())
            } else if self.is_unclear || self.is_reading_unclear {
                Some("EC2 is read first, since an answer of it was lost".to_owned())
            } else if self.eni_room() == 0 {
                let who = if wants.is_eni_limit_configured { "MAX_ENI allows" } else { "the instance takes" };
                let plural = if wants.eni_limit == 1 { "" } else { "s" };
                Some(format!("{who} {} ENI{plural}, with no slot left", wants.eni_limit))
            } else if self.subnets.were_read() && self.subnets_for_new_enis().is_empty() {
                Some("no subnet's tags allow new ENIs".to_owned())
            } else {
                None
            };
            held_back.extend(because.map(|because| HeldBack {
                what: match self.settings.mode {
                    BlockMode::Ipv6Prefix => "get an IPv6 prefix".to_owned(),
                    _ => format!("get {} more addresses", wants.missing),
                },
                until: None,
                because,
            }));
        }
        if wants.surplus > 0 && wants.may_provision && self.surplus(&self.holdings()) == Surplus::None {
            held_back.push(HeldBack {
                what: format!("give back {} addresses", wants.surplus),
                until: None,
                because: "they go with a whole ENI, and none that may go is without pods".to_owned(),
            });
        }
        held_back
    }

    fn subnet_report(&self, subnet: &Subnet, now: Instant) -> SubnetReport {
        let retry_at = |kind| self.failures.retry_at(&Kind::Subnet(subnet.id.clone(), kind));
        let exhausted_until = retry_at(self.settings.mode.kind()).filter(|at| *at > now);
        let is_out = self.failures.is_out_of(&subnet.id, BlockKind::Prefix);
        SubnetReport {
            id: subnet.id.clone(),
            cidr: subnet.cidr,
            free_addresses: subnet.free_addresses,
            free_prefixes_at_most: if is_out { 0 } else { subnet.free_prefixes_at_most() },
            read_at: self.subnets.read_at(),
            exhausted_until,
            takes_enis: subnet.takes_enis,
            is_excluded: subnet.is_excluded,
        }
    }
}

fn what(kind: &Kind) -> String {
    match kind {
        Kind::AllocateEni => "allocate an ENI".to_owned(),
        Kind::Assign(eni) => format!("assign more addresses to {eni}"),
        Kind::SetUpEni(eni) => format!("set up {eni} on the host"),
        Kind::Return(eni) => format!("give back what is too much of {eni}"),
        Kind::ReadInventory => "read what EC2 holds for this instance".to_owned(),
        Kind::ReadSubnets => "read the subnets of this zone".to_owned(),
        Kind::Subnet(subnet, BlockKind::Ip) => format!("take addresses of {subnet}"),
        Kind::Subnet(subnet, BlockKind::Prefix) => format!("take prefixes of {subnet}"),
        Kind::Subnet(subnet, BlockKind::Ipv6Prefix) => format!("take an IPv6 prefix of {subnet}"),
    }
}

fn eni(entry: &EniEntry) -> EniReport {
    let EniEntry { facts, blocks, .. } = entry;
    let addresses = blocks.iter().flat_map(|(block, held)| {
        let known = block.addresses().chain(held.states.keys().copied()).collect::<BTreeSet<_>>();
        known.into_iter().map(move |address| {
            let state = match held.states.get(&address) {
                _ if held.is_leaving => AddressState::Leaving,
                None | Some(State::Free { .. }) => AddressState::Free,
                Some(State::Assigned(allocation)) => AddressState::Assigned(allocation.clone()),
                Some(State::Cooling { until }) => AddressState::Cooling { until: *until },
                Some(State::Quarantined(reason)) => AddressState::Quarantined(*reason),
            };
            AddressReport { address, state }
        })
    });
    let prefixes = blocks.keys().filter_map(|block| match block {
        Block::Prefix(prefix) => Some(*prefix),
        Block::Ip(_) => None,
    });
    EniReport {
        id: facts.id.clone(),
        slot: facts.slot,
        table: facts.route_table(),
        role: facts.role,
        kind: facts.kind,
        is_managed: facts.is_managed,
        phase: entry.phase,
        subnet: facts.subnet.clone(),
        primary_ip: facts.primary_ip,
        ipv6: facts.ipv6.map(|(address, _)| address),
        unused_because: unused_because(entry),
        prefixes: prefixes.collect(),
        addresses: addresses.collect(),
    }
}

fn unused_because(entry: &EniEntry) -> Option<&'static str> {
    if entry.facts.kind == EniKind::EfaOnly {
        Some("EFA without IP")
    } else if !entry.facts.is_managed {
        Some("not managed, by its tags")
    } else if !entry.is_confirmed {
        Some("EC2 has not confirmed it yet")
    } else if entry.is_excluded {
        Some("its subnet is excluded by tag")
    } else {
        None
    }
}
