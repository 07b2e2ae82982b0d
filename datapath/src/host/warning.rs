//! What is wrong on a node that we do not change.

use std::fmt;

use vpc::Family;

use super::observed::Observed;
use crate::kernel::{Netlink, nft, sysctl};
use crate::wanted::HostNetwork;

/// What an operator should know about a node; nothing here is changed by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostWarning {
    /// The node forwards no packets: pods reach nothing.
    ForwardingOff,
    /// The node forwards no IPv6 packets, though pods have IPv6 addresses.
    Ipv6ForwardingOff,
    /// The primary ENI does not listen to its router, since the node forwards: its IPv6 default
    /// route ends when it expires.
    RouterIgnored {
        /// The primary ENI's link.
        link: String,
        /// Its `accept_ra`.
        accept_ra: String,
    },
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
            Self::Ipv6ForwardingOff => f.write_str(
                "net.ipv6.conf.all.forwarding is 0: pods reach nothing over IPv6 beyond the node; set it to 1",
            ),
            Self::RouterIgnored { link, accept_ra } => write!(
                f,
                "net.ipv6.conf.{link}.accept_ra is {accept_ra}: the node forwards, so it will lose its IPv6 \
                 default route; set it to 2"
            ),
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
    let primary =
        |observed: &Observed| observed.links.by_mac(wanted.primary.mac).map(|link| link.name.clone());
    let observed = Observed::read(netlink, wanted.family).ok();
    let forwards_v6 =
        wanted.family == Family::V6 || wanted.options.egress && wanted.primary.address_v6.is_some();
    if forwards_v6 {
        warnings.extend(ipv6_warnings(observed.as_ref().and_then(primary)));
    }
    let families = if forwards_v6 { &Family::BOTH[..] } else { &[Family::V4] };
    let dropping = nft::tables_that_drop_forwarded(families).unwrap_or_default();
    warnings.extend(dropping.into_iter().map(|table| HostWarning::ForwardDropped { table }));
    if let Some(observed) = observed {
        let ours = wanted.enis.iter().map(|eni| eni.mac).chain([wanted.primary.mac]);
        let strict = ours
            .filter_map(|mac| observed.links.by_mac(mac))
            .filter(|link| observed.is_strict(link))
            .map(|link| HostWarning::StrictReversePath { link: link.name.clone() });
        warnings.extend(strict);
    }
    warnings
}

/// What keeps a node from forwarding IPv6. `init-node` sets both; others may have set them since.
fn ipv6_warnings(primary: Option<String>) -> Vec<HostWarning> {
    let mut warnings = Vec::new();
    if sysctl::read("net/ipv6/conf/all/forwarding").is_ok_and(|value| value == "0") {
        warnings.push(HostWarning::Ipv6ForwardingOff);
    }
    if let Some(link) = primary
        && let Ok(accept_ra) = sysctl::read(&format!("net/ipv6/conf/{link}/accept_ra"))
        && accept_ra != "2"
    {
        warnings.push(HostWarning::RouterIgnored { link, accept_ra });
    }
    warnings
}
