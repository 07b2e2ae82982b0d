//! What the pool's task remembers for people who ask later: bounded, and lost with the process.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use vpc::{PodKey, PodName};

use crate::pool::{Allocation, FailureClass, Outcome, Refusal, Step, StepId, WaiterId};
use crate::report::{Cause, Failure, Fault, RefusedPod, Release, Wait};

/// The failures that are kept: a night's worth of an EC2 that throttles, on one screen.
const FAILURES: usize = 20;

/// The pods that are kept of those refused, and of those that went: about what a node runs.
const PODS: usize = 256;

/// The past as far as it helps to explain the present. Every list has its oldest entry first.
#[derive(Debug, Default)]
pub(super) struct History {
    failures: VecDeque<Failure>,
    refusals: VecDeque<RefusedPod>,
    releases: VecDeque<Release>,
    begun: BTreeMap<StepId, Instant>,
    waits: BTreeMap<WaiterId, Wait>,
    /// The steps that EC2 denied when they were last tried.
    denied: VecDeque<Step>,
}

impl History {
    pub(super) fn began(&mut self, step: StepId, now: Instant) {
        self.begun.insert(step, now);
    }

    /// When a step under way began.
    pub(super) fn begun_at(&self, step: StepId) -> Option<Instant> {
        self.begun.get(&step).copied()
    }

    pub(super) fn ended(&mut self, id: StepId, step: Option<&Step>, outcome: &Outcome, now: Instant) {
        self.begun.remove(&id);
        let Some(step) = step else { return };
        let (class, message) = match outcome {
            Outcome::Failed(failure) => (Fault::Step(failure.class), failure.message.clone()),
            Outcome::InUse(addresses) => {
                (Fault::InUse, format!("not done: the kernel uses {addresses:?}, which no pod has"))
            }
            _ => return,
        };
        self.failed(Failure { at: now, action: step.to_string(), class, message });
    }

    /// A state file was not written. It is tried again every few seconds, so what fails in the same
    /// way again takes the place of the time before, and no other failure's.
    pub(super) fn not_written(&mut self, action: &str, message: String, now: Instant) {
        let failure = Failure { at: now, action: action.to_owned(), class: Fault::State, message };
        self.failures.retain(|last| {
            (&last.action, last.class, &last.message) != (&failure.action, failure.class, &failure.message)
        });
        self.failed(failure);
    }

    /// Whether how a step ended is news: a step that is denied is denied again each time, until
    /// somebody changes a policy, and saying it once is enough.
    pub(super) fn is_news(&mut self, step: &Step, outcome: &Outcome) -> bool {
        let is_denied = matches!(outcome, Outcome::Failed(failure) if failure.class == FailureClass::Denied);
        let was_denied = self.denied.contains(step);
        if is_denied && !was_denied {
            self.denied.push_back(step.clone());
            keep_last(&mut self.denied, FAILURES);
        } else if !is_denied {
            self.denied.retain(|denied| denied != step);
        }
        !(is_denied && was_denied)
    }

    fn failed(&mut self, failure: Failure) {
        self.failures.push_back(failure);
        keep_last(&mut self.failures, FAILURES);
    }

    pub(super) fn parked(&mut self, id: WaiterId, wait: Wait) {
        self.waits.insert(id, wait);
    }

    /// Forgets everyone who waits no longer.
    pub(super) fn keep_waits(&mut self, waits: impl Fn(&WaiterId) -> bool) {
        self.waits.retain(|id, _| waits(id));
    }

    /// Counts with earlier refusals of the same pod.
    pub(super) fn refused(&mut self, key: &PodKey, pod: &PodName, cause: Cause, message: &str, now: Instant) {
        let is_same = |it: &RefusedPod| if pod.is_unknown() { it.key == *key } else { it.pod == *pod };
        let before = self.refusals.iter().position(is_same).and_then(|place| self.refusals.remove(place));
        self.refusals.push_back(RefusedPod {
            key: key.clone(),
            pod: pod.clone(),
            at: now,
            cause,
            message: message.to_owned(),
            times: before.map_or(1, |before| before.times.saturating_add(1)),
        });
        keep_last(&mut self.refusals, PODS);
    }

    /// Refused after a wait.
    pub(super) fn wait_refused(&mut self, id: WaiterId, refusal: &Refusal, now: Instant) {
        if let Some(wait) = self.waits.remove(&id) {
            self.refused(&wait.key, &wait.pod, Cause::Pool(refusal.reason), &refusal.message, now);
        }
    }

    pub(super) fn released(&mut self, allocation: Allocation, now: Instant) {
        self.releases.push_back(Release { allocation, at: now });
        keep_last(&mut self.releases, PODS);
    }

    pub(super) fn failures(&self) -> Vec<Failure> {
        self.failures.iter().cloned().collect()
    }

    pub(super) fn refusals(&self) -> Vec<RefusedPod> {
        self.refusals.iter().cloned().collect()
    }

    pub(super) fn releases(&self) -> Vec<Release> {
        self.releases.iter().cloned().collect()
    }

    /// Those who wait, first come first.
    pub(super) fn waits(&self) -> Vec<Wait> {
        self.waits.values().cloned().collect()
    }
}

fn keep_last<T>(list: &mut VecDeque<T>, most: usize) {
    while list.len() > most {
        list.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Reason, StepFailure};

    fn key(container: usize) -> PodKey {
        PodKey::new("aws-cni", &format!("container-{container}"), "eth0").unwrap()
    }

    fn refuse(history: &mut History, container: usize, pod: &str) {
        let pod = PodName::new("default", pod);
        history.refused(&key(container), &pod, Cause::Pool(Reason::NodeFull), "full", Instant::now());
    }

    #[test]
    fn the_attempts_of_one_pod_count_together_and_the_last_one_is_told() {
        let mut history = History::default();
        refuse(&mut history, 1, "web");
        refuse(&mut history, 2, "db");
        refuse(&mut history, 3, "web");

        let told = history.refusals();
        let told: Vec<_> =
            told.iter().map(|it| (it.pod.name.as_str(), it.key.container_id(), it.times)).collect();

        assert_eq!(told, [("db", "container-2", 1), ("web", "container-3", 2)]);
    }

    #[test]
    fn sandboxes_without_a_name_are_told_apart_by_their_ids() {
        let mut history = History::default();
        for container in [1, 2, 1] {
            let cause = Cause::Pool(Reason::NodeFull);
            history.refused(&key(container), &PodName::default(), cause, "full", Instant::now());
        }

        assert_eq!(history.refusals().iter().map(|it| it.times).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_flood_pushes_the_oldest_out() {
        let mut history = History::default();
        for number in 0..1000 {
            refuse(&mut history, number, &format!("pod-{number}"));
            let failed = StepFailure {
                class: FailureClass::Throttled,
                message: number.to_string(),
                retry_after: None,
            };
            let step = Step::ReadInventory;
            history.began(StepId(1), Instant::now());
            history.ended(StepId(1), Some(&step), &Outcome::Failed(failed), Instant::now());
        }

        assert_eq!((history.refusals().len(), history.failures().len()), (PODS, FAILURES));
        assert_eq!(history.refusals()[0].pod.name, "pod-744");
        assert_eq!(history.failures().last().unwrap().message, "999");
        assert_eq!(history.begun_at(StepId(1)), None);
    }

    #[test]
    fn steps_that_succeed_are_no_failures() {
        let mut history = History::default();

        history.ended(StepId(1), Some(&Step::ReadInventory), &Outcome::Inventory(Vec::new()), Instant::now());

        assert!(history.failures().is_empty());
    }

    #[test]
    fn a_denied_step_is_news_once_until_it_ends_otherwise() {
        let mut history = History::default();
        let mut is_news = |outcome| history.is_news(&Step::ReadSubnets, &outcome);
        let failed =
            |class| Outcome::Failed(StepFailure { class, message: String::new(), retry_after: None });

        assert!(is_news(failed(FailureClass::Denied)));
        assert!(!is_news(failed(FailureClass::Denied)));
        assert!(is_news(Outcome::Subnets(Vec::new())));
        assert!(is_news(failed(FailureClass::Denied)));
        assert!(is_news(failed(FailureClass::Unavailable)));
    }
}
