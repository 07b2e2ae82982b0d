//! Being told when links come and go.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::kernel::{KernelError, each_message, parse_link};

/// The kernel's group of listeners to links.
const LINKS: u32 = 1;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
/// Room for one announcement; those of links with many virtual functions are the largest.
const READ: usize = 64 * 1024;

/// A subscription to the links of the namespace it was opened in. Readable when one came or went.
pub struct LinkMonitor {
    socket: Socket,
}

impl std::fmt::Debug for LinkMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkMonitor").finish_non_exhaustive()
    }
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
        Self::subscribe(&[LINKS]).map_err(|cause| KernelError::new("subscribe to links", cause))
    }

    fn subscribe(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// The events that have arrived; empty if none has. Never waits: poll the descriptor.
    ///
    /// # Errors
    /// [`KernelError`] if the socket fails.
    pub fn events(&mut self) -> Result<Vec<LinkEvent>, KernelError> {
        let mut events = Vec::new();
        loop {
            let mut datagram = Vec::with_capacity(READ);
            match self.socket.recv(&mut datagram, 0) {
                Ok(_) => each_message(&datagram, &mut |message| {
                    let Some(link) = parse_link(message.payload) else { return };
                    match message.kind {
                        NEW_LINK => events.push(LinkEvent::Present(link.name)),
                        DEL_LINK => events.push(LinkEvent::Gone(link.name)),
                        _ => {}
                    }
                }),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(events),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => events.push(LinkEvent::Overrun),
                    _ => return Err(KernelError::new("read link events", error)),
                },
            }
        }
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
