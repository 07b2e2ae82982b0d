//! The VPC's wires: a link per attached ENI, a router that checks sources and destinations, and
//! the internet behind it. Follows the cloud.

mod plan;
mod wanted;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Mutex;

use self::plan::{Observed, Step, image_lines, plan, vpc_lines};
use self::wanted::{INTERNET_LINK, INTERNET_SIDE, VPC_SIDE, Wanted};
use super::INTERNET_ECHO;
use super::place::Place;
use crate::cloud::CloudHandle;

/// The wires of one world.
#[derive(Debug)]
pub struct Fabric {
    cloud: CloudHandle,
    vpc: Place,
    internet: Place,
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
    /// The last loaded set of public addresses.
    public: String,
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
    /// Makes the `vpc` and `internet` namespaces; their names begin with `prefix`.
    pub(crate) async fn start(prefix: &str, cloud: CloudHandle) -> Result<Arc<Fabric>> {
        let (vpc_name, internet_name) = (format!("{prefix}-vpc"), format!("{prefix}-internet"));
        let vpc = Place::create(&vpc_name, &Path::new("/run/netns").join(&vpc_name), None)?;
        let internet = Place::create(&internet_name, &Path::new("/run/netns").join(&internet_name), None)?;
        for place in [&vpc, &internet] {
            place.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
            place.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
            place.sysctl("ipv4/conf/all/rp_filter", "0")?;
            place.sysctl("ipv4/conf/default/rp_filter", "0")?;
        }
        vpc.sysctl("ipv4/ip_forward", "1")?;
        // Neighbours of the same subnet sit behind the router: it answers ARP for them.
        vpc.sysctl("ipv4/conf/all/proxy_arp", "1")?;
        vpc.ip_batch(&format!(
            "link set lo up\n\
             link add {INTERNET_LINK} type veth peer name vpc netns {internet_name}\n\
             link set {INTERNET_LINK} up\n\
             addr add {VPC_SIDE}/30 dev {INTERNET_LINK}\n"
        ))
        .await?;
        internet
            .ip_batch(&format!(
                "link set lo up\n\
                 link set vpc up\n\
                 addr add {INTERNET_SIDE}/30 dev vpc\n\
                 addr add {INTERNET_ECHO}/32 dev lo\n\
                 route add default via {VPC_SIDE} dev vpc\n"
            ))
            .await?;
        vpc.ip_batch(&format!("route add default via {INTERNET_SIDE} dev {INTERNET_LINK}\n")).await?;
        vpc.nft_load(VPC_FILTER).await?;
        internet.nft_load(INTERNET_FILTER).await?;
        Ok(Arc::new(Fabric { cloud, vpc, internet, state: Mutex::default() }))
    }

    /// Where packets between ENIs are routed.
    pub fn vpc(&self) -> &Place {
        &self.vpc
    }

    /// Where the rest of the world is.
    pub fn internet(&self) -> &Place {
        &self.internet
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

        let (links, routes) =
            tokio::try_join!(self.vpc.ip(&["-j", "link", "show"]), self.vpc.ip(&["-j", "route", "show"]))?;
        let steps = plan(&wanted, &Observed::read(&links, &routes)?);
        self.vpc.ip_batch(&vpc_lines(&steps)).await?;

        for step in &steps {
            if let Step::Wire(wire) = step {
                // At once: the kernel would wait up to 0.8 s, and has no default to set.
                self.vpc.sysctl(&format!("ipv4/neigh/{}/proxy_delay", wire.far), "0")?;
            }
        }

        let checks = wanted.checks();
        if checks != state.checks {
            self.vpc.nft_load(&checks).await?;
            state.checks = checks;
        }
        let public = wanted.public();
        if public != state.public {
            self.internet.nft_load(&public).await?;
            state.public = public;
        }
        // The image's part comes last: a node that has an address can use it.
        for step in &steps {
            if let Step::Wire(wire) = step
                && wire.is_first
                && let Some(node) = state.nodes.values().find(|it| it.name() == wire.node)
            {
                node.ip_batch(&image_lines(wire)).await.context("configure eth0 as the image does")?;
            }
        }
        state.settled = Some(target);
        Ok(())
    }

    /// What has been dropped so far.
    ///
    /// # Errors
    /// nft cannot be asked.
    pub async fn drops(&self) -> Result<Drops> {
        let (vpc, internet) = tokio::try_join!(
            self.vpc.nft(&["-j", "list", "counters"]),
            self.internet.nft(&["-j", "list", "counters"])
        )?;
        let count = |list: &serde_json::Value, name: &str| {
            let objects = list["nftables"].as_array().into_iter().flatten();
            objects
                .filter(|it| it["counter"]["name"] == name)
                .find_map(|it| it["counter"]["packets"].as_u64())
                .unwrap_or_default()
        };
        Ok(Drops {
            spoofed: count(&vpc, "spoofed"),
            misdelivered: count(&vpc, "misdelivered"),
            not_public: count(&internet, "not_public"),
        })
    }
}

/// The source/destination check. The router's own answers (unreachable, too big) leave like
/// anybody's packets, to addresses that the ENI owns.
const VPC_FILTER: &str = r#"
table ip fabric {
  set owned { type ifname . ipv4_addr; flags interval; }
  set unchecked { type ifname; }
  counter spoofed { }
  counter misdelivered { }
  chain from_eni {
    type filter hook prerouting priority raw; policy accept;
    iifname { "internet", "lo" } accept
    iifname . ip saddr @owned accept
    iifname @unchecked accept
    counter name spoofed drop
  }
  chain to_eni {
    type filter hook postrouting priority raw; policy accept;
    oifname { "internet", "lo" } accept
    oifname . ip daddr @owned accept
    oifname @unchecked accept
    counter name misdelivered drop
  }
}
"#;

/// An internet gateway translates only what has a public address; everything else is lost.
const INTERNET_FILTER: &str = r#"
table ip internet {
  set public { type ipv4_addr; }
  counter not_public { }
  chain from_vpc {
    type filter hook prerouting priority raw; policy accept;
    iifname "vpc" ip saddr @public accept
    iifname "vpc" counter name not_public drop
  }
}
"#;
