//! SIGKILL of the daemon at named moments, each followed by the same question: does the node
//! recover, with every pod's address and everything that EC2 holds for it?

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::moment::{Judge, Kept, Moment, Progress};
use e2e::stage::{Setting, Stage, on};
use e2e::trace::{End, Side, begin_to_follow};
use e2e::{Scenario, until};
use lab::cloud::{Gate, GatePoint};
use lab::world::{IPAMD_LOG, Pod, PodSpec};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use GatePoint::{BeforeAnswer, BeforeWork};
use Kept::{Second, State};
use Progress::{Created, Durable, Moved, Synced, Written};

/// The pods that a t3.small has room for: three ENIs with three secondary addresses each.
const FULL: usize = 9;
/// The addresses, or prefixes, of one of its ENIs.
const ONE_ENI: usize = 3;
/// The addresses of a prefix.
const PREFIX: usize = 16;

/// How long the daemon may take until it asks EC2 for something: an ENI is kept for a minute.
const PATIENCE: Duration = Duration::from_secs(100);

/// Most of a scenario's time is waiting: for a minute to pass, or for EC2.
const SIDE_BY_SIDE: usize = 8;

/// What is under way when the daemon is killed in the middle of a file.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Add,
    Del,
    Growth,
}

macro_rules! points {
    ($($name:literal => $run:expr),* $(,)?) => {
        vec![$(Scenario::new(concat!("killed_", $name), || $run)),*]
    };
}

#[rustfmt::skip]
fn main() {
    let points = points![
        // Those that wait for a minute come first.
        "before_a_create_that_ec2_carries_out_later" => late_create(),
        "before_an_unassign_that_ec2_carries_out_later" => late_return("UnassignPrivateIpAddresses"),
        "before_a_detach_that_ec2_carries_out_later" => late_return("DetachNetworkInterface"),
        "before_a_detach_arrives" => freeing("DetachNetworkInterface", BeforeWork),
        "after_a_detach" => freeing("DetachNetworkInterface", BeforeAnswer),
        "before_a_delete_arrives" => freeing("DeleteNetworkInterface", BeforeWork),
        "after_a_delete" => freeing("DeleteNetworkInterface", BeforeAnswer),

        "before_subnets_are_read" => growing("DescribeSubnets", BeforeWork),
        "before_a_create_arrives" => growing("CreateNetworkInterface", BeforeWork),
        "after_a_create" => growing("CreateNetworkInterface", BeforeAnswer),
        "before_an_attach_arrives" => growing("AttachNetworkInterface", BeforeWork),
        "after_an_attach" => growing("AttachNetworkInterface", BeforeAnswer),
        "before_an_eni_is_tied_to_its_instance" => growing("ModifyNetworkInterfaceAttribute", BeforeWork),
        "after_an_eni_is_tied_to_its_instance" => growing("ModifyNetworkInterfaceAttribute", BeforeAnswer),
        "before_an_assign_arrives" => starting("AssignPrivateIpAddresses", BeforeWork),
        "after_an_assign" => starting("AssignPrivateIpAddresses", BeforeAnswer),
        "before_a_tag_arrives" => starting("CreateTags", BeforeWork),
        "after_a_tag" => starting("CreateTags", BeforeAnswer),
        "before_an_unassign_arrives" => freeing("UnassignPrivateIpAddresses", BeforeWork),
        "after_an_unassign" => freeing("UnassignPrivateIpAddresses", BeforeAnswer),

        "before_an_assign_of_a_prefix_arrives" => starting_with_prefixes(BeforeWork),
        "after_an_assign_of_a_prefix" => starting_with_prefixes(BeforeAnswer),
        "before_an_unassign_of_a_prefix_arrives" => freeing_prefixes(BeforeWork),
        "after_an_unassign_of_a_prefix" => freeing_prefixes(BeforeAnswer),

        "in_add_with_an_empty_temporary_state_file" => replacing(Doing::Add, State, Created, 1),
        "in_add_with_an_unsynced_temporary_state_file" => replacing(Doing::Add, State, Written, 1),
        "in_add_before_the_state_file_is_moved" => replacing(Doing::Add, State, Synced, 1),
        "in_add_before_the_state_files_directory_is_synced" => replacing(Doing::Add, State, Moved, 1),
        "in_add_with_a_durable_state_file" => replacing(Doing::Add, State, Durable, 1),
        "in_del_with_an_empty_temporary_state_file" => replacing(Doing::Del, State, Created, 1),
        "in_del_with_an_unsynced_temporary_state_file" => replacing(Doing::Del, State, Written, 1),
        "in_del_before_the_state_file_is_moved" => replacing(Doing::Del, State, Synced, 1),
        "in_del_before_the_state_files_directory_is_synced" => replacing(Doing::Del, State, Moved, 1),
        "in_del_with_a_durable_state_file" => replacing(Doing::Del, State, Durable, 1),
        "in_del_with_an_empty_temporary_second_file" => replacing(Doing::Del, Second, Created, 1),
        "in_del_with_an_unsynced_temporary_second_file" => replacing(Doing::Del, Second, Written, 1),
        "in_del_before_the_second_file_is_moved" => replacing(Doing::Del, Second, Synced, 1),
        "in_del_before_the_second_files_directory_is_synced" => replacing(Doing::Del, Second, Moved, 1),
        "in_del_between_the_two_files" => replacing(Doing::Del, Second, Durable, 1),
        "before_the_intent_of_an_eni_is_moved_into_place" => replacing(Doing::Growth, Second, Synced, 1),
        "before_the_intent_of_an_eni_is_durable" => replacing(Doing::Growth, Second, Moved, 1),
        "between_the_intent_of_an_eni_and_the_create" => replacing(Doing::Growth, Second, Durable, 1),
        "while_the_id_of_a_new_eni_is_recorded" => replacing(Doing::Growth, Second, Synced, 2),
        "while_the_intent_of_an_eni_is_forgotten" => replacing(Doing::Growth, Second, Synced, 3),

        "before_the_answer_to_add" => answering(Doing::Add, Side::Before),
        "after_the_answer_to_add" => answering(Doing::Add, Side::After),
        "before_the_answer_to_del" => answering(Doing::Del, Side::Before),
        "after_the_answer_to_del" => answering(Doing::Del, Side::After),
        "before_an_eni_is_set_up_on_the_node" => traced(Doing::Growth, Moment::NetworkChange(Side::Before, 1)),
        "after_an_eni_is_set_up_on_the_node" => traced(Doing::Growth, Moment::NetworkChange(Side::After, 1)),

        "while_pods_wait_for_an_eni" => with_pods_waiting(),
        "while_it_ends_in_order" => draining(false),
        "while_it_ends_in_order_and_pods_wait" => draining(true),
        "at_its_start_before_ec2_has_said_what_there_is" => at_start(BeforeWork),
        "at_its_start_before_it_knows_what_ec2_has_said" => at_start(BeforeAnswer),
        "at_its_start_while_it_deletes_an_eni_without_owner" => deleting_a_leftover(),
    ];
    e2e::main_with(points, SIDE_BY_SIDE);
}

/// A node whose addresses rest for so short a time that nobody waits for them long.
fn small_node() -> Setting {
    Setting::new("t3.small").cooldown(2)
}

async fn arrived(gate: &Gate) -> Result<()> {
    tokio::time::timeout(PATIENCE, gate.arrived(1)).await.context("EC2 was not asked")
}

/// Kills the daemon while a call is held, which EC2 then finishes; starts it anew.
async fn kill_at(stage: &mut Stage, gate: &Gate) -> Result<()> {
    arrived(gate).await?;
    stage.kill().await?;
    gate.open();
    stage.start().await
}

/// In a call of the making of the first further ENI.
async fn growing(action: &'static str, point: GatePoint) -> Result<()> {
    on(small_node(), async |stage| {
        let gate = stage.cloud().gate(action, point);
        stage.start().await?;
        // The first pod takes an address of the primary ENI, and the pool makes up for it.
        stage.add("early").await?;
        kill_at(stage, &gate).await?;
        stage.recovers(FULL).await
    })
    .await
}

/// In a call that the first start of all makes.
async fn starting(action: &'static str, point: GatePoint) -> Result<()> {
    on(small_node(), async |stage| {
        let gate = stage.cloud().gate(action, point);
        stage.start().await?;
        let adding = stage.adding("early", 2);
        kill_at(stage, &gate).await?;
        stage.added(adding).await?;
        stage.recovers(FULL).await
    })
    .await
}

/// In a call that gives back what pods have left.
async fn freeing(action: &'static str, point: GatePoint) -> Result<()> {
    on(Setting::new("t3.small").frugal(), async |stage| {
        stage.start().await?;
        stage.add_all("early", 7).await?;
        let gate = stage.cloud().gate(action, point);
        for pod in stage.live().skip(1).cloned().collect::<Vec<_>>() {
            stage.remove(pod).await?;
        }
        kill_at(stage, &gate).await?;
        stage.recovers(FULL).await
    })
    .await
}

/// A node of one ENI with room for three prefixes.
fn node_with_prefixes() -> Setting {
    Setting::new("t3.small").cooldown(1).env("MAX_ENI", 1).env("ENABLE_PREFIX_DELEGATION", true)
}

async fn starting_with_prefixes(point: GatePoint) -> Result<()> {
    on(node_with_prefixes(), async |stage| {
        let gate = stage.cloud().gate("AssignPrivateIpAddresses", point);
        stage.start().await?;
        let adding = stage.adding("early", PREFIX + 2);
        kill_at(stage, &gate).await?;
        stage.added(adding).await?;
        stage.recovers(ONE_ENI * PREFIX).await
    })
    .await
}

async fn freeing_prefixes(point: GatePoint) -> Result<()> {
    on(node_with_prefixes().env("POOL_SHRINK_DELAY", 1), async |stage| {
        stage.start().await?;
        stage.add_all("early", PREFIX + 2).await?;
        let gate = stage.cloud().gate("UnassignPrivateIpAddresses", point);
        for pod in stage.live().skip(1).cloned().collect::<Vec<_>>() {
            stage.remove(pod).await?;
        }
        kill_at(stage, &gate).await?;
        stage.recovers(ONE_ENI * PREFIX).await
    })
    .await
}

async fn late_create() -> Result<()> {
    on(small_node(), async |stage| {
        let gate = stage.cloud().gate("CreateNetworkInterface", BeforeWork);
        stage.start().await?;
        stage.add("early").await?;
        arrived(&gate).await?;
        stage.restart().await?;
        // The new daemon has looked for leftovers already.
        gate.open();
        until("the ENI is there", PATIENCE, || async {
            Ok(stage.cloud().snapshot().enis.values().any(|eni| eni.attachment.is_none()))
        })
        .await?;
        stage.recovers(FULL).await
    })
    .await
}

/// In a call that gives back what pods have left. EC2 carries it out when the next daemon has read what
/// there is, and pods want addresses.
async fn late_return(action: &'static str) -> Result<()> {
    on(Setting::new("t3.small").frugal(), async |stage| {
        stage.start().await?;
        stage.add_all("early", 7).await?;
        let gate = stage.cloud().gate(action, BeforeWork);
        for pod in stage.live().skip(1).cloned().collect::<Vec<_>>() {
            stage.remove(pod).await?;
        }
        arrived(&gate).await?;
        stage.restart().await?;
        let adding = stage.adding("late", FULL - 1);
        // Whoever takes what is on its way back for free has given it out by then.
        tokio::time::sleep(Duration::from_secs(10)).await;
        gate.open();
        stage.added(adding).await?;
        stage.recovers(FULL).await
    })
    .await
}

/// In the middle of a file.
async fn replacing(doing: Doing, file: Kept, progress: Progress, nth: usize) -> Result<()> {
    traced(doing, Moment::Replacing(file, progress, nth)).await
}

async fn answering(doing: Doing, side: Side) -> Result<()> {
    traced(doing, Moment::Answer(side)).await
}

/// At a moment that only system calls show.
async fn traced(doing: Doing, moment: Moment) -> Result<()> {
    // ADD and DEL have the files for themselves where no ENI can be made.
    let (enis, room) = match doing {
        Doing::Add | Doing::Del => (1, ONE_ENI),
        Doing::Growth => (2, 2 * ONE_ENI),
    };
    on(small_node().env("MAX_ENI", enis), async |stage| {
        stage.start().await?;
        match doing {
            Doing::Add => {
                stage.add("early").await?;
                let end = watch(stage, moment).await?;
                in_add(stage, end).await?;
            }
            Doing::Del => {
                stage.add_all("early", 2).await?;
                let end = watch(stage, moment).await?;
                in_del(stage, end).await?;
            }
            Doing::Growth => {
                let end = watch(stage, moment).await?;
                let adding = stage.adding("early", 1);
                killed(stage, end).await?;
                stage.start().await?;
                stage.added(adding).await?;
            }
        }
        stage.recovers(room).await
    })
    .await
}

/// Begins to follow the daemon until the moment comes.
async fn watch(stage: &Stage, moment: Moment) -> Result<JoinHandle<Result<End>>> {
    let pid = stage.daemon_pid()?;
    let mut judge = Judge::new(pid, moment);
    begin_to_follow(pid, move |side, call| judge.judge(side, call)).await
}

async fn killed(stage: &mut Stage, end: JoinHandle<Result<End>>) -> Result<()> {
    let end = tokio::time::timeout(PATIENCE, end).await.context("the moment did not come")???;
    ensure!(end == End::Killed, "the daemon ended by itself: {end:?}");
    stage.was_killed().await
}

async fn in_add(stage: &mut Stage, end: JoinHandle<Result<End>>) -> Result<()> {
    let pod = stage.node().sandbox(PodSpec::new("default", "web")).await?;
    let adding = tokio::spawn({
        let pod = pod.clone();
        async move { pod.add().await }
    });
    killed(stage, end).await?;
    let killed_at = Instant::now();
    let written = stage.allocations()?.into_iter().find(|(id, _)| id == pod.container_id());
    stage.start().await?;

    // The plugin asks again.
    adding.await?.context("the ADD that was under way")?;
    // The daemon may have put the address to rest, since nothing in the kernel spoke for it; then
    // nobody may get it before its time, this pod included.
    if let Some((_, address)) = written.filter(|(_, address)| *address != pod.address().to_string()) {
        stage.note_released(address.parse()?, killed_at);
    }
    stage.note_added(&pod)
}

async fn in_del(stage: &mut Stage, end: JoinHandle<Result<End>>) -> Result<()> {
    let pod: Pod = stage.live().next().context("no pod is there")?.clone();
    stage.note_deleted(&pod);
    let removing = tokio::spawn(async move { pod.remove().await });
    killed(stage, end).await?;
    removing.await?.context("the DEL that was under way")?;
    stage.start().await
}

async fn with_pods_waiting() -> Result<()> {
    on(small_node(), async |stage| {
        let gate = stage.cloud().gate("CreateNetworkInterface", BeforeWork);
        stage.start().await?;
        let adding = stage.adding("early", FULL);
        kill_at(stage, &gate).await?;
        stage.added(adding).await?;
        stage.recovers(FULL).await
    })
    .await
}

/// While the daemon waits, on its way out, for EC2 to make an ENI.
async fn draining(pods_wait: bool) -> Result<()> {
    on(small_node(), async |stage| {
        let gate = stage.cloud().gate("CreateNetworkInterface", BeforeAnswer);
        stage.start().await?;
        let adding = stage.adding("early", if pods_wait { FULL } else { 1 });
        arrived(&gate).await?;
        stage.signal(Signal::SIGTERM)?;
        let node = stage.node().clone();
        until("the daemon is on its way out", PATIENCE, || async {
            Ok(node.read(IPAMD_LOG)?.contains("told to stop"))
        })
        .await?;
        kill_at(stage, &gate).await?;
        stage.added(adding).await?;
        stage.recovers(FULL).await
    })
    .await
}

/// A second time, before the new daemon has served.
async fn at_start(point: GatePoint) -> Result<()> {
    on(small_node(), async |stage| {
        stage.start().await?;
        stage.add_all("early", 4).await?;
        stage.kill().await?;
        let gate = stage.cloud().gate("DescribeNetworkInterfaces", point);
        stage.begin()?;
        kill_at(stage, &gate).await?;
        stage.recovers(FULL).await
    })
    .await
}

async fn deleting_a_leftover() -> Result<()> {
    on(small_node(), async |stage| {
        let create = stage.cloud().gate("CreateNetworkInterface", BeforeAnswer);
        stage.start().await?;
        stage.add("early").await?;
        arrived(&create).await?;
        stage.kill().await?;
        let delete = stage.cloud().gate("DeleteNetworkInterface", BeforeAnswer);
        create.open();
        stage.begin()?;
        kill_at(stage, &delete).await?;
        stage.recovers(FULL).await
    })
    .await
}
