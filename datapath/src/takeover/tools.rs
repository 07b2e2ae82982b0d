//! The tools of iptables, in its two front ends and for both families.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use super::TABLES;
use super::saved::{self, Table};
use crate::kernel::tool::{self, Ran};

/// How long a tool may take, the wait for others' changes included. A table of ten thousand
/// rules takes about a second.
const DEADLINE: Duration = Duration::from_secs(30);

/// Seconds that a restore tool waits for others' changes.
const WAIT: &str = "--wait=10";

/// One way to the kernel's tables of one family.
#[derive(Debug)]
pub(super) struct FrontEnd {
    pub(super) name: &'static str,
    save: &'static str,
    restore: &'static str,
    backing: Backing,
}

/// Where a front end keeps its tables, and how to see whether it has any.
#[derive(Debug)]
enum Backing {
    /// In the kernel's own form; the file has their names.
    Legacy { names: &'static str },
    /// In nftables, as tables of this family.
    Nft { family: &'static str },
}

/// All that the reference may have used, now or before a change of the node's front end.
pub(super) const FRONT_ENDS: [FrontEnd; 4] = [
    FrontEnd {
        name: "iptables-legacy",
        save: "iptables-legacy-save",
        restore: "iptables-legacy-restore",
        backing: Backing::Legacy { names: "/proc/thread-self/net/ip_tables_names" },
    },
    FrontEnd {
        name: "ip6tables-legacy",
        save: "ip6tables-legacy-save",
        restore: "ip6tables-legacy-restore",
        backing: Backing::Legacy { names: "/proc/thread-self/net/ip6_tables_names" },
    },
    FrontEnd {
        name: "iptables-nft",
        save: "iptables-nft-save",
        restore: "iptables-nft-restore",
        backing: Backing::Nft { family: "ip" },
    },
    FrontEnd {
        name: "ip6tables-nft",
        save: "ip6tables-nft-save",
        restore: "ip6tables-nft-restore",
        backing: Backing::Nft { family: "ip6" },
    },
];

/// Whether a front end has tables in which there could be something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Absent,
    Present,
    /// It has, but its tools are not here; the text tells an operator what that means.
    Unreadable(String),
}

/// Why a front end's tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The names of its tables cannot be read.
    #[error("read {path}: {cause}")]
    Names {
        /// The file with the names.
        path: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The tool cannot be started.
    #[error("run {tool}: {cause}")]
    Start {
        /// Which tool.
        tool: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The tool did not end in time and was killed.
    #[error("{tool} did not end within {} s", DEADLINE.as_secs())]
    Deadline {
        /// Which tool.
        tool: &'static str,
    },
    /// The tool, or the kernel, refused.
    #[error("{tool}: {message}")]
    Refused {
        /// Which tool.
        tool: &'static str,
        /// What it said.
        message: String,
    },
    /// The tool printed what is no listing.
    #[error("read what {tool} printed: {problem}")]
    Output {
        /// Which tool.
        tool: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl FrontEnd {
    /// Looks without running a tool of iptables: the legacy ones load modules of the kernel and
    /// make tables that were not there. `nft_tables` are the family and name of each table.
    pub(super) fn presence(&self, nft_tables: &BTreeSet<(String, String)>) -> Result<Presence, ToolError> {
        let names: Vec<&str> = match self.backing {
            Backing::Legacy { names: path } => match std::fs::read_to_string(path) {
                Ok(names) => {
                    TABLES.into_iter().filter(|table| names.lines().any(|name| name == *table)).collect()
                }
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(cause) => return Err(ToolError::Names { path, cause }),
            },
            Backing::Nft { family } => {
                let is_there = |table: &&str| nft_tables.contains(&(family.to_owned(), (*table).to_owned()));
                TABLES.into_iter().filter(is_there).collect()
            }
        };
        Ok(match self.missing_tool() {
            _ if names.is_empty() => Presence::Absent,
            None => Presence::Present,
            Some(tool) => Presence::Unreadable(format!(
                "{} has the tables {}, and {tool} is not here to look into them: rules of amazon-vpc-cni-k8s \
                 may be there and act beside ours",
                self.name,
                names.join(", ")
            )),
        })
    }

    fn missing_tool(&self) -> Option<&'static str> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there =
            |tool: &str| std::env::split_paths(&path).any(|directory| directory.join(tool).is_file());
        [self.save, self.restore].into_iter().find(|tool| !is_there(tool))
    }

    /// All its tables.
    pub(super) fn save(&self) -> Result<Vec<Table>, ToolError> {
        let printed = run(self.save, &[], None)?;
        saved::tables(&String::from_utf8_lossy(&printed))
            .map_err(|problem| ToolError::Output { tool: self.save, problem })
    }

    /// Carries out one transaction; [`ToolError::Refused`] means that nothing was changed.
    pub(super) fn restore(&self, transaction: &str) -> Result<(), ToolError> {
        run(self.restore, &["--noflush", WAIT], Some(transaction.as_bytes())).map(drop)
    }
}

fn run(tool: &'static str, arguments: &[&str], input: Option<&[u8]>) -> Result<Vec<u8>, ToolError> {
    let ran = tool::run(tool, arguments, input, DEADLINE);
    let ran = ran.map_err(|cause| ToolError::Start { tool, cause })?;
    match ran.ok_or(ToolError::Deadline { tool })? {
        Ran { succeeded: true, printed, .. } => Ok(printed),
        Ran { complaint: message, .. } => Err(ToolError::Refused { tool, message }),
    }
}

#[cfg(test)]
impl FrontEnd {
    /// A legacy front end whose tools and names of tables are these files.
    pub(super) fn of_files(save: &str, restore: &str, names: &str) -> Self {
        let lasting = |text: &str| &*text.to_owned().leak();
        let backing = Backing::Legacy { names: lasting(names) };
        Self { name: "iptables-legacy", save: lasting(save), restore: lasting(restore), backing }
    }
}
