//! The state file: which pod has which address, in the format that other daemons share.
//!
//! One JSON object on one line. Keys, their order and the version are a contract with
//! amazon-vpc-cni-k8s, which must be able to take the node over with this file, and we with its.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use vpc::{Family, PodKey, PodName};

use crate::chain::chain;
use crate::durable::{self, Disk, WriteError};
use crate::pool::Allocation;

/// The only version there is.
const VERSION: &str = "vpc-cni-ipam/1";

/// What holds allocations across a restart.
pub(crate) trait StateFile: Send + 'static {
    /// Makes `allocations` what a restart will find, durably.
    ///
    /// # Errors
    /// [`WriteError`] if that is not certain.
    fn write(&mut self, allocations: &[Allocation]) -> Result<(), WriteError>;
}

/// The state file at its path.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// The family of pods' addresses, where an entry has one of each.
    family: Family,
}

/// What the state file held.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) allocations: Vec<Allocation>,
    /// What was wrong with it; empty for a good file and for none.
    pub(crate) problems: Vec<Problem>,
    /// Where a file with problems was kept for people to look at.
    pub(crate) kept_as: Option<PathBuf>,
}

/// Something in the state file that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The file exists but cannot be read.
    Unreadable(String),
    /// It is not the JSON that it should be; entries before the fault were used.
    Malformed(String),
    /// Another version wrote it; entries of our form were used.
    ForeignVersion(String),
    /// One entry is not usable; the others were used.
    Entry { number: usize, fault: String },
    /// Two entries name the same pod or the same address; who reads them decides between them.
    Contradiction { number: usize, earlier: usize },
    /// The faulty file could not be kept aside; the next write replaces it.
    NotKept(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(cause) => write!(f, "it cannot be read: {cause}"),
            Self::Malformed(cause) => write!(f, "it is not well formed: {cause}"),
            Self::ForeignVersion(version) => write!(f, "its version is {version:?}: expected {VERSION:?}"),
            Self::Entry { number, fault } => write!(f, "allocation {number} is not usable: {fault}"),
            Self::Contradiction { number, earlier } => {
                write!(f, "allocations {earlier} and {number} have the same pod or the same address")
            }
            Self::NotKept(cause) => write!(f, "no copy of it is kept: {cause}"),
        }
    }
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: &'a str,
    allocations: Vec<EntryOut<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryOut<'a> {
    network_name: &'a str,
    #[serde(rename = "containerID")]
    container_id: &'a str,
    if_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<Ipv6Addr>,
    allocation_timestamp: i64,
    metadata: MetadataOut<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MetadataOut<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    k8s_pod_namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    k8s_pod_name: &'a str,
    interfaces_count: u32,
}

#[derive(Deserialize)]
struct FileIn {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    allocations: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryIn {
    network_name: String,
    #[serde(rename = "containerID")]
    container_id: String,
    if_name: String,
    #[serde(default)]
    ipv4: Option<String>,
    #[serde(default)]
    ipv6: Option<String>,
    #[serde(default)]
    allocation_timestamp: i64,
    #[serde(default)]
    metadata: MetadataIn,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct MetadataIn {
    k8s_pod_namespace: String,
    k8s_pod_name: String,
}

impl Checkpoint {
    /// The state file at `path`; nothing is read or written yet.
    pub(crate) fn at(disk: Arc<dyn Disk>, path: PathBuf, family: Family) -> Self {
        Self { disk, path, family }
    }

    /// Removes what a crash in the middle of a write left beside the file.
    ///
    /// # Errors
    /// [`WriteError`] if a leftover stays.
    pub(crate) fn remove_leftovers(&self) -> Result<(), WriteError> {
        durable::remove_leftovers(&*self.disk, &self.path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything that can be read from the file; a missing one holds nothing.
    ///
    /// A file with any fault is kept under another name first, since the next write replaces it. If
    /// that fails it is one problem more: pods need a daemon, and people can do without a copy.
    pub(crate) fn load(&self) -> Loaded {
        let mut loaded = match self.disk.read(&self.path) {
            Ok(bytes) => parse(&bytes, self.family),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::default(),
            Err(error) => {
                Loaded { problems: vec![Problem::Unreadable(error.to_string())], ..Loaded::default() }
            }
        };
        if !loaded.problems.is_empty() {
            match durable::keep_aside(&*self.disk, &self.path) {
                Ok(aside) => loaded.kept_as = Some(aside),
                Err(error) => loaded.problems.push(Problem::NotKept(chain(&error))),
            }
        }
        loaded
    }
}

impl StateFile for Checkpoint {
    fn write(&mut self, allocations: &[Allocation]) -> Result<(), WriteError> {
        durable::replace(&*self.disk, &self.path, render(allocations).as_bytes())
    }
}

/// The file's content for these allocations.
fn render(allocations: &[Allocation]) -> String {
    let file = FileOut { version: VERSION, allocations: allocations.iter().map(entry).collect() };
    #[expect(clippy::expect_used, reason = "strings and numbers always have a JSON form")]
    let mut text = serde_json::to_string(&file).expect("render the state file");
    text.push('\n');
    text
}

fn entry(allocation: &Allocation) -> EntryOut<'_> {
    let (ipv4, ipv6) = match allocation.address {
        IpAddr::V4(address) => (Some(address), None),
        IpAddr::V6(address) => (None, Some(address)),
    };
    EntryOut {
        network_name: allocation.key.network(),
        container_id: allocation.key.container_id(),
        if_name: allocation.key.interface(),
        ipv4,
        ipv6,
        allocation_timestamp: allocation.assigned_unix_ns,
        metadata: MetadataOut {
            k8s_pod_namespace: &allocation.pod.namespace,
            k8s_pod_name: &allocation.pod.name,
            interfaces_count: 1,
        },
    }
}

fn parse(bytes: &[u8], family: Family) -> Loaded {
    let mut problems = Vec::new();
    // What follows the first value is ignored, as the format's other reader does.
    let first = serde_json::Deserializer::from_slice(bytes).into_iter::<FileIn>().next();
    let (version, entries) = match first {
        Some(Ok(file)) => (file.version.unwrap_or_default(), file.allocations.unwrap_or_default()),
        Some(Err(error)) => {
            problems.push(Problem::Malformed(error.to_string()));
            (VERSION.to_owned(), salvage(bytes))
        }
        None => {
            problems.push(Problem::Malformed("it is empty".to_owned()));
            (VERSION.to_owned(), Vec::new())
        }
    };
    if version != VERSION {
        problems.push(Problem::ForeignVersion(version));
    }
    let mut allocations = Vec::new();
    let (mut pods, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for (number, value) in (1..).zip(entries) {
        match allocation(value, family) {
            Ok(allocation) => {
                let same_pod = pods.insert(allocation.key.clone(), number);
                let same_address = addresses.insert(allocation.address, number);
                if let Some(earlier) = same_pod.or(same_address) {
                    problems.push(Problem::Contradiction { number, earlier });
                }
                allocations.push(allocation);
            }
            Err(fault) => problems.push(Problem::Entry { number, fault }),
        }
    }
    Loaded { allocations, problems, kept_as: None }
}

fn allocation(value: serde_json::Value, family: Family) -> Result<Allocation, String> {
    let entry: EntryIn = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let key = PodKey::new(&entry.network_name, &entry.container_id, &entry.if_name)
        .map_err(|error| error.to_string())?;
    let address = match family {
        Family::V4 => parsed::<Ipv4Addr>("ipv4", entry.ipv4, "10.0.1.7")?.into(),
        Family::V6 => parsed::<Ipv6Addr>("ipv6", entry.ipv6, "2001:db8::7")?.into(),
    };
    Ok(Allocation {
        key,
        pod: PodName::new(&entry.metadata.k8s_pod_namespace, &entry.metadata.k8s_pod_name),
        address,
        assigned_unix_ns: entry.allocation_timestamp,
    })
}

fn parsed<T: FromStr>(key: &str, text: Option<String>, example: &str) -> Result<T, String> {
    let text = text.unwrap_or_default();
    text.parse().map_err(|_| format!("{key} is {text:?}: expected an address like {example}"))
}

/// The entries of a damaged file that precede the damage.
fn salvage(bytes: &[u8]) -> Vec<serde_json::Value> {
    const KEY: &[u8] = b"\"allocations\"";
    let mut entries = Vec::new();
    let Some(start) = bytes.windows(KEY.len()).position(|window| window == KEY) else {
        return entries;
    };
    let mut rest = skip(&bytes[start + KEY.len()..], b":[");
    while let Some(Ok(value)) = {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<serde_json::Value>();
        let next = values.next();
        rest = &rest[values.byte_offset().min(rest.len())..];
        next
    } {
        entries.push(value);
        rest = skip(rest, b",");
    }
    entries
}

/// `bytes` without white space and the given separators in front.
fn skip<'a>(bytes: &'a [u8], separators: &[u8]) -> &'a [u8] {
    let is_skipped = |byte: &u8| byte.is_ascii_whitespace() || separators.contains(byte);
    let start = bytes.iter().position(|byte| !is_skipped(byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

#[cfg(test)]
mod tests;
