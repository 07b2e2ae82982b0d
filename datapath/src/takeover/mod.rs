//! Coming from amazon-vpc-cni-k8s, and going back to it.
//!
//! The reference keeps what our table does in chains and rules of iptables, in either front end
//! and sometimes in both, and in an nftables table of its own. They do the same as ours: a
//! packet that one has marked the other marks alike, and a connection that one has translated
//! the other leaves alone. So ours goes in first, and then theirs goes, table by table, each in
//! one transaction; rules of others are not named in it.
//!
//! `nft` neither sees the legacy front end's rules nor names the comments of the other's, so
//! here alone iptables' tools for saving and restoring are run.

mod departure;
mod plan;
mod reference;
mod saved;
mod tools;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use vpc::Family;

use crate::evidence;
use crate::kernel::{KernelError, Netlink, NftError, nft};
use crate::wanted::nft::egress_range;
use plan::Removal;
use tools::{FRONT_ENDS, FrontEnd, Presence};

pub use departure::{Departure, DepartureError, KeptTable, remove_our_tables};
pub use tools::ToolError;

/// How often one front end's rules are read before giving up: somebody changes them as fast as
/// we read them.
const ATTEMPTS: u32 = 5;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Tables of iptables in which the reference has rules.
const TABLES: [&str; 3] = ["nat", "mangle", "filter"];

/// What a take-over has done.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What went, a line each.
    pub removed: Vec<String>,
    /// What may be or is the reference's and stays, a line each with the reason. Another attempt
    /// changes nothing about it.
    pub left: Vec<String>,
    /// What could not be read or removed; another attempt may fare better.
    pub failures: Vec<TakeoverError>,
}

/// Why something of the reference's may still be there.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// One of iptables' tools.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The packet filter's own tool.
    #[error(transparent)]
    Filter(#[from] NftError),
    /// Somebody else changes the same rules all the time.
    #[error(
        "remove the rules of amazon-vpc-cni-k8s from {front_end}: they changed {ATTEMPTS} times meanwhile"
    )]
    Restless {
        /// Which front end.
        front_end: &'static str,
    },
}

/// Removes what the reference has in the packet filter of the calling thread's namespace, once
/// our own table is in place. Does nothing where there is nothing.
///
/// `kept` are addresses of pods whose egress chains stay: where egress is off, nothing of ours
/// stands in for them.
///
/// Needs CAP_NET_ADMIN, and CAP_NET_RAW where there are legacy tables.
#[must_use]
pub fn take_over(kept: &BTreeSet<IpAddr>) -> Outcome {
    let mut outcome = Outcome::default();
    let nft_tables = match nft::tables() {
        Ok(tables) => tables,
        Err(error) => {
            outcome.failures.push(error.into());
            return outcome;
        }
    };
    for front_end in &FRONT_ENDS {
        match front_end.presence(&nft_tables) {
            Ok(Presence::Absent) => {}
            Ok(Presence::Unreadable(why)) => outcome.left.push(why),
            Ok(Presence::Present) => {
                if let Err(error) = clear(front_end, kept, &mut outcome) {
                    outcome.failures.push(error);
                }
            }
            Err(error) => outcome.failures.push(error.into()),
        }
    }
    if nft_tables.contains(&("ip".to_owned(), reference::NFT_TABLE.to_owned())) {
        match nft::delete_table("ip", reference::NFT_TABLE) {
            Ok(true) => outcome.removed.push(format!("nftables: table ip {}", reference::NFT_TABLE)),
            Ok(false) => {}
            Err(error) => outcome.failures.push(error.into()),
        }
    }
    outcome
}

/// Removes what is the reference's from one front end, and looks again until nothing is left.
fn clear(front_end: &FrontEnd, kept: &BTreeSet<IpAddr>, outcome: &mut Outcome) -> Result<(), TakeoverError> {
    let mut refused = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            thread::sleep(PAUSE);
        }
        let tables = front_end.save()?;
        let removals = tables.iter().filter(|table| TABLES.contains(&table.name.as_str()));
        let removals: Vec<Removal> = removals.map(|table| Removal::of(table, kept)).collect();
        if removals.iter().all(Removal::is_empty) {
            let left = removals.iter().flat_map(|removal| &removal.left);
            outcome.left.extend(left.map(|line| format!("{}: {line}", front_end.name)));
            return Ok(());
        }
        for removal in removals.iter().filter(|removal| !removal.is_empty()) {
            match front_end.restore(&removal.transaction()) {
                Ok(()) => outcome.removed.push(format!("{}: {}", front_end.name, removal.summary())),
                // What was read is not there any more: read again.
                Err(error @ ToolError::Refused { .. }) => refused = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Err(refused.map_or(TakeoverError::Restless { front_end: front_end.name }, TakeoverError::from))
}

/// The pods that reach the other family through the node: addresses of egress with a route.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked.
pub fn pods_with_egress(netlink: &mut Netlink) -> Result<BTreeSet<IpAddr>, KernelError> {
    let is_of_egress = |address: &IpAddr| egress_range(Family::of(*address)).contains(address);
    Ok(evidence::read(netlink)?.routes.into_keys().filter(is_of_egress).collect())
}

/// What tells that a daemon of the reference runs again, a line each. Sees what is in nftables,
/// the newer front end of iptables included, and needs CAP_NET_ADMIN alone.
///
/// # Errors
/// [`NftError`] if `nft` fails.
pub fn signs_of_return() -> Result<Vec<String>, NftError> {
    let mut signs = Vec::new();
    if nft::exists(&["table", "ip", reference::NFT_TABLE])? {
        signs.push(format!("nft table ip {}", reference::NFT_TABLE));
    }
    if nft::exists(&["chain", "ip", "nat", reference::FIRST_CHAIN])? {
        signs.push(format!("iptables chain {} in table nat", reference::FIRST_CHAIN));
    }
    Ok(signs)
}

#[cfg(test)]
mod tests;
