//! Bringing about what is wanted of a node's network, in an order that loses no packet.

use std::collections::BTreeSet;

use vpc::Family;

use super::pods::PodView;
use super::{Change, HostError, Observation, eni, plan_eni, pods, rules};
use crate::kernel::{KernelError, Netlink, NftError, Outcome, Step, nft};
use crate::wanted::nft::Ruleset;
use crate::wanted::{HostNetwork, PodOnHost};

/// What was brought about, as far as it went.
#[derive(Debug, Default)]
pub struct Converged {
    /// What was changed.
    pub changes: Vec<Change>,
    /// The first thing that could not be done; everything else was.
    pub fault: Option<HostError>,
}

/// What to bring about beyond links, addresses, routes and rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extent<'a> {
    /// Pods for which something is to be put back.
    ///
    /// They must have been learnt after the kernel was observed, so that a pod whose DEL took its
    /// rules away in between is not among them.
    pub pods: &'a [PodOnHost],
    /// The packet filter too. Runs `nft` in the calling thread's namespace.
    pub filter: bool,
}

/// Makes the node's network as `wanted`, given what was `seen` of it.
///
/// `admits` is asked for each group of changes that is due, by what it is about; what it refuses
/// stays as it is.
pub fn converge(
    netlink: &mut Netlink,
    seen: &Observation,
    wanted: &HostNetwork,
    extent: Extent<'_>,
    admits: &mut dyn FnMut(&str) -> bool,
) -> Converged {
    let Observation(observed) = seen;
    let mut done = Converged::default();
    let mac = wanted.primary.mac;
    let Some(primary) = observed.links.by_mac(mac) else {
        done.fault = Some(HostError::PrimaryLinkMissing(mac));
        return done;
    };
    let mut plan = Plan { steps: Vec::new(), admits };
    plan.take(
        &format!("primary ENI {}", primary.name),
        eni::primary_steps(observed, primary, &wanted.options),
    );
    for step in rules::steps(observed, wanted) {
        plan.take(&step.to_string(), vec![step]);
    }
    let mut absent = None;
    for eni in &wanted.enis {
        match plan_eni(observed, eni, &wanted.options) {
            Ok(due) => plan.take(&format!("ENI {}", eni.mac), due),
            Err(error) => absent = absent.or(Some(error)),
        }
    }
    let view = PodView::of(observed);
    for pod in extent.pods {
        plan.take(&format!("pod {}", pod.pod), pods::steps(&view, pod));
    }
    plan.carry_out(netlink, &mut done);
    if extent.filter {
        let mut prefixes = view.prefixes();
        prefixes.insert(wanted.options.veth_prefix.clone());
        done.note(converge_filter(wanted, &primary.name, &prefixes, plan.admits));
    }
    // The filter gives packets the mark that the rules before it stand for, until it is changed.
    for step in rules::stale_steps(observed, wanted) {
        plan.take(&step.to_string(), vec![step]);
    }
    plan.carry_out(netlink, &mut done);
    done.fault = done.fault.or(absent.map(HostError::from));
    done
}

/// Steps that are due and admitted.
struct Plan<'a> {
    steps: Vec<Step>,
    admits: &'a mut dyn FnMut(&str) -> bool,
}

impl Plan<'_> {
    fn take(&mut self, subject: &str, due: Vec<Step>) {
        if !due.is_empty() && (self.admits)(subject) {
            self.steps.extend(due);
        }
    }

    fn carry_out(&mut self, netlink: &mut Netlink, done: &mut Converged) {
        let steps = std::mem::take(&mut self.steps);
        done.note(try_all(netlink, &steps));
    }
}

impl Converged {
    fn note(&mut self, part: (Vec<Change>, Option<impl Into<HostError>>)) {
        let (mut changes, fault) = part;
        self.changes.append(&mut changes);
        self.fault = self.fault.take().or(fault.map(Into::into));
    }
}

/// Makes the packet filter's tables as `wanted`.
fn converge_filter(
    wanted: &HostNetwork,
    primary_link: &str,
    prefixes: &BTreeSet<String>,
    admits: &mut dyn FnMut(&str) -> bool,
) -> (Vec<Change>, Option<HostError>) {
    if wanted.family == Family::V4 && !wanted.options.external_snat && wanted.vpc_cidrs.is_empty() {
        return (Vec::new(), Some(HostError::VpcCidrsMissing));
    }
    let (mut changes, mut fault) = (Vec::new(), None);
    for family in Family::BOTH {
        let ruleset = Ruleset::of(family, wanted, primary_link, prefixes);
        match converge_table(family, ruleset.as_ref(), admits) {
            Ok(change) => changes.extend(change),
            Err(error) => fault = fault.or(Some(error.into())),
        }
    }
    (changes, fault)
}

fn converge_table(
    family: Family,
    wanted: Option<&Ruleset>,
    admits: &mut dyn FnMut(&str) -> bool,
) -> Result<Option<Change>, NftError> {
    let is_right = match (nft::observe(family)?, wanted) {
        (Some(observed), Some(wanted)) => observed.is_same(wanted),
        (observed, wanted) => observed.is_none() && wanted.is_none(),
    };
    let table = nft::table(family);
    if is_right || !admits(&table) {
        return Ok(None);
    }
    nft::replace(family, wanted)?;
    Ok(Some(Change::of_filter(&table)))
}

/// Applies all steps, also those behind one that failed; what was changed, and the first failure.
pub(super) fn try_all(netlink: &mut Netlink, steps: &[Step]) -> (Vec<Change>, Option<KernelError>) {
    let outcomes = match netlink.apply(steps) {
        Ok(outcomes) => outcomes,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let (mut changes, mut first_error) = (Vec::new(), None);
    for (step, outcome) in steps.iter().zip(outcomes) {
        match outcome {
            Outcome::Done => changes.push(Change::of(step)),
            Outcome::Satisfied => {}
            Outcome::Failed(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    (changes, first_error)
}
