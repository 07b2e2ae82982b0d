//! DEL: release the lease and remove what leads to the pod. The links end with its namespace.

use std::path::Path;

use datapath::egress;
use datapath::kernel::{Netlink, Netns};

use crate::del::in_own_netns;
use crate::error::CniError;
use crate::log::Journal;
use crate::request::Request;

use super::config::{EgressConfig, Ipam};
use super::{host_end, internal, leases, owner};

/// Serves a DEL, which prints nothing.
pub(super) fn run(
    request: &Request,
    config: &EgressConfig,
    journal: &mut Journal,
) -> Result<String, CniError> {
    let outcome = config.leases().and_then(|ipam| remove(request, config, ipam, journal));
    match outcome {
        Ok(()) => {}
        Err(error) if config.is_enabled => return Err(internal(error)),
        // Switched off, perhaps after the pod was wired: what can be removed has been.
        Err(error) => journal.warn(error),
    }
    in_own_netns(request)
}

fn remove(
    request: &Request,
    config: &EgressConfig,
    ipam: &Ipam,
    journal: &mut Journal,
) -> Result<(), String> {
    // No other pod gets the address while the route is there.
    let released = leases(request, ipam)
        .release(&owner(request))
        .map_err(|error| format!("running IPAM plugin failed: {error}"))?;
    for address in &released {
        journal.fact("address", address);
    }
    let end = config.previous.as_ref().and_then(|previous| host_end(previous, ipam));
    if released.is_empty() && end.is_none() {
        return Ok(());
    }
    let mut host = Netlink::open().map_err(|error| error.to_string())?;
    let pod_lives = !request.netns.is_empty() && Netns::open(Path::new(&request.netns)).is_ok();
    let removed = if pod_lives {
        released.iter().try_for_each(|address| egress::delete_route(&mut host, *address))
    } else {
        let end = end.and_then(|end| Some((end.name.as_str(), end.mac.parse().ok()?)));
        egress::delete_link(&mut host, released.first().copied(), end)
    };
    removed.map_err(|error| error.to_string())
}
