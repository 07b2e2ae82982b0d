//! Chance from a seed, in separate streams, so that one thing's draws do not shift another's.

use std::time::Duration;

use lab::cloud::Dice;

/// One stream of chance.
#[derive(Debug, Clone)]
pub(super) struct Chance(Dice);

impl Chance {
    /// The stream of that number under a seed.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        // Neighbouring seeds and streams must not run into each other's sequences.
        let mut mixed = Dice::new(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(Dice::new(mixed.next_u64()))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from `least` to `most`.
    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.below(most.saturating_sub(least) + 1)
    }

    /// True in so many of a hundred cases.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.0.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.0.below(choices.len() as u64);
        choices[usize::try_from(index).unwrap_or(0)]
    }

    pub(super) fn millis(&mut self, least: u64, most: u64) -> Duration {
        // Down to the microsecond, so that things seldom happen at the very same time.
        Duration::from_micros(self.between(least * 1000, most * 1000))
    }

    pub(super) fn secs(&mut self, least: u64, most: u64) -> Duration {
        self.millis(least * 1000, most * 1000)
    }
}
