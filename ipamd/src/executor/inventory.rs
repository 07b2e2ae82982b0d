//! What EC2 holds for this instance: read, put right where it is ours, cleaned of leftovers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ec2::{AttachmentStatus, Ec2, EniRecord, Priority, Tags};
use ipnet::Ipv4Net;
use tracing::{info, warn};
use vpc::{AttachmentId, Eni, EniId, EniKind, EniRole, EniSlot, SubnetId};

use super::failure::StepError;
use super::free::delete_detached;
use super::{Executor, Known};
use crate::imds::Hint;
use crate::sidecar::EniIntent;

/// The tag by which an operator keeps us away from an ENI.
const NO_MANAGE_TAG: &str = "node.k8s.amazonaws.com/no_manage";

impl<E: Ec2> Executor<E> {
    /// Everything attached to the pool's network card. Deletes on the way what was made for this
    /// instance and is attached to nothing.
    ///
    /// # Errors
    /// [`StepError`] if EC2 does not say what is attached.
    pub(crate) async fn read_inventory(&self) -> Result<Vec<Eni>, StepError> {
        let _nothing_is_being_made = self.making.write().await;
        let at = self.ec2.at(Priority::Reconcile);
        let hints = self.facts.attached().await.unwrap_or_else(|error| {
            warn!(%error, "instance metadata does not list ENIs; EC2 alone will do");
            Vec::new()
        });
        let shown: Vec<EniId> = hints.iter().map(|hint| hint.eni.clone()).collect();
        let (records, ()) =
            tokio::join!(at.attached_enis(&self.instance.instance, &shown), self.delete_leftovers());
        // One that is being detached has no link any more and comes to nobody's aid. EC2 shows it
        // as attached until it is gone, and whoever began that may have died meanwhile.
        let (leaving, records): (Vec<_>, Vec<_>) = records?.into_iter().partition(is_leaving);
        self.see_off(leaving);
        let cidrs = self.subnet_cidrs(&hints, &records).await;
        let mut enis = BTreeMap::new();
        for record in records {
            match self.known_of(&record, &cidrs) {
                Some(known) if known.eni.slot.card.0 == self.options.card => {
                    enis.insert(record.id.clone(), known);
                }
                Some(_) => {}
                None => warn!(eni = %record.id, "ENI without an IPv4 address or subnet is left alone"),
            }
            if record.attachment.as_ref().is_some_and(|attachment| attachment.slot == EniSlot::PRIMARY) {
                self.memory(|memory| memory.connection_tracking = record.connection_tracking);
            }
        }
        let seen = enis.values().map(|known| known.eni.clone()).collect();
        self.memory(|memory| {
            memory.enis = enis;
            memory.subnet_cidrs.extend(cidrs);
        });
        Ok(seen)
    }

    /// Tags what lacks our tags, ties ENIs of ours to the instance's life, and gives them the
    /// security groups of the primary ENI. Asks EC2 only where something differs.
    pub(crate) async fn put_right(&self) {
        if !self.options.may_provision {
            return;
        }
        let at = self.ec2.at(Priority::Reconcile);
        let (wanted_tags, wanted_groups) = (self.eni_tags(), self.security_groups());
        let enis: Vec<_> = self.memory(|memory| memory.enis.values().cloned().collect());
        for known in enis.into_iter().filter(|known| known.eni.is_managed && known.eni.kind != EniKind::Trunk)
        {
            let id = &known.eni.id;
            let missing: Tags = wanted_tags
                .iter()
                .filter(|(key, value)| known.tags.get(*key) != Some(*value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            if !missing.is_empty() {
                match at.tag(id, &missing).await {
                    Ok(()) => self.change(id, |known| known.tags.extend(missing)),
                    Err(error) => warn!(eni = %id, %error, "ENI not tagged"),
                }
            }
            if let Some(attachment) = &known.survives_instance
                && known.is_ours
            {
                match at.set_delete_on_termination(id, attachment).await {
                    Ok(()) => self.change(id, |known| known.survives_instance = None),
                    Err(error) => warn!(eni = %id, %error, "ENI is not deleted with its instance"),
                }
            }
            let mut groups = known.security_groups.clone();
            groups.sort();
            if known.is_ours && known.eni.role == EniRole::Secondary && groups != wanted_groups {
                match at.set_security_groups(id, &wanted_groups).await {
                    Ok(()) => {
                        info!(eni = %id, "security groups follow the primary ENI");
                        self.change(id, |known| known.security_groups.clone_from(&wanted_groups));
                    }
                    Err(error) => warn!(eni = %id, %error, "security groups not set"),
                }
            }
        }
    }

    /// Looks once more for ENIs whose making was recorded by an earlier process, and then forgets
    /// the records. To be called when EC2 has had time to show what it made.
    pub(crate) async fn resolve_intents(&self, intents: &BTreeMap<String, EniIntent>) {
        let _nothing_is_being_made = self.making.write().await;
        self.delete_leftovers().await;
        for token in intents.keys() {
            self.forget(token).await;
        }
    }

    /// Deletes the ENIs that were made for this instance and are attached to nothing. Nothing is
    /// being made meanwhile, so nobody will miss them.
    async fn delete_leftovers(&self) {
        if !self.options.may_provision {
            return;
        }
        let at = self.ec2.at(Priority::Sweep);
        let cluster = self.options.cluster_name.as_deref();
        let found = match at.unattached_enis_of(&self.instance.instance, &self.instance.vpc, cluster).await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "ENIs without an owner not looked for");
                return;
            }
        };
        for record in found {
            match at.delete_eni(&record.id).await {
                Ok(()) => info!(eni = %record.id, "ENI without an owner deleted"),
                Err(error) => warn!(eni = %record.id, %error, "ENI without an owner not deleted"),
            }
        }
    }

    /// Deletes, in the background, ENIs of ours that are being detached, unless a step does that.
    fn see_off(&self, leaving: Vec<EniRecord>) {
        let is_ours = |record: &EniRecord| record.was_made_for(&self.instance.instance);
        for record in leaving.into_iter().filter(|record| self.options.may_provision && is_ours(record)) {
            let is_news = self.memory(|memory| {
                !memory.enis.contains_key(&record.id) && memory.leaving.insert(record.id.clone())
            });
            if is_news {
                let at = self.ec2.at(Priority::Sweep);
                tokio::spawn(async move {
                    match delete_detached(&at, &record.id).await {
                        Ok(()) => info!(eni = %record.id, "ENI that was being detached is deleted"),
                        Err(error) => warn!(eni = %record.id, %error, "ENI that was being detached stays"),
                    }
                });
            }
        }
    }

    fn change(&self, id: &EniId, edit: impl FnOnce(&mut Known)) {
        self.memory(|memory| {
            if let Some(known) = memory.enis.get_mut(id) {
                edit(known);
            }
        });
    }

    /// The IPv4 blocks of all subnets that the ENIs lie in, as far as anybody knows them.
    async fn subnet_cidrs(&self, hints: &[Hint], records: &[EniRecord]) -> BTreeMap<SubnetId, Ipv4Net> {
        let mut cidrs = self.memory(|memory| memory.subnet_cidrs.clone());
        cidrs.extend(hints.iter().filter_map(|hint| hint.subnet.clone()));
        if records.iter().any(|record| !cidrs.contains_key(&record.subnet)) {
            let at = self.ec2.at(Priority::Reconcile);
            match at.subnets(&self.instance.vpc, &self.instance.availability_zone).await {
                Ok(found) => {
                    cidrs.extend(found.into_iter().filter_map(|subnet| Some((subnet.id, subnet.ipv4_cidr?))));
                }
                Err(error) => warn!(%error, "the block of a subnet is not known"),
            }
        }
        cidrs
    }

    fn known_of(&self, record: &EniRecord, cidrs: &BTreeMap<SubnetId, Ipv4Net>) -> Option<Known> {
        let attachment = record.attachment.as_ref()?;
        let is_primary = record.id == self.instance.primary_eni;
        let eni = Eni {
            id: record.id.clone(),
            mac: record.mac,
            slot: attachment.slot,
            role: if is_primary { EniRole::Primary } else { EniRole::Secondary },
            kind: record.kind,
            is_managed: is_primary || (record.kind != EniKind::EfaOnly && self.is_managed(&record.tags)),
            subnet: record.subnet.clone(),
            subnet_cidr: *cidrs.get(&record.subnet)?,
            primary_ip: own_address(record)?,
            secondary_ips: record.secondary_ips.clone(),
            prefixes: record.prefixes.clone(),
        };
        Some(Known {
            eni,
            security_groups: record.security_groups.clone(),
            tags: record.tags.clone(),
            is_ours: record.was_made_for(&self.instance.instance),
            survives_instance: survivor(attachment.delete_on_termination, &attachment.id),
        })
    }

    fn is_managed(&self, tags: &Tags) -> bool {
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

/// The ENI's own address. An EFA-only one has none, and takes its position all the same.
fn own_address(record: &EniRecord) -> Option<Ipv4Addr> {
    let none_needed = (record.kind == EniKind::EfaOnly).then_some(Ipv4Addr::UNSPECIFIED);
    record.primary_ip.or(none_needed)
}
