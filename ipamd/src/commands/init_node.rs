//! `ipamd init-node`: what a node needs before the daemon starts, done by the privileged init
//! container.
//!
//! It installs the plugin and the upstream ones of its chain on the host, and sets the sysctls
//! that the daemon cannot set, each only where it differs. Every line on stdout is something
//! that was changed or is worth knowing.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vpc::Mac;

mod link;
mod plugins;
mod sysctl;

/// What to set up; the environment's names are those of the manifest.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct InitNodeArgs {
    /// The host's directory of CNI plugins
    #[arg(long, env = "HOST_CNI_BIN_PATH", default_value = "/host/opt/cni/bin", value_name = "DIRECTORY")]
    cni_bin_dir: PathBuf,
    /// Where the image keeps the plugins; by default /init, else beside this program
    #[arg(long, value_name = "DIRECTORY")]
    plugins_dir: Option<PathBuf>,
    /// true switches TCP early demux off, false switches it on, unset leaves it alone
    #[arg(long, env = "DISABLE_TCP_EARLY_DEMUX", value_parser = switch, value_name = "BOOL")]
    disable_tcp_early_demux: Option<Switch>,
    /// The cluster's pods have IPv6 addresses
    #[arg(long, env = "ENABLE_IPv6", value_parser = switch, value_name = "BOOL")]
    ipv6: Option<Switch>,
    /// IPv4 pods reach IPv6 through the node
    #[arg(long, env = "ENABLE_V6_EGRESS", value_parser = switch, value_name = "BOOL")]
    v6_egress: Option<Switch>,
}

/// Where the node's files are, so that a test can have its own.
#[derive(Debug, Clone)]
pub(crate) struct NodeRoots {
    /// /proc/sys
    pub(crate) sysctl: PathBuf,
    /// /sys/class/net
    pub(crate) links: PathBuf,
    /// Where to look for the image's plugins, first match first.
    pub(crate) plugins: Vec<PathBuf>,
}

impl NodeRoots {
    /// The places of the node that this process runs on.
    pub(crate) fn of_this_node() -> Self {
        let mut plugins = vec![PathBuf::from("/init")];
        if let Some(beside) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
            plugins.push(beside.to_owned());
        }
        Self { sysctl: PathBuf::from("/proc/sys"), links: PathBuf::from("/sys/class/net"), plugins }
    }
}

/// Sets the node up. `primary_mac` asks instance metadata for `mac`.
///
/// Everything is attempted before the first failure is reported, so that one fault does not hide
/// another.
///
/// # Errors
/// All that failed; kubelet then runs the init container again, which is harmless.
pub(crate) async fn run(
    args: &InitNodeArgs,
    roots: &NodeRoots,
    primary_mac: impl AsyncFnOnce() -> Result<Mac>,
    out: &mut impl Write,
) -> Result<()> {
    let mut faults = Vec::new();
    let directories = args.plugins_dir.as_ref().map_or(roots.plugins.as_slice(), std::slice::from_ref);
    match plugins::install(directories, &args.cni_bin_dir) {
        Ok(report) => report.print(&args.cni_bin_dir, out)?,
        Err(error) => faults.push(error),
    }
    let primary = match primary_mac().await.context("find out the primary ENI's MAC") {
        Ok(mac) => link::with_mac(&roots.links, mac).map(Some),
        Err(error) => Err(error),
    };
    let primary = primary.unwrap_or_else(|error| {
        faults.push(error);
        None
    });
    for knob in args.knobs(primary.as_deref()) {
        match knob.set(&roots.sysctl) {
            Ok(Some(change)) => writeln!(out, "{change}")?,
            Ok(None) => {}
            Err(error) => faults.push(error),
        }
    }
    report_forwarding(&roots.sysctl, out)?;
    if faults.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = faults.iter().map(|fault| format!("{fault:#}")).collect();
    bail!("the node is not set up: {}", list.join("; "))
}

impl InitNodeArgs {
    /// The settings that these arguments ask for, in the order in which to make them.
    fn knobs(&self, primary: Option<&str>) -> Vec<sysctl::Knob> {
        use sysctl::Knob;
        let is_on = |switch: Option<Switch>| switch == Some(Switch::On);
        let mut knobs = Vec::new();
        if let Some(link) = primary {
            // Replies to pods on other ENIs may leave through another link than they came by.
            knobs.push(Knob::new(format!("net/ipv4/conf/{link}/rp_filter"), "2"));
        }
        match self.disable_tcp_early_demux {
            Some(Switch::On) => knobs.push(Knob::new("net/ipv4/tcp_early_demux", "0").if_present()),
            Some(Switch::Off) => knobs.push(Knob::new("net/ipv4/tcp_early_demux", "1").if_present()),
            Some(Switch::Unset) | None => {}
        }
        if is_on(self.ipv6) {
            knobs.push(Knob::new("net/ipv6/conf/all/disable_ipv6", "0"));
        }
        if is_on(self.ipv6) || is_on(self.v6_egress) {
            // First, because a forwarding node with less than 2 forgets its default route.
            if let Some(link) = primary {
                knobs.push(Knob::new(format!("net/ipv6/conf/{link}/accept_ra"), "2"));
            }
            // Writing it sets it on every link, pods' ones included, even where it is 1 already.
            knobs.push(Knob::new("net/ipv6/conf/all/forwarding", "1"));
        }
        knobs
    }
}

/// The image decides whether the node forwards; without it pods reach nothing beyond the node.
fn report_forwarding(sysctl: &Path, out: &mut impl Write) -> io::Result<()> {
    let is_off =
        fs::read_to_string(sysctl.join("net/ipv4/ip_forward")).is_ok_and(|value| value.trim() == "0");
    if is_off {
        writeln!(
            out,
            "warning: net.ipv4.ip_forward is 0, so pods reach nothing beyond the node; set it to 1"
        )?;
    }
    Ok(())
}

/// A boolean variable of the manifest, which may also be present and empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    On,
    Off,
    Unset,
}

fn switch(value: &str) -> Result<Switch, String> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Switch::On),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Switch::Off),
        "" => Ok(Switch::Unset),
        _ => Err("expected true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests;
