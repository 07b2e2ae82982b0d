//! Addresses that rest: after a pod, and after what nobody knows of.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Instant;

use super::Book;
use crate::pool::BlockKind;
use crate::pool::eni::{QuarantineReason, State};

impl Book {
    /// Ends every cooldown that is over. What the kernel still used when it was last read is held
    /// back: its pod may be going yet, or nobody knows of it.
    pub(in crate::pool) fn expire_cooling(&mut self, now: Instant) {
        for (block, entry) in self.enis.values_mut().flat_map(|eni| &mut eni.blocks) {
            for (address, state) in &mut entry.states {
                if let State::Cooling { until } = *state
                    && until <= now
                {
                    *state = match self.kernel_uses.contains(address) {
                        true => State::Quarantined(QuarantineReason::KernelOnly),
                        false => State::Free { since: until },
                    };
                }
            }
            if block.kind() == BlockKind::Ipv6Prefix {
                // Which of its free addresses has rested longest does not matter there.
                entry.states.retain(|_, state| !matches!(state, State::Free { .. }));
            }
        }
        self.away.retain(|_, until| *until > now);
    }

    /// Has a free address rest, or one that may come back.
    pub(in crate::pool) fn rest(&mut self, address: IpAddr, until: Instant) {
        match self.block_mut(address) {
            Some(block) if block.is_free(address) => {
                block.states.insert(address, State::Cooling { until });
            }
            Some(_) => {}
            None => {
                self.away.insert(address, until);
            }
        }
    }

    /// Takes addresses whose rest ends in this time for unused.
    pub(in crate::pool) fn forget_uses_of_resting(&mut self, time: RangeInclusive<Instant>) {
        for (address, until) in self.cooling() {
            if time.contains(&until) {
                self.forget_use(address);
            }
        }
    }

    /// A pod's use of an address ends; that of another hand does not.
    pub(in crate::pool) fn forget_use(&mut self, address: IpAddr) {
        if !self.others_use.contains(&address) {
            self.kernel_uses.remove(&address);
        }
    }

    /// Has every free address rest; of an IPv6 prefix the first `reach`, beyond which no pod can
    /// be, since addresses are given out from the lowest up.
    pub(in crate::pool) fn rest_all(&mut self, reach: u32, until: Instant) {
        let blocks = self.enis.values().flat_map(|eni| eni.blocks.keys().copied());
        for address in blocks.flat_map(|block| block.first(reach)).collect::<Vec<_>>() {
            self.rest(address, until);
        }
    }
}
