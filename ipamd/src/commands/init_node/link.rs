//! Finds the link of an ENI by its hardware address.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use vpc::Mac;

/// The name of the link that has `mac`, under `links` (/sys/class/net).
///
/// Bridges, VLANs and bonds borrow addresses; a link with a device behind it comes before any
/// other, a plain virtual one before a borrower, and then the oldest.
pub(super) fn with_mac(links: &Path, mac: Mac) -> Result<String> {
    let entries = fs::read_dir(links).with_context(|| format!("list {}", links.display()))?;
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link may go away while the directory is read.
        let Some(address) = attribute(&path, "address") else { continue };
        if address.parse::<Mac>().is_ok_and(|address| address == mac) {
            let index: u32 =
                attribute(&path, "ifindex").and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
            found.push((rank(&path), index, name));
        } else {
            seen.push(format!("{name} {address}"));
        }
    }
    found.sort();
    seen.sort();
    match found.into_iter().next() {
        Some((_, _, name)) => Ok(name),
        None => bail!("no link has the primary ENI's MAC {mac}; there are {}", seen.join(", ")),
    }
}

fn rank(link: &Path) -> u8 {
    if link.join("device").exists() {
        return 0;
    }
    let is_typed = attribute(link, "uevent").is_some_and(|text| text.contains("DEVTYPE="));
    if is_typed || link.join("bridge").exists() || link.join("bonding").exists() { 2 } else { 1 }
}

fn attribute(link: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(link.join(name)).ok()?.trim().to_owned())
}
