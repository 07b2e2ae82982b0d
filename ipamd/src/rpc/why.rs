//! What the report says of one pod or one address, for `ipamd why`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proto::node::{AddressStory, Holding, PodStory, ReleasedAddress, WhyReply};
use vpc::{PodKey, PodName};

use super::status::{address, assigned, assigned_at, place, pod, refused, wait};
use crate::pool::Allocation;
use crate::pool::{AddressReport, AddressState, EniReport};
use crate::report::{Release, Report};

/// The fewest characters of a container id that are taken for one.
const ID_LENGTH: usize = 8;

/// What somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Address(IpAddr),
    /// A namespace and a name.
    Pod(PodName),
    /// A name alone, or the beginning of a container id.
    Word(String),
}

impl Subject {
    /// Reads what somebody typed; none if it is empty.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name)) => Some(Self::Pod(PodName::new(namespace, name))),
            None if text.is_empty() => None,
            None => Some(Self::Word(text.to_owned())),
        }
    }

    fn fits(&self, key: &PodKey, pod: &PodName) -> bool {
        match self {
            Self::Address(_) => false,
            Self::Pod(wanted) => pod == wanted,
            Self::Word(word) => {
                pod.name == *word
                    || (word.len() >= ID_LENGTH && key.container_id().starts_with(word.as_str()))
            }
        }
    }
}

/// Everything known about `subject`; the caller adds what does not depend on it.
pub(super) fn why(report: &Report, subject: &Subject) -> WhyReply {
    match subject {
        Subject::Address(ip) => WhyReply { address: Some(address_story(report, *ip)), ..WhyReply::default() },
        Subject::Pod(_) | Subject::Word(_) => {
            WhyReply { pods: pod_stories(report, subject), ..WhyReply::default() }
        }
    }
}

/// One story for each pod; a sandbox without a pod's name is a pod of its own.
fn pod_stories(report: &Report, subject: &Subject) -> Vec<PodStory> {
    let mut stories = BTreeMap::<(PodName, Option<PodKey>), PodStory>::new();
    let mut story = |key: &PodKey, name: &PodName, add: &dyn Fn(&mut PodStory)| {
        if !subject.fits(key, name) {
            return;
        }
        let who = (name.clone(), name.is_unknown().then(|| key.clone()));
        let story = stories.entry(who).or_insert_with(|| PodStory {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            ..PodStory::default()
        });
        add(story);
    };
    for (held, eni) in holdings(report) {
        let holding = Holding {
            pod: Some(pod(&held.key, &held.pod)),
            ip: held.address.to_string(),
            since_unix_ms: assigned_at(held),
            place: eni.map(place),
        };
        story(&held.key, &held.pod, &|story| story.holds.push(holding.clone()));
    }
    for it in &report.waiting {
        story(&it.key, &it.pod, &|story| story.waits.push(wait(it, report.at)));
    }
    for it in &report.refusals {
        story(&it.key, &it.pod, &|story| story.refused = Some(refused(it, report.at)));
    }
    for it in &report.releases {
        let held = &it.allocation;
        story(&held.key, &held.pod, &|story| story.released = Some(released(report, it)));
    }
    stories.into_values().collect()
}

fn holdings(report: &Report) -> impl Iterator<Item = (&Allocation, Option<&EniReport>)> {
    let on_enis = report.pool.enis.iter().flat_map(|eni| {
        eni.addresses.iter().filter_map(move |address| match &address.state {
            AddressState::Assigned(held) => Some((held, Some(eni))),
            _ => None,
        })
    });
    on_enis.chain(report.pool.pinned.iter().map(|held| (held, None)))
}

fn released(report: &Report, release: &Release) -> ReleasedAddress {
    let Allocation { key, pod: name, address, .. } = &release.allocation;
    // It may rest again after another pod.
    let is_last = last_release(report, *address).is_some_and(|last| last == release);
    let until = find(report, *address).and_then(|(found, _)| match found.state {
        AddressState::Cooling { until } if is_last => Some(report.at.unix_ms_at(until)),
        _ => None,
    });
    ReleasedAddress {
        pod: Some(pod(key, name)),
        ip: address.to_string(),
        assigned_unix_ms: assigned_at(&release.allocation),
        released_unix_ms: report.at.unix_ms_at(release.at),
        cooling_until_unix_ms: until,
    }
}

fn last_release(report: &Report, address: IpAddr) -> Option<&Release> {
    report.releases.iter().rev().find(|it| it.allocation.address == address)
}

fn find(report: &Report, wanted: IpAddr) -> Option<(&AddressReport, &EniReport)> {
    let addresses = report.pool.enis.iter().flat_map(|eni| eni.addresses.iter().map(move |it| (it, eni)));
    addresses.into_iter().find(|(it, _)| it.address == wanted)
}

fn address_story(report: &Report, ip: IpAddr) -> AddressStory {
    let released = last_release(report, ip).map(|it| released(report, it));
    let pinned = report.pool.pinned.iter().find(|held| held.address == ip).map(assigned);
    let (status, eni) = match find(report, ip) {
        Some((found, eni)) => (Some(address(found, report.at)), Some(eni)),
        None => (pinned, None),
    };
    if let Some(status) = status {
        return AddressStory {
            ip: status.ip,
            state: status.state,
            pod: status.pod,
            assigned_unix_ms: status.assigned_unix_ms,
            cooling_until_unix_ms: status.cooling_until_unix_ms,
            quarantined_because: status.quarantined_because,
            place: eni.map(place),
            released,
        };
    }
    let own =
        report.pool.enis.iter().find(|eni| ip == eni.primary_ip || eni.ipv6.is_some_and(|own| ip == own));
    let in_prefix = report.pool.enis.iter().find(|eni| eni.prefixes.iter().any(|prefix| prefix.contains(ip)));
    let state = match (own, in_prefix) {
        (Some(_), _) => "node",
        (None, Some(_)) => "free",
        (None, None) => "unknown",
    };
    AddressStory {
        ip: ip.to_string(),
        state: state.to_owned(),
        place: own.or(in_prefix).map(place),
        released,
        ..AddressStory::default()
    }
}
