//! A node's kernel, as far as addresses go: links, routes and rules, and the host thread's work.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datapath::evidence::{Evidence, RuleSeen};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use vpc::{EniSlot, RouteTable};

use super::chance::Chance;
use super::life::Life;
use super::world::World;
use crate::host::{HostFailure, HostHandle, HostHealth, Work};
use crate::pool::Assignment;

/// As the host thread waits for a link.
const LINK_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Tables {
    /// By name, with the sandbox that it belongs to.
    links: BTreeMap<String, String>,
    routes: BTreeMap<IpAddr, String>,
    rules: BTreeMap<IpAddr, BTreeSet<RuleSeen>>,
    /// Of the ENIs that are set up.
    tables: BTreeSet<RouteTable>,
    /// Addresses that are used by another hand, with the time of the world since when.
    foreign: BTreeMap<IpAddr, Duration>,
}

/// The link over which another hand's addresses are reached.
const FOREIGN_LINK: &str = "foreign0";

/// How long the daemon may know nothing of what another hand does: until its next look.
const UNSEEN: Duration = Duration::from_secs(35);

/// What the kernel has of an address that a pod is given.
#[derive(Debug)]
pub(super) struct Found {
    /// Another link that the address is routed to.
    pub(super) other_link: Option<String>,
    /// Whether the address's ENI is set up.
    pub(super) has_table: bool,
}

/// The kernel of one node; outlives the daemon's processes and ends with a reboot.
#[derive(Debug, Clone, Default)]
pub(super) struct Kernel(Arc<Mutex<Tables>>);

impl Kernel {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a veth; one of that name that a former sandbox left goes first, with its routes.
    pub(super) fn add_link(&self, name: &str, container: &str) {
        let mut tables = self.tables();
        tables.routes.retain(|_, link| link != name);
        tables.links.insert(name.to_owned(), container.to_owned());
    }

    /// The pod's namespace has ended: its veth goes, and the routes over it.
    pub(super) fn remove_link(&self, name: &str, container: &str) {
        let mut tables = self.tables();
        if tables.links.get(name).is_none_or(|owner| owner != container) {
            return;
        }
        tables.links.remove(name);
        tables.routes.retain(|_, link| link != name);
    }

    pub(super) fn add_rule(&self, address: IpAddr, priority: u32, table: RouteTable) {
        self.tables().rules.entry(address).or_default().insert(RuleSeen { priority, table });
    }

    pub(super) fn add_route(&self, address: IpAddr, link: &str) {
        self.tables().routes.insert(address, link.to_owned());
    }

    /// As the plugin's DEL does: what leads to the pod goes, its link stays.
    pub(super) fn remove_pod(&self, address: IpAddr, link: &str, container: &str) {
        let mut tables = self.tables();
        let is_own = tables.links.get(link).is_none_or(|owner| owner == container);
        if tables.routes.get(&address).is_some_and(|led| led != link || !is_own) {
            // Another pod has it by now.
            return;
        }
        tables.routes.remove(&address);
        tables.rules.remove(&address);
    }

    /// The link that the address is routed to; none if that is news of the time since `then`.
    pub(super) fn route_since(&self, address: IpAddr, then: Duration) -> Option<String> {
        let tables = self.tables();
        let is_news = tables.foreign.get(&address).is_some_and(|since| *since > then);
        tables.routes.get(&address).filter(|_| !is_news).cloned()
    }

    /// What a pod finds that is given an address now, over its link `own`.
    pub(super) fn found_with(&self, assignment: &Assignment, own: &str, now: Duration) -> Found {
        let link = self.route_since(assignment.address, now.saturating_sub(UNSEEN));
        let is_primary = assignment.slot == EniSlot::PRIMARY;
        Found {
            other_link: link.filter(|link| link != own),
            has_table: is_primary || self.tables().tables.contains(&assignment.table),
        }
    }

    /// Another hand uses an address that nobody has.
    pub(super) fn use_by_another_hand(&self, address: IpAddr, now: Duration) {
        let Tables { routes, foreign, .. } = &mut *self.tables();
        if let Entry::Vacant(free) = routes.entry(address) {
            free.insert(FOREIGN_LINK.to_owned());
            foreign.insert(address, now);
        }
    }

    /// Another hand uses nothing any more.
    pub(super) fn let_go_by_another_hand(&self) {
        let mut tables = self.tables();
        tables.foreign.clear();
        tables.routes.retain(|_, link| link != FOREIGN_LINK);
    }

    pub(super) fn clear(&self) {
        *self.tables() = Tables::default();
    }

    pub(super) fn evidence(&self) -> Evidence {
        let tables = self.tables();
        Evidence {
            routes: tables.routes.iter().map(|(address, link)| (*address, link.clone())).collect(),
            rules: tables
                .rules
                .iter()
                .map(|(address, rules)| (*address, rules.iter().copied().collect()))
                .collect(),
            links: tables.links.keys().cloned().collect::<BTreeSet<_>>(),
            macs: BTreeMap::new(),
        }
    }
}

/// The host thread of one process, on a task.
pub(super) struct SimHost {
    pub(super) world: Arc<World>,
    pub(super) node: usize,
    pub(super) instance: String,
    pub(super) kernel: Kernel,
    pub(super) life: Arc<Life>,
    pub(super) chance: Chance,
}

impl SimHost {
    /// Starts it; it ends with the last handle.
    pub(super) fn start(mut self) -> HostHandle {
        let (work, mut inbox) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(work) = inbox.recv().await {
                let takes = self.chance.millis(0, 3);
                sleep(takes).await;
                if !self.life.acts() {
                    return;
                }
                self.handle(work);
            }
        });
        HostHandle::simulated(work)
    }

    fn handle(&mut self, work: Work) {
        match work {
            Work::Converge { enis, reply } => {
                self.kernel.tables().tables = enis.iter().map(|eni| eni.table).collect();
                drop(reply.send(Ok(0)));
            }
            Work::SetUpEni { eni, reply } => {
                let (world, instance, life) =
                    (Arc::clone(&self.world), self.instance.clone(), Arc::clone(&self.life));
                let late = world.link_delay(self.node) + self.chance.millis(0, 300);
                let deadline = Instant::now() + LINK_DEADLINE;
                let kernel = self.kernel.clone();
                tokio::spawn(async move {
                    let mac = eni.mac.to_string();
                    let has_link = || world.cloud.snapshot().eni_by_mac(&instance, &mac).is_some();
                    sleep(late.min(LINK_DEADLINE)).await;
                    while late >= LINK_DEADLINE || !has_link() {
                        if Instant::now() >= deadline || life.is_over() || reply.is_closed() {
                            let error = HostFailure::simulated(&format!("link of {mac} is missing"));
                            return drop(reply.send(Err(error)));
                        }
                        sleep(Duration::from_secs(1)).await;
                    }
                    kernel.tables().tables.insert(eni.table);
                    drop(reply.send(Ok(())));
                });
            }
            Work::ForgetEni { table, reply, .. } => {
                self.kernel.tables().tables.remove(&table);
                drop(reply.send(Ok(())));
            }
            Work::VpcCidrs { reply, .. } => drop(reply.send(Ok(()))),
            Work::RemovePodRules { address, reply } => {
                self.world.note(|| format!("node {} removes rules of {address}", self.node));
                self.kernel.tables().rules.remove(&address);
                drop(reply.send(Ok(())));
            }
            Work::Evidence { reply } => drop(reply.send(Ok(self.kernel.evidence()))),
            Work::Health { reply } => drop(reply.send(Ok(HostHealth::default()))),
            Work::KeepPods(_) => {}
        }
    }
}
