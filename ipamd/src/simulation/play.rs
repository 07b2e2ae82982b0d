//! One run from its beginning to the last check.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use lab::cloud::{
    ActionClass, AttachNetworkInterface, BucketSpec, CreateNetworkInterface, DetachNetworkInterface, Fault,
    Latency, LaunchSpec, Request, Response, UnassignPrivateIpAddresses,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::chance::Chance;
use super::checks;
use super::node::Node;
use super::oracle::Violation;
use super::pod::Pod;
use super::scenario::{ByHand, Event, Scenario, Wrong};
use super::world::{ROLE_TAG, World};

/// What came of a run.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) violation: Option<Violation>,
    /// A digest of everything that happened, and how much that was.
    pub(super) digest: u64,
    pub(super) events: u64,
    pub(super) trace: Vec<String>,
}

/// Runs a scenario; a loud one prints its trace.
pub(super) fn play(scenario: &Scenario, is_loud: bool) -> Outcome {
    play_and_ask(scenario, is_loud, |_| ()).0
}

/// The same, and something about the world as it is in the end.
pub(super) fn play_and_ask<T>(
    scenario: &Scenario,
    is_loud: bool,
    ask: impl FnOnce(&World) -> T,
) -> (Outcome, T) {
    fastrand::seed(scenario.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = World::new(scenario, is_loud);
        let stage = Stage::set(&world, scenario);
        let decided = world.oracle().decided();
        tokio::select! {
            biased;
            () = decided.notified() => {}
            () = stage.perform() => {}
        }
        let (digest, events, trace) = world.trace();
        let violation = world.oracle().violation();
        (Outcome { violation, digest, events, trace }, ask(&world))
    })
}

/// A run under way.
pub(super) struct Stage<'a> {
    pub(super) world: Arc<World>,
    pub(super) scenario: &'a Scenario,
    pub(super) nodes: Vec<Arc<Node>>,
    began: Instant,
}

impl<'a> Stage<'a> {
    /// Starts the instances and their daemons.
    pub(super) fn set(world: &Arc<World>, scenario: &'a Scenario) -> Self {
        let cloud = &world.cloud;
        let latency = Latency { base: scenario.latency, jitter: scenario.latency };
        cloud.set_latency("*", latency);
        cloud.set_attach_delay(scenario.attach_delay);
        cloud.set_detach_delay(scenario.detach_delay);
        let snapshot = cloud.snapshot();
        let subnet = snapshot
            .subnets
            .values()
            .find(|subnet| subnet.cidr == scenario.subnets[0])
            .map(|subnet| subnet.id.clone())
            .expect("the first subnet");
        let mut nodes = Vec::new();
        for index in 0..scenario.nodes {
            let launched = cloud.launch(LaunchSpec {
                instance_type: scenario.instance_type.to_owned(),
                subnet_id: subnet.clone(),
                ..LaunchSpec::default()
            });
            let instance = launched.expect("an instance").id.clone();
            world.oracle().node_is(index, &instance);
            nodes.push(Node::new(world, index, &instance, scenario));
        }
        for node in &nodes {
            tokio::spawn(Arc::clone(node).run());
        }
        let watched = Arc::clone(world);
        tokio::spawn(async move {
            let mut changes = watched.cloud.changed();
            while changes.changed().await.is_ok() {
                let snapshot = watched.cloud.snapshot();
                let free = watched.free_addresses();
                watched.oracle().ec2_changed(&snapshot, free);
            }
        });
        Self { world: Arc::clone(world), scenario, nodes, began: Instant::now() }
    }

    async fn perform(&self) {
        for (at, event) in &self.scenario.events {
            sleep_until(self.began + *at).await;
            self.happen(event);
        }
        sleep_until(self.began + self.scenario.active).await;
        self.calm();
        checks::settle(self).await;
    }

    /// Ends everything that is out of order.
    fn calm(&self) {
        self.world.note(|| "all trouble ends".to_owned());
        self.world.close();
        let cloud = &self.world.cloud;
        cloud.clear_faults();
        cloud.set_imds_lag(Duration::ZERO);
        cloud.set_bucket(ActionClass::Describe, None);
        cloud.set_bucket(ActionClass::Mutate, None);
        cloud.set_latency("*", Latency { base: self.scenario.latency, jitter: self.scenario.latency });
        self.world.set_imds_down(false);
        for node in &self.nodes {
            node.spare();
            node.disk.set_trouble(None);
            self.world.set_link_delay(node.index, Duration::ZERO);
        }
    }

    fn happen(&self, event: &Event) {
        if !matches!(event, Event::Pod { .. }) {
            self.world.note(|| format!("{event:?}"));
        }
        let cloud = self.world.cloud.clone();
        match event {
            Event::Pod { node, name, lives, life, salt } => {
                let pod = Pod::new(&self.nodes[*node], self.scenario, *name, *lives, *life, *salt);
                tokio::spawn(pod.run());
            }
            Event::Fault { action, wrong, times, lasts } => {
                self.world.oracle().trouble(None, *lasts);
                let fault = Fault::on(action).times(*times).lasting(*lasts);
                cloud.fault(match wrong {
                    Wrong::Error(code) => fault.error(code),
                    Wrong::Throttle => fault.throttle(),
                    Wrong::Deny => fault.deny(),
                    Wrong::Expired => fault.expired(),
                    Wrong::Hang => fault.hang(),
                    Wrong::LoseAnswer => fault.lose_answer(),
                    Wrong::Drop => fault.drop_request(),
                });
            }
            Event::Kill { node, after } => {
                self.world.oracle().trouble(Some(*node), Duration::from_secs(120));
                self.nodes[*node].kill(*after);
            }
            Event::Restart { node } => {
                self.world.oracle().trouble(Some(*node), Duration::from_secs(30));
                self.nodes[*node].stop();
            }
            Event::Reboot { node } => {
                self.world.oracle().trouble(Some(*node), Duration::from_secs(180));
                self.nodes[*node].reboot();
            }
            Event::WallJump { node, secs } => {
                self.world.oracle().forgets_rests(*node);
                if *secs < 0 {
                    // A DEL from before the jump may seem to be older than its pod.
                    self.world.oracle().loses_books(*node);
                }
                self.world.oracle().trouble(Some(*node), Duration::from_secs(60));
                self.nodes[*node].jump(*secs);
            }
            Event::Disk { node, trouble, lasts } => {
                let node = Arc::clone(&self.nodes[*node]);
                self.world.oracle().trouble(Some(node.index), *lasts);
                node.disk.set_trouble(Some(*trouble));
                self.later(*lasts, move |world| {
                    node.disk.set_trouble(None);
                    world.oracle().forgets_rests(node.index);
                });
            }
            Event::Damage { node, is_sidecar } => {
                self.world.oracle().trouble(Some(*node), Duration::from_secs(60));
                let node = &self.nodes[*node];
                *node.damage.lock().expect("unpoisoned") = Some(*is_sidecar);
                node.kill(None);
            }
            Event::Switch { node } => {
                // Blocks of the other kind go as pods let go of them.
                self.world.oracle().trouble(Some(*node), Duration::from_secs(240));
                self.nodes[*node].switch();
            }
            Event::Tag { subnet, value } => {
                self.world.oracle().trouble(None, Duration::from_secs(4000));
                let cidr = self.scenario.subnets.get(*subnet);
                let snapshot = cloud.snapshot();
                let found = snapshot.subnets.values().find(|found| Some(&found.cidr) == cidr);
                if let Some(found) = found {
                    let tags = BTreeMap::from([(ROLE_TAG.to_owned(), (*value).to_owned())]);
                    let request = Request::CreateTags { resources: vec![found.id.clone()], tags };
                    let _ = cloud.with(|cloud, now| cloud.perform(now, &request));
                }
            }
            Event::Fragment { every, lasts } => self.fragment(*every, *lasts),
            Event::Hand { node, what, salt } => self.by_hand(*node, *what, *salt),
            Event::Fill { leave, lasts } => self.fill(*leave, *lasts),
            Event::ImdsLag { lag, lasts } => {
                self.world.oracle().trouble(None, *lasts + *lag);
                cloud.set_imds_lag(*lag);
                self.later(*lasts, |world| world.cloud.set_imds_lag(Duration::ZERO));
            }
            Event::ImdsDown { lasts } => {
                self.world.oracle().trouble(None, *lasts);
                self.world.set_imds_down(true);
                self.later(*lasts, |world| world.set_imds_down(false));
            }
            Event::LateLinks { node, delay, lasts } => {
                let node = *node;
                self.world.oracle().trouble(Some(node), *lasts + *delay);
                self.world.set_link_delay(node, *delay);
                self.later(*lasts, move |world| world.set_link_delay(node, Duration::ZERO));
            }
            Event::Throttle { capacity, lasts } => {
                self.world.oracle().trouble(None, *lasts);
                let spec = BucketSpec { capacity: f64::from(*capacity), refill: 0.2 };
                cloud.set_bucket(ActionClass::Describe, Some(spec));
                cloud.set_bucket(ActionClass::Mutate, Some(spec));
                self.later(*lasts, |world| {
                    world.cloud.set_bucket(ActionClass::Describe, None);
                    world.cloud.set_bucket(ActionClass::Mutate, None);
                });
            }
            Event::Slow { latency, lasts } => {
                self.world.oracle().trouble(None, *lasts);
                cloud.set_latency("*", *latency);
                let usual = Latency { base: self.scenario.latency, jitter: self.scenario.latency };
                self.later(*lasts, move |world| world.cloud.set_latency("*", usual));
            }
        }
    }

    fn later(&self, after: Duration, then: impl FnOnce(&World) + Send + 'static) {
        let world = Arc::clone(&self.world);
        tokio::spawn(async move {
            sleep(after).await;
            then(&world);
        });
    }

    /// A person changes the ENIs of a node.
    fn by_hand(&self, node: usize, what: ByHand, salt: u64) {
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
                let whole =
                    |prefix: &ipnet::Ipv4Net| prefix.network().to_bits()..=prefix.broadcast().to_bits();
                let of_prefixes = eni.prefixes.iter().flat_map(whole).map(Ipv4Addr::from_bits);
                let addresses = eni.addresses.iter().map(|ip| ip.address).chain(of_prefixes);
                world.oracle().takes_by_hand(addresses);
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

    /// Somebody else takes single addresses all over the subnets for a while.
    fn fragment(&self, every: u32, lasts: Duration) {
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
    fn fill(&self, leave: u32, lasts: Duration) {
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
