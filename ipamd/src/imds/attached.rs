//! The ENIs as instance metadata lists them: hints, which may be seconds or minutes old.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use futures::future::try_join_all;
use ipnet::Ipv4Net;
use vpc::{EniId, EniSlot, Family, Mac, Prefix, SubnetBlocks, SubnetId};

use super::{FactError, FactReader, SUBNET_CIDR};

/// An ENI as instance metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) eni: EniId,
    pub(crate) mac: Mac,
    pub(crate) slot: EniSlot,
    pub(crate) subnet: Option<(SubnetId, SubnetBlocks)>,
    /// Its own address; an EFA-only ENI has none.
    pub(crate) primary_ip: Option<Ipv4Addr>,
    pub(crate) secondary_ips: Vec<Ipv4Addr>,
    /// Its own IPv6 address, read only where pods have IPv6 addresses.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Its prefixes of the family of pods' addresses.
    pub(crate) prefixes: Vec<Prefix>,
}

impl FactReader {
    /// The ENIs that the service lists. One that was attached a moment ago may be missing, one
    /// that has just left may still be there.
    ///
    /// # Errors
    /// [`FactError`] if the service fails.
    pub(crate) async fn attached(&self) -> Result<Vec<Hint>, FactError> {
        let macs = self.text("network/interfaces/macs").await?;
        let macs = macs.lines().filter_map(|line| line.trim().trim_end_matches('/').parse::<Mac>().ok());
        Ok(try_join_all(macs.map(|mac| self.hint(mac))).await?.into_iter().flatten().collect())
    }

    /// One ENI; none if it has left in between.
    async fn hint(&self, mac: Mac) -> Result<Option<Hint>, FactError> {
        let of_eni = |leaf: &str| format!("network/interfaces/macs/{mac}/{leaf}");
        let (id, subnet, cidr) = (of_eni("interface-id"), of_eni("subnet-id"), of_eni(SUBNET_CIDR));
        let (card, device) = (of_eni("network-card"), of_eni("device-number"));
        let addresses = of_eni("local-ipv4s");
        let prefixes = of_eni(match self.family {
            Family::V4 => "ipv4-prefix",
            Family::V6 => "ipv6-prefix",
        });
        let (eni, subnet, cidr, card, device, addresses, prefixes) = tokio::try_join!(
            self.optional::<EniId>(&id),
            self.optional::<SubnetId>(&subnet),
            self.optional::<Ipv4Net>(&cidr),
            self.optional::<u16>(&card),
            self.optional::<u16>(&device),
            self.optional_list::<Ipv4Addr>(&addresses),
            self.optional_list::<Prefix>(&prefixes),
        )?;
        let (ipv6, ipv6_block) = tokio::try_join!(self.ipv6(mac), self.subnet_ipv6_cidr(mac))?;
        let (Some(eni), Some(device)) = (eni, device) else { return Ok(None) };
        let mut addresses = addresses.into_iter();
        Ok(Some(Hint {
            eni,
            mac,
            // Only instances with several cards have the leaf.
            slot: EniSlot::new(card.unwrap_or(0), device),
            subnet: subnet.zip(cidr.map(|cidr| SubnetBlocks { ipv4: cidr.trunc(), ipv6: ipv6_block })),
            primary_ip: addresses.next(),
            secondary_ips: addresses.collect(),
            ipv6,
            prefixes,
        }))
    }

    /// The IPv6 address of an ENI, where that matters.
    async fn ipv6(&self, mac: Mac) -> Result<Option<Ipv6Addr>, FactError> {
        if self.family == Family::V4 {
            return Ok(None);
        }
        let addresses = format!("network/interfaces/macs/{mac}/ipv6s");
        Ok(self.optional_list::<Ipv6Addr>(&addresses).await?.first().copied())
    }

    pub(super) async fn optional_list<T: FromStr<Err: ToString>>(
        &self,
        leaf: &str,
    ) -> Result<Vec<T>, FactError> {
        match self.list(leaf).await {
            Err(FactError::Missing { .. }) => Ok(Vec::new()),
            outcome => outcome,
        }
    }
}
