//! Blocks: what EC2 assigns to an ENI in one piece, a single secondary IP or a delegated prefix.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use vpc::Prefix;

/// One block of addresses on an ENI. It takes one of the ENI's private address slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Block {
    /// A single secondary IP.
    Ip(Ipv4Addr),
    /// A delegated IPv4 prefix, 16 addresses.
    Prefix(Prefix),
}

/// The two sizes of block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum BlockKind {
    /// Single secondary IPs.
    Ip,
    /// Prefixes.
    Prefix,
}

/// So many blocks of one kind, as they are asked of EC2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocks {
    Ips(u32),
    Prefixes(u32),
}

impl Block {
    /// The block of `kind` that `address` lies in, wherever such a block might be.
    pub(super) fn around(address: Ipv4Addr, kind: BlockKind) -> Option<Self> {
        match kind {
            BlockKind::Ip => Some(Self::Ip(address)),
            BlockKind::Prefix => {
                let net = Ipv4Net::new(address, Prefix::IPV4_LENGTH).ok()?.trunc();
                Prefix::try_from(net).ok().map(Self::Prefix)
            }
        }
    }

    pub(crate) fn kind(self) -> BlockKind {
        match self {
            Self::Ip(_) => BlockKind::Ip,
            Self::Prefix(_) => BlockKind::Prefix,
        }
    }

    /// How many addresses it has.
    pub(crate) fn size(self) -> u32 {
        self.kind().size()
    }

    /// Whether the two have an address in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Ip(one), Self::Ip(other)) => one == other,
            (Self::Prefix(one), Self::Prefix(other)) => one == other,
            (Self::Ip(address), Self::Prefix(prefix)) | (Self::Prefix(prefix), Self::Ip(address)) => {
                prefix.contains(address.into())
            }
        }
    }

    /// Its addresses, in ascending order.
    pub(crate) fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let (single, prefix) = match self {
            Self::Ip(address) => (Some(address), None),
            Self::Prefix(prefix) => (None, Some(prefix)),
        };
        single.into_iter().chain(prefix.into_iter().flat_map(Prefix::ipv4_addresses))
    }
}

impl BlockKind {
    /// How many addresses a block of this kind has.
    pub(crate) const fn size(self) -> u32 {
        match self {
            Self::Ip => 1,
            Self::Prefix => 16,
        }
    }

    /// `count` blocks of this kind.
    pub(crate) fn times(self, count: u32) -> Blocks {
        match self {
            Self::Ip => Blocks::Ips(count),
            Self::Prefix => Blocks::Prefixes(count),
        }
    }
}

impl Blocks {
    pub(crate) fn kind(self) -> BlockKind {
        match self {
            Self::Ips(_) => BlockKind::Ip,
            Self::Prefixes(_) => BlockKind::Prefix,
        }
    }

    /// How many blocks.
    pub(crate) fn count(self) -> u32 {
        match self {
            Self::Ips(count) | Self::Prefixes(count) => count,
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
        }
    }
}

/// Counts on one instance fit: it holds a few thousand addresses at most.
pub(super) fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
