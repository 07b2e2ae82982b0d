//! Options switched on and off again on a live node, under traffic: no packet is lost that the
//! options allow, and the node becomes what a fresh one with those options is.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::facts::{self, Facts};
use e2e::flows::{ANSWER, Flow, Mode, Sees, all_delivered};
use e2e::ground::{End, Ground};
use e2e::scenarios;
use lab::world::traffic::{self, Line};
use lab::world::{ECHO_PORT, INTERNET_ECHO_V6, IpamdOptions, KubeProxy, Protocol, Service, at};

fn main() {
    e2e::main_with(
        scenarios![
            node_port_support,
            external_snat,
            node_port_support_with_external_snat,
            external_snat_without_node_port_support,
            external_snat_under_a_stream_that_nobody_answers,
            random_source_ports,
            excluded_ranges,
            external_service_ranges,
            the_connection_mark,
            the_mtu_of_enis,
            the_prefix_of_links,
            ipv6_egress,
        ],
        2,
    );
}

/// How long traffic goes on after each switch.
const A_WHILE: Duration = Duration::from_secs(2);
/// The node port that leads to the pod on the secondary ENI.
const NODE_PORT: u16 = 30_080;

async fn node_port_support() -> Result<()> {
    let on = Mode::new(true, false).options();
    toggle(on, Mode::new(false, false).options(), &[NodePort]).await
}

async fn external_snat() -> Result<()> {
    toggle(Mode::new(true, false).options(), Mode::new(true, true).options(), &[]).await
}

async fn node_port_support_with_external_snat() -> Result<()> {
    toggle(Mode::new(true, true).options(), Mode::new(false, true).options(), &[NodePort]).await
}

async fn external_snat_without_node_port_support() -> Result<()> {
    // Begun without translation on the node: what is begun with it needs the mark, of which nothing
    // is left when neither option asks for it.
    toggle(Mode::new(false, true).options(), Mode::new(false, false).options(), &[NodePort]).await
}

async fn external_snat_under_a_stream_that_nobody_answers() -> Result<()> {
    let [elsewhere, on_the_node] = [true, false].map(|external| Mode::new(true, external).options());
    e2e::ground::on(&elsewhere, async |ground| {
        prepare(ground).await?;
        let log = at(ground.ip(End::Premises), 514);
        let receiver = ground.place(End::Premises).udp(log)?;
        let sender = ground.place(End::Far).connected_udp(log).await?;
        let own = ground.ip(End::Far);
        let arrives = async || {
            for _ in 0..50 {
                sender.send(b"line").await?;
                let got = tokio::time::timeout(ANSWER, receiver.recv_from(&mut [0; 16])).await;
                let (_, seen) = got.context("a datagram is lost")??;
                ensure!(seen.ip() == own, "seen as {seen}, not as {own}");
                tokio::time::sleep(A_WHILE / 50).await;
            }
            anyhow::Ok(())
        };

        let before = ground.lab().fabric().drops().await?;
        arrives().await.context("at first")?;
        for options in [&on_the_node, &elsewhere, &on_the_node] {
            ground.restart(options).await?;
            arrives().await.with_context(|| format!("with {:?}", options.env))?;
        }
        let after = ground.lab().fabric().drops().await?;
        ensure!(after == before, "{before:?} became {after:?}");
        Ok(())
    })
    .await
}

async fn random_source_ports() -> Result<()> {
    let none = Mode { random: "none", ..Mode::new(true, false) };
    toggle(Mode::new(true, false).options(), none.options(), &[]).await
}

async fn excluded_ranges() -> Result<()> {
    let options = Mode::new(true, false).options();
    let excluded = options.clone().env("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "192.168.0.0/16,198.18.0.0/15");
    toggle(options, excluded, &[]).await
}

async fn external_service_ranges() -> Result<()> {
    let options = Mode::new(true, false).options();
    let ranges = options.clone().env("AWS_EXTERNAL_SERVICE_CIDRS", "203.0.113.0/24,198.18.0.0/15");
    toggle(options, ranges, &[]).await
}

async fn the_connection_mark() -> Result<()> {
    let options = Mode::new(true, false).options();
    let other = options.clone().env("AWS_VPC_K8S_CNI_CONNMARK", "0x100");
    toggle(options, other, &[]).await
}

async fn the_mtu_of_enis() -> Result<()> {
    // The MTU of a running pod is what it was made with, so that stays out of it.
    let options = Mode::new(true, false).options().env("POD_MTU", 1400);
    toggle(options.clone(), options.env("AWS_VPC_ENI_MTU", 1500), &[]).await
}

async fn the_prefix_of_links() -> Result<()> {
    let one = Mode::new(true, false).options();
    let other = one.clone().env("AWS_VPC_K8S_CNI_VETHPREFIX", "pod");
    e2e::ground::on(&one, async |ground| {
        prepare(ground).await?;
        let names = ground.names();
        let fresh = Facts::of(ground.node(), &names).await?;
        let outside = [
            ground.direct(End::Near, End::Internet, Sees::Node),
            ground.direct(End::Far, End::Internet, Sees::Node),
            ground.direct(End::Far, End::Premises, Sees::Node),
        ];
        under_traffic(ground, &[], async |ground: &mut Ground| {
            ground.restart(&other).await?;
            tokio::time::sleep(A_WHILE).await;
            // Running pods keep their links, whatever those of new ones are called.
            ground.try_all(&outside).await.context("with the other prefix")?;
            ground.restart(&one).await?;
            tokio::time::sleep(A_WHILE).await;
            facts::becomes(ground.node(), &names, &fresh).await.context("switched off again")
        })
        .await
    })
    .await
}

async fn ipv6_egress() -> Result<()> {
    let off = Mode::new(true, false).options().env("ENABLE_V6_EGRESS", false);
    let on = off.clone().env("ENABLE_V6_EGRESS", true);
    e2e::ground::on(&off, async |ground| {
        prepare(ground).await?;
        let names = ground.names();
        let fresh = Facts::of(ground.node(), &names).await?;
        under_traffic(ground, &[], async |ground: &mut Ground| {
            ground.restart(&on).await?;
            tokio::time::sleep(A_WHILE).await;
            // It concerns new pods.
            let late = ground.node().add_pod("default", "late").await?;
            let seen = late.place().seen(Protocol::Tcp, at(INTERNET_ECHO_V6, ECHO_PORT), ANSWER).await?;
            let node = ground.node_ip(seen.ip());
            ensure!(seen.ip() == node, "{} is seen in place of {node}", seen.ip());
            late.remove().await?;
            drop(late);
            ground.restart(&off).await?;
            tokio::time::sleep(A_WHILE).await;
            facts::becomes(ground.node(), &names, &fresh).await.context("switched off again")
        })
        .await
    })
    .await
}

/// A kind of traffic that an option may forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Inside,
    Outside,
    NodePort,
}
use Kind::{Inside, NodePort, Outside};

/// Two worlds, one begun with each set of options, so that either is the other's pattern.
async fn toggle(one: IpamdOptions, other: IpamdOptions, forbidden: &[Kind]) -> Result<()> {
    let pattern = pattern(&other).await.context("a fresh node with the other options")?;
    e2e::ground::on(&one, async |ground| {
        prepare(ground).await?;
        let names = ground.names();
        let fresh = Facts::of(ground.node(), &names).await?;
        under_traffic(ground, forbidden, async |ground: &mut Ground| {
            tokio::time::sleep(A_WHILE).await;
            ground.restart(&other).await?;
            tokio::time::sleep(A_WHILE).await;
            facts::becomes(ground.node(), &names, &pattern).await.context("switched on")?;
            ground.restart(&one).await?;
            tokio::time::sleep(A_WHILE).await;
            facts::becomes(ground.node(), &names, &fresh).await.context("switched off again")
        })
        .await
    })
    .await
}

/// Switches while traffic runs on all lines but the forbidden ones, and insists that none loses a
/// packet.
async fn under_traffic(
    ground: &mut Ground,
    forbidden: &[Kind],
    switch: impl AsyncFnOnce(&mut Ground) -> Result<()>,
) -> Result<()> {
    let lines: Vec<Line> = lines(ground, forbidden);
    let (switched, delivered) = traffic::on_lines(&lines, switch(ground)).await;
    all_delivered(delivered)?;
    switched
}

/// What a node is like that has had these options from the first.
async fn pattern(options: &IpamdOptions) -> Result<Facts> {
    let ground = Ground::lay(options).await?;
    prepare(&ground).await?;
    let facts = Facts::of(ground.node(), &ground.names()).await?;
    ground.clear().await?;
    Ok(facts)
}

/// Somebody else translates what the node does not, and there is a service with a node port.
async fn prepare(ground: &Ground) -> Result<()> {
    ground.lab().fabric().set_nat_gateway(true).await?;
    let far = ground.pod(End::Far).context("no pod on a secondary ENI")?;
    let service = Service::new("far", [10, 100, 0, 1], 80).to_pod(far).node_port(NODE_PORT).local();
    ground.node().set_services(KubeProxy::Nftables, &[service]).await
}

fn lines(ground: &Ground, forbidden: &[Kind]) -> Vec<Line> {
    let direct = |from, to| (ground.direct(from, to, Sees::Sender), to);
    let service = |from, to, name| (ground.flow(name, from, to, Sees::Sender), End::Far);
    let all: [(Kind, (Flow, End)); 10] = [
        (Inside, direct(End::Near, End::Far)),
        (Inside, direct(End::Far, End::OtherNear)),
        (Inside, direct(End::Near, End::OtherFar)),
        (Inside, direct(End::OtherFar, End::Far)),
        (Inside, direct(End::Premises, End::Far)),
        (Outside, direct(End::Near, End::Internet)),
        (Outside, direct(End::Far, End::Internet)),
        (Outside, direct(End::Far, End::Premises)),
        (Inside, service(End::Near, at([10, 100, 0, 1], 80), "the service")),
        (NodePort, service(End::Internet, at(ground.ip(End::Host), NODE_PORT), "the node port")),
    ];
    let allowed = all.into_iter().filter(|(kind, _)| !forbidden.contains(kind));
    allowed.map(|(_, (flow, to))| ground.line(&flow, to)).collect()
}
