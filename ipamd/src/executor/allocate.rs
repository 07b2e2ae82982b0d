//! A new ENI: recorded, created with its addresses, attached, tied to the instance's life.
//!
//! The record comes first. Whenever the process dies, the ENI is either attached, or found among
//! the unattached ones of this instance and deleted.

use std::time::Duration;

use ec2::{
    At, AttachEni, CREATED_AT_TAG, Class, CreateEni, Ec2, Ec2Error, EniRecord, NewAddresses, eni_description,
};
use tracing::{info, warn};
use uuid::Uuid;
use vpc::{AttachmentId, Eni, EniId, EniRole, EniSlot};

use super::failure::StepError;
use super::subnets::Candidate;
use super::{Executor, Known};
use crate::clock::Moment;
use crate::durable::WriteError;
use crate::pool::Outcome;
use crate::sidecar::{EniIntent, Sidecar};

/// How often to try deleting an ENI that could not be used.
const DELETE_TRIES: u32 = 5;

impl<E: Ec2> Executor<E> {
    pub(super) async fn allocate_eni(
        &self,
        at: &At<E>,
        slot: EniSlot,
        ips: u32,
    ) -> Result<Outcome, StepError> {
        let _making = self.making.read().await;
        let ips = u16::try_from(ips).unwrap_or(u16::MAX);
        let mut failure = None;
        for candidate in self.candidate_subnets(at).await? {
            match self.allocate_in(at, slot, ips, &candidate).await {
                Ok(eni) => return Ok(Outcome::EniAllocated(eni)),
                Err(Refused::BySubnet(error)) => {
                    warn!(subnet = %candidate.id, %error, "subnet gives no ENI");
                    failure = Some(error);
                }
                Err(Refused::Outright(error)) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(StepError::no_subnet))
    }

    async fn allocate_in(
        &self,
        at: &At<E>,
        slot: EniSlot,
        ips: u16,
        candidate: &Candidate,
    ) -> Result<Eni, Refused> {
        let token = Uuid::new_v4().to_string();
        let moment = self.options.clock.moment();
        let intent = EniIntent {
            slot,
            subnet: candidate.id.clone(),
            ips,
            created_unix_secs: moment.unix_secs(),
            eni: None,
        };
        self.record(&token, Some(intent.clone()))
            .await
            .map_err(|error| Refused::Outright(StepError::not_durable(&error)))?;
        let record = match at.create_eni(&self.wish(&token, ips, candidate, moment)).await {
            Ok(record) => record,
            Err(error) => return Err(self.not_created(&token, error).await),
        };
        info!(eni = %record.id, subnet = %record.subnet, mac = %record.mac, "ENI created");
        let known = EniIntent { eni: Some(record.id.clone()), ..intent };
        if let Err(error) = self.record(&token, Some(known)).await {
            // Not fatal: the record under the token leads to it as well.
            warn!(eni = %record.id, %error, "id of the new ENI not recorded");
        }
        let outcome = self.attach(at, &record, slot).await;
        match outcome {
            Ok(attachment) => {
                let tied = at.set_delete_on_termination(&record.id, &attachment).await;
                if let Err(error) = &tied {
                    // The next start tries again; taking the ENI away would help nobody.
                    warn!(eni = %record.id, %error, "ENI is not deleted with its instance");
                }
                self.forget(&token).await;
                Ok(self.adopt(&record, slot, candidate, tied.is_err().then_some(attachment)))
            }
            Err(error) => {
                if self.delete_unused(at, &record.id).await {
                    self.forget(&token).await;
                }
                Err(Refused::Outright(error))
            }
        }
    }

    fn wish(&self, token: &str, ips: u16, candidate: &Candidate, moment: Moment) -> CreateEni {
        let mut tags = self.eni_tags();
        if let Ok(created_at) = jiff::Timestamp::from_second(moment.unix_secs()) {
            tags.insert(CREATED_AT_TAG.to_owned(), created_at.to_string());
        }
        CreateEni {
            subnet: candidate.id.clone(),
            security_groups: self.security_groups(),
            description: eni_description(&self.instance.instance),
            tags,
            client_token: token.to_owned(),
            addresses: if ips == 0 { NewAddresses::None } else { NewAddresses::SecondaryIps(ips) },
            connection_tracking: self.memory(|memory| memory.connection_tracking),
        }
    }

    async fn not_created(&self, token: &str, error: Ec2Error) -> Refused {
        if !error.may_have_happened() {
            self.forget(token).await;
        }
        match error.class() {
            Class::SubnetExhausted | Class::NoFreePrefix | Class::NotFound | Class::Invalid => {
                Refused::BySubnet(error.into())
            }
            _ => Refused::Outright(error.into()),
        }
    }

    /// Attaches the ENI; where the answer is lost, EC2 is asked what became of it.
    async fn attach(&self, at: &At<E>, record: &EniRecord, slot: EniSlot) -> Result<AttachmentId, StepError> {
        let wish = AttachEni { eni: record.id.clone(), instance: self.instance.instance.clone(), slot };
        let error = match at.attach_eni(&wish).await {
            Ok(attachment) => return Ok(attachment),
            Err(error) => error,
        };
        if error.may_have_happened() || *error.class() == Class::Busy {
            let found = at.enis(std::slice::from_ref(&record.id)).await?;
            let attachment = found.into_iter().find_map(|record| record.attachment);
            if let Some(attachment) = attachment
                .filter(|attachment| attachment.instance == self.instance.instance && attachment.slot == slot)
            {
                return Ok(attachment.id);
            }
        }
        Err(error.into())
    }

    /// Deletes an ENI that could not be attached; says whether it is gone. If not, the record of
    /// the intent stays, and the next inventory deletes it.
    async fn delete_unused(&self, at: &At<E>, eni: &EniId) -> bool {
        for attempt in 1..=DELETE_TRIES {
            match at.delete_eni(eni).await {
                Ok(()) => {
                    info!(%eni, "unused ENI deleted");
                    return true;
                }
                Err(error) if attempt == DELETE_TRIES => {
                    warn!(%eni, %error, "unused ENI not deleted; the next inventory tries again");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(500 << attempt)).await,
            }
        }
        false
    }

    fn adopt(
        &self,
        record: &EniRecord,
        slot: EniSlot,
        candidate: &Candidate,
        survives_instance: Option<AttachmentId>,
    ) -> Eni {
        let eni = Eni {
            id: record.id.clone(),
            mac: record.mac,
            slot,
            role: EniRole::Secondary,
            kind: record.kind,
            is_managed: true,
            subnet: candidate.id.clone(),
            subnet_cidr: candidate.cidr,
            // EC2 gives every IPv4 ENI an address of its own.
            primary_ip: record.primary_ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED),
            secondary_ips: record.secondary_ips.clone(),
            prefixes: record.prefixes.clone(),
        };
        let known = Known {
            eni: eni.clone(),
            security_groups: record.security_groups.clone(),
            tags: record.tags.clone(),
            is_ours: true,
            survives_instance,
        };
        self.memory(|memory| {
            memory.subnet_cidrs.insert(candidate.id.clone(), candidate.cidr);
            memory.enis.insert(eni.id.clone(), known);
        });
        eni
    }

    /// Records an intent, or with none forgets it, off the async threads since disks can stall.
    pub(super) async fn record(&self, token: &str, intent: Option<EniIntent>) -> Result<(), WriteError> {
        let sidecar: std::sync::Arc<Sidecar> = std::sync::Arc::clone(&self.sidecar);
        let token = token.to_owned();
        let written = tokio::task::spawn_blocking(move || match intent {
            Some(intent) => sidecar.record_intent(&token, intent),
            None => sidecar.forget_intent(&token),
        });
        match written.await {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    pub(super) async fn forget(&self, token: &str) {
        if let Err(error) = self.record(token, None).await {
            warn!(%error, "record of an ENI that is done with not removed");
        }
    }
}

/// Why a subnet gave no ENI.
enum Refused {
    /// Another subnet may.
    BySubnet(StepError),
    Outright(StepError),
}
