//! The block that addresses are leased from, and which one is next.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A block with the addresses of it that pods may have: all but the block's own, the first after
/// it, which stands for the node, and in IPv4 the broadcast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    block: IpNet,
    first: u128,
    last: u128,
}

impl Range {
    /// The range of `subnet`, as host-local reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(subnet: &str) -> Result<Self, String> {
        let block: IpNet = subnet.parse().map_err(|_| format!("invalid CIDR address: {subnet}"))?;
        if block.addr() != block.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                block.prefix_len(),
                block.network()
            ));
        }
        // The block's own address, the node's, one for a pod, and the broadcast address.
        if block.prefix_len() > block.max_prefix_len() - 2 {
            return Err(format!("Network {block} too small to allocate from"));
        }
        let host_bits = block.max_prefix_len() - block.prefix_len();
        let base = number(block.network());
        let end = base | ((1 << (host_bits - 1)) | ((1 << (host_bits - 1)) - 1));
        let last = if block.addr().is_ipv4() { end - 1 } else { end };
        Ok(Self { block, first: base + 2, last })
    }

    /// The whole block.
    pub(crate) fn block(self) -> IpNet {
        self.block
    }

    /// How many pods may have an address.
    pub(crate) fn size(self) -> u128 {
        self.last - self.first + 1
    }

    /// The first and the last address of the range, as host-local names it.
    pub(crate) fn ends(self) -> (IpAddr, IpAddr) {
        (self.address(self.first - 1), self.address(self.last))
    }

    /// The first address after `last_given`, in a circle, that is not `taken`.
    pub(crate) fn next(self, last_given: Option<IpAddr>, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let last_given = last_given.filter(|address| self.block.contains(address)).map(number);
        let mut candidate = last_given.unwrap_or(self.last);
        // Each address that is passed over is taken, so there is no need to look at more.
        let attempts = self.size().min(taken.len() as u128 + 1);
        for _ in 0..attempts {
            candidate = if (self.first..self.last).contains(&candidate) { candidate + 1 } else { self.first };
            let address = self.address(candidate);
            if !taken.contains(&address) {
                return Some(address);
            }
        }
        None
    }

    fn address(self, number: u128) -> IpAddr {
        match self.block {
            IpNet::V4(_) => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn next(range: &str, last: &str, taken: &[&str]) -> String {
        let range = Range::parse(range).unwrap();
        let next = range.next(last.parse().ok(), &addresses(taken));
        next.map_or_else(String::new, |address| address.to_string())
    }

    #[test]
    fn addresses_are_given_in_a_circle_without_those_that_are_nobodys() {
        for (last, expected) in [
            ("", "169.254.172.2"),
            ("169.254.172.2", "169.254.172.3"),
            ("169.254.175.253", "169.254.175.254"),
            ("169.254.175.254", "169.254.172.2"),
            ("169.254.175.255", "169.254.172.2"),
            ("169.254.172.1", "169.254.172.2"),
            ("10.0.0.1", "169.254.172.2"),
            ("fd00::ac:2", "169.254.172.2"),
        ] {
            assert_eq!(next("169.254.172.0/22", last, &[]), expected, "{last}");
        }
        assert_eq!(next("fd00::ac:00/118", "", &[]), "fd00::ac:2");
        assert_eq!(next("fd00::ac:00/118", "fd00::ac:3fe", &[]), "fd00::ac:3ff");
        assert_eq!(next("fd00::ac:00/118", "fd00::ac:3ff", &[]), "fd00::ac:2");
    }

    #[test]
    fn a_range_is_as_large_as_host_locals() {
        assert_eq!(Range::parse("169.254.172.0/22").unwrap().size(), 1021);
        assert_eq!(Range::parse("fd00::ac:00/118").unwrap().size(), 1022);
        assert_eq!(Range::parse("10.0.0.0/30").unwrap().size(), 1);
    }

    #[test]
    fn what_is_taken_is_passed_over_and_a_full_range_has_none() {
        assert_eq!(next("10.0.0.0/29", "10.0.0.5", &["10.0.0.6", "10.0.0.2"]), "10.0.0.3");
        let all = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        assert_eq!(next("10.0.0.0/29", "10.0.0.4", &all), "");
        assert_eq!(next("10.0.0.0/29", "10.0.0.4", &all[1..]), "10.0.0.2");
    }

    #[test]
    fn what_is_no_range_is_refused_as_host_local_refuses_it() {
        for (text, error) in [
            ("x", "invalid CIDR address: x"),
            ("10.0.0.0/31", "Network 10.0.0.0/31 too small to allocate from"),
            (
                "10.0.0.1/24",
                "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
            ),
        ] {
            assert_eq!(Range::parse(text).unwrap_err(), error);
        }
        assert!(Range::parse("::/0").is_ok() && Range::parse("0.0.0.0/0").is_ok());
    }
}
