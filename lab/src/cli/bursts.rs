//! `lab bursts`: how long many pods at once wait, beside the reference's figures.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use lab::measure::{Burst, BurstOutcome, burst, by_rules};

use super::demo::{listed, table};
use super::screen::Screen;

/// Which bursts, and how much to tell.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BurstOptions {
    /// Only bursts whose name has this in it
    #[arg(long)]
    only: Option<String>,
    /// Every EC2 call with its time
    #[arg(long)]
    timeline: bool,
    /// Where `ipamd` and `aws-cni` are; else LAB_BIN_DIR, else beside this program
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// Runs the bursts. True if no ADD failed and none cost more calls than promised; times are
/// printed, not judged.
pub(crate) async fn run(options: BurstOptions, screen: &Screen) -> Result<bool> {
    let mut rows = Vec::new();
    let mut is_good = true;
    for case in Burst::named(options.only.as_deref()) {
        screen.now(case.name);
        let outcome = burst(&case, options.bin_dir.clone()).await?;
        screen.step(&format!("{}: {}", case.name, listed(&outcome.calls)));
        for failure in outcome.failures.iter().take(3) {
            screen.line(&format!("          failed: {failure}"));
        }
        if options.timeline {
            for (at, took, action) in &outcome.timeline {
                screen.line(&format!("          {at:7.3} s  {took:6.3} s  {action}"));
            }
        }
        is_good &=
            outcome.failures.is_empty() && !outcome.is_doubled && outcome.total_calls() <= case.most_calls;
        rows.extend(lines(&case, &outcome)?);
    }
    screen.line("");
    table(screen, &["BURST", "", "HALF", "ALL", "WANTED", "FAILED ADDS", "EC2 CALLS", "WANTED"], &rows);
    Ok(is_good)
}

fn lines(case: &Burst, outcome: &BurstOutcome) -> Result<[Vec<String>; 2]> {
    let time = |it: Option<Duration>| it.map_or("-".to_owned(), |it| format!("{:.2} s", it.as_secs_f64()));
    let ours = vec![
        case.name.to_owned(),
        "this".to_owned(),
        time(outcome.median),
        time(outcome.last),
        format!("< {} s", case.within.as_secs()),
        outcome.failures.len().to_string(),
        outcome.total_calls().to_string(),
        format!("<= {}", case.most_calls),
    ];
    let reference = vec![
        String::new(),
        "reference".to_owned(),
        String::new(),
        format!("{} s", case.reference.last.as_secs()),
        String::new(),
        case.reference.failed.to_string(),
        by_rules(case)?.total_calls().to_string(),
    ];
    Ok([ours, reference])
}
