//! What a daemon asks of EC2, by action, beside what the reference asks.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::burst::{Burst, BurstOutcome, LATENCIES};
use super::reference::{self, PodEvent, Rules};
use crate::cloud::IMDS;
use crate::world::{Ipamd, IpamdOptions, Lab, Pod};

/// Calls by action.
pub type Calls = BTreeMap<String, u64>;

/// Calls of the same history, ours and the reference's.
#[derive(Debug, Clone)]
pub struct Compared {
    /// What happened.
    pub what: String,
    /// Calls of the daemon that ran.
    pub ours: Calls,
    /// Calls of the reference, by [`super::reference`].
    pub reference: Calls,
    /// ADDs of ours that failed.
    pub failed: usize,
}

impl Compared {
    /// Calls of all actions: ours and the reference's.
    pub fn totals(&self) -> (u64, u64) {
        (self.ours.values().sum(), self.reference.values().sum())
    }
}

/// How long no call may come before a node counts as settled.
const QUIET: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

/// A world of one node with a running daemon.
struct Running {
    lab: Lab,
    ipamd: Ipamd,
}

impl Running {
    async fn start(instance_type: &str, options: &IpamdOptions, bin_dir: Option<PathBuf>) -> Result<Running> {
        let mut builder = Lab::builder();
        if let Some(directory) = bin_dir {
            builder = builder.bin_dir(directory);
        }
        let lab = builder.node(instance_type, "us-west-2a").start().await?;
        lab.nodes()[0].install_plugin(None).await?;
        let ipamd = lab.nodes()[0].start_ipamd(options).await?;
        Ok(Running { lab, ipamd })
    }

    fn calls(&self) -> Calls {
        let counts = self.lab.cloud().counts();
        counts
            .into_iter()
            .filter(|(action, _)| action != IMDS)
            .map(|(action, it)| (action, it.received))
            .collect()
    }

    /// Waits until no call has come for a while.
    async fn settled(&self) -> Result<Calls> {
        let deadline = Instant::now() + PATIENCE;
        let (mut seen, mut since) = (self.calls(), Instant::now());
        while since.elapsed() < QUIET {
            if Instant::now() > deadline {
                bail!("EC2 is still being asked after {PATIENCE:?}: {seen:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = self.calls();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(seen)
    }

    async fn end(self) -> Result<()> {
        self.ipamd.terminate(Duration::from_secs(30)).await?;
        self.lab.shutdown().await
    }
}

/// The first start of a daemon with default settings on a fresh `m5.large`, until it asks no
/// more, and then a while in which it should ask nothing: the first count and the second.
///
/// # Errors
/// The world cannot be made, or EC2 is asked without end.
pub async fn boot_and_rest(watch: Duration, bin_dir: Option<PathBuf>) -> Result<(Compared, Compared)> {
    let running = Running::start("m5.large", &IpamdOptions::new(), bin_dir).await?;
    let booted = running.settled().await?;
    tokio::time::sleep(watch).await;
    let watched = running.calls();
    running.end().await?;
    let rules = rules("m5.large", false, 0)?;
    let boot = Compared {
        what: "first start, m5.large, defaults".to_owned(),
        ours: booted.clone(),
        reference: named(&reference::run(rules, &[], 60_000)),
        failed: 0,
    };
    let rest = Compared {
        what: format!("{} s at rest after it", watch.as_secs()),
        ours: since(&watched, &booted),
        reference: Calls::new(),
        failed: 0,
    };
    Ok((boot, rest))
}

/// The calls of a burst, the start included.
///
/// # Errors
/// The instance type is not known here.
pub fn growth(burst: &Burst, outcome: &BurstOutcome) -> Result<Compared> {
    Ok(Compared {
        what: format!("first start and {}", burst.name),
        ours: outcome.calls.clone(),
        reference: named(&by_rules(burst)?),
        failed: outcome.failures.len(),
    })
}

/// What the reference does about a burst, by its rules.
///
/// # Errors
/// The instance type is not known here.
pub fn by_rules(burst: &Burst) -> Result<reference::Ran> {
    let arrivals = vec![(0, PodEvent::Arrives); burst.pods];
    Ok(reference::run(rules(burst.instance_type, burst.uses_prefixes, 0)?, &arrivals, 120_000))
}

/// One pod in, one pod out, again and again, with WARM_IP_TARGET.
#[derive(Debug, Clone, Copy)]
pub struct Churn {
    /// How many pods come and go.
    pub pods: u32,
    /// How many times faster than life it goes: cooldown and shrink delay are as much shorter.
    /// Divides 30 and 180.
    pub speed: u32,
}

impl Churn {
    /// An hour with a pod every 10 s, in two minutes.
    pub const HOUR: Churn = Churn { pods: 360, speed: 30 };

    /// Between two arrivals, in life.
    const PERIOD: Duration = Duration::from_secs(10);
    /// Pods that are on the node all the time.
    const STANDING: usize = 5;
    const WARM_IP: u32 = 2;

    /// Runs it. `progress` hears of each pod.
    ///
    /// # Errors
    /// The world cannot be made, or a DEL fails. A failed ADD is counted.
    pub async fn run(self, bin_dir: Option<PathBuf>, mut progress: impl FnMut(u32)) -> Result<Compared> {
        let options = IpamdOptions::new()
            .env("WARM_IP_TARGET", Churn::WARM_IP)
            .env("IP_COOLDOWN_PERIOD", 30 / self.speed)
            .env("POOL_SHRINK_DELAY", 180 / self.speed);
        let running = Running::start("m5.large", &options, bin_dir).await?;
        let node = &running.lab.nodes()[0];
        let mut pods: VecDeque<Pod> = VecDeque::new();
        for number in 1..=Churn::STANDING {
            pods.push_back(node.add_pod("default", &format!("standing-{number}")).await?);
        }
        let before = running.settled().await?;
        let mut failed = 0;
        let half = Churn::PERIOD / self.speed / 2;
        let mut next = Instant::now();
        for number in 1..=self.pods {
            match node.add_pod("default", &format!("churn-{number}")).await {
                Ok(pod) => pods.push_back(pod),
                Err(_) => failed += 1,
            }
            next += half;
            tokio::time::sleep_until(next).await;
            let oldest = pods.pop_front().context("no pod is left")?;
            oldest.remove().await?;
            drop(oldest);
            next += half;
            tokio::time::sleep_until(next).await;
            progress(number);
        }
        let ours = since(&running.calls(), &before);
        drop(pods);
        running.end().await?;
        let minutes = u64::from(self.pods) * Churn::PERIOD.as_secs() / 60;
        Ok(Compared {
            what: format!("{minutes} min of churn, a pod in and one out every 10 s, WARM_IP_TARGET=2"),
            ours,
            reference: self.by_rules()?,
            failed,
        })
    }

    /// The reference's calls, without those before the churn.
    fn by_rules(self) -> Result<Calls> {
        const BEGIN: u64 = 60_000;
        let rules = rules("m5.large", false, usize::try_from(Churn::WARM_IP)?)?;
        let period = u64::try_from(Churn::PERIOD.as_millis())?;
        let standing = vec![(0, PodEvent::Arrives); Churn::STANDING];
        let mut events = standing.clone();
        for number in 0..u64::from(self.pods) {
            let at = BEGIN + number * period;
            events.extend([(at, PodEvent::Arrives), (at + period / 2, PodEvent::OldestLeaves)]);
        }
        let before = reference::run(rules, &standing, BEGIN);
        let after = reference::run(rules, &events, BEGIN + u64::from(self.pods) * period);
        Ok(since(&named(&after), &named(&before)))
    }
}

/// The reference on a node of this type.
fn rules(instance_type: &str, uses_prefixes: bool, warm_ip: usize) -> Result<Rules> {
    let (enis, slots, max_pods) = match (instance_type, uses_prefixes) {
        ("m5.large", false) => (3, 9, 29),
        ("m5.large", true) => (3, 9, 110),
        ("c5.4xlarge", false) => (8, 29, 234),
        _ => bail!("no limits written down for {instance_type}"),
    };
    let took = |action: &str| {
        let known = LATENCIES.iter().find(|(name, _)| *name == action);
        known.map_or(0, |(_, took)| u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
    };
    // Measured beyond the two calls: the metadata service is asked until it shows the ENI, with
    // pauses that double, and then the link is waited for.
    const SHOWN_AND_SET_UP: u64 = 1650;
    let new_eni = took("CreateNetworkInterface") + took("AttachNetworkInterface") + SHOWN_AND_SET_UP;
    let assign = took("AssignPrivateIpAddresses");
    Ok(Rules { enis, slots, uses_prefixes, warm_ip, max_pods, assign, new_eni })
}

fn named(ran: &reference::Ran) -> Calls {
    ran.calls.iter().map(|(action, count)| ((*action).to_owned(), *count)).collect()
}

/// The calls in `after` that `before` has not.
fn since(after: &Calls, before: &Calls) -> Calls {
    let more = after.iter().map(|(action, count)| (action.clone(), count - before.get(action).unwrap_or(&0)));
    more.filter(|(_, count)| *count > 0).collect()
}
