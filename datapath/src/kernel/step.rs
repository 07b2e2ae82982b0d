//! One request to change one kernel object.

use std::fmt;

use super::object::{Address, LinkRef, Neighbour, Route, Rule};

/// A change to one kernel object, whole: nothing is left to choose for whoever applies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    SetMtu {
        link: LinkRef,
        mtu: u32,
    },
    SetUp(LinkRef),
    /// Lets the link take packets whose answers would leave by another one.
    LoosenReversePath(LinkRef),
    DeleteLink(String),
    /// Leaves alone a link that has the name by now but another number.
    DeleteLinkByIndex(LinkRef),
    AddAddress(Address),
    /// Adds an address that stands for the node on this link alone (scope link).
    AddLinkAddress(Address),
    DeleteAddress(Address),
    /// Fails if there is such a route.
    AddRoute(Route),
    /// Takes the place of a route to the same destination, if there is one.
    ReplaceRoute(Route),
    DeleteRoute(Route),
    AddRule(Rule),
    /// Deletes the first rule that has everything that this one names.
    DeleteRule(Rule),
    AddNeighbour(Neighbour),
}

impl Step {
    /// Whether `errno` says that there is nothing left to do.
    pub(crate) fn is_satisfied_by(&self, errno: i32) -> bool {
        match self {
            Self::AddRule(_) | Self::AddAddress(_) | Self::AddLinkAddress(_) => errno == libc::EEXIST,
            Self::DeleteRule(_) => errno == libc::ENOENT,
            Self::DeleteRoute(_) => errno == libc::ESRCH,
            Self::DeleteAddress(_) => errno == libc::EADDRNOTAVAIL,
            Self::DeleteLink(_) | Self::DeleteLinkByIndex(_) => errno == libc::ENODEV,
            _ => false,
        }
    }

    /// The step that takes this one back, where the object does not go with its link.
    pub(crate) fn undo(&self) -> Option<Self> {
        match self {
            Self::AddRule(rule) => Some(Self::DeleteRule(rule.clone())),
            Self::AddRoute(route) | Self::ReplaceRoute(route) => Some(Self::DeleteRoute(route.clone())),
            Self::AddAddress(address) | Self::AddLinkAddress(address) => {
                Some(Self::DeleteAddress(address.clone()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetMtu { link, mtu } => write!(f, "set mtu of link {} to {mtu}", link.name),
            Self::SetUp(link) => write!(f, "set link {} up", link.name),
            Self::LoosenReversePath(link) => write!(f, "set rp_filter of link {} to 2", link.name),
            Self::DeleteLink(name) => write!(f, "delete link {name}"),
            Self::DeleteLinkByIndex(link) => write!(f, "delete link {}", link.name),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::AddLinkAddress(address) => write!(f, "add address {address} scope link"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::ReplaceRoute(route) => write!(f, "replace route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::DeleteRule(rule) => write!(f, "delete rule {rule}"),
            Self::AddNeighbour(neighbour) => write!(f, "add neighbour {neighbour}"),
        }
    }
}
