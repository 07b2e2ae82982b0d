//! The node's own network: its ENIs, its rules, its packet filter, and what leads to its pods.

mod change;
mod converge;
mod egress;
mod eni;
mod observed;
mod pods;
mod rules;
mod warning;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use vpc::{Family, Mac, RouteTable};

use crate::kernel::{KernelError, LinkRef, Netlink, NftError, Rule, Step};
use crate::wanted::{EniNetwork, HostNetwork, HostOptions, PodOnHost, priority};
use converge::try_all;
use observed::Observed;
use pods::PodView;

pub use change::{Change, ChangeKind};
pub use converge::{Converged, Extent, converge};
pub use egress::{EgressLink, EgressObservation, mend_egress, observe_egress, remove_egress, whole_egress};
pub use warning::{HostWarning, warnings};

/// How many rules of one address are removed at most.
const MAX_RULES: usize = 1000;

/// How many links are removed at once: each makes the kernel wait, and others with it.
const MAX_LINKS: usize = 16;

/// Why the node's network is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No link has the primary ENI's address.
    #[error("find the link of the primary ENI: no link has the address {0}")]
    PrimaryLinkMissing(Mac),
    /// The VPC's blocks are not known, so nobody can tell what is outside.
    #[error("plan the packet filter: the VPC has no IPv4 block")]
    VpcCidrsMissing,
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The packet filter could not be read or changed.
    #[error(transparent)]
    Filter(#[from] NftError),
    /// An ENI could not be set up; the others have been.
    #[error(transparent)]
    Eni(#[from] EniSetupError),
}

/// Why an ENI is not set up.
#[derive(Debug, thiserror::Error)]
pub enum EniSetupError {
    /// Its link has not appeared yet, or is gone.
    #[error("set up ENI {0}: no link has this address")]
    LinkMissing(Mac),
    /// The main table is not an ENI's.
    #[error("set up ENI {0}: the main route table belongs to the primary ENI")]
    MainTable(Mac),
    /// The kernel refused.
    #[error("set up ENI {mac}: {cause}")]
    Kernel {
        /// Which ENI.
        mac: Mac,
        /// What the kernel said.
        cause: KernelError,
    },
}

/// What the kernel held of the node's network at one moment.
#[derive(Debug)]
pub struct Observation(Observed);

/// The host's end of a pod's link, by its number and name: one that was made later under the same
/// name is another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodLink {
    /// The kernel's number of the link.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// Reads links, addresses, routes and rules, as far as a node of that `family` has them.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked.
pub fn observe(netlink: &mut Netlink, family: Family) -> Result<Observation, KernelError> {
    Observed::read(netlink, family).map(Observation)
}

/// For each of `pods` its link, if all was there that leads to the pod and from it.
#[must_use]
pub fn whole_links<'a>(
    seen: &Observation,
    pods: impl IntoIterator<Item = &'a PodOnHost>,
) -> Vec<Option<PodLink>> {
    let view = PodView::of(&seen.0);
    pods.into_iter().map(|pod| view.whole_link(pod)).collect()
}

/// Makes the node's network as `wanted`; returns what was changed, nothing if it was right.
///
/// Runs `nft` and reads /proc, so the calling thread must be in the namespace of `netlink`. An
/// ENI whose link is missing is passed over, and reported when the rest is done.
///
/// # Errors
/// [`HostError`] with the first failure; a repeated call goes on from there.
pub fn observe_and_converge(netlink: &mut Netlink, wanted: &HostNetwork) -> Result<Vec<Change>, HostError> {
    let seen = observe(netlink, wanted.family)?;
    let extent = Extent { filter: true, ..Extent::default() };
    let done = converge(netlink, &seen, wanted, extent, &mut |_| true);
    done.fault.map_or(Ok(done.changes), Err)
}

/// Makes one ENI as wanted; returns what was changed.
///
/// # Errors
/// [`EniSetupError::LinkMissing`] while no link has its address.
pub fn set_up_eni(
    netlink: &mut Netlink,
    eni: &EniNetwork,
    options: &HostOptions,
) -> Result<Vec<Change>, EniSetupError> {
    let failed = |cause| EniSetupError::Kernel { mac: eni.mac, cause };
    let observed = Observed::read(netlink, Family::of(eni.address)).map_err(failed)?;
    let steps = plan_eni(&observed, eni, options)?;
    apply(netlink, &steps).map_err(failed)
}

/// Removes the rule of an ENI that has left; its routes went with its link.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn forget_eni(
    netlink: &mut Netlink,
    address: IpAddr,
    table: RouteTable,
) -> Result<Vec<Change>, HostError> {
    let rule = Rule::from_address(priority::FROM_ENI, address, table);
    Ok(apply(netlink, &[Step::DeleteRule(rule)])?)
}

/// Removes the rules that lead to and from a pod's address.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn remove_pod_rules(netlink: &mut Netlink, address: IpAddr) -> Result<Vec<Change>, HostError> {
    let is_of_the_pod = |rule: &&Rule| {
        let own = IpNet::from(address);
        let to_pod = Rule { to: Some(own), ..Rule::new(rule.family, priority::TO_POD, rule.table) };
        let from_pod = Rule { from: Some(own), ..Rule::new(rule.family, priority::FROM_POD, rule.table) };
        **rule == to_pod || **rule == from_pod
    };
    let rules = netlink.rules(Family::of(address))?;
    let stale: Vec<Step> =
        rules.iter().filter(is_of_the_pod).take(MAX_RULES).cloned().map(Step::DeleteRule).collect();
    Ok(apply(netlink, &stale)?)
}

/// Removes the link `name`, if there is one. Takes 10 to 30 ms.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn remove_link(netlink: &mut Netlink, name: &str) -> Result<Vec<Change>, HostError> {
    Ok(apply(netlink, &[Step::DeleteLink(name.to_owned())])?)
}

/// Those of `links` that are there now, each with whether a route leads to it.
///
/// # Errors
/// [`KernelError`] if the kernel could not be asked.
pub fn reached_links(
    netlink: &mut Netlink,
    links: &BTreeSet<PodLink>,
) -> Result<BTreeMap<PodLink, bool>, KernelError> {
    let there = netlink.links()?;
    let mut routes = Vec::new();
    for family in Family::BOTH {
        routes.append(&mut netlink.routes(family, None, &there)?);
    }
    Ok(pods::reached(&there, &routes, links))
}

/// Removes links by their numbers, so that one that was made since under the same name stays.
/// Takes 10 to 30 ms each, so no more than a few go at once.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn remove_links<'a>(
    netlink: &mut Netlink,
    links: impl IntoIterator<Item = &'a PodLink>,
) -> Result<Vec<Change>, HostError> {
    let steps: Vec<Step> = links
        .into_iter()
        .take(MAX_LINKS)
        .map(|link| Step::DeleteLinkByIndex(LinkRef { index: link.index, name: link.name.clone() }))
        .collect();
    Ok(apply(netlink, &steps)?)
}

fn plan_eni(
    observed: &Observed,
    eni: &EniNetwork,
    options: &HostOptions,
) -> Result<Vec<Step>, EniSetupError> {
    if eni.table == RouteTable::MAIN {
        return Err(EniSetupError::MainTable(eni.mac));
    }
    let link = observed.links.by_mac(eni.mac).ok_or(EniSetupError::LinkMissing(eni.mac))?;
    Ok(eni::eni_steps(observed, link, eni, options))
}

/// Applies all steps, also those behind one that failed; the first failure is the error.
fn apply(netlink: &mut Netlink, steps: &[Step]) -> Result<Vec<Change>, KernelError> {
    let (changes, fault) = try_all(netlink, steps);
    fault.map_or(Ok(changes), Err)
}
