//! Subnets and the accounting of their address space.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::ids::Dice;

/// A subnet as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-…`.
    pub id: String,
    /// The VPC it belongs to.
    pub vpc_id: String,
    /// Its range.
    pub cidr: Ipv4Net,
    /// Its IPv6 range, a /64, if it has one. New ENIs in it get an IPv6 address.
    pub ipv6_cidr: Option<Ipv6Net>,
    /// Availability zone, e.g. `us-west-2a`.
    pub zone: String,
    /// Zone id, e.g. `usw2-az1`.
    pub zone_id: String,
    /// Addresses that nothing uses, a delegated prefix counting as 16 in use.
    pub available: u32,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// Where EC2 takes the next free address of a subnet from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// Anywhere in the subnet, as EC2 does. This is what fragments a subnet for prefixes.
    #[default]
    Scattered,
    /// The lowest free one; easier on the eye.
    Ascending,
}

/// Addresses in a /28 prefix.
const BLOCK: usize = 16;
/// AWS keeps the network address, the router, the DNS server and one for later.
const RESERVED_FRONT: usize = 4;

/// Which addresses of a subnet are taken, one flag each.
#[derive(Debug, Clone)]
pub(crate) struct FreeSpace {
    first: u32,
    taken: Vec<bool>,
    free: usize,
}

/// Why an address of the caller's choice is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unavailable {
    Outside,
    Reserved,
    InUse,
}

impl FreeSpace {
    pub(crate) fn new(cidr: Ipv4Net) -> FreeSpace {
        let first = u32::from(cidr.network());
        let size = cidr.hosts().count().max(1);
        // `hosts` leaves out the network and the broadcast address of anything larger than a /31.
        let size = if cidr.prefix_len() < 31 { size + 2 } else { size };
        let mut taken = vec![false; size];
        for index in (0..RESERVED_FRONT.min(size)).chain([size - 1]) {
            taken[index] = true;
        }
        let free = taken.iter().filter(|taken| !**taken).count();
        FreeSpace { first, taken, free }
    }

    pub(crate) fn available(&self) -> u32 {
        u32::try_from(self.free).unwrap_or(u32::MAX)
    }

    fn index(&self, address: Ipv4Addr) -> Option<usize> {
        let offset = u32::from(address).checked_sub(self.first)?;
        usize::try_from(offset).ok().filter(|index| *index < self.taken.len())
    }

    fn address(&self, index: usize) -> Ipv4Addr {
        // A subnet has at most 2^16 addresses, so the index fits.
        Ipv4Addr::from(self.first + u32::try_from(index).unwrap_or(0))
    }

    fn is_reserved(&self, index: usize) -> bool {
        index < RESERVED_FRONT || index + 1 == self.taken.len()
    }

    pub(crate) fn check(&self, address: Ipv4Addr) -> Result<(), Unavailable> {
        let index = self.index(address).ok_or(Unavailable::Outside)?;
        match (self.is_reserved(index), self.taken[index]) {
            (true, _) => Err(Unavailable::Reserved),
            (false, true) => Err(Unavailable::InUse),
            (false, false) => Ok(()),
        }
    }

    pub(crate) fn take(&mut self, address: Ipv4Addr) -> Result<(), Unavailable> {
        self.check(address)?;
        if let Some(index) = self.index(address) {
            self.taken[index] = true;
            self.free -= 1;
        }
        Ok(())
    }

    /// Takes any free address; `None` when there is none.
    pub(crate) fn take_any(&mut self, placement: Placement, dice: &mut Dice) -> Option<Ipv4Addr> {
        if self.free == 0 {
            return None;
        }
        let start = self.start(placement, self.taken.len(), dice);
        let index = rotate(self.taken.len(), start).find(|index| !self.taken[*index])?;
        self.taken[index] = true;
        self.free -= 1;
        Some(self.address(index))
    }

    /// Takes an aligned /28 of which nothing is in use; `None` when there is none.
    pub(crate) fn take_block(&mut self, placement: Placement, dice: &mut Dice) -> Option<Ipv4Net> {
        let blocks = self.taken.len() / BLOCK;
        let start = self.start(placement, blocks, dice);
        let block = rotate(blocks, start).find(|block| self.block_is_free(*block))?;
        self.mark_block(block);
        Ipv4Net::new(self.address(block * BLOCK), 28).ok()
    }

    /// Takes the /28 of the caller's choice.
    pub(crate) fn take_this_block(&mut self, prefix: Ipv4Net) -> Result<(), Unavailable> {
        let index = self.index(prefix.network()).ok_or(Unavailable::Outside)?;
        if prefix.prefix_len() != 28 || index + BLOCK > self.taken.len() {
            return Err(Unavailable::Outside);
        }
        if !self.block_is_free(index / BLOCK) {
            return Err(Unavailable::InUse);
        }
        self.mark_block(index / BLOCK);
        Ok(())
    }

    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        if let Some(index) = self.index(address).filter(|index| !self.is_reserved(*index))
            && std::mem::replace(&mut self.taken[index], false)
        {
            self.free += 1;
        }
    }

    pub(crate) fn release_block(&mut self, prefix: Ipv4Net) {
        for address in u32::from(prefix.network())..=u32::from(prefix.broadcast()) {
            self.release(Ipv4Addr::from(address));
        }
    }

    fn start(&self, placement: Placement, bound: usize, dice: &mut Dice) -> usize {
        match placement {
            Placement::Ascending => 0,
            Placement::Scattered => usize::try_from(dice.below(bound as u64)).unwrap_or(0),
        }
    }

    fn block_is_free(&self, block: usize) -> bool {
        self.taken[block * BLOCK..(block + 1) * BLOCK].iter().all(|taken| !taken)
    }

    fn mark_block(&mut self, block: usize) {
        self.taken[block * BLOCK..(block + 1) * BLOCK].fill(true);
        self.free -= BLOCK;
    }
}

/// `0..length`, beginning at `start` and going round.
fn rotate(length: usize, start: usize) -> impl Iterator<Item = usize> {
    (start..length).chain(0..start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(cidr: &str) -> FreeSpace {
        FreeSpace::new(cidr.parse().unwrap())
    }

    #[test]
    fn aws_keeps_the_first_four_addresses_and_the_last() {
        let mut space = space("10.0.0.0/28");

        assert_eq!(space.available(), 11);
        assert_eq!(space.take(Ipv4Addr::new(10, 0, 0, 3)), Err(Unavailable::Reserved));
        assert_eq!(space.take(Ipv4Addr::new(10, 0, 0, 15)), Err(Unavailable::Reserved));
        assert_eq!(space.take(Ipv4Addr::new(10, 0, 0, 16)), Err(Unavailable::Outside));
        assert_eq!(space.take(Ipv4Addr::new(10, 0, 0, 4)), Ok(()));
        assert_eq!(space.take(Ipv4Addr::new(10, 0, 0, 4)), Err(Unavailable::InUse));
        let dice = &mut Dice::new(1);
        assert_eq!(std::iter::from_fn(|| space.take_any(Placement::Scattered, dice)).count(), 10);
        assert_eq!(space.available(), 0);
    }

    #[test]
    fn one_address_in_each_block_leaves_no_room_for_a_prefix() {
        let dice = &mut Dice::new(1);
        let mut space = space("10.0.0.0/24");

        for block in 1..15 {
            space.take(Ipv4Addr::new(10, 0, 0, block * 16 + 5)).unwrap();
        }

        assert_eq!(space.available(), 251 - 14);
        assert_eq!(space.take_block(Placement::Scattered, dice), None);
        space.release(Ipv4Addr::new(10, 0, 0, 53));
        let freed = space.take_block(Placement::Scattered, dice).unwrap();
        assert_eq!(freed, "10.0.0.48/28".parse().unwrap());
        space.release_block(freed);
        assert_eq!(space.available(), 251 - 13);
    }
}
