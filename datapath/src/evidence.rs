//! What the kernel says about addresses: which are in use, whoever remembers them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vpc::{Family, Mac, RouteTable};

use crate::kernel::{KernelError, Netlink, single};
use crate::wanted::priority;

/// What the kernel holds that names a single address, or a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Single addresses with a route in the main table, and the link it leads to.
    pub routes: BTreeMap<IpAddr, String>,
    /// Addresses that rules of pods' priorities name.
    pub rules: BTreeMap<IpAddr, Vec<RuleSeen>>,
    /// The names of all links.
    pub links: BTreeSet<String>,
    /// Links by their link-layer address.
    pub macs: BTreeMap<Mac, String>,
}

/// A pod's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSeen {
    /// 512 for a rule to the address, 1536 for one from it.
    pub priority: u32,
    /// The table it leads to.
    pub table: RouteTable,
}

/// Reads links, routes and rules, one dump each and family.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked; then nothing may be presumed unused.
pub fn read(netlink: &mut Netlink) -> Result<Evidence, KernelError> {
    let links = netlink.links()?;
    let mut evidence = Evidence::default();
    for link in links.iter() {
        evidence.links.insert(link.name.clone());
        evidence.macs.extend(link.mac.map(|mac| (mac, link.name.clone())));
    }
    for family in [Family::V4, Family::V6] {
        let routes = netlink.routes(family, Some(RouteTable::MAIN), &links)?;
        evidence.routes.extend(routes.into_iter().filter_map(|route| {
            Some((single(route.destination).filter(|_| route.gateway.is_none())?, route.link?.name))
        }));
        for rule in netlink.rules(family)? {
            let block = match rule.priority {
                priority::TO_POD => rule.to,
                priority::FROM_POD => rule.from,
                _ => None,
            };
            if let (Some(address), Some(table)) = (block.and_then(single), rule.table) {
                let seen = RuleSeen { priority: rule.priority, table };
                evidence.rules.entry(address).or_default().push(seen);
            }
        }
    }
    Ok(evidence)
}
