//! `lab calls`: EC2 calls by action, beside the reference's.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use lab::measure::{Burst, Churn, Compared, boot_and_rest, burst, growth};

use super::demo::table;
use super::screen::Screen;

/// What to count.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CallOptions {
    /// Minutes of churn; 60 of them take two, since they pass 30 times faster
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=600))]
    churn: u32,
    /// Seconds in which a node at rest should ask nothing
    #[arg(long, default_value_t = 30)]
    rest: u64,
    /// Only bursts whose name has this in it
    #[arg(long)]
    only: Option<String>,
    /// Where `ipamd` and `aws-cni` are; else LAB_BIN_DIR, else beside this program
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// Counts and prints. True if no ADD failed and nothing was asked at rest.
pub(crate) async fn run(options: CallOptions, screen: &Screen) -> Result<bool> {
    screen.now("a first start, and rest after it");
    let rest = Duration::from_secs(options.rest);
    let (boot, rest) = boot_and_rest(rest, options.bin_dir.clone()).await?;
    let is_quiet = rest.ours.is_empty();
    let mut all = vec![boot, rest];
    for case in Burst::named(options.only.as_deref()) {
        screen.now(case.name);
        all.push(growth(&case, &burst(&case, options.bin_dir.clone()).await?)?);
    }
    let churn = Churn { pods: options.churn * 6, ..Churn::HOUR };
    let progress = |pod: u32| screen.now(&format!("churn: {pod} of {} pods", churn.pods));
    all.push(churn.run(options.bin_dir.clone(), progress).await?);
    for compared in &all {
        print(compared, screen);
    }
    screen.line(
        "The reference's calls are computed from its rules. At rest it searches for leaked ENIs once an \
         hour and asks nothing else; so may the daemon.",
    );
    Ok(is_quiet && all.iter().all(|it| it.failed == 0))
}

fn print(compared: &Compared, screen: &Screen) {
    let (ours, reference) = compared.totals();
    screen.line("");
    screen.line(&compared.what);
    let actions: BTreeSet<_> = compared.ours.keys().chain(compared.reference.keys()).collect();
    let count = |of: &lab::measure::Calls, action: &String| of.get(action).copied().unwrap_or(0).to_string();
    let mut rows: Vec<_> = actions
        .into_iter()
        .map(|it| vec![it.clone(), count(&compared.ours, it), count(&compared.reference, it)])
        .collect();
    rows.push(vec!["in all".to_owned(), ours.to_string(), reference.to_string()]);
    if compared.failed > 0 {
        rows.push(vec!["failed ADDs".to_owned(), compared.failed.to_string(), String::new()]);
    }
    table(screen, &["EC2 ACTION", "THIS", "REFERENCE"], &rows);
}
