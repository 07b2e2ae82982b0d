//! Where addresses come from: prefixes and single IPs, switched on a live node; subnets that tags
//! offer and forbid; instance metadata alone; and nobody, while EC2 says no.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::stage::{Setting, Stage, on, plugin_error};
use e2e::{binary, scenarios, until};
use lab::cloud::{
    AssignPrivateIpAddresses, AttachNetworkInterface, CloudBuilder, CreateNetworkInterface, Eni, Fault, IMDS,
    Request, Response,
};
use lab::world::{Pod, finish};
use serde_json::Value;

/// Longer than two looks at metadata, half a minute apart.
const PATIENCE: Duration = Duration::from_secs(150);

const PREFIXES: &str = "ENABLE_PREFIX_DELEGATION";

fn main() {
    e2e::main(scenarios![
        prefixes_fill_a_node_with_few_calls,
        pods_keep_their_addresses_when_the_mode_is_switched_and_switched_back,
        a_subnet_without_free_blocks_gives_single_addresses,
        a_subnet_is_excluded_and_taken_back_while_the_daemon_runs,
        in_imds_only_mode_ec2_is_never_asked,
        a_node_that_ec2_denies_everything_serves_the_pods_it_has,
    ]);
}

fn attached(stage: &Stage) -> Vec<Eni> {
    let snapshot = stage.cloud().snapshot();
    snapshot.attached(stage.node().instance_id()).into_iter().map(|eni| (**eni).clone()).collect()
}

/// The addresses of the live pods that lie in prefixes of the node's ENIs.
fn in_prefixes(stage: &Stage) -> BTreeSet<Ipv4Addr> {
    let prefixes: Vec<_> = attached(stage).into_iter().flat_map(|eni| eni.prefixes).collect();
    let live = stage.live().map(Pod::address);
    live.filter(|address| prefixes.iter().any(|prefix| prefix.contains(address))).collect()
}

async fn ask(stage: &Stage, request: Request) -> Result<Response> {
    stage.cloud().ask(request).await.map_err(|error| anyhow::anyhow!("{error:?}"))
}

async fn prefixes_fill_a_node_with_few_calls() -> Result<()> {
    on(Setting::new("m5.large").env(PREFIXES, true), async |stage| {
        stage.start().await?;

        stage.add_all("web", 60).await?;

        stage.check().await?;
        ensure!(in_prefixes(stage).len() == 60, "{} of 60 pods live in prefixes", in_prefixes(stage).len());
        let counts = stage.cloud().counts_of(stage.node().instance_id());
        eprintln!("{counts:?}");
        let assigns = counts.get("AssignPrivateIpAddresses").map_or(0, |count| count.received);
        ensure!(assigns <= 6, "{assigns} calls of AssignPrivateIpAddresses");
        ensure!(attached(stage).len() == 1, "60 addresses are {} ENIs", attached(stage).len());
        Ok(())
    })
    .await
}

async fn pods_keep_their_addresses_when_the_mode_is_switched_and_switched_back() -> Result<()> {
    let setting = Setting::new("m5.large").cooldown(1).env("POOL_SHRINK_DELAY", 2);
    on(setting, async |stage| {
        stage.start().await?;
        stage.add_all("single", 4).await?;

        stage.set_env(PREFIXES, true);
        stage.restart().await?;
        stage.check().await?;
        stage.add_all("prefixed", 12).await?;
        stage.check().await?;
        ensure!(in_prefixes(stage).len() >= 8, "of 16 pods {:?} live in prefixes", in_prefixes(stage));

        stage.set_env(PREFIXES, false);
        stage.restart().await?;
        stage.check().await?;
        stage.add_all("late", 4).await?;
        stage.check().await?;
        let prefixed: Vec<_> =
            stage.live().filter(|pod| pod.name().starts_with("prefixed")).cloned().collect();
        for pod in prefixed {
            stage.remove(pod).await?;
        }
        until("the prefixes without pods are given back", PATIENCE, || async {
            let used = in_prefixes(stage);
            let prefixes = attached(stage).into_iter().flat_map(|eni| eni.prefixes);
            Ok(prefixes.into_iter().all(|prefix| used.iter().any(|address| prefix.contains(address))))
        })
        .await?;
        stage.check().await
    })
    .await
}

async fn a_subnet_without_free_blocks_gives_single_addresses() -> Result<()> {
    // Blocks 0 and 3 have addresses that AWS keeps; one address each takes the two between them.
    let cloud = CloudBuilder::new(7)
        .subnet("10.0.0.0/26".parse()?, "us-west-2a")
        .subnet("10.0.16.0/20".parse()?, "us-west-2b");
    on(Setting::new("m5.large").cloud(cloud).cooldown(2).env(PREFIXES, true), async |stage| {
        let subnet = attached(stage)[0].subnet_id.clone();
        for last in [20, 36] {
            let own = Ipv4Addr::new(10, 0, 0, last);
            let wish = CreateNetworkInterface {
                subnet_id: subnet.clone(),
                primary_ip: Some(own),
                ..CreateNetworkInterface::default()
            };
            if stage.node().primary_ip() != own {
                ask(stage, Request::CreateNetworkInterface(wish)).await?;
            }
        }
        stage.start().await?;

        stage.add_all("web", 12).await?;

        ensure!(in_prefixes(stage).is_empty(), "{:?} live in prefixes", in_prefixes(stage));
        let snapshot = stage.cloud().snapshot();
        let strangers = snapshot.enis.values().filter(|eni| eni.attachment.is_none());
        for eni in strangers {
            ask(stage, Request::DeleteNetworkInterface { eni_id: eni.id.clone() }).await?;
        }
        stage.check().await
    })
    .await
}

/// Makes an ENI by hand and attaches it.
async fn attach_by_hand(stage: &Stage, wish: CreateNetworkInterface, index: u16) -> Result<String> {
    let Response::Created { eni, .. } = ask(stage, Request::CreateNetworkInterface(wish)).await? else {
        bail!("no ENI was made")
    };
    let attach = AttachNetworkInterface {
        eni_id: eni.id.clone(),
        instance_id: stage.node().instance_id().to_owned(),
        device_index: index,
        network_card: 0,
    };
    ask(stage, Request::AttachNetworkInterface(attach)).await?;
    Ok(eni.id.clone())
}

async fn tag(stage: &Stage, subnet: &str, value: &str) -> Result<()> {
    let tags = BTreeMap::from([("kubernetes.io/role/cni".to_owned(), value.to_owned())]);
    ask(stage, Request::CreateTags { resources: vec![subnet.to_owned()], tags }).await?;
    Ok(())
}

async fn is_excluded(stage: &Stage, subnet: &str) -> Result<bool> {
    let mut command = stage.node().command(binary("ipamd")?);
    command.args(["status", "--output", "json"]).env_clear();
    let ran = finish(command, None, PATIENCE).await?;
    let status: Value = serde_json::from_slice(&ran.stdout).with_context(|| ran.complaint())?;
    let subnets = status["subnets"].as_array().context("no subnets in the status")?;
    Ok(subnets.iter().any(|it| it["id"] == subnet && it["excluded"] == true))
}

async fn a_subnet_is_excluded_and_taken_back_while_the_daemon_runs() -> Result<()> {
    let setting = Setting::new("m5.large").cooldown(1).env("MAX_ENI", 2);
    on(setting, async |stage| {
        let primary = attached(stage)[0].subnet_id.clone();
        let snapshot = stage.cloud().snapshot();
        let is_other = |id: &&String| **id != primary && snapshot.subnets[*id].zone == "us-west-2a";
        let other = snapshot.subnets.keys().find(is_other).context("one subnet in the zone")?.clone();
        tag(stage, &other, "1").await?;
        // With pods in both subnets, so that the ENI in the other one stays whatever its tag says.
        stage.start().await?;
        stage.add_all("web", 11).await?;
        let in_other = |stage: &Stage| {
            let snapshot = stage.cloud().snapshot();
            let net = snapshot.subnets[&other].cidr;
            stage.live().filter(|pod| net.contains(&pod.address())).count()
        };
        let before = in_other(stage);
        ensure!(before >= 2, "{before} pods in {other}");

        tag(stage, &other, "0").await?;
        // A stranger's ENI makes the daemon look at EC2.
        let no_manage = ("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned());
        let wish = CreateNetworkInterface {
            subnet_id: primary.clone(),
            tags: BTreeMap::from([no_manage]),
            ..CreateNetworkInterface::default()
        };
        attach_by_hand(stage, wish, 2).await?;
        until("the subnet is excluded", PATIENCE, || is_excluded(stage, &other)).await?;
        let refusal = stage.add_once("refused").await.err().context("an excluded ENI took a pod")?;
        eprintln!("{}", plugin_error(&refusal).context("no CNI error")?);
        ensure!(in_other(stage) == before, "a pod came into an excluded subnet");

        tag(stage, &other, "1").await?;
        detach_stranger(stage).await?;
        until("the subnet is taken back", PATIENCE, || async { Ok(!is_excluded(stage, &other).await?) })
            .await?;
        stage.add("back").await?;
        ensure!(in_other(stage) == before + 1, "the pod is not in {other}");
        Ok(())
    })
    .await
}

/// Takes the ENI away that is nobody's.
async fn detach_stranger(stage: &Stage) -> Result<()> {
    let stranger = attached(stage)
        .into_iter()
        .find(|eni| eni.tags.contains_key("node.k8s.amazonaws.com/no_manage"))
        .context("no ENI of a stranger")?;
    let attachment = stranger.attachment.context("it is not attached")?;
    let detach = lab::cloud::DetachNetworkInterface { attachment_id: attachment.id, force: false };
    ask(stage, Request::DetachNetworkInterface(detach)).await?;
    Ok(())
}

async fn in_imds_only_mode_ec2_is_never_asked() -> Result<()> {
    let setting = Setting::new("m5.large").cooldown(1).env("ENABLE_IMDS_ONLY_MODE", true);
    on(setting, async |stage| {
        let primary = attached(stage)[0].clone();
        let assign = |count| {
            let wish = AssignPrivateIpAddresses {
                eni_id: primary.id.clone(),
                count: Some(count),
                ..AssignPrivateIpAddresses::default()
            };
            Request::AssignPrivateIpAddresses(wish)
        };
        ask(stage, assign(3)).await?;
        let wish = CreateNetworkInterface {
            subnet_id: primary.subnet_id.clone(),
            secondary_count: Some(2),
            ..CreateNetworkInterface::default()
        };
        attach_by_hand(stage, wish, 1).await?;
        stage.start().await?;

        stage.add_all("web", 5).await?;
        stage.check().await?;
        ask(stage, assign(1)).await?;
        stage.add("late").await?;
        stage.check().await?;
        stage.restart().await?;
        stage.check().await?;
        stage.remove_all().await?;
        stage.check().await?;

        let counts = stage.cloud().counts_of(stage.node().instance_id());
        let asked: Vec<_> = counts.keys().filter(|action| *action != IMDS).collect();
        ensure!(asked.is_empty(), "EC2 was asked: {asked:?}");
        Ok(())
    })
    .await
}

async fn a_node_that_ec2_denies_everything_serves_the_pods_it_has() -> Result<()> {
    on(Setting::new("t3.small").cooldown(2), async |stage| {
        stage.start().await?;
        stage.add_all("early", 5).await?;
        let before = stage.allocations()?;
        stage.kill().await?;

        let denied = stage.fault(Fault::on("*").deny());
        stage.start().await?;

        ensure!(stage.allocations()? == before, "the restart changed {before:?}");
        // A sandbox that lost its interface is what a runtime repeats ADD for.
        let repeated = stage.live().next().context("no pod")?.clone();
        let address = repeated.address();
        repeated.exec(&["ip", "link", "delete", "eth0"]).await?;
        repeated.add().await.context("a repeated ADD")?;
        ensure!(repeated.address() == address, "{address} has become {}", repeated.address());
        let removed = stage.live().last().context("no pod")?.clone();
        stage.remove(removed).await.context("a DEL")?;
        let refusal = stage.add_once("refused").await.err().context("a pod got an unconfirmed address")?;
        let refusal = plugin_error(&refusal).context("no CNI error")?;
        eprintln!("{refusal}");
        ensure!(refusal.code == 100, "code {}: {refusal}", refusal.code);
        ensure!(refusal.to_string().contains("DescribeNetworkInterfaces"), "{refusal}");

        stage.cloud().clear_fault(denied);
        stage.add("late").await?;
        stage.check().await
    })
    .await
}
