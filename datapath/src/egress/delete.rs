//! Taking a pod's egress off the host.

use std::net::IpAddr;

use vpc::{Family, Mac, RouteTable};

use crate::evidence;
use crate::kernel::{KernelError, Netlink, Route, Scope, Step};

/// Removes the host's route to `address`. What else there is goes with the pod's namespace:
/// deleting a veth makes the caller wait, the namespace's end does it for free.
///
/// # Errors
/// [`KernelError`] if the kernel refuses; a route that is absent counts as removed.
pub fn delete_route(host: &mut Netlink, address: IpAddr) -> Result<(), KernelError> {
    let route = Route {
        destination: address.into(),
        gateway: None,
        link: None,
        scope: Scope::on_link(Family::of(address)),
        table: RouteTable::MAIN,
        preferred_source: None,
    };
    host.apply_one(&Step::DeleteRoute(route)).map(drop)
}

/// Removes the host's end of a pod whose namespace should be gone but may live on, and with it
/// the other end and all routes: the link that `address` is reached by, and the link called
/// `name` if its link-layer address is `mac`.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked or refuses; what is absent counts as removed.
pub fn delete_link(
    host: &mut Netlink,
    address: Option<IpAddr>,
    end: Option<(&str, Mac)>,
) -> Result<(), KernelError> {
    let seen = evidence::read(host)?;
    let reached_by = address.and_then(|address| seen.routes.get(&address));
    let named = end.and_then(|(name, mac)| seen.macs.get(&mac).filter(|link| link.as_str() == name));
    for link in [reached_by, named.filter(|link| Some(*link) != reached_by)].into_iter().flatten() {
        // A route by another kind of link is not what an ADD made.
        if link.starts_with("veth") {
            host.apply_one(&Step::DeleteLink(link.clone()))?;
        }
    }
    match address {
        Some(address) => delete_route(host, address),
        None => Ok(()),
    }
}
