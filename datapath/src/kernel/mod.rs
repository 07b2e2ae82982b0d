//! The kernel's side: sockets, namespaces, and the objects in them.

mod error;
mod message;
mod netlink;
mod netns;
pub(crate) mod nft;
mod object;
mod observe;
mod parse;
mod random;
mod step;
pub(crate) mod sysctl;
pub(crate) mod tool;

pub use error::KernelError;
pub use netlink::Netlink;
pub use netns::{Netns, NetnsError, inside};
pub use nft::NftError;

pub(crate) use message::{ContainerQueue, VethPair, get_link};
pub(crate) use netlink::{Outcome, each_message};
pub(crate) use object::{Address, Link, LinkRef, Neighbour, Route, Rule, Scope};
pub(crate) use observe::{Links, single};
pub(crate) use parse::link as parse_link;
pub(crate) use random::{random_bits, random_mac};
pub(crate) use step::Step;
