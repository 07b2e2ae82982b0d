//! The subnets of this zone, and what their tags allow.

use ec2::{At, Ec2, SubnetRecord};
use vpc::{Family, SubnetBlocks, SubnetId};

use super::Executor;
use super::failure::StepError;
use crate::pool::Subnet;

/// The tag by which an operator lets us use a subnet, or forbids it with the value 0.
const ROLE_TAG: &str = "kubernetes.io/role/cni";
/// How the tags begin that reserve a subnet for clusters.
const CLUSTER_TAG_PREFIX: &str = "cni.networking.k8s.aws/cluster/";

impl<E: Ec2> Executor<E> {
    /// Every subnet of this zone. Without discovery only the primary ENI's takes new ENIs, and
    /// none is excluded. Those who ask together share one look.
    pub(super) async fn read_subnets(&self, at: &At<E>) -> Result<Vec<Subnet>, StepError> {
        self.subnets.read(self.ask_for_subnets(at)).await
    }

    async fn ask_for_subnets(&self, at: &At<E>) -> Result<Vec<Subnet>, StepError> {
        let found = at.subnets(&self.instance.vpc, &self.instance.availability_zone).await?;
        let primary = &self.instance.subnet;
        let cluster = self.options.cluster_name.as_deref();
        let subnets: Vec<_> = found
            .iter()
            .filter_map(|record| {
                let subnet = subnet(record, primary, cluster, self.options.discovers_subnets)?;
                // An ENI without IPv6 could carry no pod of IPv6.
                let has_family = self.options.family == Family::V4 || record.ipv6_cidr.is_some();
                Some(Subnet { takes_enis: subnet.takes_enis && has_family, ..subnet })
            })
            .collect();
        self.memory(|memory| {
            memory.subnet_blocks.extend(found.iter().filter_map(blocks_of));
        });
        Ok(subnets)
    }

    /// The blocks of a subnet, from EC2 unless they are known; none if there is no such subnet.
    pub(super) async fn subnet_blocks_of(
        &self,
        at: &At<E>,
        subnet: &SubnetId,
    ) -> Result<Option<SubnetBlocks>, StepError> {
        let known = || self.memory(|memory| memory.subnet_blocks.get(subnet).copied());
        if known().is_none() {
            self.read_subnets(at).await?;
        }
        Ok(known())
    }
}

/// The blocks of a subnet that EC2 describes; none for one without IPv4 addresses.
pub(super) fn blocks_of(record: &SubnetRecord) -> Option<(SubnetId, SubnetBlocks)> {
    Some((record.id.clone(), SubnetBlocks { ipv4: record.ipv4_cidr?, ipv6: record.ipv6_cidr }))
}

/// What the pool needs of a subnet; none for one without IPv4 addresses.
fn subnet(
    record: &SubnetRecord,
    primary: &SubnetId,
    cluster: Option<&str>,
    discovers: bool,
) -> Option<Subnet> {
    let is_primary = record.id == *primary;
    Some(Subnet {
        id: record.id.clone(),
        cidr: record.ipv4_cidr?,
        free_addresses: record.free_addresses,
        takes_enis: match discovers {
            true => is_eligible(record, is_primary, cluster),
            false => is_primary && !is_excluded(record, cluster),
        },
        is_excluded: discovers && is_excluded(record, cluster),
    })
}

/// Whether new ENIs may lie in the subnet.
fn is_eligible(subnet: &SubnetRecord, is_primary: bool, cluster: Option<&str>) -> bool {
    match role(subnet) {
        Some("0") => false,
        // Nobody spoke of the subnet: only the one that the node is in anyway will do.
        None => is_primary,
        Some(_) => serves_cluster(subnet, cluster),
    }
}

/// Whether ENIs that lie in the subnet must not serve pods.
fn is_excluded(subnet: &SubnetRecord, cluster: Option<&str>) -> bool {
    match role(subnet) {
        Some("0") => true,
        None => false,
        Some(_) => !serves_cluster(subnet, cluster),
    }
}

fn role(subnet: &SubnetRecord) -> Option<&str> {
    subnet.tags.get(ROLE_TAG).map(String::as_str).filter(|role| !role.is_empty())
}

fn serves_cluster(subnet: &SubnetRecord, cluster: Option<&str>) -> bool {
    let Some(cluster) = cluster else { return true };
    let mut named = subnet.tags.keys().filter_map(|key| key.strip_prefix(CLUSTER_TAG_PREFIX)).peekable();
    named.peek().is_none() || named.any(|name| name == cluster)
}

#[cfg(test)]
mod tests {
    use ec2::Tags;

    use super::*;

    fn subnet(id: &str, free: u32, tags: &[(&str, &str)]) -> SubnetRecord {
        SubnetRecord {
            id: id.parse().unwrap(),
            vpc: "vpc-1".parse().unwrap(),
            availability_zone: "eu-central-1a".to_owned(),
            ipv4_cidr: Some("10.0.0.0/24".parse().unwrap()),
            ipv6_cidr: None,
            free_addresses: free,
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Tags>(),
        }
    }

    /// The subnets that take new ENIs.
    fn chosen(found: &[SubnetRecord], cluster: Option<&str>) -> Vec<String> {
        let primary = "subnet-primary".parse().unwrap();
        let subnets = found.iter().filter_map(|record| super::subnet(record, &primary, cluster, true));
        subnets.filter(|subnet| subnet.takes_enis).map(|subnet| subnet.id.to_string()).collect()
    }

    #[test]
    fn without_tags_only_the_primary_subnet_serves() {
        let found = [subnet("subnet-other", 200, &[]), subnet("subnet-primary", 10, &[])];

        assert_eq!(chosen(&found, None), ["subnet-primary"]);
    }

    #[test]
    fn tagged_subnets_serve_beside_the_primary_one() {
        let found = [
            subnet("subnet-primary", 10, &[]),
            subnet("subnet-a", 20, &[(ROLE_TAG, "1")]),
            subnet("subnet-b", 30, &[(ROLE_TAG, "1")]),
            subnet("subnet-c", 40, &[(ROLE_TAG, "0")]),
        ];

        assert_eq!(chosen(&found, None), ["subnet-primary", "subnet-a", "subnet-b"]);
    }

    #[test]
    fn a_primary_subnet_that_is_tagged_0_serves_no_more() {
        assert!(chosen(&[subnet("subnet-primary", 10, &[(ROLE_TAG, "0")])], None).is_empty());
    }

    #[test]
    fn a_subnet_reserved_for_other_clusters_does_not_serve() {
        let reserved = [(ROLE_TAG, "1"), ("cni.networking.k8s.aws/cluster/blue", "1")];
        let found = [subnet("subnet-a", 20, &reserved)];

        assert_eq!(chosen(&found, Some("blue")), ["subnet-a"]);
        assert_eq!(chosen(&found, None), ["subnet-a"]);
        assert!(chosen(&found, Some("green")).is_empty());
    }

    #[test]
    fn the_cluster_does_not_matter_for_an_untagged_primary_subnet() {
        let reserved = [("cni.networking.k8s.aws/cluster/blue", "1")];

        assert_eq!(chosen(&[subnet("subnet-primary", 1, &reserved)], Some("green")), ["subnet-primary"]);
    }

    #[test]
    fn an_eni_in_a_subnet_tagged_0_or_reserved_for_others_serves_no_pod() {
        let reserved = [(ROLE_TAG, "1"), ("cni.networking.k8s.aws/cluster/blue", "1")];

        assert!(is_excluded(&subnet("subnet-a", 1, &[(ROLE_TAG, "0")]), None));
        assert!(is_excluded(&subnet("subnet-a", 1, &reserved), Some("green")));
        assert!(!is_excluded(&subnet("subnet-a", 1, &reserved), Some("blue")));
        assert!(!is_excluded(&subnet("subnet-a", 1, &[(ROLE_TAG, "")]), None));
        assert!(!is_excluded(&subnet("subnet-a", 1, &[]), None));
    }

    #[test]
    fn without_discovery_only_the_primary_subnet_takes_enis_unless_it_is_excluded() {
        let primary = "subnet-primary".parse().unwrap();
        let takes = |id: &str, tags: &[(&str, &str)]| {
            super::subnet(&subnet(id, 1, tags), &primary, None, false).unwrap().takes_enis
        };

        assert!(takes("subnet-primary", &[]));
        assert!(!takes("subnet-primary", &[(ROLE_TAG, "0")]));
        assert!(!takes("subnet-a", &[(ROLE_TAG, "1")]));
    }
}
