//! The thread that writes the state files, so that no reply but its own waits for the disk.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::chain::chain;
use crate::checkpoint::StateFile;
use crate::clock::Clock;
use crate::durable::Offload;
use crate::pool::{Allocation, QuarantineReason};
use crate::sidecar::Sidecar;

/// What came of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// It is durable.
    Whole,
    /// Only the second file is not written, for this reason: pods have what they were promised, and
    /// a restart may forget cooldowns and what is held back.
    WithoutSecond(String),
    /// The state file is not written, for this reason.
    Failed(String),
}

struct Job {
    /// None if only the second file changes.
    allocations: Option<Vec<Allocation>>,
    cooling: Vec<(IpAddr, Instant)>,
    quarantined: Vec<(IpAddr, QuarantineReason)>,
}

/// The two files, in the hands of whoever writes them.
struct Files<S> {
    state: S,
    sidecar: Arc<Sidecar>,
    clock: Clock,
}

impl<S: StateFile> Files<S> {
    fn write(&mut self, job: &Job) -> Written {
        // Cooldowns first: an address that has left the state file but rests nowhere could be
        // given to the next pod at once after a crash between the two.
        let second = self.sidecar.record_pool(&job.cooling, &job.quarantined, self.clock.moment());
        if let Some(allocations) = &job.allocations
            && let Err(error) = self.state.write(allocations)
        {
            return Written::Failed(chain(&error));
        }
        match second {
            Ok(()) => Written::Whole,
            Err(error) => Written::WithoutSecond(chain(&error)),
        }
    }
}

/// The writing thread, seen from the pool's task. One write at a time.
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    done: mpsc::Receiver<Written>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's error if it gives no thread.
    pub(crate) fn start(state: impl StateFile, sidecar: Arc<Sidecar>, clock: Clock) -> io::Result<Self> {
        let (jobs, mut inbox) = mpsc::channel::<Job>(1);
        let (outbox, done) = mpsc::channel(1);
        let offload = sidecar.offload();
        let mut files = Files { state, sidecar, clock };
        match offload {
            Offload::Threads => {
                thread::Builder::new().name("state-writer".to_owned()).stack_size(256 * 1024).spawn(
                    move || {
                        while let Some(job) = inbox.blocking_recv() {
                            if outbox.blocking_send(files.write(&job)).is_err() {
                                return;
                            }
                        }
                    },
                )?;
            }
            #[cfg(test)]
            Offload::Here(_) => {
                tokio::spawn(async move {
                    while let Some(job) = inbox.recv().await {
                        let work = move || {
                            let written = files.write(&job);
                            (files, written)
                        };
                        let (back, written) = offload.run(work).await;
                        files = back;
                        if outbox.send(written).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
        Ok(Self { jobs, done })
    }

    /// Begins a write; the one before must have ended.
    pub(super) fn begin(
        &self,
        allocations: Option<Vec<Allocation>>,
        cooling: Vec<(IpAddr, Instant)>,
        quarantined: Vec<(IpAddr, QuarantineReason)>,
    ) {
        // The thread ends only with this sender, and takes one job at a time.
        let _ = self.jobs.try_send(Job { allocations, cooling, quarantined });
    }

    /// The outcome of the write under way; a thread that ended has failed it.
    pub(super) async fn written(&mut self) -> Written {
        self.done
            .recv()
            .await
            .unwrap_or_else(|| Written::Failed("the state writer's thread has ended".to_owned()))
    }
}
