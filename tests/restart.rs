//! The daemon goes and comes back: nobody on the node notices, and nothing is left when the last
//! pod has gone.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::look::{self, Dump, at_rest};
use e2e::{scenarios, until};
use lab::world::{Ipamd, IpamdOptions, Lab, Node, Pod, STATE_FILE, traffic};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

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

/// `ip monitor` and `nft monitor` on a node, and the lines that they have printed.
struct Monitors {
    seen: Arc<Mutex<Vec<String>>>,
    _processes: Vec<Child>,
}

impl Monitors {
    /// Starts them and waits until both listen.
    async fn start(node: &Node) -> Result<Monitors> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut processes = Vec::new();
        for words in [&["ip", "monitor", "link", "address", "route", "rule"][..], &["nft", "monitor"]] {
            let mut command = node.command(words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut command = tokio::process::Command::from(command);
            let mut process = command.kill_on_drop(true).spawn().context("start a monitor")?;
            let mut lines = BufReader::new(process.stdout.take().context("no output")?).lines();
            let log = seen.clone();
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
            processes.push(process);
        }
        let monitors = Monitors { seen, _processes: processes };
        monitors.prove(node).await.context("at the monitors' start")?;
        Ok(monitors)
    }

    /// Makes and removes something harmless until both have told of it, then forgets what they
    /// have told.
    async fn prove(&self, node: &Node) -> Result<()> {
        let told = |count: &dyn Fn(&str) -> bool| self.seen().iter().filter(|it| count(it)).count();
        let mut made = 0;
        until("both monitors listen", PATIENCE, || {
            made += 1;
            async {
                for verb in ["add", "del"] {
                    node.exec(&["ip", "rule", verb, "pref", "30000", "to", "192.0.2.1", "lookup", "main"])
                        .await?;
                }
                for verb in ["add", "delete"] {
                    node.exec(&["nft", verb, "table", "ip", "proof"]).await?;
                }
                let rule = told(&|line| line.starts_with("Deleted 30000:"));
                let table = told(&|line| line == "delete table ip proof");
                Ok(rule > 0 && table > 0)
            }
        })
        .await
        .with_context(|| format!("seen: {:#?}", self.seen()))?;
        // What a monitor told of last may still be on its way; a last sign ends the proof.
        let mark = format!("end-{made}");
        node.exec(&["ip", "rule", "add", "pref", "30001", "to", "192.0.2.2", "lookup", "main"]).await?;
        node.exec(&["ip", "rule", "del", "pref", "30001"]).await?;
        node.exec(&["nft", "add", "table", "ip", &mark]).await?;
        node.exec(&["nft", "delete", "table", "ip", &mark]).await?;
        until("both monitors have told everything", PATIENCE, || async {
            let seen = self.seen();
            let rule = seen.iter().any(|line| line.starts_with("Deleted 30001:"));
            // The packet filter's monitor ends each transaction with its generation.
            let table = seen.iter().position(|line| *line == format!("delete table ip {mark}"));
            Ok(rule && table.is_some_and(|at| seen[at..].iter().any(|it| it.starts_with("# new generation"))))
        })
        .await
        .with_context(|| format!("seen: {:#?}", self.seen()))?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// The lines printed since the proof.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
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
    ensure!(delivered.datagrams >= 1000 && delivered.exchanges > 0, "{delivered:?}");
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
