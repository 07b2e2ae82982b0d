//! GC: release the leases of attachments that the runtime no longer lists.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use datapath::egress;
use datapath::kernel::Netlink;

use crate::error::{CniError, Code};
use crate::log::Journal;
use crate::request::{Request, valid_attachments};

use super::config::{EgressConfig, Ipam};
use super::lease::Owner;
use super::{internal, leases};

/// How long a lease must have been without a route before it counts as left over; a pod that is
/// being wired at this moment gets its route within milliseconds.
const SETTLE: Duration = Duration::from_secs(1);

/// Serves a GC, which prints nothing.
pub(super) fn run(
    request: &Request,
    config: &EgressConfig,
    journal: &mut Journal,
) -> Result<String, CniError> {
    let ipam = match config.leases() {
        Ok(ipam) => ipam,
        Err(error) if config.is_enabled => return Err(CniError::new(Code::INVALID_CONFIG, error)),
        Err(_) => return Ok(String::new()),
    };
    let valid = valid_attachments(&request.config)
        .map_err(|error| CniError::new(Code::INVALID_CONFIG, format!("gc cmd: {error}")))?;
    let is_listed = |owner: &Owner| {
        valid.iter().any(|entry| {
            entry.container_id == owner.container_id
                && (entry.interface == owner.interface || owner.interface.is_empty())
        })
    };
    let look = || {
        let mut leases = leases(request, ipam).all().map_err(internal)?;
        leases.retain(|(_, owner)| !is_listed(owner));
        unused(leases, ipam)
    };
    let (first, _) = look()?;
    if first.is_empty() {
        return Ok(String::new());
    }
    thread::sleep(SETTLE);
    let (unused, in_use) = look()?;
    for (address, _) in in_use {
        // The route goes with the pod's namespace, so the namespace is there.
        journal.warn(format!("{address} is held back: a route on the host still leads to its pod"));
    }
    for lease in unused.into_iter().filter(|lease| first.contains(lease)) {
        let (address, owner) = lease;
        leases(request, ipam).release(&owner).map_err(internal)?;
        journal.fact("collected", format!("{}/{} {address}", owner.container_id, owner.interface));
    }
    Ok(String::new())
}

type Lease = (IpAddr, Owner);

/// Those of `leases` whose addresses no route leads to, and the others.
fn unused(leases: Vec<Lease>, ipam: &Ipam) -> Result<(Vec<Lease>, Vec<Lease>), CniError> {
    let mut host = Netlink::open().map_err(internal)?;
    let in_use = egress::addresses_in_use(&mut host, ipam.range.block()).map_err(internal)?;
    Ok(leases.into_iter().partition(|(address, _)| !in_use.contains(address)))
}
