//! A pod's life as kubelet, runtime and plugin make it: ADD, wiring, DEL, again and again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use vpc::{PodKey, PodName, host_veth};

use super::chance::Chance;
use super::node::Node;
use super::oracle::ROOMY;
use super::scenario::Scenario;
use super::violation::Violation;
use crate::pool::{Assignment, Refusal};
use crate::pool_task::{AddError, DelError, Patience};

pub(super) const NETWORK: &str = "aws-cni";
pub(super) const INTERFACE: &str = "eth0";

/// The plugin's own times.
const ADD_LASTS: Duration = Duration::from_secs(35);
const RECONNECT_FOR: Duration = Duration::from_secs(10);
const DEL_LASTS: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Why a plugin's ADD failed.
enum Failed {
    Refused(Refusal),
    Unreachable,
}

/// One pod on one node.
pub(super) struct Pod {
    pub(super) node: Arc<Node>,
    pub(super) name: u32,
    pub(super) lives: u32,
    pub(super) life: Duration,
    pub(super) chance: Chance,
    pub(super) capacity: usize,
    lost_dels: u64,
    /// Lives on when the others are told to go.
    stays: bool,
    /// The sandbox that there is, with its address if it got one.
    current: Option<(String, Option<IpAddr>)>,
}

impl Pod {
    pub(super) fn new(
        node: &Arc<Node>,
        scenario: &Scenario,
        name: u32,
        lives: u32,
        life: Duration,
        salt: u64,
    ) -> Self {
        let (node, chance) = (Arc::clone(node), Chance::new(salt, 1));
        let stays = life > scenario.active + scenario.idle;
        let (capacity, lost_dels) = (scenario.capacity(), scenario.lost_dels);
        Self { node, name, lives, life, chance, capacity, lost_dels, stays, current: None }
    }

    fn pod(&self) -> PodName {
        PodName::new("default", &format!("p{}", self.name))
    }

    /// Lives all lives; a reboot cuts one short, and the next begins.
    pub(super) async fn run(mut self) {
        let pod = self.pod().to_string();
        let mut number = 0;
        while self.lives > 0 {
            let boot = self.node.boot();
            let node = Arc::clone(&self.node);
            let is_over = tokio::select! {
                biased;
                () = node.world.closed(), if !self.stays => {
                    // What it had is given back like any other's.
                    if let Some((container, address)) = self.current.take() {
                        self.end(&container, address).await;
                    }
                    break;
                }
                () = node.rebooted_since(boot) => false,
                () = self.one_life(&mut number) => true,
            };
            if is_over {
                self.lives -= 1;
            } else {
                // The machine is off for a while, and then the kubelet begins anew.
                let pause = self.chance.secs(20, 70);
                sleep(pause).await;
            }
        }
        self.node.world.oracle().wants_no_more(self.node.index, &pod);
    }

    /// Tries until a sandbox runs, lets it live, and ends it.
    async fn one_life(&mut self, number: &mut u32) {
        let mut pause = Duration::from_secs(1);
        let (container, address) = loop {
            *number += 1;
            let container = format!("p{}c{number}", self.name);
            self.current = Some((container.clone(), None));
            self.node.sandboxes.lock().expect("unpoisoned").insert(container.clone());
            let pod = self.pod().to_string();
            self.node.world.oracle().wants(self.node.index, &pod);
            if let Some(address) = self.start(&container).await {
                break (container, address);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(12));
        };
        self.current = Some((container.clone(), Some(address)));
        sleep(self.life).await;
        self.end(&container, Some(address)).await;
    }

    /// Makes one sandbox; none if that failed, and then nothing of it is left.
    async fn start(&mut self, container: &str) -> Option<IpAddr> {
        let (node, pod) = (Arc::clone(&self.node), self.pod());
        let first = self.add(container);
        let outcome = if self.chance.clone().percent(4) {
            // The runtime has lost patience, or never had any, and asks twice at a time.
            let second = self.add(container);
            let (first, second) = tokio::join!(first, second);
            match (first, second) {
                (Err(_), Ok(found)) | (Ok(found), _) => Ok(found),
                (Err(failed), Err(_)) => Err(failed),
            }
        } else {
            first.await
        };
        let assignment = match outcome {
            Ok(assignment) => assignment,
            Err(failed) => {
                if let Failed::Refused(refusal) = failed {
                    node.world.note(|| format!("node {} refuses {pod}: {:?}", node.index, refusal.reason));
                }
                let pause = self.chance.millis(1, 200);
                sleep(pause).await;
                self.end(container, None).await;
                return None;
            }
        };
        let address = assignment.address;
        if self.chance.percent(3) && !self.repeat(container, address).await {
            return None;
        }
        let link = host_veth("eni", &pod, 0);
        let stall = match self.chance.between(0, 99) {
            0..90 => self.chance.millis(1, 10),
            90..97 => self.chance.millis(10, 2000),
            _ => self.chance.secs(2, 15),
        };
        sleep(stall).await;
        node.kernel.add_link(&link, container);
        sleep(self.chance.millis(0, 2)).await;
        if self.chance.percent(2) {
            // Wiring fails: it is undone, and the address handed back.
            node.kernel.remove_link(&link, container);
            self.end(container, Some(address)).await;
            return None;
        }
        node.kernel.add_rule(address, 512, vpc::RouteTable::MAIN);
        if assignment.slot != vpc::EniSlot::PRIMARY {
            node.kernel.add_rule(address, 1536, assignment.table);
        }
        sleep(self.chance.millis(0, 1)).await;
        node.kernel.add_route(address, &link);
        node.world.note(|| format!("node {} {container} wired with {address}", node.index));
        Some(address)
    }

    /// An ADD of the same key once more; says whether the pod goes on.
    async fn repeat(&mut self, container: &str, address: IpAddr) -> bool {
        match self.add(container).await {
            Ok(_) => true,
            Err(_) => {
                self.end(container, Some(address)).await;
                false
            }
        }
    }

    /// The plugin's ADD: asks, and asks again while the daemon restarts.
    async fn add(&self, container: &str) -> Result<Assignment, Failed> {
        let node = &self.node;
        let started = Instant::now();
        let mut pause = Duration::from_millis(20);
        let key = PodKey::new(NETWORK, container, INTERFACE).expect("a key");
        loop {
            let failed = match self.ask(&key, started).await {
                Ok(assignment) => {
                    let snapshot = node.world.cloud.snapshot();
                    let pod = self.pod().to_string();
                    node.world
                        .note(|| format!("node {} gives {container} {}", node.index, assignment.address));
                    let free = node.world.free_addresses();
                    let capacity = self.capacity;
                    let room = |taken: usize| free >= ROOMY && taken + 2 < capacity;
                    let mut oracle = node.world.oracle();
                    oracle.served_after(node.index, &pod, started.elapsed(), room);
                    let own = host_veth("eni", &self.pod(), 0);
                    let found = node.kernel.found_with(&assignment, &own, node.world.now());
                    oracle.promised(node.index, container, &pod, &assignment, found, &snapshot);
                    return Ok(assignment);
                }
                Err(failed) => failed,
            };
            if !matches!(failed, Failed::Unreachable) || started.elapsed() + pause >= RECONNECT_FOR {
                return Err(failed);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    async fn ask(&self, key: &PodKey, started: Instant) -> Result<Assignment, Failed> {
        let node = &self.node;
        sleep(Duration::from_micros(300)).await;
        let Some(connection) = node.connect() else { return Err(Failed::Unreachable) };
        let left = ADD_LASTS.saturating_sub(started.elapsed());
        let now = Instant::now().into_std();
        let latest = left.saturating_sub(Duration::from_millis(800));
        let patience = Patience { deadline: now + latest.min(LONGEST_WAIT), latest: now + latest };
        let asked = Instant::now();
        let answer = tokio::select! {
            biased;
            () = connection.life.over() => return Err(Failed::Unreachable),
            answer = timeout(left, connection.pool.add(key.clone(), self.pod(), patience)) => answer,
        };
        if connection.life.is_over() {
            return Err(Failed::Unreachable);
        }
        match answer {
            Ok(Ok(assignment)) => Ok(assignment),
            Ok(Err(AddError::Refused(refusal))) => {
                let free = node.world.free_addresses();
                let capacity = self.capacity;
                let pod = self.pod().to_string();
                let room = |taken: usize| free >= ROOMY && taken < capacity;
                let mut oracle = node.world.oracle();
                oracle.refused(node.index, &pod, refusal.reason, &refusal.message, room);
                Err(Failed::Refused(refusal))
            }
            Ok(Err(AddError::ShuttingDown)) => Err(Failed::Unreachable),
            Err(_) => {
                let (pod, after) = (key.to_string(), asked.elapsed());
                node.world.oracle().violate(Violation::AnsweredLate { pod, after });
                Err(Failed::Unreachable)
            }
        }
    }

    /// The plugin's DEL, and later the end of the namespace.
    async fn end(&mut self, container: &str, address: Option<IpAddr>) {
        let node = Arc::clone(&self.node);
        let link = host_veth("eni", &self.pod(), 0);
        let key = PodKey::new(NETWORK, container, INTERFACE).expect("a key");
        node.sandboxes.lock().expect("unpoisoned").remove(container);
        let may_get_lost = self.lost_dels > 0 && !node.world.is_closed();
        let is_lost = may_get_lost && self.chance.percent(self.lost_dels);
        node.world.oracle().ends(container, is_lost);
        if is_lost {
            return self.vanish(container, address);
        }
        sleep(Duration::from_micros(300)).await;
        let told = match node.connect() {
            None => None,
            Some(connection) => {
                let asked = tokio::select! {
                    biased;
                    () = connection.life.over() => None,
                    answer = timeout(DEL_LASTS, connection.pool.del(key)) => answer.ok(),
                };
                asked.filter(|_| !connection.life.is_over())
            }
        };
        node.world.note(|| {
            let short = told.as_ref().map(|told| told.as_ref().map(|released| released.allocation.address));
            format!("node {} DEL {container}: {short:?}", node.index)
        });
        sleep(self.chance.millis(0, 3)).await;
        match told {
            Some(Ok(released)) => node.kernel.remove_pod(released.allocation.address, &link, container),
            Some(Err(DelError::UnknownPod)) => {
                address.iter().for_each(|address| node.kernel.remove_pod(*address, &link, container));
            }
            Some(Err(error)) if !node.world.oracle().is_troubled(node.index) => {
                let (pod, error) = (container.to_owned(), error.to_string());
                node.world.oracle().violate(Violation::DelNotTaken { pod, error });
            }
            Some(Err(_)) | None => {
                address.iter().for_each(|address| node.kernel.remove_pod(*address, &link, container));
                node.spool(container, address);
            }
        }
        self.end_namespace(container);
    }

    /// The pod ends without the daemon, and nobody leaves word of it: the plugin was killed once the
    /// kernel was clean, or never called at all.
    fn vanish(&mut self, container: &str, address: Option<IpAddr>) {
        let link = host_veth("eni", &self.pod(), 0);
        self.node.world.note(|| format!("node {} loses the DEL of {container}", self.node.index));
        if self.chance.percent(50) {
            address.iter().for_each(|address| self.node.kernel.remove_pod(*address, &link, container));
        }
        self.end_namespace(container);
    }

    fn end_namespace(&mut self, container: &str) {
        let (lingers, container) = (self.chance.millis(10, 4000), container.to_owned());
        let (node, link) = (Arc::clone(&self.node), host_veth("eni", &self.pod(), 0));
        tokio::spawn(async move {
            sleep(lingers).await;
            node.kernel.remove_link(&link, &container);
        });
    }
}
