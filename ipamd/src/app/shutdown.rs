//! The signals that end the daemon.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// SIGTERM and SIGINT: the first ends the daemon in order, the second at once.
pub(super) struct Signals {
    first: Option<oneshot::Sender<()>>,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Signals from now on.
    ///
    /// # Errors
    /// The system's refusal.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            first: None,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Hears of the first signal while somebody waits in [`Signals::second`].
    pub(super) fn first(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.first = Some(sender);
        receiver
    }

    /// Returns with the second signal, or with the first one if it comes too early to be heard.
    pub(super) async fn second(&mut self) {
        self.next().await;
        if let Some(first) = self.first.take()
            && first.send(()).is_ok()
        {
            self.next().await;
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
