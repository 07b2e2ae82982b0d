//! The node's own network: its ENIs, its rules and what its packet filter depends on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use vpc::{Family, Mac, RouteTable};

/// What the node should have, apart from its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// The family of pods' addresses, and of the ENIs' own.
    pub family: Family,
    /// The instance's own ENI.
    pub primary: PrimaryLink,
    /// The IPv4 blocks of the VPC: packets to them keep the pod's address.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// What the operator chose.
    pub options: HostOptions,
    /// The ENIs attached later.
    pub enis: Vec<EniNetwork>,
}

/// The primary ENI, whose addresses and routes belong to the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryLink {
    /// Its link-layer address, by which its link is found.
    pub mac: Mac,
    /// Its first IPv4 address; pods' packets that leave the VPC carry it.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if it has one; IPv6 packets of IPv4 pods carry it.
    pub address_v6: Option<Ipv6Addr>,
}

/// How source ports are chosen where pods share the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RandomSnat {
    /// At random, by a generator: `prng`.
    #[default]
    Prng,
    /// From a hash of the connection: `hashrandom`.
    HashRandom,
    /// The original port where it is free: `none`.
    None,
}

/// The operator's choices for the node's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOptions {
    /// Something outside the node translates pods' addresses, so the node does not.
    pub external_snat: bool,
    /// Node ports work for pods on secondary ENIs too.
    pub node_port: bool,
    /// How source ports are chosen.
    pub random_snat: RandomSnat,
    /// Further blocks to which packets keep the pod's address.
    pub exclude_snat_cidrs: Vec<Ipv4Net>,
    /// Blocks that only the primary ENI reaches.
    pub external_service_cidrs: Vec<Ipv4Net>,
    /// The bit, or bits, of packet and connection marks that are ours. Not 0.
    pub connmark: u32,
    /// How the names of pods' host veths begin; one to four bytes.
    pub veth_prefix: String,
    /// The MTU of every ENI, in bytes.
    pub eni_mtu: u32,
    /// Pods reach the other family too, with an address that only the node knows: IPv4 in an
    /// IPv6 cluster, IPv6 in an IPv4 cluster.
    pub egress: bool,
    /// Pods with security groups of their own send all they send through their branch ENI, also
    /// what is for the node itself.
    pub strict_branches: bool,
}

impl Default for HostOptions {
    /// The values that a cluster has unless its operator says otherwise.
    fn default() -> Self {
        Self {
            external_snat: false,
            node_port: true,
            random_snat: RandomSnat::Prng,
            exclude_snat_cidrs: Vec::new(),
            external_service_cidrs: Vec::new(),
            connmark: 0x80,
            veth_prefix: "eni".to_owned(),
            eni_mtu: 9001,
            egress: false,
            strict_branches: false,
        }
    }
}

impl HostOptions {
    /// Whether some packets need the mark that takes them to the primary ENI.
    #[must_use]
    pub fn needs_mark(&self) -> bool {
        self.node_port || !self.external_snat
    }
}

/// An ENI attached after the instance started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EniNetwork {
    /// Its link-layer address, by which its link is found.
    pub mac: Mac,
    /// The route table that carries its traffic; never the main table.
    pub table: RouteTable,
    /// Its own address, of the family of pods.
    pub address: IpAddr,
    /// The block of its subnet, of the same family.
    pub subnet: IpNet,
    /// Whether it carries branch ENIs; then no rule leads from its address to its table.
    pub is_trunk: bool,
}
