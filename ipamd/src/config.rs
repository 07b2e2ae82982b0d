//! The operator's settings, read from the environment.
//!
//! Names, accepted values and meaning are those of amazon-vpc-cni-k8s; defaults are those of its
//! manifest. A value that cannot be read is an error, never a silent default, and all errors are
//! reported together.

mod read;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use datapath::wanted::HostOptions;
use ec2::{PaceOptions, Rate};
use vpc::Family;

use crate::conflist::{CniVersion, Conflist};
use crate::pool::WarmTargets;
use read::Reader;

/// Everything an operator can choose.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) targets: WarmTargets,
    /// The family of pods' addresses.
    pub(crate) family: Family,
    /// Whether pods' addresses come from prefixes where the instance type takes them.
    pub(crate) delegates_prefixes: bool,
    /// MAX_ENI: how many ENIs to use at most; none leaves the instance's limit.
    pub(crate) max_enis: Option<u32>,
    /// Whether a node that is to run no new pods keeps addresses warm all the same.
    pub(crate) grows_while_cordoned: bool,
    /// How long a released address rests.
    pub(crate) cooldown: Duration,
    /// How long a surplus lasts before it is given back.
    pub(crate) shrink_delay: Duration,
    /// What EC2 may be asked for.
    pub(crate) ec2_access: Ec2Access,
    /// How fast EC2 may be asked.
    pub(crate) pace: PaceOptions,
    /// Whether ENIs that nodes of the cluster left behind are deleted.
    pub(crate) cleans_leaked_enis: bool,
    /// Whether ENIs that nobody tagged are ours to use.
    pub(crate) manages_untagged_enis: bool,
    /// Whether new ENIs may lie in other subnets than the primary one.
    pub(crate) discovers_subnets: bool,
    pub(crate) cluster_name: Option<String>,
    /// Tags for every ENI beyond our own; keys that are reserved have been dropped.
    pub(crate) additional_eni_tags: BTreeMap<String, String>,
    /// As it was spelled; none switches the network policy agent's hand-shake off.
    pub(crate) network_policy_mode: Option<String>,
    pub(crate) host: HostOptions,
    pub(crate) state_file: PathBuf,
    /// The address of EC2 where it is not the region's own.
    pub(crate) ec2_endpoint: Option<String>,
    /// How long one request to EC2 may take.
    pub(crate) http_timeout: Duration,
    /// The release that our user agent names.
    pub(crate) cni_version: String,
    /// Where metrics are served; none if they are not.
    pub(crate) metrics: Option<SocketAddr>,
    /// What the container runtime's list of plugins says.
    pub(crate) conflist: Conflist,
    /// Where that list goes, if somebody named the place.
    pub(crate) conflist_directory: Option<PathBuf>,
}

/// What EC2 may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ec2Access {
    /// Everything that keeps the targets.
    Changes,
    /// What there is; others make and fill ENIs. DISABLE_NETWORK_RESOURCE_PROVISIONING.
    Reads,
    /// Nothing: instance metadata alone says what there is. ENABLE_IMDS_ONLY_MODE.
    Nothing,
}

impl Ec2Access {
    /// Whether ENIs and addresses may be made and given back.
    pub(crate) fn may_change(self) -> bool {
        self == Self::Changes
    }

    /// Whether anything may be asked at all.
    pub(crate) fn may_read(self) -> bool {
        self != Self::Nothing
    }
}

/// One setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    name: &'static str,
    /// None if the variable is not set.
    value: Option<String>,
    /// What is accepted, or why it is not.
    expected: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} is {value:?}: {}", self.name, self.expected),
            None => write!(f, "{} is not set: {}", self.name, self.expected),
        }
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ConfigErrors(Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings cannot be used")?;
        for error in &self.0 {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

/// The largest number of addresses or ENIs that a target may name.
const MOST: u32 = 65_535;

/// Settings whose feature this release does not have. They may be off.
const UNSERVED: [(&str, &str); 4] = [
    ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "custom networking"),
    ("ENABLE_POD_ENI", "security groups for pods"),
    ("ENABLE_MULTI_NIC", "multi-NIC pods"),
    ("ANNOTATE_POD_IP", "pod annotations"),
];

impl Config {
    /// Reads every setting through `variable`, which gives a variable's value by its name.
    ///
    /// # Errors
    /// [`ConfigErrors`] with everything that is wrong.
    pub(crate) fn from_vars(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(&variable);
        let family = family(&mut reader);
        for (name, feature) in UNSERVED {
            if reader.boolean(name, false) {
                reader.refuse(name, &format!("this release does not serve {feature} yet; leave it off"));
            }
        }
        // Accepted and without effect here, but a typing error in it should not stay unseen.
        reader.boolean("DISABLE_INTROSPECTION", false);
        let config = Self {
            family,
            targets: WarmTargets {
                warm_eni: reader.number("WARM_ENI_TARGET", 1, 0, MOST),
                warm_ip: reader.number("WARM_IP_TARGET", 0, 0, MOST),
                minimum_ip: reader.number("MINIMUM_IP_TARGET", 0, 0, MOST),
                warm_prefix: reader.number("WARM_PREFIX_TARGET", 1, 0, MOST),
            },
            delegates_prefixes: prefix_delegation(&mut reader, family),
            max_enis: max_enis(&mut reader),
            grows_while_cordoned: reader.boolean("AWS_MANAGE_ENIS_NON_SCHEDULABLE", false),
            cooldown: reader.seconds("IP_COOLDOWN_PERIOD", 30, 0, 86_400),
            shrink_delay: reader.seconds("POOL_SHRINK_DELAY", 180, 0, 86_400),
            ec2_access: ec2_access(&mut reader),
            pace: pace(&mut reader),
            cleans_leaked_enis: !reader.boolean("DISABLE_LEAKED_ENI_CLEANUP", false),
            manages_untagged_enis: reader.boolean("MANAGE_UNTAGGED_ENI", true),
            discovers_subnets: reader.boolean("ENABLE_SUBNET_DISCOVERY", true),
            cluster_name: reader.text("CLUSTER_NAME"),
            additional_eni_tags: reader.parsed("ADDITIONAL_ENI_TAGS", BTreeMap::new(), text::eni_tags),
            network_policy_mode: network_policy_mode(&mut reader),
            host: host_options(&mut reader, family),
            state_file: reader
                .text("AWS_VPC_K8S_CNI_BACKING_STORE")
                .map_or_else(|| PathBuf::from("/var/run/aws-node/ipam.json"), PathBuf::from),
            ec2_endpoint: reader.parsed("AWS_EC2_ENDPOINT", None, |value| text::url(value).map(Some)),
            http_timeout: reader.seconds("HTTP_TIMEOUT", 10, 10, 600),
            cni_version: reader.text("VPC_CNI_VERSION").unwrap_or_default(),
            metrics: metrics(&mut reader),
            conflist: Conflist::default(),
            conflist_directory: reader.text("HOST_CNI_CONFDIR_PATH").map(PathBuf::from),
        };
        if config.family == Family::V4
            && config.delegates_prefixes
            && !config.targets.counts_ips()
            && config.targets.warm_prefix == 0
        {
            reader.refuse(
                "ENABLE_PREFIX_DELEGATION",
                "expected one of WARM_PREFIX_TARGET, WARM_IP_TARGET and MINIMUM_IP_TARGET above 0 with it",
            );
        }
        let conflist = conflist(&mut reader, &config.host, family);
        let config = Self { conflist, ..config };
        reader.finish(config)
    }
}

/// ENABLE_IPv4 and ENABLE_IPv6: a cluster has one of them.
fn family(reader: &mut Reader<'_>) -> Family {
    let is_v6 = reader.boolean("ENABLE_IPv6", false);
    let is_v4 = reader.boolean("ENABLE_IPv4", !is_v6);
    match (is_v4, is_v6) {
        (true, true) => {
            reader.refuse("ENABLE_IPv6", "expected false beside ENABLE_IPv4=true: pods have one family");
        }
        (false, false) => {
            reader.refuse("ENABLE_IPv4", "expected true, or ENABLE_IPv6=true: pods have one family");
        }
        _ => {}
    }
    if is_v6 { Family::V6 } else { Family::V4 }
}

/// ENABLE_PREFIX_DELEGATION, which IPv6 needs.
fn prefix_delegation(reader: &mut Reader<'_>, family: Family) -> bool {
    const NAME: &str = "ENABLE_PREFIX_DELEGATION";
    let is_on = reader.boolean(NAME, false);
    if family == Family::V6 && !is_on {
        reader.refuse(NAME, "expected true with ENABLE_IPv6=true: IPv6 pods' addresses come from a prefix");
    }
    is_on
}

/// IMDS-only mode stands above provisioning: it asks for less.
fn ec2_access(reader: &mut Reader<'_>) -> Ec2Access {
    let is_provisioning_off = reader.boolean("DISABLE_NETWORK_RESOURCE_PROVISIONING", false);
    if reader.boolean("ENABLE_IMDS_ONLY_MODE", false) {
        Ec2Access::Nothing
    } else if is_provisioning_off {
        Ec2Access::Reads
    } else {
        Ec2Access::Changes
    }
}

/// The budget of requests to EC2, for each action that reads and each that changes.
fn pace(reader: &mut Reader<'_>) -> PaceOptions {
    let default = PaceOptions::default();
    let mut rate = |burst, per_second, rate: Rate| Rate {
        burst: reader.number(burst, rate.burst, 1, 1000),
        per_second: reader.parsed(per_second, rate.per_second, text::per_second),
    };
    PaceOptions {
        reads: rate("EC2_READ_BURST", "EC2_READS_PER_SECOND", default.reads),
        changes: rate("EC2_CHANGE_BURST", "EC2_CHANGES_PER_SECOND", default.changes),
        ..default
    }
}

/// MAX_ENI; 0 and below stand for no maximum, as they always have.
fn max_enis(reader: &mut Reader<'_>) -> Option<u32> {
    reader.parsed("MAX_ENI", None, |value| match value.parse::<i64>() {
        Ok(number) if number <= 0 => Ok(None),
        Ok(number) if number <= i64::from(MOST) => Ok(u32::try_from(number).ok()),
        _ => Err(format!("expected a whole number up to {MOST}; 0 or less stands for no maximum")),
    })
}

fn network_policy_mode(reader: &mut Reader<'_>) -> Option<String> {
    const NAME: &str = "NETWORK_POLICY_ENFORCING_MODE";
    let mode = reader.raw(NAME)?;
    let is_known = ["none", "strict", "standard"].iter().any(|known| mode.eq_ignore_ascii_case(known));
    if !is_known {
        reader.refuse(NAME, "expected none, strict or standard, or the variable not to be set");
    }
    Some(mode)
}

fn host_options(reader: &mut Reader<'_>, family: Family) -> HostOptions {
    let default = HostOptions::default();
    HostOptions {
        external_snat: reader.boolean("AWS_VPC_K8S_CNI_EXTERNALSNAT", default.external_snat),
        node_port: reader.boolean("AWS_VPC_CNI_NODE_PORT_SUPPORT", default.node_port),
        random_snat: reader.parsed("AWS_VPC_K8S_CNI_RANDOMIZESNAT", default.random_snat, text::random_snat),
        exclude_snat_cidrs: reader.parsed("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", Vec::new(), text::cidrs),
        external_service_cidrs: reader.parsed("AWS_EXTERNAL_SERVICE_CIDRS", Vec::new(), text::cidrs),
        connmark: reader.parsed("AWS_VPC_K8S_CNI_CONNMARK", default.connmark, text::connmark),
        veth_prefix: reader.parsed("AWS_VPC_K8S_CNI_VETHPREFIX", default.veth_prefix, text::veth_prefix),
        eni_mtu: reader.number("AWS_VPC_ENI_MTU", default.eni_mtu, text::mtu_least(family), text::MTU_MOST),
        egress: egress(reader, family),
        // Refused so far, with the feature that needs it.
        strict_branches: default.strict_branches,
    }
}

/// Whether pods, whose addresses are of `family`, reach the other family too. The setting for the
/// other kind of cluster has no effect, but a typing error in it should not stay unseen.
fn egress(reader: &mut Reader<'_>, family: Family) -> bool {
    let v4 = reader.boolean("ENABLE_V4_EGRESS", true);
    let v6 = reader.boolean("ENABLE_V6_EGRESS", false);
    match family {
        Family::V4 => v6,
        Family::V6 => v4,
    }
}

/// METRICS_BIND_ADDRESS, unless DISABLE_METRICS is on.
fn metrics(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    const EVERYWHERE: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 61_678);
    let is_off = reader.boolean("DISABLE_METRICS", false);
    let address = reader.parsed("METRICS_BIND_ADDRESS", EVERYWHERE, |value| {
        value.parse().map_err(|_| "expected an address with a port, like 127.0.0.1:61678".to_owned())
    });
    (!is_off).then_some(address)
}

fn conflist(reader: &mut Reader<'_>, host: &HostOptions, family: Family) -> Conflist {
    let default = Conflist::default();
    Conflist {
        cni_version: reader.parsed("CNI_SPEC_VERSION", default.cni_version, |value| match value {
            "0.4.0" => Ok(CniVersion::V0_4_0),
            "1.1.0" => Ok(CniVersion::V1_1_0),
            _ => Err("expected 0.4.0 or 1.1.0".to_owned()),
        }),
        veth_prefix: host.veth_prefix.clone(),
        pod_mtu: reader.number("POD_MTU", host.eni_mtu, text::mtu_least(family), text::MTU_MOST),
        pod_security_group_mode: reader.parsed(
            "POD_SECURITY_GROUP_ENFORCING_MODE",
            default.pod_security_group_mode,
            |value| match value {
                "strict" | "standard" => Ok(value.to_owned()),
                _ => Err("expected strict or standard".to_owned()),
            },
        ),
        log_file: reader.parsed("AWS_VPC_K8S_PLUGIN_LOG_FILE", default.log_file, text::plugin_log_file),
        log_level: reader.text("AWS_VPC_K8S_PLUGIN_LOG_LEVEL").unwrap_or(default.log_level),
        randomize_snat: reader.text("AWS_VPC_K8S_CNI_RANDOMIZESNAT").unwrap_or(default.randomize_snat),
        // What the node's addresses make of it is known later.
        egress: default.egress,
        egress_v4_log_file: reader.parsed(
            "AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE",
            default.egress_v4_log_file,
            text::plugin_log_file,
        ),
        egress_v6_log_file: reader.parsed(
            "AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE",
            default.egress_v6_log_file,
            text::plugin_log_file,
        ),
        has_bandwidth: reader.boolean("ENABLE_BANDWIDTH_PLUGIN", default.has_bandwidth),
        disables_pod_v6: reader.boolean("DISABLE_POD_V6", default.disables_pod_v6),
    }
}
