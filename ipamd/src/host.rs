//! Keeps the node's own network as wanted: one thread owns the netlink socket and takes requests.

#[cfg(test)]
pub(crate) mod fake;
mod keeper;
mod pods;
mod repair;
mod verify;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use datapath::evidence::Evidence;
use datapath::host::{ChangeKind, HostWarning};
use datapath::wanted::EniNetwork;
use ipnet::Ipv4Net;
use tokio::sync::{mpsc, oneshot};
use vpc::RouteTable;

use crate::chain::chain;
use crate::pool::KernelView;
use crate::pool_task::PoolHandle;
#[cfg(test)]
pub(crate) use keeper::Work;
#[cfg(not(test))]
use keeper::Work;
pub(crate) use keeper::start;
pub(crate) use repair::{Contested, Count};

/// How long to wait for a link after EC2 attached its ENI. The kernel shows it within a few
/// seconds as a rule; under load it has been seen to take more than ten.
const LINK_DEADLINE: Duration = Duration::from_secs(30);

/// How often to look for a link that is waited for, should no event tell of it.
const LINK_LOOK_EVERY: Duration = Duration::from_secs(1);

/// The host thread, seen from everybody else. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct HostHandle {
    work: mpsc::Sender<Work>,
}

/// How the node's network fares.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostHealth {
    /// What is not as wanted and could not be mended.
    pub(crate) fault: Option<String>,
    /// What was put back since the start, by kind.
    pub(crate) repairs: BTreeMap<ChangeKind, Count>,
    /// What somebody else changes again and again.
    pub(crate) contested: Vec<Contested>,
    /// What an operator should know of; none of it is changed by us.
    pub(crate) warnings: Vec<HostWarning>,
}

/// The host's network could not be read or changed; the text is the whole chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HostFailure(String);

impl HostFailure {
    /// The whole chain of `error`.
    fn of(error: impl std::error::Error) -> Self {
        Self(chain(&error))
    }
}

#[cfg(test)]
impl HostFailure {
    /// A failure of a simulated host.
    pub(crate) fn simulated(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl HostHandle {
    /// A handle whose requests are somebody else's to serve.
    #[cfg(test)]
    pub(crate) fn simulated(work: mpsc::Sender<Work>) -> Self {
        Self { work }
    }

    /// Makes the node's network as wanted, with these secondary ENIs, and keeps it so from now
    /// on; returns how much was changed. An ENI without a link is left for
    /// [`HostHandle::set_up_eni`].
    ///
    /// # Errors
    /// [`HostFailure`] with the first thing that failed.
    pub(crate) async fn converge(&self, enis: Vec<EniNetwork>) -> Result<usize, HostFailure> {
        self.ask(|reply| Work::Converge { enis, reply }).await
    }

    /// Sets up an ENI once its link is there, and keeps it set up from now on.
    ///
    /// # Errors
    /// [`HostFailure`] if the link does not come in time or the kernel refuses.
    pub(crate) async fn set_up_eni(&self, eni: EniNetwork) -> Result<(), HostFailure> {
        self.ask(|reply| Work::SetUpEni { eni, reply }).await
    }

    /// Removes what the node has for an ENI that has left.
    ///
    /// # Errors
    /// [`HostFailure`] if the kernel refuses.
    pub(crate) async fn forget_eni(&self, address: IpAddr, table: RouteTable) -> Result<(), HostFailure> {
        self.ask(|reply| Work::ForgetEni { address, table, reply }).await
    }

    /// Removes rules that lead to or from an address that no link has.
    ///
    /// # Errors
    /// [`HostFailure`] if the kernel refuses.
    pub(crate) async fn remove_pod_rules(&self, address: IpAddr) -> Result<(), HostFailure> {
        self.ask(|reply| Work::RemovePodRules { address, reply }).await
    }

    /// Takes in new blocks of the VPC.
    ///
    /// # Errors
    /// [`HostFailure`] if the node could not be brought in line.
    pub(crate) async fn set_vpc_cidrs(&self, cidrs: Vec<Ipv4Net>) -> Result<(), HostFailure> {
        self.ask(|reply| Work::VpcCidrs { cidrs, reply }).await
    }

    /// What the kernel holds that names single addresses.
    ///
    /// # Errors
    /// [`HostFailure`] if it cannot be read; then nothing may be presumed unused.
    pub(crate) async fn evidence(&self) -> Result<Evidence, HostFailure> {
        self.ask(|reply| Work::Evidence { reply }).await
    }

    /// Keeps what leads to the pods of `pool` from now on.
    pub(crate) async fn keep_pods(&self, pool: PoolHandle) {
        // A thread that has ended is told of by the next request that wants an answer.
        let _ = self.work.send(Work::KeepPods(pool)).await;
    }

    /// How the node's network fares.
    ///
    /// # Errors
    /// [`HostFailure`] if the thread has ended.
    pub(crate) async fn health(&self) -> Result<HostHealth, HostFailure> {
        self.ask(|reply| Work::Health { reply }).await
    }

    async fn ask<T>(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<T, HostFailure>>) -> Work,
    ) -> Result<T, HostFailure> {
        let (reply, answer) = oneshot::channel();
        let ended = || HostFailure("the host thread has ended; this is a fault of the daemon".to_owned());
        self.work.send(work(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// What the pool needs to know of the kernel. Addresses of the node's own ENIs are not among
/// them.
pub(crate) fn kernel_view(evidence: &Evidence) -> KernelView {
    let elsewhere = evidence.routes.iter().filter(|(_, link)| !vpc::is_host_veth(link));
    KernelView {
        routed: evidence.routes.keys().copied().collect(),
        routed_elsewhere: elsewhere.map(|(address, _)| *address).collect(),
        ruled: evidence.rules.keys().copied().collect(),
        links: evidence.links.clone(),
    }
}

/// Those addresses that the kernel leads to or from and that `are_asked_for`.
pub(crate) fn in_use(evidence: &Evidence, are_asked_for: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
    let used: BTreeSet<_> = evidence.routes.keys().chain(evidence.rules.keys()).copied().collect();
    used.into_iter().filter(|address| are_asked_for(*address)).collect()
}
