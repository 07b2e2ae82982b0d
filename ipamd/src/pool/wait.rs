//! Pods that wait for an address, first come first served.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use vpc::PodKey;

use super::Request;

/// Names one waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WaiterId(u64);

#[derive(Debug, Default)]
pub(super) struct Waiters {
    queue: VecDeque<(WaiterId, Request)>,
    last: u64,
}

impl Waiters {
    pub(super) fn park(&mut self, request: Request) -> WaiterId {
        self.last += 1;
        let id = WaiterId(self.last);
        self.queue.push_back((id, request));
        id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The pods that wait; a runtime that repeats its ADD makes two requests of one pod.
    pub(super) fn len(&self) -> u32 {
        count(self.queue.iter().map(|(_, request)| &request.key).collect())
    }

    /// The pods other than `key` that wait.
    pub(super) fn ahead_of(&self, key: &PodKey) -> u32 {
        count(self.queue.iter().map(|(_, request)| &request.key).filter(|waiting| *waiting != key).collect())
    }

    pub(super) fn in_order(&self) -> Vec<(WaiterId, Request)> {
        self.queue.iter().cloned().collect()
    }

    pub(super) fn remove(&mut self, id: WaiterId) {
        self.queue.retain(|(waiting, _)| *waiting != id);
    }

    pub(super) fn remove_key(&mut self, key: &PodKey) {
        self.queue.retain(|(_, request)| request.key != *key);
    }

    /// When the next pod's patience with somebody ends.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let ends = self.queue.iter().flat_map(|(_, request)| [request.deadline, request.latest]);
        ends.filter(|end| *end > now).min()
    }
}

fn count(keys: BTreeSet<&PodKey>) -> u32 {
    u32::try_from(keys.len()).unwrap_or(u32::MAX)
}
