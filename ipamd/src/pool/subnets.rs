//! What the pool knows of the subnets that ENIs may lie in.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use vpc::SubnetId;

use super::block::BlockKind;

/// How long what EC2 said of the subnets is good enough to place an ENI by. ENIs of one burst
/// share one look.
const FRESH: Duration = Duration::from_secs(10);

/// How often to look at subnets none of which can take an ENI.
const STALE: Duration = Duration::from_secs(120);

/// The addresses of a prefix.
const PREFIX: u32 = BlockKind::Prefix.size();

/// A subnet of this zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subnet {
    pub(crate) id: SubnetId,
    pub(crate) cidr: Ipv4Net,
    pub(crate) free_addresses: u32,
    /// Whether its tags allow new ENIs.
    pub(crate) takes_enis: bool,
    /// Whether its tags forbid that the ENIs in it serve pods.
    pub(crate) is_excluded: bool,
}

impl Subnet {
    /// How many /28 blocks it has left at most; fewer if its free addresses are scattered.
    pub(crate) fn free_prefixes_at_most(&self) -> u32 {
        self.free_addresses / PREFIX
    }
}

/// The subnets, as last read.
#[derive(Debug, Default)]
pub(super) struct Subnets {
    known: Vec<Subnet>,
    read_at: Option<Instant>,
    /// EC2 would not say; then only the primary ENI's subnet takes ENIs.
    is_refused: bool,
    excluded: BTreeSet<SubnetId>,
    /// Subnets that had no free /28, with the fewest free addresses seen since; none where nobody
    /// has looked since.
    out_of_prefixes: BTreeMap<SubnetId, Option<u32>>,
}

impl Subnets {
    /// Takes in what EC2 said. Whatever it did not list is not excluded.
    pub(super) fn read(&mut self, mut subnets: Vec<Subnet>, now: Instant) {
        // A stable sort: subnets with the same room keep the order that EC2 gave them.
        subnets.sort_by_key(|subnet| Reverse(subnet.free_addresses));
        self.excluded =
            subnets.iter().filter(|subnet| subnet.is_excluded).map(|subnet| subnet.id.clone()).collect();
        self.known = subnets;
        self.is_refused = false;
        self.read_at = Some(now);
    }

    /// EC2 could not be read. What was known of exclusions stays.
    pub(super) fn refused(&mut self, now: Instant) {
        self.is_refused = true;
        self.read_at = Some(now);
    }

    /// The subnet has no free /28 now.
    pub(super) fn lacks_prefixes(&mut self, subnet: &SubnetId, now: Instant) {
        // What was free long ago says nothing about how much more there is to be.
        let known = self.known.iter().find(|known| known.id == *subnet).filter(|_| self.are_fresh(now));
        self.out_of_prefixes.insert(subnet.clone(), known.map(|known| known.free_addresses));
    }

    /// The subnets that had no free /28, and since then have got enough addresses back for one.
    pub(super) fn recovered(&mut self) -> Vec<SubnetId> {
        let mut recovered = Vec::new();
        for Subnet { id, free_addresses: free, .. } in &self.known {
            let Some(fewest) = self.out_of_prefixes.get_mut(id) else { continue };
            let enough = fewest.unwrap_or(0).saturating_add(PREFIX);
            if *free >= enough {
                recovered.push(id.clone());
            } else {
                *fewest = Some(fewest.map_or(*free, |fewest| fewest.min(*free)));
            }
        }
        for subnet in &recovered {
            self.out_of_prefixes.remove(subnet);
        }
        recovered
    }

    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read_at
    }

    /// Whether EC2 would not say when it was last asked.
    pub(super) fn are_refused(&self) -> bool {
        self.is_refused
    }

    pub(super) fn were_read(&self) -> bool {
        self.read_at.is_some()
    }

    pub(super) fn are_fresh(&self, now: Instant) -> bool {
        self.read_at.is_some_and(|at| now.saturating_duration_since(at) < FRESH)
    }

    pub(super) fn are_stale(&self, now: Instant) -> bool {
        self.read_at.is_none_or(|at| now.saturating_duration_since(at) >= STALE)
    }

    pub(super) fn excludes(&self, subnet: &SubnetId) -> bool {
        self.excluded.contains(subnet)
    }

    pub(super) fn known(&self) -> &[Subnet] {
        &self.known
    }

    /// The subnets for new ENIs, the one with most room first. Where EC2 did not list them it is
    /// `primary` alone, unless that is known to be excluded.
    pub(super) fn for_new_enis(&self, primary: Option<&SubnetId>) -> Vec<SubnetId> {
        if self.is_refused || self.read_at.is_none() {
            return primary.filter(|subnet| !self.excludes(subnet)).cloned().into_iter().collect();
        }
        self.known.iter().filter(|subnet| subnet.takes_enis).map(|subnet| subnet.id.clone()).collect()
    }
}
