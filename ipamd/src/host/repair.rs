//! How often what has been put back, and when to stop running after somebody who changes it again.
//! Pure: `now` is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use datapath::host::{Change, ChangeKind};

/// A firewall's reload or a network manager's restart touches a thing a few times at most; whoever
/// does so more often within [`CALM`] will go on.
const PATIENCE: u32 = 5;

/// The first pause, which doubles each time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// After this long without a change a thing counts as left in peace again. Longer than any pause.
const CALM: Duration = Duration::from_secs(150);

/// What was repaired, and what may be repaired now.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    counts: BTreeMap<ChangeKind, Count>,
    subjects: BTreeMap<String, Subject>,
}

/// How often one kind of object was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) times: u64,
    pub(crate) last: Instant,
    /// The last change, in words.
    pub(crate) change: String,
}

/// Something that was put back lately.
#[derive(Debug, Clone, Copy)]
struct Subject {
    times: u32,
    last: Instant,
    not_before: Instant,
}

/// Something that somebody else changes again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contested {
    pub(crate) subject: String,
    pub(crate) times: u32,
    /// When it is put back next, if it needs to be.
    pub(crate) not_before: Instant,
}

impl Repairs {
    /// Whether `subject`, which is not as it should be, is put back now. Counts it if so.
    pub(crate) fn admits(&mut self, subject: &str, now: Instant) -> bool {
        let known = self.subjects.get(subject).filter(|known| now < known.last + CALM);
        if known.is_some_and(|known| now < known.not_before) {
            return false;
        }
        let times = known.map_or(0, |known| known.times) + 1;
        let pause = match times.checked_sub(PATIENCE) {
            None | Some(0) => Duration::ZERO,
            Some(over) => (FIRST_PAUSE * 2_u32.saturating_pow(over - 1)).min(LONGEST_PAUSE),
        };
        let subject_now = Subject { times, last: now, not_before: now + pause };
        self.subjects.insert(subject.to_owned(), subject_now);
        true
    }

    /// Counts what was changed, and forgets what has been left in peace.
    pub(crate) fn note(&mut self, changes: &[Change], now: Instant) {
        for change in changes {
            let count = self.counts.entry(change.kind()).or_insert(Count {
                times: 0,
                last: now,
                change: String::new(),
            });
            *count = Count { times: count.times + 1, last: now, change: change.to_string() };
        }
        self.subjects.retain(|_, subject| now < subject.last + CALM);
    }

    /// How often each kind of object was put back.
    pub(crate) fn counts(&self) -> &BTreeMap<ChangeKind, Count> {
        &self.counts
    }

    /// What is changed by somebody again and again.
    pub(crate) fn contested(&self, now: Instant) -> Vec<Contested> {
        self.subjects
            .iter()
            .filter(|(_, subject)| subject.times > PATIENCE && now < subject.last + CALM)
            .map(|(name, subject)| Contested {
                subject: name.clone(),
                times: subject.times,
                not_before: subject.not_before,
            })
            .collect()
    }

    /// When the next thing may be put back for which it is too early now.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.subjects.values().map(|subject| subject.not_before).filter(|then| *then > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// When `subject` is put back, if it is changed every 100 ms for `span`.
    fn repaired_at(repairs: &mut Repairs, start: Instant, span: Duration) -> Vec<u64> {
        let mut now = start;
        let mut times = Vec::new();
        while now < start + span {
            if repairs.admits("rule", now) {
                times.push((now - start).as_secs());
            }
            now += SECOND / 10;
        }
        times
    }

    #[test]
    fn what_is_changed_for_ever_is_put_back_at_growing_pauses() {
        let mut repairs = Repairs::default();

        let times = repaired_at(&mut repairs, Instant::now(), SECOND * 300);

        assert_eq!(times[..5], [0, 0, 0, 0, 0]);
        assert_eq!(times[5..10], [0, 2, 6, 14, 30]);
        assert!(times[10..].windows(2).all(|pair| pair[1] - pair[0] == 60), "{times:?}");
    }

    #[test]
    fn what_is_left_in_peace_for_a_while_starts_anew() {
        let (mut repairs, start) = (Repairs::default(), Instant::now());
        repaired_at(&mut repairs, start, SECOND * 20);
        assert_eq!(repairs.contested(start + SECOND * 20)[0].subject, "rule");

        let later = start + SECOND * 20 + CALM;

        assert_eq!(repairs.contested(later), []);
        assert_eq!(repaired_at(&mut repairs, later, SECOND / 2).len(), 5);
    }

    #[test]
    fn one_contested_thing_keeps_no_other_waiting() {
        let (mut repairs, start) = (Repairs::default(), Instant::now());
        repaired_at(&mut repairs, start, SECOND);
        assert!(!repairs.admits("rule", start + SECOND));

        assert!(repairs.admits("route", start + SECOND));
        assert_eq!(repairs.next(start + SECOND), Some(start + SECOND / 2 + FIRST_PAUSE));
    }
}
