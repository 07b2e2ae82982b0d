//! The address book: every ENI of the node, every address on it, and who has it.

mod rest;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use vpc::{Eni, EniId, EniRole, EniSlot, Family, PodKey, RouteTable, SubnetId};

use super::block::{Block, BlockKind, to_u32};
use super::eni::{BlockEntry, EniEntry, EniPhase, QuarantineReason, State};
use super::{Allocation, Assignment, Released, Request, Stats};

#[derive(Debug)]
pub(super) struct Book {
    /// The family of pods' addresses; blocks of the other are none of the book's.
    family: Family,
    pub(super) enis: BTreeMap<EniId, EniEntry>,
    /// Allocations whose ENI EC2 has not shown: they stay their pods' until DEL.
    pub(super) pinned: BTreeMap<IpAddr, Allocation>,
    by_key: HashMap<PodKey, IpAddr>,
    /// Addresses that the kernel used when it was last read.
    pub(super) kernel_uses: BTreeSet<IpAddr>,
    /// Those among them that lead to no pod's link.
    pub(super) others_use: BTreeSet<IpAddr>,
    /// Addresses that left the node before their rest was over; they may come back.
    away: BTreeMap<IpAddr, Instant>,
}

impl Book {
    /// An empty book of a node whose pods have addresses of `family`.
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            enis: BTreeMap::new(),
            pinned: BTreeMap::new(),
            by_key: HashMap::new(),
            kernel_uses: BTreeSet::new(),
            others_use: BTreeSet::new(),
            away: BTreeMap::new(),
        }
    }

    /// What the key holds, if its ENI is known.
    pub(super) fn assignment_of(&self, key: &PodKey) -> Option<Assignment> {
        let address = *self.by_key.get(key)?;
        let eni = self.eni_of(address)?;
        Some(assignment(eni, address, false))
    }

    /// Whether the key holds an address whose ENI EC2 has not shown.
    pub(super) fn is_pinned(&self, key: &PodKey) -> bool {
        self.by_key.get(key).is_some_and(|address| self.pinned.contains_key(address))
    }

    /// Gives the request the address that keeps ENIs and addresses most at rest: of the kind that
    /// is asked for nowadays, from the ENI and there the block with the most pods, so that others
    /// empty, and of that the one that has been free longest.
    pub(super) fn assign(&mut self, request: &Request, kind: BlockKind) -> Option<Assignment> {
        if self.by_key.contains_key(&request.key) {
            return None;
        }
        let serving = self.enis.values().filter(|eni| eni.phase == EniPhase::Ready && eni.serves_pods());
        let candidates = serving.flat_map(|eni| {
            let pods_of_eni = eni.counts().assigned;
            eni.blocks.iter().filter_map(move |(block, entry)| {
                let address = entry.next_free(*block)?;
                let rank = (
                    block.kind() != kind,
                    Reverse(pods_of_eni),
                    eni.facts.slot,
                    Reverse(entry.counts(*block).assigned),
                    // Single IPs are all alike, so it is the address's own rest that counts.
                    entry.states.get(&address).and_then(free_since),
                );
                Some((rank, eni.facts.id.clone(), *block, address))
            })
        });
        let (_, eni, block, address) = candidates.min_by(|one, other| one.0.cmp(&other.0))?;
        let eni = self.enis.get_mut(&eni)?;
        let allocation = Allocation {
            key: request.key.clone(),
            pod: request.pod.clone(),
            address,
            assigned_unix_ns: request.unix_ns,
        };
        eni.blocks.get_mut(&block)?.states.insert(address, State::Assigned(allocation));
        self.by_key.insert(request.key.clone(), address);
        Some(assignment(eni, address, true))
    }

    /// Takes the key's address back; it cools until `until`, or leaves the book if EC2 has
    /// not shown it.
    pub(super) fn release(&mut self, key: &PodKey, until: Instant) -> Option<Released> {
        let address = self.by_key.remove(key)?;
        self.forget_use(address);
        if let Some(allocation) = self.pinned.remove(&address) {
            self.away.insert(address, until);
            // Table 0 stands for any: the ENI and with it the table are not known.
            return Some(Released { allocation, slot: EniSlot::PRIMARY, table: RouteTable(0) });
        }
        let eni = self.eni_of_mut(address)?;
        let (slot, table) = (eni.facts.slot, eni.facts.route_table());
        let block = eni.block_of(address)?;
        let states = &mut eni.blocks.get_mut(&block)?.states;
        let State::Assigned(allocation) = states.insert(address, State::Cooling { until })? else {
            return None;
        };
        Some(Released { allocation, slot, table })
    }

    /// Undoes [`Book::assign`].
    pub(super) fn take_back(&mut self, key: &PodKey) {
        if let Some(address) = self.by_key.remove(key)
            && let Some(block) = self.block_mut(address)
        {
            block.states.remove(&address);
        }
    }

    /// Gives an allocation the address that it names, whatever state it is in.
    pub(super) fn give_back(&mut self, allocation: Allocation) {
        self.by_key.insert(allocation.key.clone(), allocation.address);
        self.settle_down(allocation);
    }

    /// Puts an allocation where its address is, or pins it if that is nowhere.
    fn settle_down(&mut self, allocation: Allocation) {
        let address = allocation.address;
        match self.block_mut(address) {
            Some(block) => {
                block.states.insert(address, State::Assigned(allocation));
            }
            None => {
                self.pinned.insert(address, allocation);
            }
        }
    }

    /// The allocation that holds `address`.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Allocation> {
        match self.eni_of(address).and_then(|eni| eni.state(address)) {
            Some(State::Assigned(allocation)) => Some(allocation),
            _ => self.pinned.get(&address),
        }
    }

    /// The address that the key holds.
    pub(super) fn address_of(&self, key: &PodKey) -> Option<IpAddr> {
        self.by_key.get(key).copied()
    }

    /// The ENI that holds `address`, singly or within a prefix.
    pub(super) fn eni_of(&self, address: IpAddr) -> Option<&EniEntry> {
        self.enis.values().find(|eni| eni.block_of(address).is_some())
    }

    fn eni_of_mut(&mut self, address: IpAddr) -> Option<&mut EniEntry> {
        self.enis.values_mut().find(|eni| eni.block_of(address).is_some())
    }

    pub(super) fn block_mut(&mut self, address: IpAddr) -> Option<&mut BlockEntry> {
        let eni = self.eni_of_mut(address)?;
        let block = eni.block_of(address)?;
        eni.blocks.get_mut(&block)
    }

    pub(super) fn blocks_mut(&mut self) -> impl Iterator<Item = &mut BlockEntry> {
        self.enis.values_mut().flat_map(|eni| eni.blocks.values_mut())
    }

    /// Adds an ENI. What pods hold of it moves from the pins to it; what the kernel uses of it
    /// otherwise is held back.
    pub(super) fn add_eni(&mut self, eni: Eni, is_excluded: bool, now: Instant) {
        let mut entry = EniEntry::new(eni, self.family, now);
        entry.is_excluded = is_excluded;
        let id = entry.facts.id.clone();
        let blocks: Vec<_> = entry.blocks.keys().copied().collect();
        self.enis.insert(id.clone(), entry);
        self.received(&id, blocks);
    }

    /// Looks at blocks that just came to an ENI for addresses that are spoken for. Another ENI that
    /// had one of them has it no more: what EC2 said last counts.
    pub(super) fn received(&mut self, id: &EniId, blocks: Vec<Block>) {
        let others = self.enis.values_mut().filter(|eni| eni.facts.id != *id);
        let moved = others.flat_map(|eni| eni.remove_overlapping(&blocks)).collect();
        self.lost(moved);
        for address in self.spoken_for(&blocks) {
            if let Some(allocation) = self.pinned.remove(&address) {
                self.settle_down(allocation);
            } else if self.kernel_uses.contains(&address)
                && let Some(block) = self.block_mut(address)
                && block.is_free(address)
            {
                block.states.insert(address, State::Quarantined(QuarantineReason::KernelOnly));
            } else if let Some(until) = self.away.remove(&address) {
                self.rest(address, until);
            }
        }
    }

    /// The addresses of these blocks of which something is known although they were not here.
    fn spoken_for(&self, blocks: &[Block]) -> BTreeSet<IpAddr> {
        let known = self.pinned.keys().chain(&self.kernel_uses).chain(self.away.keys());
        known.filter(|address| blocks.iter().any(|block| block.contains(**address))).copied().collect()
    }

    /// Holds a free or resting address back.
    pub(super) fn hold_back(&mut self, address: IpAddr, reason: QuarantineReason) {
        if let Some(block) = self.block_mut(address)
            && !matches!(block.states.get(&address), Some(State::Assigned(_)))
        {
            block.states.insert(address, State::Quarantined(reason));
        }
    }

    /// Takes in what EC2 says of an ENI that is in the book.
    pub(super) fn update_eni(&mut self, eni: Eni, now: Instant) {
        let id = eni.id.clone();
        let Some(entry) = self.enis.get_mut(&id) else { return };
        let before: BTreeSet<_> = entry.blocks.keys().copied().collect();
        let lost = entry.update(eni, now, self.family);
        let new = entry.blocks.keys().filter(|block| !before.contains(block)).copied().collect();
        self.lost(lost);
        self.received(&id, new);
    }

    /// Removes an ENI that is gone; what pods have of it stays pinned to them.
    pub(super) fn remove_eni(&mut self, id: &EniId) {
        if let Some(entry) = self.enis.remove(id) {
            self.lost(entry.blocks.into_values().collect());
        }
    }

    /// Blocks have left the node: pods keep what they have of them, and what rests goes on
    /// resting should it come back.
    fn lost(&mut self, blocks: Vec<BlockEntry>) {
        for (address, state) in blocks.into_iter().flat_map(|block| block.states) {
            match state {
                // Another ENI may have the address by now.
                State::Assigned(allocation) => self.settle_down(allocation),
                State::Cooling { until } => self.rest(address, until),
                State::Quarantined(reason) => self.hold_back(address, reason),
                State::Free { .. } => {}
            }
        }
    }

    pub(super) fn primary_eni(&self) -> Option<&EniId> {
        self.primary().map(|eni| &eni.facts.id)
    }

    pub(super) fn primary_subnet(&self) -> Option<&SubnetId> {
        self.primary().map(|eni| &eni.facts.subnet)
    }

    fn primary(&self) -> Option<&EniEntry> {
        self.enis.values().find(|eni| eni.facts.role == EniRole::Primary)
    }

    pub(super) fn allocations(&self) -> Vec<Allocation> {
        let assigned = self.states().filter_map(|(_, state)| match state {
            State::Assigned(allocation) => Some(allocation),
            _ => None,
        });
        let mut all: Vec<_> = assigned.chain(self.pinned.values()).cloned().collect();
        all.sort_by_key(|allocation| allocation.address);
        all
    }

    /// Every address that rests, those included that have left the node.
    pub(super) fn cooling(&self) -> Vec<(IpAddr, Instant)> {
        let here = self.states().filter_map(|(address, state)| match state {
            State::Cooling { until } => Some((address, *until)),
            _ => None,
        });
        here.chain(self.away.iter().map(|(address, until)| (*address, *until))).collect()
    }

    pub(super) fn quarantined(&self) -> Vec<(IpAddr, QuarantineReason)> {
        self.states()
            .filter_map(|(address, state)| match state {
                State::Quarantined(reason) => Some((address, *reason)),
                _ => None,
            })
            .collect()
    }

    /// The addresses for pods whose rest is over by `time`.
    pub(super) fn cooled_by(&self, time: Instant) -> u32 {
        to_u32(self.useful_cooling().filter(|until| *until <= time).count())
    }

    pub(super) fn next_cooled(&self) -> Option<Instant> {
        self.cooling().into_iter().map(|(_, until)| until).min()
    }

    /// When the next address for pods has rested.
    pub(super) fn next_useful_cooled(&self) -> Option<Instant> {
        self.useful_cooling().min()
    }

    fn useful_cooling(&self) -> impl Iterator<Item = Instant> {
        let serving = self.enis.values().filter(|eni| eni.serves_pods());
        serving.flat_map(|eni| eni.blocks.values()).flat_map(|block| block.states.values()).filter_map(
            |state| match state {
                State::Cooling { until } => Some(*until),
                _ => None,
            },
        )
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats {
            enis: to_u32(self.enis.len()),
            total: to_u32(self.pinned.len()),
            assigned: to_u32(self.pinned.len()),
            ..Stats::default()
        };
        for eni in self.enis.values().filter(|eni| eni.is_usable() || !eni.is_confirmed) {
            for (block, entry) in &eni.blocks {
                let counts = entry.counts(*block);
                stats.total = stats.total.saturating_add(counts.total);
                stats.assigned += counts.assigned;
                stats.cooling += counts.cooling;
                stats.quarantined += counts.quarantined;
                stats.prefixes += u32::from(block.kind() != BlockKind::Ip);
                if entry.is_leaving || !eni.serves_pods() {
                    continue;
                }
                match eni.phase {
                    EniPhase::Ready => stats.free = stats.free.saturating_add(counts.free()),
                    EniPhase::Attached | EniPhase::Leaving => {
                        stats.setting_up = stats.setting_up.saturating_add(counts.free());
                    }
                }
            }
        }
        stats
    }

    fn states(&self) -> impl Iterator<Item = (IpAddr, &State)> {
        let blocks = self.enis.values().flat_map(|eni| eni.blocks.values());
        blocks.flat_map(|block| block.states.iter().map(|(address, state)| (*address, state)))
    }
}

fn assignment(eni: &EniEntry, address: IpAddr, is_new: bool) -> Assignment {
    Assignment {
        address,
        eni: Some(eni.facts.id.clone()),
        slot: eni.facts.slot,
        table: eni.facts.route_table(),
        is_new,
    }
}

/// Since when a state has been free; only free ones are asked.
fn free_since(state: &State) -> Option<Instant> {
    match state {
        State::Free { since } => Some(*since),
        _ => None,
    }
}
