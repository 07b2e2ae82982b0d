//! How long an action takes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::Dice;

/// A fixed part and a random one of up to `jitter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// At least this.
    pub base: Duration,
    /// Up to this on top.
    pub jitter: Duration,
}

impl From<Duration> for Latency {
    fn from(base: Duration) -> Latency {
        Latency { base, jitter: Duration::ZERO }
    }
}

/// Latencies by action, with one for all others under `*`.
#[derive(Debug, Default)]
pub(super) struct Latencies(BTreeMap<String, Latency>);

impl Latencies {
    pub(super) fn set(&mut self, action: &str, latency: Latency) {
        self.0.insert(action.to_owned(), latency);
    }

    pub(super) fn draw(&self, action: &str, dice: &mut Dice) -> Duration {
        let everything_else = if action == super::IMDS { None } else { self.0.get("*") };
        let Some(latency) = self.0.get(action).or(everything_else) else { return Duration::ZERO };
        let jitter = u64::try_from(latency.jitter.as_micros()).unwrap_or(u64::MAX);
        latency.base + Duration::from_micros(dice.below(jitter))
    }
}
