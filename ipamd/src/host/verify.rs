//! Comparing the node's network with what is wanted, when something changed and by the clock, and
//! putting back what is not. What leads to a pod is put back too, though the plugin made it.

use std::time::{Duration, Instant};

use datapath::host::{self, Change, EgressObservation, Extent, HostWarning, Observation};
use datapath::kernel::{KernelError, Netlink};
use datapath::monitor::Changed;
use datapath::pod;
use datapath::wanted::HostNetwork;
use tokio::time::timeout;
use tracing::{error, info, warn};
use vpc::{Family, RouteTable};

use super::egress::Egress;
use super::pods::{Listed, Pods};
use super::repair::Repairs;
use super::{HostFailure, HostHealth};
use crate::chain::chain;
use crate::pool_task::PoolHandle;

/// How often to compare when nothing else happens.
const EVERY: Duration = Duration::from_secs(30);

/// How long to let a change become complete: whoever flushes a table is done with it by then.
const QUIET: Duration = Duration::from_millis(50);

/// How long to rest between two looks at least. What was changed is back within a second.
const REST: Duration = Duration::from_millis(500);

/// How long the pool may take to tell of its pods; it answers between two events.
const POOL_DEADLINE: Duration = Duration::from_secs(2);

/// How long to rest before what could not be read is looked at again.
const AGAIN: Duration = Duration::from_secs(2);

/// How many changes of one look are logged one by one.
const LOGGED: usize = 20;

pub(super) struct Verifier {
    pool: Option<PoolHandle>,
    repairs: Repairs,
    /// When to look next, and when to look at everything.
    due: Instant,
    next_full: Instant,
    last_look: Instant,
    suspected: Changed,
    pods: Pods,
    egress: Egress,
    /// What the last look could not mend, so that it is reported once.
    fault: Option<String>,
    warnings: Vec<HostWarning>,
    contested: usize,
    is_begun: bool,
}

impl Verifier {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pool: None,
            repairs: Repairs::default(),
            due: now + EVERY,
            next_full: now + EVERY,
            last_look: now,
            suspected: Changed::default(),
            pods: Pods::default(),
            egress: Egress::default(),
            fault: None,
            warnings: Vec::new(),
            contested: 0,
            is_begun: false,
        }
    }

    /// From now on the network is to be kept as wanted.
    pub(super) fn begin(&mut self) {
        self.is_begun = true;
    }

    /// From now on what leads to the pods of `pool` is to be kept too. Something may have been
    /// taken from them while no daemon ran, so they are looked at at once.
    pub(super) fn keep_pods(&mut self, pool: PoolHandle, now: Instant) {
        self.pool = Some(pool);
        self.suspected.network = true;
        self.due = now;
    }

    /// When the next look is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Something has changed: look at it soon, but not too often.
    pub(super) fn suspect(&mut self, changed: Changed, now: Instant) {
        self.suspected.network |= changed.network;
        self.suspected.filter |= changed.filter;
        self.due = self.due.min((now + QUIET).max(self.last_look + REST));
    }

    pub(super) fn health(&self, now: Instant) -> HostHealth {
        HostHealth {
            fault: self.fault.clone(),
            repairs: self.repairs.counts().clone(),
            contested: self.repairs.contested(now),
            warnings: self.warnings.clone(),
            deaf: None,
        }
    }

    /// Compares, and puts back what is not as wanted.
    pub(super) async fn verify(&mut self, netlink: &mut Netlink, wanted: &HostNetwork) {
        let began = Instant::now();
        let is_full = began >= self.next_full;
        if is_full {
            self.next_full = began + EVERY;
        }
        let look =
            Changed { network: is_full || self.suspected.network, filter: is_full || self.suspected.filter };
        self.suspected = Changed::default();
        if self.is_begun {
            let outcome = self.compare(netlink, wanted, look).await;
            self.settle(outcome);
            if is_full {
                self.full_look(netlink, wanted).await;
            }
        }
        self.rest(Instant::now());
    }

    /// Chooses when to look next.
    fn rest(&mut self, now: Instant) {
        self.last_look = now;
        // What may not be put back yet is looked at again when it may.
        let next = [self.repairs.next(now), self.pods.next(now), self.egress.next(now)];
        let again = next.into_iter().flatten().min();
        let again = again.map_or(self.next_full, |next| next.max(now + REST));
        self.due = again.min(self.next_full);
        if self.suspected != Changed::default() {
            self.due = self.due.min(now + AGAIN);
        }
    }

    async fn compare(
        &mut self,
        netlink: &mut Netlink,
        wanted: &HostNetwork,
        look: Changed,
    ) -> Result<(), HostFailure> {
        let seen = host::observe(netlink, wanted.family).inspect_err(|_| self.suspected = look)?;
        let egress = observe_egress(netlink, &seen, wanted).inspect_err(|_| self.suspected = look)?;
        let now = Instant::now();
        let listed = self.listed().await;
        let broken = match &listed {
            Some(listed) => {
                let links = host::whole_links(&seen, listed.pods.iter().map(|pod| &pod.on_host));
                self.pods.see(listed, links, now)
            }
            None => Vec::new(),
        };
        let extent = Extent { pods: &broken, filter: look.filter };
        let repairs = &mut self.repairs;
        let done =
            host::converge(netlink, &seen, wanted, extent, &mut |subject| repairs.admits(subject, now));
        self.report(&done.changes, now);
        let mut fault = done.fault.map(HostFailure::of);
        if let (Some(egress), Some(_)) = (egress, &listed) {
            let kept = self.keep_egress(netlink, &egress, now);
            fault = fault.or(kept.err().map(HostFailure::of));
        }
        if listed.is_some_and(|listed| !self.pods.ended(&listed).is_empty()) {
            self.remove_of_ended_pods(netlink).await;
        }
        fault.map_or(Ok(()), Err)
    }

    /// Puts back what pods have lost of their egress, and removes what came back for pods that have
    /// ended.
    fn keep_egress(
        &mut self,
        netlink: &mut Netlink,
        seen: &EgressObservation,
        now: Instant,
    ) -> Result<(), KernelError> {
        let running = self.pods.links();
        let lost = self.egress.see(&running, host::whole_egress(seen, &running), now);
        let repairs = &mut self.repairs;
        let (changes, fault) =
            host::mend_egress(netlink, seen, &lost, &mut |subject| repairs.admits(subject, now));
        self.report(&changes, now);
        let ended = self.egress.ended(&running);
        host::remove_egress(netlink, &ended)?;
        self.egress.removed(&ended);
        fault.map_or(Ok(()), Err)
    }

    /// What the pool says of its pods. Should it not say so in time, pods are looked at again soon.
    async fn listed(&mut self) -> Option<Listed> {
        let pool = self.pool.as_ref()?;
        let report = timeout(POOL_DEADLINE, pool.report()).await.ok().flatten();
        self.suspected.network |= report.is_none();
        report.as_ref().map(Listed::of)
    }

    /// Removes what came back for pods that have ended.
    ///
    /// The pool is asked once more, right before: making the node's network as wanted may have
    /// taken a while, in which another pod may have got the address.
    async fn remove_of_ended_pods(&mut self, netlink: &mut Netlink) {
        let Some(listed) = self.listed().await else { return };
        let ended = self.pods.ended(&listed);
        let addresses: Vec<_> = ended.iter().map(|address| (*address, RouteTable(0))).collect();
        match pod::delete(netlink, &addresses) {
            Ok(()) => self.pods.removed(&ended),
            Err(error) => warn!(%error, "what was put back for pods that have ended is still there"),
        }
    }

    /// What needs no haste: links of pods that are gone, and what only an operator can change.
    async fn full_look(&mut self, netlink: &mut Netlink, wanted: &HostNetwork) {
        self.look_for_warnings(netlink, wanted);
        let left = self.pods.left();
        if left.is_empty() {
            return;
        }
        let found = match host::reached_links(netlink, &left) {
            Ok(found) => found,
            Err(error) => return warn!(%error, "links of pods that were deleted not looked for"),
        };
        let Some(listed) = self.listed().await else { return };
        match host::remove_links(netlink, &self.pods.useless(&found, &listed)) {
            Ok(changes) => {
                for change in changes {
                    info!(%change, "link of a pod that was deleted removed; its namespace is still there");
                }
            }
            Err(error) => warn!(%error, "link of a pod that was deleted not removed"),
        }
    }

    /// What an operator should know of the node; each thing is logged when it comes up.
    pub(super) fn look_for_warnings(&mut self, netlink: &mut Netlink, wanted: &HostNetwork) {
        let warnings = host::warnings(netlink, wanted);
        for warning in warnings.iter().filter(|warning| !self.warnings.contains(warning)) {
            warn!(%warning, "check the node");
        }
        self.warnings = warnings;
    }

    fn report(&mut self, changes: &[Change], now: Instant) {
        for change in changes.iter().take(LOGGED) {
            warn!(%change, "somebody changed the node network; put back");
        }
        if let Some(more) = changes.len().checked_sub(LOGGED).filter(|more| *more > 0) {
            warn!(more, "somebody changed the node network; put back");
        }
        self.repairs.note(changes, now);
        let contested = self.repairs.contested(now);
        if contested.len() > self.contested {
            let what: Vec<&str> = contested.iter().map(|it| it.subject.as_str()).take(LOGGED).collect();
            error!(?what, "somebody changes the node network again and again; putting it back less often");
        }
        self.contested = contested.len();
    }

    fn settle(&mut self, outcome: Result<(), HostFailure>) {
        let fault = outcome.err().map(|error| chain(&error));
        if fault != self.fault {
            match &fault {
                Some(fault) => error!(error = fault, "node network is not as wanted and cannot be mended"),
                None => info!("node network is as wanted again"),
            }
        }
        self.fault = fault;
    }
}

/// What there is of pods' egress, on a node whose pods have some.
fn observe_egress(
    netlink: &mut Netlink,
    seen: &Observation,
    wanted: &HostNetwork,
) -> Result<Option<EgressObservation>, KernelError> {
    let family = match wanted.family {
        Family::V6 => Family::V4,
        Family::V4 if wanted.options.egress => Family::V6,
        Family::V4 => return Ok(None),
    };
    host::observe_egress(netlink, seen, family).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pods_are_looked_at_at_once_and_again_soon_while_the_pool_does_not_tell_of_them() {
        let now = Instant::now();
        let mut verifier = Verifier::new(now);

        verifier.keep_pods(PoolHandle::without_pool(), now);
        assert_eq!(verifier.due(), now);

        verifier.suspected = Changed::default();
        assert!(verifier.listed().await.is_none());
        verifier.rest(now);
        assert_eq!(verifier.due(), now + AGAIN);
    }
}
