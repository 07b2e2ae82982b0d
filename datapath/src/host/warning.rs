//! What is wrong on a node that we do not change.

use std::fmt;

use super::plan::Observed;
use crate::kernel::{Netlink, nft, sysctl};
use crate::wanted::HostNetwork;

/// What an operator should know about a node; nothing here is changed by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostWarning {
    /// The node forwards no packets: pods reach nothing.
    ForwardingOff,
    /// A packet filter drops what the node would forward.
    ForwardDropped {
        /// Family and name of the table whose chain does.
        table: String,
    },
    /// A link drops packets that arrive by another way than answers would leave.
    StrictReversePath {
        /// Which link.
        link: String,
    },
}

impl fmt::Display for HostWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForwardingOff => {
                f.write_str("net.ipv4.ip_forward is 0: pods reach nothing beyond the node; set it to 1")
            }
            Self::ForwardDropped { table } => write!(
                f,
                "nft table {table} drops forwarded packets by policy: \
                 pods reach nothing beyond the node unless a rule accepts them"
            ),
            Self::StrictReversePath { link } => {
                write!(f, "rp_filter of {link} is strict (1): packets of pods are dropped; expected 0 or 2")
            }
        }
    }
}

/// What is wrong on the node of the calling thread's namespace. What cannot be read is not
/// reported: legacy iptables, for one, which `nft` does not see.
#[must_use]
pub fn warnings(netlink: &mut Netlink, wanted: &HostNetwork) -> Vec<HostWarning> {
    let mut warnings = Vec::new();
    if sysctl::read("net/ipv4/ip_forward").is_ok_and(|value| value == "0") {
        warnings.push(HostWarning::ForwardingOff);
    }
    let dropping = nft::tables_that_drop_forwarded().unwrap_or_default();
    warnings.extend(dropping.into_iter().map(|table| HostWarning::ForwardDropped { table }));
    if let Ok(observed) = Observed::read(netlink) {
        let ours = wanted.enis.iter().map(|eni| eni.mac).chain([wanted.primary.mac]);
        let strict = ours
            .filter_map(|mac| observed.links.by_mac(mac))
            .filter(|link| observed.is_strict(link))
            .map(|link| HostWarning::StrictReversePath { link: link.name.clone() });
        warnings.extend(strict);
    }
    warnings
}
