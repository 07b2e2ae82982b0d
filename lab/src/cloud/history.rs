//! Past states, so that IMDS can lag behind EC2.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::snapshot::Snapshot;

/// How far back IMDS may lag. Longer than any lag seen in the field.
const KEEP: Duration = Duration::from_secs(600);
/// However busy the world is, no more states than this are kept.
const KEEP_AT_MOST: usize = 10_000;

/// The states of the last ten minutes, oldest first; never empty.
#[derive(Debug)]
pub(super) struct History {
    latest: Arc<Snapshot>,
    older: VecDeque<Arc<Snapshot>>,
}

impl History {
    pub(super) fn new(first: Snapshot) -> History {
        History { latest: Arc::new(first), older: VecDeque::new() }
    }

    pub(super) fn latest(&self) -> Arc<Snapshot> {
        self.latest.clone()
    }

    pub(super) fn push(&mut self, snapshot: Snapshot) {
        let oldest_wanted = snapshot.at.saturating_sub(KEEP);
        self.older.push_back(std::mem::replace(&mut self.latest, Arc::new(snapshot)));
        // The state that was valid at the horizon is the last one that began before it.
        while self.older.get(1).is_some_and(|second| second.at <= oldest_wanted)
            || self.older.len() > KEEP_AT_MOST
        {
            self.older.pop_front();
        }
    }

    /// The state that was valid at `when`, or the oldest one kept.
    pub(super) fn at(&self, when: Duration) -> Arc<Snapshot> {
        if self.latest.at <= when {
            return self.latest.clone();
        }
        let after = self.older.partition_point(|state| state.at <= when);
        let index = after.saturating_sub(1);
        self.older.get(index).unwrap_or(&self.latest).clone()
    }
}
