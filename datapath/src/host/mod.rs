//! The node's own network: its ENIs, its rules, its packet filter.

mod plan;
mod warning;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use vpc::{Mac, RouteTable};

use crate::kernel::{Family, KernelError, Netlink, NftError, Outcome, Rule, Step, nft};
use crate::wanted::nft::Ruleset;
use crate::wanted::{EniNetwork, HostNetwork, HostOptions, priority};
use plan::Observed;

pub use warning::{HostWarning, warnings};

/// How many rules of one address are removed at most.
const MAX_RULES: usize = 1000;

/// One change made to the kernel, for the log: action and object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change(String);

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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

/// Makes the node's network as `wanted`; returns what was changed, nothing if it was right.
///
/// Runs `nft` and reads /proc, so the calling thread must be in the namespace of `netlink`. An
/// ENI whose link is missing is passed over, and reported when the rest is done.
///
/// # Errors
/// [`HostError`] with the first failure; a repeated call goes on from there.
pub fn observe_and_converge(netlink: &mut Netlink, wanted: &HostNetwork) -> Result<Vec<Change>, HostError> {
    let observed = Observed::read(netlink)?;
    let options = &wanted.options;
    let mac = wanted.primary.mac;
    let primary = observed.links.by_mac(mac).ok_or(HostError::PrimaryLinkMissing(mac))?;
    if !options.external_snat && wanted.vpc_cidrs.is_empty() {
        return Err(HostError::VpcCidrsMissing);
    }
    let filter = Ruleset::of(wanted, &primary.name);
    let filter_is_wrong = match (nft::observe()?, &filter) {
        (Some(observed), Some(wanted)) => !observed.is_same(wanted),
        (observed, wanted) => observed.is_some() || wanted.is_some(),
    };

    let mut steps = plan::primary_steps(&observed, primary, options);
    steps.extend(plan::rule_steps(&observed.rules, options));
    let mut absent = None;
    for eni in &wanted.enis {
        match plan_eni(&observed, eni, options) {
            Ok(of_eni) => steps.extend(of_eni),
            Err(error) => absent = absent.or(Some(error)),
        }
    }
    let mut changes = apply(netlink, &steps)?;
    if filter_is_wrong {
        nft::replace(filter.as_ref())?;
        changes.push(Change("replace nft table ip vpc-cni".to_owned()));
    }
    absent.map_or(Ok(changes), |error| Err(error.into()))
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
    let observed = Observed::read(netlink).map_err(failed)?;
    let steps = plan_eni(&observed, eni, options)?;
    apply(netlink, &steps).map_err(failed)
}

/// Removes the rule of an ENI that has left; its routes went with its link.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn forget_eni(
    netlink: &mut Netlink,
    address: Ipv4Addr,
    table: RouteTable,
) -> Result<Vec<Change>, HostError> {
    let rule = Rule::from_address(priority::FROM_ENI, address.into(), table);
    Ok(apply(netlink, &[Step::DeleteRule(rule)])?)
}

/// Removes the rules that lead to and from a pod's address.
///
/// # Errors
/// [`HostError`] if the kernel refused.
pub fn remove_pod_rules(netlink: &mut Netlink, address: IpAddr) -> Result<Vec<Change>, HostError> {
    let is_of_the_pod = |rule: &&Rule| {
        let (block, other) = match rule.priority {
            priority::TO_POD => (rule.to, rule.from),
            priority::FROM_POD => (rule.from, rule.to),
            _ => return false,
        };
        block == Some(address.into()) && other.is_none() && !rule.is_foreign
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

fn plan_eni(
    observed: &Observed,
    eni: &EniNetwork,
    options: &HostOptions,
) -> Result<Vec<Step>, EniSetupError> {
    if eni.table == RouteTable::MAIN {
        return Err(EniSetupError::MainTable(eni.mac));
    }
    let link = observed.links.by_mac(eni.mac).ok_or(EniSetupError::LinkMissing(eni.mac))?;
    Ok(plan::eni_steps(observed, link, eni, options))
}

/// Applies all steps, also those behind one that failed; the first failure is the error.
fn apply(netlink: &mut Netlink, steps: &[Step]) -> Result<Vec<Change>, KernelError> {
    let mut changes = Vec::new();
    let mut first_error = None;
    for (step, outcome) in steps.iter().zip(netlink.apply(steps)?) {
        match outcome {
            Outcome::Done => changes.push(Change(step.to_string())),
            Outcome::Satisfied => {}
            Outcome::Failed(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(changes), Err)
}
