//! What the metadata service of an instance says, as a tree of short texts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::eni::Eni;
use super::error::Ec2Error;
use super::instance::{Instance, InstanceState, private_dns};
use super::model::Cloud;
use super::snapshot::Snapshot;

impl Cloud {
    /// What IMDS answers at `now` to a GET of `path`, which begins with a slash. Directories
    /// list their entries, those with entries of their own with a slash behind.
    ///
    /// # Errors
    /// Status 404 for what is not there.
    pub fn imds_get(&mut self, now: Duration, instance_id: &str, path: &str) -> Result<String, Ec2Error> {
        self.advance(now);
        let instance = self.instances.get(instance_id).cloned().ok_or_else(not_found)?;
        if instance.state == InstanceState::Terminated {
            return Err(not_found());
        }
        // However long the lag, an instance knows itself as it was started.
        let snapshot = self.history.shown(now, instance.launched);
        let instance = snapshot.instances.get(instance_id).cloned().ok_or_else(not_found)?;
        // A daemon reads many leaves of a tree that seldom changes.
        let tree = match self.trees.get(instance_id) {
            Some((version, tree)) if *version == snapshot.version => Arc::clone(tree),
            _ => {
                let tree = Arc::new(self.tree(&snapshot, &instance));
                self.trees.insert(instance_id.to_owned(), (snapshot.version, Arc::clone(&tree)));
                tree
            }
        };
        let path = path.trim_start_matches('/');
        if !path.starts_with("latest/meta-data/iam") {
            return look_up(&tree, path).ok_or_else(not_found);
        }
        let mut tree = (*tree).clone();
        self.add_role(now, &instance, &mut tree);
        look_up(&tree, path).ok_or_else(not_found)
    }

    fn tree(&self, snapshot: &Snapshot, instance: &Instance) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        let enis = snapshot.attached(&instance.id);
        let mut put = |path: &str, value: &dyn Display| {
            tree.insert(format!("latest/meta-data/{path}"), value.to_string());
        };
        let dns = instance.private_dns(&self.region);
        put("ami-id", &instance.image_id);
        put("ami-launch-index", &0);
        put("hostname", &dns);
        put("instance-id", &instance.id);
        put("instance-life-cycle", &"on-demand");
        put("instance-type", &instance.instance_type);
        put("local-hostname", &dns);
        put("local-ipv4", &instance.private_ip);
        put("placement/availability-zone", &instance.zone);
        put("placement/availability-zone-id", &instance.zone_id);
        put("placement/region", &self.region);
        put("reservation-id", &instance.reservation_id);
        put("services/domain", &"amazonaws.com");
        put("services/partition", &"aws");
        if let Some(primary) = snapshot.enis.get(&instance.primary_eni) {
            if let Some(address) = primary.ipv6_addresses.first() {
                put("ipv6", address);
            }
            put("mac", &primary.mac);
            put("security-groups", &group_names(snapshot, primary));
        }
        let has_several_cards = self.types.get(&instance.instance_type).is_some_and(|it| it.cards.len() > 1);
        for eni in enis {
            self.put_eni(snapshot, &instance.id, eni, has_several_cards, &mut put);
        }
        tree.insert("latest/dynamic/instance-identity/document".to_owned(), self.identity(instance));
        tree
    }

    fn put_eni(
        &self,
        snapshot: &Snapshot,
        instance: &str,
        eni: &Eni,
        has_several_cards: bool,
        put: &mut impl FnMut(&str, &dyn Display),
    ) {
        let Some(attachment) = eni.attached_to(instance) else { return };
        let mut put = |field: &str, value: &dyn Display| {
            put(&format!("network/interfaces/macs/{}/{field}", eni.mac), value);
        };
        put("device-number", &attachment.device_index);
        put("interface-id", &eni.id);
        put("mac", &eni.mac);
        put("owner-id", &self.account);
        put("security-group-ids", &eni.groups.join("\n"));
        put("security-groups", &group_names(snapshot, eni));
        put("subnet-id", &eni.subnet_id);
        put("vpc-id", &eni.vpc_id);
        put("vpc-ipv4-cidr-blocks", &lines(&snapshot.vpc.cidrs));
        if let Some(primary) = snapshot.vpc.cidrs.first() {
            put("vpc-ipv4-cidr-block", primary);
        }
        if !snapshot.vpc.ipv6_cidrs.is_empty() {
            put("vpc-ipv6-cidr-blocks", &lines(&snapshot.vpc.ipv6_cidrs));
        }
        if let Some(subnet) = snapshot.subnets.get(&eni.subnet_id) {
            put("subnet-ipv4-cidr-block", &subnet.cidr);
            if let Some(cidr) = subnet.ipv6_cidr {
                put("subnet-ipv6-cidr-blocks", &cidr);
            }
        }
        if !eni.addresses.is_empty() {
            put("local-hostname", &private_dns(eni.primary_ip(), &self.region));
            put("local-ipv4s", &lines(eni.addresses.iter().map(|ip| ip.address)));
        }
        if !eni.prefixes.is_empty() {
            put("ipv4-prefix", &lines(&eni.prefixes));
        }
        if !eni.ipv6_addresses.is_empty() {
            put("ipv6s", &lines(&eni.ipv6_addresses));
        }
        if !eni.ipv6_prefixes.is_empty() {
            put("ipv6-prefix", &lines(&eni.ipv6_prefixes));
        }
        if has_several_cards {
            put("network-card", &attachment.network_card);
        }
    }

    fn identity(&self, instance: &Instance) -> String {
        let document = serde_json::json!({
            "accountId": self.account,
            "architecture": "x86_64",
            "availabilityZone": instance.zone,
            "billingProducts": null,
            "devpayProductCodes": null,
            "imageId": instance.image_id,
            "instanceId": instance.id,
            "instanceType": instance.instance_type,
            "kernelId": null,
            "marketplaceProductCodes": null,
            "pendingTime": self.timestamp(instance.launched),
            "privateIp": instance.private_ip,
            "ramdiskId": null,
            "region": self.region,
            "version": "2017-09-30",
        });
        format!("{document:#}")
    }

    /// Adds the instance's role, and its credentials if it has any to give.
    fn add_role(&mut self, now: Duration, instance: &Instance, tree: &mut BTreeMap<String, String>) {
        let Some(role) = &instance.role else { return };
        let profile = serde_json::json!({
            "Code": "Success",
            "LastUpdated": self.timestamp(instance.launched),
            "InstanceProfileArn": format!("arn:aws:iam::{}:instance-profile/{role}", self.account),
            "InstanceProfileId": "AIPALABPROFILE000000",
        });
        tree.insert("latest/meta-data/iam/info".to_owned(), format!("{profile:#}"));
        let Some(credentials) = self.keyring.for_instance(now, &instance.id, &mut self.dice) else { return };
        let answer = serde_json::json!({
            "Code": "Success",
            "LastUpdated": self.timestamp(credentials.issued),
            "Type": "AWS-HMAC",
            "AccessKeyId": credentials.access_key,
            "SecretAccessKey": credentials.secret_key,
            "Token": credentials.token,
            "Expiration": credentials.expires.map(|it| self.timestamp(it)),
        });
        tree.insert(format!("latest/meta-data/iam/security-credentials/{role}"), format!("{answer:#}"));
    }

    /// A moment of the world as RFC 3339 in UTC, to the second.
    pub fn timestamp(&self, moment: Duration) -> String {
        let seconds = i64::try_from(self.epoch_unix.saturating_add(moment.as_secs())).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |it| it.to_string())
    }
}

fn group_names(snapshot: &Snapshot, eni: &Eni) -> String {
    lines(eni.groups.iter().filter_map(|id| snapshot.groups.get(id)).map(|it| &it.name))
}

fn lines<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|it| it.to_string()).collect();
    items.join("\n")
}

fn not_found() -> Ec2Error {
    Ec2Error { code: "404".into(), message: "Not Found".to_owned(), status: 404 }
}

/// The value at `path`, or the entries of the directory of that name.
fn look_up(tree: &BTreeMap<String, String>, path: &str) -> Option<String> {
    if let Some(value) = tree.get(path) {
        return Some(value.clone());
    }
    let directory = match path.trim_end_matches('/') {
        "" => String::new(),
        name => format!("{name}/"),
    };
    let entries: BTreeSet<String> = tree
        .range(directory.clone()..)
        .map_while(|(path, _)| path.strip_prefix(directory.as_str()))
        .map(|rest| match rest.split_once('/') {
            Some((name, _)) => format!("{name}/"),
            None => rest.to_owned(),
        })
        .collect();
    (!entries.is_empty()).then(|| lines(entries))
}
