//! `egress-cni`, the plugin behind `aws-cni` in the list: IPv4 for pods with IPv6 addresses, and
//! IPv6 for pods with IPv4 addresses.
//!
//! The packet filter's part is the same for all pods and the daemon's; here a pod gets its second
//! link and a lease of an address for it.

mod add;
mod check;
mod config;
mod del;
mod gc;
mod lease;
mod range;

use std::time::Instant;

use datapath::egress;

use crate::error::{CniError, Code};
use crate::log::Journal;
use crate::request::{Request, Verb};
use crate::result::{CniResult, Interface};

use config::{EgressConfig, Ipam};
use lease::{LeaseError, Leases, Owner};

/// Serves a call by the name `egress-cni`; gives what stdout carries.
pub(crate) fn run(request: &Request, started: Instant) -> Result<String, CniError> {
    let config = EgressConfig::read(&request.config, request.version)
        .map_err(|error| internal(format!("failed to parse config: {error}")))?;
    let mut journal = Journal::new("egress-cni", started);
    let outcome = match request.verb {
        Verb::Add => add::run(request, &config, &mut journal),
        Verb::Del => del::run(request, &config, &mut journal),
        Verb::Check => check::run(request, &config),
        Verb::Gc => gc::run(request, &config, &mut journal),
        Verb::Status => status(request, &config),
    };
    journal.write(&config.log, &config.log_level, request, outcome.as_ref().err());
    outcome
}

/// Whether an ADD could be served now.
fn status(request: &Request, config: &EgressConfig) -> Result<String, CniError> {
    if !config.is_enabled {
        return Ok(String::new());
    }
    let unavailable = |error: String| CniError::new(Code::UNAVAILABLE, error);
    config.mtu().map_err(unavailable)?;
    let ipam = config.ipam().map_err(unavailable)?;
    let leases = leases(request, ipam).all().map_err(|error| unavailable(error.to_string()))?;
    if leases.len() as u128 >= ipam.range.size() {
        return Err(unavailable(format!(
            "all {} addresses of {} are leased",
            leases.len(),
            ipam.range.block()
        )));
    }
    Ok(String::new())
}

fn internal(message: impl ToString) -> CniError {
    CniError::new(Code::INTERNAL, message.to_string())
}

/// What the runtime is told of leases that cannot be had.
fn no_lease(error: &LeaseError) -> CniError {
    let code = match error {
        // Another pod's DEL helps, or whoever holds the lock lets go of it.
        LeaseError::Full { .. } | LeaseError::Locked { .. } => Code::TRY_AGAIN_LATER,
        LeaseError::Io { .. } => Code::INTERNAL,
    };
    CniError::new(code, format!("running IPAM plugin failed: failed to allocate for range 0: {error}"))
}

fn leases(request: &Request, ipam: &Ipam) -> Leases {
    Leases::new(&ipam.data_dir, &request.network)
}

fn owner(request: &Request) -> Owner {
    Owner { container_id: request.container_id.clone(), interface: request.interface.clone() }
}

/// The host's end of the pair, as an ADD's result names it: the entry before the pod's end.
fn host_end<'a>(previous: &'a CniResult, ipam: &Ipam) -> Option<&'a Interface> {
    let name = egress::interface(ipam.range.block());
    let position = previous.interfaces.iter().rposition(|entry| entry.name == name)?;
    previous.interfaces.get(position.checked_sub(1)?)
}
