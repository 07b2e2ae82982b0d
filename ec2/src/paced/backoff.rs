//! The pause that all callers of an action keep when EC2 throttles it. Pure.

use std::time::{Duration, Instant};

/// A pause that grows while EC2 throttles and shrinks while it serves.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    pause: Duration,
    until: Option<Instant>,
    grown_at: Option<Instant>,
}

/// The first pause. EC2 refills a few tokens of its own in that time.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause: short enough that a pod that waits 20 s sees several tries.
pub(super) const LONGEST: Duration = Duration::from_secs(8);

impl Backoff {
    /// EC2 throttled a request that was sent at `sent_at`. `jitter` from 0 to 1 spreads the
    /// nodes of a cluster over the second half of the pause. Gives the end of the pause.
    ///
    /// Requests that were under way together are throttled together; they count once.
    pub(super) fn throttled(&mut self, sent_at: Instant, now: Instant, jitter: f64) -> Instant {
        if self.grown_at.is_none_or(|grown_at| sent_at >= grown_at) {
            self.pause = (self.pause * 2).clamp(FIRST, LONGEST);
            self.grown_at = Some(now);
            self.until = Some(now + self.pause.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0)));
        }
        self.until.unwrap_or(now)
    }

    /// EC2 served a request.
    pub(super) fn served(&mut self) {
        self.pause /= 2;
        if self.pause < FIRST {
            self.pause = Duration::ZERO;
        }
    }

    /// The end of the pause, if one is kept at `now`.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

/// The pause before repeating a request that failed for another reason than throttling:
/// 0.2 s doubled with every attempt, at most 5 s, the second half of it by `jitter` from 0 to 1.
pub(super) fn repeat_pause(attempts_made: u32, jitter: f64) -> Duration {
    let whole = Duration::from_millis(200) * 2_u32.saturating_pow(attempts_made.saturating_sub(1).min(10));
    whole.min(Duration::from_secs(5)).mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_limit_while_ec2_throttles() {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let until = backoff.throttled(now, now, 1.0);
            pauses.push((until - now).as_millis());
            now = until;
        }

        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000]);
    }

    #[test]
    fn requests_that_were_under_way_together_count_once() {
        let now = Instant::now();
        let mut backoff = Backoff::default();

        for _ in 0..10 {
            backoff.throttled(now, now + Duration::from_millis(20), 1.0);
        }

        let until = backoff.paused_until(now).unwrap();
        assert_eq!(until, now + Duration::from_millis(520));
    }

    #[test]
    fn the_pause_halves_with_every_success_until_it_is_gone() {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            now = backoff.throttled(now, now, 1.0);
        }

        backoff.served();
        let halved = backoff.clone().throttled(now, now, 1.0) - now;
        for _ in 0..3 {
            backoff.served();
        }
        let fresh = backoff.throttled(now, now, 1.0) - now;

        assert_eq!(halved.as_millis(), 2000);
        assert_eq!(fresh.as_millis(), 500);
    }

    #[test]
    fn jitter_spreads_the_second_half_of_the_pause() {
        let now = Instant::now();

        let shortest = Backoff::default().throttled(now, now, 0.0) - now;
        let longest = Backoff::default().throttled(now, now, 1.0) - now;

        assert_eq!((shortest.as_millis(), longest.as_millis()), (250, 500));
    }

    #[test]
    fn repeats_wait_longer_each_time_and_never_more_than_five_secs() {
        let pauses: Vec<_> = (1..=7).map(|attempts| repeat_pause(attempts, 1.0).as_millis()).collect();

        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(repeat_pause(u32::MAX, 1.0).as_secs(), 5);
    }
}
