//! What was changed, for logs and counts.

use std::fmt;

use crate::kernel::Step;

/// One change made to the kernel: action and object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    kind: ChangeKind,
    text: String,
}

/// What sort of object a change was made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// A link was set up or removed.
    Link,
    /// A link's MTU.
    Mtu,
    /// A link's `rp_filter`.
    ReversePath,
    /// An address of an ENI.
    Address,
    /// A route.
    Route,
    /// A routing rule.
    Rule,
    /// A table of the packet filter.
    Filter,
}

impl ChangeKind {
    /// Every kind there is.
    pub const ALL: [Self; 7] =
        [Self::Link, Self::Mtu, Self::ReversePath, Self::Address, Self::Route, Self::Rule, Self::Filter];

    /// The word for it in logs, status and counters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Mtu => "mtu",
            Self::ReversePath => "rp_filter",
            Self::Address => "address",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Filter => "nftables",
        }
    }
}

impl Change {
    pub(super) fn of(step: &Step) -> Self {
        let kind = match step {
            Step::SetMtu { .. } => ChangeKind::Mtu,
            Step::SetUp(_) | Step::DeleteLink(_) | Step::DeleteLinkByIndex(_) => ChangeKind::Link,
            Step::LoosenReversePath(_) => ChangeKind::ReversePath,
            Step::AddAddress(_) | Step::AddLinkAddress(_) | Step::DeleteAddress(_) => ChangeKind::Address,
            // The host has no neighbours of ours; in a pod they go with its routes.
            Step::AddRoute(_) | Step::ReplaceRoute(_) | Step::DeleteRoute(_) | Step::AddNeighbour(_) => {
                ChangeKind::Route
            }
            Step::AddRule(_) | Step::DeleteRule(_) => ChangeKind::Rule,
        };
        Self { kind, text: step.to_string() }
    }

    /// A table that was put in place whole, or removed.
    pub(super) fn of_filter(table: &str) -> Self {
        Self { kind: ChangeKind::Filter, text: format!("replace nft table {table}") }
    }

    /// What sort of object was changed.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        self.kind
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
