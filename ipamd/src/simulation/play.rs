//! One run from its beginning to the last check.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lab::cloud::{
    ActionClass, AssignPrivateIpAddresses, AttachNetworkInterface, BucketSpec, CloudHandle,
    CreateNetworkInterface, Fault, Latency, LaunchSpec, Request, Response,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::checks;
use super::node::Node;
use super::pod::Pod;
use super::scenario::{Event, PREFIXES, Provided, Scenario, Wrong};
use super::violation::Violation;
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
        if scenario.is_custom {
            let custom = snapshot.subnets.values().find(|subnet| subnet.cidr == scenario.subnets[1]);
            world.oracle().custom_subnet = custom.map(|subnet| subnet.id.clone());
        }
        if scenario.is_imds_only() {
            // An address counts once metadata has shown it twice.
            world.oracle().trouble(None, Duration::from_secs(60));
        }
        let mut nodes = Vec::new();
        for index in 0..scenario.nodes {
            let launched = cloud.launch(LaunchSpec {
                instance_type: scenario.instance_type.to_owned(),
                subnet_id: subnet.clone(),
                ..LaunchSpec::default()
            });
            let instance = launched.expect("an instance").id.clone();
            world.oracle().node_is(index, &instance);
            provide(cloud, &instance, &subnet, scenario);
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
            if self.scenario.lost_dels > 0 {
                // As the runtime does when it starts; of a pod that left rules alone nobody else knows.
                let node = Arc::clone(node);
                tokio::spawn(async move {
                    sleep(Duration::from_secs(20)).await;
                    while !node.collect().await {
                        sleep(Duration::from_secs(5)).await;
                    }
                });
            }
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
                // A node whose own subnet is excluded may have no place for more ENIs.
                let lasts = if *subnet == 0 { 100_000 } else { 4000 };
                self.world.oracle().trouble(None, Duration::from_secs(lasts));
                let cidr = self.scenario.subnets.get(*subnet);
                let snapshot = cloud.snapshot();
                let found = snapshot.subnets.values().find(|found| Some(&found.cidr) == cidr);
                if let Some(found) = found {
                    let tags = BTreeMap::from([(ROLE_TAG.to_owned(), (*value).to_owned())]);
                    let request = Request::CreateTags { resources: vec![found.id.clone()], tags };
                    let _ = cloud.with(|cloud, now| cloud.perform(now, &request));
                }
            }
            Event::Cordon { node, is_on } => {
                self.world.oracle().cordons(*node, *is_on);
                let (node, is_on) = (Arc::clone(&self.nodes[*node]), *is_on);
                tokio::spawn(async move { node.cordon(is_on).await });
            }
            Event::Collect { node } => {
                let node = Arc::clone(&self.nodes[*node]);
                tokio::spawn(async move { node.collect().await });
            }
            Event::AnotherHand { node, salt, lasts } => self.another_hand(*node, *salt, *lasts),
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
}

/// Gives a new instance what others provide.
fn provide(cloud: &CloudHandle, instance: &str, subnet_id: &str, scenario: &Scenario) {
    let Some(Provided { on_primary, on_second }) = scenario.provided else { return };
    let ask = |request: Request| cloud.with(|cloud, now| cloud.perform(now, &request)).expect("granted");
    let has_prefixes = scenario.vars.contains_key(PREFIXES);
    let fill = |eni_id: String, blocks: u16| {
        let mut wish = AssignPrivateIpAddresses { eni_id, ..AssignPrivateIpAddresses::default() };
        if has_prefixes {
            wish.prefix_count = Some(blocks);
        } else {
            wish.count = Some(blocks);
        }
        ask(Request::AssignPrivateIpAddresses(wish));
    };
    let primary = cloud.snapshot().attached(instance)[0].id.clone();
    fill(primary, on_primary);
    if on_second > 0 {
        let wish =
            CreateNetworkInterface { subnet_id: subnet_id.to_owned(), ..CreateNetworkInterface::default() };
        let Response::Created { eni, .. } = ask(Request::CreateNetworkInterface(wish)) else { return };
        ask(Request::AttachNetworkInterface(AttachNetworkInterface {
            eni_id: eni.id.clone(),
            instance_id: instance.to_owned(),
            device_index: 1,
            network_card: 0,
        }));
        fill(eni.id.clone(), on_second);
    }
}
