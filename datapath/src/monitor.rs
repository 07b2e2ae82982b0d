//! Being told when something about the node's network changes, whoever changed it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

use crate::kernel::{KernelError, each_message};
use crate::wanted::nft::TABLE;

/// The kernel's groups of listeners to links, addresses, routes, rules and settings of links, as
/// include/uapi/linux/rtnetlink.h numbers them.
const NETWORK_GROUPS: [u32; 8] = [1, 5, 7, 8, 9, 11, 19, 24];

/// The group of listeners to nftables, as include/uapi/linux/netfilter/nfnetlink.h numbers it.
const FILTER_GROUP: u32 = 7;

/// The header of a netfilter message, before its attributes; and the attribute that names a
/// table, which has the same number whatever the message is about.
const FILTER_HEADER: usize = 4;
const TABLE_NAME: u16 = 1;

/// Room for one announcement; those of links with many virtual functions are the largest.
const READ: usize = 64 * 1024;

/// A subscription to the network of the namespace it was opened in.
pub struct Monitor {
    network: Socket,
    filter: Result<Socket, KernelError>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// Links, addresses, routes or rules; or it is not known what.
    pub network: bool,
    /// Our tables of the packet filter; or it is not known which.
    pub filter: bool,
}

impl Monitor {
    /// A subscription in the calling thread's namespace. Where the kernel does not tell of nftables
    /// it tells of the network alone: [`Monitor::filter_fault`] has the reason.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel gives none.
    pub fn open() -> Result<Self, KernelError> {
        let network = subscribe(NETLINK_ROUTE, &NETWORK_GROUPS)
            .map_err(|cause| KernelError::new("subscribe to links, addresses, routes and rules", cause))?;
        let filter = subscribe(NETLINK_NETFILTER, &[FILTER_GROUP])
            .map_err(|cause| KernelError::new("subscribe to the packet filter", cause));
        Ok(Self { network, filter })
    }

    /// Why changes of the packet filter are not told, if they are not.
    #[must_use]
    pub fn filter_fault(&self) -> Option<&KernelError> {
        self.filter.as_ref().err()
    }

    /// Waits until something has changed, and says what: nothing if that takes longer than
    /// `patience`. Without `patience` it waits for ever.
    ///
    /// # Errors
    /// [`KernelError`] if a socket fails.
    pub fn wait(&mut self, patience: Option<Duration>) -> Result<Changed, KernelError> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // A wait that is longer than can be told ends early, and is begun anew.
            let timeout = left.map_or(PollTimeout::NONE, |left| left.try_into().unwrap_or(PollTimeout::MAX));
            let sockets = [Some(&self.network), self.filter.as_ref().ok()];
            let mut descriptors: Vec<PollFd<'_>> = sockets
                .into_iter()
                .flatten()
                .map(|socket| PollFd::new(borrow(socket), PollFlags::POLLIN))
                .collect();
            match poll(&mut descriptors, timeout) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(KernelError::new("wait for changes", io::Error::from(errno))),
            }
            let changed = self.changed()?;
            if changed != Changed::default() || left.is_some_and(|left| left.is_zero()) {
                return Ok(changed);
            }
        }
    }

    /// What has changed by now. Never waits.
    ///
    /// # Errors
    /// [`KernelError`] if a socket fails.
    pub fn changed(&mut self) -> Result<Changed, KernelError> {
        let mut changed = Changed::default();
        drain(&self.network, |_| changed.network = true)
            .map_err(|cause| KernelError::new("read what changed of the network", cause))?;
        if let Ok(filter) = &self.filter {
            drain(filter, |message| changed.filter |= message.is_none_or(names_our_table))
                .map_err(|cause| KernelError::new("read what changed of the packet filter", cause))?;
        }
        Ok(changed)
    }
}

fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    socket.as_fd()
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Shows all messages that have arrived, and nothing in the place of those that were lost.
fn drain(socket: &Socket, mut show: impl FnMut(Option<&[u8]>)) -> io::Result<()> {
    let mut datagram = vec![0; READ];
    loop {
        match recv(socket.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
            Ok(length) => {
                each_message(&datagram[..length], &mut |message| show(Some(message.payload)));
            }
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::ENOBUFS) => show(None),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a message about nftables is about a table of ours, of whichever family.
fn names_our_table(message: &[u8]) -> bool {
    NlasIterator::new(message.get(FILTER_HEADER..).unwrap_or_default()).map_while(Result::ok).any(
        |attribute| {
            attribute.kind() == TABLE_NAME && attribute.value().strip_suffix(b"\0") == Some(TABLE.as_bytes())
        },
    )
}
