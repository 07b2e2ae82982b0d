//! Takes over from amazon-vpc-cni-k8s, in a thread of its own: the only one that keeps
//! CAP_NET_RAW, and only until nothing of the reference is left.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use datapath::kernel::{KernelError, Netlink};
use datapath::takeover::{self, Outcome};
use tracing::{info, warn};

use crate::chain::chain;

/// How long to wait after a failure, and how often to look whether the reference has come back.
const EVERY: Duration = Duration::from_secs(60);

/// What is known of the reference's part of the packet filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// Our own tables are not in place yet.
    #[default]
    Waiting,
    /// Something failed, and is tried again.
    Failing,
    /// Nothing is left but what has to stay.
    Done,
}

/// How far the take-over is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Takeover {
    pub(crate) phase: Phase,
    /// What has to stay, a line each with the reason.
    pub(crate) left: Vec<String>,
    /// What failed at the last attempt.
    pub(crate) failures: Vec<String>,
    /// What tells that a daemon of the reference runs beside this one.
    pub(crate) signs_of_return: Vec<String>,
}

/// The take-over, seen from everybody else. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct TakeoverHandle {
    state: Arc<Mutex<Takeover>>,
    begin: Option<Sender<HasEgress>>,
}

/// Whether our tables translate what pods send to the other family.
type HasEgress = bool;

impl TakeoverHandle {
    /// Starts the thread, which has the caller's privileges and waits. When it is done it calls
    /// `give_up`, which drops those that nothing else needs.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(give_up: fn() -> anyhow::Result<()>) -> std::io::Result<Self> {
        let (begin, may_begin) = channel();
        let handle = Self { begin: Some(begin), ..Self::default() };
        let state = Arc::clone(&handle.state);
        thread::Builder::new()
            .name("takeover".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || run(&state, &may_begin, give_up))?;
        Ok(handle)
    }

    /// Our own tables are in place: begin.
    pub(crate) fn begin(&self, has_egress: HasEgress) {
        if let Some(begin) = &self.begin {
            // It has ended only if it was told before.
            let _ = begin.send(has_egress);
        }
    }

    /// How far it is.
    pub(crate) fn now(&self) -> Takeover {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn run(state: &Mutex<Takeover>, may_begin: &Receiver<HasEgress>, give_up: fn() -> anyhow::Result<()>) {
    let Ok(has_egress) = may_begin.recv() else { return };
    let publish = |now: &Takeover| now.clone_into(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
    let mut known = Takeover::default();
    while known.phase != Phase::Done {
        if known.phase == Phase::Failing {
            thread::sleep(EVERY);
        }
        known = attempt(has_egress, &known);
        publish(&known);
    }
    if let Err(error) = give_up() {
        warn!(error = format!("{error:#}"), "privileges not dropped");
    }
    loop {
        thread::sleep(EVERY);
        look_for_return(&mut known);
        publish(&known);
    }
}

/// One attempt, told of in the log as far as it differs from what is known.
fn attempt(has_egress: HasEgress, known: &Takeover) -> Takeover {
    let Outcome { removed, left, failures } = match kept(has_egress) {
        Ok(kept) => takeover::take_over(&kept),
        Err(error) => return failed(vec![chain(&error)], known),
    };
    for removed in removed {
        info!(removed, "taken over from amazon-vpc-cni-k8s");
    }
    for left in left.iter().filter(|line| !known.left.contains(line)) {
        warn!(left, "left of amazon-vpc-cni-k8s");
    }
    let known = Takeover { left, ..known.clone() };
    if failures.is_empty() {
        return Takeover { phase: Phase::Done, failures: Vec::new(), ..known };
    }
    failed(failures.iter().map(|error| chain(error)).collect(), &known)
}

fn failed(failures: Vec<String>, known: &Takeover) -> Takeover {
    for error in failures.iter().filter(|line| !known.failures.contains(line)) {
        warn!(error, "rules of amazon-vpc-cni-k8s may be left; looking again in {} s", EVERY.as_secs());
    }
    Takeover { phase: Phase::Failing, failures, ..known.clone() }
}

/// Where our tables do not translate for them, the reference's rules for pods with egress stay.
fn kept(has_egress: HasEgress) -> Result<BTreeSet<IpAddr>, KernelError> {
    if has_egress { Ok(BTreeSet::new()) } else { takeover::pods_with_egress(&mut Netlink::open()?) }
}

/// Somebody who starts the reference again wants it: that is told, and not fought.
fn look_for_return(known: &mut Takeover) {
    // What nft cannot list now it lists a minute later.
    let Ok(signs) = takeover::signs_of_return() else { return };
    if signs != known.signs_of_return {
        if signs.is_empty() {
            info!("amazon-vpc-cni-k8s is gone again");
        } else {
            warn!(?signs, "amazon-vpc-cni-k8s runs on this node too; only one of them should");
        }
    }
    known.signs_of_return = signs;
}
