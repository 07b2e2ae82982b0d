//! What pods and runtimes ask of the pool: ADD, DEL, late DELs, collection, readiness.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{debug, info};
use vpc::{PodKey, PodName};

use super::commit::Change;
use super::handle::{AddReply, DelReply};
use super::{AddError, Collected, Collection, DelError, LateDel, PROBE, PoolTask, StepRunner, refuse};
use crate::clock::Moment;
use crate::pool::{Allocation, Answer, Assignment, QuarantineReason, Request};
use crate::report::{Cause, Wait};

impl<R: StepRunner> PoolTask<R> {
    pub(super) fn add(&mut self, request: Request, reply: AddReply, now: Instant) {
        if self.is_draining {
            let _ = reply.send(Err(AddError::ShuttingDown));
            return;
        }
        if reply.is_closed() {
            return;
        }
        let Request { key, pod, deadline, latest, .. } = request.clone();
        match self.pool.request(request, now) {
            Answer::Assigned(assignment) => self.assigned(key, assignment, reply),
            Answer::Parked(id) => {
                debug!(pod = %key, "pod waits for an address");
                self.history.parked(id, Wait { key: key.clone(), pod, since: now, deadline, latest });
                self.waiting.insert(id, (key, reply));
            }
            Answer::Refused(refusal) => {
                self.history.refused(&key, &pod, Cause::Pool(refusal.reason), &refusal.message, now);
                refuse(&key, refusal, reply);
            }
        }
    }

    /// Has an answer wait for the write that makes it true.
    pub(super) fn assigned(&mut self, key: PodKey, assignment: Assignment, reply: AddReply) {
        if assignment.is_new {
            self.commit.open(Change::Added { key, assignment, replies: vec![reply] });
        } else if let Some(reply) = self.commit.follow_add(&key, reply) {
            let _ = reply.send(Ok(assignment));
        }
    }

    pub(super) fn del(&mut self, key: PodKey, reply: DelReply, now: Instant) {
        let waiting: Vec<_> =
            self.waiting.iter().filter(|(_, (waiting, _))| *waiting == key).map(|(id, _)| *id).collect();
        for id in waiting {
            self.pool.abandon(id);
            self.waiting.remove(&id);
        }
        match self.pool.release(&key, now) {
            Ok(released) => {
                self.history.released(released.allocation.clone(), now);
                self.commit.open(Change::Removed { released, replies: vec![reply] });
            }
            Err(_) => {
                if let Some(reply) = self.commit.follow_del(&key, reply) {
                    let _ = reply.send(Err(DelError::UnknownPod));
                }
            }
        }
    }

    pub(super) fn late_del(&mut self, del: LateDel, reply: DelReply, now: Instant) {
        let is_meant = self.pool.allocations().iter().any(|held| {
            held.key == del.key
                && (del.addresses.is_empty() || del.addresses.contains(&held.address))
                && held.assigned_unix_ns < del.unix_ns
        });
        if is_meant {
            self.del(del.key, reply, now);
        } else {
            let _ = reply.send(Err(DelError::UnknownPod));
        }
    }

    pub(super) fn collect(
        &mut self,
        collection: &Collection,
        reply: oneshot::Sender<Result<Vec<Collected>, DelError>>,
        now: Instant,
    ) {
        let is_gone = |held: &Allocation| {
            let attachment = (held.key.container_id().to_owned(), held.key.interface().to_owned());
            held.key.network() == collection.network
                && held.assigned_unix_ns < collection.asked_unix_ns
                && !collection.valid.contains(&attachment)
        };
        let gone: Vec<_> = self.pool.allocations().into_iter().filter(is_gone).collect();
        let mut collected = Vec::new();
        for held in gone {
            let is_quarantined = !held.pod.is_unknown() && collection.kernel.has_link_of(&held.pod);
            let Ok(released) = self.pool.release(&held.key, now) else { continue };
            if is_quarantined {
                self.pool.undo_release(released.clone());
                self.pool.quarantine(&held.key, QuarantineReason::LinkAlive, now);
            }
            self.history.released(released.allocation.clone(), now);
            info!(pod = %held.pod, key = %held.key, address = %held.address, is_quarantined, "collected");
            collected.push(Collected { released, is_quarantined });
        }
        if collected.is_empty() {
            let _ = reply.send(Ok(collected));
        } else {
            self.commit.open(Change::Collected { collected, reply });
        }
    }

    /// Asks as a pod would, and takes the question back.
    pub(super) fn readiness(&mut self, moment: Moment) -> Result<(), AddError> {
        if self.is_draining {
            return Err(AddError::ShuttingDown);
        }
        let Ok(key) = PodKey::new(PROBE, PROBE, PROBE) else { return Ok(()) };
        let request = Request {
            key: key.clone(),
            pod: PodName::default(),
            deadline: moment.instant() + Duration::from_secs(20),
            latest: moment.instant() + Duration::from_secs(20),
            unix_ns: moment.unix_ns(),
        };
        match self.pool.request(request, moment.instant()) {
            Answer::Assigned(_) => self.pool.undo_request(&key),
            Answer::Parked(id) => self.pool.abandon(id),
            Answer::Refused(refusal) => return Err(AddError::Refused(refusal)),
        }
        Ok(())
    }
}
