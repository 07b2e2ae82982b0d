//! The ENIs as instance metadata lists them: hints, which may be seconds or minutes old.

use std::net::Ipv4Addr;
use std::str::FromStr;

use futures::future::try_join_all;
use ipnet::Ipv4Net;
use vpc::{EniId, EniSlot, Mac, Prefix, SubnetId};

use super::{FactError, FactReader, SUBNET_CIDR};

/// An ENI as instance metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) eni: EniId,
    pub(crate) mac: Mac,
    pub(crate) slot: EniSlot,
    pub(crate) subnet: Option<(SubnetId, Ipv4Net)>,
    /// Its own address; an EFA-only ENI has none.
    pub(crate) primary_ip: Option<Ipv4Addr>,
    pub(crate) secondary_ips: Vec<Ipv4Addr>,
    /// Its IPv4 prefixes.
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
        let (addresses, prefixes) = (of_eni("local-ipv4s"), of_eni("ipv4-prefix"));
        let (eni, subnet, cidr, card, device, addresses, prefixes) = tokio::try_join!(
            self.optional::<EniId>(&id),
            self.optional::<SubnetId>(&subnet),
            self.optional::<Ipv4Net>(&cidr),
            self.optional::<u16>(&card),
            self.optional::<u16>(&device),
            self.optional_list::<Ipv4Addr>(&addresses),
            self.optional_list::<Prefix>(&prefixes),
        )?;
        let (Some(eni), Some(device)) = (eni, device) else { return Ok(None) };
        let mut addresses = addresses.into_iter();
        Ok(Some(Hint {
            eni,
            mac,
            // Only instances with several cards have the leaf.
            slot: EniSlot::new(card.unwrap_or(0), device),
            subnet: subnet.zip(cidr.map(|cidr| cidr.trunc())),
            primary_ip: addresses.next(),
            secondary_ips: addresses.collect(),
            prefixes,
        }))
    }

    async fn optional_list<T: FromStr<Err: ToString>>(&self, leaf: &str) -> Result<Vec<T>, FactError> {
        match self.list(leaf).await {
            Err(FactError::Missing { .. }) => Ok(Vec::new()),
            outcome => outcome,
        }
    }
}
