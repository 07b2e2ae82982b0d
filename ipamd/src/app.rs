//! The daemon's assembly: the only place that picks real clients, in the order they are needed.

mod limits;
mod privileges;
mod restore;
mod shutdown;
mod upkeep;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;
use datapath::wanted::{HostNetwork, HostOptions, PrimaryLink};
use ec2::{Aws, AwsOptions, Ec2, Imds, ImdsOptions, Paced, Priority};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use vpc::{Eni, EniRole, Family, InstanceLimits};

use crate::checkpoint::Checkpoint;
use crate::clock::Clock;
use crate::config::Config;
use crate::conflist::{Conflist, Egress, Installed};
use crate::durable::{Disk, RealDisk};
use crate::executor::{Executor, ExecutorOptions, eni_network};
use crate::host::{self, HostHandle};
use crate::imds::{FactReader, InstanceFacts, NetworkFacts};
use crate::metrics;
use crate::pool::{CustomNetwork, Pool, Settings};
use crate::pool_task::{PoolHandle, PoolTask, Writer};
use crate::rpc::{self, Budgets, ReplyFacts, Services};
use crate::sidecar::{self, EniIntent, Sidecar};
use crate::takeover::TakeoverHandle;
use crate::{conflist, spool};
use restore::Attached;
use upkeep::Upkeep;
use uuid::Uuid;

/// Worker threads: the daemon waits for others nearly all the time.
const WORKERS: usize = 2;

/// How long a start waits for EC2 or its credentials to come before it gives up, and the
/// container is started anew with a message that says why.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// The same where pods have addresses already: their ADDs and DELs should not wait for EC2.
const SHORT_PATIENCE: Duration = Duration::from_secs(8);

/// How long a shutdown waits for EC2 work that is under way, of the ten seconds that the
/// manifest grants the whole of it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(7);

/// How long a shutdown waits for its last answers to leave.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Whatever keeps it from serving, with the chain of causes.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    // Before any thread exists: each thread has privileges of its own.
    privileges::drop_all_but_needed()?;
    let takeover = TakeoverHandle::start(privileges::drop_net_raw).context("start a thread")?;
    privileges::drop_net_raw()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(4)
        .thread_stack_size(1024 * 1024)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let outcome = runtime.block_on(start(config, takeover));
    // Steps that outlast their grace are left to the next start, which finds their records.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn start(config: Config, takeover: TakeoverHandle) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let signals = shutdown::Signals::listen().context("listen for signals")?;
    tokio::select! {
        outcome = live(&config, takeover, &stop) => outcome,
        () = signals.second(&stop) => {
            warn!("second signal: ending at once");
            Ok(())
        }
    }
}

/// The daemon's life: assembly, service, an orderly end.
async fn live(config: &Config, takeover: TakeoverHandle, stop: &CancellationToken) -> anyhow::Result<()> {
    info!(?config, version = env!("CARGO_PKG_VERSION"), "daemon starts");
    let daemon = tokio::select! {
        daemon = Daemon::assemble(config) => daemon?,
        () = stop.cancelled() => {
            info!("told to stop before the start was complete");
            return Ok(());
        }
    };
    takeover.begin(config.host.egress);
    daemon.serve(config, takeover, stop).await
}

/// What the daemon finds around it: the machine's own, or a simulation's.
pub(crate) struct Surroundings<E> {
    pub(crate) facts: FactReader,
    pub(crate) ec2: Paced<E>,
    pub(crate) host: HostHandle,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Clock,
    /// What tells this boot of the machine from every other.
    pub(crate) boot_id: String,
    /// Names that nobody else in the account uses.
    pub(crate) new_token: fn() -> String,
    pub(crate) wishes: Wishes,
}

/// What the cluster asks of this node at the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// Where new ENIs go with custom networking.
    pub(crate) custom_network: Option<CustomNetwork>,
    /// No new pods are to run here.
    pub(crate) is_cordoned: bool,
}

/// Everything that runs, ready to serve.
pub(crate) struct Daemon<E> {
    executor: Arc<Executor<E>>,
    budgets: Budgets,
    facts: FactReader,
    instance: InstanceFacts,
    network: Arc<RwLock<NetworkFacts>>,
    host: HostHandle,
    pub(crate) pool: PoolHandle,
    pub(crate) task: JoinHandle<()>,
    disk: Arc<dyn Disk>,
    clock: Clock,
    /// ENIs that an earlier process set out to make.
    intents: BTreeMap<String, EniIntent>,
}

impl Daemon<Aws> {
    /// Picks the clients, and brings the daemon up with them.
    async fn assemble(config: &Config) -> anyhow::Result<Self> {
        let imds = Imds::new(&ImdsOptions::default())?;
        let facts = FactReader::new(imds.clone(), config.family);
        let (instance, network) = instance_facts(&facts).await?;
        info!(?instance, ?network, "instance known");
        if config.host.egress && !egress(config, &instance).is_on() {
            warn!("ENABLE_V6_EGRESS has no effect: the node's primary ENI has no IPv6 address");
        }
        let aws = Aws::new(&aws_options(config, &instance), &imds).await;
        let host =
            host::start(wanted_host(config, &instance, &network)).context("open the host's network")?;
        if let Some(directory) = config.state_file.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("make the directory {directory:?}"))?;
        }
        let surroundings = Surroundings {
            facts,
            ec2: Paced::new(aws, config.pace),
            host,
            disk: Arc::new(RealDisk),
            clock: Clock::system(),
            boot_id: sidecar::boot_id().context("read the kernel's boot id")?,
            new_token: || Uuid::new_v4().to_string(),
            // Nobody watches Kubernetes yet.
            wishes: Wishes::default(),
        };
        Self::bring_up(config, instance, network, surroundings).await
    }
}

impl<E: Ec2> Daemon<E> {
    /// Reads what there is, and brings it together.
    ///
    /// # Errors
    /// Whatever keeps the daemon from knowing what it holds.
    pub(crate) async fn bring_up(
        config: &Config,
        instance: InstanceFacts,
        network: NetworkFacts,
        surroundings: Surroundings<E>,
    ) -> anyhow::Result<Self> {
        let Surroundings { facts, ec2, host, disk, clock, boot_id, new_token, wishes } = surroundings;
        let limits =
            limits::of_instance(&instance.instance_type, &ec2.at(Priority::WaitingPod), config.ec2_access)
                .await?;
        let settings = settings(config, &instance, &limits)?;
        let network = Arc::new(RwLock::new(network));

        let path = config.state_file.with_file_name(sidecar::FILE_NAME);
        let (sidecar, remembered) =
            Sidecar::open(Arc::clone(&disk), path, &boot_id, clock.moment(), settings.cooldown);
        let sidecar = Arc::new(sidecar);
        let budgets = Budgets::of(ec2.clone());
        let executor = Arc::new(Executor::new(
            ec2,
            facts.clone(),
            instance.clone(),
            Arc::clone(&network),
            host.clone(),
            Arc::clone(&sidecar),
            executor_options(config, &wishes, &limits, clock.clone(), new_token),
        ));
        let mut checkpoint = Checkpoint::at(Arc::clone(&disk), config.state_file.clone(), config.family);
        let loaded = restore::load(&mut checkpoint);
        let attached = restore::attached(&executor, &clock, !loaded.allocations.is_empty()).await?;
        let is_served = |eni: &&Eni| eni.role == EniRole::Secondary && eni.is_managed;
        let of_family = |eni: &Eni| eni_network(eni, config.family);
        let secondary = attached.enis().iter().filter(is_served).filter_map(of_family).collect();
        let changed = host.converge(secondary).await.context("set up the node's network")?;
        info!(changed, "node network is as wanted");

        let mut pool = Pool::new(settings);
        pool.set_custom_network(wishes.custom_network);
        pool.set_cordoned(wishes.is_cordoned);
        match attached {
            Attached::Confirmed(enis) => pool.observe(enis, clock.now()),
            Attached::Hinted(enis) => pool.observe_hints(enis, clock.now()),
        }
        restore::pool(&mut pool, &mut checkpoint, loaded, &sidecar, &remembered, &host, &clock).await?;
        info!(stats = ?pool.stats(), "pool restored");
        let writer = Writer::start(checkpoint, sidecar, clock.clone()).context("start the state writer")?;
        let (task, pool) = PoolTask::new(pool, Arc::clone(&executor), writer, clock.clone());
        let task = tokio::spawn(task.run());
        host.keep_pods(pool.clone()).await.context("keep what leads to pods")?;
        spool::take_in(&disk, Path::new(proto::DEL_SPOOL), &pool).await;
        Ok(Self {
            executor,
            budgets,
            facts,
            instance,
            network,
            host,
            pool,
            task,
            disk,
            clock,
            intents: remembered.intents,
        })
    }

    /// What is looked at from time to time, for ever.
    pub(crate) fn upkeep(&self) -> impl Future<Output = ()> + Send + use<E> {
        let upkeep = Upkeep {
            facts: self.facts.clone(),
            instance: self.instance.clone(),
            network: Arc::clone(&self.network),
            host: self.host.clone(),
            pool: self.pool.clone(),
            disk: Arc::clone(&self.disk),
            clock: self.clock.clone(),
        };
        upkeep.run(Arc::clone(&self.executor), self.intents.clone())
    }

    /// Serves until `stop`, then ends in order: accepts no more, answers what was accepted,
    /// finishes EC2 work as far as the grace period goes.
    async fn serve(
        self,
        config: &Config,
        takeover: TakeoverHandle,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let upkeep = tokio::spawn(self.upkeep());
        let Self { budgets, instance, network, host, pool, task, .. } = self;
        let listener = rpc::bind(Path::new(proto::IPAMD_SOCKET))?;
        let facts_of_replies = reply_facts(config, &instance, &network);
        let services =
            Services::new(pool.clone(), host.clone(), facts_of_replies, budgets).telling_of(takeover);
        let server = tokio::spawn(rpc::serve(listener, services, stop.clone().cancelled_owned()));
        let metrics = config.metrics.map(|address| {
            let source = metrics::Source::new(pool.clone(), host.clone(), config.family)?;
            Ok::<_, anyhow::Error>(tokio::spawn(metrics::serve(address, source)))
        });
        let metrics = metrics.transpose().context("prepare the metrics")?;
        write_conflist(config, &instance)?;
        info!(socket = proto::IPAMD_SOCKET, "serving");

        tokio::select! {
            () = stop.cancelled() => {}
            ended = task => anyhow::bail!("the pool's task has ended: {ended:?}"),
        }
        info!(stats = ?pool.stats().await, "told to stop; answering what was accepted");
        upkeep.abort();
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        if tokio::time::timeout(DRAIN_PATIENCE, pool.drain()).await.is_err() {
            warn!("EC2 work is still under way; the next start finds its records");
        }
        match tokio::time::timeout(CLOSE_PATIENCE, server).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(failure)) => anyhow::bail!("the server failed: {failure}"),
            Err(_) => warn!("connections are still open"),
        }
        info!("stopped");
        Ok(())
    }
}

fn executor_options(
    config: &Config,
    wishes: &Wishes,
    limits: &InstanceLimits,
    clock: Clock,
    new_token: fn() -> String,
) -> ExecutorOptions {
    ExecutorOptions {
        cluster_name: config.cluster_name.clone(),
        additional_eni_tags: config.additional_eni_tags.clone(),
        manages_untagged_enis: config.manages_untagged_enis,
        discovers_subnets: config.discovers_subnets,
        is_custom: wishes.custom_network.is_some(),
        access: config.ec2_access,
        // Nodes of IPv6 make ENIs so seldom that their role need not be allowed to delete others'.
        cleans_leaked_enis: config.cleans_leaked_enis && config.family == Family::V4,
        family: config.family,
        card: limits.default_card,
        clock,
        new_token,
    }
}

/// Everything that instance metadata says, however long it takes to say it: without it nothing
/// can be done, and a container that restarts meanwhile would not help.
pub(crate) async fn instance_facts(facts: &FactReader) -> anyhow::Result<(InstanceFacts, NetworkFacts)> {
    let mut pause = Duration::from_millis(500);
    loop {
        let read = async {
            let instance = facts.instance().await?;
            let network = facts.network(instance.primary_mac).await?;
            Ok::<_, crate::imds::FactError>((instance, network))
        };
        match read.await {
            Ok(read) => return Ok(read),
            Err(error) if error.may_pass() => {
                warn!(%error, "waiting for instance metadata");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tells the container runtime that this node can run pods.
fn write_conflist(config: &Config, instance: &InstanceFacts) -> anyhow::Result<()> {
    let list = Conflist { egress: egress(config, instance), ..config.conflist.clone() };
    match conflist::install(config.conflist_directory.as_deref(), &list.render()?)? {
        Installed::Written => info!("plugin list written"),
        Installed::Unchanged => info!("plugin list is as it should be"),
        Installed::NoDirectory(directory) => {
            warn!(directory = %directory.display(), "plugin list not written: the directory does not exist");
        }
    }
    Ok(())
}

fn aws_options(config: &Config, instance: &InstanceFacts) -> AwsOptions {
    let release = if config.cni_version.is_empty() { env!("CARGO_PKG_VERSION") } else { &config.cni_version };
    AwsOptions {
        endpoint: config.ec2_endpoint.clone(),
        http_timeout: config.http_timeout,
        user_agent: format!("amazon-vpc-cni-k8s/{release}"),
        ..AwsOptions::new(&instance.region)
    }
}

fn settings(config: &Config, instance: &InstanceFacts, limits: &InstanceLimits) -> anyhow::Result<Settings> {
    let type_limit = u32::from(limits.enis);
    let eni_limit = config.max_enis.map_or(type_limit, |most| most.min(type_limit));
    let mode = limits::mode(config.family, config.delegates_prefixes, &instance.instance_type, limits)?;
    Ok(Settings {
        targets: config.targets,
        mode,
        instance_type: instance.instance_type.clone(),
        eni_limit,
        is_eni_limit_configured: eni_limit < type_limit,
        reserves_trunk: false,
        slots_per_eni: u32::from(limits.slots_per_eni()),
        max_pods: limits::max_pods(limits, config.max_enis, mode),
        cooldown: config.cooldown,
        shrink_delay: config.shrink_delay,
        may_provision: config.ec2_access.may_change(),
        reads_subnets: config.ec2_access.may_read(),
        grows_while_cordoned: config.grows_while_cordoned,
    })
}

fn wanted_host(config: &Config, instance: &InstanceFacts, network: &NetworkFacts) -> HostNetwork {
    HostNetwork {
        family: config.family,
        primary: PrimaryLink {
            mac: instance.primary_mac,
            address: instance.node_ip,
            address_v6: instance.node_ipv6,
        },
        vpc_cidrs: network.vpc_cidrs.clone(),
        options: HostOptions { egress: egress(config, instance).is_on(), ..config.host.clone() },
        enis: Vec::new(),
    }
}

/// What pods' way to the other family comes to on this node.
fn egress(config: &Config, instance: &InstanceFacts) -> Egress {
    Egress::of(config.family, config.host.egress, instance.node_ip, instance.node_ipv6)
}

fn reply_facts(config: &Config, instance: &InstanceFacts, network: &Arc<RwLock<NetworkFacts>>) -> ReplyFacts {
    ReplyFacts {
        family: config.family,
        instance: instance.clone(),
        network: Arc::clone(network),
        uses_external_snat: config.host.external_snat,
        exclude_snat_cidrs: config.host.exclude_snat_cidrs.clone(),
        network_policy_mode: config.network_policy_mode.clone().unwrap_or_default(),
    }
}
