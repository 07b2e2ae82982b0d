//! The VPC's wires: a link per attached ENI, a router that checks sources and destinations, the
//! internet and a network on premises behind it. Follows the cloud.

mod border;
mod plan;
mod wanted;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Mutex;

pub use self::border::{INTERNET_ECHO, INTERNET_ECHO_V6, NAT_GATEWAY, PREMISES_ECHO};
use self::plan::{Observed, Step, image_lines, plan, vpc_lines};
use self::wanted::Wanted;
use super::place::Place;
use crate::cloud::CloudHandle;

/// The wires of one world.
#[derive(Debug)]
pub struct Fabric {
    cloud: CloudHandle,
    places: border::Places,
    state: Mutex<State>,
}

/// What the fabric knows between two looks.
#[derive(Debug, Default)]
struct State {
    /// Places of nodes by instance id.
    nodes: BTreeMap<String, Place>,
    /// The cloud's version and the number of nodes when everything was last in place.
    settled: Option<(u64, usize)>,
    /// The last loaded elements of the checks.
    checks: String,
}

/// Packets that the fabric has dropped, as a VPC would silently do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops {
    /// From an ENI that does not own the source address.
    pub spoofed: u64,
    /// To an ENI that does not own the destination address.
    pub misdelivered: u64,
    /// To the internet from an address that can have no public one.
    pub not_public: u64,
}

impl Fabric {
    /// Makes the namespaces of the VPC and of what lies around it; their names begin with `prefix`.
    pub(crate) async fn start(prefix: &str, cloud: CloudHandle) -> Result<Arc<Fabric>> {
        Ok(Arc::new(Fabric { cloud, places: border::lay(prefix).await?, state: Mutex::default() }))
    }

    /// Where packets between ENIs are routed.
    pub fn vpc(&self) -> &Place {
        &self.places.vpc
    }

    /// Where the rest of the world is.
    pub fn internet(&self) -> &Place {
        &self.places.internet
    }

    /// A network on premises, 192.168.0.0/16. It and the VPC know each other's addresses and
    /// translate none; the line between them takes jumbo frames.
    pub fn premises(&self) -> &Place {
        &self.places.premises
    }

    /// All places that are no node's.
    pub fn places(&self) -> [&Place; 3] {
        [self.vpc(), self.internet(), self.premises()]
    }

    /// Whether a NAT gateway gives [`NAT_GATEWAY`] to packets that go to the internet from an
    /// address without a public one. Without it, as at first, they are lost.
    ///
    /// # Errors
    /// nft's complaint.
    pub async fn set_nat_gateway(&self, is_on: bool) -> Result<()> {
        self.vpc().nft_load(&border::nat_gateway(is_on)).await
    }

    /// Wires an instance to its place.
    pub(crate) async fn add_node(&self, instance: &str, place: Place) -> Result<()> {
        self.state.lock().await.nodes.insert(instance.to_owned(), place);
        self.settle().await
    }

    /// Reconciles at every change of the cloud, for ever.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut changed = self.cloud.changed();
        while changed.changed().await.is_ok() {
            if let Err(error) = self.settle().await {
                tracing::error!(error = format!("{error:#}"), "the fabric cannot follow the cloud");
            }
        }
    }

    /// Brings the wires to the cloud's current state; at once where they are there already.
    ///
    /// # Errors
    /// `ip` or `nft` refuse a change.
    pub async fn settle(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        let snapshot = self.cloud.snapshot();
        let target = (snapshot.version, state.nodes.len());
        if state.settled == Some(target) {
            return Ok(());
        }
        state.settled = None;
        let names = state.nodes.iter().map(|(id, place)| (id.clone(), place.name().to_owned())).collect();
        let wanted = Wanted::of(&snapshot, &names);

        let vpc = self.vpc();
        let (links, routes, routes_v6) = tokio::try_join!(
            vpc.ip(&["-j", "link", "show"]),
            vpc.ip(&["-j", "-4", "route", "show"]),
            vpc.ip(&["-j", "-6", "route", "show"])
        )?;
        let steps = plan(&wanted, &Observed::read(&links, &[routes, routes_v6])?);
        vpc.ip_batch(&vpc_lines(&steps)).await?;

        for step in &steps {
            if let Step::Wire(wire) = step {
                // At once: the kernel would wait up to 0.8 s, and has no default to set.
                vpc.sysctl(&format!("ipv4/neigh/{}/proxy_delay", wire.far), "0")?;
            }
        }

        let checks = wanted.checks();
        if checks != state.checks {
            vpc.nft_load(&checks).await?;
            state.checks = checks;
        }
        // The image's part comes last: a node that has an address can use it.
        let mut awake = Vec::new();
        for step in &steps {
            if let Step::Wire(wire) = step
                && wire.is_first
                && let Some(node) = state.nodes.values().find(|it| it.name() == wire.node)
            {
                node.ip_batch(&image_lines(wire)).await.context("configure eth0 as the image does")?;
                awake.push(wire.far.as_str());
            }
        }
        border::carry(vpc, &awake).await?;
        state.settled = Some(target);
        Ok(())
    }

    /// What has been dropped so far.
    ///
    /// # Errors
    /// nft cannot be asked.
    pub async fn drops(&self) -> Result<Drops> {
        let counters = self.vpc().nft(&["-j", "list", "counters"]).await?;
        let count = |name: &str| {
            let objects = counters["nftables"].as_array().into_iter().flatten();
            objects
                .filter(|it| it["counter"]["name"] == name)
                .find_map(|it| it["counter"]["packets"].as_u64())
                .unwrap_or_default()
        };
        Ok(Drops {
            spoofed: count("spoofed"),
            misdelivered: count("misdelivered"),
            not_public: count("not_public"),
        })
    }
}
