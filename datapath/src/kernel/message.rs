//! Our objects as route netlink requests.
//!
//! Attributes are those that amazon-vpc-cni-k8s sends, so that `ip` prints the same: routes of
//! protocol `boot`, no metric, no protocol on rules.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use vpc::{Family, Mac, RouteTable};

use super::object::{Address, Neighbour, Route, Rule, Scope};
use super::step::Step;

/// `rp_filter` that accepts a packet if any link leads back to its source.
const LOOSE: i32 = 2;

/// A message with the flags it goes out with.
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

impl Request {
    fn acknowledged(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags: flags | NLM_F_ACK }
    }
}

impl Step {
    /// The request that makes this change.
    pub(crate) fn request(&self) -> Request {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewNeighbour, NewRoute, NewRule,
            SetLink,
        };
        let create = NLM_F_CREATE | NLM_F_EXCL;
        let (message, flags) = match self {
            Self::SetMtu { link, mtu } => {
                let mut message = link_by_index(link.index);
                message.attributes.push(LinkAttribute::Mtu(*mtu));
                (SetLink(message), 0)
            }
            Self::SetUp(link) => {
                let mut message = link_by_index(link.index);
                message.header.flags = LinkFlags::Up;
                message.header.change_mask = LinkFlags::Up;
                (NewLink(message), 0)
            }
            Self::LoosenReversePath(link) => {
                let mut message = link_by_index(link.index);
                // Settings of 0 stay out of the request, so only this one changes.
                let mut conf = InetDevConf::default();
                conf.rp_filter = LOOSE;
                message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![
                    AfSpecInet::DevConfRequest(conf),
                ])]));
                (SetLink(message), 0)
            }
            Self::DeleteLink(name) => {
                let mut message = LinkMessage::default();
                message.attributes.push(LinkAttribute::IfName(name.clone()));
                (DelLink(message), 0)
            }
            Self::DeleteLinkByIndex(link) => (DelLink(link_by_index(link.index)), 0),
            Self::AddAddress(address) => (NewAddress(address_message(address)), create),
            Self::AddLinkAddress(address) => {
                let mut message = address_message(address);
                message.header.scope = AddressScope::Link;
                (NewAddress(message), create)
            }
            Self::DeleteAddress(address) => (DelAddress(address_message(address)), 0),
            Self::AddRoute(route) => (NewRoute(route_message(route)), create),
            Self::ReplaceRoute(route) => (NewRoute(route_message(route)), NLM_F_CREATE | NLM_F_REPLACE),
            Self::DeleteRoute(route) => {
                let mut message = route_message(route);
                message.header.protocol = RouteProtocol::Unspec;
                message.header.kind = RouteType::Unspec;
                (DelRoute(message), 0)
            }
            Self::AddRule(rule) => (NewRule(rule_message(rule, RuleAction::ToTable)), create),
            // No action means any, as a field that is left out does.
            Self::DeleteRule(rule) => (DelRule(rule_message(rule, RuleAction::Unspec)), 0),
            Self::AddNeighbour(neighbour) => (NewNeighbour(neighbour_message(neighbour)), create),
        };
        Request::acknowledged(message, flags)
    }
}

/// A pair of links: one end in the namespace of the socket, the other in the host's.
#[derive(Debug, Clone)]
pub(crate) struct VethPair {
    pub(crate) container: String,
    pub(crate) host: String,
    pub(crate) host_mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) container_queue: ContainerQueue,
}

/// Whether `ip link` shows a queue length at the container's end. The kernel queues nothing on a
/// veth, so it is for people and programs that compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerQueue {
    None,
    KernelDefault,
}

impl VethPair {
    /// The request that makes both ends at once, the container's end set up.
    ///
    /// The host's end cannot be: the kernel refuses a peer that is up with ENOTCONN.
    pub(crate) fn request(&self, host: BorrowedFd<'_>) -> Request {
        let end = |name: &str| {
            let mut message = LinkMessage::default();
            message.attributes.extend([LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(self.mtu)]);
            message
        };
        // Without a queue, as the kernel would treat it anyway, so that `ip link` prints no qlen.
        let no_queue = LinkAttribute::TxQueueLen(0);
        let mut peer = end(&self.host);
        peer.attributes.push(no_queue.clone());
        peer.attributes.push(LinkAttribute::Address(self.host_mac.octets().to_vec()));
        peer.attributes.push(LinkAttribute::NetNsFd(host.as_raw_fd()));
        let mut message = end(&self.container);
        if self.container_queue == ContainerQueue::None {
            message.attributes.push(no_queue);
        }
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        Request::acknowledged(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }
}

/// The question for one link.
pub(crate) fn get_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request::acknowledged(RouteNetlinkMessage::GetLink(message), 0)
}

fn link_by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn address_message(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let flags = match address.net {
        IpNet::V4(_) => AddressHeaderFlags::empty(),
        // On a link between two, duplicates cannot be; without this a pod waits for seconds.
        IpNet::V6(_) => AddressHeaderFlags::Nodad,
    };
    message.header = AddressHeader {
        family: family(Family::of(address.net.addr())),
        prefix_len: address.net.prefix_len(),
        flags,
        scope: AddressScope::Universe,
        index: address.link.index,
    };
    message.attributes.push(AddressAttribute::Local(address.net.addr()));
    message.attributes.push(AddressAttribute::Address(address.net.addr()));
    if let Some(broadcast) = address.broadcast {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    message
}

/// The table number as a header carries it: 0 if it needs the attribute.
fn header_table(table: RouteTable) -> u8 {
    u8::try_from(table.0).unwrap_or(0)
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(Family::of(route.destination.addr()));
    header.destination_prefix_length = route.destination.prefix_len();
    header.table = header_table(route.table);
    header.protocol = RouteProtocol::Boot;
    header.scope = match route.scope {
        Scope::Universe => RouteScope::Universe,
        Scope::Link => RouteScope::Link,
        // Scope "nowhere" is a deletion's wildcard.
        Scope::Other => RouteScope::NoWhere,
    };
    header.kind = RouteType::Unicast;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    if header_table(route.table) == 0 {
        attributes.push(RouteAttribute::Table(route.table.0));
    }
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.preferred_source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(link) = &route.link {
        attributes.push(RouteAttribute::Oif(link.index));
    }
    message
}

fn rule_message(rule: &Rule, action: RuleAction) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    message.header.action = action;
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some(table) = rule.table {
        message.header.table = header_table(table);
        if header_table(table) == 0 {
            attributes.push(RuleAttribute::Table(table.0));
        }
    }
    let mut selector = |block: Option<IpNet>, attribute: fn(IpAddr) -> RuleAttribute| {
        block.map_or(0, |block| {
            attributes.push(attribute(block.network()));
            block.prefix_len()
        })
    };
    message.header.src_len = selector(rule.from, RuleAttribute::Source);
    message.header.dst_len = selector(rule.to, RuleAttribute::Destination);
    if let Some(input) = &rule.input {
        attributes.push(RuleAttribute::Iifname(input.clone()));
    }
    if let Some((mark, mask)) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
        attributes.push(RuleAttribute::FwMask(mask));
    }
    if let Some(protocol) = rule.protocol {
        attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(protocol)));
    }
    message
}

fn neighbour_message(neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(Family::of(neighbour.address));
    message.header.ifindex = neighbour.link.index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(neighbour.address.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.octets().to_vec()));
    message
}
