//! What the kernel holds of the node's own network.

use vpc::Family;

use crate::kernel::{Address, KernelError, Link, Links, Netlink, Route, Rule, sysctl};

/// `rp_filter` that drops packets whose answers would leave by another link.
const STRICT: i32 = 1;

/// Links, addresses, routes and rules of a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    pub(super) links: Links,
    /// Of the family of pods.
    pub(super) addresses: Vec<Address>,
    /// Of the family of pods.
    pub(super) routes: Vec<Route>,
    /// Of both families, in the kernel's order.
    pub(super) rules: Vec<Rule>,
    /// `rp_filter` of `all`; the kernel uses the larger of it and the link's own.
    pub(super) rp_filter_of_all: i32,
}

impl Observed {
    pub(super) fn read(netlink: &mut Netlink, family: Family) -> Result<Self, KernelError> {
        let links = netlink.links()?;
        let mut rules = Vec::new();
        for family in Family::BOTH {
            rules.append(&mut netlink.rules(family)?);
        }
        Ok(Self {
            addresses: netlink.addresses(family, &links)?,
            routes: netlink.routes(family, None, &links)?,
            rules,
            links,
            rp_filter_of_all: sysctl::read("net/ipv4/conf/all/rp_filter")
                .ok()
                .and_then(|value| value.parse().ok())
                .unwrap_or(0),
        })
    }

    pub(super) fn is_strict(&self, link: &Link) -> bool {
        link.rp_filter.is_some_and(|own| own.max(self.rp_filter_of_all) == STRICT)
    }
}
