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
    /// With the time from which each waits.
    queue: VecDeque<(WaiterId, Instant, Request)>,
    last: u64,
}

impl Waiters {
    pub(super) fn park(&mut self, request: Request, now: Instant) -> WaiterId {
        self.last += 1;
        let id = WaiterId(self.last);
        self.queue.push_back((id, now, request));
        id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The pods that wait; a runtime that repeats its ADD makes two requests of one pod.
    pub(super) fn len(&self) -> u32 {
        count(self.requests().map(|request| &request.key).collect())
    }

    /// The pods other than `key` that wait.
    pub(super) fn ahead_of(&self, key: &PodKey) -> u32 {
        count(self.requests().map(|request| &request.key).filter(|waiting| *waiting != key).collect())
    }

    fn requests(&self) -> impl Iterator<Item = &Request> {
        self.queue.iter().map(|(.., request)| request)
    }

    /// The requests in their order, each as if it were made `now`: from then on the pod has what
    /// it is given, and it is from then on that its ADD goes on.
    pub(super) fn in_order(&self, now: Instant) -> Vec<(WaiterId, Request)> {
        let made_now = |(id, since, request): &(WaiterId, Instant, Request)| {
            let waited = i64::try_from(now.saturating_duration_since(*since).as_nanos()).unwrap_or(i64::MAX);
            let unix_ns = request.unix_ns.saturating_add(waited);
            (*id, Request { unix_ns, ..request.clone() })
        };
        self.queue.iter().map(made_now).collect()
    }

    pub(super) fn remove(&mut self, id: WaiterId) {
        self.queue.retain(|(waiting, ..)| *waiting != id);
    }

    pub(super) fn remove_key(&mut self, key: &PodKey) {
        self.queue.retain(|(.., request)| request.key != *key);
    }

    /// When the next pod's patience with somebody ends.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let ends = self.requests().flat_map(|request| [request.deadline, request.latest]);
        ends.filter(|end| *end > now).min()
    }
}

fn count(keys: BTreeSet<&PodKey>) -> u32 {
    u32::try_from(keys.len()).unwrap_or(u32::MAX)
}
