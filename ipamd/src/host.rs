//! Keeps the node's own network as wanted: one thread owns the netlink socket and takes requests.

mod egress;
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
use tokio::time::timeout;
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

/// How long a question or a small change may take, with what is done before it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long telling of the node's network may take: less than those wait who ask for it.
const HEALTH_DEADLINE: Duration = Duration::from_secs(3);

/// How long bringing the whole node in line may take: `nft` is given 20 s a call, and each of two
/// tables is read and replaced.
const CONVERGE_DEADLINE: Duration = Duration::from_secs(120);

/// The host thread, seen from everybody else. Cheap to clone.
///
/// Nobody waits for it for ever: work that takes too long is a failure, and is given up. It may be
/// done all the same, if it had been begun.
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
    /// Why the kernel does not tell of changes, so that they are noticed by the clock alone.
    pub(crate) deaf: Option<String>,
}

impl HostHealth {
    /// That of a node of which the host thread tells nothing, which is a fault by itself.
    pub(crate) fn unknown(error: HostFailure) -> Self {
        Self { fault: Some(error.0), ..Self::default() }
    }
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
        let what = "make the node's network as wanted";
        self.ask(what, CONVERGE_DEADLINE, |reply| Work::Converge { enis, reply }).await
    }

    /// Sets up an ENI once its link is there, and keeps it set up from now on.
    ///
    /// # Errors
    /// [`HostFailure`] if the link does not come in time or the kernel refuses.
    pub(crate) async fn set_up_eni(&self, eni: EniNetwork) -> Result<(), HostFailure> {
        let what = format!("set up the ENI with {}", eni.mac);
        self.ask(&what, LINK_DEADLINE + ANSWER_DEADLINE, |reply| Work::SetUpEni { eni, reply }).await
    }

    /// Removes what the node has for an ENI that has left.
    ///
    /// # Errors
    /// [`HostFailure`] if the kernel refuses.
    pub(crate) async fn forget_eni(&self, address: IpAddr, table: RouteTable) -> Result<(), HostFailure> {
        // Should it be done though it was given up, the pool has an ENI that stays set up again.
        let what = format!("remove the rule of the ENI with {address}");
        self.ask(&what, ANSWER_DEADLINE, |reply| Work::ForgetEni { address, table, reply }).await
    }

    /// Removes rules that lead to or from an address that no link has.
    ///
    /// # Errors
    /// [`HostFailure`] if the kernel refuses.
    pub(crate) async fn remove_pod_rules(&self, address: IpAddr) -> Result<(), HostFailure> {
        let what = format!("remove the rules of {address}");
        self.ask(&what, ANSWER_DEADLINE, |reply| Work::RemovePodRules { address, reply }).await
    }

    /// Takes in new blocks of the VPC.
    ///
    /// # Errors
    /// [`HostFailure`] if the node could not be brought in line.
    pub(crate) async fn set_vpc_cidrs(&self, cidrs: Vec<Ipv4Net>) -> Result<(), HostFailure> {
        let what = format!("take in the VPC's blocks {cidrs:?}");
        self.ask(&what, CONVERGE_DEADLINE, |reply| Work::VpcCidrs { cidrs, reply }).await
    }

    /// What the kernel holds that names single addresses.
    ///
    /// # Errors
    /// [`HostFailure`] if it cannot be read; then nothing may be presumed unused.
    pub(crate) async fn evidence(&self) -> Result<Evidence, HostFailure> {
        let what = "read which addresses the kernel uses";
        self.ask(what, ANSWER_DEADLINE, |reply| Work::Evidence { reply }).await
    }

    /// Keeps what leads to the pods of `pool` from now on.
    ///
    /// # Errors
    /// [`HostFailure`] if the thread has ended or takes no requests.
    pub(crate) async fn keep_pods(&self, pool: PoolHandle) -> Result<(), HostFailure> {
        let sent = async { self.work.send(Work::KeepPods(pool)).await.map_err(|_| ended()) };
        in_time("keep what leads to pods", ANSWER_DEADLINE, sent).await
    }

    /// How the node's network fares.
    ///
    /// # Errors
    /// [`HostFailure`] if the thread has ended.
    pub(crate) async fn health(&self) -> Result<HostHealth, HostFailure> {
        self.ask("tell of the node's network", HEALTH_DEADLINE, |reply| Work::Health { reply }).await
    }

    async fn ask<T>(
        &self,
        what: &str,
        deadline: Duration,
        work: impl FnOnce(oneshot::Sender<Result<T, HostFailure>>) -> Work,
    ) -> Result<T, HostFailure> {
        let answered = async {
            let (reply, answer) = oneshot::channel();
            self.work.send(work(reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        in_time(what, deadline, answered).await
    }
}

/// What `work` gives, unless that takes longer than `deadline`.
async fn in_time<T>(
    what: &str,
    deadline: Duration,
    work: impl Future<Output = Result<T, HostFailure>>,
) -> Result<T, HostFailure> {
    let given_up =
        || HostFailure(format!("{what}: the host thread has not answered for {} s", deadline.as_secs()));
    timeout(deadline, work).await.unwrap_or_else(|_| Err(given_up()))
}

fn ended() -> HostFailure {
    HostFailure("the host thread has ended; this is a fault of the daemon".to_owned())
}

/// What the pool needs to know of the kernel. Addresses of the node's own ENIs are not among
/// them.
pub(crate) fn kernel_view(evidence: &Evidence) -> KernelView {
    let elsewhere = evidence.routes.iter().filter(|(_, link)| vpc::split_host_veth(link).is_none());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_host_thread_that_is_stuck_makes_each_request_fail_in_its_time() {
        let (work, mut stuck) = mpsc::channel(1);
        let host = HostHandle::simulated(work);

        let asked = host.evidence().await.unwrap_err();

        let expected = "read which addresses the kernel uses: the host thread has not answered for 10 s";
        assert_eq!(asked.to_string(), expected);
        assert!(matches!(stuck.try_recv(), Ok(Work::Evidence { reply }) if reply.is_closed()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_place_in_the_queue_fails_too_and_is_never_done() {
        let (work, mut stuck) = mpsc::channel(1);
        let host = HostHandle::simulated(work);
        let first = host.health().await.unwrap_err();

        let address = "10.0.1.7".parse().unwrap();
        let second = host.remove_pod_rules(address).await.unwrap_err();

        assert!(first.to_string().starts_with("tell of the node's network: "), "{first}");
        assert!(second.to_string().starts_with("remove the rules of 10.0.1.7: "), "{second}");
        assert!(matches!(stuck.try_recv(), Ok(Work::Health { .. })));
        assert!(stuck.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_eni_has_longer_than_its_link_may_take() {
        let (work, mut inbox) = mpsc::channel(1);
        let host = HostHandle::simulated(work);
        tokio::spawn(async move {
            let Some(Work::SetUpEni { reply, .. }) = inbox.recv().await else { return };
            tokio::time::sleep(LINK_DEADLINE).await;
            drop(reply.send(Err(HostFailure::simulated("no link has this address"))));
        });

        let eni = EniNetwork {
            mac: vpc::Mac::new([2, 0, 0, 0, 0, 7]),
            table: RouteTable(2),
            address: "10.0.1.5".parse().unwrap(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            is_trunk: false,
        };
        assert_eq!(host.set_up_eni(eni).await.unwrap_err().to_string(), "no link has this address");
    }
}
