//! The look at the kernel that giving addresses back depends on: made when EC2's turn has come, since
//! a request may wait for that, and a pod may come to the kernel by another hand.

use std::sync::{Arc, Mutex, PoisonError};

use ec2::{At, Ec2};
use vpc::{Eni, EniId, Family};

use super::failure::StepError;
use crate::host::{self, HostHandle};
use crate::pool::{Block, FailureClass, Outcome};

/// What the kernel is asked, and what it said last.
#[derive(Debug, Clone)]
pub(super) struct Look {
    host: HostHandle,
    eni: EniId,
    blocks: Vec<Block>,
    /// The host lets go of it before EC2 takes it back.
    leaving: Option<(Eni, Family)>,
    /// What was in the way at the last look before a request.
    last: Arc<Mutex<Option<Result<Outcome, StepError>>>>,
}

impl Look {
    /// Whether anything uses these blocks of an ENI.
    pub(super) fn at_blocks(host: &HostHandle, eni: &EniId, blocks: Vec<Block>) -> Self {
        Self { host: host.clone(), eni: eni.clone(), blocks, leaving: None, last: Arc::default() }
    }

    /// The same; where nothing does, the host lets go of the ENI.
    pub(super) fn and_let_go(self, eni: &Eni, family: Family) -> Self {
        Self { leaving: Some((eni.clone(), family)), ..self }
    }

    /// The client whose requests are sent only if nothing is in the way when they have their turn.
    pub(super) fn before<E: Ec2>(&self, at: &At<E>) -> At<E> {
        let look = self.clone();
        at.clone().only_if(move || {
            let look = look.clone();
            async move {
                let obstacle = look.obstacle().await;
                let is_clear = obstacle.is_none();
                *look.last.lock().unwrap_or_else(PoisonError::into_inner) = obstacle;
                is_clear
            }
        })
    }

    /// Looks, and lets go if nothing is in the way; else what the step comes to.
    pub(super) async fn obstacle(&self) -> Option<Result<Outcome, StepError>> {
        let evidence = match self.host.evidence().await {
            Ok(evidence) => evidence,
            Err(error) => return Some(Err(StepError::host(&self.eni, &error))),
        };
        let in_use =
            host::in_use(&evidence, |address| self.blocks.iter().any(|block| block.contains(address)));
        if !in_use.is_empty() {
            return Some(Ok(Outcome::InUse(in_use)));
        }
        // Before the link goes, so that the host is not seen to lack what it should not have.
        let (eni, family) = self.leaving.as_ref()?;
        let (address, _) = eni.own(*family)?;
        let forgotten = self.host.forget_eni(address, eni.route_table()).await;
        forgotten.err().map(|error| Err(StepError::host(&self.eni, &error)))
    }

    /// What came of a request that failed: what was in the way, unless EC2 may have done it before.
    pub(super) fn explain(&self, error: StepError) -> Result<Outcome, StepError> {
        let obstacle = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        obstacle.filter(|_| error.class != FailureClass::AnswerLost).unwrap_or(Err(error))
    }
}
