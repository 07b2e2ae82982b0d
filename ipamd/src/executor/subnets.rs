//! Which subnets a new ENI may lie in, best first.

use std::cmp::Reverse;

use ec2::{At, Ec2, SubnetRecord};
use ipnet::Ipv4Net;
use tracing::warn;
use vpc::SubnetId;

use super::Executor;
use super::failure::StepError;
use crate::pool::FailureClass;

/// The tag by which an operator lets us use a subnet, or forbids it with the value 0.
const ROLE_TAG: &str = "kubernetes.io/role/cni";
/// How the tags begin that reserve a subnet for clusters.
const CLUSTER_TAG_PREFIX: &str = "cni.networking.k8s.aws/cluster/";

/// A subnet that may serve, with its IPv4 block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: SubnetId,
    pub(super) cidr: Ipv4Net,
}

impl<E: Ec2> Executor<E> {
    /// The subnets to try in turn: those that the tags allow, the one with most room first. Where
    /// EC2 does not list them, the primary ENI's own.
    pub(super) async fn candidate_subnets(&self, at: &At<E>) -> Result<Vec<Candidate>, StepError> {
        let primary = Candidate { id: self.instance.subnet.clone(), cidr: self.instance.subnet_cidr };
        if !self.options.discovers_subnets {
            return Ok(vec![primary]);
        }
        let found = match at.subnets(&self.instance.vpc, &self.instance.availability_zone).await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, subnet = %primary.id, "subnets not listed; using the primary ENI's");
                return Ok(vec![primary]);
            }
        };
        let candidates = candidates(found, &primary.id, self.options.cluster_name.as_deref());
        if candidates.is_empty() { Err(StepError::no_subnet()) } else { Ok(candidates) }
    }
}

impl StepError {
    pub(super) fn no_subnet() -> Self {
        Self {
            class: FailureClass::SubnetExhausted,
            message: "no subnet of this zone may hold new ENIs: all are either not tagged, or tagged with \
                      kubernetes.io/role/cni=0"
                .to_owned(),
        }
    }
}

fn candidates(mut found: Vec<SubnetRecord>, primary: &SubnetId, cluster: Option<&str>) -> Vec<Candidate> {
    found.sort_by_key(|subnet| Reverse(subnet.free_addresses));
    found
        .into_iter()
        .filter(|subnet| is_eligible(subnet, subnet.id == *primary, cluster))
        .filter_map(|subnet| Some(Candidate { cidr: subnet.ipv4_cidr?, id: subnet.id }))
        .collect()
}

fn is_eligible(subnet: &SubnetRecord, is_primary: bool, cluster: Option<&str>) -> bool {
    match subnet.tags.get(ROLE_TAG).map(String::as_str) {
        Some("0") => false,
        // Nobody spoke of the subnet: only the one that the node is in anyway will do.
        None | Some("") => is_primary,
        Some(_) => serves_cluster(subnet, cluster),
    }
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
            free_addresses: free,
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Tags>(),
        }
    }

    fn chosen(found: &[SubnetRecord], cluster: Option<&str>) -> Vec<String> {
        let primary = "subnet-primary".parse().unwrap();
        candidates(found.to_vec(), &primary, cluster).iter().map(|found| found.id.to_string()).collect()
    }

    #[test]
    fn without_tags_only_the_primary_subnet_serves() {
        let found = [subnet("subnet-other", 200, &[]), subnet("subnet-primary", 10, &[])];

        assert_eq!(chosen(&found, None), ["subnet-primary"]);
    }

    #[test]
    fn tagged_subnets_serve_and_the_one_with_most_room_comes_first() {
        let found = [
            subnet("subnet-primary", 10, &[]),
            subnet("subnet-a", 20, &[(ROLE_TAG, "1")]),
            subnet("subnet-b", 30, &[(ROLE_TAG, "1")]),
            subnet("subnet-c", 40, &[(ROLE_TAG, "0")]),
        ];

        assert_eq!(chosen(&found, None), ["subnet-b", "subnet-a", "subnet-primary"]);
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
}
