//! What a node can hold, what it says when it is full, and how quiet it is when nothing happens.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::stage::explains;
use e2e::{scenarios, until};
use lab::cloud::IMDS;
use lab::world::cni::PluginError;
use lab::world::{IPAMD_LOG, Ipamd, IpamdOptions, Lab, Node, Pod, PodSpec, Ran, finish};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(90);

/// How long the daemon lets an ADD wait for an address at most. A refusal that comes sooner has
/// not waited.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

fn main() {
    e2e::main(scenarios![
        a_full_node_refuses_at_once_with_figures_and_limit,
        the_refusal_names_the_setting_that_limits,
        while_an_address_cools_an_add_waits_and_gets_it,
        the_default_cooldown_is_waited_out_too,
        a_daemon_that_is_down_for_five_seconds_fails_no_add,
        status_tells_whether_an_add_could_be_served,
        a_steady_node_is_quiet,
    ]);
}

async fn one_node(instance_type: &str) -> Result<Lab> {
    let lab = Lab::builder().node(instance_type, "us-west-2a").start().await?;
    lab.nodes()[0].install_plugin(None).await?;
    Ok(lab)
}

async fn fill(node: &Node, count: usize) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for index in 0..count {
        pods.push(node.add_pod("default", &format!("web-{index}")).await?);
    }
    let addresses: BTreeSet<_> = pods.iter().map(Pod::address).collect();
    ensure!(addresses.len() == count, "an address was given twice: {addresses:?}");
    Ok(pods)
}

/// ADD of a pod for which there is no room; gives what the plugin said.
async fn refused(node: &Node) -> Result<PluginError> {
    let began = tokio::time::Instant::now();
    let error = node.add_pod("default", "one-too-many").await.err().context("there was room")?;
    // A refusal after the longest wait would take longer than that.
    ensure!(began.elapsed() < LONGEST_WAIT, "the refusal took {:?}", began.elapsed());
    let error = error.downcast::<PluginError>().context("not an error of the plugin")?;
    explains(&error)?;
    Ok(error)
}

fn contains_all(error: &PluginError, parts: &[&str]) -> Result<()> {
    let text = error.to_string();
    eprintln!("{text}");
    for part in parts {
        ensure!(text.contains(part), "no {part:?} in: {text}");
    }
    ensure!(error.code == 11, "code {}: {text}", error.code);
    Ok(())
}

async fn a_full_node_refuses_at_once_with_figures_and_limit() -> Result<()> {
    let lab = one_node("t3.small").await?;
    let node = &lab.nodes()[0];
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    fill(node, 9).await?;
    let asked = lab.cloud().counts();

    let error = refused(node).await?;

    contains_all(
        &error,
        &["9 assigned", "0 cooling", "t3.small", "3 ENIs", "3 addresses", "9 addresses in all"],
    )?;
    let asks = ["CreateNetworkInterface", "AssignPrivateIpAddresses"];
    for action in asks {
        ensure!(asked.get(action) == lab.cloud().counts().get(action), "EC2 was asked to {action}");
    }
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn the_refusal_names_the_setting_that_limits() -> Result<()> {
    let lab = one_node("t3.small").await?;
    let node = &lab.nodes()[0];
    let ipamd = node.start_ipamd(&IpamdOptions::new().env("MAX_ENI", 1)).await?;
    fill(node, 3).await?;

    let error = refused(node).await?;

    contains_all(&error, &["3 assigned", "MAX_ENI allows this t3.small 1 ENIs", "3 addresses in all"])?;
    ensure!(lab.cloud().snapshot().attached(node.instance_id()).len() == 1, "MAX_ENI is not kept");
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

/// A full node on which one address has just been released, and that address.
async fn with_one_cooling(options: IpamdOptions) -> Result<(Lab, Ipamd, Ipv4Addr)> {
    let lab = one_node("t3.small").await?;
    let node = &lab.nodes()[0];
    let ipamd = node.start_ipamd(&options.env("MAX_ENI", 1)).await?;
    let pods = fill(node, 3).await?;
    let cooling = pods[1].address();
    node.del_pod(&pods[1]).await?;
    Ok((lab, ipamd, cooling))
}

async fn gets(node: &Node, cooling: Ipv4Addr) -> Result<()> {
    let pod = node.add_pod("default", "patient").await?;
    ensure!(pod.address() == cooling, "{} and not {cooling}", pod.address());
    let rules = node.ip(&["rule"]).await?.to_string();
    ensure!(rules.contains(&format!(" {cooling} ")), "{rules}");
    Ok(())
}

async fn while_an_address_cools_an_add_waits_and_gets_it() -> Result<()> {
    let options = IpamdOptions::new().env("IP_COOLDOWN_PERIOD", 5);
    let (lab, ipamd, cooling) = with_one_cooling(options).await?;

    gets(&lab.nodes()[0], cooling).await?;

    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn the_default_cooldown_is_waited_out_too() -> Result<()> {
    // Thirty seconds, longer than a pod waits for anything less certain.
    let (lab, ipamd, cooling) = with_one_cooling(IpamdOptions::new()).await?;
    let node = &lab.nodes()[0];

    gets(node, cooling).await?;

    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn a_daemon_that_is_down_for_five_seconds_fails_no_add() -> Result<()> {
    let lab = one_node("m5.large").await?;
    let node = &lab.nodes()[0];
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let before = fill(node, 2).await?;
    ipamd.terminate(PATIENCE).await?;

    let adds: Vec<_> = (0..3)
        .map(|index| {
            let node = node.clone();
            tokio::spawn(async move { node.add_pod("default", &format!("patient-{index}")).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(adds.iter().all(|add| !add.is_finished()), "an ADD has ended without a daemon");
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;

    let mut addresses: BTreeSet<_> = before.iter().map(Pod::address).collect();
    for add in adds {
        let pod = add.await??;
        ensure!(addresses.insert(pod.address()), "{} was given twice", pod.address());
    }
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}

async fn status(pod: &Pod) -> Result<Ran> {
    let mut call = pod.first_plugin_call("STATUS")?;
    let mut input: Value = serde_json::from_slice(&call.input)?;
    input["cniVersion"] = json!("1.1.0");
    // STATUS concerns no container, so runtimes name none.
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        call.command.env_remove(name);
    }
    finish(call.command, Some(input.to_string().as_bytes()), PATIENCE).await
}

async fn status_tells_whether_an_add_could_be_served() -> Result<()> {
    let lab = one_node("m5.large").await?;
    let node = &lab.nodes()[0];
    let caller = node.sandbox(PodSpec::new("default", "nobody")).await?;

    let without = status(&caller).await?;
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let with = status(&caller).await?;
    ipamd.kill().await?;
    let after = status(&caller).await?;

    for failed in [without, after] {
        let error: Value = serde_json::from_slice(&failed.stdout).context("no CNI error")?;
        ensure!(!failed.status.success() && error["code"] == 50, "{error}");
    }
    ensure!(with.status.success() && with.stdout.is_empty(), "{}: {}", with.status, with.text());
    lab.shutdown().await
}

/// EC2 calls so far, and bytes in the daemon's log.
fn noise(lab: &Lab) -> Result<(u64, usize)> {
    let counts = lab.cloud().counts();
    let calls = counts.iter().filter(|(action, _)| *action != IMDS).map(|(_, count)| count.received).sum();
    Ok((calls, lab.nodes()[0].read(IPAMD_LOG)?.len()))
}

async fn a_steady_node_is_quiet() -> Result<()> {
    /// How long nothing may happen before the node counts as settled, and is watched then.
    const WATCH: Duration = Duration::from_secs(20);
    const BYTES_PER_HOUR: u64 = 50 * 1024;
    let lab = one_node("m5.large").await?;
    let node = &lab.nodes()[0];
    let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
    let booted = noise(&lab)?;
    fill(node, 3).await?;
    let mut last = noise(&lab)?;
    until("the node has settled", PATIENCE, || {
        let before = last;
        let now = noise(&lab);
        last = *now.as_ref().unwrap_or(&before);
        async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(now? == before)
        }
    })
    .await?;

    let settled = noise(&lab)?;
    tokio::time::sleep(WATCH).await;
    let watched = noise(&lab)?;

    eprintln!("EC2 calls: {} at boot, {} until settled: {:?}", booted.0, settled.0, lab.cloud().counts());
    ensure!(settled.0 <= 20, "{} calls for a start: {:?}", settled.0, lab.cloud().counts());
    ensure!(watched.0 == settled.0, "{} calls while idle", watched.0 - settled.0);
    let bytes = u64::try_from(watched.1 - settled.1)?;
    eprintln!("log: {bytes} bytes in {} s while idle, at level debug", WATCH.as_secs());
    ensure!(bytes * 3600 < BYTES_PER_HOUR * WATCH.as_secs(), "{bytes} bytes while idle");
    let log = node.read(IPAMD_LOG)?;
    eprintln!("log: {} lines, {} bytes from the start on", log.lines().count(), log.len());
    ipamd.terminate(PATIENCE).await?;
    lab.shutdown().await
}
