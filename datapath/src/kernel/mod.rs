//! The kernel's side: sockets, namespaces, and the objects in them.

mod error;
mod netlink;
mod netns;

pub use error::KernelError;
pub use netlink::Netlink;
pub use netns::{Netns, NetnsError, inside};
