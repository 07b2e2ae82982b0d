//! Runs seeds on all cores and says what failed.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::play::{Outcome, play};
use super::scenario::Scenario;
use super::shrink::shrink;
use super::violation::Violation;

/// What `scripts/test` runs.
const SEEDS: u64 = 500;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Plays a scenario; a panic in it is a violation too.
pub(super) fn outcome_of(scenario: &Scenario, is_loud: bool) -> Outcome {
    PANICS.take();
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(scenario, is_loud)));
    let mut outcome = played.unwrap_or_default();
    // A panic in a task does not come this far, but nothing may panic.
    if let Some(message) = PANICS.take() {
        outcome.violation.get_or_insert(Violation::Panicked { message });
    }
    outcome
}

thread_local! {
    /// What a panic on this thread said.
    static PANICS: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// Has panics remembered, beside being printed.
fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(Some(info.to_string()));
            before(info);
        }));
    });
}

fn report(scenario: &Scenario, outcome: &Outcome) -> String {
    let violation = outcome.violation.as_ref().map(ToString::to_string).unwrap_or_default();
    format!(
        "\n{}\n{scenario}\n{violation}\n\nreplay: scripts/simulate --replay {seed}\nshrink: scripts/simulate \
         --replay {seed} --shrink\n",
        outcome.trace.join("\n"),
        seed = scenario.seed
    )
}

struct Progress {
    next: AtomicU64,
    done: AtomicU64,
    events: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Plays `count` seeds from `first` on; gives the reports of those that fail.
fn play_all(first: u64, count: u64, shows_progress: bool) -> Vec<String> {
    // Enough to see a pattern.
    let most = variable("SIMULATION_FAILURES").map_or(3, |most| usize::try_from(most).unwrap_or(3));
    let progress = Progress {
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        events: AtomicU64::new(0),
        failures: Mutex::default(),
    };
    let began = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failures = || progress.failures.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while failures().len() < most {
                    let number = progress.next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let scenario = Scenario::of(first + number);
                    let outcome = outcome_of(&scenario, false);
                    progress.events.fetch_add(outcome.events, Ordering::Relaxed);
                    progress.done.fetch_add(1, Ordering::Relaxed);
                    if outcome.violation.is_some() {
                        failures().push(report(&scenario, &outcome));
                    }
                }
            });
        }
        if shows_progress {
            scope.spawn(|| {
                loop {
                    std::thread::sleep(Duration::from_millis(500));
                    let done = progress.done.load(Ordering::Relaxed);
                    let events = progress.events.load(Ordering::Relaxed);
                    let secs = began.elapsed().as_secs_f64();
                    #[expect(clippy::cast_precision_loss, reason = "for people")]
                    let rate = done as f64 / secs;
                    let mut out = std::io::stderr();
                    let _ = write!(
                        out,
                        "\r{done}/{count} seeds, {events} events, {rate:.1} seeds/s, {secs:.0} s "
                    );
                    if done >= count || failures().len() >= most {
                        let _ = writeln!(out);
                        return;
                    }
                }
            });
        }
    });
    std::mem::take(&mut failures())
}

/// Reads SIMULATION_SEEDS, SIMULATION_FIRST, SIMULATION_REPLAY and SIMULATION_SHRINK, which
/// `scripts/simulate` sets. Beside them SIMULATION_FAILURES says after how many failures to stop,
/// and SIMULATION_LOG=1 shows the daemon's own log in a replay.
#[test]
fn no_seed_breaks_a_promise() {
    watch_panics();
    if let Some(seed) = variable("SIMULATION_REPLAY") {
        let scenario = Scenario::of(seed);
        let outcome = match variable("SIMULATION_LOG") {
            None => outcome_of(&scenario, true),
            Some(_) => {
                let logs = tracing_subscriber::fmt().with_writer(std::io::stderr).without_time();
                let logs = logs.with_ansi(false).with_max_level(tracing::Level::DEBUG).finish();
                tracing::subscriber::with_default(logs, || outcome_of(&scenario, true))
            }
        };
        let mut out = std::io::stderr();
        let outcome = Outcome { trace: Vec::new(), ..outcome };
        let _ = writeln!(out, "{}", report(&scenario, &outcome));
        let violation = outcome.violation.clone();
        if violation.is_some() && variable("SIMULATION_SHRINK").is_some() {
            let (smaller, outcome) = shrink(scenario, outcome);
            let _ = writeln!(out, "shrunk to:\n{}", report(&smaller, &outcome));
        }
        assert_eq!(violation, None);
        return;
    }
    let seeds = variable("SIMULATION_SEEDS");
    let first = variable("SIMULATION_FIRST").unwrap_or(0);

    let failures = play_all(first, seeds.unwrap_or(SEEDS), seeds.is_some());

    assert!(failures.is_empty(), "{}", failures.concat());
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..10 {
        let scenario = Scenario::of(seed);
        let (first, second) = (outcome_of(&scenario, false), outcome_of(&scenario, false));

        assert_eq!((first.digest, first.events), (second.digest, second.events), "seed {seed}");
        assert!(first.events > 20, "seed {seed}: {} events", first.events);
    }
}
