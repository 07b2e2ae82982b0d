//! SIGKILL of the plugin at each of its messages, and a daemon that is not there.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use e2e::scenarios;
use e2e::stage::{Setting, Stage, on};
use e2e::trace::{Fate, Peer, Side, kill_at_message};
use lab::world::{Pod, PodSpec};
use serde_json::Value;

/// The pods that a t3.small has room for: three ENIs with three secondary addresses each.
const FULL: usize = 9;

/// More messages than any call sends; a plugin that sends more is not counted to its end.
const MOST_MESSAGES: usize = 200;

fn main() {
    e2e::main(scenarios![
        an_add_killed_at_any_netlink_message_is_undone_by_del,
        an_add_killed_at_any_word_to_the_daemon_is_undone_by_del,
        a_del_killed_at_any_netlink_message_is_finished_by_the_next,
        a_del_killed_at_any_word_to_the_daemon_is_finished_by_the_next,
        a_del_without_the_daemon_frees_the_address_once,
    ]);
}

/// Kills the plugin at its first, second, third … message in ADD on both sides of each, follows
/// with DEL and a new ADD as kubelet does, and says how many messages there were.
async fn adds_killed(peer: Peer) -> Result<()> {
    on(soon_rested(), async |stage| {
        start_with_full_primary(stage).await?;
        let mut messages = [0, 0];
        for (count, side) in messages.iter_mut().zip([Side::Before, Side::After]) {
            for nth in 1..=MOST_MESSAGES {
                let pod = stage.node().sandbox(PodSpec::new("default", "web")).await?;
                match kill_at_message(pod.first_plugin_call("ADD")?, peer, nth, side).await? {
                    Fate::Killed => killed_add(stage, pod, nth).await.with_context(|| {
                        format!("after an ADD killed {side:?} message {nth} to the {peer:?}")
                    })?,
                    Fate::Ended { messages, is_success, stdout } => {
                        ensure!(is_success && messages < nth, "{messages} of {nth}: {stdout}");
                        *count = messages;
                        accept(stage, &pod, &stdout)?;
                        stage.check().await?;
                        stage.remove(pod).await?;
                        break;
                    }
                }
            }
        }
        eprintln!("ADD sends {messages:?} messages to the {peer:?}; killed before and after each");
        // How a conversation with the daemon is cut into packets is a matter of timing.
        ensure!(messages[0] > 0 && (peer == Peer::Daemon || messages[0] == messages[1]), "{messages:?}");
        stage.check().await
    })
    .await
}

/// Addresses that rest for so short a time that attempts need not wait for each other long.
fn soon_rested() -> Setting {
    Setting::new("t3.small").cooldown(1)
}

/// Starts the daemon and fills the primary ENI: the pods that follow are on secondary ones, where
/// they have a rule more.
async fn start_with_full_primary(stage: &mut Stage) -> Result<()> {
    stage.start().await?;
    stage.add_all("filler", FULL / 3).await?;
    let primary = stage.cloud().snapshot().attached(stage.node().instance_id())[0].id.clone();
    let is_on_primary = stage.live().all(|pod| pod.eni().as_ref() == Some(&primary));
    ensure!(is_on_primary, "the first pods are not on the primary ENI");
    Ok(())
}

/// What kubelet does about a killed ADD, and what must be so then.
async fn killed_add(stage: &mut Stage, killed: Pod, nth: usize) -> Result<()> {
    // The sandbox of every other attempt outlives the new ADD, as it may when the runtime is slow.
    let is_slow = nth.is_multiple_of(2);
    killed.del().await.context("DEL after the kill")?;
    if !is_slow {
        killed.drop_namespace()?;
    }
    let kept = is_slow.then_some(killed);

    let pod = stage.add_once("web").await.context("the new ADD")?;
    if let Some(killed) = kept {
        killed.drop_namespace()?;
    }

    stage.check().await?;
    stage.remove(pod).await?;
    stage.check().await
}

/// Takes the result that a traced plugin printed for a pod.
fn accept(stage: &mut Stage, pod: &Pod, stdout: &str) -> Result<()> {
    let result: Value = serde_json::from_str(stdout).with_context(|| format!("read {stdout:?}"))?;
    pod.set_result(Some(result));
    stage.note_added(pod)
}

async fn an_add_killed_at_any_netlink_message_is_undone_by_del() -> Result<()> {
    adds_killed(Peer::Kernel).await
}

async fn an_add_killed_at_any_word_to_the_daemon_is_undone_by_del() -> Result<()> {
    adds_killed(Peer::Daemon).await
}

/// Kills the plugin at each of its messages in DEL, and lets the runtime repeat the DEL.
async fn dels_killed(peer: Peer) -> Result<()> {
    on(soon_rested(), async |stage| {
        start_with_full_primary(stage).await?;
        let mut messages = [0, 0];
        for (count, side) in messages.iter_mut().zip([Side::Before, Side::After]) {
            for nth in 1..=MOST_MESSAGES {
                let pod = stage.add_once("web").await?;
                stage.note_deleted(&pod);
                let fate = kill_at_message(pod.first_plugin_call("DEL")?, peer, nth, side).await?;
                if let Fate::Ended { messages, is_success, stdout } = fate {
                    ensure!(is_success && messages < nth, "{messages} of {nth}: {stdout}");
                    *count = messages;
                    pod.drop_namespace()?;
                    break;
                }
                let what = || format!("after a DEL killed {side:?} message {nth} to the {peer:?}");
                pod.remove().await.with_context(what)?;
                drop(pod);
                stage.check().await.with_context(what)?;
            }
        }
        eprintln!("DEL sends {messages:?} messages to the {peer:?}; killed before and after each");
        // How a conversation with the daemon is cut into packets is a matter of timing.
        ensure!(messages[0] > 0 && (peer == Peer::Daemon || messages[0] == messages[1]), "{messages:?}");
        stage.add_all("late", 3).await?;
        stage.check().await
    })
    .await
}

async fn a_del_killed_at_any_netlink_message_is_finished_by_the_next() -> Result<()> {
    dels_killed(Peer::Kernel).await
}

async fn a_del_killed_at_any_word_to_the_daemon_is_finished_by_the_next() -> Result<()> {
    dels_killed(Peer::Daemon).await
}

async fn a_del_without_the_daemon_frees_the_address_once() -> Result<()> {
    on(Setting::new("t3.small"), async |stage| {
        stage.start().await?;
        stage.add("other").await?;
        let old = stage.add("web").await?;
        let old_address = old.address();
        stage.kill().await?;
        stage.remove(old).await.context("DEL without the daemon")?;

        // The new ADD waits for the daemon.
        let adding = stage.adding("web", 1);
        stage.start().await?;
        stage.added(adding).await?;

        stage.check().await?;
        let before = stage.allocations()?;
        ensure!(before.iter().all(|(_, address)| *address != old_address.to_string()), "{before:?}");
        let spooled = std::fs::read_dir(stage.node().path(SPOOL))?.count();
        ensure!(spooled == 0, "{spooled} DELs are still left for the daemon");
        stage.restart().await?;
        ensure!(stage.allocations()? == before, "the second return freed more");
        stage.check().await?;
        // Nobody else is given the address of the new pod, and the old one only when it has rested.
        let free = FULL - stage.live().count() - 1;
        stage.add_all("late", free).await?;
        let addresses: BTreeSet<_> = stage.live().map(Pod::address).collect();
        ensure!(addresses.len() == FULL - 1, "{addresses:?}");
        stage.check().await
    })
    .await
}

/// Where the plugin leaves DELs for a daemon that is down.
const SPOOL: &str = "/var/run/aws-node/del-spool";
