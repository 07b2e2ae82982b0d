//! The task against a disk that waits and fails, and steps that end when the test says so.

mod report;
mod second_file;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc as blocking;

use vpc::{Eni, EniKind, EniRole, EniSlot};

use super::*;
use crate::checkpoint::StateFile;
use crate::clock::Moment;
use crate::durable::{self, WriteError};
use crate::pool::{
    Allocation, Assignment, Block, BlockMode, KernelView, Released, Settings, Stats, WarmTargets,
};
use crate::sidecar::Sidecar;
use vpc::PodName;

/// A disk that begins a write, says so, and waits to be told how it ends.
struct Disk {
    begun: mpsc::UnboundedSender<Vec<IpAddr>>,
    ends: blocking::Receiver<bool>,
}

impl StateFile for Disk {
    fn write(&mut self, allocations: &[Allocation]) -> Result<(), WriteError> {
        let addresses = allocations.iter().map(|allocation| allocation.address).collect();
        self.begun.send(addresses).unwrap();
        if self.ends.recv().unwrap_or(true) { Ok(()) } else { Err(no_space()) }
    }
}

fn no_space() -> WriteError {
    durable::replace(&durable::RealDisk, Path::new("/proc/no/such/place"), b"").unwrap_err()
}

type Begun = (Step, oneshot::Sender<Outcome>);

/// Steps that the test ends.
struct Runner {
    begun: mpsc::UnboundedSender<Begun>,
    stale: Mutex<Vec<IpAddr>>,
}

impl StepRunner for Runner {
    async fn run(&self, step: Step, _: Urgency) -> Outcome {
        let (end, ended) = oneshot::channel();
        self.begun.send((step, end)).unwrap();
        ended.await.unwrap()
    }

    fn remove_stale_rules(&self, address: IpAddr) {
        self.stale.lock().unwrap().push(address);
    }
}

struct World {
    pool: PoolHandle,
    writes: mpsc::UnboundedReceiver<Vec<IpAddr>>,
    write_ends: blocking::Sender<bool>,
    steps: mpsc::UnboundedReceiver<Begun>,
    runner: Arc<Runner>,
    directory: tempfile::TempDir,
}

impl World {
    /// A node whose primary ENI has `ips` addresses of the nine that it can hold.
    fn new(ips: u8, may_provision: bool) -> Self {
        let settings = Settings {
            targets: WarmTargets { warm_eni: 0, warm_ip: 0, minimum_ip: 0, warm_prefix: 1 },
            mode: BlockMode::SecondaryIps,
            instance_type: "m5.large".to_owned(),
            eni_limit: 1,
            is_eni_limit_configured: false,
            reserves_trunk: false,
            slots_per_eni: 9,
            max_pods: 29,
            cooldown: Duration::from_secs(30),
            shrink_delay: Duration::from_secs(180),
            may_provision,
            reads_subnets: false,
            grows_while_cordoned: false,
        };
        let mut pool = Pool::new(settings);
        pool.observe(vec![primary(ips)], Instant::now());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vpc-cni.json");
        let (sidecar, _) =
            Sidecar::open(Arc::new(durable::RealDisk), path, "boot", Moment::now(), Duration::from_secs(30));
        let (begun, writes) = mpsc::unbounded_channel();
        let (write_ends, ends) = blocking::channel();
        let writer = Writer::start(Disk { begun, ends }, Arc::new(sidecar), Clock::system()).unwrap();
        let (begun, steps) = mpsc::unbounded_channel();
        let runner = Arc::new(Runner { begun, stale: Mutex::default() });
        let (task, pool) = PoolTask::new(pool, Arc::clone(&runner), writer, Clock::system());
        tokio::spawn(task.run());
        Self { pool, writes, write_ends, steps, runner, directory }
    }

    fn add(&self, pod: &str) -> tokio::task::JoinHandle<Result<Assignment, AddError>> {
        let (pool, key) = (self.pool.clone(), key(pod));
        let name = PodName::new("default", pod);
        let latest = Instant::now() + Duration::from_secs(20);
        tokio::spawn(async move { pool.add(key, name, Patience { deadline: latest, latest }).await })
    }

    fn del(&self, pod: &str) -> tokio::task::JoinHandle<Result<Released, DelError>> {
        let (pool, key) = (self.pool.clone(), key(pod));
        tokio::spawn(async move { pool.del(key).await })
    }

    async fn write_begins(&mut self) -> Vec<IpAddr> {
        self.writes.recv().await.unwrap()
    }

    fn end_write(&self, is_durable: bool) {
        self.write_ends.send(is_durable).unwrap();
    }

    /// Adds a pod whose write succeeds.
    async fn added(&mut self, pod: &str) -> Assignment {
        let add = self.add(pod);
        self.write_begins().await;
        self.end_write(true);
        add.await.unwrap().unwrap()
    }

    /// Returns when the pool has taken in what was sent before: the first question lets the
    /// senders run, the second is answered after their events.
    async fn all_taken_in(&self) {
        self.pool.stats().await.unwrap();
        self.pool.stats().await.unwrap();
    }

    async fn until(&self, holds: impl Fn(&Stats) -> bool) {
        while !holds(&self.pool.stats().await.unwrap()) {
            tokio::task::yield_now().await;
        }
    }
}

fn primary(ips: u8) -> Eni {
    Eni {
        id: "eni-1".parse().unwrap(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        slot: EniSlot::PRIMARY,
        role: EniRole::Primary,
        kind: EniKind::Interface,
        is_managed: true,
        subnet: "subnet-1".parse().unwrap(),
        subnet_cidr: "10.0.1.0/24".parse().unwrap(),
        primary_ip: Ipv4Addr::new(10, 0, 1, 10),
        ipv6: None,
        secondary_ips: (0..ips).map(|number| Ipv4Addr::new(10, 0, 1, 100 + number)).collect(),
        prefixes: Vec::new(),
    }
}

fn key(pod: &str) -> PodKey {
    PodKey::new("aws-cni", pod, "eth0").unwrap()
}

#[tokio::test]
async fn an_answer_leaves_only_after_its_write() {
    let mut world = World::new(3, false);

    let add = world.add("a");
    let written = world.write_begins().await;
    assert!(!add.is_finished());
    world.end_write(true);

    assert_eq!(written, [add.await.unwrap().unwrap().address]);
}

#[tokio::test]
async fn changes_made_while_a_write_runs_share_the_next_one() {
    let mut world = World::new(9, false);
    let first = world.add("first");
    assert_eq!(world.write_begins().await.len(), 1);

    let others: Vec<_> = (0..7).map(|number| world.add(&format!("pod-{number}"))).collect();
    world.until(|stats| stats.assigned == 8).await;
    world.end_write(true);
    assert!(first.await.unwrap().is_ok());
    assert_eq!(world.write_begins().await.len(), 8);
    assert!(others.iter().all(|other| !other.is_finished()));
    world.end_write(true);

    for other in others {
        assert!(other.await.unwrap().is_ok());
    }
    assert!(world.writes.try_recv().is_err());
}

#[tokio::test]
async fn an_assignment_that_cannot_be_written_is_refused_and_undone() {
    let mut world = World::new(1, false);
    let add = world.add("a");
    world.write_begins().await;

    world.end_write(false);

    let Err(AddError::Refused(refusal)) = add.await.unwrap() else { panic!("the pod was not refused") };
    assert_eq!(refusal.reason, Reason::StateNotDurable);
    assert!(refusal.message.contains("/proc/no/such/place"), "{}", refusal.message);
    let stats = world.pool.stats().await.unwrap();
    assert_eq!((stats.assigned, stats.free), (0, 1));
    world.added("b").await;
}

#[tokio::test]
async fn a_release_that_cannot_be_written_counts_all_the_same_and_is_written_later() {
    let mut world = World::new(1, false);
    let before = world.added("a").await;
    let del = world.del("a");
    world.write_begins().await;

    world.end_write(false);

    assert_eq!(del.await.unwrap().unwrap().allocation.address, before.address);
    assert_eq!(world.pool.stats().await.unwrap().assigned, 0);
    // With nobody asking.
    assert!(world.write_begins().await.is_empty());
    world.end_write(true);
}

#[tokio::test]
async fn what_was_built_on_a_failed_write_fails_with_it() {
    let mut world = World::new(2, false);
    let first = world.add("a");
    world.write_begins().await;
    let gone = world.del("a");
    let second = world.add("b");
    world.until(|stats| stats.assigned == 1 && stats.cooling == 1).await;

    world.end_write(false);

    assert!(first.await.unwrap().is_err());
    assert!(gone.await.unwrap().is_ok(), "nobody is there");
    assert!(second.await.unwrap().is_err());
    assert_eq!(world.pool.stats().await.unwrap().assigned, 0);
}

#[tokio::test]
async fn a_repeated_add_waits_for_the_write_of_the_first() {
    let mut world = World::new(2, false);
    let first = world.add("a");
    world.write_begins().await;

    let second = world.add("a");
    world.all_taken_in().await;
    assert!(!second.is_finished());
    world.end_write(true);

    assert_eq!(first.await.unwrap().unwrap().address, second.await.unwrap().unwrap().address);
    assert!(world.writes.try_recv().is_err());
}

#[tokio::test]
async fn a_repeated_del_waits_for_the_write_of_the_first() {
    let mut world = World::new(2, false);
    world.added("a").await;
    let first = world.del("a");
    world.write_begins().await;

    let second = world.del("a");
    world.all_taken_in().await;
    assert!(!second.is_finished());
    world.end_write(true);

    assert!(first.await.unwrap().is_ok());
    assert!(second.await.unwrap().is_ok());
}

fn assigned(last: std::ops::Range<u8>) -> Outcome {
    Outcome::Assigned(last.map(|last| Block::Ip(Ipv4Addr::new(10, 0, 1, last))).collect())
}

#[tokio::test]
async fn a_pod_that_waits_is_answered_when_its_step_brings_an_address() {
    let mut world = World::new(0, true);
    let add = world.add("a");

    let (step, end) = world.steps.recv().await.unwrap();
    assert!(matches!(step, Step::Assign { .. }), "{step}");
    let address = IpAddr::from(Ipv4Addr::new(10, 0, 1, 50));
    end.send(assigned(50..59)).unwrap();
    world.write_begins().await;
    world.end_write(true);

    assert_eq!(add.await.unwrap().unwrap().address, address);
}

#[tokio::test]
async fn a_caller_that_goes_away_while_waiting_leaves_no_assignment() {
    let mut world = World::new(0, true);
    let gone = world.add("gone");
    let (_, end) = world.steps.recv().await.unwrap();
    world.until(|stats| stats.waiting == 1).await;

    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    end.send(assigned(50..59)).unwrap();

    world.until(|stats| stats.free == 9 && stats.waiting == 0).await;
}

#[tokio::test]
async fn an_end_refuses_who_waits_and_lets_steps_finish() {
    let mut world = World::new(0, true);
    let waits = world.add("a");
    let (_, end) = world.steps.recv().await.unwrap();
    world.until(|stats| stats.waiting == 1).await;
    let pool = world.pool.clone();
    let drain = tokio::spawn(async move { pool.drain().await });

    assert_eq!(waits.await.unwrap(), Err(AddError::ShuttingDown));
    assert!(!drain.is_finished());
    assert_eq!(world.add("b").await.unwrap(), Err(AddError::ShuttingDown));
    end.send(assigned(50..51)).unwrap();

    drain.await.unwrap();
}

#[tokio::test]
async fn a_late_del_counts_only_for_the_assignment_it_speaks_of() {
    let mut world = World::new(2, false);
    let assignment = world.added("a").await;
    let late = |addresses: Vec<IpAddr>, unix_ns| LateDel { key: key("a"), addresses, unix_ns };

    let older = late(vec![assignment.address], 1);
    assert_eq!(world.pool.late_del(older).await, Err(DelError::UnknownPod));
    let elsewhere = late(vec![Ipv4Addr::new(10, 9, 9, 9).into()], i64::MAX);
    assert_eq!(world.pool.late_del(elsewhere).await, Err(DelError::UnknownPod));

    let (pool, meant) = (world.pool.clone(), late(vec![assignment.address], i64::MAX));
    let del = tokio::spawn(async move { pool.late_del(meant).await });
    assert!(world.write_begins().await.is_empty());
    world.end_write(true);
    assert_eq!(del.await.unwrap().unwrap().allocation.address, assignment.address);
}

#[tokio::test]
async fn a_collection_frees_what_is_forgotten_and_holds_back_what_is_alive() {
    let mut world = World::new(4, false);
    for pod in ["kept", "gone", "alive"] {
        world.added(pod).await;
    }
    let link = vpc::host_veth("eni", &PodName::new("default", "alive"), 0);
    let collection = Collection {
        network: "aws-cni".to_owned(),
        valid: BTreeSet::from([("kept".to_owned(), "eth0".to_owned())]),
        kernel: KernelView { links: BTreeSet::from([link]), ..KernelView::default() },
        asked_unix_ns: i64::MAX,
    };

    let pool = world.pool.clone();
    let collect = tokio::spawn(async move { pool.collect(collection).await });
    assert_eq!(world.write_begins().await.len(), 1);
    world.end_write(true);

    let collected = collect.await.unwrap().unwrap();
    let mut seen: Vec<_> =
        collected.iter().map(|one| (one.released.allocation.pod.name.as_str(), one.is_quarantined)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [("alive", true), ("gone", false)]);
    let stats = world.pool.stats().await.unwrap();
    assert_eq!((stats.assigned, stats.quarantined, stats.cooling), (1, 1, 1));
}

#[tokio::test]
async fn readiness_is_what_a_pod_would_meet_and_takes_nothing() {
    let mut world = World::new(1, false);
    assert_eq!(world.pool.readiness().await, Ok(()));
    assert_eq!(world.pool.stats().await.unwrap().free, 1);

    world.added("a").await;

    assert!(matches!(world.pool.readiness().await, Err(AddError::Refused(_))));
}

#[tokio::test]
async fn rules_without_a_link_are_removed() {
    let world = World::new(1, false);
    let address = IpAddr::from(Ipv4Addr::new(10, 0, 1, 100));

    world.pool.kernel_seen(KernelView { ruled: BTreeSet::from([address]), ..KernelView::default() }).await;

    world.until(|stats| stats.quarantined == 1).await;
    assert_eq!(*world.runner.stale.lock().unwrap(), [address]);
}
