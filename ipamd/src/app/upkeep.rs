//! What is looked at from time to time: metadata that may change, the kernel, late DELs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ec2::Ec2;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::durable::Disk;
use crate::executor::{EC2_SETTLES, Executor};
use crate::host::{self, HostHandle};
use crate::imds::{FactReader, InstanceFacts, NetworkFacts};
use crate::pool::KERNEL_LOOK_EVERY;
use crate::pool_task::PoolHandle;
use crate::sidecar::EniIntent;
use crate::{spool, stagger};

/// How often to look.
const EVERY: Duration = KERNEL_LOOK_EVERY;

/// How often to read from EC2 what nothing hints at: tags of subnets, and what others left behind.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// For how long what the start read of EC2 is as good as an hourly look.
const START_LASTS: Duration = Duration::from_secs(600);

/// Everything that is looked at.
pub(super) struct Upkeep {
    pub(super) facts: FactReader,
    pub(super) instance: InstanceFacts,
    pub(super) network: Arc<RwLock<NetworkFacts>>,
    pub(super) host: HostHandle,
    pub(super) pool: PoolHandle,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Clock,
}

impl Upkeep {
    /// Looks for ever. `intents` are ENIs that an earlier process set out to make.
    pub(super) async fn run<E: Ec2>(self, executor: Arc<Executor<E>>, intents: BTreeMap<String, EniIntent>) {
        let resolver = async {
            tokio::join!(executor.clear_leftovers(), executor.put_right());
            if !intents.is_empty() {
                sleep(EC2_SETTLES).await;
                executor.resolve_intents(&intents).await;
            }
            std::future::pending::<()>().await;
        };
        let sweeps = async {
            let mut soonest = START_LASTS;
            loop {
                let now = self.clock.moment().unix_secs();
                let turn = stagger::until_turn(self.instance.instance.as_str(), now, SWEEP_EVERY);
                sleep(if turn < soonest { turn + SWEEP_EVERY } else { turn }).await;
                soonest = Duration::ZERO;
                info!("hourly look at EC2");
                self.pool.look_again().await;
                executor.delete_leaked_enis().await;
            }
        };
        let looks = async {
            let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                self.look(&executor).await;
            }
        };
        tokio::select! {
            biased;
            () = resolver => {}
            () = looks => {}
            () = sweeps => {}
        }
    }

    async fn look<E: Ec2>(&self, executor: &Executor<E>) {
        spool::take_in(&self.disk, Path::new(proto::DEL_SPOOL), &self.pool).await;
        match self.host.evidence().await {
            Ok(evidence) => self.pool.kernel_seen(host::kernel_view(&evidence)).await,
            Err(error) => warn!(%error, "kernel not read"),
        }
        match self.facts.network(self.instance.primary_mac).await {
            Ok(seen) => self.take_in(seen, executor).await,
            Err(error) => warn!(%error, "instance metadata not read; going on with what it said before"),
        }
        if executor.sees_changes().await {
            self.pool.look_again().await;
        }
        executor.put_right().await;
        executor.clear_leftovers().await;
    }

    async fn take_in<E: Ec2>(&self, seen: NetworkFacts, executor: &Executor<E>) {
        let before = self.network.read().unwrap_or_else(PoisonError::into_inner).clone();
        if seen == before {
            return;
        }
        info!(?before, ?seen, "the network around the instance has changed");
        *self.network.write().unwrap_or_else(PoisonError::into_inner) = seen.clone();
        if seen.vpc_cidrs != before.vpc_cidrs
            && let Err(error) = self.host.set_vpc_cidrs(seen.vpc_cidrs).await
        {
            warn!(%error, "node network does not follow the VPC's blocks yet");
            // The host thread may never have heard of them: the next look tells it again.
            self.network.write().unwrap_or_else(PoisonError::into_inner).vpc_cidrs = before.vpc_cidrs;
        }
        if seen.security_groups != before.security_groups {
            executor.follow_security_groups().await;
        }
    }
}
