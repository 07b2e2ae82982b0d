//! What people and other instances do to the account: to ENIs, and to what subnets have left.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use lab::cloud::{
    AttachNetworkInterface, CreateNetworkInterface, DetachNetworkInterface, Request, Response,
    UnassignPrivateIpAddresses,
};
use tokio::time::sleep;

use super::chance::Chance;
use super::play::Stage;
use super::scenario::ByHand;
use super::world::{World, addresses_of};

impl Stage<'_> {
    /// A person changes the ENIs of a node.
    pub(super) fn by_hand(&self, node: usize, what: ByHand, salt: u64) {
        let mut chance = Chance::new(salt, 1);
        let (world, node) = (Arc::clone(&self.world), Arc::clone(&self.nodes[node]));
        world.oracle().trouble(Some(node.index), Duration::from_secs(3600));
        let snapshot = world.cloud.snapshot();
        let attached: Vec<_> = snapshot.attached(&node.instance).into_iter().cloned().collect();
        let secondary: Vec<_> = attached
            .iter()
            .filter(|eni| eni.attachment.as_ref().is_some_and(|at| at.device_index > 0))
            .collect();
        match what {
            ByHand::Detach => {
                if secondary.is_empty() {
                    return;
                }
                let eni = Arc::clone(chance.pick(&secondary));
                let own = eni.addresses.iter().map(|ip| IpAddr::from(ip.address));
                world.oracle().takes_by_hand(own.chain(addresses_of(&eni)));
                world.oracle().takes_eni_by_hand(node.index, &eni.id);
                let attachment = eni.attachment.as_ref().map(|at| at.id.clone()).unwrap_or_default();
                tokio::spawn(async move {
                    let detach = DetachNetworkInterface { attachment_id: attachment, force: true };
                    let _ = world.cloud.ask(Request::DetachNetworkInterface(detach)).await;
                    sleep(Duration::from_secs(20)).await;
                    let _ = world.cloud.ask(Request::DeleteNetworkInterface { eni_id: eni.id.clone() }).await;
                });
            }
            ByHand::Unassign => {
                let eni = chance.pick(&attached.iter().collect::<Vec<_>>());
                let mut addresses: Vec<Ipv4Addr> =
                    eni.addresses.iter().filter(|ip| !ip.is_primary).map(|ip| ip.address).collect();
                addresses.retain(|_| chance.percent(40));
                if addresses.is_empty() {
                    return;
                }
                world.oracle().takes_by_hand(addresses.iter().copied());
                let eni_id = eni.id.clone();
                tokio::spawn(async move {
                    let wish = UnassignPrivateIpAddresses { eni_id, addresses, prefixes: Vec::new() };
                    let _ = world.cloud.ask(Request::UnassignPrivateIpAddresses(wish)).await;
                });
            }
            ByHand::AttachUntagged | ByHand::AttachUnmanaged => {
                let subnet_id = snapshot.instances[&node.instance].subnet_id.clone();
                let device_index = u16::try_from(chance.between(1, 6)).unwrap_or(1);
                tokio::spawn(async move {
                    let mut wish = CreateNetworkInterface { subnet_id, ..CreateNetworkInterface::default() };
                    if what == ByHand::AttachUnmanaged {
                        wish.tags.insert("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned());
                    }
                    let Ok(Response::Created { eni, .. }) =
                        world.cloud.ask(Request::CreateNetworkInterface(wish)).await
                    else {
                        return;
                    };
                    world.oracle().attached_by_hand(node.index, &eni.id);
                    let attach = AttachNetworkInterface {
                        eni_id: eni.id.clone(),
                        instance_id: node.instance.clone(),
                        device_index,
                        network_card: 0,
                    };
                    if world.cloud.ask(Request::AttachNetworkInterface(attach)).await.is_err() {
                        let delete = Request::DeleteNetworkInterface { eni_id: eni.id.clone() };
                        let _ = world.cloud.ask(delete).await;
                    }
                });
            }
        }
    }

    /// Something on a node uses free addresses, one after the other.
    pub(super) fn another_hand(&self, node: usize, salt: u64, lasts: Duration) {
        let (world, node) = (Arc::clone(&self.world), Arc::clone(&self.nodes[node]));
        world.oracle().disturbance(node.index, lasts);
        let mut chance = Chance::new(salt, 1);
        let until = world.now() + lasts;
        tokio::spawn(async move {
            while world.now() < until && !world.is_closed() {
                let snapshot = world.cloud.snapshot();
                let held: Vec<_> =
                    snapshot.attached(&node.instance).into_iter().flat_map(addresses_of).collect();
                if !held.is_empty() {
                    let address = chance.pick(&held);
                    world.note(|| format!("another hand uses {address} on node {}", node.index));
                    node.kernel.use_by_another_hand(address, world.now());
                }
                tokio::select! {
                    () = sleep(chance.secs(2, 60)) => {}
                    () = world.closed() => {}
                }
                node.kernel.let_go_by_another_hand();
            }
        });
    }

    /// Somebody else takes single addresses all over the subnets for a while.
    pub(super) fn fragment(&self, every: u32, lasts: Duration) {
        let world = Arc::clone(&self.world);
        world.oracle().trouble(None, lasts);
        let mut taken = Vec::new();
        for subnet in world.cloud.snapshot().subnets.values() {
            let (first, last) = (subnet.cidr.network().to_bits(), subnet.cidr.broadcast().to_bits());
            for address in (first..last).step_by(every.max(1) as usize) {
                let wish = CreateNetworkInterface {
                    subnet_id: subnet.id.clone(),
                    primary_ip: Some(Ipv4Addr::from_bits(address)),
                    ..CreateNetworkInterface::default()
                };
                let request = Request::CreateNetworkInterface(wish);
                let made = world.cloud.with(|cloud, now| cloud.perform(now, &request));
                if let Ok(Response::Created { eni, .. }) = made {
                    taken.push(eni.id.clone());
                }
            }
        }
        tokio::spawn(give_back(world, taken, lasts));
    }

    /// Somebody else takes the subnets' addresses for a while.
    pub(super) fn fill(&self, leave: u32, lasts: Duration) {
        let world = Arc::clone(&self.world);
        world.oracle().trouble(None, lasts);
        tokio::spawn(async move {
            let mut taken = Vec::new();
            for subnet in world.cloud.snapshot().subnets.values() {
                // In chunks, as ENIs of other instances hold them.
                let mut left = subnet.available.saturating_sub(leave);
                while left > 0 {
                    let count = left.min(200);
                    left -= count;
                    let wish = CreateNetworkInterface {
                        subnet_id: subnet.id.clone(),
                        secondary_count: Some(u16::try_from(count - 1).unwrap_or(0)),
                        ..CreateNetworkInterface::default()
                    };
                    let request = Request::CreateNetworkInterface(wish);
                    // Past latency and faults: these are not the daemon's.
                    if let Ok(Response::Created { eni, .. }) =
                        world.cloud.with(|cloud, now| cloud.perform(now, &request))
                    {
                        taken.push(eni.id.clone());
                    }
                }
            }
            give_back(world, taken, lasts).await;
        });
    }
}

/// Deletes what somebody else took, after so long or when all trouble ends.
async fn give_back(world: Arc<World>, enis: Vec<String>, lasts: Duration) {
    tokio::select! {
        () = sleep(lasts) => {}
        () = world.closed() => {}
    }
    for eni_id in enis {
        let request = Request::DeleteNetworkInterface { eni_id };
        let _ = world.cloud.with(|cloud, now| cloud.perform(now, &request));
    }
}
