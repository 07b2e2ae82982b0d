//! What is judged of ENIs that were made for a node and are attached to nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::cloud::Snapshot;

use super::Oracle;
use crate::simulation::scenario::Scenario;
use crate::simulation::violation::Violation;

/// For how long an ENI may be nobody's while nothing is out of order: its node looks for what it
/// left behind a minute after a failure, and at its start.
const STAYS: Duration = Duration::from_secs(300);

/// ENIs that are attached to nothing, with the time since when.
#[derive(Debug)]
pub(super) struct Ownerless {
    is_judged: bool,
    since: BTreeMap<String, Duration>,
}

impl Ownerless {
    pub(super) fn new(scenario: &Scenario) -> Self {
        // Without their records, only the hourly sweep finds them; and who may change nothing has
        // made none.
        let is_judged = !scenario.damages_second_file() && scenario.provided.is_none();
        Self { is_judged, since: BTreeMap::new() }
    }
}

impl Oracle {
    pub(super) fn judge_ownerless(&mut self, snapshot: &Snapshot) {
        if !self.ownerless.is_judged {
            return;
        }
        let mut since = BTreeMap::new();
        for eni in snapshot.enis.values().filter(|eni| eni.attachment.is_none()) {
            let Some(node) = eni.tags.get(ec2::INSTANCE_TAG).and_then(|made_for| self.node_of(made_for))
            else {
                continue;
            };
            let facts = &self.nodes[node];
            if facts.enis_by_hand.contains(&eni.id) {
                continue;
            }
            let first = self.ownerless.since.get(&eni.id).copied().unwrap_or(self.now);
            let calm = first.max(facts.troubled_until).max(facts.disturbed_until);
            if self.now > calm + STAYS {
                let what = format!("{} of node {node} is attached to nothing since {first:?}", eni.id);
                return self.violate(Violation::Leaked { what });
            }
            since.insert(eni.id.clone(), first);
        }
        self.ownerless.since = since;
    }
}
