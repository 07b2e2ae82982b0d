//! The clocks, and the one place where wall-clock time on disk and the monotonic time in memory meet.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the time. The monotonic clock is tokio's, which a test can stop and turn; the wall
/// clock is the system's, or a test's own. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clock {
    wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Clock {
    /// The clocks of the machine.
    pub(crate) fn system() -> Self {
        Self { wall: Arc::new(SystemTime::now) }
    }

    /// A wall clock that shows what `wall` says.
    #[cfg(test)]
    pub(crate) fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { wall: Arc::new(wall) }
    }

    /// The monotonic clock.
    pub(crate) fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Both clocks at once.
    pub(crate) fn moment(&self) -> Moment {
        Moment::of(self.now(), (self.wall)())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

/// One moment as both clocks show it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    instant: Instant,
    wall: Duration,
}

impl Moment {
    /// This moment, by the clocks of the machine.
    pub(crate) fn now() -> Self {
        Clock::system().moment()
    }

    /// The moment at which the clocks show these; a wall clock before 1970 counts as 1970.
    pub(crate) fn of(instant: Instant, wall: SystemTime) -> Self {
        Self { instant, wall: wall.duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    /// The monotonic clock.
    pub(crate) fn instant(self) -> Instant {
        self.instant
    }

    /// Nanoseconds since 1970.
    pub(crate) fn unix_ns(self) -> i64 {
        i64::try_from(self.wall.as_nanos()).unwrap_or(i64::MAX)
    }

    /// Seconds since 1970.
    pub(crate) fn unix_secs(self) -> i64 {
        i64::try_from(self.wall.as_secs()).unwrap_or(i64::MAX)
    }

    /// What the wall clock shows at `instant`, in milliseconds since 1970.
    pub(crate) fn unix_ms_at(self, instant: Instant) -> i64 {
        let wall = match instant.checked_duration_since(self.instant) {
            Some(ahead) => self.wall + ahead,
            None => self.wall.saturating_sub(self.instant.saturating_duration_since(instant)),
        };
        i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)
    }

    /// When the wall clock shows `unix_ms`, but at most `most` from this moment: a wall clock
    /// that was set back must not stretch a pause. A time that has passed is this moment.
    pub(crate) fn instant_at(self, unix_ms: i64, most: Duration) -> Instant {
        let target = Duration::from_millis(u64::try_from(unix_ms).unwrap_or(0));
        self.instant + target.saturating_sub(self.wall).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_jumps_leaves_the_monotonic_one_alone() {
        let start = Clock::system().now();
        let clock = Clock::with_wall(|| UNIX_EPOCH + Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(3)).await;

        let moment = clock.moment();

        assert_eq!(moment.instant() - start, Duration::from_secs(3));
        assert_eq!(moment.unix_secs(), 5);
    }

    #[test]
    fn a_time_that_goes_to_disk_comes_back() {
        let moment = Moment::now();
        let until = moment.instant() + Duration::from_secs(17);

        let back = moment.instant_at(moment.unix_ms_at(until), Duration::from_secs(60));

        let error = back.max(until) - back.min(until);
        assert!(error <= Duration::from_millis(1), "{error:?}");
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stretch_a_pause() {
        let moment = Moment::now();
        let far = moment.unix_ms_at(moment.instant() + Duration::from_secs(86_400));

        assert_eq!(
            moment.instant_at(far, Duration::from_secs(30)),
            moment.instant() + Duration::from_secs(30)
        );
        assert_eq!(moment.instant_at(-5, Duration::from_secs(30)), moment.instant());
    }
}
