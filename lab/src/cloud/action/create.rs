//! `CreateNetworkInterface` and `DeleteNetworkInterface`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::cloud::eni::{Eni, PrivateIp};
use crate::cloud::error::Ec2Error;
use crate::cloud::model::Cloud;
use crate::cloud::request::{CreateNetworkInterface, Response};
use crate::cloud::subnet::FreeSpace;

use super::addresses::{MOST_SLOTS, Wish, WishError, take};
use super::ipv6::Ipv6Wish;

/// Tags that a resource may carry.
const MOST_TAGS: usize = 50;

impl Cloud {
    pub(in crate::cloud) fn create_network_interface(
        &mut self,
        now: Duration,
        request: &CreateNetworkInterface,
    ) -> Result<Response, Ec2Error> {
        if let Some(token) = &request.client_token
            && let Some((first, eni_id)) = self.client_tokens.get(token)
        {
            if first != request {
                return Err(Ec2Error::new(
                    "IdempotentParameterMismatch",
                    format!("The client token '{token}' was used before with other parameters"),
                ));
            }
            let eni = self.eni(&eni_id.clone())?;
            return Ok(Response::Created { eni, client_token: request.client_token.clone() });
        }
        let eni = Arc::new(self.new_eni(request)?);
        self.enis.insert(eni.id.clone(), eni.clone());
        if let Some(token) = &request.client_token {
            self.client_tokens.insert(token.clone(), (request.clone(), eni.id.clone()));
        }
        self.publish(now);
        Ok(Response::Created { eni, client_token: request.client_token.clone() })
    }

    /// Makes an ENI and takes its addresses; the caller puts it into the world.
    pub(in crate::cloud) fn new_eni(&mut self, request: &CreateNetworkInterface) -> Result<Eni, Ec2Error> {
        let subnet = self.subnet(&request.subnet_id)?;
        let groups = self.groups_or_default(&request.groups)?;
        if request.tags.len() > MOST_TAGS {
            return Err(Ec2Error::new("TagLimitExceeded", "More than 50 tags for one resource"));
        }
        let (primary, wish) = sort_out(request)?;
        if 1 + wish.slots() > MOST_SLOTS {
            return Err(Ec2Error::new(
                "PrivateIpAddressLimitExceeded",
                "Number of private addresses will exceed limit.",
            ));
        }
        // Work on a copy of the free space: a refusal must not leave addresses taken.
        let mut space = self.space.get(&subnet.id).cloned().unwrap_or_else(|| FreeSpace::new(subnet.cidr));
        let placement = self.knobs.placement;
        let primary = match primary {
            Some(address) => {
                space.take(address).map_err(|why| WishError::Address(address, why).on_create())?;
                address
            }
            None => space
                .take_any(placement, &mut self.dice)
                .ok_or_else(|| WishError::NoFreeAddress.on_create())?,
        };
        let taken = take(&mut space, &wish, placement, &mut self.dice).map_err(WishError::on_create)?;
        // A subnet with IPv6 gives each new ENI an address, unless the caller says what it wants.
        let ipv6_wish = Ipv6Wish {
            count: match (request.ipv6_count, request.ipv6_prefix_count) {
                (Some(count), _) => count,
                (None, Some(_)) => 0,
                (None, None) => u16::from(subnet.ipv6_cidr.is_some()),
            },
            prefix_count: request.ipv6_prefix_count.unwrap_or(0),
            ..Ipv6Wish::default()
        };
        let ipv6 = self.take_ipv6(&subnet, &ipv6_wish)?;
        let mut eni = self.blank_eni(&subnet, groups);
        self.space.insert(subnet.id.clone(), space);
        eni.addresses.push(PrivateIp { address: primary, is_primary: true });
        eni.addresses.extend(taken.addresses.iter().map(|&address| PrivateIp { address, is_primary: false }));
        eni.prefixes = taken.prefixes;
        eni.ipv6_addresses = ipv6.addresses;
        eni.ipv6_prefixes = ipv6.prefixes;
        eni.description.clone_from(&request.description);
        eni.tags.clone_from(&request.tags);
        eni.kind = request.kind;
        eni.connection_tracking = request.connection_tracking;
        Ok(eni)
    }

    pub(in crate::cloud) fn groups_or_default(&self, groups: &[String]) -> Result<Vec<String>, Ec2Error> {
        if groups.is_empty() {
            return Ok(vec![self.default_group.clone()]);
        }
        match groups.iter().find(|id| !self.groups.contains_key(*id)) {
            None => Ok(groups.to_vec()),
            Some(unknown) => Err(Ec2Error::new(
                "InvalidSecurityGroupID.NotFound",
                format!("The securityGroup ID '{unknown}' does not exist"),
            )),
        }
    }

    pub(in crate::cloud) fn delete_network_interface(
        &mut self,
        now: Duration,
        id: &str,
    ) -> Result<Response, Ec2Error> {
        let eni = self.eni(id)?;
        if eni.attachment.is_some() {
            return Err(Ec2Error::invalid_value(format!("Network interface '{id}' is currently in use.")));
        }
        self.drop_eni(id);
        self.publish(now);
        Ok(Response::Done)
    }
}

/// The primary address asked for, if any, and everything else that is wanted.
fn sort_out(request: &CreateNetworkInterface) -> Result<(Option<Ipv4Addr>, Wish), Ec2Error> {
    let mut primaries: Vec<_> =
        request.private_ips.iter().filter(|(_, is_primary)| *is_primary).map(|(ip, _)| *ip).collect();
    primaries.extend(request.primary_ip);
    if primaries.len() > 1 {
        return Err(Ec2Error::combination("Only one primary private IP address can be specified"));
    }
    let wish = Wish {
        count: request.secondary_count.unwrap_or(0),
        addresses: request
            .private_ips
            .iter()
            .filter(|(_, is_primary)| !is_primary)
            .map(|(ip, _)| *ip)
            .collect(),
        prefix_count: request.prefix_count.unwrap_or(0),
        prefixes: request.prefixes.clone(),
    };
    wish.check_combination()?;
    Ok((primaries.first().copied(), wish))
}
