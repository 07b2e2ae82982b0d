//! What the demo has found out, and the tables at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::cli::screen::Screen;

/// Checks and figures in the order of their making.
#[derive(Debug, Default)]
pub(crate) struct Report {
    checks: Vec<(String, bool, String)>,
    figures: Vec<(String, String)>,
}

impl Report {
    /// Notes a check: what it found on success, its complaint otherwise.
    pub(crate) fn check(&mut self, screen: &Screen, name: &str, outcome: Result<String>) {
        let (is_good, text) = match outcome {
            Ok(text) => (true, text),
            Err(error) => (false, format!("{error:#}")),
        };
        screen.step(&format!("{} {name}: {text}", if is_good { "ok    " } else { "FAILED" }));
        self.checks.push((name.to_owned(), is_good, text));
    }

    /// Notes a figure that nothing depends on.
    pub(crate) fn figure(&mut self, name: &str, text: String) {
        self.figures.push((name.to_owned(), text));
    }

    /// Whether every check was good.
    pub(crate) fn is_good(&self) -> bool {
        self.checks.iter().all(|(_, is_good, _)| *is_good)
    }

    /// Prints everything noted.
    pub(crate) fn print(&self, screen: &Screen) {
        screen.line("");
        for (name, is_good, text) in &self.checks {
            screen.line(&format!("{}  {name:<24} {text}", if *is_good { "ok    " } else { "FAILED" }));
        }
        screen.line("");
        for (name, text) in &self.figures {
            screen.line(&format!("{name:<32} {text}"));
        }
    }
}

/// Rows under a head, each column as wide as its widest cell.
pub(crate) fn table(screen: &Screen, head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::len);
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        screen.line(padded.join("  ").trim_end());
    };
    print(&mut head.iter().copied());
    for row in rows {
        print(&mut row.iter().map(String::as_str));
    }
}

/// Quantiles of a sample, in milliseconds.
pub(crate) fn distribution(mut sample: Vec<Duration>) -> String {
    sample.sort();
    let at = |percent: usize| {
        let index = (sample.len() * percent / 100).min(sample.len().saturating_sub(1));
        sample.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    format!("p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms ({} runs)", at(50), at(90), at(99), sample.len())
}

/// Counts as words.
pub(crate) fn listed<V: std::fmt::Display>(counts: &BTreeMap<String, V>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_hundred_runs_are_the_runs_at_their_rank() {
        let sample = (1..=100).rev().map(Duration::from_millis).collect();

        assert_eq!(distribution(sample), "p50 51.00 ms, p90 91.00 ms, p99 100.00 ms (100 runs)");
    }

    #[test]
    fn no_run_at_all_has_quantiles_of_zero() {
        assert_eq!(distribution(Vec::new()), "p50 0.00 ms, p90 0.00 ms, p99 0.00 ms (0 runs)");
    }
}
