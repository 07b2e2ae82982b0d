//! The wires: nodes, pods, a VPC and an internet made of namespaces.
//!
//! A program calls [`contain`] first, then builds a [`Lab`]:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! lab::world::contain()?;
//! tokio::runtime::Runtime::new()?.block_on(async {
//!     let lab = lab::world::Lab::builder().node("m5.large", "us-west-2a").start().await?;
//!     let node = &lab.nodes()[0];
//!     node.install_plugin(None).await?;
//!     let _ipamd = node.start_ipamd(&lab::world::IpamdOptions::new()).await?;
//!     let pod = node.add_pod("default", "web").await?;
//!     let rules = node.ip(&["-j", "rule"]).await?;
//!     assert!(rules.to_string().contains(&pod.address().to_string()));
//!     lab.shutdown().await
//! })
//! # }
//! ```
//!
//! Everything is built with `ip` and `nft` and looked at with them; none of the shipped crates
//! takes part, so that what they do is seen with other eyes.

mod binaries;
pub mod cni;
mod contain;
mod dump;
mod echo;
mod eraser;
mod fabric;
mod node;
mod place;
mod pod;
mod policy_agent;
mod run;
mod services;
mod sight;
pub mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tokio::task::AbortHandle;

pub use self::binaries::Binaries;
pub use self::contain::contain;
pub use self::echo::Echo;
pub use self::eraser::{Erased, Eraser};
pub use self::fabric::{Drops, Fabric, INTERNET_ECHO, INTERNET_ECHO_V6, NAT_GATEWAY, PREMISES_ECHO};
use self::node::NodePlan;
pub use self::node::{
    CONFLIST, EC2_URL, IMDS_URL, IPAMD_LOG, IPAMD_SOCKET, Ipamd, IpamdOptions, Node, STATE_FILE,
};
pub use self::place::{Place, at};
pub use self::pod::{ECHO_PORT, PluginCall, Pod, PodSpec, Timings};
pub use self::policy_agent::{PolicyAgent, PolicyCall};
pub use self::run::{Ran, TOOL_DEADLINE, finish};
pub use self::services::{KubeProxy, Service};
pub use self::sight::Protocol;
use crate::cloud::{CloudBuilder, CloudHandle, LaunchSpec};

/// Worlds of this process, so that their namespaces do not share names.
static WORLDS: AtomicU32 = AtomicU32::new(0);

/// A whole world. It ends with this value; [`Lab::shutdown`] also waits for its end.
#[derive(Debug)]
pub struct Lab {
    cloud: CloudHandle,
    fabric: Arc<Fabric>,
    follower: AbortHandle,
    _echoes: Vec<Echo>,
    nodes: Vec<Node>,
    /// How further nodes are made.
    image: Image,
}

/// What all nodes of a world have in common.
#[derive(Debug)]
struct Image {
    /// Begins the names of the world's namespaces.
    prefix: String,
    rp_filter: u8,
    binaries: Binaries,
}

/// What a world begins with.
#[derive(Debug)]
pub struct LabBuilder {
    cloud: Option<CloudBuilder>,
    seed: u64,
    nodes: Vec<PlannedNode>,
    rp_filter: u8,
    bin_dir: Option<PathBuf>,
}

#[derive(Debug)]
struct PlannedNode {
    instance_type: String,
    zone: String,
}

impl Lab {
    /// An empty world of two zones, `us-west-2a` and `us-west-2b`, in 10.0.0.0/16.
    pub fn builder() -> LabBuilder {
        LabBuilder { cloud: None, seed: 1, nodes: Vec::new(), rp_filter: 2, bin_dir: None }
    }

    /// EC2: faults, latencies, calls made, and calls from outside of any node.
    pub fn cloud(&self) -> &CloudHandle {
        &self.cloud
    }

    /// The wires: the `vpc`, `internet` and `premises` places, and what was dropped there.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// The nodes in the order of their making, named `node1`, `node2` …
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Errors
    /// There is none; the text names those there are.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|it| it.name() == name).with_context(|| {
            let names: Vec<_> = self.nodes.iter().map(Node::name).collect();
            format!("no node {name:?}: expected one of {}", names.join(", "))
        })
    }

    /// Starts one more instance in a subnet given by its id. A node without daemon is a plain host
    /// of the VPC.
    ///
    /// # Errors
    /// EC2's own, or a tool fails.
    pub async fn add_node(&mut self, instance_type: &str, subnet_id: &str) -> Result<Node> {
        let name = format!("node{}", self.nodes.len() + 1);
        let instance = self
            .cloud
            .launch(LaunchSpec {
                instance_type: instance_type.to_owned(),
                subnet_id: subnet_id.to_owned(),
                tags: [("Name".to_owned(), name.clone())].into(),
                ..LaunchSpec::default()
            })
            .with_context(|| format!("launch {name}"))?;
        let Image { prefix, rp_filter, binaries } = &self.image;
        let plan = NodePlan {
            name,
            prefix: prefix.clone(),
            instance,
            rp_filter: *rp_filter,
            binaries: binaries.clone(),
        };
        let node = Node::boot(plan, self.cloud.clone()).await?;
        self.fabric.add_node(node.instance_id(), node.place().clone()).await?;
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// Waits until the wires are as the cloud says now.
    ///
    /// # Errors
    /// `ip` or `nft` refuse a change.
    pub async fn settled(&self) -> Result<()> {
        self.fabric.settle().await
    }

    /// Ends the world in order and waits for it. Dropping it does the same without waiting.
    ///
    /// # Errors
    /// None at present.
    pub async fn shutdown(self) -> Result<()> {
        self.follower.abort();
        // What the fabric is changing right now is finished before its namespaces go.
        self.fabric.settle().await.ok();
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.follower.abort();
        for place in self.fabric.places() {
            let path = std::path::Path::new("/run/netns").join(place.name());
            contain::unmount(&path);
            let _ = std::fs::remove_file(path);
        }
    }
}

impl LabBuilder {
    /// Adds an instance in the first subnet of `zone`.
    pub fn node(mut self, instance_type: &str, zone: &str) -> LabBuilder {
        self.nodes.push(PlannedNode { instance_type: instance_type.to_owned(), zone: zone.to_owned() });
        self
    }

    /// The seed of ids, addresses and faults.
    pub fn seed(mut self, seed: u64) -> LabBuilder {
        self.seed = seed;
        self
    }

    /// A cloud of one's own making; the seed is its own then.
    pub fn cloud(mut self, cloud: CloudBuilder) -> LabBuilder {
        self.cloud = Some(cloud);
        self
    }

    /// `net.ipv4.conf.default.rp_filter` of the nodes' image: 0, 1 or 2. Amazon Linux has 2.
    pub fn rp_filter(mut self, value: u8) -> LabBuilder {
        self.rp_filter = value;
        self
    }

    /// Where `ipamd` and `aws-cni` are. Else `LAB_BIN_DIR`, else beside the running program.
    pub fn bin_dir(mut self, path: impl Into<PathBuf>) -> LabBuilder {
        self.bin_dir = Some(path.into());
        self
    }

    /// Makes the world.
    ///
    /// # Errors
    /// The process is not contained, a zone or an instance type is unknown, or a tool fails.
    pub async fn start(self) -> Result<Lab> {
        contain::insist_on_containment()?;
        let prefix = format!("l{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        let cloud = CloudHandle::start(self.cloud.unwrap_or_else(|| CloudBuilder::two_zones(self.seed)));
        let fabric = Fabric::start(&prefix, cloud.clone()).await.context("lay the wires")?;
        let follower = tokio::spawn(fabric.clone().follow()).abort_handle();
        let echoes = [
            (fabric.internet(), IpAddr::from(INTERNET_ECHO)),
            (fabric.internet(), INTERNET_ECHO_V6.into()),
            (fabric.premises(), PREMISES_ECHO.into()),
        ];
        let echoes = echoes.map(|(place, address)| Echo::start(place, SocketAddr::new(address, ECHO_PORT)));
        let echoes = echoes.into_iter().collect::<Result<_>>()?;
        let image = Image { prefix, rp_filter: self.rp_filter, binaries: Binaries::new(self.bin_dir) };
        let mut lab = Lab { cloud, fabric, follower, _echoes: echoes, nodes: Vec::new(), image };
        for planned in self.nodes {
            let subnet_id = first_subnet(&lab.cloud, &planned.zone)?;
            lab.add_node(&planned.instance_type, &subnet_id).await?;
        }
        Ok(lab)
    }
}

/// The subnet of `zone` with the lowest range.
fn first_subnet(cloud: &CloudHandle, zone: &str) -> Result<String> {
    let snapshot = cloud.snapshot();
    let in_zone = snapshot.subnets.values().filter(|it| it.zone == zone);
    let first = in_zone.min_by_key(|it| it.cidr).map(|it| it.id.clone());
    first.with_context(|| {
        let zones: std::collections::BTreeSet<_> = snapshot.subnets.values().map(|it| &it.zone).collect();
        format!("no subnet in zone {zone:?}: expected one of {zones:?}")
    })
}
