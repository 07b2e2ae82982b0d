//! The host thread: the only one that changes the node's own network.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use datapath::evidence::{self, Evidence};
use datapath::host::{self, Change, EniSetupError, HostError};
use datapath::kernel::{KernelError, Netlink};
use datapath::monitor::Monitor;
use datapath::wanted::{EniNetwork, HostNetwork};
use ipnet::Ipv4Net;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};
use vpc::{Mac, RouteTable};

use super::verify::Verifier;
use super::watch::{self, Signals};
use super::{HostFailure, HostHandle, HostHealth, LINK_DEADLINE, LINK_LOOK_EVERY};
use crate::chain::chain;
use crate::pool_task::PoolHandle;

/// Requests that may wait for the thread: a few per ENI, and an instance has some dozen.
const QUEUE: usize = 64;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, HostFailure>>;

/// What the host thread is asked to do.
#[derive(Debug)]
pub(crate) enum Work {
    Converge {
        enis: Vec<EniNetwork>,
        reply: Reply<usize>,
    },
    SetUpEni {
        eni: EniNetwork,
        reply: Reply<()>,
    },
    ForgetEni {
        address: IpAddr,
        table: RouteTable,
        reply: Reply<()>,
    },
    RemovePodRules {
        address: IpAddr,
        reply: Reply<()>,
    },
    VpcCidrs {
        cidrs: Vec<Ipv4Net>,
        reply: Reply<()>,
    },
    Evidence {
        reply: Reply<Evidence>,
    },
    /// Keep what leads to the pods of this pool, too.
    KeepPods(PoolHandle),
    Health {
        reply: Reply<HostHealth>,
    },
}

impl Work {
    /// Whether nobody waits for it any more and it may no longer be right: an address without a
    /// pod may have one by now. Who asked has been told that it was not done, and asks again.
    ///
    /// What the node should have from now on is taken in however late: the newest word counts.
    fn is_given_up(&self) -> bool {
        match self {
            Self::SetUpEni { reply, .. }
            | Self::ForgetEni { reply, .. }
            | Self::RemovePodRules { reply, .. } => reply.is_closed(),
            Self::Evidence { reply } => reply.is_closed(),
            Self::Health { reply } => reply.is_closed(),
            Self::Converge { .. } | Self::VpcCidrs { .. } | Self::KeepPods(_) => false,
        }
    }
}

/// An ENI whose link has not come yet.
struct Expected {
    eni: EniNetwork,
    deadline: Instant,
    reply: Reply<()>,
}

struct Keeper {
    netlink: Netlink,
    wanted: HostNetwork,
    expected: BTreeMap<Mac, Expected>,
    verifier: Verifier,
    signals: Arc<Signals>,
}

/// Starts the host thread in the calling thread's network namespace.
///
/// Nothing is changed before the first [`HostHandle::converge`].
///
/// # Errors
/// [`HostFailure`] if the kernel gives no socket, or the system no thread.
pub(crate) fn start(wanted: HostNetwork) -> Result<HostHandle, HostFailure> {
    let netlink = Netlink::open().map_err(HostFailure::of)?;
    let signals = watch::start(Monitor::open().map_err(HostFailure::of)?).map_err(thread_failure)?;
    let (sender, inbox) = mpsc::channel(QUEUE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(thread_failure)?;
    let verifier = Verifier::new(Instant::now());
    let keeper = Keeper { netlink, wanted, expected: BTreeMap::new(), verifier, signals };
    thread::Builder::new()
        .name("host".to_owned())
        .stack_size(512 * 1024)
        .spawn(move || runtime.block_on(keeper.run(inbox)))
        .map_err(thread_failure)?;
    Ok(HostHandle { work: sender })
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Work>) {
        let signals = Arc::clone(&self.signals);
        loop {
            let look_at = Instant::now() + LINK_LOOK_EVERY;
            let due = self.verifier.due();
            let due = if self.expected.is_empty() { due } else { due.min(look_at) };
            tokio::select! {
                work = inbox.recv() => match work {
                    Some(work) => self.handle(work),
                    None => return,
                },
                changed = signals.changed() => self.verifier.suspect(changed, Instant::now()),
                () = tokio::time::sleep_until(due.into()) => {}
            }
            self.look_for_links();
            if Instant::now() >= self.verifier.due() {
                self.verifier.verify(&mut self.netlink, &self.wanted).await;
            }
        }
    }

    fn handle(&mut self, work: Work) {
        if work.is_given_up() {
            return;
        }
        // Whoever has stopped waiting for an answer meanwhile does not need it.
        match work {
            Work::Converge { enis, reply } => {
                self.wanted.enis = enis;
                let done = match self.converge() {
                    Err(HostError::Eni(error)) => {
                        warn!(error = chain(&error), "ENI not set up; it will be tried again");
                        self.verifier.begin();
                        Ok(0)
                    }
                    done => done.map_err(HostFailure::of),
                };
                let _ = reply.send(done);
            }
            Work::SetUpEni { eni, reply } => {
                let deadline = Instant::now() + LINK_DEADLINE;
                self.expected.insert(eni.mac, Expected { eni, deadline, reply });
            }
            Work::ForgetEni { address, table, reply } => {
                self.wanted.enis.retain(|eni| eni.address != address || eni.table != table);
                let done = host::forget_eni(&mut self.netlink, address, table);
                let _ = reply.send(done.map(|changes| report(&changes)).map_err(HostFailure::of));
            }
            Work::RemovePodRules { address, reply } => {
                let done = host::remove_pod_rules(&mut self.netlink, address);
                let _ = reply.send(done.map(|changes| report(&changes)).map_err(HostFailure::of));
            }
            Work::VpcCidrs { cidrs, reply } => {
                self.wanted.vpc_cidrs = cidrs;
                let _ = reply.send(self.converge().map(drop).map_err(HostFailure::of));
            }
            Work::Evidence { reply } => {
                let _ = reply.send(evidence::read(&mut self.netlink).map_err(HostFailure::of));
            }
            Work::KeepPods(pool) => self.verifier.keep_pods(pool, Instant::now()),
            Work::Health { reply } => {
                let health = self.verifier.health(Instant::now());
                let _ = reply.send(Ok(HostHealth { deaf: self.signals.deaf(), ..health }));
            }
        }
    }

    fn converge(&mut self) -> Result<usize, HostError> {
        let changes = host::observe_and_converge(&mut self.netlink, &self.wanted)?;
        report(&changes);
        self.verifier.begin();
        self.verifier.look_for_warnings(&mut self.netlink, &self.wanted);
        Ok(changes.len())
    }

    /// Sets up every expected ENI whose link is there by now.
    fn look_for_links(&mut self) {
        let expected = std::mem::take(&mut self.expected);
        for (mac, Expected { eni, deadline, reply }) in expected {
            match host::set_up_eni(&mut self.netlink, &eni, &self.wanted.options) {
                Ok(changes) => {
                    report(&changes);
                    self.wanted.enis.retain(|known| known.mac != mac);
                    self.wanted.enis.push(eni);
                    let _ = reply.send(Ok(()));
                }
                Err(EniSetupError::LinkMissing(_)) if Instant::now() < deadline && !reply.is_closed() => {
                    self.expected.insert(mac, Expected { eni, deadline, reply });
                }
                Err(error) => {
                    let _ = reply.send(Err(HostFailure::of(error)));
                }
            }
        }
    }
}

fn report(changes: &[Change]) {
    for change in changes {
        info!(%change, "node network changed");
    }
}

fn thread_failure(error: impl fmt::Display) -> HostFailure {
    HostFailure(format!("start the host thread: {error}"))
}

impl From<KernelError> for HostFailure {
    fn from(error: KernelError) -> Self {
        HostFailure::of(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_not_done_late_unless_it_says_what_should_be() {
        let address = "10.0.1.7".parse().unwrap();
        let (reply, answer) = oneshot::channel();
        let rules = Work::RemovePodRules { address, reply };
        let (reply, other_answer) = oneshot::channel();
        let blocks = Work::VpcCidrs { cidrs: Vec::new(), reply };
        assert!(!rules.is_given_up());

        drop((answer, other_answer));

        assert!(rules.is_given_up());
        assert!(!blocks.is_given_up());
    }
}
