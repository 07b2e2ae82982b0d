//! A route netlink socket that sends many requests at once.

use std::io;

use super::{KernelError, Netns};

/// A route netlink socket of the namespace it was opened in, from wherever it is used.
#[derive(Debug)]
pub struct Netlink {
    _socket: (),
}

impl Netlink {
    /// A socket of the calling thread's namespace.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel gives none.
    pub fn open() -> Result<Self, KernelError> {
        Err(KernelError::new("open route netlink socket", io::Error::from(io::ErrorKind::Unsupported)))
    }

    /// A socket of `netns`.
    ///
    /// # Errors
    /// [`KernelError`] if the namespace cannot be entered or gives none.
    pub fn open_in(_netns: &Netns) -> Result<Self, KernelError> {
        Self::open()
    }
}
