//! Building a world.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::bucket::Buckets;
use super::credentials::Keyring;
use super::fault::Faults;
use super::history::History;
use super::ids::Dice;
use super::instance::{SecurityGroup, Vpc};
use super::latency::Latencies;
use super::limits::{self, InstanceType};
use super::log::CallLog;
use super::model::{Cloud, Knobs};
use super::snapshot::Snapshot;
use super::subnet::Placement;

/// The access key of a person who may do everything: for callers outside of any instance.
pub const STATIC_ACCESS_KEY: &str = "AKIALAB0000000000000";
/// The secret beside it.
pub const STATIC_SECRET_KEY: &str = "lab-secret";

/// What a world begins with.
#[derive(Debug, Clone)]
pub struct CloudBuilder {
    seed: u64,
    region: String,
    cidrs: Vec<Ipv4Net>,
    ipv6_cidrs: Vec<Ipv6Net>,
    subnets: Vec<(Ipv4Net, String)>,
    placement: Placement,
    types: Vec<InstanceType>,
    epoch_unix: u64,
}

impl CloudBuilder {
    /// An empty VPC of 10.0.0.0/16 in us-west-2.
    pub fn new(seed: u64) -> CloudBuilder {
        CloudBuilder {
            seed,
            region: "us-west-2".to_owned(),
            cidrs: vec![net([10, 0, 0, 0], 16)],
            ipv6_cidrs: Vec::new(),
            subnets: Vec::new(),
            placement: Placement::default(),
            types: limits::known(),
            // The first of January 2026; a world under real time takes the real clock instead.
            epoch_unix: 1_767_225_600,
        }
    }

    /// VPC 10.0.0.0/16 with two zones of two subnets each: 10.0.0.0/20 and 10.0.32.0/20 in
    /// us-west-2a, 10.0.16.0/20 and 10.0.48.0/20 in us-west-2b.
    pub fn two_zones(seed: u64) -> CloudBuilder {
        CloudBuilder::new(seed)
            .subnet(net([10, 0, 0, 0], 20), "us-west-2a")
            .subnet(net([10, 0, 16, 0], 20), "us-west-2b")
            .subnet(net([10, 0, 32, 0], 20), "us-west-2a")
            .subnet(net([10, 0, 48, 0], 20), "us-west-2b")
    }

    /// Adds a subnet.
    pub fn subnet(mut self, cidr: Ipv4Net, zone: &str) -> CloudBuilder {
        self.subnets.push((cidr, zone.to_owned()));
        self
    }

    /// Replaces the VPC's ranges.
    pub fn vpc_cidrs(mut self, cidrs: Vec<Ipv4Net>) -> CloudBuilder {
        self.cidrs = cidrs;
        self
    }

    /// Gives the VPC 2001:db8:1234:1a00::/56, and each subnet a /64 of it in the order in which
    /// they are added.
    pub fn ipv6(mut self) -> CloudBuilder {
        let first = Ipv6Addr::new(0x2001, 0xdb8, 0x1234, 0x1a00, 0, 0, 0, 0);
        self.ipv6_cidrs = Ipv6Net::new(first, 56).into_iter().collect();
        self
    }

    /// Another region; zones of the subnets must be named to match.
    pub fn region(mut self, region: &str) -> CloudBuilder {
        self.region = region.to_owned();
        self
    }

    /// Where new addresses come from.
    pub fn placement(mut self, placement: Placement) -> CloudBuilder {
        self.placement = placement;
        self
    }

    /// Adds or replaces an instance type.
    pub fn instance_type(mut self, instance_type: InstanceType) -> CloudBuilder {
        self.types.push(instance_type);
        self
    }

    /// The wall-clock time at which the world begins, in seconds since 1970.
    pub fn epoch_unix(mut self, seconds: u64) -> CloudBuilder {
        self.epoch_unix = seconds;
        self
    }

    /// Makes the world. Subnet ids are in the snapshot; [`Snapshot::subnets`] is sorted by id,
    /// so look them up by range.
    pub fn build(self) -> Cloud {
        let mut dice = Dice::new(self.seed);
        let vpc = Arc::new(Vpc { id: dice.id("vpc"), cidrs: self.cidrs, ipv6_cidrs: self.ipv6_cidrs });
        let default_group = dice.id("sg");
        let group = SecurityGroup { id: default_group.clone(), name: "default".to_owned() };
        let groups = Arc::new(BTreeMap::from([(default_group.clone(), group)]));
        let first = Snapshot {
            version: 0,
            at: Duration::ZERO,
            region: self.region.clone(),
            vpc: vpc.clone(),
            subnets: BTreeMap::new(),
            groups: groups.clone(),
            instances: BTreeMap::new(),
            enis: BTreeMap::new(),
        };
        let mut keyring = Keyring::new();
        keyring.add_static(STATIC_ACCESS_KEY, STATIC_SECRET_KEY);
        let mut cloud = Cloud {
            region: self.region,
            account: "123456789012".to_owned(),
            epoch_unix: self.epoch_unix,
            dice,
            vpc,
            subnets: BTreeMap::new(),
            space: BTreeMap::new(),
            strangers: BTreeMap::new(),
            groups,
            default_group,
            types: self.types.into_iter().map(|it| (it.name.clone(), it)).collect(),
            instances: BTreeMap::new(),
            enis: BTreeMap::new(),
            client_tokens: BTreeMap::new(),
            transitions: BTreeMap::new(),
            history: History::new(first),
            knobs: Knobs {
                placement: self.placement,
                attach_delay: Duration::ZERO,
                detach_delay: Duration::ZERO,
            },
            keyring,
            faults: Faults::default(),
            buckets: Buckets::default(),
            latencies: Latencies::default(),
            log: CallLog::default(),
            trees: BTreeMap::new(),
        };
        for (cidr, zone) in self.subnets {
            cloud.insert_subnet(cidr, &zone);
        }
        cloud.publish(Duration::ZERO);
        cloud
    }
}

fn net(octets: [u8; 4], length: u8) -> Ipv4Net {
    // Only called above, with lengths up to 32.
    Ipv4Net::new(octets.into(), length).unwrap_or_default()
}
