//! ENIs that nodes of this cluster left behind: found once an hour, and deleted.
//!
//! A node that is gone cannot clean up after itself, so every node looks, each at a time of its
//! own. What another node deletes meanwhile is not missed.

use std::cmp::Reverse;
use std::time::Duration;

use ec2::{At, CLUSTER_TAG, CREATED_AT_TAG, Ec2, EniRecord, EniStatus, Priority, Tags};
use tracing::{info, warn};

use super::Executor;
use crate::stagger;

/// How old an ENI must be before it counts as left behind. A node attaches what it made within
/// seconds.
const GRACE_SECS: i64 = 300;

/// How long an ENI is watched before it is deleted, longer than any node takes from making an
/// ENI to attaching it: the clock that stamped it may be wrong.
const WATCH: Duration = Duration::from_secs(60);

/// What to do with an unattached ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Delete,
    /// It is too young.
    Keep,
    /// It does not say since when it exists: from now on it does.
    Stamp,
    /// It says so in a way that nobody can read.
    Unreadable,
}

fn judge(tags: &Tags, now_unix_secs: i64) -> Verdict {
    match tags.get(CREATED_AT_TAG).map(|text| text.parse::<jiff::Timestamp>()) {
        None => Verdict::Stamp,
        Some(Err(_)) => Verdict::Unreadable,
        // A stamp from the future is a clock's fault, and no sign of age.
        Some(Ok(created)) if now_unix_secs - created.as_second() < GRACE_SECS => Verdict::Keep,
        Some(Ok(_)) => Verdict::Delete,
    }
}

impl<E: Ec2> Executor<E> {
    /// Deletes what nodes of this cluster left behind. Where nobody named the cluster, only what
    /// was made for this instance: anything else may be another cluster's.
    pub(crate) async fn delete_leaked_enis(&self) {
        if !self.options.access.may_change() || !self.options.cleans_leaked_enis {
            return;
        }
        let at = self.ec2.at(Priority::Sweep);
        let found = self.unattached(&at).await;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "ENIs left behind not looked for");
                return;
            }
        };
        let now = self.moment().unix_secs();
        let mut leaked = Vec::new();
        for record in found {
            match judge(&record.tags, now) {
                Verdict::Delete => leaked.push(record.id),
                Verdict::Keep => {}
                Verdict::Stamp => self.stamp(&at, &record, now).await,
                Verdict::Unreadable => warn!(
                    eni = %record.id,
                    created_at = record.tags.get(CREATED_AT_TAG),
                    "unattached ENI is kept: nobody can tell its age; delete it by hand if it is not needed"
                ),
            }
        }
        if leaked.is_empty() {
            return;
        }
        tokio::time::sleep(WATCH).await;
        let mut still = match at.enis(&leaked).await {
            Ok(records) => records,
            Err(error) => {
                warn!(%error, "ENIs left behind not looked at again");
                return;
            }
        };
        // Nodes that look at the same moment begin with different ENIs.
        let own = self.instance.instance.as_str();
        still.sort_by_key(|record| Reverse(stagger::hash(&[own, record.id.as_str()])));
        for record in still.into_iter().filter(is_unattached) {
            match at.delete_eni(&record.id).await {
                Ok(()) => info!(eni = %record.id, "ENI that was left behind deleted"),
                Err(error) => warn!(eni = %record.id, %error, "ENI that was left behind not deleted"),
            }
        }
    }

    async fn unattached(&self, at: &At<E>) -> ec2::Result<Vec<EniRecord>> {
        let vpc = &self.instance.vpc;
        match self.options.cluster_name.as_deref() {
            Some(cluster) => at.unattached_enis(vpc, Some(cluster)).await,
            None => {
                let mut found = at.unattached_enis_of(&self.instance.instance, vpc, None).await?;
                found.retain(|record| !record.tags.contains_key(CLUSTER_TAG));
                Ok(found)
            }
        }
    }

    async fn stamp(&self, at: &At<E>, record: &EniRecord, now_unix_secs: i64) {
        let Ok(now) = jiff::Timestamp::from_second(now_unix_secs) else { return };
        let stamp = Tags::from([(CREATED_AT_TAG.to_owned(), now.to_string())]);
        if let Err(error) = at.tag(&record.id, &stamp).await {
            warn!(eni = %record.id, %error, "time not noted on an unattached ENI");
        }
    }
}

fn is_unattached(record: &EniRecord) -> bool {
    record.status == EniStatus::Available && record.attachment.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000;

    fn judged(stamp: Option<&str>) -> Verdict {
        judge(&stamp.map(|text| (CREATED_AT_TAG.to_owned(), text.to_owned())).into_iter().collect(), NOW)
    }

    fn at(secs: i64) -> String {
        jiff::Timestamp::from_second(secs).unwrap().to_string()
    }

    #[test]
    fn only_an_eni_whose_age_is_known_and_enough_is_deleted() {
        assert_eq!(judged(Some(&at(NOW - GRACE_SECS))), Verdict::Delete);
        assert_eq!(judged(Some(&at(NOW - GRACE_SECS + 1))), Verdict::Keep);
        assert_eq!(judged(Some(&at(NOW + 86_400))), Verdict::Keep);
        assert_eq!(judged(None), Verdict::Stamp);
        for unreadable in ["yesterday", "", "1795000000", "2026-13-01T00:00:00Z"] {
            assert_eq!(judged(Some(unreadable)), Verdict::Unreadable, "{unreadable:?}");
        }
    }

    #[test]
    fn stamps_of_the_reference_are_read() {
        // Local time with an offset, as Go prints RFC 3339.
        assert_eq!(judged(Some("2026-11-18T00:00:00+01:00")), Verdict::Delete);
    }
}
