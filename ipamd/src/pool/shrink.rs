//! What to give back to EC2, once a surplus has lasted.

use std::cmp::Reverse;
use std::time::Instant;

use vpc::EniId;

use super::Pool;
use super::block::to_u32;
use super::block::{Block, BlockKind, Blocks};
use super::eni::{EniEntry, EniPhase};
use super::failures::Kind;
use super::step::Step;
use super::targets::Surplus;

impl Pool {
    /// Plans what to give back. Only a surplus that has lasted the shrink delay goes, so that
    /// the coming and going of pods does not become a coming and going of EC2 calls.
    pub(super) fn plan_shrinking(&mut self, now: Instant, steps: &mut Vec<Step>) {
        self.clear_excluded(now, steps);
        let held = self.holdings();
        let is_growing = steps.iter().chain(self.running.steps().values()).any(Step::is_growth);
        let surplus = if is_growing || held.waiting > 0 { Surplus::None } else { self.surplus(&held) };
        let leftovers = if is_growing { Vec::new() } else { self.leftovers(now) };
        if surplus == Surplus::None && leftovers.is_empty() {
            self.surplus_since = None;
            return;
        }
        let since = *self.surplus_since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.settings.shrink_delay {
            return;
        }
        match surplus {
            Surplus::None => {}
            Surplus::Enis { keep_free } => {
                let mut free = u32::try_from(held.spare()).unwrap_or(0);
                for (eni, addresses) in self.removable(now) {
                    if free.saturating_sub(addresses) < keep_free {
                        break;
                    }
                    free -= addresses;
                    self.begin_freeing(eni, steps);
                }
            }
            Surplus::Blocks(over) => self.return_blocks(over, now, steps),
        }
        for eni in leftovers {
            let is_empty = self.book.enis.get(&eni).is_some_and(|entry| entry.blocks.is_empty());
            if is_empty && self.is_old_enough(&eni, now) {
                self.begin_freeing(eni, steps);
            } else {
                let blocks = self.obsolete_blocks(&eni);
                self.begin_returning(&eni, blocks, steps);
            }
        }
    }

    /// What the targets do not need and the node could do without.
    pub(super) fn surplus(&self, held: &super::targets::Holdings) -> Surplus {
        let surplus = self.settings.surplus(held);
        let has_candidate = || self.book.enis.values().any(EniEntry::is_removable);
        match surplus {
            Surplus::Enis { .. } if !has_candidate() => Surplus::None,
            other => other,
        }
    }

    /// ENIs that hold nothing, or free blocks of a kind that is no longer asked for. Where whole
    /// ENIs are kept warm, an ENI that holds nothing is about to be filled.
    fn leftovers(&self, now: Instant) -> Vec<EniId> {
        let keeps_enis = self.settings.mode.kind() == BlockKind::Ip && !self.settings.targets.counts_ips();
        let is_leftover = |eni: &&EniEntry| {
            let is_empty = !keeps_enis && eni.is_removable() && eni.blocks.is_empty();
            (is_empty || !self.obsolete_blocks(&eni.facts.id).is_empty())
                && eni.phase == EniPhase::Ready
                && self.may_return(&eni.facts.id, now)
        };
        self.book.enis.values().filter(is_leftover).map(|eni| eni.facts.id.clone()).collect()
    }

    /// The free blocks of an ENI that are of a kind no longer asked for.
    pub(super) fn obsolete_blocks(&self, eni: &EniId) -> Vec<Block> {
        let Some(eni) = self.book.enis.get(eni).filter(|eni| eni.serves_pods()) else {
            return Vec::new();
        };
        free_blocks(eni).filter(|block| !self.is_counted(eni, *block)).collect()
    }

    /// Empties ENIs whose subnet may not serve pods, as far as pods let go of them. That is what
    /// the operator asked for, so it waits for nothing.
    fn clear_excluded(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let excluded: Vec<_> = self
            .book
            .enis
            .values()
            .filter(|eni| eni.is_excluded && eni.is_usable() && self.may_return(&eni.facts.id, now))
            .map(|eni| (eni.facts.id.clone(), eni.is_removable(), free_blocks(eni).collect::<Vec<_>>()))
            .collect();
        for (id, is_removable, blocks) in excluded {
            if is_removable {
                if self.is_old_enough(&id, now) {
                    self.begin_freeing(id, steps);
                }
            } else {
                self.begin_returning(&id, blocks, steps);
            }
        }
    }

    /// The ENIs that can go now, highest position first, with the addresses that go with each.
    fn removable(&self, now: Instant) -> Vec<(EniId, u32)> {
        let mut removable: Vec<_> = self
            .book
            .enis
            .values()
            .filter(|eni| eni.is_removable() && eni.serves_pods())
            .filter(|eni| eni.removable_from() <= now && self.may_return(&eni.facts.id, now))
            .collect();
        removable.sort_by_key(|eni| Reverse(eni.facts.slot));
        removable.into_iter().map(|eni| (eni.facts.id.clone(), self.counted(eni))).collect()
    }

    /// The addresses of an ENI that the targets count.
    fn counted(&self, eni: &EniEntry) -> u32 {
        eni.blocks.keys().filter(|block| self.is_counted(eni, **block)).map(|block| block.size()).sum()
    }

    fn return_blocks(&mut self, over: Blocks, now: Instant, steps: &mut Vec<Step>) {
        let kind = over.kind();
        let mut left = over.count();
        for (eni, addresses) in self.removable(now) {
            let is_pure = self
                .book
                .enis
                .get(&eni)
                .is_some_and(|entry| entry.blocks.keys().all(|block| block.kind() == kind));
            let blocks = addresses / kind.size();
            if is_pure && blocks <= left && blocks > 0 {
                left -= blocks;
                self.begin_freeing(eni, steps);
            }
        }
        // From the ENIs with the fewest pods, the highest position first: those empty soonest.
        let mut enis: Vec<_> = self
            .book
            .enis
            .values()
            .filter(|eni| eni.serves_pods() && eni.phase == EniPhase::Ready)
            .filter(|eni| self.may_return(&eni.facts.id, now))
            .map(|eni| (eni.counts().assigned, Reverse(eni.facts.slot), eni.facts.id.clone()))
            .collect();
        enis.sort();
        for (.., id) in enis {
            let Some(entry) = self.book.enis.get(&id) else { continue };
            let mut blocks: Vec<_> = free_blocks(entry).filter(|block| block.kind() == kind).collect();
            blocks.reverse();
            blocks.truncate(left as usize);
            left -= to_u32(blocks.len());
            self.begin_returning(&id, blocks, steps);
        }
    }

    /// From when some ENI without pods is old enough to be given back; `now` if one is already,
    /// or if there is none.
    pub(super) fn next_removable(&self, now: Instant) -> Instant {
        let removable = self.book.enis.values().filter(|eni| eni.is_removable());
        removable.map(EniEntry::removable_from).min().unwrap_or(now).max(now)
    }

    fn is_old_enough(&self, eni: &EniId, now: Instant) -> bool {
        self.book.enis.get(eni).is_some_and(|entry| entry.removable_from() <= now)
    }

    fn may_return(&self, eni: &EniId, now: Instant) -> bool {
        !self.running.touches(eni) && self.failures.may(&Kind::Return(eni.clone()), now)
    }

    fn begin_freeing(&mut self, eni: EniId, steps: &mut Vec<Step>) {
        if steps.iter().any(|step| step.eni() == Some(&eni)) {
            return;
        }
        if let Some(entry) = self.book.enis.get_mut(&eni) {
            entry.phase = EniPhase::Leaving;
            steps.push(Step::FreeEni { eni });
        }
    }

    /// Plans to return free blocks, unless something else is planned for the ENI.
    pub(super) fn begin_returning(&mut self, eni: &EniId, blocks: Vec<Block>, steps: &mut Vec<Step>) {
        if blocks.is_empty() || steps.iter().any(|step| step.eni() == Some(eni)) {
            return;
        }
        let Some(entry) = self.book.enis.get_mut(eni) else { return };
        // One step, one kind: the other kind goes with the next plan.
        let kind = blocks[0].kind();
        let blocks: Vec<_> = blocks.into_iter().filter(|block| block.kind() == kind).collect();
        for block in &blocks {
            if let Some(block) = entry.blocks.get_mut(block) {
                block.is_leaving = true;
            }
        }
        steps.push(Step::Unassign { eni: eni.clone(), blocks });
    }
}

/// The blocks of an ENI that no pod has or just had, in ascending order.
fn free_blocks(eni: &EniEntry) -> impl Iterator<Item = Block> {
    let free = eni.blocks.iter().filter(|(_, entry)| entry.is_all_free() && !entry.is_leaving);
    free.map(|(block, _)| *block)
}
