//! One machine: its disk, its kernel, and the daemon's processes one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use ec2::{PaceOptions, Paced};
use proto::spool::SpooledDel;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::aws::SimEc2;
use super::chance::Chance;
use super::disk::SimDisk;
use super::imds::SimImds;
use super::kernel::{Kernel, SimHost};
use super::life::Life;
use super::scenario::{PREFIXES, Scenario};
use super::violation::Violation;
use super::world::World;
use crate::app::{Daemon, Surroundings, Wishes, instance_facts};
use crate::clock::Clock;
use crate::config::Config;
use crate::imds::FactReader;
use crate::pool::{Allocation, CustomNetwork};
use crate::pool_task::{Collected, Collection, PoolHandle};

/// When the world begins, by the wall clock.
const EPOCH_SECS: u64 = 1_795_000_000;

/// As a shutdown waits for EC2 work.
const DRAIN_PATIENCE: Duration = Duration::from_secs(7);

/// The daemon's socket, while somebody listens there.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) pool: PoolHandle,
    pub(super) life: Arc<Life>,
}

/// The process that runs now.
struct Process {
    life: Arc<Life>,
    stop: CancellationToken,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
}

/// One machine.
pub(super) struct Node {
    pub(super) world: Arc<World>,
    pub(super) index: usize,
    pub(super) instance: String,
    pub(super) kernel: Kernel,
    pub(super) disk: SimDisk,
    config: Mutex<Config>,
    vars: Mutex<BTreeMap<&'static str, String>>,
    wall_offset_secs: Arc<AtomicI64>,
    /// The number of this boot.
    boots: AtomicU64,
    /// Rings at a reboot. A watch would wake its waiters in an order of its own.
    rebooted: Notify,
    socket: Mutex<Option<Connection>>,
    process: Mutex<Option<Process>>,
    keeps_run: bool,
    chance: Mutex<Chance>,
    /// Damage to do before the next process starts.
    pub(super) damage: Mutex<Option<bool>>,
    /// The sandboxes that the runtime knows.
    pub(super) sandboxes: Mutex<BTreeSet<String>>,
    is_cordoned: AtomicBool,
    is_custom: bool,
    /// For how long the machine is off before the next process starts.
    off: Mutex<Duration>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn how(ended: &Option<anyhow::Result<()>>) -> String {
    match ended {
        None => "killed".to_owned(),
        Some(Ok(())) => "as asked".to_owned(),
        Some(Err(error)) => format!("{error:#}"),
    }
}

fn configured(vars: &BTreeMap<&str, String>) -> Config {
    Config::from_vars(|name| vars.get(name).cloned()).expect("usable settings")
}

impl Node {
    pub(super) fn new(world: &Arc<World>, index: usize, instance: &str, scenario: &Scenario) -> Arc<Self> {
        let vars: BTreeMap<_, _> = scenario.vars.clone();
        let config = configured(&vars);
        Arc::new(Self {
            world: Arc::clone(world),
            index,
            instance: instance.to_owned(),
            kernel: Kernel::default(),
            disk: SimDisk::default(),
            config: Mutex::new(config),
            vars: Mutex::new(vars),
            wall_offset_secs: Arc::new(AtomicI64::new(0)),
            boots: AtomicU64::new(1),
            rebooted: Notify::new(),
            socket: Mutex::new(None),
            process: Mutex::new(None),
            keeps_run: scenario.keeps_run,
            chance: Mutex::new(Chance::new(scenario.seed, 100 + index as u64)),
            damage: Mutex::new(None),
            sandboxes: Mutex::default(),
            is_cordoned: AtomicBool::new(false),
            is_custom: scenario.is_custom,
            off: Mutex::new(Duration::ZERO),
        })
    }

    /// The daemon, if it listens.
    pub(super) fn connect(&self) -> Option<Connection> {
        lock(&self.socket).clone().filter(|connection| !connection.life.is_over())
    }

    pub(super) fn boot(&self) -> u64 {
        self.boots.load(Ordering::Relaxed)
    }

    /// Returns when the machine has been switched off since `boot`.
    pub(super) async fn rebooted_since(&self, boot: u64) {
        let rebooted = self.rebooted.notified();
        tokio::pin!(rebooted);
        rebooted.as_mut().enable();
        if self.boot() == boot {
            rebooted.await;
        }
    }

    pub(super) fn clock(&self) -> Clock {
        let (world, offset) = (Arc::clone(&self.world), Arc::clone(&self.wall_offset_secs));
        Clock::with_wall(move || {
            let secs = EPOCH_SECS.saturating_add_signed(offset.load(Ordering::Relaxed));
            UNIX_EPOCH + Duration::from_secs(secs) + world.now()
        })
    }

    pub(super) fn jump(&self, secs: i64) {
        self.wall_offset_secs.fetch_add(secs, Ordering::Relaxed);
    }

    /// Runs the daemon, one process after the other, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let mut failures = 0_u32;
        let mut is_forgetful = false;
        loop {
            let off = std::mem::take(&mut *lock(&self.off));
            sleep(off).await;
            let life = Arc::new(Life::new(None));
            let process =
                Process { life: Arc::clone(&life), stop: CancellationToken::new(), tasks: Arc::default() };
            let (stop, tasks) = (process.stop.clone(), Arc::clone(&process.tasks));
            *lock(&self.process) = Some(process);
            self.world.note(|| format!("node {} starts its daemon", self.index));
            let ended = tokio::select! {
                biased;
                () = life.over() => None,
                ended = self.live(&life, &stop, &tasks, &mut is_forgetful) => Some(ended),
            };
            life.end();
            *lock(&self.socket) = None;
            for task in lock(&tasks).drain(..) {
                task.abort();
            }
            self.world.note(|| format!("node {} daemon ended: {}", self.index, how(&ended)));
            match ended {
                Some(Err(error)) => {
                    failures += 1;
                    let mut oracle = self.world.oracle();
                    if !oracle.is_troubled(self.index) {
                        let error = format!("{error:#}");
                        oracle.violate(Violation::Down { node: self.index, error });
                    }
                }
                _ => failures = 0,
            }
            // As a kubelet does: soon at first, then with growing pauses.
            let pause = lock(&self.chance).millis(100, 3000) + Duration::from_secs(5) * failures.min(12);
            sleep(pause).await;
            if let Some(is_sidecar) = lock(&self.damage).take() {
                let state_file = lock(&self.config).state_file.clone();
                let path = if is_sidecar {
                    state_file.with_file_name(crate::sidecar::FILE_NAME)
                } else {
                    state_file
                };
                let is_done = self.disk.damage(&path, &mut lock(&self.chance));
                is_forgetful = true;
                if !is_sidecar {
                    let mut oracle = self.world.oracle();
                    oracle.loses_books(self.index);
                }
                self.world.note(|| format!("node {} {path:?} damaged: {is_done}", self.index));
            }
        }
    }

    async fn live(
        &self,
        life: &Arc<Life>,
        stop: &CancellationToken,
        tasks: &Mutex<Vec<AbortHandle>>,
        is_forgetful: &mut bool,
    ) -> anyhow::Result<()> {
        let stream = lock(&self.chance).next();
        let config = lock(&self.config).clone();
        let reach = |world: &Arc<World>| (Arc::clone(world), self.instance.clone(), Arc::clone(life));
        let (world, instance, of) = reach(&self.world);
        let facts = FactReader::new(SimImds { world, instance, life: of }, vpc::Family::V4);
        let (facts_of_instance, network) = instance_facts(&facts).await?;
        let (world, instance, of) = reach(&self.world);
        let kernel = self.kernel.clone();
        let ec2 = Paced::new(SimEc2 { world, instance, life: of, kernel }, PaceOptions::default());
        let (world, instance, of) = reach(&self.world);
        let host = SimHost {
            world,
            node: self.index,
            instance,
            kernel: self.kernel.clone(),
            life: of,
            chance: Chance::new(stream, 1),
        };
        let surroundings = Surroundings {
            facts,
            ec2,
            host: host.start(),
            disk: self.disk.of_process(Arc::clone(life), Chance::new(stream, 2)),
            clock: self.clock(),
            boot_id: format!("boot-{}", self.boot()),
            new_token: || format!("{:032x}", fastrand::u128(..)),
            wishes: self.wishes(),
        };
        let daemon = Daemon::bring_up(&config, facts_of_instance, network, surroundings).await?;
        let upkeep = tokio::spawn(daemon.upkeep());
        lock(tasks).extend([daemon.task.abort_handle(), upkeep.abort_handle()]);
        let pool = daemon.pool.clone();
        *lock(&self.socket) = Some(Connection { pool: pool.clone(), life: Arc::clone(life) });
        // It may have been cordoned since the daemon asked.
        let is_cordoned = self.is_cordoned();
        pool.look(move |pool| pool.set_cordoned(is_cordoned)).await;
        if std::mem::take(is_forgetful) {
            self.world.oracle().forgets_rests(self.index);
        }
        self.world.note(|| format!("node {} serves", self.index));
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            ended = daemon.task => {
                if let Err(error) = &ended && error.is_panic() {
                    let message = format!("the pool's task on node {}: {error}", self.index);
                    self.world.oracle().violate(Violation::Panicked { message });
                }
                ended.context("the pool's task has ended")?;
            }
        }
        *lock(&self.socket) = None;
        upkeep.abort();
        let _ = timeout(DRAIN_PATIENCE, pool.drain()).await;
        Ok(())
    }

    /// What Kubernetes says of the node.
    fn wishes(&self) -> Wishes {
        let subnet = self.world.oracle().custom_subnet.clone().filter(|_| self.is_custom);
        let custom_network = subnet.map(|subnet| CustomNetwork {
            subnet: subnet.parse().expect("a subnet's id"),
            security_groups: Vec::new(),
        });
        Wishes { custom_network, is_cordoned: self.is_cordoned() }
    }

    pub(super) fn is_cordoned(&self) -> bool {
        self.is_cordoned.load(Ordering::Relaxed)
    }

    /// Has the daemon hear that the node is cordoned, or no longer.
    pub(super) async fn cordon(&self, is_on: bool) {
        self.is_cordoned.store(is_on, Ordering::Relaxed);
        if let Some(connection) = self.connect() {
            connection.pool.look(move |pool| pool.set_cordoned(is_on)).await;
        }
    }

    /// The runtime's GC: everything but its sandboxes may go. Says whether the daemon answered.
    pub(super) async fn collect(&self) -> bool {
        let Some(connection) = self.connect() else { return false };
        let sandboxes = lock(&self.sandboxes).clone();
        let interface = super::pod::INTERFACE;
        let collection = Collection {
            network: super::pod::NETWORK.to_owned(),
            valid: sandboxes.into_iter().map(|container| (container, interface.to_owned())).collect(),
            kernel: crate::host::kernel_view(&self.kernel.evidence()),
            asked_unix_ns: self.clock().moment().unix_ns(),
        };
        let collected = tokio::select! {
            biased;
            () = connection.life.over() => return false,
            collected = connection.pool.collect(collection) => collected,
        };
        let Ok(collected) = collected else { return false };
        for Collected { released, is_quarantined } in collected {
            let Allocation { key, pod, address, .. } = released.allocation;
            self.world.note(|| format!("node {} collects {key} {address} {is_quarantined}", self.index));
            if !is_quarantined {
                self.kernel.remove_pod(address, &vpc::host_veth("eni", &pod, 0), key.container_id());
            }
        }
        true
    }

    pub(super) fn kill(&self, after: Option<u32>) {
        if let Some(process) = &*lock(&self.process) {
            match after {
                Some(operations) => process.life.ends_after(operations),
                None => process.life.end(),
            }
        }
    }

    /// Calls off a death that was to come.
    pub(super) fn spare(&self) {
        if let Some(process) = &*lock(&self.process) {
            process.life.spare();
        }
    }

    /// Has the next process delegate prefixes if this one does not, and asks this one to end.
    pub(super) fn switch(&self) {
        let mut vars = lock(&self.vars);
        if vars.remove(PREFIXES).is_none() {
            vars.insert(PREFIXES, "true".to_owned());
        }
        *lock(&self.config) = configured(&vars);
        drop(vars);
        self.stop();
    }

    pub(super) fn delegates_prefixes(&self) -> bool {
        lock(&self.vars).contains_key(PREFIXES)
    }

    pub(super) fn stop(&self) {
        if let Some(process) = &*lock(&self.process) {
            process.stop.cancel();
        }
    }

    /// Switches the machine off and on: every pod ends, and so do file systems in memory.
    pub(super) fn reboot(&self) {
        let mut chance = lock(&self.chance);
        *lock(&self.off) = chance.secs(15, 60);
        self.kill(None);
        if self.keeps_run {
            self.disk.crash(&mut chance);
        } else {
            self.disk.clear();
        }
        drop(chance);
        self.kernel.clear();
        lock(&self.sandboxes).clear();
        let mut oracle = self.world.oracle();
        oracle.rebooted(self.index);
        drop(oracle);
        self.boots.fetch_add(1, Ordering::Relaxed);
        self.rebooted.notify_waiters();
    }

    /// Leaves a DEL for the daemon, as a plugin does that does not reach it.
    pub(super) fn spool(&self, container: &str, address: Option<IpAddr>) {
        let del = SpooledDel {
            network: super::pod::NETWORK.to_owned(),
            container_id: container.to_owned(),
            interface: super::pod::INTERFACE.to_owned(),
            pod_name: String::new(),
            pod_namespace: String::new(),
            addresses: address.into_iter().collect(),
            unix_time_ns: u64::try_from(self.clock().moment().unix_ns()).unwrap_or(0),
        };
        let process = u32::try_from(lock(&self.chance).between(1, 4_000_000)).unwrap_or(1);
        let path = Path::new(proto::DEL_SPOOL).join(del.file_name(process));
        self.disk.put(&path, serde_json::to_vec(&del).expect("a spool entry"));
    }
}
