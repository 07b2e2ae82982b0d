//! The pool and its past, put together for whoever asks.

use super::{PoolTask, StepRunner};
use crate::clock::Moment;
use crate::report::{Report, StepReport};

impl<R: StepRunner> PoolTask<R> {
    /// Everything that can be told now.
    pub(super) fn report(&self, at: Moment) -> Report {
        let steps = self.pool.running().iter();
        let steps =
            steps.map(|(id, step)| StepReport { what: step.to_string(), since: self.history.begun_at(*id) });
        Report {
            at,
            pool: self.pool.report(at.instant()),
            steps: steps.collect(),
            next_look: self.pool.next_wake(at.instant()),
            waiting: self.history.waits(),
            failures: self.history.failures(),
            refusals: self.history.refusals(),
            releases: self.history.releases(),
            is_draining: self.is_draining,
        }
    }
}
