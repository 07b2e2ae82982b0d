//! What is judged of the pods that wait, and of those that are refused.

use std::time::Duration;

use super::{NodeFacts, Oracle, PATIENCE, SEEN_WITHIN};
use crate::pool::Reason;
use crate::simulation::violation::Violation;

impl Oracle {
    /// An ADD was refused.
    pub(in crate::simulation) fn refused(
        &mut self,
        node: usize,
        pod: &str,
        reason: Reason,
        message: &str,
        room: impl FnOnce(usize) -> bool,
    ) {
        // That others have returned addresses meanwhile is seen with the next look.
        let is_exhausted = reason == Reason::SubnetExhausted && !self.was_roomy_for(SEEN_WITHIN);
        // Where one ENI's way out and another's way in take longer than a pod waits, it is true
        // that the pool is being filled.
        let is_slow = reason == Reason::PoolFilling && self.served_within > PATIENCE;
        if self.is_troubled(node) || is_exhausted || is_slow {
            return;
        }
        let NodeFacts { wanting, lost, .. } = &self.nodes[node];
        let others = wanting.len().saturating_sub(1);
        let taken = self.live(node) + self.resting(node) + lost.len() + others + self.by_hand(node);
        if room(taken) {
            let (pod, message) = (pod.to_owned(), message.to_owned());
            self.violate(Violation::FalseRefusal { pod, reason, message });
        }
    }

    /// The slots that ENIs take which people attached.
    fn by_hand(&self, node: usize) -> usize {
        self.nodes[node].enis_by_hand.len() * self.ips_per_eni
    }

    /// Whether the subnets have had room for so long.
    fn was_roomy_for(&self, time: Duration) -> bool {
        self.roomy_since.is_some_and(|since| self.now.saturating_sub(since) >= time)
    }

    /// The addresses of a node that rest, or may be about to.
    fn resting(&self, node: usize) -> usize {
        self.rested_less(node, self.cooldown + Duration::from_secs(40))
    }

    pub(super) fn rested_less(&self, node: usize, still: Duration) -> usize {
        let rests = self.rests.values().filter(|rest| rest.node == node);
        rests.filter(|rest| self.now.saturating_sub(rest.since) < still).count()
    }

    /// An ADD was answered with an address after so long.
    pub(in crate::simulation) fn served_after(
        &mut self,
        node: usize,
        pod: &str,
        after: Duration,
        room: impl FnOnce(usize) -> bool,
    ) {
        let NodeFacts { wanting, lost, .. } = &self.nodes[node];
        let taken = self.live(node) + self.resting(node) + lost.len() + wanting.len();
        let was_roomy = self.was_roomy_for(after + SEEN_WITHIN);
        if !self.is_troubled(node) && was_roomy && room(taken) && after > self.served_within {
            self.violate(Violation::ServedLate { pod: pod.to_owned(), after });
        }
    }
}
