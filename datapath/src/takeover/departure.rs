//! Leaving the node to somebody else: our own tables go, but for what running pods need.
//!
//! Pods that reach the other family through the node have a chain of their own with the reference,
//! which it makes at their ADD and never again. For pods of ours, and for those whose chains were
//! taken over, nobody but our table translates. What it does for them misleads nobody: it concerns
//! their addresses alone, which are known on this node only, and a pod that the reference makes
//! gets the same address of the node, by whichever of the two sees it first.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vpc::Family;

use super::tools::{FRONT_ENDS, Presence};
use super::{plan, pods_with_egress};
use crate::kernel::{KernelError, Netlink, NftError, nft};
use crate::wanted::nft::{TABLE, nft_family};

/// What became of our tables.
#[derive(Debug, Default)]
pub struct Departure {
    /// Those that went.
    pub removed: Vec<String>,
    /// What stays.
    pub kept: Vec<KeptTable>,
}

/// A table of ours that stays, with its rules for egress alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTable {
    /// Which table: `nft table ip vpc-cni`.
    pub name: String,
    /// The family that pods reach by it.
    pub family: Family,
    /// The addresses of the pods that need it.
    pub pods: BTreeSet<IpAddr>,
}

/// Why our tables may still be there.
#[derive(Debug, thiserror::Error)]
pub enum DepartureError {
    /// Nobody can tell whether pods need them.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The packet filter's own tool.
    #[error(transparent)]
    Filter(#[from] NftError),
}

/// Removes our own tables from the calling thread's namespace, for a node that somebody else
/// will serve. What pods need that reach the other family through the node stays while they run.
///
/// # Errors
/// [`DepartureError`] if the kernel could not be asked, or `nft` fails.
pub fn remove_our_tables() -> Result<Departure, DepartureError> {
    let mut departure = Departure::default();
    let needy = pods_in_need()?;
    for family in Family::BOTH {
        let name = format!("nft table {}", nft::table(family));
        let pods: BTreeSet<IpAddr> =
            needy.iter().filter(|address| Family::of(**address) == family).copied().collect();
        let observed = if pods.is_empty() { None } else { nft::observe(family)? };
        if let Some(needed) = observed.as_ref().and_then(|table| table.of_egress()) {
            if observed.is_some_and(|table| !table.is_same(&needed)) {
                nft::replace(family, Some(&needed))?;
            }
            departure.kept.push(KeptTable { name, family, pods });
        } else if nft::delete_table(nft_family(family), TABLE)? {
            departure.removed.push(name);
        }
    }
    Ok(departure)
}

/// Pods with egress for which the reference does not translate.
fn pods_in_need() -> Result<BTreeSet<IpAddr>, DepartureError> {
    let mut pods = pods_with_egress(&mut Netlink::open()?)?;
    if pods.is_empty() {
        return Ok(pods);
    }
    let nft_tables = nft::tables()?;
    for front_end in &FRONT_ENDS {
        // Where nobody can look, it is as if nothing were there: then a table stays that misleads
        // nobody.
        if let Ok(Presence::Present) = front_end.presence(&nft_tables)
            && let Ok(tables) = front_end.save()
        {
            let translated: BTreeSet<IpAddr> = tables.iter().flat_map(plan::egress_sources).collect();
            pods.retain(|address| !translated.contains(address));
        }
    }
    Ok(pods)
}
