//! Services by kube-proxy's rules, as iptables and as nftables: cluster addresses and node ports,
//! to pods of either kind of ENI, of other nodes, and to what is outside of the cluster.

use anyhow::{Context, Result};
use e2e::flows::{Flow, Mode, Sees};
use e2e::ground::{End, Ground, on};
use e2e::scenarios;
use lab::world::{ECHO_PORT, KubeProxy, Service, at};

fn main() {
    e2e::main_with(
        scenarios![
            with_node_ports_and_snat_on_the_node,
            with_node_ports_and_snat_elsewhere,
            without_node_ports_and_with_snat_on_the_node,
            without_node_ports_and_with_snat_elsewhere,
        ],
        2,
    );
}

/// What a service leads to, the last part of its cluster address, and its node ports with the
/// policies `Cluster` and `Local`.
const SERVICES: [(End, u8); 4] = [(End::Near, 1), (End::Far, 2), (End::OtherFar, 3), (End::Internet, 4)];
/// The port of every service.
const PORT: u16 = 80;
/// The pods of the node under test, one per kind of ENI.
const PODS: [End; 2] = [End::Near, End::Far];

fn cluster_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}

fn local_port(number: u8) -> u16 {
    31_000 + u16::from(number)
}

/// Two services for each end, as a service has one policy only.
fn services(ground: &Ground) -> Vec<Service> {
    let mut services = Vec::new();
    for (end, number) in SERVICES {
        let to = |service: Service| match ground.pod(end) {
            Some(pod) => service.to_pod(pod),
            None => service.to(at(ground.ip(end), ECHO_PORT)),
        };
        let all = Service::new(&format!("all{number}"), [10, 100, 0, number], PORT);
        services.push(to(all.node_port(cluster_port(number))));
        let local = Service::new(&format!("local{number}"), [10, 100, 1, number], PORT);
        services.push(to(local.node_port(local_port(number)).local()));
    }
    services
}

async fn with_node_ports_and_snat_on_the_node() -> Result<()> {
    in_both_forms(Mode::new(true, false)).await
}

async fn with_node_ports_and_snat_elsewhere() -> Result<()> {
    in_both_forms(Mode::new(true, true)).await
}

async fn without_node_ports_and_with_snat_on_the_node() -> Result<()> {
    in_both_forms(Mode::new(false, false)).await
}

async fn without_node_ports_and_with_snat_elsewhere() -> Result<()> {
    in_both_forms(Mode::new(false, true)).await
}

async fn in_both_forms(mode: Mode) -> Result<()> {
    on(&mode.options(), async |ground| {
        ground.lab().fabric().set_nat_gateway(mode.external_snat).await?;
        for proxy in KubeProxy::ALL {
            // The rules of the other form go, as when a node is set up anew.
            ground.node().place().nft_load("flush ruleset\n").await?;
            for random in Mode::RANDOM {
                let mode = Mode { random, ..mode };
                ground.restart(&mode.options()).await?;
                ground.node().set_services(proxy, &services(ground)).await?;
                let context = || format!("{proxy:?}, {mode}");
                ground.try_all(&cluster_flows(ground, mode)).await.with_context(context)?;
                node_ports(ground, mode).await.with_context(context)?;
            }
        }
        Ok(())
    })
    .await
}

/// From pods and the node to cluster addresses.
fn cluster_flows(ground: &Ground, mode: Mode) -> Vec<Flow> {
    let outside = if mode.external_snat { Sees::NatGateway } else { Sees::Node };
    let mut flows = Vec::new();
    for (end, number) in SERVICES {
        for from in [End::Near, End::Far, End::Host] {
            let sees = match (from, end) {
                (End::Host, _) => Sees::Sender,
                (_, End::Internet) => outside,
                // A pod that calls itself by a service is masqueraded, or it would see no answer.
                (from, end) if from == end => Sees::Node,
                _ => Sees::Sender,
            };
            let name = format!("the service of {end:?}");
            flows.push(ground.flow(&name, from, at([10, 100, 0, number], PORT), sees));
        }
    }
    flows
}

async fn node_ports(ground: &Ground, mode: Mode) -> Result<()> {
    let flow = |end: End, from: End, port: u16, sees: Sees| {
        ground.flow(&format!("the node port of {end:?}"), from, at(ground.ip(End::Host), port), sees)
    };
    let mut flows = Vec::new();
    for from in [End::Internet, End::OtherHost, End::OtherSubnet, End::Premises] {
        // A pod of the primary ENI, and one that is reached over it.
        flows.push(flow(End::Near, from, local_port(1), Sees::Sender));
        flows.push(flow(End::Near, from, cluster_port(1), Sees::Node));
        flows.push(flow(End::OtherFar, from, cluster_port(3), Sees::Node));
        let behind = [
            flow(End::Far, from, local_port(2), Sees::Sender),
            flow(End::Far, from, cluster_port(2), Sees::Node),
        ];
        if mode.node_port {
            flows.extend(behind);
        } else {
            // The answer leaves by the pod's own ENI, with the address of another.
            for flow in behind {
                ground.is_dropped(&flow, |drops| drops.spoofed).await?;
            }
        }
    }
    // A pod's way to a node port of its own node, which is the shortest.
    // It leaves by the pod's ENI, whose address the masquerade takes then.
    for pod in PODS {
        let flow = flow(End::OtherFar, pod, cluster_port(3), Sees::Sender);
        flows.push(Flow { sees: ground.eni_ip(pod)?, ..flow });
    }
    ground.try_all(&flows).await
}
