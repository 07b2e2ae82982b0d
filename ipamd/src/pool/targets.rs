//! The arithmetic of the targets: how many addresses are missing, and how many are too many.
//!
//! The rules are those of amazon-vpc-cni-k8s, with its two faults mended: an address that rests
//! is not available, and the target is never below what pods have and wait for.

use super::block::{BlockKind, Blocks};
use super::settings::{BlockMode, Settings};

/// What a node holds, in the blocks that its mode counts: prefixes in prefix mode, else single
/// IPs; in prefix mode single IPs too where a subnet has no free prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Holdings {
    /// Addresses held or coming.
    pub(super) total: u32,
    /// Assigned, cooling or quarantined.
    pub(super) occupied: u32,
    /// Pods that wait.
    pub(super) waiting: u32,
    /// Prefixes held or coming.
    pub(super) prefixes: u32,
    /// Prefixes of which no address is occupied.
    pub(super) free_prefixes: u32,
    /// Single IPs that are free.
    pub(super) free_ips: u32,
    /// Single IPs held.
    pub(super) ips: u32,
}

/// What is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surplus {
    None,
    /// Whole ENIs, as long as this many free addresses remain.
    Enis {
        keep_free: u32,
    },
    /// This many free blocks of this kind, whole ENIs first.
    Blocks(Blocks),
}

impl Holdings {
    /// Addresses that nobody has and nobody waits for; negative if pods wait for more.
    pub(super) fn spare(&self) -> i64 {
        i64::from(self.total) - i64::from(self.occupied) - i64::from(self.waiting)
    }

    /// The same with free blocks more.
    pub(super) fn with(mut self, blocks: Blocks) -> Self {
        self.total = self.total.saturating_add(blocks.addresses());
        match blocks {
            Blocks::Ips(count) => {
                self.ips = self.ips.saturating_add(count);
                self.free_ips = self.free_ips.saturating_add(count);
            }
            Blocks::Prefixes(count) | Blocks::Ipv6Prefixes(count) => {
                self.prefixes = self.prefixes.saturating_add(count);
                self.free_prefixes = self.free_prefixes.saturating_add(count);
            }
        }
        self
    }

    fn without(mut self, blocks: Blocks) -> Self {
        self.total = self.total.saturating_sub(blocks.addresses());
        match blocks {
            Blocks::Ips(count) => {
                self.ips = self.ips.saturating_sub(count);
                self.free_ips = self.free_ips.saturating_sub(count);
            }
            Blocks::Prefixes(count) | Blocks::Ipv6Prefixes(count) => {
                self.prefixes = self.prefixes.saturating_sub(count);
                self.free_prefixes = self.free_prefixes.saturating_sub(count);
            }
        }
        self
    }
}

impl Settings {
    /// How many more addresses to ask for, if they are asked for in blocks of `kind`; 0 when the
    /// target is reached. Where whole ENIs or prefixes are kept warm it is the next one's worth;
    /// with that, more may be missing.
    ///
    /// The waiting pods come first and know no cap but the instance's; the warm targets stop at
    /// the pods that the kubelet may start, and on a node that `is_dormant`, which keeps nothing
    /// warm.
    pub(super) fn shortage(&self, held: &Holdings, kind: BlockKind, is_dormant: bool) -> u32 {
        if self.mode == BlockMode::Ipv6Prefix {
            // One serves every pod that will ever come, whatever the warm targets say.
            return u32::from(held.prefixes == 0);
        }
        let targets = self.targets;
        let spare = held.spare();
        let overdue = non_negative(-spare);
        if is_dormant || held.total >= self.max_pods {
            return overdue;
        }
        if targets.counts_ips() {
            let for_warmth = non_negative(i64::from(targets.warm_ip) - spare);
            let for_minimum = targets.minimum_ip.saturating_sub(held.total);
            return overdue.max(for_warmth).max(for_minimum);
        }
        let warm = self.warm_addresses();
        let is_low = spare < i64::from(warm) || (warm == 0 && spare <= 0);
        if !is_low {
            return overdue;
        }
        match (self.mode, kind) {
            (BlockMode::SecondaryIps | BlockMode::Ipv6Prefix, _) => self.slots_per_eni.max(1),
            (BlockMode::Prefixes, BlockKind::Prefix) => {
                let prefixes = targets.warm_prefix.saturating_sub(held.free_prefixes).max(1);
                overdue.max(prefixes.saturating_mul(BlockKind::Prefix.size()))
            }
            (BlockMode::Prefixes, _) => non_negative(i64::from(warm.max(1)) - spare),
        }
    }

    /// How many blocks of `kind` reach the target in one go.
    pub(super) fn needed(&self, held: &Holdings, kind: BlockKind, is_dormant: bool) -> u32 {
        // A node that wants more than this wants everything it can get.
        const MOST: u32 = 4096;
        let mut held = *held;
        let mut needed = 0_u32;
        while needed < MOST {
            let missing = self.shortage(&held, kind, is_dormant).div_ceil(kind.size());
            if missing == 0 {
                break;
            }
            needed = needed.saturating_add(missing);
            held = held.with(kind.times(missing));
        }
        needed
    }

    /// What could be given back so that the target is still reached afterwards.
    pub(super) fn surplus(&self, held: &Holdings) -> Surplus {
        if self.mode == BlockMode::Ipv6Prefix {
            return Surplus::None;
        }
        let targets = self.targets;
        let spare = non_negative(held.spare());
        if self.mode == BlockMode::SecondaryIps && !targets.counts_ips() {
            // With a target of 0 one free address must remain, or the ENI would be back at once.
            let keep_free = self.warm_addresses().max(1);
            let is_over = spare >= keep_free.saturating_add(self.slots_per_eni);
            return if is_over { Surplus::Enis { keep_free } } else { Surplus::None };
        }
        let keep = if targets.counts_ips() { targets.warm_ip } else { self.warm_addresses().max(1) };
        let over_minimum = held.total.saturating_sub(targets.minimum_ip);
        let ips = held.free_ips.min(spare.saturating_sub(keep)).min(over_minimum);
        if self.mode == BlockMode::SecondaryIps || ips > 0 {
            return self.bearable(held, Blocks::Ips(ips));
        }
        let size = BlockKind::Prefix.size();
        let over = if targets.counts_ips() {
            // Single IPs hold some of the occupied addresses; prefixes need not hold those.
            let occupied = held.occupied.saturating_sub(held.ips - held.free_ips);
            let for_warmth = occupied.saturating_add(targets.warm_ip).div_ceil(size);
            let for_minimum = targets.minimum_ip.div_ceil(size);
            held.free_prefixes.min(held.prefixes.saturating_sub(for_warmth.max(for_minimum)))
        } else {
            held.free_prefixes.saturating_sub(targets.warm_prefix)
        };
        self.bearable(held, Blocks::Prefixes(over))
    }

    /// As much of `over` as can go without being missed at once.
    fn bearable(&self, held: &Holdings, over: Blocks) -> Surplus {
        let kind = over.kind();
        let is_bearable = |count: &u32| {
            let left = held.without(kind.times(*count));
            self.shortage(&left, kind, false) == 0
        };
        match (1..=over.count()).rev().find(is_bearable) {
            Some(count) => Surplus::Blocks(kind.times(count)),
            None => Surplus::None,
        }
    }

    /// The free addresses that WARM_ENI_TARGET or WARM_PREFIX_TARGET asks for.
    fn warm_addresses(&self) -> u32 {
        match self.mode {
            BlockMode::SecondaryIps => self.targets.warm_eni.saturating_mul(self.slots_per_eni),
            BlockMode::Prefixes => self.targets.warm_prefix.saturating_mul(BlockKind::Prefix.size()),
            BlockMode::Ipv6Prefix => 0,
        }
    }
}

fn non_negative(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}
