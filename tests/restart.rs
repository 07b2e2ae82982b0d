//! The daemon goes and comes back: nobody on the node notices, and nothing is left when the last
//! pod has gone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::look::{self, Dump, at_rest};
use e2e::monitors::Monitors;
use e2e::{scenarios, until};
use lab::world::{Ipamd, IpamdOptions, Lab, Node, Pod, STATE_FILE, traffic};

/// Silence before the daemon goes.
const BEFORE: Duration = Duration::from_secs(5);
/// Silence after it is back.
const AFTER: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    e2e::main(scenarios![
        a_killed_daemon_comes_back_without_touching_the_kernel,
        a_terminated_daemon_ends_well_and_comes_back_without_touching_the_kernel,
        the_monitors_tell_of_a_rule_and_of_a_packet_filter_table,
        streams_run_through_a_kill_without_a_gap,
        released_enis_leave_the_node_and_ec2_as_they_were,
    ])
}

/// A t3.small with pods on two of its three ENIs.
async fn small_node() -> Result<Lab> {
    let lab = Lab::builder().node("t3.small", "us-west-2a").node("t3.small", "us-west-2b").start().await?;
    for node in lab.nodes() {
        node.install_plugin(None).await?;
    }
    Ok(lab)
}

/// Four pods, the last of them on a secondary ENI, and the pool at rest.
async fn populate(node: &Node) -> Result<Vec<Pod>> {
    let pods = look::add_pods(node, "web", 4).await?;
    at_rest(node, 3, 4).await?;
    let enis: BTreeSet<_> = pods.iter().filter_map(Pod::eni).collect();
    ensure!(enis.len() == 2, "the pods are on ENIs {enis:?}: expected two");
    Ok(pods)
}

async fn a_killed_daemon_comes_back_without_touching_the_kernel() -> Result<()> {
    restart_unseen(async |ipamd| ipamd.kill().await).await
}

async fn a_terminated_daemon_ends_well_and_comes_back_without_touching_the_kernel() -> Result<()> {
    restart_unseen(async |ipamd| {
        let status = ipamd.terminate(PATIENCE).await?;
        ensure!(status.code() == Some(0), "ipamd answered SIGTERM with {status}");
        Ok(())
    })
    .await
}

async fn restart_unseen(end: impl AsyncFnOnce(Ipamd) -> Result<()>) -> Result<()> {
    let lab = small_node().await?;
    let node = &lab.nodes()[0];
    let options = IpamdOptions::new();
    let ipamd = node.start_ipamd(&options).await?;
    let pods = populate(node).await?;
    let (state, dump) = (node.read(STATE_FILE)?, Dump::of(node).await?);
    let monitors = Monitors::start(node).await?;

    // These are periods in which nothing may happen.
    tokio::time::sleep(BEFORE).await;
    end(ipamd).await?;
    let again = node.start_ipamd(&options).await?;
    tokio::time::sleep(AFTER).await;

    let seen = monitors.seen();
    ensure!(seen.is_empty(), "the restart was seen: {seen:#?}\n{}", node.ipamd_output());
    monitors.prove(node).await.context("after the restart")?;
    Dump::of(node).await?.insist_on(&dump)?;
    ensure!(node.read(STATE_FILE)? == state, "the state file changed: {}", node.read(STATE_FILE)?);
    let next = node.add_pod("default", "next").await?;
    ensure!(!look::addresses(&pods).contains(&next.address()), "{} was given twice", next.address());
    again.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn the_monitors_tell_of_a_rule_and_of_a_packet_filter_table() -> Result<()> {
    let lab = small_node().await?;
    let node = &lab.nodes()[0];
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let pod = node.add_pod("default", "web").await?;
    at_rest(node, 2, 4).await?;
    // The daemon would put the rule back itself.
    ipamd.terminate(PATIENCE).await?;
    let monitors = Monitors::start(node).await?;
    ensure!(monitors.seen().is_empty(), "{:?}", monitors.seen());

    let address = pod.address().to_string();
    for verb in ["del", "add"] {
        let rule = ["ip", "rule", verb, "pref", "512", "to", &address, "lookup", "main"];
        node.exec(&rule).await?;
    }
    for verb in ["add", "delete"] {
        node.exec(&["nft", verb, "table", "ip", "scratch"]).await?;
    }

    let wanted = [
        format!("Deleted 512: from all to {address} lookup main"),
        format!("512: from all to {address} lookup main"),
        "add table ip scratch".to_owned(),
        "delete table ip scratch".to_owned(),
    ];
    until("the monitors tell of both", PATIENCE, || async {
        let seen = monitors.seen();
        Ok(wanted.iter().all(|line| seen.contains(line)))
    })
    .await
    .with_context(|| format!("seen: {:#?}", monitors.seen()))?;
    lab.shutdown().await
}

async fn streams_run_through_a_kill_without_a_gap() -> Result<()> {
    let lab = small_node().await?;
    let [here, there] = lab.nodes() else { unreachable!("two were asked for") };
    let options = IpamdOptions::new();
    let ipamd = here.start_ipamd(&options).await?;
    let _other = there.start_ipamd(&options).await?;
    let (pods, peers) = tokio::try_join!(populate(here), populate(there))?;
    lab.settled().await?;
    let (to, from) = (&pods[3], &peers[3]);

    let restart = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        ipamd.kill().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let again = here.start_ipamd(&options).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        anyhow::Ok(again)
    };
    let (again, delivered) = traffic::undisturbed_by(from, to, restart).await;

    let _again = again?;
    let delivered = delivered?;
    ensure!(delivered.datagrams >= 300 && delivered.exchanges > 0, "{delivered:?}");
    ensure!(look::allocations(here)?.len() == 4);
    lab.shutdown().await
}

async fn released_enis_leave_the_node_and_ec2_as_they_were() -> Result<()> {
    let lab = small_node().await?;
    let node = &lab.nodes()[0];
    let options = IpamdOptions::new().env("POOL_SHRINK_DELAY", 1).env("IP_COOLDOWN_PERIOD", 1);
    let _ipamd = node.start_ipamd(&options).await?;
    at_rest(node, 1, 4).await?;
    let (first, enis) = (Dump::of(node).await?, all_enis(&lab));

    look::remove(populate(node).await?).await?;

    // EC2 lets a young ENI go, but the daemon keeps it for a minute in case pods come back.
    until("EC2 has the first ENIs only", Duration::from_secs(180), || async { Ok(all_enis(&lab) == enis) })
        .await
        .with_context(|| node.ipamd_output())?;
    at_rest(node, 1, 4).await?;
    look::becomes(node, &first).await?;
    ensure!(look::allocations(node)?.is_empty(), "the state file keeps allocations");
    lab.shutdown().await
}

fn all_enis(lab: &Lab) -> BTreeSet<String> {
    lab.cloud().snapshot().enis.keys().cloned().collect()
}
