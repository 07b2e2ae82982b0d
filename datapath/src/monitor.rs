//! Being told when links come and go.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::kernel::KernelError;

/// A subscription to the links of the namespace it was opened in. Readable when one came or went.
#[derive(Debug)]
pub struct LinkMonitor {
    socket: OwnedFd,
}

/// A link that came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is there, or something about it changed.
    Present(String),
    /// It is gone.
    Gone(String),
    /// Events were lost: look at everything.
    Overrun,
}

impl LinkMonitor {
    /// A subscription in the calling thread's namespace.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel gives none.
    pub fn open() -> Result<Self, KernelError> {
        Err(KernelError::new("subscribe to links", io::Error::from(io::ErrorKind::Unsupported)))
    }

    /// The events that have arrived; empty if none has. Never waits: poll the descriptor.
    ///
    /// # Errors
    /// [`KernelError`] if the socket fails.
    pub fn events(&mut self) -> Result<Vec<LinkEvent>, KernelError> {
        Ok(Vec::new())
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
