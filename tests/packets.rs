//! Packets between pods, nodes, the internet and a network on premises, and the source addresses
//! that their receivers see, in every mode of source NAT.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::flows::{ANSWER, Flow, Mode, Sees};
use e2e::ground::{End, Ground, on};
use e2e::scenarios;
use lab::world::{ECHO_PORT, IpamdOptions, at};

fn main() {
    e2e::main_with(
        scenarios![
            with_node_ports_and_snat_on_the_node,
            with_node_ports_and_snat_elsewhere,
            without_node_ports_and_with_snat_on_the_node,
            without_node_ports_and_with_snat_elsewhere,
            excluded_ranges_see_the_pods_themselves,
            the_vpc_grows_while_the_daemon_runs,
            jumbo_frames_reach_everybody_in_the_vpc_and_on_premises,
        ],
        2,
    );
}

/// A pause that keeps the number of tries small.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// Inside of the VPC everybody sees everybody as they are.
const INSIDE: [(End, End); 27] = {
    use End::{
        Far, FarToo, Host, Near, NearToo, OtherFar, OtherHost, OtherNear, OtherSubnet, Premises, SecondCidr,
    };
    [
        (Near, NearToo),
        (Near, Far),
        (Far, Near),
        (Far, FarToo),
        (Near, OtherNear),
        (Near, OtherFar),
        (Far, OtherNear),
        (Far, OtherFar),
        (OtherNear, Near),
        (OtherNear, Far),
        (OtherFar, Far),
        (Near, OtherSubnet),
        (Far, OtherSubnet),
        (OtherSubnet, Far),
        (Near, SecondCidr),
        (Far, SecondCidr),
        (SecondCidr, Near),
        (SecondCidr, Far),
        (Near, Host),
        (Far, Host),
        (Near, OtherHost),
        (Far, OtherHost),
        (Host, Near),
        (Host, Far),
        (OtherHost, Far),
        // A connection from outside is answered as what was called.
        (Premises, Near),
        (Premises, Far),
    ]
};

/// The pods of the node under test, one per kind of ENI.
const PODS: [End; 2] = [End::Near, End::Far];

fn inside(ground: &Ground) -> Vec<Flow> {
    INSIDE.iter().map(|(from, to)| ground.direct(*from, *to, Sees::Sender)).collect()
}

/// All flows, with what the world outside sees.
fn flows(ground: &Ground, internet: Sees, premises: Sees) -> Vec<Flow> {
    let mut flows = inside(ground);
    for pod in PODS {
        flows.push(ground.direct(pod, End::Internet, internet));
        flows.push(ground.direct(pod, End::Premises, premises));
    }
    flows.push(ground.direct(End::Host, End::Internet, Sees::Sender));
    flows.push(ground.direct(End::Host, End::Premises, Sees::Sender));
    flows
}

async fn with_node_ports_and_snat_on_the_node() -> Result<()> {
    every_random_mode(Mode::new(true, false)).await
}

async fn with_node_ports_and_snat_elsewhere() -> Result<()> {
    every_random_mode(Mode::new(true, true)).await
}

async fn without_node_ports_and_with_snat_on_the_node() -> Result<()> {
    every_random_mode(Mode::new(false, false)).await
}

async fn without_node_ports_and_with_snat_elsewhere() -> Result<()> {
    every_random_mode(Mode::new(false, true)).await
}

async fn every_random_mode(mode: Mode) -> Result<()> {
    on(&mode.options(), async |ground| {
        for random in Mode::RANDOM {
            let mode = Mode { random, ..mode };
            ground.restart(&mode.options()).await?;
            in_mode(ground, mode).await.with_context(|| mode.to_string())?;
        }
        Ok(())
    })
    .await
}

async fn in_mode(ground: &Ground, mode: Mode) -> Result<()> {
    let fabric = ground.lab().fabric();
    if !mode.external_snat {
        let before = fabric.drops().await?;
        ground.try_all(&flows(ground, Sees::Node, Sees::Node)).await?;
        // Nothing took a wrong way and was tried again.
        ensure!(fabric.drops().await? == before, "{before:?} became {:?}", fabric.drops().await?);
        for pod in PODS {
            let kept = ground.kept_ports(pod, End::Internet, 6).await?;
            // One may be another connection's already, or be hit upon by chance.
            let is_right = if mode.random == "none" { kept >= 5 } else { kept <= 1 };
            ensure!(is_right, "{pod:?} kept {kept} of 6 source ports");
        }
        return Ok(());
    }
    fabric.set_nat_gateway(true).await?;
    ground.try_all(&flows(ground, Sees::NatGateway, Sees::Sender)).await?;
    // Without somebody who translates, the internet does not see the pods: nor do they hide.
    fabric.set_nat_gateway(false).await?;
    for pod in PODS {
        let flow = ground.direct(pod, End::Internet, Sees::Sender);
        ground.is_dropped(&flow, |drops| drops.not_public).await?;
    }
    Ok(())
}

async fn excluded_ranges_see_the_pods_themselves() -> Result<()> {
    let excluded =
        |mode: Mode, ranges: &str| mode.options().env("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", ranges);
    let mode = Mode::new(true, false);
    on(&excluded(mode, "192.168.0.0/16"), async |ground| {
        ground.try_all(&flows(ground, Sees::Node, Sees::Sender)).await?;

        // Beside each other, within each other, and with blanks.
        ground.restart(&excluded(mode, "192.168.7.0/24, 192.168.0.0/16,192.168.7.7/32")).await?;
        ground.try_all(&flows(ground, Sees::Node, Sees::Sender)).await?;

        ground.restart(&excluded(Mode::new(false, false), "192.168.7.7/32")).await?;
        ground.try_all(&flows(ground, Sees::Node, Sees::Sender)).await?;

        ground.restart(&excluded(mode, "192.168.7.8/32")).await?;
        ground.try_all(&flows(ground, Sees::Node, Sees::Node)).await?;

        ground.restart(&excluded(mode, "0.0.0.0/0")).await?;
        ground.lab().fabric().set_nat_gateway(true).await?;
        ground.try_all(&flows(ground, Sees::NatGateway, Sees::Sender)).await
    })
    .await
}

async fn the_vpc_grows_while_the_daemon_runs() -> Result<()> {
    on(&Mode::new(true, false).options(), async |ground| {
        let cloud = ground.lab().cloud().clone();
        let before = cloud.snapshot().vpc.cidrs.clone();
        let added = "100.65.0.0/16".parse()?;
        cloud.set_vpc_cidrs([before.clone(), vec![added]].concat());
        let subnet = cloud.with(|cloud, now| cloud.add_subnet(now, added, "us-west-2b"));
        let host = ground.add_host(&subnet).await?;
        let to_host = |ground: &Ground, sees| {
            let host = at(host, ECHO_PORT);
            PODS.map(|pod| ground.flow("a host of the new range", pod, host, sees)).to_vec()
        };

        let as_inside = to_host(ground, Sees::Sender);
        become_true(ground, "the daemon takes the new range for a part of the VPC", &as_inside).await?;
        ground.try_all(&flows(ground, Sees::Node, Sees::Node)).await?;

        cloud.set_vpc_cidrs(before);
        let as_outside = to_host(ground, Sees::Node);
        become_true(ground, "the daemon takes it for the outside", &as_outside).await?;
        ground.try_all(&flows(ground, Sees::Node, Sees::Node)).await
    })
    .await
}

/// Waits until all flows are as expected.
async fn become_true(ground: &Ground, what: &str, flows: &[Flow]) -> Result<()> {
    let last = RefCell::new(String::new());
    e2e::until(what, ANSWER * 6, || async {
        // Each try leaves connections behind that remember how they were translated.
        tokio::time::sleep(BETWEEN_TRIES).await;
        let tried = ground.try_all(flows).await;
        if let Err(error) = &tried {
            last.replace(format!("{error:#}"));
        }
        Ok(tried.is_ok())
    })
    .await
    .with_context(|| last.take())
}

async fn jumbo_frames_reach_everybody_in_the_vpc_and_on_premises() -> Result<()> {
    on(&Mode::new(true, false).options(), async |ground| {
        let mut jumbo = inside(ground);
        jumbo.extend(PODS.map(|pod| ground.direct(pod, End::Premises, Sees::Node)));
        ground.try_large(&jumbo, 9001).await?;

        for pod in PODS {
            // The internet takes 1500 bytes; that its router says so reaches the pod.
            let (place, to) = (ground.place(pod), at(ground.ip(End::Internet), ECHO_PORT));
            let refused = place.seen_in_one_piece(to, 9001, ANSWER).await.err().context("9001 bytes went")?;
            ensure!(format!("{refused:#}").contains("Message too long"), "{pod:?}: {refused:#}");
            place.seen_in_one_piece(to, 1500, ANSWER).await?;
        }

        ground.restart(&Mode::new(true, false).on(IpamdOptions::new().env("AWS_VPC_ENI_MTU", 1500))).await?;
        let other = ground.direct(End::Far, End::OtherNear, Sees::Sender);
        ground.try_large(std::slice::from_ref(&other), 1500).await?;
        let refused = ground.place(End::Far).seen_in_one_piece(other.to, 1501, ANSWER).await;
        let refused = refused.err().context("1501 bytes went")?;
        ensure!(format!("{refused:#}").contains("Message too long"), "{refused:#}");
        Ok(())
    })
    .await
}
