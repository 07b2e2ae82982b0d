//! One ENI in the address book: its blocks, and what each address of them is doing.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vpc::{Eni, EniKind, EniRole, Family};

use super::Allocation;
use super::block::{Block, BlockKind};

/// How long an ENI stays at least, so that a burst of pods does not turn into a burst of
/// attachments and detachments.
const MINIMUM_ENI_AGE: Duration = Duration::from_secs(60);

/// How far an ENI has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EniPhase {
    /// Attached, but its link, routes and rule are not known to be right yet.
    Attached,
    /// Set up on the host: its addresses can serve pods.
    Ready,
    /// On its way back to EC2.
    Leaving,
}

/// Why an address is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum QuarantineReason {
    /// The kernel routes it to a link, but no pod in the book has it.
    KernelOnly,
    /// Two records of the state file claim it or its pod.
    ContestedRecord,
    /// The runtime has forgotten its pod, but the pod's link still has a running peer.
    LinkAlive,
}

impl fmt::Display for QuarantineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelOnly => "the kernel routes it, but no known pod has it",
            Self::ContestedRecord => "the state file gives it to two pods, or two addresses to its pod",
            Self::LinkAlive => "the runtime forgot its pod, but the pod's link is alive",
        })
    }
}

/// What an address is doing. One that no pod ever had since it came has no state: it is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Free {
        /// When its last pod's cooldown ended.
        since: Instant,
    },
    Assigned(Allocation),
    Cooling {
        until: Instant,
    },
    Quarantined(QuarantineReason),
}

/// One block of an ENI.
#[derive(Debug, Default)]
pub(super) struct BlockEntry {
    /// On its way back to EC2.
    pub(super) is_leaving: bool,
    /// The addresses that a pod has or had since the block came.
    pub(super) states: BTreeMap<IpAddr, State>,
}

#[derive(Debug)]
pub(super) struct EniEntry {
    /// As EC2 has it; which blocks it holds is in `blocks` alone.
    pub(super) facts: Eni,
    pub(super) phase: EniPhase,
    pub(super) added_at: Instant,
    /// EC2 has shown it. One that only instance metadata names serves the pods that it has, and
    /// nothing of it is given out or back.
    pub(super) is_confirmed: bool,
    /// Its subnet's tags forbid that it serves pods.
    pub(super) is_excluded: bool,
    /// EC2 may still carry out what it did not confirm, until then: what is on its way back stays so.
    pub(super) unsure_until: Option<Instant>,
    pub(super) blocks: BTreeMap<Block, BlockEntry>,
}

/// How many addresses of a block or an ENI are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) total: u32,
    pub(super) assigned: u32,
    pub(super) cooling: u32,
    pub(super) quarantined: u32,
}

impl Counts {
    pub(super) fn occupied(self) -> u32 {
        self.assigned + self.cooling + self.quarantined
    }

    /// Where the total cannot be counted, the rest of it cannot either.
    pub(super) fn free(self) -> u32 {
        if self.total == u32::MAX { u32::MAX } else { self.total - self.occupied() }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            total: self.total.saturating_add(other.total),
            assigned: self.assigned + other.assigned,
            cooling: self.cooling + other.cooling,
            quarantined: self.quarantined + other.quarantined,
        }
    }
}

impl BlockEntry {
    pub(super) fn counts(&self, block: Block) -> Counts {
        let mut counts = Counts { total: block.size(), ..Counts::default() };
        for state in self.states.values() {
            match state {
                State::Free { .. } => {}
                State::Assigned(_) => counts.assigned += 1,
                State::Cooling { .. } => counts.cooling += 1,
                State::Quarantined(_) => counts.quarantined += 1,
            }
        }
        counts
    }

    /// Whether no pod has or just had any of it.
    pub(super) fn is_all_free(&self) -> bool {
        self.states.values().all(|state| matches!(state, State::Free { .. }))
    }

    /// The address for the next pod: one that no pod had yet, else the one free longest. Of an IPv6
    /// prefix the lowest one that is free.
    pub(super) fn next_free(&self, block: Block) -> Option<IpAddr> {
        if self.is_leaving {
            return None;
        }
        if let Block::Prefix(prefix) = block
            && block.kind() == BlockKind::Ipv6Prefix
        {
            // It goes past what is in use, never through the whole prefix.
            return (0..).map_while(|number| prefix.nth(number)).find(|address| self.is_free(*address));
        }
        let fresh = block.addresses().find(|address| !self.states.contains_key(address));
        fresh.or_else(|| {
            let freed = self.states.iter().filter_map(|(address, state)| match state {
                State::Free { since } => Some((*since, *address)),
                _ => None,
            });
            freed.min().map(|(_, address)| address)
        })
    }

    pub(super) fn is_free(&self, address: IpAddr) -> bool {
        matches!(self.states.get(&address), None | Some(State::Free { .. }))
    }
}

impl EniEntry {
    /// An ENI just seen, with everything that EC2 says it holds free.
    pub(super) fn new(facts: Eni, family: Family, now: Instant) -> Self {
        // The primary ENI is the host image's work, and serves pods as it is.
        let phase = if facts.role == EniRole::Primary { EniPhase::Ready } else { EniPhase::Attached };
        let blocks = blocks_of(&facts, family).map(|block| (block, BlockEntry::default())).collect();
        Self {
            facts,
            phase,
            added_at: now,
            is_confirmed: true,
            is_excluded: false,
            unsure_until: None,
            blocks,
        }
    }

    /// Whether pods may get addresses from it at all.
    pub(super) fn serves_pods(&self) -> bool {
        self.is_usable() && !self.is_excluded
    }

    /// The same, whatever its subnet's tags say.
    pub(super) fn is_usable(&self) -> bool {
        self.facts.is_managed
            && self.is_confirmed
            && self.facts.kind != EniKind::EfaOnly
            && self.phase != EniPhase::Leaving
    }

    /// The private address slots in use: every block takes one.
    pub(super) fn slots_used(&self) -> u32 {
        super::block::to_u32(self.blocks.len())
    }

    /// The block that `address` lies in.
    pub(super) fn block_of(&self, address: IpAddr) -> Option<Block> {
        Block::around(address).find(|block| self.blocks.contains_key(block))
    }

    pub(super) fn state(&self, address: IpAddr) -> Option<&State> {
        self.blocks.get(&self.block_of(address)?)?.states.get(&address)
    }

    pub(super) fn counts(&self) -> Counts {
        self.blocks.iter().map(|(block, entry)| entry.counts(*block)).fold(Counts::default(), Counts::plus)
    }

    pub(super) fn is_all_free(&self) -> bool {
        self.blocks.values().all(BlockEntry::is_all_free)
    }

    /// Whether the ENI could be given back once it is old enough.
    pub(super) fn is_removable(&self) -> bool {
        self.facts.role == EniRole::Secondary
            && self.facts.kind == EniKind::Interface
            && self.facts.is_managed
            && self.is_confirmed
            && self.phase == EniPhase::Ready
            && self.is_all_free()
            && self.blocks.values().all(|block| !block.is_leaving)
    }

    pub(super) fn removable_from(&self) -> Instant {
        self.added_at + MINIMUM_ENI_AGE
    }

    /// Takes in what EC2 says of it now, and returns the blocks that it no longer has.
    pub(super) fn update(&mut self, facts: Eni, now: Instant, family: Family) -> Vec<BlockEntry> {
        let mut before = std::mem::take(&mut self.blocks);
        self.blocks = blocks_of(&facts, family)
            .map(|block| (block, before.remove(&block).unwrap_or_default()))
            .collect();
        self.facts = facts;
        self.is_confirmed = true;
        self.stay(now);
        before.into_values().collect()
    }

    /// Takes out the blocks that share an address with one of `blocks`.
    pub(super) fn remove_overlapping(&mut self, blocks: &[Block]) -> Vec<BlockEntry> {
        let shared: Vec<_> = self
            .blocks
            .keys()
            .filter(|held| blocks.iter().any(|block| block.overlaps(**held)))
            .copied()
            .collect();
        shared.iter().filter_map(|block| self.blocks.remove(block)).collect()
    }

    /// Ends a departure that did not happen, unless it still may.
    pub(super) fn stay(&mut self, now: Instant) {
        if self.unsure_until.is_some_and(|until| now < until) {
            return;
        }
        self.unsure_until = None;
        if self.phase == EniPhase::Leaving {
            // Its rule or routes may have gone already.
            self.phase = EniPhase::Attached;
        }
        for block in self.blocks.values_mut() {
            block.is_leaving = false;
        }
    }
}

/// The blocks that EC2 shows on an ENI, as far as they are of the pods' family.
fn blocks_of(eni: &Eni, family: Family) -> impl Iterator<Item = Block> {
    let ips = eni.secondary_ips.iter().copied().map(Block::Ip);
    let prefixes = eni.prefixes.iter().copied().map(Block::Prefix);
    ips.chain(prefixes).filter(move |block| block.kind().family() == family)
}
