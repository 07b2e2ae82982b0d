//! A token bucket. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

/// How many requests at once, and how many a second in the long run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// The tokens of a full bucket; at least 1.
    pub burst: u32,
    /// The tokens that come back each second; more than 0.
    pub per_second: f64,
}

/// Tokens that requests take and time brings back.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    counted_at: Instant,
}

/// The slowest refill; slower ones would make a wait that no `Duration` holds.
const PER_SECOND_MIN: f64 = 0.001;

impl Bucket {
    /// A full bucket. A rate without sense is raised to one token and one in a thousand seconds.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        let per_second =
            if rate.per_second > PER_SECOND_MIN { rate.per_second.min(1e6) } else { PER_SECOND_MIN };
        let rate = Rate { burst: rate.burst.max(1), per_second };
        Self { rate, tokens: f64::from(rate.burst), counted_at: now }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }

    /// When there will be a token: `now` if there is one already.
    #[must_use]
    pub fn ready_at(&mut self, now: Instant) -> Instant {
        self.refill(now);
        let missing = 1.0 - self.tokens;
        if missing <= 0.0 {
            return now;
        }
        // Rounded up to whole microseconds, so that whoever waits so long finds its token.
        let wait = Duration::from_secs_f64(missing / self.rate.per_second) + Duration::from_micros(1);
        now.max(self.counted_at) + wait
    }

    /// The whole tokens that there are, and the rate by which they come back.
    pub fn level(&mut self, now: Instant) -> (u32, Rate) {
        self.refill(now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to `burst`, which is a u32"
        )]
        let whole = self.tokens as u32;
        (whole, self.rate)
    }

    /// Empties the bucket: it begins to fill at `from`.
    pub fn drain(&mut self, from: Instant) {
        self.tokens = 0.0;
        self.counted_at = from;
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted_at);
        if !passed.is_zero() {
            let filled = self.tokens + passed.as_secs_f64() * self.rate.per_second;
            self.tokens = filled.min(f64::from(self.rate.burst));
            self.counted_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, per_second: 2.0 };

    #[test]
    fn a_full_bucket_serves_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);

        let served = (0..100).filter(|_| bucket.take(start)).count();
        let served_in_ten_secs =
            (1..=1000).filter(|step| bucket.take(start + Duration::from_millis(10 * step))).count();

        assert_eq!(served, 3);
        assert_eq!(served_in_ten_secs, 20);
    }

    #[test]
    fn the_level_counts_whole_tokens() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        assert_eq!(bucket.level(start), (3, RATE));

        while bucket.take(start) {}

        assert_eq!(bucket.level(start + Duration::from_millis(499)).0, 0);
        assert_eq!(bucket.level(start + Duration::from_millis(1100)).0, 2);
    }

    #[test]
    fn a_token_is_there_when_the_bucket_says_so_and_not_before() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        while bucket.take(start) {}

        let ready = bucket.ready_at(start);

        assert!(!bucket.clone().take(ready - Duration::from_millis(1)));
        assert!(bucket.take(ready));
    }

    #[test]
    fn a_drained_bucket_begins_to_fill_when_the_pause_ends() {
        let start = Instant::now();
        let pause_end = start + Duration::from_secs(10);
        let mut bucket = Bucket::new(RATE, start);

        bucket.drain(pause_end);

        assert!(!bucket.take(start + Duration::from_secs(5)));
        assert!(!bucket.take(pause_end));
        assert!(bucket.ready_at(start) > pause_end);
        assert!(bucket.take(pause_end + Duration::from_millis(500)));
    }

    #[test]
    fn a_long_rest_fills_no_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        let later = start + Duration::from_secs(1_000_000);

        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 3);
    }

    #[test]
    fn a_rate_without_sense_still_serves() {
        let start = Instant::now();
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mut bucket = Bucket::new(Rate { burst: 0, per_second }, start);

            assert!(bucket.take(start));
            assert!(bucket.ready_at(start) > start, "{per_second}");
        }
    }
}
