//! What the daemon asks of EC2, and that no pod fails for want of an address that can be had.
//!
//! Times are not judged here; `lab bursts` and `lab calls` print them and the counts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::scenarios;
use lab::measure::{Burst, Churn, boot_and_rest, burst, by_rules};

fn main() {
    e2e::main(scenarios![
        a_hundred_and_ten_pods_at_once_are_served_by_prefixes,
        twenty_seven_pods_at_once_fill_a_small_node,
        two_hundred_pods_at_once_fill_a_large_node,
        a_start_costs_no_more_calls_than_needed_and_rest_costs_none,
        churn_of_pods_is_no_churn_of_calls,
    ]);
}

async fn all_are_served(name: &str) -> Result<()> {
    let case = Burst::named(Some(name)).next().context("no such burst")?;

    let outcome = burst(&case, None).await?;

    let calls = outcome.total_calls();
    eprintln!("{}: {calls} EC2 calls, all served after {:?}", case.name, outcome.last);
    ensure!(outcome.failures.is_empty(), "ADDs failed: {:#?}", outcome.failures);
    ensure!(!outcome.is_doubled, "an address was given twice");
    let most = case.most_calls;
    ensure!(calls <= most, "{calls} EC2 calls, at most {most} wanted: {:?}", outcome.calls);
    ensure!(calls < by_rules(&case)?.total_calls(), "the reference needs no more: {:?}", outcome.calls);
    Ok(())
}

async fn a_hundred_and_ten_pods_at_once_are_served_by_prefixes() -> Result<()> {
    all_are_served("110 pods").await
}

async fn twenty_seven_pods_at_once_fill_a_small_node() -> Result<()> {
    all_are_served("27 pods").await
}

async fn two_hundred_pods_at_once_fill_a_large_node() -> Result<()> {
    all_are_served("232 pods").await
}

async fn a_start_costs_no_more_calls_than_needed_and_rest_costs_none() -> Result<()> {
    let (boot, rest) = boot_and_rest(Duration::from_secs(5), None).await?;

    // What is attached, what is left over, the subnets' tags, one tag of our own, the first addresses.
    ensure!(boot.totals().0 <= 5, "{:?}", boot.ours);
    ensure!(rest.ours.is_empty(), "{:?}", rest.ours);
    Ok(())
}

async fn churn_of_pods_is_no_churn_of_calls() -> Result<()> {
    let churn = Churn { pods: 60, ..Churn::HOUR };

    let compared = churn.run(None, |_| ()).await?;

    ensure!(compared.failed == 0, "{} ADDs failed", compared.failed);
    // Until as many addresses rest as the churn needs; from then on nothing.
    ensure!(compared.totals().0 <= 10, "{:?}", compared.ours);
    Ok(())
}
