//! A whole cluster that boots at once, against EC2's published buckets of one account.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::cloud::{ActionClass, BucketSpec, Count};
use tokio::time::{Instant, sleep};

use super::chance::Chance;
use super::play::Stage;
use super::scenario::Scenario;
use super::world::World;

const NODES: usize = 500;

/// What EC2 grants an account and region.
///
/// Source: EC2 API Reference, "Request throttling for the Amazon EC2 API".
const READS: BucketSpec = BucketSpec { capacity: 100.0, refill: 20.0 };
const CHANGES: BucketSpec = BucketSpec { capacity: 50.0, refill: 5.0 };

/// How much longer than the buckets alone it may take.
const SLACK: f64 = 1.1;

fn cluster() -> Scenario {
    Scenario {
        nodes: NODES,
        instance_type: "m5.large",
        vars: BTreeMap::from([("CLUSTER_NAME", "blue".to_owned())]),
        subnets: vec!["10.0.0.0/16".parse().expect("a subnet")],
        latency: Duration::from_millis(150),
        attach_delay: Duration::from_secs(1),
        events: Vec::new(),
        ..Scenario::of(0)
    }
}

/// The seconds that so many calls take if a bucket is all that holds them up.
fn bound(calls: u64, bucket: BucketSpec) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a few thousand calls")]
    let calls = calls as f64;
    ((calls - bucket.capacity) / bucket.refill).max(0.0)
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are what it is about")]
fn a_cluster_that_boots_at_once_is_held_up_by_the_accounts_buckets_alone() {
    let scenario = cluster();
    fastrand::seed(1);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (counts, ready) = runtime.block_on(boot(&scenario));

    let (mut reads, mut changes) = (0, 0);
    for (action, count) in &counts {
        match ActionClass::of(action) {
            ActionClass::Describe => reads += count.completed - count.throttled,
            ActionClass::Mutate => changes += count.completed - count.throttled,
        }
    }
    let bound = bound(reads, READS).max(bound(changes, CHANGES));
    let (first, last) = (ready[0].as_secs_f64(), ready[NODES - 1].as_secs_f64());
    println!("{NODES} nodes ready after {first:.1} to {last:.1} s; the buckets alone take {bound:.1} s");
    for (action, count) in &counts {
        println!(
            "{action:34} {:6} served {:6} throttled",
            count.completed - count.throttled,
            count.throttled
        );
    }
    assert!(last <= bound * SLACK, "{last:.1} s, {bound:.1} s by the buckets alone");
}

/// Boots the cluster; gives EC2's counts and when each node had what it wants, the first first.
async fn boot(scenario: &Scenario) -> (BTreeMap<String, Count>, Vec<Duration>) {
    let world = World::new(scenario, false);
    world.cloud.set_bucket(ActionClass::Describe, Some(READS));
    world.cloud.set_bucket(ActionClass::Mutate, Some(CHANGES));
    let stage = Stage::set(&world, scenario);
    let began = Instant::now();
    let mut ready: BTreeMap<usize, Duration> = BTreeMap::new();
    // Machines of one start order are up within seconds of each other.
    let mut chance = Chance::new(1, 9);
    while ready.len() < NODES && began.elapsed() < Duration::from_secs(3600) {
        sleep(chance.millis(900, 1100)).await;
        for node in
            stage.nodes.iter().filter(|node| !ready.contains_key(&node.index)).cloned().collect::<Vec<_>>()
        {
            let Some(connection) = node.connect() else { continue };
            let look = |pool: &mut crate::pool::Pool| (pool.running().is_empty(), pool.stats());
            let Some((is_idle, stats)) = connection.pool.look(look).await else { continue };
            if is_idle && stats.free >= 9 {
                ready.insert(node.index, began.elapsed());
            }
        }
    }
    // What is put right once a node is up counts too.
    sleep(Duration::from_secs(1)).await;
    let violation = world.oracle().violation();
    assert_eq!(violation, None);
    let late: Vec<_> =
        stage.nodes.iter().filter(|node| !ready.contains_key(&node.index)).map(|it| it.index).collect();
    assert!(late.is_empty(), "nodes that starve: {late:?}");
    let mut ready: Vec<_> = ready.into_values().collect();
    ready.sort();
    (world.cloud.counts(), ready)
}
