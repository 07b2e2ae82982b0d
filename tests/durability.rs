//! What the daemon promises is on disk first: cheaply when many ask, and not at all when the disk
//! is full.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::stage::{Setting, Stage, on, plugin_error};
use e2e::trace::{End, Next, Side, SystemCall, begin_to_follow};
use e2e::{scenarios, until};
use lab::world::{Pod, PodSpec};
use nix::libc;
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    e2e::main(scenarios![
        a_hundred_adds_at_once_share_a_few_syncs,
        a_full_disk_refuses_adds_keeps_no_pod_and_passes,
    ]);
}

/// What a traced daemon may do, and what it has done.
#[derive(Debug, Default)]
struct Disk {
    /// The first sync may end.
    is_ready: AtomicBool,
    /// The daemon is to end.
    is_over: AtomicBool,
    syncs: AtomicUsize,
    other_calls: AtomicUsize,
}

impl Disk {
    /// A judge that holds the first sync until the disk is ready, and counts.
    fn judge(self: Arc<Self>) -> impl FnMut(Side, &SystemCall) -> Result<Next> {
        let mut held = None;
        move |side, call| {
            if self.is_over.load(SeqCst) {
                return Ok(Next::Kill);
            }
            if side == Side::After || call.number != libc::SYS_fsync {
                self.other_calls.fetch_add(1, SeqCst);
                return Ok(Next::GoOn);
            }
            let is_first = self.syncs.load(SeqCst) == 0 || held == Some(call.thread);
            if is_first && !self.is_ready.load(SeqCst) {
                // It is judged again and again.
                held = Some(call.thread);
                self.syncs.store(1, SeqCst);
                return Ok(Next::Hold);
            }
            if held.take_if(|thread| *thread == call.thread).is_none() {
                self.syncs.fetch_add(1, SeqCst);
            }
            Ok(Next::GoOn)
        }
    }
}

async fn a_hundred_adds_at_once_share_a_few_syncs() -> Result<()> {
    const PODS: usize = 100;
    const MOST_SYNCS: usize = 10;
    let setting = Setting::new("p3dn.24xlarge").env("MINIMUM_IP_TARGET", PODS + 20).env("WARM_IP_TARGET", 1);
    on(setting, async |stage| {
        stage.start().await?;
        until("there are addresses for all", PATIENCE, || async { Ok(held(stage) >= PODS + 20) }).await?;
        let mut pods = Vec::new();
        for number in 1..=PODS {
            pods.push(stage.node().sandbox(PodSpec::new("default", &format!("web-{number}"))).await?);
        }

        let pid = stage.daemon_pid()?;
        let disk = Arc::new(Disk::default());
        let tracing = begin_to_follow(pid, disk.clone().judge()).await?;

        // While the first write takes its time the others ask, as they do when disks are slow.
        let before = sockets(pid)?;
        let mut adding: JoinSet<_> =
            pods.into_iter().map(|pod| async move { pod.add().await.map(|_| pod) }).collect();
        until("everybody has asked, and the daemon only waits for the disk", PATIENCE, || async {
            let seen = disk.other_calls.load(SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(sockets(pid)? >= before + PODS && disk.other_calls.load(SeqCst) == seen)
        })
        .await?;
        disk.is_ready.store(true, SeqCst);
        while let Some(pod) = adding.join_next().await {
            stage.note_added(&pod??)?;
        }

        disk.is_over.store(true, SeqCst);
        stage.signal(Signal::SIGTERM)?;
        ensure!(tracing.await?? == End::Killed, "the daemon ended by itself");
        stage.was_killed().await?;
        let syncs = disk.syncs.load(SeqCst);
        eprintln!("{PODS} ADDs cost {syncs} syncs");
        ensure!((2..=MOST_SYNCS).contains(&syncs), "{PODS} ADDs cost {syncs} syncs");
        ensure!(stage.allocations()?.len() == PODS, "not all are in the state file");
        Ok(())
    })
    .await
}

/// The secondary addresses that EC2 holds for the node.
fn held(stage: &Stage) -> usize {
    let snapshot = stage.cloud().snapshot();
    let attached = snapshot.attached(stage.node().instance_id());
    attached.iter().map(|eni| eni.addresses.len().saturating_sub(1)).sum()
}

/// The open unix sockets of a process: those to EC2 come and go by themselves.
fn sockets(pid: i32) -> Result<usize> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).context("list unix sockets")?;
    let inodes = table.lines().filter_map(|line| line.split_whitespace().nth(6));
    let unix: BTreeSet<String> = inodes.map(|inode| format!("socket:[{inode}]")).collect();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).context("list descriptors")?;
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Ok(links.filter(|link| unix.contains(&*link.to_string_lossy())).count())
}

async fn a_full_disk_refuses_adds_keeps_no_pod_and_passes() -> Result<()> {
    const ROOM: u64 = 256 * 1024;
    /// The addresses of a t3.small's primary ENI.
    const PODS: usize = 3;
    on(Setting::new("t3.small").cooldown(1).env("MAX_ENI", 1), async |stage| {
        stage.node().set_state_room(ROOM)?;
        stage.start().await?;
        stage.add_all("early", 2).await?;
        let ballast = stage.node().path("/run/aws-node/ballast");
        fill(&ballast)?;

        let refusal = stage.add_once("late").await.err().context("an ADD was promised without a record")?;
        let words = plugin_error(&refusal).with_context(|| format!("no CNI error: {refusal:#}"))?;
        eprintln!("{words}");
        ensure!(words.to_string().contains("No space left on device"), "no reason in: {words}");
        ensure!(words.code == 11, "code {}: expected 11", words.code);
        let old: Pod = stage.live().next().context("no pod is there")?.clone();
        let address = old.address();
        stage.remove(old).await.context("DEL on a full disk")?;
        let rules = stage.node().ip(&["rule"]).await?.to_string();
        ensure!(!rules.contains(&format!(" {address} ")), "DEL left {address}: {rules}");

        std::fs::remove_file(&ballast).context("make room")?;

        until("the state file has heard of the DEL", PATIENCE, || async {
            Ok(stage.allocations()?.len() == stage.live().count())
        })
        .await?;
        stage.recovers(PODS).await
    })
    .await
}

/// Writes until there is no more room.
fn fill(path: &std::path::Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    // What is left after whole pages goes byte by byte.
    for piece in [&[0_u8; 4096][..], &[0]] {
        loop {
            match file.write_all(piece) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => bail!("fill {}: {error}", path.display()),
            }
        }
    }
    Ok(())
}
