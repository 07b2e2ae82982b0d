//! What others do to a node's network: a firewall that is reloaded, systemd-networkd that removes
//! what it does not know, a person with `ip`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::task::AbortHandle;

use super::node::Node;

/// What is erased at a stroke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    /// All routing rules but the kernel's own three, of both families, as systemd-networkd removes
    /// foreign ones.
    Rules,
    /// The routes of pods in the main table, and everything in the tables of ENIs.
    Routes,
    /// The tables of ENIs alone.
    EniTables,
    /// The addresses of ENIs that were attached after the node's start.
    EniAddresses,
    /// The whole packet filter, as a reload of the firewall does.
    Filter,
    /// Our tables of the packet filter alone.
    OurFilter,
    /// The MTU of all ENIs becomes 1500.
    Mtu,
    /// The ENIs that were attached after the node's start go down.
    EniLinks,
}

impl Erased {
    /// Everything there is, by the word that a person types for it.
    pub const ALL: [(&str, Erased); 8] = [
        ("rules", Erased::Rules),
        ("routes", Erased::Routes),
        ("eni-tables", Erased::EniTables),
        ("eni-addresses", Erased::EniAddresses),
        ("filter", Erased::Filter),
        ("our-filter", Erased::OurFilter),
        ("mtu", Erased::Mtu),
        ("eni-links", Erased::EniLinks),
    ];
}

/// Erases again and again; ends with this value.
#[derive(Debug)]
pub struct Eraser {
    task: AbortHandle,
    strokes: Arc<AtomicU32>,
}

impl Eraser {
    /// How often it has erased so far.
    pub fn strokes(&self) -> u32 {
        self.strokes.load(Ordering::Relaxed)
    }
}

impl Drop for Eraser {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    /// Erases something once, with `ip` and `nft` on the node.
    ///
    /// # Errors
    /// The tools' complaints.
    pub async fn erase(&self, what: Erased) -> Result<()> {
        match what {
            Erased::Rules => self.erase_rules().await,
            Erased::Routes => self.erase_routes(true).await,
            Erased::EniTables => self.erase_routes(false).await,
            Erased::EniAddresses => {
                self.on_enis(|link| format!("addr flush dev {link} scope global\n"), true).await
            }
            Erased::Mtu => self.on_enis(|link| format!("link set {link} mtu 1500\n"), false).await,
            Erased::EniLinks => self.on_enis(|link| format!("link set {link} down\n"), true).await,
            Erased::Filter => self.place().nft_load("flush ruleset\n").await,
            Erased::OurFilter => {
                let tables = ["ip", "ip6"]
                    .map(|family| format!("add table {family} vpc-cni\ndelete table {family} vpc-cni\n"));
                self.place().nft_load(&tables.concat()).await
            }
        }
    }

    /// Erases something now and after every `pause`. What a tool refuses meanwhile, because it is
    /// gone already, does not end it.
    pub fn erase_repeatedly(&self, what: Erased, pause: Duration) -> Eraser {
        let (node, strokes) = (self.clone(), Arc::new(AtomicU32::new(0)));
        let count = strokes.clone();
        let task = tokio::spawn(async move {
            loop {
                if node.erase(what).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(pause).await;
            }
        });
        Eraser { task: task.abort_handle(), strokes }
    }

    async fn erase_rules(&self) -> Result<()> {
        for family in ["-4", "-6"] {
            let rules = self.ip(&["-j", family, "rule"]).await?;
            let mut lines = String::new();
            for rule in rules.as_array().into_iter().flatten() {
                let priority = rule["priority"].as_u64().context("a rule without priority")?;
                if ![0, 32766, 32767].contains(&priority) {
                    // The first rule of that priority; there are as many lines as rules.
                    lines.push_str(&format!("rule del pref {priority}\n"));
                }
            }
            // What somebody else has removed meanwhile is gone too.
            self.place().exec_with(&["ip", family, "-force", "-batch", "-"], Some(&lines)).await.ok();
        }
        Ok(())
    }

    async fn erase_routes(&self, with_main: bool) -> Result<()> {
        for family in ["-4", "-6"] {
            let routes = self.ip(&["-j", family, "route", "show", "table", "all"]).await?;
            let mut lines = String::new();
            for route in routes.as_array().into_iter().flatten() {
                let table = route["table"].as_str().unwrap_or("main");
                let is_kernels = matches!(route["protocol"].as_str(), Some("kernel" | "dhcp" | "ra"));
                let destination = route["dst"].as_str().unwrap_or_default();
                if table == "local" || is_kernels || (table == "main" && !with_main) {
                    continue;
                }
                let dev = route["dev"].as_str().unwrap_or("lo");
                lines.push_str(&format!("route del {destination} dev {dev} table {table}\n"));
            }
            // What somebody else has removed meanwhile is gone too.
            self.place().exec_with(&["ip", family, "-force", "-batch", "-"], Some(&lines)).await.ok();
        }
        Ok(())
    }

    /// Runs a line of `ip` for each ENI's link, perhaps without the first one's.
    async fn on_enis(&self, line: impl Fn(&str) -> String, is_later_only: bool) -> Result<()> {
        let links = self.ip(&["-j", "link"]).await?;
        let names = links.as_array().into_iter().flatten().filter_map(|it: &Value| it["ifname"].as_str());
        let enis = names.filter(|it| it.starts_with("eth") && !(is_later_only && *it == "eth0"));
        self.place().ip_batch(&enis.map(line).collect::<String>()).await
    }
}
