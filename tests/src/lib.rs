//! Scenarios over the real binaries and a real kernel: what they all share.
//!
//! A scenario file is a test binary without the standard harness: it first moves into namespaces
//! of its own, which must happen before any thread exists, and then runs its scenarios with the
//! same arguments and the same closing line as any Rust test.
#![forbid(unsafe_code)]

pub mod facts;
pub mod flows;
pub mod ground;
pub mod look;
pub mod moment;
pub mod monitors;
pub mod stage;
pub mod trace;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::world::Lab;
use libtest_mimic::{Arguments, Failed, Trial};

/// How long a scenario may take; one that waits for a state that never comes ends here.
const DEADLINE: Duration = Duration::from_secs(240);

/// Scenarios that run side by side unless `--test-threads` says otherwise: most of their time
/// they wait for each other's processes or for a period in which nothing may happen.
const SIDE_BY_SIDE: usize = 4;

/// Ends a lab on which `outcome` was reached; after a failure tells everything that there is to see.
///
/// # Errors
/// That of `outcome`, or of the end.
pub async fn end(lab: Lab, outcome: Result<()>) -> Result<()> {
    if outcome.is_err() {
        eprintln!("{}", lab.dump().await);
    }
    outcome?;
    lab.shutdown().await
}

type Run = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<()>>>> + Send>;

/// One scenario: its name, the foreign tools that it cannot do without, and what it does.
pub struct Scenario {
    name: String,
    needs: Vec<&'static str>,
    /// What this machine lacks for it.
    lacks: Option<&'static str>,
    run: Run,
}

impl Scenario {
    /// The scenario `run`, named as a sentence about behaviour.
    pub fn new<F>(name: &str, run: impl FnOnce() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + 'static,
    {
        // The path of the function ends in its name.
        let name = name.rsplit("::").next().unwrap_or(name).to_owned();
        Self { name, needs: Vec::new(), lacks: None, run: Box::new(|| Box::pin(run())) }
    }

    /// Skips the scenario, by name, where this command is not to be had.
    #[must_use]
    pub fn needs(mut self, command: &'static str) -> Self {
        self.needs.push(command);
        self
    }

    /// Skips the scenario, by name, where something that is no command is not to be had.
    #[must_use]
    pub fn only_with(mut self, what: &'static str, is_there: bool) -> Self {
        if !is_there {
            self.lacks = Some(what);
        }
        self
    }
}

/// The scenarios named, each an `async fn() -> anyhow::Result<()>`.
#[macro_export]
macro_rules! scenarios {
    ($($scenario:path),* $(,)?) => {
        vec![$($crate::Scenario::new(stringify!($scenario), $scenario)),*]
    };
}

/// Runs scenarios as the `main` of a test binary.
///
/// Where this machine allows no namespaces, every scenario counts as skipped, by name.
pub fn main(scenarios: Vec<Scenario>) {
    main_with(scenarios, SIDE_BY_SIDE);
}

/// The same with so many scenarios side by side.
pub fn main_with(scenarios: Vec<Scenario>, side_by_side: usize) {
    let mut arguments = Arguments::from_args();
    let contained = if arguments.list { Ok(()) } else { lab::world::contain() };
    if let Err(error) = &contained {
        eprintln!("skipped: {error:#}");
    }
    arguments.test_threads.get_or_insert(side_by_side);
    let trials = scenarios.into_iter().map(|scenario| trial(scenario, contained.is_ok())).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(scenario: Scenario, may_run: bool) -> Trial {
    let missing: Vec<_> = scenario.needs.iter().filter(|tool| find(tool).is_none()).collect();
    if may_run && !missing.is_empty() {
        eprintln!("skipped: {} needs {missing:?}", scenario.name);
    }
    if let Some(what) = scenario.lacks.filter(|_| may_run) {
        eprintln!("skipped: {} needs {what}", scenario.name);
    }
    let is_skipped = !may_run || !missing.is_empty() || scenario.lacks.is_some();
    let run = scenario.run;
    Trial::test(scenario.name, move || block_on(run).map_err(|error| Failed::from(format!("{error:?}"))))
        .with_ignored_flag(is_skipped)
}

fn block_on(run: Run) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async {
        tokio::time::timeout(DEADLINE, run())
            .await
            .with_context(|| format!("the scenario took longer than {} s", DEADLINE.as_secs()))?
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    ended
}

/// Where `command` is on this machine: on the path, or a path itself.
#[must_use]
pub fn find(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(command))
        .find(|candidate| candidate.is_file())
}

/// One of our own programs, as `cargo build --release` leaves it.
///
/// # Errors
/// It is not built yet.
pub fn binary(name: &str) -> Result<PathBuf> {
    lab::world::Binaries::new(None).find(name)
}

/// Waits until `ready` says yes, asking every few milliseconds.
///
/// # Errors
/// It says no for `at_most`; the error names what was awaited.
pub async fn until<F: Future<Output = Result<bool>>>(
    what: &str,
    at_most: Duration,
    mut ready: impl FnMut() -> F,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + at_most;
    while !ready().await.with_context(|| format!("wait until {what}"))? {
        if tokio::time::Instant::now() >= deadline {
            bail!("waited {} s in vain until {what}", at_most.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
