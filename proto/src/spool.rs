//! DELs that the plugin could not tell the daemon, left for it in [`crate::DEL_SPOOL`].
//!
//! Each is one file, written beside and renamed, whose name begins with the time in
//! nanoseconds and ends with [`EXTENSION`], so that sorted names are in the order of the DELs.
//! What the daemon has taken in, or cannot read, it removes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What the names of finished entries end with; other files are being written, or were left.
pub const EXTENSION: &str = ".json";

/// How many entries are kept at most. A node has a few hundred pods, so more than this means
/// that no daemon has run for long, and restoring from the state file will find them anyway.
pub const MAX_ENTRIES: usize = 4096;

/// A DEL that the daemon has not heard of.
///
/// It may be old: the daemon drops it if its key was assigned again after `unix_time_ns`, or
/// holds none of `addresses`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledDel {
    /// The network's name; the first part of the key.
    pub network: String,
    /// The sandbox's id; the second part of the key.
    pub container_id: String,
    /// The interface's name in the pod; the third part of the key.
    pub interface: String,
    /// The pod's name, empty if nobody named it.
    #[serde(default)]
    pub pod_name: String,
    /// The pod's namespace, empty if nobody named it.
    #[serde(default)]
    pub pod_namespace: String,
    /// The addresses by the result that the runtime kept; empty if it kept none.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// When the DEL came, in nanoseconds since 1970.
    pub unix_time_ns: u64,
}

impl SpooledDel {
    /// The name of the entry's file. Two of one moment differ by the process that wrote them.
    #[must_use]
    pub fn file_name(&self, process: u32) -> String {
        format!("{:020}-{process}{EXTENSION}", self.unix_time_ns)
    }
}
