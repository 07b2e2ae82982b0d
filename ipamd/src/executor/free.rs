//! Giving an ENI back: asked of the kernel first, then detached, then deleted.

use std::sync::Arc;
use std::time::Duration;

use ec2::{At, Class, Ec2, EniRecord};
use tracing::info;
use vpc::{Eni, EniId};

use super::Executor;
use super::failure::StepError;
use super::look::Look;
use crate::pool::{Block, FailureClass, Outcome};

/// How often to try deleting a detached ENI, which EC2 refuses until the detachment is complete;
/// with the pauses this is about two minutes.
const DELETE_TRIES: u32 = 14;

impl<E: Ec2> Executor<E> {
    pub(super) async fn free_eni(&self, at: &At<E>, id: &EniId) -> Result<Outcome, StepError> {
        let eni = self.known(id)?;
        let record = at.enis(std::slice::from_ref(id)).await?.pop();
        if let Some(record) = &record {
            self.may_free(record)?;
        }
        self.returning(id, None, self.free_unless_used(at, &eni, record)).await
    }

    /// Whether the ENI is still ours to give back: an operator may have moved it or taken it out of
    /// our hands since the pool heard of it, and instance metadata does not tell.
    ///
    /// # Errors
    /// [`StepError`] that has the pool look at EC2 again.
    fn may_free(&self, record: &EniRecord) -> Result<(), StepError> {
        let instance = &self.instance.instance;
        match &record.attachment {
            Some(attachment) if attachment.instance != *instance => {
                let what = format!("it is attached to {} now", attachment.instance);
                return Err(StepError::not_ours(&record.id, &what));
            }
            None if !record.was_made_for(instance) => {
                return Err(StepError::not_ours(&record.id, &"somebody else has detached it"));
            }
            _ => {}
        }
        if self.is_managed(&record.tags) {
            return Ok(());
        }
        Err(StepError::not_ours(&record.id, &"its tags keep the daemon from it"))
    }

    async fn free_unless_used(
        &self,
        at: &At<E>,
        eni: &Eni,
        record: Option<EniRecord>,
    ) -> Result<Outcome, StepError> {
        let id = &eni.id;
        let (ips, prefixes) = match &record {
            Some(record) => (&record.secondary_ips, &record.prefixes),
            None => (&eni.secondary_ips, &eni.prefixes),
        };
        let blocks = ips.iter().copied().map(Block::Ip).chain(prefixes.iter().copied().map(Block::Prefix));
        let look = Look::at_blocks(&self.host, id, blocks.collect()).and_let_go(eni, self.options.family);
        if let Some(attachment) = record.as_ref().and_then(|record| record.attachment.as_ref()) {
            if let Err(error) = look.before(at).detach_eni(&attachment.id).await {
                return look.explain(error.into()).inspect_err(|_| self.leaves_something());
            }
        } else if let Some(obstacle) = look.obstacle().await {
            return obstacle;
        }
        if record.is_some() {
            // It is detached by then, and nobody's.
            delete_detached(at, id).await.inspect_err(|_| self.leaves_something())?;
        }
        self.memory(|memory| {
            memory.enis.remove(id);
            memory.gone.insert(id.clone());
        });
        info!(eni = %id, "ENI deleted");
        Ok(Outcome::EniFreed)
    }

    /// Does `work`, which has EC2 take back blocks of an ENI or with none the ENI, after a record of
    /// it: should the process be killed meanwhile, the next one gives none of it to a pod before EC2
    /// has had its time.
    pub(super) async fn returning(
        &self,
        eni: &EniId,
        blocks: Option<&[Block]>,
        work: impl Future<Output = Result<Outcome, StepError>>,
    ) -> Result<Outcome, StepError> {
        let what = (eni.clone(), blocks.map(<[_]>::to_vec));
        let offload = self.sidecar.offload();
        let (sidecar, (eni, blocks), moment) = (Arc::clone(&self.sidecar), what.clone(), self.moment());
        let recorded = offload.run(move || sidecar.record_return(&eni, blocks.as_deref(), moment)).await;
        recorded.map_err(|error| StepError::not_durable(&format!("return what {} holds", what.0), &error))?;
        let outcome = work.await;
        let is_clear = !matches!(&outcome, Err(error) if error.class == FailureClass::AnswerLost);
        if is_clear {
            let (sidecar, (eni, blocks)) = (Arc::clone(&self.sidecar), what);
            offload.run(move || sidecar.settle_return(&eni, blocks.as_deref())).await;
        }
        outcome
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
