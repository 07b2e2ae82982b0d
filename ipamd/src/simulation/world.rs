//! What all nodes share: EC2, the clock, the oracle that judges, and the trace.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use lab::cloud::{CloudBuilder, CloudHandle, Eni, Snapshot, Subnet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::oracle::Oracle;
use super::scenario::Scenario;

/// The tag that offers a subnet to pods, or with 0 forbids it.
pub(super) const ROLE_TAG: &str = "kubernetes.io/role/cni";

/// Lines of the trace that a failure shows.
const SHOWN: usize = 60;

/// What happened, line by line, as far as it is kept, and a digest of all of it.
#[derive(Debug)]
struct Trace {
    lines: VecDeque<String>,
    /// Whether lines are printed at once.
    is_loud: bool,
    digest: u64,
    events: u64,
}

/// The world of one run.
pub(super) struct World {
    pub(super) cloud: CloudHandle,
    began: Instant,
    /// The subnet that new ENIs go to where no tag says otherwise.
    usual: Ipv4Net,
    oracle: Mutex<Oracle>,
    trace: Mutex<Trace>,
    /// By node: how long a link takes to appear after its ENI was attached, in milliseconds.
    link_delays: Vec<AtomicU64>,
    imds_down: AtomicBool,
    /// Set once no more pods are to come and go.
    closing: CancellationToken,
}

impl World {
    /// An empty world; instances come with the nodes.
    pub(super) fn new(scenario: &Scenario, is_loud: bool) -> Arc<Self> {
        let mut builder = CloudBuilder::new(scenario.seed);
        for subnet in &scenario.subnets {
            builder = builder.subnet(*subnet, super::ZONE);
        }
        let world = Self {
            cloud: CloudHandle::start(builder),
            began: Instant::now(),
            usual: scenario.subnets[usize::from(scenario.is_custom)],
            oracle: Mutex::new(Oracle::new(scenario)),
            trace: Mutex::new(Trace {
                lines: VecDeque::new(),
                is_loud,
                digest: 0xcbf2_9ce4_8422_2325,
                events: 0,
            }),
            link_delays: (0..scenario.nodes).map(|_| AtomicU64::new(0)).collect(),
            imds_down: AtomicBool::new(false),
            closing: CancellationToken::new(),
        };
        Arc::new(world)
    }

    /// Time since the world began.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The subnets whose tags offer them to pods.
    pub(super) fn open_subnets<'a>(&self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Subnet> {
        let usual = self.usual;
        snapshot.subnets.values().map(AsRef::as_ref).filter(move |subnet: &&Subnet| {
            match subnet.tags.get(ROLE_TAG).map(String::as_str) {
                None | Some("") => subnet.cidr == usual,
                Some(role) => role != "0",
            }
        })
    }

    /// Whether a subnet's tags forbid that ENIs in it serve pods.
    pub(super) fn is_excluded(&self, subnet: &str) -> bool {
        let snapshot = self.cloud.snapshot();
        let role = snapshot.subnets.get(subnet).and_then(|found| found.tags.get(ROLE_TAG));
        role.is_some_and(|role| role == "0")
    }

    /// The addresses that these have left.
    pub(super) fn free_addresses(&self) -> u32 {
        self.open_subnets(&self.cloud.snapshot()).map(|subnet| subnet.available).sum()
    }

    pub(super) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        let mut oracle = self.oracle.lock().unwrap_or_else(PoisonError::into_inner);
        oracle.now = self.now();
        oracle
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        let now = self.now();
        let line = format!("{:>10.4} {}", now.as_secs_f64(), text());
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        trace.events += 1;
        for byte in line.bytes() {
            trace.digest = (trace.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if trace.is_loud {
            eprintln!("{line}");
        }
        if trace.lines.len() >= SHOWN {
            trace.lines.pop_front();
        }
        trace.lines.push_back(line);
    }

    /// The digest of all lines, their number, and those that are kept.
    pub(super) fn trace(&self) -> (u64, u64, Vec<String>) {
        let trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        (trace.digest, trace.events, trace.lines.iter().cloned().collect())
    }

    pub(super) fn link_delay(&self, node: usize) -> Duration {
        let millis = self.link_delays.get(node).map_or(0, |delay| delay.load(Ordering::Relaxed));
        Duration::from_millis(millis)
    }

    pub(super) fn set_link_delay(&self, node: usize, delay: Duration) {
        if let Some(held) = self.link_delays.get(node) {
            held.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Has pods that do not stay go.
    pub(super) fn close(&self) {
        self.oracle().closes();
        self.closing.cancel();
    }

    /// Returns once pods that do not stay are to go.
    pub(super) async fn closed(&self) {
        self.closing.cancelled().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    pub(super) fn is_imds_down(&self) -> bool {
        self.imds_down.load(Ordering::Relaxed)
    }

    pub(super) fn set_imds_down(&self, is_down: bool) {
        self.imds_down.store(is_down, Ordering::Relaxed);
    }
}

/// The addresses of an ENI that pods may have.
pub(super) fn addresses_of(eni: &Arc<Eni>) -> impl Iterator<Item = IpAddr> {
    let singles = eni.addresses.iter().filter(|ip| !ip.is_primary).map(|ip| ip.address.into());
    singles.chain(eni.prefixes.iter().copied().flat_map(prefix_addresses))
}

/// All addresses of a prefix.
pub(super) fn prefix_addresses(prefix: Ipv4Net) -> impl Iterator<Item = IpAddr> {
    (prefix.network().to_bits()..=prefix.broadcast().to_bits()).map(|bits| Ipv4Addr::from_bits(bits).into())
}
