//! Brings the plugin and the upstream ones of its chain to the host.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::host_file::{self, Outcome};

const MODE: u32 = 0o755;

/// Our plugin, and the name under which the same binary is the egress plugin.
const OURS: &str = "aws-cni";
const EGRESS: &str = "egress-cni";

/// The plugins of containernetworking that the image may bring, and the support script.
const UPSTREAM: [&str; 20] = [
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
    "aws-cni-support.sh",
    "LICENSE",
];

/// Those that a node's plugin list can name, or the runtime itself calls.
const CHAIN: [&str; 6] = [OURS, EGRESS, "loopback", "portmap", "bandwidth", "tuning"];

/// What became of the plugins.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    installed: Vec<&'static str>,
    unchanged: usize,
    /// Plugins of the chain that neither the image nor the host has.
    missing: Vec<&'static str>,
}

/// Installs what the first of `sources` that has it brings into `target`.
///
/// # Errors
/// Names the file, or the directories searched if our own plugin is in none of them.
pub(super) fn install(sources: &[PathBuf], target: &Path) -> Result<Report> {
    let find = |name: &str| sources.iter().map(|source| source.join(name)).find(|path| path.is_file());
    let Some(ours) = find(OURS) else {
        let searched: Vec<String> = sources.iter().map(|path| path.display().to_string()).collect();
        bail!("{OURS} is not in {}; is this the right image?", searched.join(" or in "));
    };
    let mut report = Report::default();
    for name in UPSTREAM {
        if let Some(path) = find(name) {
            report.copy(&path, target, name)?;
        }
    }
    // Last, so that whoever finds them finds the rest of the chain too.
    report.copy(&ours, target, EGRESS)?;
    report.copy(&ours, target, OURS)?;
    report.missing = CHAIN.into_iter().filter(|name| !target.join(name).is_file()).collect();
    Ok(report)
}

impl Report {
    fn copy(&mut self, from: &Path, target: &Path, name: &'static str) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        match host_file::install(target, name, &contents, MODE)
            .context("install a plugin (HOST_CNI_BIN_PATH names the directory)")?
        {
            Outcome::Written => self.installed.push(name),
            Outcome::Unchanged => self.unchanged += 1,
        }
        Ok(())
    }

    /// Says it to a person.
    pub(super) fn print(&self, target: &Path, out: &mut impl Write) -> io::Result<()> {
        let target = target.display();
        if !self.installed.is_empty() {
            writeln!(out, "installed in {target}: {}", self.installed.join(" "))?;
        }
        if self.unchanged > 0 {
            writeln!(out, "already in {target}: {} plugins", self.unchanged)?;
        }
        if !self.missing.is_empty() {
            let missing = self.missing.join(" ");
            writeln!(
                out,
                "warning: missing in {target} and in the image: {missing}; lists that name them fail"
            )?;
        }
        Ok(())
    }
}
