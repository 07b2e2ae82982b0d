//! What EC2 holds for this instance: read, and put right where it is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ec2::{At, AttachmentStatus, Ec2, EniRecord, Priority, Tags};
use ipnet::Ipv4Net;
use tracing::{info, warn};
use vpc::{AttachmentId, Eni, EniId, EniKind, EniRole, EniSlot, SubnetBlocks, SubnetId};

use super::failure::StepError;
use super::subnets::blocks_of;
use super::{Executor, Known};
use crate::imds::Hint;

/// How long to rest after a repair that failed, twice as long each further time, up to the longest.
const REPAIR_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_REPAIR_PAUSE: Duration = Duration::from_secs(3600);

/// The tag by which an operator keeps us away from an ENI.
const NO_MANAGE_TAG: &str = "node.k8s.amazonaws.com/no_manage";

impl<E: Ec2> Executor<E> {
    /// Everything attached to the pool's network card. What was made for this instance and is
    /// attached to nothing is looked for afterwards, by [`Executor::clear_leftovers`]: nobody should
    /// wait for that. Those who ask together share one look.
    ///
    /// # Errors
    /// [`StepError`] if EC2, or in IMDS-only mode instance metadata, does not say what is attached.
    pub(crate) async fn read_inventory(&self, priority: Priority) -> Result<Vec<Eni>, StepError> {
        self.inventories
            .read(async {
                if self.trusts_metadata() {
                    self.read_metadata().await
                } else {
                    self.read_ec2(&self.ec2.at(priority)).await
                }
            })
            .await
    }

    async fn read_ec2(&self, at: &At<E>) -> Result<Vec<Eni>, StepError> {
        let _nothing_is_being_made = self.making.write().await;
        self.memory(|memory| memory.looks_for_leftovers = true);
        let hints = self.facts.attached().await.unwrap_or_else(|error| {
            warn!(%error, "instance metadata does not list ENIs; EC2 alone will do");
            Vec::new()
        });
        let shown: Vec<EniId> = hints.iter().map(|hint| hint.eni.clone()).collect();
        let records = at.attached_enis(&self.instance.instance, &shown).await?;
        // One that is being detached has no link any more and comes to nobody's aid. EC2 shows it
        // as attached until it is gone, and whoever began that may have died meanwhile.
        let (leaving, records): (Vec<_>, Vec<_>) = records.into_iter().partition(is_leaving);
        self.see_off(leaving);
        let blocks = self.subnet_blocks(at, &hints, &records).await;
        let (mut enis, mut others) = (BTreeMap::new(), BTreeSet::new());
        for record in records {
            match self.known_of(&record, &blocks) {
                Some(known) if known.eni.slot.card.0 == self.options.card => {
                    enis.insert(record.id.clone(), known);
                }
                Some(_) => {
                    others.insert(record.id.clone());
                }
                None => {
                    warn!(eni = %record.id, "ENI in a subnet whose block nobody knows is left alone");
                    others.insert(record.id.clone());
                }
            }
            if record.attachment.as_ref().is_some_and(|attachment| attachment.slot == EniSlot::PRIMARY) {
                self.memory(|memory| memory.connection_tracking = record.connection_tracking);
            }
        }
        let seen = enis.values().map(|known| known.eni.clone()).collect();
        self.memory(|memory| {
            memory.enis = enis;
            memory.others = others;
            memory.subnet_blocks.extend(blocks);
        });
        Ok(seen)
    }

    /// Tags what lacks our tags, ties ENIs of ours to the instance's life, and gives them the
    /// security groups of the primary ENI, unless custom networking names others. Asks EC2 only where something differs, so it can be
    /// called often; after a failure it rests, the longer the more often it failed.
    pub(crate) async fn put_right(&self) {
        let now = self.moment().instant();
        if !self.options.access.may_change() || self.memory(|memory| memory.repair_rests_until > Some(now)) {
            return;
        }
        let failures = self.repair().await;
        self.memory(|memory| {
            memory.failed_repairs = if failures == 0 { 0 } else { memory.failed_repairs.saturating_add(1) };
            let pause = REPAIR_PAUSE * 2_u32.saturating_pow(memory.failed_repairs.saturating_sub(1).min(10));
            memory.repair_rests_until = (failures > 0).then(|| now + pause.min(LONGEST_REPAIR_PAUSE));
        });
    }

    /// The primary ENI has other security groups now: ours get them at once.
    pub(crate) async fn follow_security_groups(&self) {
        self.memory(|memory| memory.repair_rests_until = None);
        self.put_right().await;
    }

    /// Gives the number of things that could not be put right.
    async fn repair(&self) -> usize {
        let mut failures = 0;
        let at = self.ec2.at(Priority::Reconcile);
        let (wanted_tags, wanted_groups) = (self.eni_tags(), self.security_groups());
        let enis: Vec<_> = self.memory(|memory| memory.enis.values().cloned().collect());
        for known in enis.into_iter().filter(|known| known.eni.is_managed && known.eni.kind != EniKind::Trunk)
        {
            let id = &known.eni.id;
            let Some(tags) = known.tags else { continue };
            let missing: Tags = wanted_tags
                .iter()
                .filter(|(key, value)| tags.get(*key) != Some(*value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            if !missing.is_empty() {
                match at.tag(id, &missing).await {
                    Ok(()) => self.change(id, |known| known.tags.get_or_insert_default().extend(missing)),
                    Err(error) => {
                        failures += 1;
                        warn!(eni = %id, %error, "ENI not tagged");
                    }
                }
            }
            if let Some(attachment) = &known.survives_instance
                && known.is_ours
            {
                match at.set_delete_on_termination(id, attachment).await {
                    Ok(()) => self.change(id, |known| known.survives_instance = None),
                    Err(error) => {
                        failures += 1;
                        warn!(eni = %id, %error, "ENI is not deleted with its instance");
                    }
                }
            }
            let mut groups = known.security_groups.clone();
            groups.sort();
            let follows = known.is_ours && known.eni.role == EniRole::Secondary && !self.options.is_custom;
            if follows && groups != wanted_groups {
                match at.set_security_groups(id, &wanted_groups).await {
                    Ok(()) => {
                        info!(eni = %id, "security groups follow the primary ENI");
                        self.change(id, |known| known.security_groups.clone_from(&wanted_groups));
                    }
                    Err(error) => {
                        failures += 1;
                        warn!(eni = %id, %error, "security groups not set");
                    }
                }
            }
        }
        failures
    }

    fn change(&self, id: &EniId, edit: impl FnOnce(&mut Known)) {
        self.memory(|memory| {
            if let Some(known) = memory.enis.get_mut(id) {
                edit(known);
            }
        });
    }

    /// The blocks of all subnets that the ENIs lie in, as far as anybody knows them.
    async fn subnet_blocks(
        &self,
        at: &At<E>,
        hints: &[Hint],
        records: &[EniRecord],
    ) -> BTreeMap<SubnetId, SubnetBlocks> {
        let mut blocks = self.memory(|memory| memory.subnet_blocks.clone());
        blocks.extend(hints.iter().filter_map(|hint| hint.subnet.clone()));
        if records.iter().any(|record| !blocks.contains_key(&record.subnet)) {
            match at.subnets(&self.instance.vpc, &self.instance.availability_zone).await {
                Ok(found) => {
                    blocks.extend(found.into_iter().filter_map(|subnet| blocks_of(&subnet)));
                }
                Err(error) => warn!(%error, "the block of a subnet is not known"),
            }
        }
        blocks
    }

    fn known_of(&self, record: &EniRecord, blocks: &BTreeMap<SubnetId, SubnetBlocks>) -> Option<Known> {
        let attachment = record.attachment.as_ref()?;
        let is_primary = record.id == self.instance.primary_eni;
        // One without an IPv4 address, like an EFA-only one, serves no pod, and takes its position
        // all the same.
        let own_address = record.primary_ip.filter(|_| record.kind != EniKind::EfaOnly);
        let blocks = match own_address {
            Some(_) => *blocks.get(&record.subnet)?,
            None => SubnetBlocks { ipv4: Ipv4Net::default(), ipv6: None },
        };
        let eni = Eni {
            id: record.id.clone(),
            mac: record.mac,
            slot: attachment.slot,
            role: if is_primary { EniRole::Primary } else { EniRole::Secondary },
            kind: record.kind,
            is_managed: is_primary || (own_address.is_some() && self.is_managed(&record.tags)),
            subnet: record.subnet.clone(),
            subnet_cidr: blocks.ipv4,
            primary_ip: own_address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            ipv6: record.ipv6_addresses.first().copied().zip(blocks.ipv6),
            secondary_ips: record.secondary_ips.clone(),
            prefixes: record.prefixes.clone(),
        };
        Some(Known {
            eni,
            security_groups: record.security_groups.clone(),
            tags: Some(record.tags.clone()),
            is_ours: record.was_made_for(&self.instance.instance),
            survives_instance: survivor(attachment.delete_on_termination, &attachment.id),
        })
    }

    pub(super) fn is_managed(&self, tags: &Tags) -> bool {
        match tags.get(NO_MANAGE_TAG).map(String::as_str) {
            Some("true") => false,
            Some(_) => true,
            None => {
                let owner = tags.get(ec2::INSTANCE_TAG).map(String::as_str);
                owner == Some(self.instance.instance.as_str()) || self.options.manages_untagged_enis
            }
        }
    }
}

fn is_leaving(record: &EniRecord) -> bool {
    let status = record.attachment.as_ref().map(|attachment| attachment.status);
    matches!(status, Some(AttachmentStatus::Detaching | AttachmentStatus::Detached))
}

fn survivor(delete_on_termination: bool, attachment: &AttachmentId) -> Option<AttachmentId> {
    (!delete_on_termination).then(|| attachment.clone())
}
