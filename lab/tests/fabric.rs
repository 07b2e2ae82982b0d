//! The wires, tried with real packets: what a VPC delivers, and what it drops.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cloud::{
    AssignPrivateIpAddresses, AttachNetworkInterface, CreateNetworkInterface, DetachNetworkInterface,
    Request, Response,
};
use lab::world::{Drops, ECHO_PORT, INTERNET_ECHO, Lab, at};
use libtest_mimic::{Arguments, Failed, Trial};

const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    lab::world::contain()?;
    let trials = vec![
        trial("primary_enis_of_two_zones_reach_each_other", primary_enis_reach_each_other),
        trial("a_packet_with_a_foreign_source_is_dropped_and_counted", foreign_sources_are_dropped),
        trial("the_internet_takes_only_sources_that_can_be_public", only_public_sources_leave),
        trial("an_eni_appears_down_and_unconfigured_and_goes_again", enis_come_and_go),
        trial("an_address_is_delivered_from_its_assignment_on", addresses_follow_the_cloud),
        trial("a_node_writes_only_to_directories_of_its_own", directories_are_the_nodes_own),
        trial("worlds_side_by_side_do_not_meet", worlds_do_not_meet),
        trial("a_command_past_its_deadline_is_killed", commands_end),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn trial<F, T>(name: &'static str, test: T) -> Trial
where
    T: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<()>>,
{
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(test()).map_err(|error| Failed::from(format!("{error:?}")))
    })
}

async fn two_nodes() -> Result<Lab> {
    Lab::builder().node("m5.large", "us-west-2a").node("m5.large", "us-west-2b").start().await
}

async fn seen(from: &lab::world::Node, to: Ipv4Addr) -> Result<Ipv4Addr> {
    let stream = from.place().connect(std::net::SocketAddrV4::new(to, ECHO_PORT), DEADLINE).await?;
    let mut line = String::new();
    use tokio::io::AsyncBufReadExt;
    let mut reader = tokio::io::BufReader::new(stream);
    tokio::time::timeout(DEADLINE, reader.read_line(&mut line)).await??;
    let peer: std::net::SocketAddrV4 = line.trim().parse().with_context(|| format!("{line:?}"))?;
    Ok(*peer.ip())
}

async fn primary_enis_reach_each_other() -> Result<()> {
    let lab = two_nodes().await?;
    let [one, two] = lab.nodes() else { unreachable!("two were asked for") };

    one.exec(&["ping", "-c1", "-W5", &two.primary_ip().to_string()]).await?;
    two.exec(&["ping", "-c1", "-W5", &one.primary_ip().to_string()]).await?;

    ensure!(lab.fabric().drops().await? == Drops::default());
    let route = one.ip(&["-j", "route", "show", "default"]).await?;
    ensure!(route[0]["metric"] == 512 && route[0]["dev"] == "eth0", "{route}");
    lab.shutdown().await
}

async fn foreign_sources_are_dropped() -> Result<()> {
    let lab = two_nodes().await?;
    let [one, two] = lab.nodes() else { unreachable!("two were asked for") };
    one.exec(&["ip", "addr", "add", "10.0.77.77/32", "dev", "lo"]).await?;

    let target = two.primary_ip().to_string();
    let spoofed = one.exec(&["ping", "-c1", "-W1", "-I", "10.0.77.77", &target]).await;

    ensure!(spoofed.is_err(), "a spoofed packet was answered");
    ensure!(lab.fabric().drops().await?.spoofed == 1, "{:?}", lab.fabric().drops().await?);
    lab.shutdown().await
}

async fn only_public_sources_leave() -> Result<()> {
    let lab = two_nodes().await?;
    let one = &lab.nodes()[0];
    ensure!(seen(one, INTERNET_ECHO).await? == one.primary_ip());
    let eni = lab.cloud().snapshot().attached(one.instance_id())[0].id.clone();
    let second = assign(&lab, &eni).await?;
    one.exec(&["ip", "addr", "add", &format!("{second}/32"), "dev", "eth0"]).await?;

    let source = one.place().udp(at(second, 0))?;
    source.send_to(b"anybody there?", at(INTERNET_ECHO, ECHO_PORT)).await?;

    // The packet is on its way or dropped when the send returns; the count tells.
    ensure!(lab.fabric().drops().await? == Drops { not_public: 1, ..Drops::default() });
    lab.shutdown().await
}

async fn assign(lab: &Lab, eni: &str) -> Result<Ipv4Addr> {
    let before = addresses(lab, eni);
    let request = Request::AssignPrivateIpAddresses(AssignPrivateIpAddresses {
        eni_id: eni.to_owned(),
        count: Some(1),
        ..AssignPrivateIpAddresses::default()
    });
    lab.cloud().ask(request).await?;
    lab.settled().await?;
    addresses(lab, eni).into_iter().find(|it| !before.contains(it)).context("no new address")
}

fn addresses(lab: &Lab, eni: &str) -> Vec<Ipv4Addr> {
    lab.cloud().snapshot().enis[eni].addresses.iter().map(|it| it.address).collect()
}

async fn enis_come_and_go() -> Result<()> {
    let lab = two_nodes().await?;
    let node = &lab.nodes()[0];
    let subnet_id = node.instance().subnet_id.clone();
    let create = CreateNetworkInterface { subnet_id, ..CreateNetworkInterface::default() };
    let Response::Created { eni, .. } = lab.cloud().ask(Request::CreateNetworkInterface(create)).await?
    else {
        anyhow::bail!("not the answer to a creation");
    };

    let attach = AttachNetworkInterface {
        eni_id: eni.id.clone(),
        instance_id: node.instance_id().to_owned(),
        device_index: 1,
        network_card: 0,
    };
    let attached = lab.cloud().ask(Request::AttachNetworkInterface(attach)).await?;
    lab.settled().await?;

    let link = node.ip(&["-j", "addr", "show", "eth1"]).await?;
    ensure!(link[0]["address"] == eni.mac.as_str() && link[0]["mtu"] == 9001, "{link}");
    ensure!(link[0]["operstate"] == "DOWN" && link[0]["addr_info"] == serde_json::json!([]), "{link}");

    let Response::Attached { attachment_id, .. } = attached else {
        anyhow::bail!("not the answer to an attachment")
    };
    let detach = DetachNetworkInterface { attachment_id, force: false };
    lab.cloud().ask(Request::DetachNetworkInterface(detach)).await?;
    lab.settled().await?;

    let links = node.ip(&["-j", "link"]).await?;
    ensure!(links.as_array().is_some_and(|it| it.len() == 2), "{links}");
    lab.shutdown().await
}

async fn addresses_follow_the_cloud() -> Result<()> {
    let lab = two_nodes().await?;
    let [one, two] = lab.nodes() else { unreachable!("two were asked for") };
    let eni = lab.cloud().snapshot().attached(two.instance_id())[0].id.clone();

    let second = assign(&lab, &eni).await?;
    two.exec(&["ip", "addr", "add", &format!("{second}/32"), "dev", "eth0"]).await?;

    one.exec(&["ping", "-c1", "-W5", &second.to_string()]).await?;
    lab.shutdown().await
}

async fn directories_are_the_nodes_own() -> Result<()> {
    let lab = two_nodes().await?;
    let [one, two] = lab.nodes() else { unreachable!("two were asked for") };
    let files =
        ["/run/mark", "/var/run/aws-node/mark", "/opt/cni/bin/mark", "/etc/cni/net.d/mark", "/var/log/mark"];

    for file in files {
        one.exec(&["touch", file]).await?;
    }

    for file in files {
        ensure!(one.path(file).exists(), "{file} is not in the node");
        ensure!(!two.path(file).exists(), "{file} is in the other node");
        ensure!(!std::path::Path::new(file).exists(), "{file} is on the host");
    }
    one.exec(&["cat", "/etc/passwd"]).await?;
    lab.shutdown().await
}

async fn worlds_do_not_meet() -> Result<()> {
    let (one, two) = tokio::try_join!(two_nodes(), two_nodes())?;
    ensure!(one.nodes()[0].place().name() != two.nodes()[0].place().name());

    two.shutdown().await?;

    seen(&one.nodes()[0], INTERNET_ECHO).await?;
    one.shutdown().await
}

async fn commands_end() -> Result<()> {
    let lab = Lab::builder().node("m5.large", "us-west-2a").start().await?;
    let mut command = lab.nodes()[0].command("sleep");
    command.arg("3600");

    let ended = lab::world::finish(command, None, Duration::from_millis(50)).await;

    let error = ended.err().context("sleep has ended")?;
    ensure!(error.to_string().contains("did not end within"), "{error:#}");
    lab.shutdown().await
}
