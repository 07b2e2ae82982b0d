//! What is particular to nodes whose pods have IPv6 addresses: one prefix serves them all.

use std::time::Duration;

use super::block::BlockKind;
use super::explain::{Reason, Refusal};
use super::settings::BlockMode;
use super::{Pool, Stats};

impl Pool {
    /// Whether it is known which ENIs may serve pods. A prefix is never given back, so it should not
    /// come to an ENI in a subnet that the operator has excluded.
    pub(super) fn knows_exclusions(&self) -> bool {
        !self.settings.reads_subnets || self.subnets.were_read()
    }

    /// Whether new ENIs are to be made for what is missing. The prefix of IPv6 pods stays on the
    /// ENIs that there are, unless none of them can hold it: what EC2 refuses for another reason it
    /// would refuse for a new ENI too.
    pub(super) fn may_place_on_new_enis(&self) -> bool {
        let has_place = || {
            self.book.enis.values().any(|eni| {
                self.is_growable(eni)
                    && self.slots_free(eni) > 0
                    && !self.failures.is_out_of(&eni.facts.subnet, BlockKind::Ipv6Prefix)
            })
        };
        self.settings.mode != BlockMode::Ipv6Prefix || !has_place()
    }

    /// The addresses of a block that pods can have had when they had the lowest that were free:
    /// those of as many pods as there may be, several times over for those that rest.
    pub(super) fn reach(&self) -> u32 {
        const ROUNDS: u32 = 4;
        const MOST: u32 = 4096;
        self.settings.max_pods.saturating_mul(ROUNDS).clamp(BlockKind::Prefix.size(), MOST)
    }

    /// Why there is no address where no failure of EC2 explains it.
    pub(super) fn no_ipv6_prefix(&self) -> Refusal {
        let (reason, advice) = if !self.settings.may_provision {
            (
                Reason::ProvisioningOff,
                "provisioning is off, so somebody else must assign an IPv6 prefix to this node's primary ENI",
            )
        } else if self.subnets.were_read() && self.subnets_for_new_enis().is_empty() {
            (
                Reason::SubnetExhausted,
                "no ENI may hold one: the subnets of this zone are excluded by their tags or have no IPv6 block",
            )
        } else {
            (Reason::NodeFull, "no ENI has room for one; `ipamd status` lists what they hold")
        };
        Refusal {
            reason,
            message: format!("no free address: {}; {advice}", self.ipv6_figures()),
            retry_after: Some(Duration::from_secs(10)),
        }
    }

    pub(super) fn ipv6_figures(&self) -> String {
        let Stats { enis, assigned, cooling, quarantined, prefixes, .. } = self.book.stats();
        let held = match prefixes {
            0 => "no IPv6 prefix".to_owned(),
            1 => "1 IPv6 prefix".to_owned(),
            more => format!("{more} IPv6 prefixes"),
        };
        let enis = if enis == 1 { "1 ENI".to_owned() } else { format!("{enis} ENIs") };
        format!("{assigned} assigned, {cooling} cooling, {quarantined} quarantined, and {held} on {enis}")
    }
}
