//! The wires, tried with real packets: what a VPC delivers, and what it drops.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cloud::{
    AssignPrivateIpAddresses, AttachNetworkInterface, CloudBuilder, CreateNetworkInterface,
    DetachNetworkInterface, Request, Response,
};
use lab::world::{
    Drops, ECHO_PORT, Echo, Erased, INTERNET_ECHO, INTERNET_ECHO_V6, Lab, NAT_GATEWAY, PREMISES_ECHO,
    Protocol, at,
};
use libtest_mimic::{Arguments, Failed, Trial};

const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    lab::world::contain()?;
    let trials = vec![
        trial("primary_enis_of_two_zones_reach_each_other", primary_enis_reach_each_other),
        trial("a_packet_with_a_foreign_source_is_dropped_and_counted", foreign_sources_are_dropped),
        trial("the_internet_takes_only_sources_that_can_be_public", only_public_sources_leave),
        trial("a_nat_gateway_translates_what_is_not_public", a_nat_gateway_translates),
        trial("the_premises_see_addresses_of_the_vpc_as_they_are", premises_see_vpc_addresses),
        trial("hosts_speak_ipv6_with_each_other_and_the_internet", hosts_speak_ipv6),
        trial("a_vpc_grows_by_a_range_with_a_host_in_it", a_vpc_grows),
        trial("erased_rules_and_routes_are_gone_and_the_images_stay", erasers_erase),
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

async fn seen(from: &lab::world::Node, to: Ipv4Addr) -> Result<IpAddr> {
    Ok(from.place().seen(Protocol::Tcp, at(to, ECHO_PORT), DEADLINE).await?.ip())
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

async fn a_nat_gateway_translates() -> Result<()> {
    let lab = two_nodes().await?;
    let one = &lab.nodes()[0];
    let eni = lab.cloud().snapshot().attached(one.instance_id())[0].id.clone();
    let second = assign(&lab, &eni).await?;
    one.exec(&["ip", "addr", "add", &format!("{second}/32"), "dev", "eth0"]).await?;
    one.exec(&["ip", "route", "replace", "203.0.113.0/24", "via", "10.0.0.1", "src", &second.to_string()])
        .await?;

    lab.fabric().set_nat_gateway(true).await?;
    for protocol in Protocol::ALL {
        let source = one.place().seen(protocol, at(INTERNET_ECHO, ECHO_PORT), DEADLINE).await?;
        ensure!(source.ip() == NAT_GATEWAY, "{protocol:?} came from {source}");
    }

    lab.fabric().set_nat_gateway(false).await?;
    let source = one.place().udp(at(second, 0))?;
    source.send_to(b"anybody there?", at(INTERNET_ECHO, ECHO_PORT)).await?;
    ensure!(lab.fabric().drops().await?.not_public >= 1);
    lab.shutdown().await
}

async fn premises_see_vpc_addresses() -> Result<()> {
    let lab = two_nodes().await?;
    let one = &lab.nodes()[0];
    let here = at(one.primary_ip(), ECHO_PORT);
    let _echo = Echo::start(one.place(), here)?;

    for protocol in Protocol::ALL {
        let source = one.place().seen(protocol, at(PREMISES_ECHO, ECHO_PORT), DEADLINE).await?;
        ensure!(source.ip() == one.primary_ip(), "{protocol:?} came from {source}");
        let source = lab.fabric().premises().seen(protocol, here, DEADLINE).await?;
        ensure!(source.ip() == PREMISES_ECHO, "{protocol:?} came from {source}");
    }
    let jumbo = one.place().seen_in_one_piece(at(PREMISES_ECHO, ECHO_PORT), 9001, DEADLINE).await?;
    ensure!(jumbo.ip() == one.primary_ip());
    lab.shutdown().await
}

async fn hosts_speak_ipv6() -> Result<()> {
    let builder = Lab::builder().cloud(CloudBuilder::two_zones(7).ipv6());
    let lab = builder.node("m5.large", "us-west-2a").node("m5.large", "us-west-2b").start().await?;
    let [one, two] = lab.nodes() else { unreachable!("two were asked for") };
    let snapshot = lab.cloud().snapshot();
    let own = |node: &lab::world::Node| snapshot.attached(node.instance_id())[0].ipv6_addresses[0];
    let _echo = Echo::start(two.place(), at(own(two), ECHO_PORT))?;

    for protocol in Protocol::ALL {
        for target in [own(two), INTERNET_ECHO_V6] {
            let source = one.place().seen(protocol, at(target, ECHO_PORT), DEADLINE).await?;
            ensure!(source.ip() == own(one), "{protocol:?} to {target} came from {source}");
        }
    }
    let jumbo = one.place().seen_in_one_piece(at(own(two), ECHO_PORT), 9001, DEADLINE).await?;
    ensure!(jumbo.ip() == own(one));

    let foreign: std::net::Ipv6Addr = "2001:db8:1234:1a00::77".parse()?;
    one.exec(&["ip", "addr", "add", &format!("{foreign}/128"), "dev", "lo", "nodad"]).await?;
    ensure!(lab.fabric().drops().await? == Drops::default(), "{:?}", lab.fabric().drops().await?);
    let source = one.place().udp(at(foreign, 0))?;
    source.send_to(b"anybody there?", at(INTERNET_ECHO_V6, ECHO_PORT)).await?;
    ensure!(lab.fabric().drops().await?.spoofed == 1, "{:?}", lab.fabric().drops().await?);
    lab.shutdown().await
}

async fn a_vpc_grows() -> Result<()> {
    let mut lab = two_nodes().await?;
    let (first, second) = ("10.0.0.0/16".parse()?, "100.64.0.0/16".parse()?);
    lab.cloud().set_vpc_cidrs(vec![first, second]);
    let subnet = lab.cloud().with(|cloud, now| cloud.add_subnet(now, second, "us-west-2a"));

    let host = lab.add_node("m5.large", &subnet).await?;

    ensure!(second.contains(&host.primary_ip()), "{}", host.primary_ip());
    let _echo = Echo::start(host.place(), at(host.primary_ip(), ECHO_PORT))?;
    let one = &lab.nodes()[0];
    let source = one.place().seen(Protocol::Tcp, at(host.primary_ip(), ECHO_PORT), DEADLINE).await?;
    ensure!(source.ip() == one.primary_ip(), "the host saw {source}");
    lab.shutdown().await
}

async fn erasers_erase() -> Result<()> {
    let lab = two_nodes().await?;
    let one = &lab.nodes()[0];
    let image = [one.ip(&["rule"]).await?, one.ip(&["route"]).await?];
    one.place()
        .ip_batch(
            "rule add pref 512 to 10.0.9.9 lookup main\nrule add pref 512 to 10.0.9.8 lookup main\n\
             route add 10.0.9.9 dev lo\nroute add default dev lo table 2\n",
        )
        .await?;

    one.erase(Erased::Rules).await?;
    one.erase(Erased::Routes).await?;

    let left = [one.ip(&["rule"]).await?, one.ip(&["route"]).await?];
    ensure!(left == image, "{left:#?}, expected {image:#?}");
    ensure!(one.exec(&["ip", "route", "show", "table", "2"]).await.unwrap_or_default().is_empty());
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
