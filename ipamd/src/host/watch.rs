//! The thread that waits for the kernel to tell of changes, and how it wakes the keeper.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use datapath::monitor::{Changed, Monitor};
use tokio::sync::Notify;
use tracing::warn;

/// What has changed since the keeper last asked. Many changes become one.
#[derive(Debug, Default)]
pub(super) struct Signals {
    network: AtomicBool,
    filter: AtomicBool,
    notify: Notify,
}

impl Signals {
    /// Waits until something has changed, and takes it.
    pub(super) async fn changed(&self) -> Changed {
        loop {
            let changed = Changed {
                network: self.network.swap(false, Ordering::Relaxed),
                filter: self.filter.swap(false, Ordering::Relaxed),
            };
            if changed != Changed::default() {
                return changed;
            }
            self.notify.notified().await;
        }
    }

    fn raise(&self, changed: Changed) {
        self.network.fetch_or(changed.network, Ordering::Relaxed);
        self.filter.fetch_or(changed.filter, Ordering::Relaxed);
        self.notify.notify_one();
    }
}

/// Starts the thread; it ends with the first change after the last other owner of the signals is
/// gone. Should the kernel stop telling, the keeper looks by the clock.
pub(super) fn start(mut monitor: Monitor) -> io::Result<Arc<Signals>> {
    let signals = Arc::new(Signals::default());
    let keeper: Weak<Signals> = Arc::downgrade(&signals);
    let watch = move || {
        loop {
            let changed = monitor.wait();
            let Some(signals) = keeper.upgrade() else { return };
            match changed {
                Ok(changed) => signals.raise(changed),
                Err(error) => {
                    warn!(%error, "the kernel no longer tells of changes; looking by the clock");
                    return;
                }
            }
        }
    };
    thread::Builder::new().name("host-events".to_owned()).stack_size(256 * 1024).spawn(watch)?;
    Ok(signals)
}
