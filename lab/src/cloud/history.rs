//! Past states, so that IMDS can lag behind EC2.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::snapshot::Snapshot;

/// However busy the world and however long the lag, no more states than this are kept.
const KEEP_AT_MOST: usize = 10_000;

/// The states that IMDS may still have to show, oldest first; never empty.
///
/// A lag that grows while the world runs makes IMDS stand still for a while: it never takes back
/// what it has shown, since states are kept only as far back as the lag reached before.
#[derive(Debug)]
pub(super) struct History {
    latest: Arc<Snapshot>,
    older: VecDeque<Arc<Snapshot>>,
    lag: Duration,
}

impl History {
    pub(super) fn new(first: Snapshot) -> History {
        History { latest: Arc::new(first), older: VecDeque::new(), lag: Duration::ZERO }
    }

    pub(super) fn set_lag(&mut self, now: Duration, lag: Duration) {
        self.forget(now);
        self.lag = lag;
    }

    pub(super) fn latest(&self) -> Arc<Snapshot> {
        self.latest.clone()
    }

    pub(super) fn push(&mut self, snapshot: Snapshot) {
        let now = snapshot.at;
        self.older.push_back(std::mem::replace(&mut self.latest, Arc::new(snapshot)));
        self.forget(now);
    }

    /// Drops what the lag no longer reaches.
    fn forget(&mut self, now: Duration) {
        let shown = now.saturating_sub(self.lag);
        // A state is over when its successor began; the last one's successor is the latest.
        while let Some(second) = self.older.get(1).or((!self.older.is_empty()).then_some(&self.latest))
            && (second.at <= shown || self.older.len() > KEEP_AT_MOST)
        {
            self.older.pop_front();
        }
    }

    /// The state that IMDS shows at `now`, or at least the one of `not_before`.
    pub(super) fn shown(&self, now: Duration, not_before: Duration) -> Arc<Snapshot> {
        let when = now.saturating_sub(self.lag).max(not_before);
        if self.latest.at <= when {
            return self.latest.clone();
        }
        let after = self.older.partition_point(|state| state.at <= when);
        self.older.get(after.saturating_sub(1)).unwrap_or(&self.latest).clone()
    }
}
