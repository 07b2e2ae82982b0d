//! Instances, the VPC and security groups.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

/// An instance as EC2 knows it. Its ENIs are found by their attachments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// `i-…`.
    pub id: String,
    /// Instance type, e.g. `m5.large`.
    pub instance_type: String,
    /// Subnet of the primary ENI.
    pub subnet_id: String,
    /// The VPC.
    pub vpc_id: String,
    /// Availability zone.
    pub zone: String,
    /// Zone id.
    pub zone_id: String,
    /// First address of the primary ENI.
    pub private_ip: Ipv4Addr,
    /// The primary ENI.
    pub primary_eni: String,
    /// Name of the instance role; `None` for an instance without a profile.
    pub role: Option<String>,
    /// Image.
    pub image_id: String,
    /// Reservation that it was started in.
    pub reservation_id: String,
    /// When it was started.
    pub launched: Duration,
    /// Running, or gone.
    pub state: InstanceState,
    /// Whether IMDS answers without a session token.
    pub imds_v1: bool,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    /// The private DNS name, e.g. `ip-10-0-1-2.us-west-2.compute.internal`.
    pub fn private_dns(&self, region: &str) -> String {
        private_dns(self.private_ip, region)
    }
}

/// The DNS name that EC2 gives an address of `region`.
pub(crate) fn private_dns(address: Ipv4Addr, region: &str) -> String {
    let [a, b, c, d] = address.octets();
    let domain = if region == "us-east-1" { "ec2".to_owned() } else { format!("{region}.compute") };
    format!("ip-{a}-{b}-{c}-{d}.{domain}.internal")
}

/// Whether an instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// It runs.
    Running,
    /// It was terminated; its id is still known.
    Terminated,
}

impl InstanceState {
    /// EC2's code and name.
    pub fn code_and_name(self) -> (u16, &'static str) {
        match self {
            InstanceState::Running => (16, "running"),
            InstanceState::Terminated => (48, "terminated"),
        }
    }
}

/// The one VPC of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vpc {
    /// `vpc-…`.
    pub id: String,
    /// Its ranges, the primary one first.
    pub cidrs: Vec<Ipv4Net>,
    /// Its IPv6 ranges; empty for a VPC without IPv6.
    pub ipv6_cidrs: Vec<Ipv6Net>,
}

/// A security group; the fabric enforces no rules, so it is only a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// `sg-…`.
    pub id: String,
    /// Name.
    pub name: String,
}
