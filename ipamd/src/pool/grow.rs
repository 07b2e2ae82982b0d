//! Where missing addresses come from: ENIs that have room, then new ENIs; prefixes before single
//! IPs.

use std::collections::BTreeSet;
use std::time::Instant;

use vpc::{EniId, EniKind, EniRole, EniSlot, SubnetId};

use super::Pool;
use super::block::{Block, BlockKind, Blocks, to_u32};
use super::eni::{EniEntry, EniPhase};
use super::failures::Kind;
use super::settings::BlockMode;
use super::step::{FailureClass, Step};
use super::targets::Holdings;

/// The positions on a network card that EC2 accepts.
const DEVICE_INDEXES: u16 = 100;

/// After so many failures in a row an ENI that the host cannot set up counts for nothing.
const HOPELESS: u32 = 3;

/// What is left to hand out in one plan.
struct Growth {
    held: Holdings,
    is_dormant: bool,
    /// Positions that an ENI has or is about to get.
    slots: BTreeSet<EniSlot>,
    eni_room: u32,
}

impl Pool {
    pub(super) fn plan_growth(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let is_dormant = self.is_dormant();
        let coming = self.running.coming().fold(self.holdings(), Holdings::with);
        let mut growth =
            Growth { held: coming, is_dormant, slots: self.taken_slots(), eni_room: self.eni_room() };
        let kinds: &[BlockKind] = match self.settings.mode {
            BlockMode::SecondaryIps => &[BlockKind::Ip],
            BlockMode::Prefixes => &[BlockKind::Prefix, BlockKind::Ip],
            BlockMode::Ipv6Prefix => &[BlockKind::Ipv6Prefix],
        };
        if self.needed(&growth, kinds[0]) == 0 {
            return;
        }
        if self.settings.mode == BlockMode::Ipv6Prefix && !self.knows_exclusions() {
            return;
        }
        let is_due = self.looks_at_subnets() && self.failures.has_subnet_due(now);
        if (is_due && !self.subnets.are_fresh(now)) || (growth.held.spare() < 0 && self.may_find_room(now)) {
            self.look_at_subnets(now, steps);
        }
        for kind in kinds {
            self.fill_enis(*kind, &mut growth, now, steps);
            if *kind == self.settings.mode.kind() {
                let soon = self.room_under_way(*kind, now, steps) + self.room_after_a_pause(*kind, now);
                growth.held = growth.held.with(kind.times(soon));
                self.make_room(*kind, &mut growth, now, steps);
            }
            if self.may_place_on_new_enis() {
                self.allocate_enis(*kind, &mut growth, now, steps);
            }
        }
    }

    /// The slots that will be empty on ENIs once what is under way on them has ended. To fill those
    /// then is sooner done, and with fewer calls, than to make one more ENI now.
    fn room_under_way(&self, kind: BlockKind, now: Instant, planned: &[Step]) -> u32 {
        let is_open = |subnet: &SubnetId| self.may_hold(subnet, kind) && self.may_ask(subnet, kind, now);
        let steps = self.running.steps().values().chain(planned);
        steps
            .filter_map(|step| self.slots_left_by(step))
            .filter(|(subnet, _)| is_open(subnet))
            .map(|(_, slots)| slots)
            .sum()
    }

    /// The slots that will be empty on the ENI of a step when the step has ended, with the ENI's
    /// subnet; none if the step leaves no ENI that may hold more.
    pub(super) fn slots_left_by<'a>(&'a self, step: &'a Step) -> Option<(&'a SubnetId, u32)> {
        if let Step::AllocateEni { subnet, blocks, .. } = step {
            return Some((subnet, self.settings.slots_per_eni.saturating_sub(blocks.count())));
        }
        let eni = self.book.enis.get(step.eni()?).filter(|eni| self.is_growable(eni))?;
        let free = self.slots_free(eni);
        let left = match step {
            Step::Assign { blocks, .. } => free.saturating_sub(blocks.count()),
            Step::Unassign { blocks, .. } => free.saturating_add(to_u32(blocks.len())),
            _ => free,
        };
        Some((&eni.facts.subnet, left))
    }

    /// The room on ENIs that EC2 was too busy to fill: asking for more ENIs instead would only
    /// keep it busier.
    fn room_after_a_pause(&self, kind: BlockKind, now: Instant) -> u32 {
        let pausing = self.book.enis.values().filter(|eni| {
            let EniEntry { facts, .. } = eni;
            let is_busy = self.failures.get(&Kind::Assign(facts.id.clone())).is_some_and(|last| {
                last.retry_at > now
                    && matches!(last.failure.class, FailureClass::Throttled | FailureClass::Unavailable)
            });
            is_busy && self.is_growable(eni) && self.may_hold(&facts.subnet, kind)
        });
        pausing.map(|eni| self.slots_free(eni)).sum()
    }

    /// Whether blocks of `kind` are to be asked for in a subnet at all: single IPs are a stopgap
    /// in prefix mode.
    fn may_hold(&self, subnet: &SubnetId, kind: BlockKind) -> bool {
        match (self.settings.mode, kind) {
            (BlockMode::Prefixes, BlockKind::Ip) => self.failures.is_out_of(subnet, BlockKind::Prefix),
            (mode, kind) => kind == mode.kind(),
        }
    }

    /// Whether nothing is kept warm for pods to come.
    pub(super) fn is_dormant(&self) -> bool {
        self.is_cordoned && !self.settings.grows_while_cordoned
    }

    fn needed(&self, growth: &Growth, kind: BlockKind) -> u32 {
        self.settings.needed(&growth.held, kind, growth.is_dormant)
    }

    /// Asks for blocks on the ENIs that have room, the lowest position first.
    fn fill_enis(&self, kind: BlockKind, growth: &mut Growth, now: Instant, steps: &mut Vec<Step>) {
        let mut enis: Vec<_> = self.book.enis.values().filter(|eni| self.may_fill(eni, kind, now)).collect();
        enis.sort_by_key(|eni| eni.facts.slot);
        for eni in enis {
            let is_busy = steps.iter().any(|step| step.eni() == Some(&eni.facts.id));
            let count = self
                .needed(growth, kind)
                .min(self.slots_free(eni))
                .min(self.failures.ask_at_most(&eni.facts.subnet, kind));
            if count > 0 && !is_busy {
                let blocks = kind.times(count);
                growth.held = growth.held.with(blocks);
                steps.push(Step::Assign { eni: eni.facts.id.clone(), blocks });
            }
        }
    }

    /// Where blocks of the other kind, left from another mode, take the slots that are needed:
    /// returns those that are free. The slots count as filled until they are empty.
    fn make_room(&mut self, kind: BlockKind, growth: &mut Growth, now: Instant, steps: &mut Vec<Step>) {
        let candidates: Vec<EniId> = self
            .book
            .enis
            .values()
            .filter(|eni| self.may_fill(eni, kind, now))
            .map(|eni| eni.facts.id.clone())
            .collect();
        for id in candidates {
            if self.needed(growth, kind) == 0 {
                return;
            }
            let is_busy = steps.iter().any(|step| step.eni() == Some(&id));
            let obsolete = if is_busy { Vec::new() } else { self.obsolete_blocks(&id) };
            if !obsolete.is_empty() {
                growth.held = growth.held.with(kind.times(to_u32(obsolete.len())));
                self.begin_returning(&id, obsolete, steps);
            }
        }
    }

    fn allocate_enis(&mut self, kind: BlockKind, growth: &mut Growth, now: Instant, steps: &mut Vec<Step>) {
        loop {
            let needed = self.needed(growth, kind);
            let slot = free_slot(&growth.slots);
            let (true, true, Some(slot)) =
                (needed > 0 && growth.eni_room > 0, self.failures.may(&Kind::AllocateEni, now), slot)
            else {
                return;
            };
            if self.custom.is_none() && self.settings.reads_subnets && !self.subnets.are_fresh(now) {
                // Where an ENI may go can have changed since the last one was made. As long as there
                // is no place for one, a look now and then will do.
                let is_open = |subnet| self.failures.may(&Kind::Subnet(subnet, kind), now);
                if self.subnets_for_new_enis().into_iter().any(is_open) || self.subnets.are_stale(now) {
                    self.look_at_subnets(now, steps);
                    // In the other kind it would have to go somewhere as well.
                    growth.eni_room = 0;
                }
                return;
            }
            let Some(subnet) = self.subnet_for(kind, now) else { return };
            let most = self.failures.ask_at_most(&subnet, kind);
            let blocks = kind.times(needed.min(self.settings.slots_per_eni).min(most));
            growth.eni_room -= 1;
            growth.slots.insert(slot);
            growth.held = growth.held.with(blocks);
            let security_groups = self
                .custom
                .as_ref()
                .map(|custom| custom.security_groups.clone())
                .filter(|groups| !groups.is_empty());
            steps.push(Step::AllocateEni { slot, subnet, security_groups, blocks });
        }
    }

    /// Whether EC2 tells how much room the subnets have.
    fn looks_at_subnets(&self) -> bool {
        // It does not tell how many blocks of IPv6 are left.
        self.settings.mode != BlockMode::Ipv6Prefix
            && self.settings.reads_subnets
            && !self.subnets.are_refused()
    }

    /// Whether a look at the subnets may show that one which had no addresses has some again, long
    /// before its pause is over. Nobody looks but for pods that wait, and then not more often
    /// than the last look is fresh.
    pub(super) fn may_find_room(&self, now: Instant) -> bool {
        let is_looking = self.running.has(&Step::ReadSubnets);
        let may_look = || self.may_read_subnets(now) && !self.subnets.are_fresh(now);
        self.looks_at_subnets()
            && self.failures.has_subnet_resting(now)
            && (is_looking || may_look())
            && !self.is_full()
    }

    fn look_at_subnets(&mut self, now: Instant, steps: &mut Vec<Step>) {
        self.wants_subnets = true;
        if self.may_read_subnets(now) && !steps.contains(&Step::ReadSubnets) {
            steps.push(Step::ReadSubnets);
        }
    }

    /// Whether a subnet may be asked for blocks now. One that had none is looked at before.
    fn may_ask(&self, subnet: &SubnetId, kind: BlockKind, now: Instant) -> bool {
        let is_known =
            !self.looks_at_subnets() || !self.failures.is_out_of(subnet, kind) || self.subnets.are_fresh(now);
        is_known && self.failures.may(&Kind::Subnet(subnet.clone(), kind), now)
    }

    /// The subnet for a new ENI with blocks of `kind`.
    fn subnet_for(&self, kind: BlockKind, now: Instant) -> Option<SubnetId> {
        self.subnets_for_new_enis()
            .into_iter()
            .filter(|subnet| self.may_hold(subnet, kind))
            .find(|subnet| self.may_ask(subnet, kind, now))
    }

    /// The subnets that take new ENIs, best first.
    pub(super) fn subnets_for_new_enis(&self) -> Vec<SubnetId> {
        match &self.custom {
            Some(custom) => vec![custom.subnet.clone()],
            None => self.subnets.for_new_enis(self.book.primary_subnet()),
        }
    }

    /// Whether more blocks may be asked for on this ENI.
    fn may_fill(&self, eni: &EniEntry, kind: BlockKind, now: Instant) -> bool {
        let EniEntry { facts, .. } = eni;
        self.is_growable(eni)
            && self.may_hold(&facts.subnet, kind)
            && !self.running.touches(&facts.id)
            && self.failures.may(&Kind::Assign(facts.id.clone()), now)
            && self.may_ask(&facts.subnet, kind, now)
    }

    /// Whether the ENI may hold more blocks at all.
    pub(super) fn is_growable(&self, eni: &EniEntry) -> bool {
        eni.serves_pods()
            && eni.facts.kind != EniKind::Trunk
            && !(self.custom.is_some() && eni.facts.role == EniRole::Primary)
            && !self.is_hopeless(eni)
    }

    pub(super) fn slots_free(&self, eni: &EniEntry) -> u32 {
        self.settings.slots_per_eni.saturating_sub(eni.slots_used())
    }

    fn is_hopeless(&self, eni: &EniEntry) -> bool {
        let set_up = self.failures.get(&Kind::SetUpEni(eni.facts.id.clone()));
        eni.phase == EniPhase::Attached && set_up.is_some_and(|last| last.times >= HOPELESS)
    }

    /// What the targets count.
    pub(super) fn holdings(&self) -> Holdings {
        let mut held = Holdings { waiting: self.waiters.len(), ..Holdings::default() };
        for eni in self.book.enis.values().filter(|eni| eni.serves_pods() && !self.is_hopeless(eni)) {
            for (block, entry) in &eni.blocks {
                if entry.is_leaving || !self.is_counted(eni, *block) {
                    continue;
                }
                let counts = entry.counts(*block);
                held.total = held.total.saturating_add(counts.total);
                held.occupied += counts.occupied();
                let is_free = u32::from(counts.occupied() == 0);
                match block.kind() {
                    BlockKind::Ip => {
                        held.ips += 1;
                        held.free_ips += is_free;
                    }
                    BlockKind::Prefix | BlockKind::Ipv6Prefix => {
                        held.prefixes += 1;
                        held.free_prefixes += is_free;
                    }
                }
            }
        }
        held
    }

    /// Whether a block is of the kind that is asked for on its ENI. Others still serve the pods
    /// that have them, and pods that find nothing else.
    pub(super) fn is_counted(&self, eni: &EniEntry, block: Block) -> bool {
        self.may_hold(&eni.facts.subnet, block.kind())
    }

    /// How many more ENIs may be attached, beyond the steps under way.
    pub(super) fn eni_room(&self) -> u32 {
        let coming =
            self.running.steps().values().filter(|step| matches!(step, Step::AllocateEni { .. })).count();
        let has_trunk = self.book.enis.values().any(|eni| eni.facts.kind == EniKind::Trunk);
        let reserved = u32::from(self.settings.reserves_trunk && !has_trunk);
        self.settings.eni_limit.saturating_sub(to_u32(self.book.enis.len() + coming) + reserved)
    }

    pub(super) fn is_allocating(&self, place: EniSlot) -> bool {
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

    /// The addresses that the steps under way bring.
    pub(super) fn addresses_coming(&self) -> u32 {
        self.running.coming().map(Blocks::addresses).fold(0, u32::saturating_add)
    }
}

/// The lowest position on the default card that is not taken.
fn free_slot(taken: &BTreeSet<EniSlot>) -> Option<EniSlot> {
    (1..DEVICE_INDEXES).map(|device| EniSlot::new(0, device)).find(|slot| !taken.contains(slot))
}
