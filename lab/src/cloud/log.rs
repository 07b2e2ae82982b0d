//! What was called, by whom, when, and how it went.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::request::Request;

/// The log keeps this many calls; the counters go on for ever.
const KEEP: usize = 50_000;

/// One call as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// Position in the order of arrival, from 1.
    pub number: u64,
    /// EC2's action, or [`super::IMDS`].
    pub action: String,
    /// The access key it was signed with.
    pub access_key: Option<String>,
    /// The instance whose role made it, or whose IMDS was asked.
    pub instance: Option<String>,
    /// The typed request; `None` if it could not be read, and for IMDS.
    pub request: Option<Request>,
    /// The parameters as text: for IMDS method and path.
    pub summary: String,
    /// When it arrived.
    pub received: Duration,
}

/// How a call went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with success.
    Success,
    /// Answered with this error code (for IMDS the HTTP status).
    Error(String),
    /// The work was done, the answer lost.
    AnswerLost,
    /// Neither work nor answer.
    Dropped,
    /// No answer, ever.
    Hung,
}

/// A call with its end, if it has come to one.
#[derive(Debug, Clone)]
pub struct CallRecord {
    /// As it arrived.
    pub call: Call,
    /// When it ended.
    pub completed: Option<Duration>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// Counts of one action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Arrived.
    pub received: u64,
    /// Came to an end, of any kind.
    pub completed: u64,
    /// Of those, how many were answered with success.
    pub succeeded: u64,
    /// Of those, how many were answered `RequestLimitExceeded`.
    pub throttled: u64,
}

#[derive(Debug, Default)]
pub(super) struct CallLog {
    records: VecDeque<CallRecord>,
    received: u64,
    by_action: BTreeMap<String, Count>,
    by_instance: BTreeMap<(String, String), Count>,
}

impl CallLog {
    pub(super) fn next_number(&self) -> u64 {
        self.received + 1
    }

    pub(super) fn receive(&mut self, call: Call) {
        self.received = call.number;
        self.count(&call, |count| count.received += 1);
        if self.records.len() == KEEP {
            self.records.pop_front();
        }
        self.records.push_back(CallRecord { call, completed: None, outcome: None });
    }

    pub(super) fn finish(&mut self, now: Duration, number: u64, outcome: Outcome) {
        let first = self.records.front().map_or(0, |it| it.call.number);
        let index = usize::try_from(number.wrapping_sub(first)).unwrap_or(usize::MAX);
        let Some(record) = self.records.get_mut(index) else { return };
        record.completed = Some(now);
        record.outcome = Some(outcome.clone());
        let call = record.call.clone();
        self.count(&call, |count| {
            count.completed += 1;
            count.succeeded += u64::from(outcome == Outcome::Success);
            count.throttled +=
                u64::from(matches!(&outcome, Outcome::Error(code) if code == "RequestLimitExceeded"));
        });
    }

    fn count(&mut self, call: &Call, change: impl Fn(&mut Count)) {
        change(self.by_action.entry(call.action.clone()).or_default());
        if let Some(instance) = &call.instance {
            change(self.by_instance.entry((instance.clone(), call.action.clone())).or_default());
        }
    }

    pub(super) fn records(&self) -> Vec<CallRecord> {
        self.records.iter().cloned().collect()
    }

    pub(super) fn counts(&self) -> BTreeMap<String, Count> {
        self.by_action.clone()
    }

    pub(super) fn counts_of(&self, instance: &str) -> BTreeMap<String, Count> {
        self.by_instance
            .iter()
            .filter(|((it, _), _)| it == instance)
            .map(|((_, action), count)| (action.clone(), *count))
            .collect()
    }

    pub(super) fn count_of(&self, action: &str) -> Count {
        self.by_action.get(action).copied().unwrap_or_default()
    }
}
