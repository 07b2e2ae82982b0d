//! Many pods at once on a fresh node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::{join_all, try_join_all};

use crate::cloud::{CallRecord, IMDS};
use crate::world::{IpamdOptions, Lab, Pod, PodSpec, Timings};

/// How long EC2 takes for what a growing node asks of it; all else is answered at once.
pub(super) const LATENCIES: [(&str, Duration); 3] = [
    ("CreateNetworkInterface", Duration::from_millis(600)),
    ("AttachNetworkInterface", Duration::from_millis(1500)),
    ("AssignPrivateIpAddresses", Duration::from_millis(400)),
];

/// A node and the pods that come to it at once.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// What people call it.
    pub name: &'static str,
    /// Type of the node.
    pub instance_type: &'static str,
    /// Whether the node holds prefixes instead of single addresses.
    pub uses_prefixes: bool,
    /// How many pods come.
    pub pods: usize,
    /// The most EC2 calls that the whole may cost, the daemon's start included.
    pub most_calls: u64,
    /// The time in which all pods shall have their addresses.
    pub within: Duration,
    /// What the reference was measured to do under the same latencies with a kubelet that asks
    /// again each second.
    pub reference: Reference,
}

/// The reference's figures for a burst.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// From the first ADD to the last address.
    pub last: Duration,
    /// ADDs that failed on the way.
    pub failed: u32,
}

impl Burst {
    /// The bursts that are promised.
    pub const ALL: [Burst; 3] = [
        Burst {
            name: "110 pods, prefixes, m5.large",
            instance_type: "m5.large",
            uses_prefixes: true,
            pods: 110,
            most_calls: 10,
            within: Duration::from_secs(4),
            reference: Reference { last: Duration::from_secs(30), failed: 750 },
        },
        Burst {
            name: "27 pods, secondary IPs, m5.large",
            instance_type: "m5.large",
            uses_prefixes: false,
            pods: 27,
            most_calls: 11,
            within: Duration::from_secs(5),
            reference: Reference { last: Duration::from_secs(15), failed: 180 },
        },
        Burst {
            name: "232 pods, secondary IPs, c5.4xlarge",
            instance_type: "c5.4xlarge",
            uses_prefixes: false,
            pods: 232,
            most_calls: 26,
            within: Duration::from_secs(10),
            reference: Reference { last: Duration::from_secs(59), failed: 1725 },
        },
    ];

    /// Those with this in their name; all when `None`.
    pub fn named(part: Option<&str>) -> impl Iterator<Item = Burst> {
        Burst::ALL.into_iter().filter(move |it| part.is_none_or(|part| it.name.contains(part)))
    }
}

/// How a burst went.
#[derive(Debug)]
pub struct BurstOutcome {
    /// From the first ADD to the end of the last that succeeded; `None` if none did.
    pub last: Option<Duration>,
    /// The same for half of the pods.
    pub median: Option<Duration>,
    /// What each ADD that failed said.
    pub failures: Vec<String>,
    /// Whether an address was given twice.
    pub is_doubled: bool,
    /// EC2 calls by action from the daemon's start until the last ADD has ended.
    pub calls: BTreeMap<String, u64>,
    /// The calls one by one, with the time since the first ADD, negative before it, and how long
    /// EC2 took.
    pub timeline: Vec<(f64, f64, String)>,
}

impl BurstOutcome {
    /// EC2 calls in all.
    pub fn total_calls(&self) -> u64 {
        self.calls.values().sum()
    }
}

/// Starts the daemon on a fresh node and adds the pods as soon as it serves, each by its own
/// plugin process and once only.
///
/// # Errors
/// The world cannot be made, or the daemon does not serve. A failed ADD is part of the outcome.
pub async fn burst(burst: &Burst, bin_dir: Option<PathBuf>) -> Result<BurstOutcome> {
    let mut builder = Lab::builder();
    if let Some(directory) = bin_dir {
        builder = builder.bin_dir(directory);
    }
    let lab = builder.node(burst.instance_type, "us-west-2a").start().await?;
    for (action, latency) in LATENCIES {
        lab.cloud().set_latency(action, latency);
    }
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;
    let names = (1..=burst.pods).map(|number| format!("burst-{number}"));
    let pods = try_join_all(names.map(|name| node.sandbox(PodSpec::new("default", &name)))).await?;
    let options = IpamdOptions::new().env("ENABLE_PREFIX_DELEGATION", burst.uses_prefixes);
    let ipamd = node.start_ipamd(&options).await?;

    let (began, first) = (Instant::now(), lab.cloud().now());
    let ended = join_all(pods.iter().map(async |pod| (pod.add().await, began.elapsed()))).await;

    let outcome = judge(&pods, ended, lab.cloud().calls(), first);
    ipamd.terminate(Duration::from_secs(30)).await?;
    lab.shutdown().await?;
    Ok(outcome)
}

fn judge(
    pods: &[Pod],
    ended: Vec<(Result<Timings>, Duration)>,
    calls: Vec<CallRecord>,
    first: Duration,
) -> BurstOutcome {
    let mut times: Vec<_> = ended.iter().filter(|(outcome, _)| outcome.is_ok()).map(|(_, at)| *at).collect();
    times.sort();
    let failures =
        ended.into_iter().filter_map(|(outcome, _)| Some(format!("{:#}", outcome.err()?))).collect();
    let mut addresses: Vec<_> = pods.iter().filter(|pod| pod.result().is_some()).map(Pod::address).collect();
    addresses.sort();
    let given = addresses.len();
    addresses.dedup();
    let mut by_action = BTreeMap::new();
    let mut timeline = Vec::new();
    for CallRecord { call, completed, .. } in calls.into_iter().filter(|it| it.call.action != IMDS) {
        *by_action.entry(call.action.clone()).or_default() += 1;
        let at = call.received.as_secs_f64() - first.as_secs_f64();
        let took = completed.map_or(f64::NAN, |end| (end - call.received).as_secs_f64());
        timeline.push((at, took, call.action));
    }
    BurstOutcome {
        last: times.last().copied(),
        median: times.get(times.len() / 2).copied(),
        failures,
        is_doubled: addresses.len() < given,
        calls: by_action,
        timeline,
    }
}
