//! `AssignPrivateIpAddresses` and `UnassignPrivateIpAddresses`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::cloud::eni::PrivateIp;
use crate::cloud::error::Ec2Error;
use crate::cloud::ids::Dice;
use crate::cloud::model::Cloud;
use crate::cloud::request::{AssignPrivateIpAddresses, Response, UnassignPrivateIpAddresses};
use crate::cloud::subnet::{FreeSpace, Placement, Unavailable};

/// Address slots of an ENI on the largest instance type; holds for an ENI that is not attached.
pub(super) const MOST_SLOTS: usize = 50;
/// Addresses in a /28.
const BLOCK: u32 = 16;

/// Addresses and prefixes that a caller wants, by number or by name.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub(super) count: u16,
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) prefix_count: u16,
    pub(super) prefixes: Vec<Ipv4Net>,
}

/// What was taken for a wish.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) prefixes: Vec<Ipv4Net>,
}

/// Why a wish cannot be granted; actions word the same reason differently.
#[derive(Debug)]
pub(super) enum WishError {
    NoFreeAddress,
    TooFewAddressesForPrefixes,
    NoFreeBlock,
    Address(Ipv4Addr, Unavailable),
    Prefix(Ipv4Net, Unavailable),
}

impl Wish {
    /// Slots that it fills on an ENI.
    pub(super) fn slots(&self) -> usize {
        usize::from(self.count) + self.addresses.len() + usize::from(self.prefix_count) + self.prefixes.len()
    }

    /// EC2 takes one way of wishing at a time.
    pub(super) fn check_combination(&self) -> Result<(), Ec2Error> {
        let ways =
            [self.count > 0, !self.addresses.is_empty(), self.prefix_count > 0, !self.prefixes.is_empty()];
        if ways.iter().filter(|is_used| **is_used).count() > 1 {
            return Err(Ec2Error::combination(
                "Only one of a number of addresses, a list of addresses, a number of prefixes and a \
                 list of prefixes can be specified",
            ));
        }
        match self.prefixes.iter().find(|it| it.prefix_len() != 28 || it.trunc() != **it) {
            Some(odd) => Err(Ec2Error::invalid_value(format!("Invalid IPv4 prefix {odd}: expected a /28"))),
            None => Ok(()),
        }
    }
}

/// Takes everything wished for from `space`, or fails half-way: work on a copy.
pub(super) fn take(
    space: &mut FreeSpace,
    wish: &Wish,
    placement: Placement,
    dice: &mut Dice,
) -> Result<Taken, WishError> {
    let mut taken = Taken::default();
    if u32::from(wish.count) > space.available() {
        return Err(WishError::NoFreeAddress);
    }
    if u32::from(wish.prefix_count) * BLOCK > space.available() {
        return Err(WishError::TooFewAddressesForPrefixes);
    }
    for &address in &wish.addresses {
        space.take(address).map_err(|why| WishError::Address(address, why))?;
        taken.addresses.push(address);
    }
    for _ in 0..wish.count {
        taken.addresses.push(space.take_any(placement, dice).ok_or(WishError::NoFreeAddress)?);
    }
    for &prefix in &wish.prefixes {
        space.take_this_block(prefix).map_err(|why| WishError::Prefix(prefix, why))?;
        taken.prefixes.push(prefix);
    }
    for _ in 0..wish.prefix_count {
        taken.prefixes.push(space.take_block(placement, dice).ok_or(WishError::NoFreeBlock)?);
    }
    Ok(taken)
}

impl WishError {
    /// As `CreateNetworkInterface` says it.
    pub(super) fn on_create(self) -> Ec2Error {
        match self {
            WishError::Address(address, Unavailable::InUse) => {
                Ec2Error::new("InvalidIPAddress.InUse", format!("Address {address} is in use."))
            }
            other => other.on_assign(),
        }
    }

    /// As `AssignPrivateIpAddresses` says it.
    pub(super) fn on_assign(self) -> Ec2Error {
        match self {
            WishError::NoFreeAddress => Ec2Error::new(
                "InsufficientFreeAddressesInSubnet",
                "The specified subnet does not have enough free addresses to satisfy the request.",
            ),
            // EC2 tells a subnet that is full from one that is merely fragmented.
            WishError::TooFewAddressesForPrefixes => {
                Ec2Error::invalid_value("There aren't sufficient free Ipv4 addresses or prefixes")
            }
            WishError::NoFreeBlock => Ec2Error::new(
                "InsufficientCidrBlocks",
                "The specified subnet does not have enough free cidr blocks to satisfy the request.",
            ),
            WishError::Address(address, Unavailable::Outside) => Ec2Error::invalid_value(format!(
                "Address {address} does not fall within the subnet's address range"
            )),
            WishError::Address(address, Unavailable::Reserved) => {
                Ec2Error::invalid_value(format!("Address {address} is in subnet's reserved address range"))
            }
            WishError::Address(address, Unavailable::InUse) => {
                Ec2Error::invalid_value(format!("Some of [{address}] are already assigned"))
            }
            WishError::Prefix(prefix, Unavailable::InUse | Unavailable::Reserved) => {
                Ec2Error::invalid_value(format!("The prefix {prefix} is not free"))
            }
            WishError::Prefix(prefix, Unavailable::Outside) => Ec2Error::invalid_value(format!(
                "The prefix {prefix} does not fall within the subnet's address range"
            )),
        }
    }
}

impl Cloud {
    pub(in crate::cloud) fn assign_private_ips(
        &mut self,
        now: Duration,
        request: &AssignPrivateIpAddresses,
    ) -> Result<Response, Ec2Error> {
        let eni = self.eni(&request.eni_id)?;
        let wish = Wish {
            count: request.count.unwrap_or(0),
            addresses: request.addresses.clone(),
            prefix_count: request.prefix_count.unwrap_or(0),
            prefixes: request.prefixes.clone(),
        };
        if wish.slots() == 0 {
            return Err(Ec2Error::missing("SecondaryPrivateIpAddressCount"));
        }
        wish.check_combination()?;
        // Asking for what the ENI has already changes nothing.
        let wish = Wish {
            addresses: wish
                .addresses
                .into_iter()
                .filter(|wanted| !eni.addresses.iter().any(|has| has.address == *wanted))
                .collect(),
            ..wish
        };
        if eni.slots_used() + wish.slots() > self.slots_of(&request.eni_id) {
            return Err(Ec2Error::new(
                "PrivateIpAddressLimitExceeded",
                "Number of private addresses will exceed limit.",
            ));
        }
        if request.allow_reassignment {
            self.take_from_others(&request.eni_id, &wish.addresses);
        }
        let Some(mut space) = self.space.get(&eni.subnet_id).cloned() else {
            return Err(WishError::NoFreeAddress.on_assign());
        };
        let taken =
            take(&mut space, &wish, self.knobs.placement, &mut self.dice).map_err(WishError::on_assign)?;
        self.space.insert(eni.subnet_id.clone(), space);
        if let Some(eni) = self.enis.get_mut(&request.eni_id) {
            let eni = Arc::make_mut(eni);
            eni.addresses
                .extend(taken.addresses.iter().map(|&address| PrivateIp { address, is_primary: false }));
            eni.prefixes.extend(&taken.prefixes);
        }
        self.publish(now);
        let addresses =
            if request.addresses.is_empty() { taken.addresses } else { request.addresses.clone() };
        Ok(Response::Assigned { eni_id: request.eni_id.clone(), addresses, prefixes: taken.prefixes })
    }

    /// How many address slots the ENI has: as many as the type of its instance gives.
    pub(super) fn slots_of(&self, eni_id: &str) -> usize {
        self.enis
            .get(eni_id)
            .and_then(|eni| eni.attachment.as_ref())
            .and_then(|attachment| self.instances.get(&attachment.instance_id))
            .and_then(|instance| self.types.get(&instance.instance_type))
            .map_or(MOST_SLOTS, |it| usize::from(it.ipv4_per_eni))
    }

    /// Frees those of `addresses` that are secondary addresses of other ENIs.
    fn take_from_others(&mut self, eni_id: &str, addresses: &[Ipv4Addr]) {
        for eni in self.enis.values_mut().filter(|eni| eni.id != eni_id) {
            let moves = |ip: &PrivateIp| !ip.is_primary && addresses.contains(&ip.address);
            if !eni.addresses.iter().any(moves) {
                continue;
            }
            if let Some(space) = self.space.get_mut(&eni.subnet_id) {
                eni.addresses.iter().filter(|ip| moves(ip)).for_each(|ip| space.release(ip.address));
            }
            Arc::make_mut(eni).addresses.retain(|ip| !moves(ip));
        }
    }

    pub(in crate::cloud) fn unassign_private_ips(
        &mut self,
        now: Duration,
        request: &UnassignPrivateIpAddresses,
    ) -> Result<Response, Ec2Error> {
        let eni = self.eni(&request.eni_id)?;
        if request.addresses.is_empty() && request.prefixes.is_empty() {
            return Err(Ec2Error::missing("PrivateIpAddresses"));
        }
        let is_secondary =
            |wanted: &&Ipv4Addr| eni.addresses.iter().any(|has| has.address == **wanted && !has.is_primary);
        let not_there: Vec<String> = request
            .addresses
            .iter()
            .filter(|address| !is_secondary(address))
            .map(ToString::to_string)
            .chain(request.prefixes.iter().filter(|it| !eni.prefixes.contains(it)).map(ToString::to_string))
            .collect();
        if not_there.contains(&eni.primary_ip().to_string()) {
            return Err(Ec2Error::invalid_value(format!(
                "The primary address {} of {} cannot be unassigned",
                eni.primary_ip(),
                eni.id
            )));
        }
        if !not_there.is_empty() {
            return Err(Ec2Error::invalid_value(format!(
                "Some of [{}] are not assigned to interface {}",
                not_there.join(", "),
                eni.id
            )));
        }
        if let Some(space) = self.space.get_mut(&eni.subnet_id) {
            request.addresses.iter().for_each(|address| space.release(*address));
            request.prefixes.iter().for_each(|prefix| space.release_block(*prefix));
        }
        if let Some(eni) = self.enis.get_mut(&request.eni_id) {
            let eni = Arc::make_mut(eni);
            eni.addresses.retain(|ip| !request.addresses.contains(&ip.address));
            eni.prefixes.retain(|prefix| !request.prefixes.contains(prefix));
        }
        self.publish(now);
        Ok(Response::Done)
    }
}
