//! Makes a failing scenario smaller, as long as it fails in the same way.

use std::time::Duration;

use super::play::Outcome;
use super::run::outcome_of;
use super::scenario::{Event, Scenario};

/// The smallest scenario found that breaks the same promise, with what came of it.
pub(super) fn shrink(scenario: Scenario, outcome: Outcome) -> (Scenario, Outcome) {
    let Some(kind) = outcome.violation.as_ref().map(super::violation::Violation::kind) else {
        return (scenario, outcome);
    };
    let mut best = (scenario, outcome);
    let attempt = |best: &mut (Scenario, Outcome), smaller: Scenario| -> bool {
        if smaller == best.0 {
            return false;
        }
        let outcome = outcome_of(&smaller, false);
        let is_same = outcome.violation.as_ref().is_some_and(|found| found.kind() == kind);
        if is_same {
            *best = (smaller, outcome);
        }
        is_same
    };
    // Events in ever smaller bunches; then single nodes; then the time after the last event.
    let mut size = best.0.events.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < best.0.events.len() {
            let mut smaller = best.0.clone();
            let end = (start + size).min(smaller.events.len());
            smaller.events.drain(start..end);
            if !attempt(&mut best, smaller) {
                start += size;
            }
        }
        size /= 2;
    }
    let mut smaller = best.0.clone();
    let used = smaller.events.iter().filter_map(|(_, event)| node_of(event)).max().unwrap_or(0);
    smaller.nodes = used + 1;
    attempt(&mut best, smaller);
    let mut smaller = best.0.clone();
    smaller.active = smaller.events.last().map_or(Duration::ZERO, |(at, _)| *at) + Duration::from_secs(1);
    attempt(&mut best, smaller);
    best
}

fn node_of(event: &Event) -> Option<usize> {
    match event {
        Event::Pod { node, .. }
        | Event::Kill { node, .. }
        | Event::Restart { node }
        | Event::Reboot { node }
        | Event::WallJump { node, .. }
        | Event::Disk { node, .. }
        | Event::Damage { node, .. }
        | Event::Hand { node, .. }
        | Event::Switch { node }
        | Event::Cordon { node, .. }
        | Event::Collect { node }
        | Event::AnotherHand { node, .. }
        | Event::LateLinks { node, .. } => Some(*node),
        Event::Fault { .. }
        | Event::Fill { .. }
        | Event::Tag { .. }
        | Event::Fragment { .. }
        | Event::ImdsLag { .. }
        | Event::ImdsDown { .. }
        | Event::Throttle { .. }
        | Event::Slow { .. } => None,
    }
}
