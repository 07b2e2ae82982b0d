//! The pool as people and tools see it.

use std::net::Ipv4Addr;

use vpc::{EniId, EniRole, EniSlot, PodName, SubnetId};

use super::Pool;
use super::block::Block;
use super::eni::{EniEntry, EniPhase, State};

/// One ENI for people and tools.
#[derive(Debug, Clone)]
pub(crate) struct EniView {
    pub(crate) id: EniId,
    pub(crate) slot: EniSlot,
    pub(crate) role: EniRole,
    pub(crate) phase: EniPhase,
    pub(crate) subnet: SubnetId,
    pub(crate) primary_ip: Ipv4Addr,
    pub(crate) blocks: Vec<Block>,
    /// Every address, those of prefixes included.
    pub(crate) addresses: Vec<AddressView>,
}

/// One address for people and tools.
#[derive(Debug, Clone)]
pub(crate) struct AddressView {
    pub(crate) address: Ipv4Addr,
    /// `free`, `assigned`, `cooling`, `quarantined` or `leaving`.
    pub(crate) state: &'static str,
    pub(crate) pod: Option<PodName>,
}

impl Pool {
    /// Every ENI with its addresses, in the order of their positions.
    pub(crate) fn enis(&self) -> Vec<EniView> {
        let mut views: Vec<_> = self.book.enis.values().map(view).collect();
        views.sort_by_key(|eni| eni.slot);
        views
    }
}

fn view(eni: &EniEntry) -> EniView {
    let addresses = eni.blocks.iter().flat_map(|(block, entry)| {
        block.addresses().map(move |address| {
            let (state, pod) = match entry.states.get(&address) {
                _ if entry.is_leaving => ("leaving", None),
                None | Some(State::Free { .. }) => ("free", None),
                Some(State::Assigned(allocation)) => ("assigned", Some(allocation.pod.clone())),
                Some(State::Cooling { .. }) => ("cooling", None),
                Some(State::Quarantined(_)) => ("quarantined", None),
            };
            AddressView { address, state, pod }
        })
    });
    EniView {
        id: eni.facts.id.clone(),
        slot: eni.facts.slot,
        role: eni.facts.role,
        phase: eni.phase,
        subnet: eni.facts.subnet.clone(),
        primary_ip: eni.facts.primary_ip,
        blocks: eni.blocks.keys().copied().collect(),
        addresses: addresses.collect(),
    }
}
