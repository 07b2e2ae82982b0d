//! What the instance says of itself: facts that hold for its life, and hints that may be stale.

mod attached;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use ec2::{ImdsError, Metadata};
use ipnet::{Ipv4Net, Ipv6Net};
use vpc::{EniId, Family, InstanceId, Mac, SecurityGroupId, SubnetId, VpcId};

pub(crate) use attached::Hint;

/// What instance metadata says of this instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceFacts {
    pub(crate) region: String,
    pub(crate) availability_zone: String,
    pub(crate) instance: InstanceId,
    pub(crate) instance_type: String,
    /// The primary ENI and its link-layer address.
    pub(crate) primary_eni: EniId,
    pub(crate) primary_mac: Mac,
    /// The primary ENI's subnet and the IPv4 block of it.
    pub(crate) subnet: SubnetId,
    pub(crate) subnet_cidr: Ipv4Net,
    /// Its IPv6 block, if it has one; read only where pods have IPv6 addresses.
    pub(crate) subnet_ipv6_cidr: Option<Ipv6Net>,
    pub(crate) vpc: VpcId,
    /// The node's own address.
    pub(crate) node_ip: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub(crate) node_ipv6: Option<Ipv6Addr>,
}

/// What may change while the instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkFacts {
    /// The IPv4 blocks of the VPC, in the service's order.
    pub(crate) vpc_cidrs: Vec<Ipv4Net>,
    /// Its IPv6 blocks; read only where pods have IPv6 addresses.
    pub(crate) vpc_ipv6_cidrs: Vec<Ipv6Net>,
    /// The security groups of the primary ENI, sorted.
    pub(crate) security_groups: Vec<SecurityGroupId>,
}

/// Why a fact is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FactError {
    /// The service does not answer, or with an error.
    #[error(transparent)]
    Imds(#[from] ImdsError),
    /// The service has nothing where every instance has something.
    #[error("read {path} from instance metadata: there is nothing; is this an EC2 instance in a VPC?")]
    Missing { path: String },
    /// The answer is not what it should be.
    #[error("read {path} from instance metadata: {value:?}: {fault}")]
    Malformed { path: String, value: String, fault: String },
}

impl FactError {
    /// Whether the service may answer better later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Imds(ImdsError::Unreachable { .. }) => true,
            Self::Imds(ImdsError::Status { status, .. }) => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}

/// The most of a foreign answer that an error repeats.
const SHOWN: usize = 100;

/// Reads facts from instance metadata, as far as they matter to pods of one family.
#[derive(Clone)]
pub(crate) struct FactReader {
    imds: Arc<dyn Metadata>,
    family: Family,
}

impl FactReader {
    /// A reader that asks `imds`, for pods with addresses of `family`.
    pub(crate) fn new(imds: impl Metadata, family: Family) -> Self {
        Self { imds: Arc::new(imds), family }
    }

    /// Everything that holds for the instance's life, in two rounds of concurrent reads.
    ///
    /// # Errors
    /// [`FactError`] with the first fact that could not be read.
    pub(crate) async fn instance(&self) -> Result<InstanceFacts, FactError> {
        let (region, availability_zone, instance, instance_type, primary_mac, node_ip, node_ipv6) = tokio::try_join!(
            self.region(),
            self.text("placement/availability-zone"),
            self.value::<InstanceId>("instance-id"),
            self.text("instance-type"),
            self.value::<Mac>("mac"),
            self.value::<Ipv4Addr>("local-ipv4"),
            self.optional::<Ipv6Addr>("ipv6"),
        )?;
        let of_primary = |leaf: &str| format!("network/interfaces/macs/{primary_mac}/{leaf}");
        let (eni, subnet, vpc, cidr) = (
            of_primary("interface-id"),
            of_primary("subnet-id"),
            of_primary("vpc-id"),
            of_primary(SUBNET_CIDR),
        );
        let (primary_eni, subnet, vpc, subnet_cidr) = tokio::try_join!(
            self.value::<EniId>(&eni),
            self.value::<SubnetId>(&subnet),
            self.value::<VpcId>(&vpc),
            self.value::<Ipv4Net>(&cidr),
        )?;
        let subnet_ipv6_cidr = self.subnet_ipv6_cidr(primary_mac).await?;
        Ok(InstanceFacts {
            region,
            availability_zone,
            instance,
            instance_type,
            primary_eni,
            primary_mac,
            subnet,
            subnet_cidr: subnet_cidr.trunc(),
            subnet_ipv6_cidr,
            vpc,
            node_ip,
            node_ipv6,
        })
    }

    /// What may have changed since the last look.
    ///
    /// # Errors
    /// [`FactError`] with the first fact that could not be read.
    pub(crate) async fn network(&self, primary_mac: Mac) -> Result<NetworkFacts, FactError> {
        let of_primary = |leaf: &str| format!("network/interfaces/macs/{primary_mac}/{leaf}");
        let (cidrs, groups) = (of_primary("vpc-ipv4-cidr-blocks"), of_primary("security-group-ids"));
        let (vpc_cidrs, mut security_groups) =
            tokio::try_join!(self.list::<Ipv4Net>(&cidrs), self.list::<SecurityGroupId>(&groups))?;
        security_groups.sort();
        let vpc_ipv6_cidrs = match self.family {
            Family::V4 => Vec::new(),
            Family::V6 => self.optional_list(&of_primary("vpc-ipv6-cidr-blocks")).await?,
        };
        Ok(NetworkFacts { vpc_cidrs, vpc_ipv6_cidrs, security_groups })
    }

    /// The IPv6 block of the subnet of an ENI, where that matters.
    async fn subnet_ipv6_cidr(&self, mac: Mac) -> Result<Option<Ipv6Net>, FactError> {
        if self.family == Family::V4 {
            return Ok(None);
        }
        let leaf = format!("network/interfaces/macs/{mac}/subnet-ipv6-cidr-blocks");
        let blocks = self.optional_list::<Ipv6Net>(&leaf).await?;
        Ok(blocks.first().map(Ipv6Net::trunc))
    }

    async fn region(&self) -> Result<String, FactError> {
        const PATH: &str = "/latest/dynamic/instance-identity/document";
        let text = self.imds.get(PATH).await?.ok_or_else(|| FactError::Missing { path: PATH.to_owned() })?;
        let document: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| malformed(PATH, &text, &error.to_string()))?;
        match document.get("region").and_then(serde_json::Value::as_str) {
            Some(region) if !region.is_empty() => Ok(region.to_owned()),
            _ => Err(malformed(PATH, &text, "expected a JSON object with a region")),
        }
    }

    async fn text(&self, leaf: &str) -> Result<String, FactError> {
        let path = path(leaf);
        match self.imds.get(&path).await?.map(|text| text.trim().to_owned()) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(FactError::Missing { path }),
        }
    }

    async fn value<T: FromStr<Err: ToString>>(&self, leaf: &str) -> Result<T, FactError> {
        parse(leaf, &self.text(leaf).await?)
    }

    async fn list<T: FromStr<Err: ToString>>(&self, leaf: &str) -> Result<Vec<T>, FactError> {
        self.text(leaf).await?.split_whitespace().map(|item| parse(leaf, item)).collect()
    }

    async fn optional<T: FromStr<Err: ToString>>(&self, leaf: &str) -> Result<Option<T>, FactError> {
        match self.value(leaf).await {
            Ok(value) => Ok(Some(value)),
            Err(FactError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The name of the leaf with a subnet's IPv4 block.
const SUBNET_CIDR: &str = "subnet-ipv4-cidr-block";

fn path(leaf: &str) -> String {
    format!("/latest/meta-data/{leaf}")
}

fn parse<T: FromStr<Err: ToString>>(leaf: &str, text: &str) -> Result<T, FactError> {
    text.parse().map_err(|error: T::Err| malformed(&path(leaf), text, &error.to_string()))
}

fn malformed(path: &str, value: &str, fault: &str) -> FactError {
    FactError::Malformed {
        path: path.to_owned(),
        value: value.chars().take(SHOWN).collect(),
        fault: fault.to_owned(),
    }
}
