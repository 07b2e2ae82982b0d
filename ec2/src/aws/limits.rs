//! What DescribeInstanceTypes says an instance type can hold.

use aws_sdk_ec2::types as sdk;
use vpc::InstanceLimits;
use vpc::limits::Hypervisor;

use super::translate::Answer;
use crate::{Class, Ec2Error, Result};

impl Answer<'_> {
    /// The limits of the type called `name`.
    pub(super) fn instance_limits(
        &self,
        name: &str,
        types: &[sdk::InstanceTypeInfo],
    ) -> Result<InstanceLimits> {
        let found = types.iter().find(|info| info.instance_type().is_some_and(|kind| kind.as_str() == name));
        let Some(info) = found else {
            let detail = "the answer does not hold the type";
            return Err(Ec2Error::new(self.action, self.resource, Class::NotFound, detail));
        };
        let network = self.required("networkInfo", info.network_info())?;
        let all_cards: u16 =
            self.positive("networkInfo.maximumNetworkInterfaces", network.maximum_network_interfaces())?;
        let default_card: u16 = self.number(
            "networkInfo.defaultNetworkCardIndex",
            Some(network.default_network_card_index().unwrap_or(0)),
        )?;
        let cards = self.cards(network.network_cards(), all_cards)?;
        let Some(&enis) = cards.get(usize::from(default_card)) else {
            let count = cards.len();
            return Err(self.malformed(&format!(
                "networkInfo.defaultNetworkCardIndex is {default_card}: expected one of {count} cards"
            )));
        };
        Ok(InstanceLimits {
            enis,
            ipv4_per_eni: self
                .positive("networkInfo.ipv4AddressesPerInterface", network.ipv4_addresses_per_interface())?,
            cards: cards.into(),
            default_card,
            vcpus: self.positive(
                "vCpuInfo.defaultVCpus",
                info.v_cpu_info().and_then(|cpus| cpus.default_v_cpus()),
            )?,
            hypervisor: match info.hypervisor().map(sdk::InstanceTypeHypervisor::as_str) {
                Some("nitro") => Hypervisor::Nitro,
                Some("xen") => Hypervisor::Xen,
                _ => Hypervisor::Unknown,
            },
            is_bare_metal: info.bare_metal().unwrap_or(false),
        })
    }

    /// The ENIs that each card takes, by card index; one card of `all` where none is listed.
    fn cards(&self, listed: &[sdk::NetworkCardInfo], all: u16) -> Result<Vec<u16>> {
        if listed.is_empty() {
            return Ok(vec![all]);
        }
        let mut cards = vec![0; listed.len()];
        for card in listed {
            let index: u16 = self.number("networkCards.networkCardIndex", card.network_card_index())?;
            let Some(limit) = cards.get_mut(usize::from(index)) else {
                return Err(self.malformed(&format!(
                    "networkCards.networkCardIndex is {index}: expected less than {}, the number of cards",
                    listed.len()
                )));
            };
            *limit =
                self.number("networkCards.maximumNetworkInterfaces", card.maximum_network_interfaces())?;
        }
        Ok(cards)
    }

    fn positive(&self, field: &str, number: Option<i32>) -> Result<u16> {
        match self.number(field, number)? {
            0 => Err(self.malformed(&format!("{field} is 0: expected at least 1"))),
            number => Ok(number),
        }
    }
}
