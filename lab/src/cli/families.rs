//! `lab families`: a pod's ADD and DEL with an IPv6 address beside those with an IPv4 address.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use lab::measure::{Times, families, median};

use super::demo::table;
use super::screen::Screen;

/// How many pods, and whose binaries.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FamilyOptions {
    /// Pods on each of the two nodes
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=100))]
    pods: u16,
    /// Where `ipamd` and `aws-cni` are; else LAB_BIN_DIR, else beside this program
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// Measures and prints; the times are not judged.
pub(crate) async fn run(options: FamilyOptions, screen: &Screen) -> Result<()> {
    screen.now("pods of IPv4 and of IPv6 by turns");
    let measured = families(options.pods.into(), options.bin_dir).await?;
    let rows = [row("IPv4", &measured.ipv4), row("IPv6", &measured.ipv6)];
    table(screen, &["PODS OF", "ADD, HALF", "ADD, 9 OF 10", "DEL, HALF", "DEL, 9 OF 10"], &rows);
    screen.line(&format!(
        "An IPv6 ADD takes {:.2} times as long as an IPv4 ADD; wanted: < 1.5",
        measured.ratio()
    ));
    Ok(())
}

fn row(family: &str, times: &Times) -> Vec<String> {
    let most = |sorted: &[Duration]| sorted.get(sorted.len() * 9 / 10).copied().unwrap_or_default();
    let text = |took: Duration| format!("{:.2} ms", took.as_secs_f64() * 1000.0);
    vec![
        family.to_owned(),
        text(median(&times.adds)),
        text(most(&times.adds)),
        text(median(&times.dels)),
        text(most(&times.dels)),
    ]
}
