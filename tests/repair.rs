//! Somebody else changes the node's network, as a firewall's reload or a network manager does:
//! what is the daemon's comes back, what is not stays away from its hands.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::look::{self, Dump, at_rest};
use e2e::{binary, scenarios, until};
use lab::cloud::CloudBuilder;
use lab::world::{INTERNET_ECHO, IpamdOptions, Lab, Node, Pod, Protocol, finish};
use serde_json::Value;

/// Shorter than the daemon's own round, so that what comes back within it was noticed.
const SOON: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(30);
/// As a pod does at least: it pulls an image, starts and stops.
const A_POD_LIVES: Duration = Duration::from_secs(8);
/// Two of the daemon's rounds, and what a busy machine adds.
const TWO_ROUNDS: Duration = Duration::from_secs(120);

/// The port of the pods' echo services.
const ECHO: u16 = lab::world::ECHO_PORT;

fn main() {
    e2e::main(scenarios![
        what_others_flush_comes_back_and_is_counted,
        what_belongs_to_others_is_never_touched,
        somebody_who_never_stops_is_told_of_and_not_fought_at_full_speed,
        what_is_taken_from_a_pod_that_has_just_come_is_put_back_too,
        pods_that_come_and_go_under_an_eraser_leave_nothing,
        the_veth_of_a_deleted_pod_goes_though_its_namespace_lives_on,
        what_was_taken_from_pods_while_no_daemon_ran_comes_back_at_its_start,
        what_others_flush_of_ipv6_comes_back_too,
    ])
}

/// A node with pods on two ENIs, another node with a pod to talk to, and their daemons.
struct Scene {
    lab: Lab,
    daemons: Vec<lab::world::Ipamd>,
    pods: Vec<Pod>,
    peer: Pod,
}

impl Scene {
    async fn set() -> Result<Scene> {
        Scene::of(&IpamdOptions::new()).await
    }

    async fn of(options: &IpamdOptions) -> Result<Scene> {
        let lab =
            Lab::builder().node("t3.small", "us-west-2a").node("t3.small", "us-west-2b").start().await?;
        let mut daemons = Vec::new();
        for node in lab.nodes() {
            node.install_plugin(None).await?;
            daemons.push(node.start_ipamd(options).await?);
        }
        let node = &lab.nodes()[0];
        let pods = look::add_pods(node, "web", 4).await?;
        let peer = lab.nodes()[1].add_pod("default", "peer").await?;
        at_rest(node, 3, 4).await?;
        let enis: BTreeSet<_> = pods.iter().filter_map(Pod::eni).collect();
        ensure!(enis.len() == 2, "the pods are on ENIs {enis:?}: expected two");
        lab.settled().await?;
        Ok(Scene { lab, daemons, pods, peer })
    }

    fn node(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    /// Every pod reaches the pod on the other node with its own address, and it them.
    async fn talk(&self) -> Result<()> {
        for pod in &self.pods {
            let (seen, _) = pod.seen_by(self.peer.address(), ECHO, SOON).await?;
            ensure!(seen == pod.address(), "{} is seen as {seen}", pod.label());
            self.peer.seen_by(pod.address(), ECHO, SOON).await?;
        }
        Ok(())
    }
}

/// Everything that the kernel holds for the node, packet filter and strictness included.
async fn everything(node: &Node) -> Result<(Dump, Value, String)> {
    let mut filter = node.nft(&["-j", "list", "ruleset"]).await?;
    without_counts(&mut filter);
    // A table that was put back stands behind those of others.
    if let Some(objects) = filter["nftables"].as_array_mut() {
        objects.sort_by_key(|object| {
            let content = object.as_object().and_then(|object| object.values().next());
            let word = |key: &str| content.map(|it| it[key].as_str().unwrap_or_default().to_owned());
            (word("family"), word("table").filter(|it| !it.is_empty()).or_else(|| word("name")))
        });
    }
    let strict = node.exec(&["sh", "-c", "grep . /proc/sys/net/ipv4/conf/eth*/rp_filter"]).await?;
    Ok((Dump::of(node).await?.without_learnt_neighbours(), filter, strict))
}

/// Takes the kernel's own numbers out of a listing.
fn without_counts(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(without_counts),
        Value::Object(members) => {
            for number in ["handle", "packets", "bytes"] {
                members.remove(number);
            }
            members.values_mut().for_each(without_counts);
        }
        _ => {}
    }
}

async fn status(node: &Node) -> Result<Value> {
    let mut command = node.command(binary("ipamd")?);
    command.args(["status", "--output", "json"]).env_clear();
    let ran = finish(command, None, PATIENCE).await?;
    serde_json::from_slice(&ran.stdout).with_context(|| format!("read the status: {}", ran.complaint()))
}

/// How often objects of a kind were put back.
fn repairs(status: &Value, kind: &str) -> u64 {
    let kinds = status["network"]["repairs"].as_array().into_iter().flatten();
    kinds.filter(|it| it["kind"] == kind).filter_map(|it| it["times"].as_u64()).sum()
}

async fn what_others_flush_comes_back_and_is_counted() -> Result<()> {
    let scene = Scene::set().await?;
    let node = scene.node();
    // A strict default of the host, which the daemon has made loose.
    node.exec(&["sysctl", "-qw", "net.ipv4.conf.eth1.rp_filter=2"]).await?;
    let before = everything(node).await?;
    let veth = scene.pods[3].host_veth();
    let host = format!("{}", scene.pods[3].address());

    for (what, command, kinds) in [
        (
            "rules",
            "ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default",
            &["rule"][..],
        ),
        ("an ENI's routes", "ip route flush table 2", &["route"]),
        ("a pod's route", &format!("ip route del {host}"), &["route"]),
        ("a pod's route, led elsewhere", &format!("ip route replace {host} dev lo"), &["route"]),
        ("our table", "nft delete table ip vpc-cni", &["nftables"]),
        ("all tables", "nft flush ruleset", &["nftables"]),
        ("a rule of ours", "nft flush chain ip vpc-cni translate", &["nftables"]),
        ("an ENI's address", "ip addr flush dev eth1", &["address", "route"]),
        ("an ENI's MTU", "ip link set eth1 mtu 1400", &["mtu"]),
        ("an ENI's link", "ip link set eth1 down", &["link", "route"]),
        ("a pod's link", &format!("ip link set {veth} down"), &["link", "route"]),
        ("strictness", "sysctl -qw net.ipv4.conf.eth1.rp_filter=1", &["rp_filter"]),
    ] {
        let counted = status(node).await?;

        node.exec(&["sh", "-c", command]).await.with_context(|| what.to_owned())?;

        let began = Instant::now();
        until(&format!("{what} come back"), SOON, || async { Ok(everything(node).await? == before) })
            .await
            .with_context(|| format!("{what}\n{}", node.ipamd_output()))?;
        eprintln!("{what}: back {:?} after `{command}`, as seen from outside", began.elapsed());
        scene.talk().await.with_context(|| format!("traffic after {what}"))?;
        let now = status(node).await?;
        for kind in kinds {
            ensure!(
                repairs(&now, kind) > repairs(&counted, kind),
                "{what}: no {kind} is counted: {}",
                now["network"]
            );
        }
    }
    scene.lab.shutdown().await
}

async fn what_belongs_to_others_is_never_touched() -> Result<()> {
    let scene = Scene::set().await?;
    let node = scene.node();
    for command in [
        "ip rule add pref 100 from 10.77.0.1 lookup 77",
        "ip rule add pref 512 from all to 10.77.0.2 lookup main",
        "ip rule add pref 1024 fwmark 0x4000/0xffff lookup 77",
        "ip rule add pref 1536 from 10.77.0.3 lookup 77",
        "ip rule add pref 32765 from 10.77.0.4 lookup 77",
        "ip route add 10.78.0.0/16 dev eth1 table 2",
        "ip route add 10.79.0.0/16 dev eth0",
        "ip route add 10.77.0.9 dev eth0",
        "ip link add stranger type veth peer name strangers",
        "ip addr add 10.80.0.1/24 dev stranger",
        "nft add table ip somebody",
        "nft 'add chain ip somebody forward { type filter hook forward priority 5 ; }'",
        "nft add table ip6 vpc-cni-not",
    ] {
        node.exec(&["sh", "-c", command]).await?;
    }
    let before = everything(node).await?;

    // Both are ours, so a comparison of everything follows.
    node.exec(&["ip", "rule", "del", "pref", "1024", "fwmark", "0x80/0x80"]).await?;
    node.exec(&["nft", "delete", "table", "ip", "vpc-cni"]).await?;

    until("ours come back beside them", SOON, || async { Ok(everything(node).await? == before) })
        .await
        .with_context(|| node.ipamd_output())?;
    let rounds = repairs(&status(node).await?, "rule");
    ensure!(rounds == 1, "{rounds} rules were put back: one was deleted");
    scene.lab.shutdown().await
}

async fn somebody_who_never_stops_is_told_of_and_not_fought_at_full_speed() -> Result<()> {
    let scene = Scene::set().await?;
    let node = scene.node();
    let before = everything(node).await?;
    let eraser = "while true; do ip rule del pref 1024 fwmark 0x80/0x80 2>/dev/null; sleep 0.05; done";
    let mut eraser = node.command("sh").args(["-c", eraser]).spawn()?;

    let contested = until("the status tells of it", PATIENCE, || async {
        Ok(!status(node).await?["network"]["contested"].as_array().is_none_or(Vec::is_empty))
    })
    .await;
    let told = status(node).await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let later = status(node).await?;
    eraser.kill()?;
    eraser.wait()?;

    contested?;
    let what = told["network"]["contested"][0]["what"].as_str().unwrap_or_default();
    ensure!(what.contains("1024: from all fwmark 0x80/0x80 lookup main"), "{told}");
    let more = repairs(&later, "rule") - repairs(&told, "rule");
    ensure!(more <= 3, "{more} repairs in 6 s of a quarrel: expected pauses of 2 s and more");
    ensure!(node.ipamd_output().contains("again and again"), "{}", node.ipamd_output());
    until("it comes back once left in peace", TWO_ROUNDS, || async { Ok(everything(node).await? == before) })
        .await?;
    scene.lab.shutdown().await
}

async fn what_is_taken_from_a_pod_that_has_just_come_is_put_back_too() -> Result<()> {
    let scene = Scene::set().await?;
    let node = scene.node();
    for round in 0..3 {
        let guest = node.add_pod("default", &format!("guest{round}")).await?;
        let address = guest.address().to_string();

        // At once: the daemon cannot tell yet whether the ADD is done.
        let erase = format!("ip route del {address}; ip rule del pref 512 to {address}");
        node.exec(&["sh", "-c", &erase]).await?;

        until("the peer reaches the pod", SOON, || async {
            Ok(scene.peer.seen_by(guest.address(), ECHO, Duration::from_secs(1)).await.is_ok())
        })
        .await
        .with_context(|| node.ipamd_output())?;
        guest.remove().await?;
    }
    scene.lab.shutdown().await
}

async fn pods_that_come_and_go_under_an_eraser_leave_nothing() -> Result<()> {
    // Addresses that rest briefly: the guests are more than the node has.
    let scene = Scene::of(&IpamdOptions::new().env("IP_COOLDOWN_PERIOD", 1)).await?;
    let node = scene.node();
    let before = everything(node).await?;
    // It ends by itself: killed between its commands it would leave the node without the kernel's own rules.
    let eraser = "until test -e /run/enough; do ip rule flush; ip rule add pref 32766 lookup main; \
                  ip rule add pref 32767 lookup default; sleep 0.07; done";
    let mut eraser = node.command("sh").args(["-c", eraser]).spawn()?;

    for round in 0..6 {
        let pods = look::add_pods(node, &format!("guest{round}"), 3).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        look::remove(pods?).await?;
    }
    node.exec(&["touch", "/run/enough"]).await?;
    eraser.wait()?;

    until("the node is as before the guests", TWO_ROUNDS, || async { Ok(everything(node).await? == before) })
        .await
        .with_context(|| node.ipamd_output())?;
    scene.talk().await?;
    scene.lab.shutdown().await
}

async fn the_veth_of_a_deleted_pod_goes_though_its_namespace_lives_on() -> Result<()> {
    let scene = Scene::set().await?;
    let node = scene.node();
    let guest = node.add_pod("default", "guest").await?;
    let veth = guest.host_veth();
    // Nothing leads to it either, as to further interfaces of pods, but it was no pod's of the pool.
    let stranger = "eni0123456789a";
    node.exec(&["ip", "link", "add", stranger, "type", "veth", "peer", "name", "strangers"]).await?;
    let is_there = async |name: &str| node.exec(&["ip", "link", "show", "dev", name]).await.is_ok();
    // The daemon must have seen the pod, which it does within a second of the ADD.
    tokio::time::sleep(A_POD_LIVES).await;
    guest.del().await?;
    ensure!(is_there(&veth).await, "DEL leaves the link to the end of the namespace");

    until("the link is gone", TWO_ROUNDS, || async { Ok(!is_there(&veth).await) })
        .await
        .with_context(|| node.ipamd_output())?;
    ensure!(is_there(stranger).await, "{stranger} is gone too\n{}", node.ipamd_output());
    until("that is told", SOON, || async {
        Ok(node.ipamd_output().contains("link of a pod that was deleted removed"))
    })
    .await?;
    scene.talk().await?;
    guest.drop_namespace()?;
    scene.lab.shutdown().await
}

async fn what_was_taken_from_pods_while_no_daemon_ran_comes_back_at_its_start() -> Result<()> {
    let mut scene = Scene::set().await?;
    let before = everything(scene.node()).await?;

    scene.daemons.remove(0).terminate(PATIENCE).await?;
    let [first, .., last] = scene.pods.as_slice() else { unreachable!("there are four pods") };
    let (route, rules) = (first.address(), last.address());
    let erase = format!(
        "ip route del {route}; ip rule del pref 512 to {rules}; ip rule del pref 1536 from {rules}; \
         ip link set {} down",
        scene.pods[1].host_veth()
    );
    scene.node().exec(&["sh", "-c", &erase]).await?;
    let _daemon = scene.node().start_ipamd(&IpamdOptions::new()).await?;

    // Shorter than a round, so it was not the clock that told it.
    until("the node is as before", SOON, || async { Ok(everything(scene.node()).await? == before) })
        .await
        .with_context(|| scene.node().ipamd_output())?;
    scene.talk().await?;
    let counted = repairs(&status(scene.node()).await?, "route");
    ensure!(counted >= 2, "{counted} routes are counted: expected those of two pods");
    scene.lab.shutdown().await
}

/// Addresses that stand for the node on the links of pods.
async fn link_local(node: &Node) -> Result<BTreeSet<String>> {
    let listed = node.place().ip(&["-j", "-6", "addr", "show", "scope", "link"]).await?;
    let mut found = BTreeSet::new();
    for link in listed.as_array().into_iter().flatten() {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            found.insert(format!("{} {}", link["ifname"], address["local"]));
        }
    }
    Ok(found)
}

async fn what_others_flush_of_ipv6_comes_back_too() -> Result<()> {
    let cloud = CloudBuilder::two_zones(7).ipv6();
    let lab = Lab::builder().cloud(cloud).node("m5.large", "us-west-2a").start().await?;
    let node = &lab.nodes()[0];
    node.install_plugin(None).await?;
    // What `init-node` sets.
    node.exec(&["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"]).await?;
    let options = IpamdOptions::new().env("ENABLE_IPv4", false).env("ENABLE_IPv6", true);
    let _daemon = node.start_ipamd(&options.env("ENABLE_PREFIX_DELEGATION", true)).await?;
    let pods = look::add_pods(node, "web", 2).await?;
    lab.settled().await?;
    let talk = async |pods: &[Pod]| {
        for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            let seen = from.place().seen(Protocol::Tcp, SocketAddr::new(to.ip(), ECHO), SOON).await;
            let seen = seen.with_context(|| format!("{} to {}", from.label(), to.label()))?;
            ensure!(seen.ip() == from.ip(), "{} is seen as {seen}", from.label());
            let internet = SocketAddr::new(INTERNET_ECHO.into(), ECHO);
            let seen = from.place().seen(Protocol::Tcp, internet, SOON).await;
            let seen = seen.with_context(|| format!("{} to the internet", from.label()))?;
            ensure!(seen.ip() == node.primary_ip(), "the internet sees {} as {seen}", from.label());
        }
        Ok(())
    };
    talk(&pods).await?;
    until("the kernel is sure of its own addresses", PATIENCE, || async {
        Ok(node.exec(&["ip", "-6", "addr", "show", "tentative"]).await?.trim().is_empty())
    })
    .await?;
    let all = async || Ok::<_, anyhow::Error>((everything(node).await?, link_local(node).await?));
    let before = all().await?;
    let (veth, host) = (pods[1].host_veth(), pods[1].ip());
    let egress = look::lines(node.place(), &["ip", "-4", "route"]).await?;
    let egress = egress.iter().find_map(|line| line.strip_prefix("169.254.172.3 dev ")?.split(' ').next());
    let egress = egress.context("no route to the second pod's address for egress")?;

    for (what, command, kind) in [
        ("IPv6 rules", "ip -6 rule flush; ip -6 rule add pref 32766 lookup main", "rule"),
        ("a pod's route", &format!("ip -6 route del {host}"), "route"),
        ("the table that translates egress", "nft delete table ip vpc-cni", "nftables"),
        (
            "the addresses of a pod's link",
            &format!("ip -6 addr flush dev {veth}; ip -6 neigh flush dev {veth}"),
            "address",
        ),
        ("a pod's link", &format!("ip link set {veth} down"), "link"),
        ("a pod's route for egress", "ip route del 169.254.172.3", "route"),
        ("the node's address for egress", &format!("ip -4 addr flush dev {egress}"), "address"),
        ("a pod's link for egress", &format!("ip link set {egress} down"), "link"),
    ] {
        let counted = status(node).await?;

        node.exec(&["sh", "-c", command]).await.with_context(|| what.to_owned())?;

        if until(&format!("{what} come back"), SOON, || async { Ok(all().await? == before) }).await.is_err() {
            let now = all().await?;
            now.0.0.insist_on(&before.0.0).with_context(|| node.ipamd_output())?;
            ensure!(now == before, "{what} do not come back: {now:#?}\n{}", node.ipamd_output());
        }
        talk(&pods).await.with_context(|| format!("traffic after {what}"))?;
        let now = status(node).await?;
        ensure!(
            repairs(&now, kind) > repairs(&counted, kind),
            "{what}: no {kind} is counted: {}",
            now["network"]
        );
    }
    look::remove(pods).await?;
    until("nothing is left of the pods", PATIENCE, || async {
        let routes = look::lines(node.place(), &["ip", "route", "show", "table", "all"]).await?;
        Ok(!routes.iter().any(|line| line.contains("169.254.172.")))
    })
    .await?;
    lab.shutdown().await
}
