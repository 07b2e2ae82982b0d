//! ENIs that were made for this instance and have no owner: found, and deleted.
//!
//! They are left where the daemon was killed, an answer of EC2 was lost, or EC2 would not delete
//! one that could not be attached.

use std::collections::BTreeMap;
use std::time::Duration;

use ec2::{At, Ec2, EniRecord, Priority};
use tokio::sync::RwLockWriteGuard;
use tracing::{info, warn};

use super::Executor;
use super::free::delete_detached;
use crate::sidecar::EniIntent;

/// How long EC2 may take to show an ENI that it made.
pub(crate) const EC2_SETTLES: Duration = Duration::from_secs(60);

/// How long the deletion of an ENI that is being detached is tried.
const DETACHING_TAKES: Duration = Duration::from_secs(180);

/// The longest pause after looks that failed, or found what could not be deleted.
const LONGEST_PAUSE: Duration = Duration::from_secs(1800);

impl<E: Ec2> Executor<E> {
    /// Looks once more for ENIs whose making was recorded by an earlier process, and then forgets
    /// the records, if EC2 could be asked. To be called when EC2 has had time to show what it made.
    pub(crate) async fn resolve_intents(&self, intents: &BTreeMap<String, EniIntent>) {
        let nothing_is_being_made = self.making.write().await;
        self.resolve(nothing_is_being_made, intents).await;
    }

    async fn resolve(
        &self,
        nothing_is_being_made: RwLockWriteGuard<'_, ()>,
        intents: &BTreeMap<String, EniIntent>,
    ) {
        if self.delete_leftovers(nothing_is_being_made).await {
            for token in intents.keys() {
                self.forget(token).await;
            }
        }
    }

    /// Looks for ENIs without an owner if EC2 has been read since the last look, or a failure of this
    /// process left one and it is time; unless an ENI is being made. Costs nothing otherwise, so it
    /// can be called often.
    pub(crate) async fn clear_leftovers(&self) {
        let now = self.moment().instant();
        let (is_asked_for, is_due) = self.memory(|memory| {
            (memory.looks_for_leftovers, memory.leftovers_due.is_some_and(|due| due <= now))
        });
        if !is_asked_for && !is_due {
            return;
        }
        let Ok(nothing_is_being_made) = self.making.try_write() else { return };
        // When it is time, whatever is recorded is a leftover, or was never made. Before, EC2 may
        // still make it.
        let intents = if is_due { self.sidecar.intents() } else { BTreeMap::new() };
        self.resolve(nothing_is_being_made, &intents).await;
    }

    /// Something may be left without an owner.
    pub(super) fn leaves_something(&self) {
        self.look_for_leftovers_after(EC2_SETTLES);
    }

    fn look_for_leftovers_after(&self, pause: Duration) {
        let due = self.moment().instant() + pause;
        self.memory(|memory| memory.leftovers_due = memory.leftovers_due.max(Some(due)));
    }

    /// Deletes the ENIs that were made for this instance and are attached to nothing. Nothing is
    /// being made while they are looked for, so nobody will miss them; making goes on while they are
    /// deleted. Says whether none is left; if not, it is due again after a pause.
    async fn delete_leftovers(&self, nothing_is_being_made: RwLockWriteGuard<'_, ()>) -> bool {
        self.memory(|memory| memory.looks_for_leftovers = false);
        if !self.options.access.may_change() {
            return true;
        }
        let at = self.ec2.at(Priority::Sweep);
        let cluster = self.options.cluster_name.as_deref();
        let found = at.unattached_enis_of(&self.instance.instance, &self.instance.vpc, cluster).await;
        drop(nothing_is_being_made);
        let is_clean = match found {
            Ok(found) => self.delete_all(&at, found).await,
            Err(error) => {
                warn!(%error, "ENIs without an owner not looked for");
                false
            }
        };
        let now = self.moment().instant();
        self.memory(|memory| {
            if is_clean {
                memory.failed_searches = 0;
                memory.leftovers_due = memory.leftovers_due.filter(|due| *due > now);
            } else {
                let pause = EC2_SETTLES * 2_u32.saturating_pow(memory.failed_searches.min(10));
                memory.failed_searches = memory.failed_searches.saturating_add(1);
                memory.leftovers_due = Some(now + pause.min(LONGEST_PAUSE));
            }
        });
        is_clean
    }

    async fn delete_all(&self, at: &At<E>, leftovers: Vec<EniRecord>) -> bool {
        let mut is_clean = true;
        for record in leftovers.into_iter().filter(|record| self.is_managed(&record.tags)) {
            match at.delete_eni(&record.id).await {
                Ok(()) => info!(eni = %record.id, "ENI without an owner deleted"),
                Err(error) => {
                    is_clean = false;
                    warn!(eni = %record.id, %error, "ENI without an owner not deleted");
                }
            }
        }
        is_clean
    }

    /// Deletes, in the background, ENIs of ours that are being detached, unless a step does that.
    pub(super) fn see_off(&self, leaving: Vec<EniRecord>) {
        let is_ours = |record: &EniRecord| {
            record.was_made_for(&self.instance.instance) && self.is_managed(&record.tags)
        };
        for record in leaving.into_iter().filter(|record| self.options.access.may_change() && is_ours(record))
        {
            let is_news = self.memory(|memory| {
                !memory.enis.contains_key(&record.id) && memory.leaving.insert(record.id.clone())
            });
            if is_news {
                // Should that fail, or the ENI stay for longer.
                self.look_for_leftovers_after(DETACHING_TAKES);
                let at = self.ec2.at(Priority::Sweep);
                tokio::spawn(async move {
                    match delete_detached(&at, &record.id).await {
                        Ok(()) => info!(eni = %record.id, "ENI that was being detached is deleted"),
                        Err(error) => warn!(eni = %record.id, %error, "ENI that was being detached stays"),
                    }
                });
            }
        }
    }
}
