//! Packets of pods that have IPv6 addresses, what they reach over IPv4, and what pods with IPv4
//! addresses reach over IPv6.

use anyhow::{Context, Result, ensure};
use e2e::facts::{self, Facts};
use e2e::flows::{ANSWER, Flow, Mode, Sees, all_delivered};
use e2e::ground::{End, Ground, on};
use e2e::{scenarios, until};
use lab::world::traffic::SentAgain;
use lab::world::{
    ECHO_PORT, INTERNET_ECHO, INTERNET_ECHO_V6, IpamdOptions, KubeProxy, PREMISES_ECHO, Protocol, Service,
    at, traffic,
};

fn main() {
    e2e::main_with(
        scenarios![
            pods_speak_ipv6_with_everybody,
            services_lead_to_ipv6_pods,
            ipv6_pods_reach_ipv4_by_the_node,
            ipv4_pods_reach_ipv6_by_the_node,
            ipv6_streams_outlive_a_restart,
            a_new_ipv6_pod_is_reached_at_once,
            a_new_ipv4_pod_is_reached_at_once,
        ],
        2,
    );
}

/// A cluster whose pods have IPv6 addresses.
fn v6() -> IpamdOptions {
    let options = IpamdOptions::new().env("ENABLE_IPv4", false).env("ENABLE_IPv6", true);
    options.env("ENABLE_PREFIX_DELEGATION", true)
}

/// Everybody sees everybody as they are, the internet too.
fn flows(ground: &Ground) -> Vec<Flow> {
    use End::{Host, Internet, Near, NearToo, OtherHost, OtherNear, OtherSubnet};
    let pairs = [
        (Near, NearToo),
        (NearToo, Near),
        (Near, OtherNear),
        (OtherNear, Near),
        (Near, OtherSubnet),
        (OtherSubnet, Near),
        (Near, Host),
        (Host, Near),
        (Near, OtherHost),
        (OtherHost, Near),
        (Near, Internet),
        (Internet, Near),
    ];
    pairs.iter().map(|(from, to)| ground.direct(*from, *to, Sees::Sender)).collect()
}

async fn pods_speak_ipv6_with_everybody() -> Result<()> {
    on(&v6(), async |ground| {
        let flows = flows(ground);
        ground.try_all(&flows).await?;

        let in_vpc: Vec<_> = flows.iter().filter(|it| !it.name.contains("Internet")).cloned().collect();
        ground.try_large(&in_vpc, 9001).await?;
        let (place, to) = (ground.place(End::Near), at(INTERNET_ECHO_V6, ECHO_PORT));
        let refused = place.seen_in_one_piece(to, 9001, ANSWER).await.err().context("9001 bytes went")?;
        ensure!(format!("{refused:#}").contains("Message too long"), "{refused:#}");
        place.seen_in_one_piece(to, 1500, ANSWER).await?;

        // Modes of source NAT are about IPv4: here they change nothing.
        for (node_port, external_snat) in [(true, true), (false, false), (false, true)] {
            ground.restart(&Mode::new(node_port, external_snat).on(v6())).await?;
            ground.try_all(&flows).await?;
        }
        Ok(())
    })
    .await
}

async fn services_lead_to_ipv6_pods() -> Result<()> {
    on(&v6(), async |ground| {
        let cluster: std::net::Ipv6Addr = "fd00:10:100::1".parse()?;
        let near = ground.pod(End::Near).context("no pod")?;
        let other = ground.pod(End::OtherNear).context("no pod")?;
        let numbered = |number: u128| std::net::Ipv6Addr::from(u128::from(cluster) + number);
        let services = [
            Service::new("local", numbered(0), 80).to_pod(near).node_port(30_001).local(),
            Service::new("near", numbered(1), 80).to_pod(near).node_port(30_002),
            Service::new("other", numbered(2), 80).to_pod(other).node_port(30_003),
            Service::new("outside", numbered(3), 80).to(at(INTERNET_ECHO_V6, ECHO_PORT)),
        ];
        for proxy in KubeProxy::ALL {
            // The rules of the other form go, as when a node is set up anew.
            ground.node().place().nft_load("flush ruleset\n").await?;
            ground.restart(&v6()).await?;
            ground.node().set_services(proxy, &services).await?;
            let service =
                |from, number, name| ground.flow(name, from, at(numbered(number), 80), Sees::Sender);
            let port = |from, port, name, sees| ground.flow(name, from, at(ground.ip(End::Host), port), sees);
            let mut flows = vec![
                service(End::NearToo, 0, "the service of Near"),
                service(End::Near, 2, "the service of OtherNear"),
                service(End::Near, 3, "the service of the internet"),
                service(End::Host, 0, "the service of Near"),
            ];
            for from in [End::Internet, End::OtherHost, End::OtherSubnet] {
                flows.push(port(from, 30_001, "the local node port of Near", Sees::Sender));
                flows.push(port(from, 30_002, "the node port of Near", Sees::Node));
                flows.push(port(from, 30_003, "the node port of OtherNear", Sees::Node));
            }
            ground.try_all(&flows).await.with_context(|| format!("{proxy:?}"))?;
        }
        Ok(())
    })
    .await
}

async fn ipv6_pods_reach_ipv4_by_the_node() -> Result<()> {
    on(&v6(), async |ground| {
        let other_host = ground.lab().nodes()[1].primary_ip();
        let targets =
            [("the internet", INTERNET_ECHO), ("premises", PREMISES_ECHO), ("OtherHost", other_host)];
        let mut flows = Vec::new();
        for from in [End::Near, End::NearToo] {
            for (name, address) in targets {
                flows.push(ground.flow(
                    &format!("{name} over IPv4"),
                    from,
                    at(address, ECHO_PORT),
                    Sees::Node,
                ));
            }
        }
        ground.try_all(&flows).await?;

        // These addresses are no way from one pod to another.
        let near = ground.pod(End::Near).context("no pod")?;
        let shown = near.place().ip(&["-j", "-4", "addr", "show", "v4if0"]).await?;
        let address: std::net::Ipv4Addr =
            shown[0]["addr_info"][0]["local"].as_str().context("v4if0 has no address")?.parse()?;
        for protocol in Protocol::ALL {
            let answer = ground.place(End::NearToo).seen(protocol, at(address, ECHO_PORT), ANSWER).await;
            let refused = answer.err().with_context(|| format!("{protocol:?}: one pod reached another"))?;
            ensure!(format!("{refused:#}").contains("refused"), "{protocol:?}: {refused:#}");
        }

        // Switched off it forbids these flows, and new pods do not get the way at all.
        ground.restart(&v6().env("ENABLE_V4_EGRESS", false)).await?;
        for flow in flows.iter().filter(|it| it.from == End::Near) {
            ground.is_dropped(flow, |drops| drops.spoofed).await?;
        }
        let late = ground.node().add_pod("default", "late").await?;
        ensure!(late.exec(&["ip", "link", "show", "v4if0"]).await.is_err(), "a late pod has v4if0");
        late.remove().await?;
        ground.restart(&v6()).await?;
        ground.try_all(&flows).await
    })
    .await
}

async fn ipv4_pods_reach_ipv6_by_the_node() -> Result<()> {
    let options = IpamdOptions::new().env("ENABLE_V6_EGRESS", true);
    on(&options, async |ground| {
        let to = at(INTERNET_ECHO_V6, ECHO_PORT);
        let mut flows = Vec::new();
        for from in [End::Near, End::Far] {
            flows.push(ground.flow("the internet over IPv6", from, to, Sees::Node));
            flows.push(ground.direct(from, End::Internet, Sees::Node));
            flows.push(ground.direct(from, End::OtherFar, Sees::Sender));
        }
        ground.try_all(&flows).await?;

        // Source NAT of IPv4 is another matter.
        ground.lab().fabric().set_nat_gateway(true).await?;
        ground.restart(&Mode::new(false, true).on(options.clone())).await?;
        let by_v6: Vec<_> = flows.iter().filter(|it| it.to == to).cloned().collect();
        ground.try_all(&by_v6).await?;
        let fresh = Facts::of(ground.node(), &ground.names()).await?;
        ground.restart(&Mode::new(false, true).on(options.clone())).await?;
        facts::becomes(ground.node(), &ground.names(), &fresh).await
    })
    .await
}

async fn ipv6_streams_outlive_a_restart() -> Result<()> {
    on(&v6(), async |ground| {
        let other_v4 =
            ground.flow("the internet over IPv4", End::Near, at(INTERNET_ECHO, ECHO_PORT), Sees::Node);
        let lines = [
            ground.line(&ground.direct(End::Near, End::NearToo, Sees::Sender), End::NearToo),
            ground.line(&ground.direct(End::Near, End::OtherNear, Sees::Sender), End::OtherNear),
            ground.line(&ground.direct(End::OtherSubnet, End::Near, Sees::Sender), End::Near),
            ground.line(&ground.direct(End::Near, End::Internet, Sees::Sender), End::Internet),
            ground.line(&other_v4, End::Internet),
        ];
        let fresh = Facts::of(ground.node(), &ground.names()).await?;
        let restart = async |ground: &mut Ground| {
            ground.restart(&v6()).await?;
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            facts::becomes(ground.node(), &ground.names(), &fresh).await
        };
        let (restarted, delivered) = traffic::on_lines(&lines, restart(ground)).await;
        all_delivered(delivered)?;
        restarted
    })
    .await
}

async fn a_new_ipv6_pod_is_reached_at_once() -> Result<()> {
    on(&v6(), async |ground| new_pods_are_reached_at_once(ground).await).await
}

async fn a_new_ipv4_pod_is_reached_at_once() -> Result<()> {
    on(&IpamdOptions::new(), async |ground| {
        // A place on the primary ENI for the new ones.
        let near_too = ground.pod(End::NearToo).context("no pod")?;
        near_too.remove().await?;
        new_pods_are_reached_at_once(ground).await
    })
    .await
}

/// A pod that the plugin has reported answers, and is answered, without anybody's second try.
async fn new_pods_are_reached_at_once(ground: &Ground) -> Result<()> {
    let other = ground.pod(End::OtherNear).context("no pod")?;
    for number in 0..4 {
        let pod = ground.node().add_pod("default", &format!("new{number}")).await?;
        let before = SentAgain::between(other.place(), pod.place())?;
        let (place, to) = if number % 2 == 0 { (other.place(), &pod) } else { (pod.place(), other) };
        place.seen(Protocol::Tcp, at(to.ip(), ECHO_PORT), ANSWER).await?;
        let lost = before.insist_on_none_lost(other.place(), pod.place());
        lost.with_context(|| pod.label())?;
        // Else the end of the connection would be sent again and again to a pod that is gone.
        until("the connection has ended", ANSWER, || async {
            let open = other.exec(&["ss", "-Htn", "state", "connected", "exclude", "time-wait"]).await?;
            Ok(open.trim().is_empty())
        })
        .await?;
        pod.remove().await?;
    }
    Ok(())
}
