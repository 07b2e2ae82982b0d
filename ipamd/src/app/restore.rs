//! A start's beginning: what EC2, the state files and the kernel say, brought together.

use std::time::Instant;

use anyhow::Context;
use ec2::Ec2;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};
use vpc::Eni;

use super::START_PATIENCE;
use crate::chain::chain;
use crate::checkpoint::{Checkpoint, StateFile};
use crate::clock::Clock;
use crate::executor::Executor;
use crate::host::{self, HostHandle};
use crate::pool::{AddressReport, AddressState, EniReport, FailureClass, Journal, Pool, RestoreNote};
use crate::sidecar::{Remembered, Sidecar};

/// What EC2 says is attached; asked again while time may help.
///
/// # Errors
/// What EC2 said last, with what an operator can do.
pub(super) async fn inventory<E: Ec2>(executor: &Executor<E>, clock: &Clock) -> anyhow::Result<Vec<Eni>> {
    let began = clock.now();
    let mut pause = std::time::Duration::from_secs(1);
    loop {
        let failure = match executor.read_inventory().await {
            Ok(enis) => return Ok(enis),
            Err(failure) => failure,
        };
        let may_pass = matches!(
            failure.class,
            FailureClass::Throttled | FailureClass::Unavailable | FailureClass::AnswerLost
        );
        if !may_pass || clock.now() - began + pause > START_PATIENCE {
            return Err(failure).context("read from EC2 what is attached to this instance");
        }
        warn!(error = %failure, "waiting for EC2");
        sleep(pause).await;
        pause = (pause * 2).min(std::time::Duration::from_secs(15));
    }
}

/// Gives every pod its address back, as far as the witnesses agree.
///
/// # Errors
/// The kernel cannot be read, or a damaged state file cannot be kept.
pub(super) async fn pool(
    pool: &mut Pool,
    checkpoint: &mut Checkpoint,
    sidecar: &Sidecar,
    remembered: &Remembered,
    host: &HostHandle,
    clock: &Clock,
) -> anyhow::Result<()> {
    if let Err(error) = checkpoint.remove_leftovers() {
        warn!(%error, "leftovers of an earlier crash stay");
    }
    let loaded = checkpoint.load().context("keep the damaged state file aside")?;
    for problem in &loaded.problems {
        error!(path = %checkpoint.path().display(), kept = ?loaded.kept_as, %problem, "state file is damaged");
    }
    let evidence = host.evidence().await.context("ask the kernel which addresses are in use")?;
    let journal = Journal {
        allocations: loaded.allocations,
        cooling: remembered.cooling.clone(),
        quarantined: remembered.quarantined.clone(),
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
