//! Comparing the node's network with what is wanted, when something changed and by the clock, and
//! putting back what is not.
//!
//! What leads to a pod is put back too, though the plugin made it. An ADD under way has not made
//! it yet, and a DEL has taken it away on purpose: so only pods count whose network was whole once
//! or has lacked something for longer than an ADD takes, and the pool is asked for its pods after
//! the kernel was looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use datapath::host::{self, AbandonedLink, Change, Extent, HostWarning, Observation};
use datapath::kernel::Netlink;
use datapath::monitor::Changed;
use datapath::pod;
use datapath::wanted::{HostNetwork, PodOnHost};
use tokio::time::timeout;
use tracing::{error, info, warn};
use vpc::{PodKey, RouteTable};

use super::repair::Repairs;
use super::{HostFailure, HostHealth};
use crate::chain::chain;
use crate::pool::AddressState;
use crate::pool_task::PoolHandle;

/// How often to compare when nothing else happens.
const EVERY: Duration = Duration::from_secs(30);

/// How long to let a change become complete: whoever flushes a table is done with it by then.
const QUIET: Duration = Duration::from_millis(50);

/// How long to rest between two looks at least. What was changed is back within a second.
const REST: Duration = Duration::from_millis(500);

/// How long the pool may take to tell of its pods; it answers between two events.
const POOL_DEADLINE: Duration = Duration::from_secs(2);

/// For how long an ADD may leave a pod's network unfinished: it makes what it makes within some
/// milliseconds, and one that is slower finds what was put back and goes on.
const ADD_TAKES: Duration = Duration::from_secs(5);

/// How many changes of one look are logged one by one.
const LOGGED: usize = 20;

/// A pod's interface and whose it is.
struct Pod {
    key: PodKey,
    on_host: PodOnHost,
}

pub(super) struct Verifier {
    pool: Option<PoolHandle>,
    repairs: Repairs,
    /// When to look next, and when to look at everything.
    due: Instant,
    next_full: Instant,
    last_look: Instant,
    suspected: Changed,
    /// Pods whose network was seen whole.
    whole: BTreeSet<(PodKey, IpAddr)>,
    /// Pods whose network was never seen whole, and since when.
    unfinished: BTreeMap<(PodKey, IpAddr), Instant>,
    /// Addresses for whose pods something was put back.
    mended: BTreeSet<IpAddr>,
    /// Links that nothing led to at the last full look.
    abandoned: BTreeSet<AbandonedLink>,
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
            whole: BTreeSet::new(),
            unfinished: BTreeMap::new(),
            mended: BTreeSet::new(),
            abandoned: BTreeSet::new(),
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

    pub(super) fn keep_pods(&mut self, pool: PoolHandle) {
        self.pool = Some(pool);
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
        let now = Instant::now();
        self.last_look = now;
        // What may not be put back yet is looked at again when it may.
        let finished = self.unfinished.values().map(|since| *since + ADD_TAKES);
        let finished = finished.filter(|finished| *finished > now).min();
        let again = [self.repairs.next(now), finished].into_iter().flatten().min();
        let again = again.map_or(self.next_full, |next| next.max(now + REST));
        self.due = again.min(self.next_full);
        if self.suspected != Changed::default() {
            self.due = self.due.min(now + REST);
        }
    }

    async fn compare(
        &mut self,
        netlink: &mut Netlink,
        wanted: &HostNetwork,
        look: Changed,
    ) -> Result<(), HostFailure> {
        let seen = host::observe(netlink, wanted.family)?;
        let now = Instant::now();
        let pods = pods_of(self.pool.as_ref()).await;
        let broken = self.pods_to_mend(&seen, pods.as_deref(), now);
        let extent = Extent { pods: &broken, filter: look.filter };
        let repairs = &mut self.repairs;
        let done =
            host::converge(netlink, &seen, wanted, extent, &mut |subject| repairs.admits(subject, now));
        self.report(&done.changes, now);
        self.remove_of_ended_pods(netlink, pods.as_deref());
        done.fault.map_or(Ok(()), |fault| Err(HostFailure::of(fault)))
    }

    /// Those that lack something, unless their network is an ADD's or a DEL's business now.
    fn pods_to_mend(&mut self, seen: &Observation, pods: Option<&[Pod]>, now: Instant) -> Vec<PodOnHost> {
        let Some(pods) = pods else { return Vec::new() };
        let name = |pod: &Pod| (pod.key.clone(), pod.on_host.address);
        let known: BTreeSet<_> = pods.iter().map(name).collect();
        self.whole.retain(|pod| known.contains(pod));
        let before = std::mem::take(&mut self.unfinished);
        let mut broken = Vec::new();
        for (pod, is_whole) in pods.iter().zip(host::are_whole(seen, pods.iter().map(|pod| &pod.on_host))) {
            if is_whole {
                self.whole.insert(name(pod));
                continue;
            }
            if !self.whole.contains(&name(pod)) {
                let since = before.get(&name(pod)).copied().unwrap_or(now);
                self.unfinished.insert(name(pod), since);
                if now < since + ADD_TAKES {
                    continue;
                }
            }
            broken.push(pod.on_host.clone());
        }
        self.mended.extend(broken.iter().map(|pod| pod.address));
        broken
    }

    /// A DEL that came while its pod's network was being put back has left what came back.
    fn remove_of_ended_pods(&mut self, netlink: &mut Netlink, pods: Option<&[Pod]>) {
        let Some(pods) = pods else { return };
        let running: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.on_host.address).collect();
        let ended: Vec<_> =
            self.mended.difference(&running).map(|address| (*address, RouteTable(0))).collect();
        if ended.is_empty() {
            return;
        }
        match pod::delete(netlink, &ended) {
            Ok(()) => self.mended.retain(|address| running.contains(address)),
            Err(error) => warn!(%error, "what was put back for pods that have ended is still there"),
        }
    }

    /// What needs no haste: links of pods that are gone, and what only an operator can change.
    async fn full_look(&mut self, netlink: &mut Netlink, wanted: &HostNetwork) {
        self.look_for_warnings(netlink, wanted);
        let Some(pods) = pods_of(self.pool.as_ref()).await else { return };
        let running: Vec<PodOnHost> = pods.into_iter().map(|pod| pod.on_host).collect();
        let found = host::abandoned_links(netlink, &wanted.options.veth_prefix, &running);
        let found: BTreeSet<AbandonedLink> = found.unwrap_or_default().into_iter().collect();
        // Seen twice in a row, it is no ADD's under way.
        match host::remove_abandoned(netlink, found.intersection(&self.abandoned)) {
            Ok(changes) => {
                for change in changes {
                    info!(%change, "link of a pod that was deleted removed; its namespace is still there");
                }
            }
            Err(error) => warn!(%error, "link of a pod that was deleted not removed"),
        }
        self.abandoned = found;
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

/// The pods that have addresses now; none if the pool does not say in time.
async fn pods_of(pool: Option<&PoolHandle>) -> Option<Vec<Pod>> {
    let report = timeout(POOL_DEADLINE, pool?.report()).await.ok()??;
    let of_eni = report.pool.enis.iter().flat_map(|eni| eni.addresses.iter().map(move |it| (eni.table, it)));
    let pods = of_eni.filter_map(|(table, address)| match &address.state {
        AddressState::Assigned(allocation) => Some(Pod {
            key: allocation.key.clone(),
            on_host: PodOnHost { pod: allocation.pod.clone(), nic: 0, address: allocation.address, table },
        }),
        _ => None,
    });
    Some(pods.collect())
}
