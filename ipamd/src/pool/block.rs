//! Blocks: what EC2 assigns to an ENI in one piece, a single secondary IP or a delegated prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vpc::{Family, Prefix};

/// One block of addresses on an ENI. It takes one of the ENI's private address slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Block {
    /// A single secondary IP.
    Ip(Ipv4Addr),
    /// A delegated prefix: 16 addresses of IPv4, or 2^48 of IPv6.
    Prefix(Prefix),
}

/// The sizes of block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum BlockKind {
    /// Single secondary IPs.
    Ip,
    /// Prefixes of IPv4.
    Prefix,
    /// Prefixes of IPv6.
    Ipv6Prefix,
}

/// So many blocks of one kind, as they are asked of EC2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocks {
    Ips(u32),
    Prefixes(u32),
    Ipv6Prefixes(u32),
}

impl Block {
    /// The blocks that `address` lies in, wherever such blocks might be.
    pub(super) fn around(address: IpAddr) -> impl Iterator<Item = Self> {
        let (ip, length) = match address {
            IpAddr::V4(address) => (Some(Self::Ip(address)), Prefix::IPV4_LENGTH),
            IpAddr::V6(_) => (None, Prefix::IPV6_LENGTH),
        };
        let net = IpNet::new(address, length).ok().map(|net| net.trunc());
        let prefix = net.and_then(|net| Prefix::try_from(net).ok()).map(Self::Prefix);
        ip.into_iter().chain(prefix)
    }

    pub(crate) fn kind(self) -> BlockKind {
        match self {
            Self::Ip(_) => BlockKind::Ip,
            Self::Prefix(prefix) => match prefix.net() {
                IpNet::V4(_) => BlockKind::Prefix,
                IpNet::V6(_) => BlockKind::Ipv6Prefix,
            },
        }
    }

    /// How many addresses it has, as [`BlockKind::size`] counts them.
    pub(crate) fn size(self) -> u32 {
        self.kind().size()
    }

    /// Whether `address` is one of its addresses.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        match self {
            Self::Ip(own) => address == own,
            Self::Prefix(prefix) => prefix.contains(address),
        }
    }

    /// Whether the two have an address in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Prefix(one), Self::Prefix(other)) => one == other,
            (Self::Ip(address), block) | (block, Self::Ip(address)) => block.contains(address.into()),
        }
    }

    /// Its first `count` addresses, or all of them if it has no more.
    pub(super) fn first(self, count: u32) -> impl Iterator<Item = IpAddr> {
        let of_prefix = move |number| match self {
            Self::Prefix(prefix) => prefix.nth(number),
            Self::Ip(address) => (number == 0).then_some(address.into()),
        };
        (0..u64::from(count)).map_while(of_prefix)
    }

    /// Its addresses, in ascending order; none for an IPv6 prefix, which nobody could list.
    pub(crate) fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let (single, prefix) = match self {
            Self::Ip(address) => (Some(address), None),
            Self::Prefix(prefix) => (None, Some(prefix)),
        };
        single.into_iter().chain(prefix.into_iter().flat_map(Prefix::ipv4_addresses)).map(IpAddr::from)
    }
}

impl BlockKind {
    /// How many addresses a block of this kind has. The 2^48 of an IPv6 prefix count as the
    /// largest number, and sums stay there: no node runs out of either.
    pub(crate) const fn size(self) -> u32 {
        match self {
            Self::Ip => 1,
            Self::Prefix => 16,
            Self::Ipv6Prefix => u32::MAX,
        }
    }

    pub(crate) const fn family(self) -> Family {
        match self {
            Self::Ip | Self::Prefix => Family::V4,
            Self::Ipv6Prefix => Family::V6,
        }
    }

    /// `count` blocks of this kind.
    pub(crate) fn times(self, count: u32) -> Blocks {
        match self {
            Self::Ip => Blocks::Ips(count),
            Self::Prefix => Blocks::Prefixes(count),
            Self::Ipv6Prefix => Blocks::Ipv6Prefixes(count),
        }
    }
}

impl Blocks {
    pub(crate) fn kind(self) -> BlockKind {
        match self {
            Self::Ips(_) => BlockKind::Ip,
            Self::Prefixes(_) => BlockKind::Prefix,
            Self::Ipv6Prefixes(_) => BlockKind::Ipv6Prefix,
        }
    }

    /// How many blocks.
    pub(crate) fn count(self) -> u32 {
        match self {
            Self::Ips(count) | Self::Prefixes(count) | Self::Ipv6Prefixes(count) => count,
        }
    }

    /// How many addresses they have together.
    pub(crate) fn addresses(self) -> u32 {
        self.count().saturating_mul(self.kind().size())
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ips(1) => f.write_str("1 secondary IP"),
            Self::Ips(count) => write!(f, "{count} secondary IPs"),
            Self::Prefixes(1) => f.write_str("1 prefix"),
            Self::Prefixes(count) => write!(f, "{count} prefixes"),
            Self::Ipv6Prefixes(1) => f.write_str("1 IPv6 prefix"),
            Self::Ipv6Prefixes(count) => write!(f, "{count} IPv6 prefixes"),
        }
    }
}

/// Counts on one instance fit: it holds a few thousand addresses at most.
pub(super) fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
