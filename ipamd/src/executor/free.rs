//! Giving an ENI back: asked of the kernel first, then detached, then deleted.

use std::time::Duration;

use ec2::{At, Class, Ec2};
use tracing::info;
use vpc::EniId;

use super::Executor;
use super::failure::StepError;
use crate::host;
use crate::pool::Outcome;

/// How often to try deleting a detached ENI, which EC2 refuses until the detachment is complete;
/// with the pauses this is about two minutes.
const DELETE_TRIES: u32 = 14;

impl<E: Ec2> Executor<E> {
    pub(super) async fn free_eni(&self, at: &At<E>, id: &EniId) -> Result<Outcome, StepError> {
        let eni = self.known(id)?;
        let record = at.enis(std::slice::from_ref(id)).await?.pop();
        // Asked right before the call, since a pod may have come to the kernel by another hand.
        let evidence = self.host.evidence().await.map_err(|error| StepError::host(id, &error))?;
        let (ips, prefixes) = match &record {
            Some(record) => (&record.secondary_ips, &record.prefixes),
            None => (&eni.secondary_ips, &eni.prefixes),
        };
        let in_use = host::in_use(&evidence, |address| {
            ips.iter().any(|ip| address == *ip) || prefixes.iter().any(|prefix| prefix.contains(address))
        });
        if !in_use.is_empty() {
            return Ok(Outcome::InUse(in_use));
        }
        // Before the link goes, so that the host is not seen to lack what it should not have.
        if let Some((address, _)) = eni.own(self.options.family) {
            let forgotten = self.host.forget_eni(address, eni.route_table()).await;
            forgotten.map_err(|error| StepError::host(id, &error))?;
        }
        if let Some(record) = record {
            let given_back = async {
                if let Some(attachment) = record.attachment {
                    at.detach_eni(&attachment.id).await?;
                }
                delete_detached(at, id).await
            };
            // It may be detached by then, and be nobody's.
            given_back.await.inspect_err(|_| self.leaves_something())?;
        }
        self.memory(|memory| {
            memory.enis.remove(id);
            memory.gone.insert(id.clone());
        });
        info!(eni = %id, "ENI deleted");
        Ok(Outcome::EniFreed)
    }
}

/// Deletes an ENI that is detached, or about to be.
pub(super) async fn delete_detached<E: Ec2>(at: &At<E>, id: &EniId) -> Result<(), StepError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match at.delete_eni(id).await {
            Err(error) if *error.class() == Class::Busy && attempt < DELETE_TRIES => {
                tokio::time::sleep(Duration::from_millis(500 * u64::from(attempt * attempt).min(20))).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}
