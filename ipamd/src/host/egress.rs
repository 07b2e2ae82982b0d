//! What is known of pods' ways to the other family from one look at the node to the next. Pure:
//! `now` is an argument.
//!
//! The pool knows nothing of them, and neither do routes that are gone. So what was seen whole is
//! remembered, and put back as long as the pod it belongs to is the pool's. A DEL takes the egress
//! first and tells the pool of the pod last: only what has been missing for longer than that takes
//! has been lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use datapath::host::{EgressLink, PodLink};

/// How long a DEL may be between the two.
const DEL_TAKES: Duration = Duration::from_secs(5);

/// Pods' egress as the looks so far have shown it, by the host's end.
#[derive(Debug, Default)]
pub(super) struct Egress {
    seen: BTreeMap<PodLink, EgressLink>,
    /// Those that are not whole now, and since when.
    missing: BTreeMap<PodLink, Instant>,
    /// Those for which something was put back.
    mended: BTreeMap<PodLink, EgressLink>,
}

impl Egress {
    /// Takes in what is whole now, and the own links of the pods that run; gives what is to be put
    /// back.
    pub(super) fn see(
        &mut self,
        running: &BTreeSet<PodLink>,
        whole: Vec<EgressLink>,
        now: Instant,
    ) -> Vec<EgressLink> {
        self.seen.retain(|_, egress| running.contains(&egress.pod));
        let before = std::mem::take(&mut self.missing);
        let whole: BTreeMap<PodLink, EgressLink> =
            whole.into_iter().map(|egress| (egress.link.clone(), egress)).collect();
        let mut lost = Vec::new();
        for (link, egress) in self.seen.iter().filter(|(link, _)| !whole.contains_key(*link)) {
            let since = before.get(link).copied().unwrap_or(now);
            self.missing.insert(link.clone(), since);
            if now >= since + DEL_TAKES {
                lost.push(egress.clone());
            }
        }
        self.seen.extend(whole);
        self.mended.extend(lost.iter().map(|egress| (egress.link.clone(), egress.clone())));
        lost
    }

    /// When something may be put back for which it is too early now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.missing.values().map(|since| *since + DEL_TAKES).filter(|then| *then > now).min()
    }

    /// What was put back for pods that have ended since: a DEL that came before has found less.
    pub(super) fn ended(&self, running: &BTreeSet<PodLink>) -> Vec<EgressLink> {
        self.mended.values().filter(|egress| !running.contains(&egress.pod)).cloned().collect()
    }

    /// Nothing is left of what was put back for these.
    pub(super) fn removed(&mut self, ended: &[EgressLink]) {
        self.mended.retain(|link, _| ended.iter().all(|egress| egress.link != *link));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32) -> PodLink {
        PodLink { index, name: format!("link{index}") }
    }

    fn egress() -> EgressLink {
        EgressLink {
            link: link(8),
            pod: link(7),
            address: "169.254.172.2".parse().unwrap(),
            own: "169.254.172.1/32".parse().unwrap(),
        }
    }

    #[test]
    fn what_was_whole_is_put_back_once_no_del_can_be_at_work() {
        let (mut all, now, running) = (Egress::default(), Instant::now(), BTreeSet::from([link(7)]));
        assert_eq!(all.see(&running, vec![egress()], now), []);
        assert_eq!(all.next(now), None);

        assert_eq!(all.see(&running, Vec::new(), now), []);
        assert_eq!(all.next(now), Some(now + DEL_TAKES));
        assert_eq!(all.see(&running, Vec::new(), now + DEL_TAKES), [egress()]);

        // It came back, and goes once more.
        let later = now + DEL_TAKES * 2;
        assert_eq!(all.see(&running, vec![egress()], later), []);
        assert_eq!(all.see(&running, Vec::new(), later), []);
    }

    #[test]
    fn nothing_is_put_back_for_a_pod_that_has_ended_or_was_never_whole() {
        let (mut all, now, running) = (Egress::default(), Instant::now(), BTreeSet::from([link(7)]));
        assert_eq!(all.see(&running, Vec::new(), now), []);
        assert_eq!(all.see(&running, Vec::new(), now + DEL_TAKES), []);

        all.see(&running, vec![egress()], now);
        all.see(&running, Vec::new(), now);

        assert_eq!(all.see(&BTreeSet::new(), Vec::new(), now + DEL_TAKES), []);
        assert_eq!(all.ended(&BTreeSet::new()), []);
    }

    #[test]
    fn what_was_put_back_is_removed_when_its_pod_ends() {
        let (mut all, now, running) = (Egress::default(), Instant::now(), BTreeSet::from([link(7)]));
        all.see(&running, vec![egress()], now);
        all.see(&running, Vec::new(), now);
        all.see(&running, Vec::new(), now + DEL_TAKES);
        assert_eq!(all.ended(&running), []);

        assert_eq!(all.ended(&BTreeSet::new()), [egress()]);

        all.removed(&[egress()]);
        assert_eq!(all.ended(&BTreeSet::new()), []);
    }
}
