//! What EC2 and the metadata service can do to a node, and that its pods get their addresses in
//! the end, each its own.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::stage::{Setting, Stage, on, plugin_error};
use e2e::{scenarios, until};
use lab::cloud::{CloudBuilder, Fault, RoleCredentials};
use lab::world::Pod;
use lab::world::cni::PluginError;

const PATIENCE: Duration = Duration::from_secs(120);

/// The pods that a t3.small has room for: three ENIs with three secondary addresses each.
const FULL: usize = 9;

/// Longer than any scenario: metadata stands still.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn main() {
    e2e::main(scenarios![
        a_failed_attach_costs_no_pod_its_address,
        an_attach_whose_answer_is_lost_leaves_no_eni_unused,
        an_attach_that_never_arrives_leaves_no_eni_behind,
        a_create_whose_answer_is_lost_leaves_no_eni_behind,
        an_assign_whose_answer_is_lost_leaves_no_address_unused,
        an_unused_eni_is_deleted_however_often_ec2_refuses,
        adds_wait_while_ec2_throttles_everything,
        pods_do_not_wait_for_metadata_that_lags,
        a_restart_under_stale_metadata_loses_and_doubles_nothing,
        what_was_released_is_not_given_out_because_stale_metadata_shows_it,
        a_denied_action_is_named_to_the_pod,
        expired_credentials_are_named_to_the_pod,
        an_exhausted_subnet_is_named_to_the_pod,
        a_subnet_that_others_fill_serves_again_when_they_leave,
        an_eni_that_is_attached_late_serves_pods_in_the_end,
    ]);
}

/// Fills a node while EC2 misbehaves in this way.
async fn fills_in_spite_of(faults: Vec<Fault>) -> Result<()> {
    on(Setting::new("t3.small").cooldown(2), async |stage| {
        let actions: BTreeSet<_> = faults.iter().map(|it| format!("{it:?}")).collect();
        for fault in faults {
            stage.fault(fault);
        }
        stage.start().await?;

        stage.add_all("web", FULL).await?;

        stage.check().await.with_context(|| format!("after {actions:?}"))?;
        let calls = stage.cloud().calls();
        let is_failed = |outcome: &Option<lab::cloud::Outcome>| {
            !matches!(outcome, None | Some(lab::cloud::Outcome::Success))
        };
        ensure!(calls.iter().any(|it| is_failed(&it.outcome)), "no fault happened");
        stage.remove_all().await?;
        stage.check().await
    })
    .await
}

async fn a_failed_attach_costs_no_pod_its_address() -> Result<()> {
    fills_in_spite_of(vec![Fault::on("AttachNetworkInterface").error("InternalError").times(1)]).await
}

async fn an_attach_whose_answer_is_lost_leaves_no_eni_unused() -> Result<()> {
    fills_in_spite_of(vec![Fault::on("AttachNetworkInterface").lose_answer().times(1)]).await
}

async fn an_attach_that_never_arrives_leaves_no_eni_behind() -> Result<()> {
    fills_in_spite_of(vec![Fault::on("AttachNetworkInterface").drop_request().times(1)]).await
}

async fn a_create_whose_answer_is_lost_leaves_no_eni_behind() -> Result<()> {
    fills_in_spite_of(vec![Fault::on("CreateNetworkInterface").lose_answer().times(1)]).await
}

async fn an_assign_whose_answer_is_lost_leaves_no_address_unused() -> Result<()> {
    fills_in_spite_of(vec![Fault::on("AssignPrivateIpAddresses").lose_answer().times(1)]).await
}

async fn an_unused_eni_is_deleted_however_often_ec2_refuses() -> Result<()> {
    fills_in_spite_of(vec![
        Fault::on("AttachNetworkInterface").error("AttachmentLimitExceeded").times(1),
        Fault::on("DeleteNetworkInterface").error("InternalError").times(2),
    ])
    .await
}

async fn adds_wait_while_ec2_throttles_everything() -> Result<()> {
    on(Setting::new("m5.large"), async |stage| {
        stage.start().await?;
        stage.fault(Fault::on("*").throttle().lasting(Duration::from_secs(5)));

        // Nine addresses are there; the other pods have to wait for EC2.
        let node = stage.node().clone();
        let mut adding = tokio::task::JoinSet::new();
        for number in 1..=14 {
            let node = node.clone();
            adding.spawn(async move { node.add_pod("default", &format!("web-{number}")).await });
        }

        while let Some(pod) = adding.join_next().await {
            let pod = pod?.context("an ADD failed that could have waited")?;
            stage.note_added(&pod)?;
        }
        let throttled: u64 = stage.cloud().counts().values().map(|it| it.throttled).sum();
        ensure!(throttled > 0, "nothing was throttled");
        stage.check().await
    })
    .await
}

async fn pods_do_not_wait_for_metadata_that_lags() -> Result<()> {
    on(Setting::new("t3.small"), async |stage| {
        stage.cloud().set_imds_lag(FOR_EVER);
        stage.start().await?;

        stage.add_all("web", FULL).await?;

        stage.check().await?;
        stage.cloud().set_imds_lag(Duration::ZERO);
        stage.restart().await?;
        stage.check().await
    })
    .await
}

async fn a_restart_under_stale_metadata_loses_and_doubles_nothing() -> Result<()> {
    on(Setting::new("t3.small"), async |stage| {
        stage.cloud().set_imds_lag(FOR_EVER);
        stage.start().await?;
        stage.add_all("early", 5).await?;
        let before = stage.allocations()?;

        stage.restart().await?;

        ensure!(stage.allocations()? == before, "the restart changed {before:?}");
        stage.check().await?;
        stage.add_all("late", FULL - 5).await?;
        stage.check().await?;
        // What the lag of half a minute would show by and by comes at once here.
        stage.cloud().set_imds_lag(Duration::ZERO);
        stage.restart().await?;
        stage.check().await
    })
    .await
}

async fn what_was_released_is_not_given_out_because_stale_metadata_shows_it() -> Result<()> {
    on(Setting::new("t3.small").frugal(), async |stage| {
        stage.start().await?;
        stage.add_all("early", 7).await?;
        let shown = all_addresses(stage);
        stage.cloud().set_imds_lag(FOR_EVER);
        stage.remove_all().await?;
        until("surplus ENIs and addresses are given back", PATIENCE, || async {
            let snapshot = stage.cloud().snapshot();
            let attached = snapshot.attached(stage.node().instance_id());
            Ok(attached.len() == 1 && attached[0].addresses.len() <= 3)
        })
        .await?;
        let released: BTreeSet<_> = shown.difference(&all_addresses(stage)).copied().collect();
        ensure!(released.len() >= 5, "only {released:?} of {shown:?} were given back");

        stage.restart().await?;
        stage.add_all("late", FULL).await?;

        // Each pod's address is one that EC2 routes to it, which the checks find out.
        stage.check().await
    })
    .await
}

fn all_addresses(stage: &Stage) -> BTreeSet<std::net::Ipv4Addr> {
    let snapshot = stage.cloud().snapshot();
    let enis = snapshot.attached(stage.node().instance_id());
    enis.into_iter().flat_map(|eni| eni.addresses.iter().map(|it| it.address)).collect()
}

/// Adds pods one by one until the plugin refuses one, and gives what it said.
async fn first_refusal(stage: &mut Stage, prefix: &str) -> Result<PluginError> {
    for number in 1..=30 {
        match stage.add_once(&format!("{prefix}-{number}")).await {
            Ok(_) => {}
            Err(error) => {
                let words = plugin_error(&error).with_context(|| format!("no CNI error: {error:#}"))?.clone();
                eprintln!("{words}");
                return Ok(words);
            }
        }
    }
    bail!("no ADD was refused")
}

fn contains_all(error: &PluginError, code: u64, parts: &[&str]) -> Result<()> {
    let text = error.to_string();
    for part in parts {
        ensure!(text.contains(part), "no {part:?} in: {text}");
    }
    ensure!(error.code == code, "code {}: expected {code} with {text}", error.code);
    Ok(())
}

async fn a_denied_action_is_named_to_the_pod() -> Result<()> {
    on(Setting::new("t3.small"), async |stage| {
        let denied = stage.fault(Fault::on("CreateNetworkInterface").deny());
        stage.start().await?;

        let refusal = first_refusal(stage, "web").await?;

        contains_all(&refusal, 100, &["CreateNetworkInterface"])?;
        stage.cloud().clear_fault(denied);
        stage.add("late").await?;
        stage.check().await
    })
    .await
}

async fn expired_credentials_are_named_to_the_pod() -> Result<()> {
    on(Setting::new("t3.small"), async |stage| {
        stage.start().await?;
        let instance = stage.node().instance_id().to_owned();
        stage.cloud().set_role_credentials(RoleCredentials::Stale);
        stage.cloud().expire_credentials(&instance);

        let refusal = first_refusal(stage, "web").await?;

        contains_all(&refusal, 100, &["credentials"])?;
        // The session was to last for hours; that EC2 rejects it must count for more.
        stage.cloud().set_role_credentials(RoleCredentials::Rotating);
        stage.add("late").await?;
        stage.check().await
    })
    .await
}

async fn an_exhausted_subnet_is_named_to_the_pod() -> Result<()> {
    // Eleven addresses: the node's own, nine for pods of its primary ENI, one that is left.
    let cloud = CloudBuilder::new(7)
        .subnet("10.0.0.0/28".parse()?, "us-west-2a")
        .subnet("10.0.16.0/20".parse()?, "us-west-2b");
    on(Setting::new("m5.large").cloud(cloud).cooldown(2), async |stage| {
        stage.start().await?;
        let refusal = first_refusal(stage, "web").await?;

        contains_all(&refusal, 11, &["subnet"])?;
        stage.check().await?;
        let one: Pod = stage.live().next().context("no pod got an address")?.clone();
        stage.remove(one).await?;
        stage.add("late").await?;
        stage.check().await
    })
    .await
}

async fn a_subnet_that_others_fill_serves_again_when_they_leave() -> Result<()> {
    on(Setting::new("t3.small").cooldown(2), async |stage| {
        stage.start().await?;
        stage.add("early").await?;
        let subnet = stage.node().instance().subnet_id.clone();
        stage.cloud().occupy_subnet(&subnet, 0)?;
        let refusal = first_refusal(stage, "web").await?;

        contains_all(&refusal, 11, &["subnet"])?;
        stage.cloud().vacate_subnet(&subnet)?;
        let room = FULL - stage.live().count();
        stage.add_all("late", room).await?;
        stage.check().await
    })
    .await
}

async fn an_eni_that_is_attached_late_serves_pods_in_the_end() -> Result<()> {
    on(Setting::new("t3.small"), async |stage| {
        stage.cloud().set_attach_delay(Duration::from_secs(6));
        stage.start().await?;

        stage.add_all("web", FULL).await?;

        stage.check().await
    })
    .await
}
