//! What to ask of EC2 and the host next, and what to make of the answers.

use std::collections::BTreeSet;
use std::time::Instant;

use vpc::{Eni, EniId, EniRole, EniSlot};

use super::Pool;
use super::book::{Book, EniEntry, EniPhase, QuarantineReason, State, to_u32};
use super::explain::Kind;
use super::step::{FailureClass, Outcome, Step, StepFailure, StepId};

/// The positions on a network card that EC2 accepts.
const DEVICE_INDEXES: u16 = 100;

/// What the planner counts: the addresses there are or will be, and what is spoken for.
struct View {
    /// Addresses held or coming.
    total: u32,
    /// Assigned, cooling, quarantined, or wanted by a waiting pod.
    spoken_for: u32,
    enis: Vec<Growable>,
}

/// An ENI that may take more addresses.
struct Growable {
    id: EniId,
    slot: EniSlot,
    slots_used: u32,
}

impl Pool {
    /// What to do now, most urgent first. Every step in the answer counts as begun under its id
    /// until [`Pool::finish`] hears of its end, so that the next plan builds on it.
    pub(crate) fn plan(&mut self, now: Instant) -> Vec<(StepId, Step)> {
        self.book.expire_cooling(now);
        let mut steps = Vec::new();
        self.plan_set_ups(now, &mut steps);
        let is_reading = self.is_reading_inventory();
        if self.needs_inventory || is_reading {
            // An answer is missing: what is asked next would be asked of a wrong picture.
            if !is_reading && self.failures.may(&Kind::ReadInventory, now) {
                // What becomes unclear while EC2 is being read needs another look.
                self.needs_inventory = false;
                steps.push(Step::ReadInventory);
            }
        } else if self.settings.may_provision {
            self.plan_growth(now, &mut steps);
            self.plan_shrinking(now, &mut steps);
        }
        steps.into_iter().map(|step| (self.running.begin(step.clone()), step)).collect()
    }

    fn plan_set_ups(&self, now: Instant, steps: &mut Vec<Step>) {
        let mut attached: Vec<_> = self
            .book
            .enis
            .values()
            .filter(|eni| eni.phase == EniPhase::Attached && eni.facts.is_managed)
            .map(|eni| (eni.facts.slot, eni.facts.id.clone()))
            .collect();
        attached.sort();
        for (_, eni) in attached {
            if !self.running.touches(&eni) && self.failures.may(&Kind::SetUpEni(eni.clone()), now) {
                steps.push(Step::SetUpEni { eni });
            }
        }
    }

    fn plan_growth(&self, now: Instant, steps: &mut Vec<Step>) {
        let mut view = self.view();
        let mut slots = self.taken_slots();
        let mut eni_room = self.eni_room();
        view.enis.retain(|eni| {
            !self.running.touches(&eni.id) && self.failures.may(&Kind::AssignIps(eni.id.clone()), now)
        });
        view.enis.sort_by_key(|eni| std::cmp::Reverse(eni.slot));
        loop {
            let wanted = self.wanted(&view);
            if wanted == 0 {
                return;
            }
            let count = if let Some(eni) = view.enis.pop() {
                let room = self.settings.ips_per_eni.saturating_sub(eni.slots_used);
                let most = self.failures.ask_at_most(&Kind::AssignIps(eni.id.clone()));
                let count = wanted.min(room).min(most);
                if count > 0 {
                    steps.push(Step::AssignIps { eni: eni.id, count });
                }
                count
            } else if eni_room > 0
                && self.failures.may(&Kind::AllocateEni, now)
                && let Some(slot) = free_slot(&slots)
            {
                eni_room -= 1;
                slots.insert(slot);
                let ips =
                    wanted.min(self.settings.ips_per_eni).min(self.failures.ask_at_most(&Kind::AllocateEni));
                steps.push(Step::AllocateEni { slot, ips });
                ips
            } else {
                return;
            };
            view.total += count;
        }
    }

    /// How many more addresses to ask for now; 0 when the target is reached.
    ///
    /// Free is what neither a pod has nor a cooldown or quarantine holds back. The waiting pods
    /// come first and know no cap but the instance's; the warm targets stop at the pods that
    /// the kubelet may start.
    fn wanted(&self, view: &View) -> u32 {
        let targets = self.settings.targets;
        let free = i64::from(view.total) - i64::from(view.spoken_for);
        let overdue = u32::try_from(-free).unwrap_or(0);
        let is_capped = view.total >= self.settings.max_pods;
        if targets.counts_ips() {
            if is_capped {
                return overdue;
            }
            let for_warmth = u32::try_from(i64::from(targets.warm_ip) - free).unwrap_or(0);
            let for_minimum = targets.minimum_ip.saturating_sub(view.total);
            return overdue.max(for_warmth).max(for_minimum);
        }
        let warm = i64::from(targets.warm_eni) * i64::from(self.settings.ips_per_eni);
        let is_low = free < warm || (targets.warm_eni == 0 && free == 0);
        if overdue > 0 || (is_low && !is_capped) { self.settings.ips_per_eni.max(1) } else { 0 }
    }

    fn view(&self) -> View {
        let stats = self.stats();
        let coming = self.running.ips_coming();
        let leaving = stats.total
            - (stats.assigned + stats.cooling + stats.quarantined + stats.free + stats.setting_up);
        // A pinned address is its pod's, but stands on no ENI that we know.
        let pinned = to_u32(self.book.pinned.len());
        View {
            total: (stats.total - leaving - pinned).saturating_add(coming),
            spoken_for: (stats.assigned - pinned) + stats.cooling + stats.quarantined + stats.waiting,
            enis: self.book.enis.values().filter(|eni| eni.is_growable()).map(growable).collect(),
        }
    }

    /// Free addresses beyond what is spoken for, counting only what is there; for shrinking.
    pub(super) fn free_now(&self) -> u32 {
        let stats = self.stats();
        (stats.free + stats.setting_up).saturating_sub(stats.waiting)
    }

    /// How many more ENIs may be attached, beyond the steps under way.
    pub(super) fn eni_room(&self) -> u32 {
        let coming =
            self.running.steps().values().filter(|step| matches!(step, Step::AllocateEni { .. })).count();
        self.settings.eni_limit.saturating_sub(to_u32(self.book.enis.len() + coming))
    }

    pub(super) fn is_reading_inventory(&self) -> bool {
        self.running.steps().values().any(|step| *step == Step::ReadInventory)
    }

    fn is_allocating(&self, place: EniSlot) -> bool {
        self.running
            .steps()
            .values()
            .any(|step| matches!(step, Step::AllocateEni { slot, .. } if *slot == place))
    }

    /// Positions on the default card that an ENI has or is about to get.
    fn taken_slots(&self) -> BTreeSet<EniSlot> {
        let coming = self.running.steps().values().filter_map(|step| match step {
            Step::AllocateEni { slot, .. } => Some(*slot),
            _ => None,
        });
        self.book.enis.values().map(|eni| eni.facts.slot).chain(coming).collect()
    }

    /// Takes in how a step ended. A step that the pool does not know is ignored.
    pub(crate) fn finish(&mut self, id: StepId, outcome: Outcome, now: Instant) {
        let Some(step) = self.running.end(id) else {
            return;
        };
        if let Outcome::Failed(failure) = outcome {
            self.step_failed(&step, failure, now);
            return;
        }
        self.failures.clear(&Kind::of(&step));
        match (step, outcome) {
            (Step::AllocateEni { .. }, Outcome::EniAllocated(eni)) => self.book.add_eni(eni, now),
            (Step::AssignIps { eni, count }, Outcome::IpsAssigned(addresses)) => {
                // Fewer than asked for means that the ENI held more than the book knew.
                self.needs_inventory |= to_u32(addresses.len()) < count;
                if let Some(entry) = self.book.enis.get_mut(&eni) {
                    for address in addresses {
                        entry.addresses.entry(address).or_insert(State::Free { since: None });
                    }
                }
            }
            (Step::SetUpEni { eni }, Outcome::EniSetUp) => {
                if let Some(entry) = self.book.enis.get_mut(&eni)
                    && entry.phase == EniPhase::Attached
                {
                    entry.phase = EniPhase::Ready;
                }
            }
            (Step::UnassignIps { eni, addresses }, Outcome::IpsUnassigned) => {
                if let Some(entry) = self.book.enis.get_mut(&eni) {
                    entry.addresses.retain(|address, _| !addresses.contains(address));
                }
            }
            (Step::FreeEni { eni }, Outcome::EniFreed) => {
                self.book.remove_eni(&eni);
                self.failures.forget_eni(&eni);
            }
            (Step::UnassignIps { eni, .. } | Step::FreeEni { eni }, Outcome::InUse(in_use)) => {
                if let Some(entry) = self.book.enis.get_mut(&eni) {
                    entry.stay(now);
                    for address in in_use {
                        entry.addresses.insert(address, State::Quarantined(QuarantineReason::KernelOnly));
                    }
                }
            }
            (_, Outcome::Inventory(enis)) => self.observe(enis, now),
            // An outcome that does not belong to its step tells nothing; EC2 will.
            _ => self.needs_inventory = true,
        }
    }

    fn step_failed(&mut self, step: &Step, failure: StepFailure, now: Instant) {
        let is_unclear = matches!(
            failure.class,
            FailureClass::AnswerLost | FailureClass::LimitReached | FailureClass::NotFound
        );
        match step {
            // It failed before EC2 was asked for anything, or EC2 said no: they are still ours.
            Step::UnassignIps { eni, .. } if !is_unclear => {
                if let Some(entry) = self.book.enis.get_mut(eni) {
                    entry.stay(now);
                }
            }
            // Freeing takes several calls; only EC2 knows how far it came.
            Step::FreeEni { .. } | Step::ReadInventory => self.needs_inventory = true,
            _ => {}
        }
        self.needs_inventory |= is_unclear;
        self.failures.note(step, failure, now);
    }

    /// Takes in everything that EC2 says is attached to this instance.
    ///
    /// EC2 decides what the ENIs hold, except where a step under way is just changing it. An
    /// address in a pod's hands stays with its pod whatever EC2 says.
    pub(crate) fn observe(&mut self, enis: Vec<Eni>, now: Instant) {
        let seen: BTreeSet<_> = enis.iter().map(|eni| eni.id.clone()).collect();
        for eni in enis {
            if self.running.changes(&eni.id) {
                // The step's own outcome is newer than this view of EC2.
                continue;
            }
            // An ENI that is just being attached comes with its step's outcome.
            let comes_with_step = self.is_allocating(eni.slot);
            match self.book.enis.get_mut(&eni.id) {
                Some(entry) => entry.update(eni, now),
                None if comes_with_step => {}
                None => self.book.add_eni(eni, now),
            }
        }
        let gone: Vec<_> = self
            .book
            .enis
            .keys()
            .filter(|id| !seen.contains(*id) && !self.running.changes(id))
            .cloned()
            .collect();
        for id in gone {
            self.book.remove_eni(&id);
            self.failures.forget_eni(&id);
        }
    }
}

impl Book {
    pub(super) fn add_eni(&mut self, eni: Eni, now: Instant) {
        // The primary ENI is the host image's work, and serves pods as it is.
        let phase = if eni.role == EniRole::Primary { EniPhase::Ready } else { EniPhase::Attached };
        let addresses = eni.secondary_ips.iter().map(|ip| (*ip, State::Free { since: None })).collect();
        let mut entry = EniEntry { facts: eni, phase, added_at: now, addresses };
        let found: Vec<_> = self
            .pinned
            .keys()
            .copied()
            .filter(|address| entry.addresses.contains_key(address) || entry.is_from_prefix(*address))
            .collect();
        for address in found {
            if let Some(allocation) = self.pinned.remove(&address) {
                entry.addresses.insert(address, State::Assigned(allocation));
            }
        }
        self.enis.insert(entry.facts.id.clone(), entry);
    }

    /// Removes an ENI that is gone; what pods have of it stays pinned to them.
    pub(super) fn remove_eni(&mut self, id: &EniId) {
        let Some(entry) = self.enis.remove(id) else {
            return;
        };
        for (address, state) in entry.addresses {
            if let State::Assigned(allocation) = state {
                self.pinned.insert(address, allocation);
            }
        }
    }
}

impl EniEntry {
    fn update(&mut self, eni: Eni, now: Instant) {
        self.addresses.retain(|address, state| {
            matches!(state, State::Assigned(_)) || eni.secondary_ips.contains(address)
        });
        for address in &eni.secondary_ips {
            self.addresses.entry(*address).or_insert(State::Free { since: None });
        }
        self.facts = eni;
        self.stay(now);
    }

    /// Ends a departure that did not happen.
    fn stay(&mut self, now: Instant) {
        if self.phase == EniPhase::Leaving {
            // Its rule or routes may have gone already.
            self.phase = EniPhase::Attached;
        }
        for state in self.addresses.values_mut() {
            if *state == State::Leaving {
                *state = State::Free { since: Some(now) };
            }
        }
    }
}

fn growable(eni: &EniEntry) -> Growable {
    Growable { id: eni.facts.id.clone(), slot: eni.facts.slot, slots_used: eni.slots_used() }
}

/// The lowest position on the default card that is not taken.
fn free_slot(taken: &BTreeSet<EniSlot>) -> Option<EniSlot> {
    (1..DEVICE_INDEXES).map(|device| EniSlot::new(0, device)).find(|slot| !taken.contains(slot))
}
