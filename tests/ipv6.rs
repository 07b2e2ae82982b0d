//! A node whose pods have IPv6 addresses: one prefix from EC2, addresses from it in order, what `ip`
//! shows of them, and what becomes of pods when the daemon or the prefix goes.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::look::{allocations, lines, suffix};
use e2e::stage::plugin_error;
use e2e::{binary, scenarios, until};
use lab::cloud::{CloudBuilder, Eni, Fault, IMDS, Request, UnassignIpv6Addresses};
use lab::world::{IpamdOptions, Lab, Node, Pod, finish};
use serde_json::Value;
use tokio::task::JoinSet;

/// Longer than two looks at metadata, half a minute apart.
const PATIENCE: Duration = Duration::from_secs(150);

fn main() {
    e2e::main(scenarios![
        a_start_asks_ec2_for_one_prefix_and_for_nothing_needless,
        a_node_and_its_pods_look_as_documented,
        pods_use_a_second_eni_where_the_primary_one_is_excluded,
        sixty_pods_come_and_go_and_leave_nothing,
        pods_keep_their_addresses_when_the_daemon_is_killed_and_restarted,
        a_prefix_that_somebody_takes_away_is_noticed_reported_and_replaced,
        a_pod_hears_why_there_is_no_prefix_and_gets_an_address_once_there_is_one,
    ]);
}

fn options() -> IpamdOptions {
    IpamdOptions::new()
        .env("ENABLE_IPv4", false)
        .env("ENABLE_IPv6", true)
        .env("ENABLE_PREFIX_DELEGATION", true)
        .env("IP_COOLDOWN_PERIOD", 300)
}

/// One m5.large in a VPC with IPv6.
async fn world() -> Result<Lab> {
    let lab = Lab::builder()
        .cloud(CloudBuilder::two_zones(7).ipv6())
        .node("m5.large", "us-west-2a")
        .start()
        .await?;
    lab.nodes()[0].install_plugin(None).await?;
    Ok(lab)
}

fn primary(node: &Node) -> Result<Eni> {
    let snapshot = node.cloud().snapshot();
    let eni = snapshot.enis.get(&node.instance().primary_eni).context("no primary ENI")?;
    Ok((**eni).clone())
}

/// The first address of the only prefix of the primary ENI.
fn prefix(node: &Node) -> Result<Ipv6Addr> {
    let prefixes = primary(node)?.ipv6_prefixes;
    ensure!(prefixes.len() == 1 && prefixes[0].prefix_len() == 80, "the primary ENI has {prefixes:?}");
    Ok(prefixes[0].network())
}

/// Address number `number` of a prefix.
fn nth(prefix: Ipv6Addr, number: u128) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(prefix) + number)
}

fn is_in(prefix: Ipv6Addr, address: Ipv6Addr) -> bool {
    (u128::from(prefix) ^ u128::from(address)) >> 48 == 0
}

/// The pod's address by ADD's result.
fn address(pod: &Pod) -> Result<Ipv6Addr> {
    let result = pod.result().context("no result")?;
    let text = result["ips"][0]["address"].as_str().context("no address in the result")?;
    Ok(text.strip_suffix("/128").with_context(|| format!("{text} is not a /128"))?.parse()?)
}

fn received(node: &Node) -> Vec<(String, u64)> {
    let counts = node.cloud().counts_of(node.instance_id());
    let of_ec2 = counts.into_iter().filter(|(action, _)| action != IMDS);
    of_ec2.map(|(action, count)| (action, count.received)).filter(|(_, count)| *count > 0).collect()
}

async fn ipamd(node: &Node, words: &[&str]) -> Result<String> {
    let mut command = node.command(binary("ipamd")?);
    command.args(words).env_clear();
    Ok(finish(command, None, PATIENCE).await?.text())
}

async fn add_all(node: &Node, prefix: &str, count: usize) -> Result<Vec<Pod>> {
    let mut adding = JoinSet::new();
    for number in 0..count {
        let (node, name) = (node.clone(), format!("{prefix}-{number}"));
        adding.spawn(async move { node.add_pod("default", &name).await });
    }
    adding.join_all().await.into_iter().collect()
}

async fn a_start_asks_ec2_for_one_prefix_and_for_nothing_needless() -> Result<()> {
    let lab = world().await?;
    let node = &lab.nodes()[0];

    let ipamd = node.start_ipamd(&options()).await?;
    until("the prefix is there", PATIENCE, async || Ok(prefix(node).is_ok())).await?;
    until("the primary ENI is tagged", PATIENCE, async || Ok(!primary(node)?.tags.is_empty())).await?;

    let once = |action: &str| (action.to_owned(), 1);
    // What is attached and what is left over, the subnets' tags, our tags, the prefix.
    let mut wanted = vec![
        once("AssignIpv6Addresses"),
        once("CreateTags"),
        ("DescribeNetworkInterfaces".to_owned(), 2),
        once("DescribeSubnets"),
    ];
    until("all calls came", PATIENCE, async || Ok(received(node) == wanted))
        .await
        .with_context(|| format!("{:?}", received(node)))?;
    ensure!(primary(node)?.prefixes.is_empty(), "the primary ENI has a prefix of IPv4");

    ipamd.terminate(Duration::from_secs(30)).await?;
    let _ipamd = node.start_ipamd(&options()).await?;
    let pod = node.add_pod("default", "web").await?;

    wanted[2].1 = 4;
    wanted[3].1 = 2;
    until("the same is read again", PATIENCE, async || Ok(received(node) == wanted))
        .await
        .with_context(|| format!("{:?}", received(node)))?;
    ensure!(address(&pod)? == nth(prefix(node)?, 0));
    lab.shutdown().await
}

/// The state of the primary ENI's pod: mode A of the data plane.
async fn a_node_and_its_pods_look_as_documented() -> Result<()> {
    let lab = world().await?;
    let node = &lab.nodes()[0];
    let image = routes(node).await?;
    let _ipamd = node.start_ipamd(&options()).await?;

    let pods = [node.add_pod("default", "p0").await?, node.add_pod("default", "p1").await?];
    let addresses = [address(&pods[0])?, address(&pods[1])?];
    ensure!(addresses == [nth(prefix(node)?, 0), nth(prefix(node)?, 1)], "{addresses:?}");

    same(
        &lines(node.place(), &["ip", "-6", "rule"]).await?,
        &[
            "0: from all lookup local".to_owned(),
            format!("512: from all to {} lookup main", addresses[0]),
            format!("512: from all to {} lookup main", addresses[1]),
            "1024: from all fwmark 0x80/0x80 lookup main".to_owned(),
            "32766: from all lookup main".to_owned(),
        ],
    )?;
    let mut wanted = image;
    for (pod, address) in pods.iter().zip(addresses) {
        let veth = format!("eni{}", suffix(node, pod.namespace(), pod.name()).await?);
        ensure!(pod.host_veth() == veth);
        wanted.insert(format!("{address} dev {veth} metric 1024 pref medium"));
    }
    let shown = routes(node).await?;
    ensure!(shown == wanted, "{shown:#?} is not {wanted:#?}");
    for pod in &pods {
        inside_of_pod(pod).await.with_context(|| pod.label())?;
    }
    let result = pods[0].result().context("no result")?;
    ensure!(result["interfaces"][1]["mac"] == "254" && result["interfaces"][2]["sandbox"] == "0", "{result}");
    ensure!(result["ips"][0]["gateway"] == Value::Null, "{result}");
    lab.shutdown().await
}

/// Mode B of the data plane: the ENI has a table of its own, to which rules lead.
async fn pods_use_a_second_eni_where_the_primary_one_is_excluded() -> Result<()> {
    let lab = world().await?;
    let node = &lab.nodes()[0];
    let excluded = primary(node)?.subnet_id;
    for (id, subnet) in lab.cloud().snapshot().subnets.iter().filter(|(_, it)| it.zone == "us-west-2a") {
        let role = if *id == excluded { "0" } else { "1" };
        let tagged = lab.cloud().set_tag(&subnet.id, "kubernetes.io/role/cni", Some(role));
        tagged.map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    let image = routes(node).await?;
    let _ipamd = node.start_ipamd(&options()).await?;

    let pod = node.add_pod("default", "web").await?;

    ensure!(primary(node)?.ipv6_prefixes.is_empty(), "the excluded ENI has a prefix");
    let snapshot = lab.cloud().snapshot();
    let attached = snapshot.attached(node.instance_id());
    ensure!(attached.len() == 2, "{attached:#?}");
    let (eni, address, veth) = (attached[1], address(&pod)?, pod.host_veth());
    ensure!(eni.ipv6_prefixes.len() == 1 && eni.ipv6_prefixes[0].network() == address, "{eni:#?}");
    let own = eni.ipv6_addresses[0];
    same(
        &lines(node.place(), &["ip", "-6", "rule"]).await?,
        &[
            "0: from all lookup local".to_owned(),
            format!("512: from all to {address} lookup main"),
            "1024: from all fwmark 0x80/0x80 lookup main".to_owned(),
            format!("1536: from {address} lookup 2"),
            format!("32765: from {own} lookup 2"),
            "32766: from all lookup main".to_owned(),
        ],
    )?;
    same(
        &lines(node.place(), &["ip", "-6", "route", "show", "table", "2"]).await?,
        &[
            "fe80:ec2::1 dev eth1 metric 1024 pref medium".to_owned(),
            "default via fe80:ec2::1 dev eth1 metric 1024 pref medium".to_owned(),
        ],
    )?;
    let mut wanted = image;
    wanted.insert(format!("{address} dev {veth} metric 1024 pref medium"));
    let shown = routes(node).await?;
    ensure!(shown == wanted, "{shown:#?} is not {wanted:#?}");
    let shown = node.ip(&["-6", "-j", "addr", "show", "dev", "eth1"]).await?;
    let addresses = shown[0]["addr_info"].as_array().context("no addresses")?;
    let global: Vec<_> = addresses.iter().filter(|it| it["scope"] == "global").collect();
    ensure!(global.len() == 1 && global[0]["local"] == own.to_string(), "{shown}");
    ensure!(global[0]["prefixlen"] == 64, "{shown}");
    let result = pod.result().context("no result")?;
    ensure!(result["interfaces"][1]["mac"] == "2" && result["interfaces"][2]["sandbox"] == "1", "{result}");
    lab.shutdown().await
}

/// The main table without what the kernel puts there for every link with IPv6.
async fn routes(node: &Node) -> Result<BTreeSet<String>> {
    let shown = lines(node.place(), &["ip", "-6", "route"]).await?;
    Ok(shown.into_iter().filter(|line| !line.starts_with("fe80::/64 ")).collect())
}

async fn inside_of_pod(pod: &Pod) -> Result<()> {
    let (place, own) = (pod.place(), address(pod)?);
    let shown = lines(place, &["ip", "-6", "route"]).await?;
    let shown: Vec<_> = shown.into_iter().filter(|line| !line.starts_with("fe80::/64 ")).collect();
    same(
        &shown,
        &[
            format!("{own} dev eth0 proto kernel metric 256 pref medium"),
            "fe80::1 dev eth0 metric 1024 pref medium".to_owned(),
            "default via fe80::1 dev eth0 metric 1024 pref medium".to_owned(),
        ],
    )?;
    let links = pod.node().ip(&["-j", "link", "show", "dev", &pod.host_veth()]).await?;
    let mac = links[0]["address"].as_str().context("the host's end has no address")?;
    same(
        &lines(place, &["ip", "-6", "neigh", "show", "nud", "permanent"]).await?,
        &[format!("fe80::1 dev eth0 lladdr {mac} PERMANENT")],
    )?;
    let shown = place.ip(&["-6", "-j", "addr", "show", "dev", "eth0"]).await?;
    let addresses = shown[0]["addr_info"].as_array().context("no addresses")?;
    let global: Vec<_> = addresses.iter().filter(|it| it["scope"] == "global").collect();
    ensure!(global.len() == 1 && global[0]["local"] == own.to_string(), "{shown}");
    ensure!(global[0]["prefixlen"] == 128 && global[0]["tentative"] == Value::Null, "{shown}");
    Ok(())
}

fn same(shown: &[String], wanted: &[String]) -> Result<()> {
    ensure!(shown == wanted, "{shown:#?}\nis not\n{wanted:#?}");
    Ok(())
}

async fn sixty_pods_come_and_go_and_leave_nothing() -> Result<()> {
    let lab = world().await?;
    let node = &lab.nodes()[0];
    let _ipamd = node.start_ipamd(&options()).await?;
    let warm = node.add_pod("default", "warm").await?;
    warm.remove().await?;
    let (rules, routes_before) = (lines(node.place(), &["ip", "-6", "rule"]).await?, routes(node).await?);

    let pods = add_all(node, "web", 60).await?;

    // The first address rests.
    let first = prefix(node)?;
    let wanted: BTreeSet<_> = (1..=60).map(|number| nth(first, number)).collect();
    let given = pods.iter().map(address).collect::<Result<BTreeSet<_>>>()?;
    ensure!(given == wanted, "{given:?}");
    let recorded = allocations(node)?;
    ensure!(recorded.len() == 60 && recorded.iter().all(|it| it["ipv6"].is_string()), "{recorded:?}");
    ensure!(recorded.iter().all(|it| it["ipv4"] == Value::Null), "{recorded:?}");

    for pod in pods {
        pod.remove().await?;
    }

    ensure!(allocations(node)?.is_empty());
    same(&lines(node.place(), &["ip", "-6", "rule"]).await?, &rules)?;
    until("the routes are gone with the links", PATIENCE, async || Ok(routes(node).await? == routes_before))
        .await?;
    let calls = received(node);
    ensure!(calls.iter().all(|(action, count)| action != "AssignIpv6Addresses" || *count == 1), "{calls:?}");
    lab.shutdown().await
}

async fn pods_keep_their_addresses_when_the_daemon_is_killed_and_restarted() -> Result<()> {
    let lab = world().await?;
    let node = &lab.nodes()[0];
    let ipamd = node.start_ipamd(&options()).await?;
    let mut pods = add_all(node, "before", 5).await?;
    let gone = pods.pop().context("no pod")?;
    let rests = address(&gone)?;
    gone.remove().await?;
    let before = sorted(allocations(node)?);

    ipamd.kill().await?;
    let ipamd = node.start_ipamd(&options()).await?;
    ensure!(sorted(allocations(node)?) == before, "the state file is another after SIGKILL");
    pods.extend(add_all(node, "after", 5).await?);
    ipamd.terminate(Duration::from_secs(30)).await?;
    let _ipamd = node.start_ipamd(&options()).await?;
    pods.extend(add_all(node, "late", 5).await?);

    let given = pods.iter().map(address).collect::<Result<BTreeSet<_>>>()?;
    ensure!(given.len() == pods.len(), "an address was given twice: {given:?}");
    ensure!(!given.contains(&rests), "{rests} was given out before it had rested");
    let first = prefix(node)?;
    ensure!(given.iter().all(|it| is_in(first, *it)), "{given:?}");
    for pod in pods {
        pod.remove().await?;
    }
    ensure!(allocations(node)?.is_empty());
    lab.shutdown().await
}

fn sorted(mut allocations: Vec<Value>) -> Vec<String> {
    allocations.sort_by_key(|it| it["ipv6"].to_string());
    allocations.iter().map(Value::to_string).collect()
}

async fn a_prefix_that_somebody_takes_away_is_noticed_reported_and_replaced() -> Result<()> {
    let lab = world().await?;
    let node = &lab.nodes()[0];
    let _ipamd = node.start_ipamd(&options()).await?;
    let early = node.add_pod("default", "early").await?;
    let (eni, old) = (primary(node)?, prefix(node)?);

    let taken = UnassignIpv6Addresses { eni_id: eni.id, addresses: Vec::new(), prefixes: eni.ipv6_prefixes };
    let unassigned = lab.cloud().ask(Request::UnassignIpv6Addresses(taken)).await;
    unassigned.map_err(|error| anyhow::anyhow!("{error}"))?;
    until("another prefix is assigned", PATIENCE, async || Ok(prefix(node).is_ok_and(|new| new != old)))
        .await?;

    let late = node.add_pod("default", "late").await?;
    ensure!(address(&late)? == nth(prefix(node)?, 0), "{:?}", late.result());
    let status = ipamd(node, &["status"]).await?;
    let lost = "addresses of pods whose ENI EC2 does not show";
    ensure!(status.contains(lost) && status.contains(&address(&early)?.to_string()), "{status}");
    early.remove().await?;
    let status = ipamd(node, &["status"]).await?;
    ensure!(!status.contains(lost), "{status}");
    ensure!(status.contains("an IPv6 prefix; reached") && status.contains("2^48"), "{status}");
    lab.shutdown().await
}

async fn a_pod_hears_why_there_is_no_prefix_and_gets_an_address_once_there_is_one() -> Result<()> {
    let lab = world().await?;
    let node = &lab.nodes()[0];
    let subnet = primary(node)?.subnet_id;
    let block = lab.cloud().snapshot().subnets[&subnet].ipv6_cidr;
    lab.cloud().with(|cloud, now| cloud.set_subnet_ipv6_cidr(now, &subnet, None));
    let _ipamd = node.start_ipamd(&options()).await?;
    lab.cloud().received("AssignIpv6Addresses", 1).await;

    let said = refusal(node, "early").await?;
    ensure!(said.contains("SUBNET_EXHAUSTED: ") && said.contains("the subnet has no IPv6 block"), "{said}");
    ensure!(said.contains("no IPv6 prefix on 1 ENI"), "{said}");

    lab.cloud().with(|cloud, now| cloud.set_subnet_ipv6_cidr(now, &subnet, block));
    let denied = lab.cloud().fault(Fault::on("AssignIpv6Addresses").deny());
    lab.cloud().received("AssignIpv6Addresses", 2).await;
    until("the missing permission is told", PATIENCE, async || {
        let said = refusal(node, "denied").await?;
        Ok(said.contains("PERMISSION_DENIED: ") && said.contains("allow ec2:AssignIpv6Addresses"))
    })
    .await?;

    lab.cloud().clear_fault(denied);
    until("the prefix is there", PATIENCE, async || Ok(prefix(node).is_ok())).await?;
    let pod = node.add_pod("default", "served").await?;
    ensure!(is_in(prefix(node)?, address(&pod)?), "{:?}", pod.result());
    lab.shutdown().await
}

/// What the plugin says of an ADD that must fail.
async fn refusal(node: &Node, name: &str) -> Result<String> {
    match node.add_pod("default", name).await {
        Ok(pod) => anyhow::bail!("{name} has {:?}", address(&pod)),
        Err(error) => Ok(plugin_error(&error).context("not the plugin's error")?.msg.clone()),
    }
}
