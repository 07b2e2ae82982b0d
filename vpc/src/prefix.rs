//! Delegated prefixes: blocks of addresses that EC2 assigns to an ENI as one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A prefix that EC2 delegated to an ENI: a /28 of IPv4 or a /80 of IPv6 addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(IpNet);

/// Why a block is not a [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not an address block at all.
    #[error("{0:?} is not a prefix: expected an address block like 10.0.1.16/28")]
    Syntax(String),
    /// A block of another size than EC2 delegates.
    #[error("{0} is not a delegated prefix: EC2 delegates /28 of IPv4 and /80 of IPv6")]
    Length(IpNet),
    /// Bits are set below the prefix length.
    #[error("{0} is not a prefix: it does not begin at its network address {1}")]
    HostBits(IpNet, IpAddr),
}

impl Prefix {
    /// The length of every delegated IPv4 prefix, in bits.
    pub const IPV4_LENGTH: u8 = 28;
    /// The length of every delegated IPv6 prefix, in bits.
    pub const IPV6_LENGTH: u8 = 80;
    /// The addresses in an IPv4 prefix.
    pub const IPV4_ADDRESSES: usize = 16;

    /// The block itself.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// Whether `address` lies in this prefix.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// The address number `number`, from 0; none beyond the prefix's end.
    #[must_use]
    pub fn nth(self, number: u64) -> Option<IpAddr> {
        let address: IpAddr = match self.0 {
            IpNet::V4(net) => {
                Ipv4Addr::from_bits(u32::from(net.network()).checked_add(u32::try_from(number).ok()?)?).into()
            }
            IpNet::V6(net) => {
                Ipv6Addr::from_bits(u128::from(net.network()).checked_add(u128::from(number))?).into()
            }
        };
        self.contains(address).then_some(address)
    }

    /// The addresses that pods may take from an IPv4 prefix, in ascending order; none for IPv6.
    ///
    /// All 16 count: the VPC routes the first and the last like any other, since a prefix is
    /// not a subnet.
    ///
    /// Source: EC2 User Guide, "Assigning prefixes to network interfaces".
    pub fn ipv4_addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let first = match self.0 {
            IpNet::V4(net) => Some(u32::from(net.network())),
            IpNet::V6(_) => None,
        };
        first.into_iter().flat_map(|first| (0..16).map(move |offset| Ipv4Addr::from(first + offset)))
    }
}

impl TryFrom<IpNet> for Prefix {
    type Error = PrefixError;

    fn try_from(net: IpNet) -> Result<Self, PrefixError> {
        let length = match net {
            IpNet::V4(_) => Self::IPV4_LENGTH,
            IpNet::V6(_) => Self::IPV6_LENGTH,
        };
        if net.prefix_len() != length {
            return Err(PrefixError::Length(net));
        }
        if net.addr() != net.network() {
            return Err(PrefixError::HostBits(net, net.network()));
        }
        Ok(Self(net))
    }
}

impl TryFrom<Ipv4Net> for Prefix {
    type Error = PrefixError;

    fn try_from(net: Ipv4Net) -> Result<Self, PrefixError> {
        IpNet::V4(net).try_into()
    }
}

impl TryFrom<Ipv6Net> for Prefix {
    type Error = PrefixError;

    fn try_from(net: Ipv6Net) -> Result<Self, PrefixError> {
        IpNet::V6(net).try_into()
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        text.parse::<IpNet>().map_err(|_| PrefixError::Syntax(text.to_owned()))?.try_into()
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sixteen_addresses_of_a_prefix_serve_pods() {
        let prefix: Prefix = "10.0.1.16/28".parse().unwrap();

        let addresses: Vec<_> = prefix.ipv4_addresses().collect();

        assert_eq!(addresses.len(), Prefix::IPV4_ADDRESSES);
        assert_eq!(addresses[0], Ipv4Addr::new(10, 0, 1, 16));
        assert_eq!(addresses[15], Ipv4Addr::new(10, 0, 1, 31));
    }

    #[test]
    fn the_last_prefix_of_the_address_space_has_sixteen_addresses_too() {
        assert_eq!("255.255.255.240/28".parse::<Prefix>().unwrap().ipv4_addresses().count(), 16);
    }

    #[test]
    fn addresses_are_numbered_from_the_first_to_the_last() {
        let (v4, v6): (Prefix, Prefix) =
            ("255.255.255.240/28".parse().unwrap(), "2001:db8:0:1:d81e::/80".parse().unwrap());

        assert_eq!(v4.nth(15), Some("255.255.255.255".parse().unwrap()));
        assert_eq!(v4.nth(16), None);
        assert_eq!(v6.nth(0), Some("2001:db8:0:1:d81e::".parse().unwrap()));
        assert_eq!(v6.nth((1 << 48) - 1), Some("2001:db8:0:1:d81e:ffff:ffff:ffff".parse().unwrap()));
        assert_eq!(v6.nth(1 << 48), None);
    }

    #[test]
    fn a_block_that_ec2_does_not_delegate_is_refused_with_the_reason() {
        assert_eq!(
            "10.0.1.0/24".parse::<Prefix>().unwrap_err().to_string(),
            "10.0.1.0/24 is not a delegated prefix: EC2 delegates /28 of IPv4 and /80 of IPv6"
        );
        assert!(matches!("10.0.1.17/28".parse::<Prefix>(), Err(PrefixError::HostBits(..))));
        assert!(matches!("10.0.1.16".parse::<Prefix>(), Err(PrefixError::Syntax(_))));
    }
}
