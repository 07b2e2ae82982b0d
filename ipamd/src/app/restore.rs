//! A start's beginning: what EC2, the state files and the kernel say, brought together.

use std::time::{Duration, Instant};

use anyhow::Context;
use ec2::{Ec2, Priority};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};
use vpc::Eni;

use super::{SHORT_PATIENCE, START_PATIENCE};
use crate::chain::chain;
use crate::checkpoint::{Checkpoint, Loaded, StateFile};
use crate::clock::Clock;
use crate::executor::{Executor, StepError};
use crate::host::{self, HostHandle};
use crate::pool::{AddressReport, AddressState, EniReport, FailureClass, Journal, Pool, RestoreNote};
use crate::sidecar::{Remembered, Sidecar};

/// What one question to EC2 is given at least.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

/// What is attached to the instance, and who says so.
pub(super) enum Attached {
    /// EC2, or in IMDS-only mode instance metadata, whose word counts there.
    Confirmed(Vec<Eni>),
    /// Instance metadata in EC2's place: good enough for the pods that are there.
    Hinted(Vec<Eni>),
}

impl Attached {
    pub(super) fn enis(&self) -> &[Eni] {
        match self {
            Self::Confirmed(enis) | Self::Hinted(enis) => enis,
        }
    }
}

/// What EC2 says is attached; asked again while time may help. Where pods have addresses already,
/// the daemon is needed for their sake: if EC2 stays silent, what instance metadata shows will do
/// until it speaks.
///
/// # Errors
/// What EC2 said last, with what an operator can do.
pub(super) async fn attached<E: Ec2>(
    executor: &Executor<E>,
    clock: &Clock,
    has_pods: bool,
) -> anyhow::Result<Attached> {
    let began = clock.now();
    let patience = if has_pods { SHORT_PATIENCE } else { START_PATIENCE };
    let mut pause = Duration::from_secs(1);
    loop {
        let left = patience.saturating_sub(clock.now() - began).max(LEAST_PATIENCE);
        let failure = match timeout(left, executor.read_inventory(Priority::WaitingPod)).await {
            Ok(Ok(enis)) => return Ok(Attached::Confirmed(enis)),
            Ok(Err(failure)) => failure,
            Err(_) => {
                StepError { class: FailureClass::Unavailable, message: format!("no answer in {left:?}") }
            }
        };
        let may_pass = matches!(
            failure.class,
            FailureClass::Throttled | FailureClass::Unavailable | FailureClass::AnswerLost
        );
        if !may_pass || clock.now() - began + pause > patience {
            if has_pods {
                match executor.read_hints().await {
                    Ok(enis) => {
                        error!(error = %failure, "EC2 cannot be read; serving the pods that have addresses");
                        return Ok(Attached::Hinted(enis));
                    }
                    Err(error) => warn!(%error, "instance metadata is no help"),
                }
            }
            return Err(failure).context("read from EC2 what is attached to this instance");
        }
        warn!(error = %failure, "waiting for EC2");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(15));
    }
}

/// What the state file holds. What was wrong with it is said, and the file kept aside if possible.
pub(super) fn load(checkpoint: &mut Checkpoint) -> Loaded {
    if let Err(error) = checkpoint.remove_leftovers() {
        warn!(%error, "leftovers of an earlier crash stay");
    }
    let loaded = checkpoint.load();
    for problem in &loaded.problems {
        error!(path = %checkpoint.path().display(), kept = ?loaded.kept_as, %problem, "state file is damaged");
    }
    loaded
}

/// Gives every pod its address back, as far as the witnesses agree.
///
/// # Errors
/// The kernel cannot be read.
pub(super) async fn pool(
    pool: &mut Pool,
    checkpoint: &mut Checkpoint,
    loaded: Loaded,
    sidecar: &Sidecar,
    remembered: &Remembered,
    host: &HostHandle,
    clock: &Clock,
) -> anyhow::Result<()> {
    let evidence = host.evidence().await.context("ask the kernel which addresses are in use")?;
    let journal = Journal {
        // No ADD of another boot is under way.
        is_incomplete: !loaded.problems.is_empty() && !remembered.is_of_another_boot,
        allocations: loaded.allocations,
        cooling: remembered.cooling.clone(),
        quarantined: remembered.quarantined.clone(),
        returning: remembered.returning.clone(),
        // No ADD of another boot is under way, whatever the wall clock was set to meanwhile.
        read_unix_ns: if remembered.is_of_another_boot { i64::MAX } else { clock.moment().unix_ns() },
    };
    let had_allocations = !journal.allocations.is_empty();
    let notes = pool.restore(journal, &host::kernel_view(&evidence), clock.now());
    let mut is_changed = !loaded.problems.is_empty();
    for note in notes {
        match note {
            RestoreNote::StaleRule { address } => {
                info!(%note, "stale rules are removed");
                if let Err(error) = host.remove_pod_rules(address).await {
                    warn!(%address, %error, "stale rules not removed");
                }
            }
            RestoreNote::Freed { .. } | RestoreNote::Contested { .. } => {
                is_changed = true;
                info!(%note, "witnesses compared");
            }
            RestoreNote::Quarantined { .. } | RestoreNote::Pinned { .. } | RestoreNote::InFlight { .. } => {
                warn!(%note, "witnesses disagree")
            }
            RestoreNote::Cleared { .. } => info!(%note, "witnesses compared"),
        }
    }
    report(pool, clock.now());
    if is_changed && (had_allocations || !loaded.problems.is_empty()) {
        let moment = clock.moment();
        // Cooldowns first: an address that has left the state file but rests nowhere could be
        // given to the next pod at once after a crash between the two.
        let written = sidecar
            .record_pool(&pool.cooling(), &pool.quarantined(), moment)
            .and_then(|()| checkpoint.write(&pool.allocations()));
        if let Err(error) = written {
            // The old content is judged in the same way by the next start, and the next ADD or
            // DEL writes anew: no reason to leave the node without a daemon.
            warn!(error = chain(&error), "restored state not written");
        }
    }
    Ok(())
}

/// Says once what the daemon starts with: each ENI, and at the debug level each pod's address.
fn report(pool: &Pool, now: Instant) {
    for eni in pool.report(now).enis {
        let EniReport { id, slot, role, phase, subnet, primary_ip, prefixes, addresses, .. } = eni;
        info!(
            %id, %slot, ?role, ?phase, %subnet, %primary_ip, prefixes = prefixes.len(),
            addresses = addresses.len(), "ENI known"
        );
        for AddressReport { address, state } in addresses {
            if let AddressState::Assigned(allocation) = state {
                debug!(%address, pod = %allocation.pod, "address known");
            }
        }
    }
}
