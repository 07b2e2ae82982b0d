//! GC: free what the runtime no longer lists, and remove what led to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use datapath::evidence;
use datapath::kernel::Netlink;
use vpc::RouteTable;

use crate::Paths;
use crate::daemon::Daemon;
use crate::error::{CniError, Code};
use crate::log::Journal;
use crate::request::{NetworkConfig, Request};
use crate::teardown;

/// How long an address must have had rules but no route before they count as left over; a pod
/// that is being wired at this moment gets its route within milliseconds.
const SETTLE: Duration = Duration::from_secs(1);

/// Serves a GC, which prints nothing.
pub(crate) fn run(
    request: &Request,
    config: &NetworkConfig,
    paths: &Paths,
    journal: &mut Journal,
) -> Result<String, CniError> {
    let failed = |code, error: String| CniError::new(code, format!("gc cmd: {error}"));
    let daemon = Daemon { socket: &paths.ipamd, started: journal.started() };
    let collected = daemon
        .collect(&request.network, &config.valid_attachments)
        .map_err(|error| failed(Code::TRY_AGAIN_LATER, format!("ask the node daemon: {error}")))?;
    let mut host = Netlink::open().map_err(|error| failed(Code::INTERNAL, error.to_string()))?;
    let Some(collected) = collected else {
        // Nobody can say which address belonged to which attachment, so only what no pod uses goes.
        return remove_orphans(&mut host, journal)
            .map(|()| String::new())
            .map_err(|error| failed(Code::INTERNAL, error));
    };
    let mut addresses = Vec::new();
    for entry in collected {
        journal.fact("collected", format!("{}/{} {}", entry.container_id, entry.interface, entry.ip));
        if entry.quarantined {
            journal.warn(format!("{} is held back: its link still has a running peer", entry.ip));
            continue;
        }
        match entry.ip.parse::<IpAddr>() {
            Ok(address) => addresses.push((address, RouteTable::from_reply(entry.route_table))),
            Err(_) => journal.warn(format!("the node daemon freed {:?}, which is no address", entry.ip)),
        }
    }
    teardown::delete(&mut host, &addresses).map_err(|error| failed(Code::INTERNAL, error))?;
    Ok(String::new())
}

/// Removes rules of addresses that no route leads to, now and a moment later.
fn remove_orphans(host: &mut Netlink, journal: &mut Journal) -> Result<(), String> {
    let first = orphans(host)?;
    if first.is_empty() {
        return Ok(());
    }
    thread::sleep(SETTLE);
    let lasting: Vec<IpAddr> = orphans(host)?.intersection(&first).copied().collect();
    for address in &lasting {
        journal.fact("collected", address);
    }
    let addresses: Vec<(IpAddr, RouteTable)> =
        lasting.into_iter().map(|address| (address, RouteTable(0))).collect();
    teardown::delete(host, &addresses)
}

fn orphans(host: &mut Netlink) -> Result<BTreeSet<IpAddr>, String> {
    let seen = evidence::read(host).map_err(|error| error.to_string())?;
    Ok(seen.rules.keys().filter(|address| !seen.routes.contains_key(address)).copied().collect())
}
