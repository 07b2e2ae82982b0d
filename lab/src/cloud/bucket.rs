//! Request throttling: a token bucket for reading actions and one for changing ones.

use std::time::Duration;

/// The two kinds of actions that EC2 counts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionClass {
    /// `Describe…`.
    Describe,
    /// Everything that changes something.
    Mutate,
}

impl ActionClass {
    /// The class of an EC2 action.
    pub fn of(action: &str) -> ActionClass {
        if action.starts_with("Describe") { ActionClass::Describe } else { ActionClass::Mutate }
    }
}

/// Size and refill of a bucket. It begins full; each request takes one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BucketSpec {
    /// Tokens at most.
    pub capacity: f64,
    /// Tokens a second.
    pub refill: f64,
}

#[derive(Debug)]
struct Bucket {
    spec: BucketSpec,
    tokens: f64,
    counted_at: Duration,
}

/// The account's buckets; without a bucket there is no limit.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    describe: Option<Bucket>,
    mutate: Option<Bucket>,
}

impl Buckets {
    pub(super) fn set(&mut self, now: Duration, class: ActionClass, spec: Option<BucketSpec>) {
        *self.bucket(class) = spec.map(|spec| Bucket { spec, tokens: spec.capacity, counted_at: now });
    }

    /// Takes a token; `false` when there is none.
    pub(super) fn take(&mut self, now: Duration, class: ActionClass) -> bool {
        let Some(bucket) = self.bucket(class) else { return true };
        let gained = now.saturating_sub(bucket.counted_at).as_secs_f64() * bucket.spec.refill;
        bucket.tokens = (bucket.tokens + gained).min(bucket.spec.capacity);
        bucket.counted_at = now;
        let granted = bucket.tokens >= 1.0;
        if granted {
            bucket.tokens -= 1.0;
        }
        granted
    }

    fn bucket(&mut self, class: ActionClass) -> &mut Option<Bucket> {
        match class {
            ActionClass::Describe => &mut self.describe,
            ActionClass::Mutate => &mut self.mutate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_fills_at_its_rate_and_never_over_its_brim() {
        let at = Duration::from_millis;
        let mut buckets = Buckets::default();
        assert!(buckets.take(at(0), ActionClass::Mutate), "without a bucket there is no limit");
        let spec = BucketSpec { capacity: 2.0, refill: 1.0 };
        buckets.set(at(0), ActionClass::Mutate, Some(spec));

        assert!(buckets.take(at(0), ActionClass::Mutate));
        assert!(buckets.take(at(0), ActionClass::Mutate));
        assert!(!buckets.take(at(900), ActionClass::Mutate));
        assert!(buckets.take(at(1000), ActionClass::Mutate));

        let grants = (0..5).filter(|_| buckets.take(at(100_000), ActionClass::Mutate)).count();
        assert_eq!(grants, 2);
        assert!(buckets.take(at(100_000), ActionClass::Describe), "classes are counted apart");
    }
}
