//! `AssignIpv6Addresses` and `UnassignIpv6Addresses`, and what EC2 chooses from a /64.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv6Net;

use crate::cloud::error::Ec2Error;
use crate::cloud::model::Cloud;
use crate::cloud::request::{AssignIpv6Addresses, Response, UnassignIpv6Addresses};
use crate::cloud::subnet::{Placement, Subnet};

/// The length of a delegated prefix.
const PREFIX: u8 = 80;

/// Addresses and prefixes that a caller wants, by number or by name.
#[derive(Debug, Default)]
pub(super) struct Ipv6Wish {
    pub(super) count: u16,
    pub(super) addresses: Vec<Ipv6Addr>,
    pub(super) prefix_count: u16,
    pub(super) prefixes: Vec<Ipv6Net>,
}

/// What was chosen for a wish.
#[derive(Debug, Default)]
pub(super) struct Ipv6Taken {
    pub(super) addresses: Vec<Ipv6Addr>,
    pub(super) prefixes: Vec<Ipv6Net>,
}

impl Ipv6Wish {
    fn slots(&self) -> usize {
        usize::from(self.count) + self.addresses.len() + usize::from(self.prefix_count) + self.prefixes.len()
    }

    /// EC2 takes one way of wishing at a time.
    fn check_combination(&self) -> Result<(), Ec2Error> {
        let ways =
            [self.count > 0, !self.addresses.is_empty(), self.prefix_count > 0, !self.prefixes.is_empty()];
        if ways.iter().filter(|is_used| **is_used).count() > 1 {
            return Err(Ec2Error::combination(
                "Only one of a number of IPv6 addresses, a list of IPv6 addresses, a number of IPv6 prefixes \
                 and a list of IPv6 prefixes can be specified",
            ));
        }
        match self.prefixes.iter().find(|it| it.prefix_len() != PREFIX || it.trunc() != **it) {
            Some(odd) => Err(Ec2Error::invalid_value(format!("Invalid IPv6 prefix {odd}: expected a /80"))),
            None => Ok(()),
        }
    }
}

impl Cloud {
    /// Chooses what the wish asks for; nobody has it yet.
    pub(super) fn take_ipv6(&mut self, subnet: &Subnet, wish: &Ipv6Wish) -> Result<Ipv6Taken, Ec2Error> {
        wish.check_combination()?;
        if wish.slots() == 0 {
            return Ok(Ipv6Taken::default());
        }
        let Some(range) = subnet.ipv6_cidr else {
            return Err(Ec2Error::invalid_value(format!(
                "The subnet '{}' does not have an IPv6 CIDR block associated with it.",
                subnet.id
            )));
        };
        let (mut addresses, mut prefixes) = self.ipv6_in_use(&subnet.id);
        let mut taken = Ipv6Taken::default();
        for &address in &wish.addresses {
            let is_free = range.contains(&address)
                && !addresses.contains(&address)
                && !prefixes.contains(&prefix_of(address));
            if !is_free {
                return Err(Ec2Error::invalid_value(format!("The address {address} is not free")));
            }
            taken.addresses.push(address);
        }
        for &prefix in &wish.prefixes {
            if !range.contains(&prefix) || !is_free(prefix, &addresses, &prefixes) {
                return Err(Ec2Error::invalid_value(format!("The prefix {prefix} is not free")));
            }
            taken.prefixes.push(prefix);
        }
        for _ in 0..wish.prefix_count {
            let prefix = self.any_ipv6_prefix(range, &addresses, &prefixes).ok_or_else(|| {
                Ec2Error::new(
                    "InsufficientCidrBlocks",
                    "The specified subnet does not have enough free cidr blocks to satisfy the request.",
                )
            })?;
            prefixes.insert(prefix);
            taken.prefixes.push(prefix);
        }
        for _ in 0..wish.count {
            let address = self.any_ipv6(range, &addresses, &prefixes);
            addresses.insert(address);
            taken.addresses.push(address);
        }
        Ok(taken)
    }

    fn ipv6_in_use(&self, subnet: &str) -> (BTreeSet<Ipv6Addr>, BTreeSet<Ipv6Net>) {
        let enis = || self.enis.values().filter(|eni| eni.subnet_id == subnet);
        (
            enis().flat_map(|eni| eni.ipv6_addresses.iter().copied()).collect(),
            enis().flat_map(|eni| eni.ipv6_prefixes.iter().copied()).collect(),
        )
    }

    /// Any /80 of which nothing is in use; EC2 keeps the first one, which holds its own addresses.
    fn any_ipv6_prefix(
        &mut self,
        range: Ipv6Net,
        addresses: &BTreeSet<Ipv6Addr>,
        prefixes: &BTreeSet<Ipv6Net>,
    ) -> Option<Ipv6Net> {
        const BLOCKS: u64 = 1 << 16;
        let first = match self.knobs.placement {
            Placement::Ascending => 1,
            Placement::Scattered => self.dice.below(BLOCKS),
        };
        (0..BLOCKS)
            .map(|step| (first + step) % BLOCKS)
            .filter(|block| *block != 0)
            .filter_map(|block| nth(range, u128::from(block) << 48))
            .filter_map(|address| Ipv6Net::new(address, PREFIX).ok())
            .find(|prefix| is_free(*prefix, addresses, prefixes))
    }

    fn any_ipv6(
        &mut self,
        range: Ipv6Net,
        addresses: &BTreeSet<Ipv6Addr>,
        prefixes: &BTreeSet<Ipv6Net>,
    ) -> Ipv6Addr {
        loop {
            // Among 2^64 addresses a second throw is hardly ever needed.
            let address = nth(range, u128::from(self.dice.next_u64().max(4))).unwrap_or(range.network());
            if !addresses.contains(&address) && !prefixes.contains(&prefix_of(address)) {
                return address;
            }
        }
    }

    /// The /64 for the next subnet; none in a VPC without IPv6.
    pub(in crate::cloud) fn next_ipv6_cidr(&self) -> Option<Ipv6Net> {
        let range = *self.vpc.ipv6_cidrs.first()?;
        let taken: BTreeSet<_> = self.subnets.values().filter_map(|subnet| subnet.ipv6_cidr).collect();
        range.subnets(64).ok()?.skip(1).find(|cidr| !taken.contains(cidr))
    }

    pub(in crate::cloud) fn assign_ipv6(
        &mut self,
        now: Duration,
        request: &AssignIpv6Addresses,
    ) -> Result<Response, Ec2Error> {
        let eni = self.eni(&request.eni_id)?;
        let wish = Ipv6Wish {
            count: request.count.unwrap_or(0),
            addresses: request.addresses.clone(),
            prefix_count: request.prefix_count.unwrap_or(0),
            prefixes: request.prefixes.clone(),
        };
        if wish.slots() == 0 {
            return Err(Ec2Error::missing("Ipv6AddressCount"));
        }
        wish.check_combination()?;
        // EC2 counts as many IPv6 slots as IPv4 ones on every type that takes prefixes.
        if eni.ipv6_slots_used() + wish.slots() > self.slots_of(&request.eni_id) {
            return Err(Ec2Error::new(
                "PrivateIpAddressLimitExceeded",
                "Number of IPv6 addresses will exceed limit.",
            ));
        }
        let subnet = self.subnet(&eni.subnet_id)?;
        let taken = self.take_ipv6(&subnet, &wish)?;
        if let Some(eni) = self.enis.get_mut(&request.eni_id) {
            let eni = Arc::make_mut(eni);
            eni.ipv6_addresses.extend(&taken.addresses);
            eni.ipv6_prefixes.extend(&taken.prefixes);
        }
        self.publish(now);
        Ok(Response::AssignedIpv6 {
            eni_id: request.eni_id.clone(),
            addresses: taken.addresses,
            prefixes: taken.prefixes,
        })
    }

    pub(in crate::cloud) fn unassign_ipv6(
        &mut self,
        now: Duration,
        request: &UnassignIpv6Addresses,
    ) -> Result<Response, Ec2Error> {
        let eni = self.eni(&request.eni_id)?;
        if request.addresses.is_empty() && request.prefixes.is_empty() {
            return Err(Ec2Error::missing("Ipv6Addresses"));
        }
        let missing_addresses = request.addresses.iter().filter(|it| !eni.ipv6_addresses.contains(it));
        let missing_prefixes = request.prefixes.iter().filter(|it| !eni.ipv6_prefixes.contains(it));
        let not_there: Vec<String> = missing_addresses
            .map(ToString::to_string)
            .chain(missing_prefixes.map(ToString::to_string))
            .collect();
        if !not_there.is_empty() {
            return Err(Ec2Error::invalid_value(format!(
                "Some of [{}] are not assigned to interface {}",
                not_there.join(", "),
                eni.id
            )));
        }
        if let Some(eni) = self.enis.get_mut(&request.eni_id) {
            let eni = Arc::make_mut(eni);
            eni.ipv6_addresses.retain(|address| !request.addresses.contains(address));
            eni.ipv6_prefixes.retain(|prefix| !request.prefixes.contains(prefix));
        }
        self.publish(now);
        Ok(Response::UnassignedIpv6 {
            eni_id: request.eni_id.clone(),
            addresses: request.addresses.clone(),
            prefixes: request.prefixes.clone(),
        })
    }
}

fn nth(range: Ipv6Net, offset: u128) -> Option<Ipv6Addr> {
    let address = Ipv6Addr::from(u128::from(range.network()).checked_add(offset)?);
    range.contains(&address).then_some(address)
}

fn prefix_of(address: Ipv6Addr) -> Ipv6Net {
    // A length of 80 fits every IPv6 address.
    Ipv6Net::new(address, PREFIX).map_or_else(|_| Ipv6Net::default(), |net| net.trunc())
}

fn is_free(prefix: Ipv6Net, addresses: &BTreeSet<Ipv6Addr>, prefixes: &BTreeSet<Ipv6Net>) -> bool {
    !prefixes.contains(&prefix) && addresses.range(prefix.network()..=prefix.broadcast()).next().is_none()
}
