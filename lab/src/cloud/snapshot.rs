//! The world at one moment, for the fabric that wires it and for IMDS that tells of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::eni::Eni;
use super::instance::{Instance, SecurityGroup, Vpc};
use super::subnet::Subnet;

/// The world at one moment. Cheap to make and to keep: unchanged things are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Grows with every visible change.
    pub version: u64,
    /// When this state began.
    pub at: Duration,
    /// The region's name.
    pub region: String,
    /// The VPC with its current ranges.
    pub vpc: Arc<Vpc>,
    /// Subnets by id.
    pub subnets: BTreeMap<String, Arc<Subnet>>,
    /// Security groups by id.
    pub groups: Arc<BTreeMap<String, SecurityGroup>>,
    /// Instances by id, terminated ones included.
    pub instances: BTreeMap<String, Arc<Instance>>,
    /// ENIs by id, attached or not.
    pub enis: BTreeMap<String, Arc<Eni>>,
}

impl Snapshot {
    /// The ENIs that `instance` sees, by network card and device index. Those still attaching
    /// or already detaching are not among them.
    pub fn attached(&self, instance: &str) -> Vec<&Arc<Eni>> {
        let mut enis: Vec<_> = self
            .enis
            .values()
            .filter_map(|eni| eni.attached_to(instance).map(|it| (it.network_card, it.device_index, eni)))
            .collect();
        enis.sort_by_key(|(card, index, _)| (*card, *index));
        enis.into_iter().map(|(_, _, eni)| eni).collect()
    }

    /// The ENI with that MAC address, if `instance` sees it.
    pub fn eni_by_mac(&self, instance: &str, mac: &str) -> Option<&Arc<Eni>> {
        self.attached(instance).into_iter().find(|eni| eni.mac == mac)
    }

    /// The ENI that `address` belongs to, by itself or by a prefix.
    pub fn eni_of(&self, address: IpAddr) -> Option<&Arc<Eni>> {
        self.enis.values().find(|eni| match address {
            IpAddr::V4(address) => {
                let mut single = eni.addresses.iter().map(|it| it.address);
                single.any(|it| it == address) || eni.prefixes.iter().any(|it| it.contains(&address))
            }
            IpAddr::V6(address) => {
                eni.ipv6_addresses.contains(&address)
                    || eni.ipv6_prefixes.iter().any(|it| it.contains(&address))
            }
        })
    }
}
