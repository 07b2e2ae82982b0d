//! What instance metadata is good for: in IMDS-only mode it stands in for EC2, and everywhere
//! it shows cheaply that somebody else has changed something.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ec2::Ec2;
use tracing::{info, warn};
use vpc::{Eni, EniId, EniKind, EniRole, EniSlot, Family, Prefix};

use super::failure::StepError;
use super::{Executor, Known};
use crate::config::Ec2Access;
use crate::imds::Hint;
use crate::pool::FailureClass;

/// How long metadata must have shown an address before it is believed in IMDS-only mode. What
/// has just left an ENI may still be shown, by whichever part of the service answers.
const SETTLES: Duration = Duration::from_secs(3);

/// An address or a prefix on an ENI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Ip(Ipv4Addr),
    Prefix(Prefix),
}

/// Since when metadata has shown each address and prefix without a break.
#[derive(Debug, Default)]
pub(super) struct Sightings(BTreeMap<(EniId, Item), Instant>);

impl Sightings {
    /// Takes in what metadata shows now. Gives of it what it showed long enough ago too, and
    /// whether that is all of it.
    fn take_in(&mut self, shown: Vec<Hint>, now: Instant) -> (Vec<Hint>, bool) {
        let mut seen = BTreeMap::new();
        for hint in &shown {
            for item in items(hint) {
                let key = (hint.eni.clone(), item);
                let since = self.0.get(&key).copied().unwrap_or(now);
                seen.insert(key, since);
            }
        }
        self.0 = seen;
        let is_settled = |eni: &EniId, item: Item| {
            self.0.get(&(eni.clone(), item)).is_some_and(|since| *since + SETTLES <= now)
        };
        let mut is_all = true;
        let mut settled = shown;
        for hint in &mut settled {
            let before = hint.secondary_ips.len() + hint.prefixes.len();
            hint.secondary_ips.retain(|ip| is_settled(&hint.eni, Item::Ip(*ip)));
            hint.prefixes.retain(|prefix| is_settled(&hint.eni, Item::Prefix(*prefix)));
            is_all &= hint.secondary_ips.len() + hint.prefixes.len() == before;
        }
        (settled, is_all)
    }
}

fn items(hint: &Hint) -> impl Iterator<Item = Item> {
    let ips = hint.secondary_ips.iter().copied().map(Item::Ip);
    ips.chain(hint.prefixes.iter().copied().map(Item::Prefix))
}

/// One way in which metadata and the last picture of EC2 differ.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// An ENI that nobody knew.
    Came(EniId),
    Went(EniId),
    Gained(EniId, Item),
    Lost(EniId, Item),
}

/// The differences that were there at the last look, and those that EC2 was read for.
#[derive(Debug, Default)]
pub(super) struct Differences {
    last: BTreeSet<Difference>,
    settled: BTreeSet<Difference>,
}

impl Differences {
    /// Takes in a look; says whether EC2 should be read. An ENI that comes is reason enough at
    /// once. Everything else must be seen twice in a row, since metadata lags behind what we do
    /// ourselves. No difference is a reason twice while it lasts.
    fn take_in(&mut self, found: BTreeSet<Difference>) -> bool {
        self.settled.retain(|difference| found.contains(difference));
        let is_reason = |difference: &Difference| {
            matches!(difference, Difference::Came(_)) || self.last.contains(difference)
        };
        let reasons: Vec<_> = found
            .iter()
            .filter(|difference| !self.settled.contains(*difference) && is_reason(difference))
            .cloned()
            .collect();
        self.last = found;
        let has_reasons = !reasons.is_empty();
        if has_reasons {
            info!(?reasons, "instance metadata differs from what EC2 said");
        }
        self.settled.extend(reasons);
        has_reasons
    }
}

fn differences(
    shown: &[Hint],
    known: &BTreeMap<EniId, Known>,
    others: &BTreeSet<EniId>,
    family: Family,
) -> BTreeSet<Difference> {
    let mut found = BTreeSet::new();
    for hint in shown.iter().filter(|hint| !others.contains(&hint.eni)) {
        let id = &hint.eni;
        let Some(known) = known.get(id) else {
            found.insert(Difference::Came(id.clone()));
            continue;
        };
        let shown: BTreeSet<_> = items(hint).collect();
        let held: BTreeSet<_> = held(&known.eni, family).collect();
        found.extend(shown.difference(&held).map(|item| Difference::Gained(id.clone(), *item)));
        found.extend(held.difference(&shown).map(|item| Difference::Lost(id.clone(), *item)));
    }
    let gone = known.keys().filter(|id| !is_shown(shown, id));
    found.extend(gone.cloned().map(Difference::Went));
    found
}

fn is_shown(shown: &[Hint], id: &EniId) -> bool {
    shown.iter().any(|hint| hint.eni == *id)
}

/// What metadata should show of an ENI; of prefixes it is asked for those of one family.
fn held(eni: &Eni, family: Family) -> impl Iterator<Item = Item> {
    let asked_for = eni.prefixes.iter().filter(move |prefix| Family::of(prefix.net().addr()) == family);
    eni.secondary_ips.iter().copied().map(Item::Ip).chain(asked_for.copied().map(Item::Prefix))
}

impl<E: Ec2> Executor<E> {
    /// Whether instance metadata shows something that EC2 should be read for: an ENI, an address
    /// or a prefix that came or went by another hand. A few local reads; EC2 is not asked.
    pub(crate) async fn sees_changes(&self) -> bool {
        // While an ENI is being made, metadata may know it before we do. Looked at twice, since
        // nobody's ENI should wait for slow metadata.
        if self.making.try_write().is_err() {
            return false;
        }
        match self.facts.attached().await {
            Ok(_) if self.making.try_write().is_err() => false,
            Ok(shown) => self.memory(|memory| {
                memory.gone.retain(|id| is_shown(&shown, id));
                let of_no_interest = [&memory.others, &memory.gone, &memory.leaving];
                let of_no_interest = of_no_interest.into_iter().flatten().cloned().collect();
                let found = differences(&shown, &memory.enis, &of_no_interest, self.options.family);
                memory.differences.take_in(found)
            }),
            Err(error) => {
                warn!(%error, "instance metadata does not list ENIs");
                false
            }
        }
    }

    /// What metadata alone says is attached to the pool's network card. Without tags, so every
    /// ENI with an address serves pods.
    pub(super) async fn read_metadata(&self) -> Result<Vec<Eni>, StepError> {
        let _nothing_is_being_made = self.making.write().await;
        let (mut hints, is_all) = self.sight().await?;
        if !is_all {
            tokio::time::sleep(SETTLES).await;
            (hints, _) = self.sight().await?;
        }
        Ok(self.adopt_hints(&hints))
    }

    /// What metadata shows at this moment, for a start at which EC2 cannot be read. Nothing of it
    /// is certain.
    ///
    /// # Errors
    /// [`StepError`] if metadata does not list ENIs either.
    pub(crate) async fn read_hints(&self) -> Result<Vec<Eni>, StepError> {
        let _nothing_is_being_made = self.making.write().await;
        let shown = self.shown().await?;
        Ok(self.adopt_hints(&shown))
    }

    fn adopt_hints(&self, hints: &[Hint]) -> Vec<Eni> {
        let mut enis = BTreeMap::new();
        let mut others = BTreeSet::new();
        for hint in hints {
            if hint.slot.card.0 != self.options.card {
                others.insert(hint.eni.clone());
            } else if let Some(eni) = self.eni_of(hint) {
                enis.insert(hint.eni.clone(), Known::without_tags(eni));
            } else {
                warn!(eni = %hint.eni, "ENI in a subnet whose block nobody knows is left alone");
                others.insert(hint.eni.clone());
            }
        }
        let seen = enis.values().map(|known| known.eni.clone()).collect();
        self.memory(|memory| {
            memory.subnet_blocks.extend(hints.iter().filter_map(|hint| hint.subnet.clone()));
            memory.enis = enis;
            memory.others = others;
        });
        seen
    }

    async fn shown(&self) -> Result<Vec<Hint>, StepError> {
        self.facts.attached().await.map_err(|error| StepError {
            class: FailureClass::Unavailable,
            message: format!("list the ENIs of this instance: {error}"),
        })
    }

    async fn sight(&self) -> Result<(Vec<Hint>, bool), StepError> {
        let shown = self.shown().await?;
        let now = self.moment().instant();
        Ok(self.memory(|memory| memory.sightings.take_in(shown, now)))
    }

    fn eni_of(&self, hint: &Hint) -> Option<Eni> {
        let is_primary = hint.eni == self.instance.primary_eni;
        let (subnet, blocks) = hint.subnet.clone()?;
        Some(Eni {
            id: hint.eni.clone(),
            mac: hint.mac,
            slot: if is_primary { EniSlot::PRIMARY } else { hint.slot },
            role: if is_primary { EniRole::Primary } else { EniRole::Secondary },
            kind: if hint.primary_ip.is_some() { EniKind::Interface } else { EniKind::EfaOnly },
            is_managed: is_primary || hint.primary_ip.is_some(),
            subnet,
            subnet_cidr: blocks.ipv4,
            primary_ip: hint.primary_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            ipv6: hint.ipv6.zip(blocks.ipv6),
            secondary_ips: hint.secondary_ips.clone(),
            prefixes: hint.prefixes.clone(),
        })
    }

    /// Whether metadata stands in for EC2.
    pub(super) fn trusts_metadata(&self) -> bool {
        self.options.access == Ec2Access::Nothing
    }
}

impl Known {
    /// An ENI of which metadata alone speaks. It is nobody's that we could tell.
    fn without_tags(eni: Eni) -> Self {
        Self { eni, security_groups: Vec::new(), tags: None, is_ours: false, survives_instance: None }
    }
}

#[cfg(test)]
mod tests {
    use vpc::SubnetBlocks;

    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, last)
    }

    fn hint(id: &str, ips: &[u8]) -> Hint {
        Hint {
            eni: id.parse().unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            slot: EniSlot::new(0, 1),
            subnet: Some((
                "subnet-1".parse().unwrap(),
                SubnetBlocks { ipv4: "10.0.1.0/24".parse().unwrap(), ipv6: None },
            )),
            primary_ip: Some(ip(9)),
            secondary_ips: ips.iter().copied().map(ip).collect(),
            ipv6: None,
            prefixes: Vec::new(),
        }
    }

    fn known(id: &str, ips: &[u8]) -> BTreeMap<EniId, Known> {
        let hint = hint(id, ips);
        let eni = Eni {
            id: hint.eni.clone(),
            mac: hint.mac,
            slot: hint.slot,
            role: EniRole::Secondary,
            kind: EniKind::Interface,
            is_managed: true,
            subnet: "subnet-1".parse().unwrap(),
            subnet_cidr: "10.0.1.0/24".parse().unwrap(),
            primary_ip: ip(9),
            ipv6: None,
            secondary_ips: hint.secondary_ips,
            prefixes: Vec::new(),
        };
        BTreeMap::from([(hint.eni, Known::without_tags(eni))])
    }

    #[test]
    fn an_address_is_believed_once_metadata_has_shown_it_twice_some_seconds_apart() {
        let start = Instant::now();
        let mut sightings = Sightings::default();

        let (first, is_all) = sightings.take_in(vec![hint("eni-1", &[20])], start);
        assert_eq!((first[0].secondary_ips.len(), is_all), (0, false));
        let (soon, _) = sightings.take_in(vec![hint("eni-1", &[20])], start + SETTLES / 2);
        assert!(soon[0].secondary_ips.is_empty());
        let (second, is_all) = sightings.take_in(vec![hint("eni-1", &[20, 21])], start + SETTLES);
        assert_eq!((second[0].secondary_ips.as_slice(), is_all), ([ip(20)].as_slice(), false));
    }

    #[test]
    fn an_address_that_was_away_in_between_begins_anew() {
        let start = Instant::now();
        let mut sightings = Sightings::default();
        sightings.take_in(vec![hint("eni-1", &[20])], start);
        sightings.take_in(vec![hint("eni-1", &[])], start + SETTLES);

        let (back, _) = sightings.take_in(vec![hint("eni-1", &[20])], start + 2 * SETTLES);

        assert!(back[0].secondary_ips.is_empty());
    }

    #[test]
    fn an_eni_that_comes_is_looked_at_once_and_at_once() {
        let mut differences_ = Differences::default();
        let look = || differences(&[hint("eni-2", &[])], &BTreeMap::new(), &BTreeSet::new(), Family::V4);

        assert!(differences_.take_in(look()));
        assert!(!differences_.take_in(look()));
        assert!(!differences_.take_in(look()));
    }

    #[test]
    fn an_address_that_differs_twice_in_a_row_is_looked_at_once() {
        let mut all = Differences::default();
        let look = |ips: &[u8]| {
            differences(&[hint("eni-1", ips)], &known("eni-1", &[20]), &BTreeSet::new(), Family::V4)
        };

        let triggers: Vec<_> = [&[20, 21][..], &[20, 21], &[20, 21], &[20], &[20, 21], &[20], &[], &[]]
            .map(|ips| all.take_in(look(ips)))
            .into();

        assert_eq!(triggers, [false, true, false, false, false, false, false, true]);
    }

    #[test]
    fn an_eni_that_goes_is_missed_at_the_second_look() {
        let mut all = Differences::default();
        let look = || differences(&[], &known("eni-1", &[20]), &BTreeSet::new(), Family::V4);

        assert_eq!([all.take_in(look()), all.take_in(look()), all.take_in(look())], [false, true, false]);
    }

    #[test]
    fn what_stands_on_another_card_is_no_news() {
        let others = BTreeSet::from(["eni-9".parse().unwrap()]);

        assert!(differences(&[hint("eni-9", &[20])], &BTreeMap::new(), &others, Family::V4).is_empty());
    }
}
