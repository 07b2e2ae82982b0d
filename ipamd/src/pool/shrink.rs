//! What to give back to EC2, once a surplus has lasted.

use std::time::Instant;

use vpc::{EniId, EniSlot};

use super::Pool;
use super::book::{EniPhase, State, to_u32};
use super::explain::Kind;
use super::step::Step;

/// What could go, and how much of it.
enum Surplus {
    None,
    /// Whole ENIs, as long as this many free addresses remain.
    Enis {
        keep_free: u32,
    },
    /// This many single addresses, whole ENIs first.
    Ips(u32),
}

impl Pool {
    /// Plans what to give back. Only a surplus that has lasted the shrink delay goes, so that
    /// the coming and going of pods does not become a coming and going of EC2 calls.
    pub(super) fn plan_shrinking(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let is_growing = steps.iter().chain(self.running.steps().values()).any(Step::brings_addresses);
        let surplus = if is_growing || self.stats().waiting > 0 { Surplus::None } else { self.surplus() };
        if matches!(surplus, Surplus::None) {
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
                let mut free = self.free_now();
                for (eni, held) in self.removable(now) {
                    if free.saturating_sub(held) < keep_free {
                        break;
                    }
                    free -= held;
                    self.begin_freeing(eni, steps);
                }
            }
            Surplus::Ips(over) => self.return_ips(over, now, steps),
        }
    }

    fn surplus(&self) -> Surplus {
        let targets = self.settings.targets;
        let free = self.free_now();
        let has_candidate = self.book.enis.values().any(|eni| eni.is_removable());
        if !targets.counts_ips() {
            // With a target of 0 one free address must remain, or the ENI would be back at once.
            let keep_free = targets.warm_eni.saturating_mul(self.settings.ips_per_eni).max(1);
            let is_over = free >= keep_free.saturating_add(self.settings.ips_per_eni);
            return if is_over && has_candidate { Surplus::Enis { keep_free } } else { Surplus::None };
        }
        let held = self.stats().total.saturating_sub(to_u32(self.book.pinned.len()));
        let over = free.saturating_sub(targets.warm_ip).min(held.saturating_sub(targets.minimum_ip));
        let has_empty_eni = self.book.enis.values().any(|eni| eni.is_removable() && eni.addresses.is_empty());
        if over > 0 || has_empty_eni { Surplus::Ips(over) } else { Surplus::None }
    }

    /// The ENIs that can go now, highest position first, with the addresses that go with each.
    fn removable(&self, now: Instant) -> Vec<(EniId, u32)> {
        let mut removable: Vec<(EniSlot, EniId, u32)> = self
            .book
            .enis
            .values()
            .filter(|eni| {
                eni.is_removable() && eni.removable_from() <= now && self.may_return(&eni.facts.id, now)
            })
            .map(|eni| (eni.facts.slot, eni.facts.id.clone(), to_u32(eni.addresses.len())))
            .collect();
        removable.sort_by_key(|(slot, ..)| std::cmp::Reverse(*slot));
        removable.into_iter().map(|(_, eni, held)| (eni, held)).collect()
    }

    fn return_ips(&mut self, over: u32, now: Instant, steps: &mut Vec<Step>) {
        let mut left = over;
        for (eni, held) in self.removable(now) {
            if held <= left {
                left -= held;
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
            .map(|eni| (eni.assigned(), std::cmp::Reverse(eni.facts.slot), eni.facts.id.clone()))
            .collect();
        enis.sort();
        for (.., id) in enis {
            let Some(entry) = self.book.enis.get_mut(&id) else {
                continue;
            };
            let free =
                entry.addresses.iter_mut().rev().filter(|(_, state)| matches!(state, State::Free { .. }));
            let mut addresses = Vec::new();
            for (address, state) in free.take(left as usize) {
                *state = State::Leaving;
                addresses.push(*address);
            }
            left -= to_u32(addresses.len());
            if !addresses.is_empty() {
                steps.push(Step::UnassignIps { eni: id, addresses });
            }
        }
    }

    fn may_return(&self, eni: &EniId, now: Instant) -> bool {
        !self.running.touches(eni) && self.failures.may(&Kind::Return(eni.clone()), now)
    }

    fn begin_freeing(&mut self, eni: EniId, steps: &mut Vec<Step>) {
        if let Some(entry) = self.book.enis.get_mut(&eni) {
            entry.phase = EniPhase::Leaving;
            steps.push(Step::FreeEni { eni });
        }
    }
}
