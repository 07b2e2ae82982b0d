//! What to ask of EC2 and the host next, and what to make of the answers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vpc::{Eni, EniId};

use super::Pool;
use super::block::to_u32;
use super::block::{Block, BlockKind};
use super::eni::EniPhase;
use super::failures::{Kind, Waits};
use super::settings::BlockMode;
use super::step::{FailureClass, Outcome, Step, StepFailure, StepId};
use super::subnets::Subnet;
use crate::stagger;

/// How long EC2 may take to carry out what it was asked for and did not confirm.
const UNCONFIRMED: Duration = Duration::from_secs(60);

impl Pool {
    /// What to do now, most urgent first. Every step in the answer counts as begun under its id
    /// until [`Pool::finish`] hears of its end, so that the next plan builds on it.
    pub(crate) fn plan(&mut self, now: Instant) -> Vec<(StepId, Step)> {
        self.book.expire_cooling(now);
        let mut steps = Vec::new();
        self.plan_set_ups(now, &mut steps);
        let is_reading = self.running.has(&Step::ReadInventory);
        self.is_look_due |= self.book.enis.values().any(|eni| eni.unsure_until.is_some_and(|at| at <= now));
        let must_read = self.is_unclear || self.is_look_due;
        if must_read && !is_reading && self.failures.may(&Kind::ReadInventory, now) {
            // What becomes unclear while EC2 is being read needs another look.
            self.is_look_due = false;
            self.is_reading_unclear = std::mem::take(&mut self.is_unclear);
            steps.push(Step::ReadInventory);
        }
        if self.wants_subnets && self.may_read_subnets(now) {
            steps.push(Step::ReadSubnets);
        }
        // While an answer is missing, what is asked next would be asked of a wrong picture.
        let is_clear = !self.is_unclear && !self.is_reading_unclear;
        if is_clear && self.settings.may_provision {
            self.plan_growth(now, &mut steps);
            if self.settings.mode != BlockMode::Ipv6Prefix {
                self.plan_shrinking(now, &mut steps);
            }
        }
        steps.into_iter().map(|step| (self.running.begin(step.clone()), step)).collect()
    }

    fn plan_set_ups(&self, now: Instant, steps: &mut Vec<Step>) {
        let mut attached: Vec<_> = self
            .book
            .enis
            .values()
            .filter(|eni| eni.phase == EniPhase::Attached && eni.is_usable())
            .map(|eni| (eni.facts.slot, eni.facts.id.clone()))
            .collect();
        attached.sort();
        for (_, eni) in attached {
            if !self.running.touches(&eni) && self.failures.may(&Kind::SetUpEni(eni.clone()), now) {
                steps.push(Step::SetUpEni { eni });
            }
        }
    }

    pub(super) fn may_read_subnets(&self, now: Instant) -> bool {
        self.settings.reads_subnets
            && !self.running.has(&Step::ReadSubnets)
            && self.failures.may(&Kind::ReadSubnets, now)
    }

    /// Asks for a look at everything that EC2 holds for this node, tags of the subnets included.
    /// Pods and growth do not wait for it.
    pub(crate) fn look_again(&mut self) {
        self.is_look_due = true;
        self.wants_subnets = true;
    }

    /// Takes in how a step ended. A step that the pool does not know is ignored.
    pub(crate) fn finish(&mut self, id: StepId, outcome: Outcome, now: Instant) {
        let Some(step) = self.running.end(id) else {
            return;
        };
        if step == Step::ReadInventory && std::mem::take(&mut self.is_reading_unclear) {
            // Unless this look made it clear, the next one must.
            self.is_unclear |= !matches!(outcome, Outcome::Inventory(_));
        }
        if step == Step::ReadSubnets {
            self.wants_subnets = false;
        }
        let subnet = self.subnet_of(&step);
        if let Outcome::Failed(failure) = outcome {
            self.step_failed(&step, failure, now);
            return;
        }
        if !matches!(outcome, Outcome::InUse(_)) {
            self.failures.clear(&step, subnet.as_ref());
        }
        match (step, outcome) {
            (Step::AllocateEni { .. }, Outcome::EniAllocated(eni)) => {
                self.running.made(&eni.id);
                self.add_eni(eni, now);
            }
            (Step::Assign { eni, blocks }, Outcome::Assigned(assigned)) => {
                // Fewer than asked for means that the ENI held more than the book knew.
                self.is_unclear |= to_u32(assigned.len()) < blocks.count();
                self.assigned(&eni, assigned);
            }
            (Step::SetUpEni { eni }, Outcome::EniSetUp) => {
                if let Some(entry) = self.book.enis.get_mut(&eni)
                    && entry.phase == EniPhase::Attached
                {
                    entry.phase = EniPhase::Ready;
                }
            }
            (Step::Unassign { eni, blocks }, Outcome::Unassigned) => {
                if let Some(entry) = self.book.enis.get_mut(&eni) {
                    entry.blocks.retain(|block, _| !blocks.contains(block));
                }
            }
            (Step::FreeEni { eni }, Outcome::EniFreed) => {
                self.book.remove_eni(&eni);
                self.failures.forget_eni(&eni);
            }
            (Step::Unassign { eni, .. } | Step::FreeEni { eni }, Outcome::InUse(in_use)) => {
                self.book.kernel_uses.extend(in_use.iter().copied());
                if let Some(entry) = self.book.enis.get_mut(&eni) {
                    entry.stay(now);
                }
                for address in in_use {
                    self.book.hold_back(address, super::QuarantineReason::KernelOnly);
                }
            }
            (Step::ReadInventory, Outcome::Inventory(enis)) => self.observe(enis, now),
            (Step::ReadSubnets, Outcome::Subnets(subnets)) => self.subnets_seen(subnets, now),
            // An outcome that does not belong to its step tells nothing; EC2 will.
            _ => self.is_unclear = true,
        }
    }

    fn assigned(&mut self, eni: &EniId, assigned: Vec<Block>) {
        let Some(entry) = self.book.enis.get_mut(eni) else {
            // It left meanwhile, or EC2 says so; the next look shows.
            self.is_unclear = true;
            return;
        };
        for block in &assigned {
            entry.blocks.entry(*block).or_default();
        }
        self.book.received(eni, assigned);
    }

    fn step_failed(&mut self, step: &Step, failure: StepFailure, now: Instant) {
        let is_unclear = matches!(
            failure.class,
            FailureClass::AnswerLost
                | FailureClass::LimitReached
                | FailureClass::EniLimit
                | FailureClass::NotFound
        );
        if failure.class == FailureClass::AnswerLost
            && let Step::Unassign { eni, .. } | Step::FreeEni { eni } = step
            && let Some(entry) = self.book.enis.get_mut(eni)
        {
            // A look right afterwards may be too early to show it.
            entry.unsure_until = Some(now + UNCONFIRMED);
        }
        match step {
            // It failed before EC2 was asked for anything, or EC2 said no: they are still ours.
            Step::Unassign { eni, .. } if !is_unclear => self.stays(eni, now),
            Step::FreeEni { eni } if failure.class == FailureClass::NotDurable => self.stays(eni, now),
            // Freeing takes several calls; only EC2 knows how far it came.
            Step::FreeEni { .. } => self.is_unclear = true,
            Step::ReadInventory => self.is_look_due = true,
            Step::ReadSubnets => self.subnets.refused(now),
            _ => {}
        }
        self.is_unclear |= is_unclear && *step != Step::ReadSubnets;
        let subnet = self.subnet_of(step);
        let is_out_of_prefixes =
            matches!(failure.class, FailureClass::NoFreePrefix | FailureClass::SubnetExhausted)
                && step.asks_for().is_some_and(|blocks| blocks.kind() == BlockKind::Prefix);
        if let Some(subnet) = subnet.as_ref().filter(|_| is_out_of_prefixes) {
            self.subnets.lacks_prefixes(subnet, now);
        }
        let waits = if self.waiters.is_empty() { self.nobody_waits() } else { Waits::Pod };
        self.failures.note(step, subnet.as_ref(), failure, waits, now);
    }

    /// What was to go back stays.
    fn stays(&mut self, eni: &EniId, now: Instant) {
        if let Some(entry) = self.book.enis.get_mut(eni) {
            entry.stay(now);
        }
    }

    /// No two nodes have the same primary ENI.
    fn nobody_waits(&self) -> Waits {
        let primary = self.book.primary_eni().map_or("", |eni| eni.as_str());
        Waits::Nobody { spread: stagger::hash(&[primary]) }
    }

    /// The subnet in which the step asks for blocks.
    fn subnet_of(&self, step: &Step) -> Option<vpc::SubnetId> {
        match step {
            Step::AllocateEni { subnet, .. } => Some(subnet.clone()),
            Step::Assign { eni, .. } => self.book.enis.get(eni).map(|entry| entry.facts.subnet.clone()),
            _ => None,
        }
    }

    /// Takes in what EC2 says of the subnets and their tags.
    pub(crate) fn subnets_seen(&mut self, subnets: Vec<Subnet>, now: Instant) {
        self.subnets.read(subnets, now);
        for subnet in self.subnets.recovered() {
            self.failures.forget(&Kind::Subnet(subnet, BlockKind::Prefix));
        }
        // What is out of addresses need not be asked to know it.
        for subnet in self.subnets.known() {
            self.failures.postpone(&subnet.id, BlockKind::Prefix, now);
            match subnet.free_addresses {
                0 => self.failures.postpone(&subnet.id, BlockKind::Ip, now),
                _ => self.failures.hasten(&subnet.id, BlockKind::Ip, now),
            }
        }
        for eni in self.book.enis.values_mut() {
            eni.is_excluded = self.subnets.excludes(&eni.facts.subnet);
        }
    }

    /// Takes in everything that EC2 says is attached to this instance.
    ///
    /// EC2 decides what the ENIs hold, except where a step under way is just changing it or has
    /// done so since EC2 was asked. An address in a pod's hands stays with its pod whatever EC2
    /// says.
    pub(crate) fn observe(&mut self, enis: Vec<Eni>, now: Instant) {
        let seen: BTreeSet<_> = enis.iter().map(|eni| eni.id.clone()).collect();
        let mut is_changed = false;
        for eni in enis {
            if self.running.outdates(&eni.id) {
                // The step's own outcome is newer than this view of EC2.
                continue;
            }
            // An ENI that is just being attached comes with its step's outcome.
            let comes_with_step = self.is_allocating(eni.slot);
            if self.book.enis.contains_key(&eni.id) {
                self.book.update_eni(eni, now);
            } else if !comes_with_step {
                self.add_eni(eni, now);
                is_changed = true;
            }
        }
        let gone: Vec<_> = self
            .book
            .enis
            .keys()
            .filter(|id| !seen.contains(*id) && !self.running.outdates(id))
            .cloned()
            .collect();
        is_changed |= !gone.is_empty();
        for id in gone {
            self.book.remove_eni(&id);
            self.failures.forget_eni(&id);
        }
        if is_changed {
            // What was in the way may have gone with it.
            self.failures.end_long_pauses();
        }
    }

    /// Takes in ENIs that only instance metadata names, while EC2 cannot be read: their pods keep
    /// what they have, and nothing else of them is given out. To be called before
    /// [`Pool::restore`], in place of the first [`Pool::observe`].
    pub(crate) fn observe_hints(&mut self, enis: Vec<Eni>, now: Instant) {
        for eni in enis {
            let id = eni.id.clone();
            self.add_eni(eni, now);
            if let Some(entry) = self.book.enis.get_mut(&id) {
                entry.is_confirmed = false;
            }
        }
        self.is_unclear = true;
    }

    fn add_eni(&mut self, eni: Eni, now: Instant) {
        let is_excluded = self.subnets.excludes(&eni.subnet);
        self.book.add_eni(eni, is_excluded, now);
    }
}
