//! A new ENI: recorded, created with its addresses, attached, tied to the instance's life.
//!
//! The record comes first. Whenever the process dies, the ENI is either attached, or found among
//! the unattached ones of this instance and deleted.

use std::time::Duration;

use ec2::{At, AttachEni, CREATED_AT_TAG, Class, CreateEni, Ec2, EniRecord, NewAddresses, eni_description};
use tracing::{info, warn};
use vpc::{AttachmentId, Eni, EniId, EniRole, EniSlot, SecurityGroupId, SubnetBlocks, SubnetId};

use super::failure::StepError;
use super::{Executor, Known};
use crate::clock::Moment;
use crate::durable::WriteError;
use crate::pool::{BlockKind, Blocks, Outcome};
use crate::sidecar::{EniIntent, Sidecar};

/// How often to try deleting an ENI that could not be used.
const DELETE_TRIES: u32 = 5;

/// A new ENI, as the pool wants it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) slot: EniSlot,
    pub(super) subnet: &'a SubnetId,
    /// None for those of the primary ENI.
    pub(super) security_groups: Option<&'a [SecurityGroupId]>,
    pub(super) blocks: Blocks,
}

impl<E: Ec2> Executor<E> {
    pub(super) async fn allocate_eni(&self, at: &At<E>, wish: Wish<'_>) -> Result<Outcome, StepError> {
        let _making = self.making.read().await;
        let blocks = self
            .subnet_blocks_of(at, wish.subnet)
            .await?
            .ok_or_else(|| StepError::unknown_subnet(wish.subnet))?;
        let token = (self.options.new_token)();
        let moment = self.moment();
        let intent = EniIntent {
            slot: wish.slot,
            subnet: wish.subnet.clone(),
            ips: count_of(wish.blocks, BlockKind::Ip),
            prefixes: count_of(wish.blocks, BlockKind::Prefix),
            created_unix_secs: moment.unix_secs(),
            eni: None,
        };
        self.record(&token, Some(intent.clone()))
            .await
            .map_err(|error| StepError::not_durable(&"make an ENI", &error))?;
        let record = match at.create_eni(&self.request(&token, wish, moment)).await {
            Ok(record) => record,
            Err(error) => {
                if error.may_have_happened() {
                    self.leaves_something();
                } else {
                    self.forget(&token).await;
                }
                return Err(StepError::in_subnet(wish.subnet, error));
            }
        };
        info!(eni = %record.id, subnet = %record.subnet, mac = %record.mac, "ENI created");
        let known = EniIntent { eni: Some(record.id.clone()), ..intent };
        if let Err(error) = self.record(&token, Some(known)).await {
            // Not fatal: the record under the token leads to it as well.
            warn!(eni = %record.id, %error, "id of the new ENI not recorded");
        }
        match self.attach(at, &record, wish.slot).await {
            Ok(attachment) => {
                let tied = at.set_delete_on_termination(&record.id, &attachment).await;
                if let Err(error) = &tied {
                    // The next start tries again; taking the ENI away would help nobody.
                    warn!(eni = %record.id, %error, "ENI is not deleted with its instance");
                }
                self.forget(&token).await;
                let survivor = tied.is_err().then_some(attachment);
                Ok(Outcome::EniAllocated(self.adopt(&record, wish, blocks, survivor)))
            }
            Err(error) => {
                if self.delete_unused(at, &record.id).await {
                    self.forget(&token).await;
                } else {
                    self.leaves_something();
                }
                Err(error)
            }
        }
    }

    fn request(&self, token: &str, wish: Wish<'_>, moment: Moment) -> CreateEni {
        let mut tags = self.eni_tags();
        if let Ok(created_at) = jiff::Timestamp::from_second(moment.unix_secs()) {
            tags.insert(CREATED_AT_TAG.to_owned(), created_at.to_string());
        }
        CreateEni {
            subnet: wish.subnet.clone(),
            security_groups: wish.security_groups.map_or_else(|| self.security_groups(), <[_]>::to_vec),
            description: eni_description(&self.instance.instance),
            tags,
            client_token: token.to_owned(),
            addresses: match wish.blocks {
                blocks if blocks.count() == 0 => NewAddresses::None,
                Blocks::Ips(count) => NewAddresses::SecondaryIps(to_u16(count)),
                Blocks::Prefixes(count) => NewAddresses::Ipv4Prefixes(to_u16(count)),
                // EC2 gives a new ENI addresses or prefixes of IPv6, not both, and it needs one of
                // its own. The pool asks for the prefix when the ENI is there.
                Blocks::Ipv6Prefixes(_) => NewAddresses::Ipv6Address,
            },
            connection_tracking: self.memory(|memory| memory.connection_tracking),
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
    /// the intent stays, and the next look for leftovers deletes it.
    async fn delete_unused(&self, at: &At<E>, eni: &EniId) -> bool {
        for attempt in 1..=DELETE_TRIES {
            match at.delete_eni(eni).await {
                Ok(()) => {
                    info!(%eni, "unused ENI deleted");
                    return true;
                }
                Err(error) if attempt == DELETE_TRIES => {
                    warn!(%eni, %error, "unused ENI not deleted; it is tried again later");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(500 << attempt)).await,
            }
        }
        false
    }

    fn adopt(
        &self,
        record: &EniRecord,
        wish: Wish<'_>,
        blocks: SubnetBlocks,
        survives_instance: Option<AttachmentId>,
    ) -> Eni {
        let eni = Eni {
            id: record.id.clone(),
            mac: record.mac,
            slot: wish.slot,
            role: EniRole::Secondary,
            kind: record.kind,
            is_managed: true,
            subnet: wish.subnet.clone(),
            subnet_cidr: blocks.ipv4,
            // EC2 gives every IPv4 ENI an address of its own.
            primary_ip: record.primary_ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED),
            ipv6: record.ipv6_addresses.first().copied().zip(blocks.ipv6),
            secondary_ips: record.secondary_ips.clone(),
            prefixes: record.prefixes.clone(),
        };
        let known = Known {
            eni: eni.clone(),
            security_groups: record.security_groups.clone(),
            tags: Some(record.tags.clone()),
            is_ours: true,
            survives_instance,
        };
        self.memory(|memory| {
            memory.enis.insert(eni.id.clone(), known);
        });
        eni
    }

    /// Records an intent, or with none forgets it, off the async threads since disks can stall.
    pub(super) async fn record(&self, token: &str, intent: Option<EniIntent>) -> Result<(), WriteError> {
        let sidecar: std::sync::Arc<Sidecar> = std::sync::Arc::clone(&self.sidecar);
        let token = token.to_owned();
        let written = move || match intent {
            Some(intent) => sidecar.record_intent(&token, intent),
            None => sidecar.forget_intent(&token),
        };
        self.sidecar.offload().run(written).await
    }

    pub(super) async fn forget(&self, token: &str) {
        if let Err(error) = self.record(token, None).await {
            warn!(%error, "record of an ENI that is done with not removed");
        }
    }
}

/// How many blocks of one kind there are; EC2 counts them in 16 bits.
fn count_of(blocks: Blocks, kind: BlockKind) -> u16 {
    if blocks.kind() == kind { to_u16(blocks.count()) } else { 0 }
}

/// No ENI holds more than EC2 can count.
pub(super) fn to_u16(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
