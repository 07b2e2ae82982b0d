//! ENIs that were made for this instance and have no owner: found, and deleted.
//!
//! They are left where the daemon was killed, an answer of EC2 was lost, or EC2 would not delete
//! one that could not be attached.

use std::collections::BTreeMap;
use std::time::Duration;

use ec2::{Ec2, EniRecord, Priority};
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
        let _nothing_is_being_made = self.making.write().await;
        self.resolve(intents).await;
    }

    async fn resolve(&self, intents: &BTreeMap<String, EniIntent>) {
        if self.delete_leftovers().await {
            for token in intents.keys() {
                self.forget(token).await;
            }
        }
    }

    /// Looks for ENIs that a failure of this process left without an owner, if there was one and
    /// it is time, and no ENI is being made. Costs nothing otherwise, so it can be called often.
    pub(crate) async fn clear_leftovers(&self) {
        let now = self.moment().instant();
        if self.memory(|memory| memory.leftovers_due.is_none_or(|due| due > now)) {
            return;
        }
        let Ok(_nothing_is_being_made) = self.making.try_write() else { return };
        // Whatever is recorded is a leftover, or was never made.
        self.resolve(&self.sidecar.intents()).await;
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
    /// being made meanwhile, so nobody will miss them. Says whether none is left; if not, it is
    /// due again after a pause.
    pub(super) async fn delete_leftovers(&self) -> bool {
        if !self.options.access.may_change() {
            return true;
        }
        let is_clean = self.find_and_delete().await;
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

    async fn find_and_delete(&self) -> bool {
        let at = self.ec2.at(Priority::Sweep);
        let cluster = self.options.cluster_name.as_deref();
        let found = match at.unattached_enis_of(&self.instance.instance, &self.instance.vpc, cluster).await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "ENIs without an owner not looked for");
                return false;
            }
        };
        let mut is_clean = true;
        for record in found {
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
        let is_ours = |record: &EniRecord| record.was_made_for(&self.instance.instance);
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
