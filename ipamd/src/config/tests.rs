//! Settings against what operators write.

use std::collections::HashMap;

use datapath::wanted::RandomSnat;

use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let map: HashMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::from_vars(|name| map.get(name).cloned())
}

fn complaints(variables: &[(&str, &str)]) -> Vec<String> {
    read(variables).unwrap_err().0.iter().map(ToString::to_string).collect()
}

/// The environment of the reference's manifest.
const MANIFEST: [(&str, &str); 33] = [
    ("ADDITIONAL_ENI_TAGS", "{}"),
    ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "true"),
    ("AWS_VPC_ENI_MTU", "9001"),
    ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "false"),
    ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "false"),
    ("AWS_VPC_K8S_CNI_LOGLEVEL", "DEBUG"),
    ("AWS_VPC_K8S_CNI_LOG_FILE", "/host/var/log/aws-routed-eni/ipamd.log"),
    ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng"),
    ("AWS_VPC_K8S_CNI_VETHPREFIX", "eni"),
    ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/plugin.log"),
    ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "DEBUG"),
    ("CLUSTER_ENDPOINT", ""),
    ("CLUSTER_NAME", ""),
    ("DISABLE_INTROSPECTION", "false"),
    ("DISABLE_METRICS", "false"),
    ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "false"),
    ("DISABLE_TCP_EARLY_DEMUX", "false"),
    ("ENABLE_IMDS_ONLY_MODE", "false"),
    ("ENABLE_IPv4", "true"),
    ("ENABLE_IPv6", "false"),
    ("ENABLE_MULTI_NIC", "false"),
    ("ENABLE_POD_ENI", "false"),
    ("ENABLE_PREFIX_DELEGATION", "false"),
    ("ENABLE_SUBNET_DISCOVERY", "true"),
    ("MY_NODE_NAME", "ip-10-0-1-10"),
    ("MY_POD_NAME", "aws-node-abcde"),
    ("NETWORK_POLICY_ENFORCING_MODE", "standard"),
    ("VPC_CNI_VERSION", "v1.23.1"),
    ("VPC_ID", "vpc-1"),
    ("WARM_ENI_TARGET", "1"),
    ("WARM_PREFIX_TARGET", "1"),
    ("IP_COOLDOWN_PERIOD", "30"),
    ("AWS_VPC_K8S_CNI_CONNMARK", ""),
];

#[test]
fn no_variable_at_all_means_what_the_manifest_says() {
    let bare = read(&[]).unwrap();
    let manifest = read(&MANIFEST).unwrap();

    assert_eq!(bare.targets, manifest.targets);
    assert_eq!(bare.host, manifest.host);
    assert_eq!(bare.targets, WarmTargets { warm_eni: 1, warm_ip: 0, minimum_ip: 0, warm_prefix: 1 });
    assert_eq!(bare.max_enis, None);
    assert_eq!(bare.cooldown, Duration::from_secs(30));
    assert_eq!(bare.shrink_delay, Duration::from_secs(180));
    assert_eq!(bare.state_file, PathBuf::from("/var/run/aws-node/ipam.json"));
    assert!(bare.discovers_subnets && bare.manages_untagged_enis && bare.cleans_leaked_enis);
    assert_eq!((bare.ec2_access, bare.pace), (Ec2Access::Changes, PaceOptions::default()));
    assert_eq!(bare.network_policy_mode, None);
    assert_eq!(manifest.network_policy_mode.as_deref(), Some("standard"));
}

#[test]
fn every_mistake_is_reported_at_once_with_name_value_and_accepted_form() {
    let complaints = complaints(&[
        ("WARM_IP_TARGET", "ten"),
        ("ENABLE_SUBNET_DISCOVERY", "yes"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0/8, 10.1"),
        ("AWS_VPC_ENI_MTU", "9002"),
    ]);

    assert_eq!(
        complaints,
        [
            r#"WARM_IP_TARGET is "ten": expected a whole number from 0 to 65535"#,
            r#"ENABLE_SUBNET_DISCOVERY is "yes": expected true or false"#,
            r#"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS is "10.0.0.0/8, 10.1": "10.1" is not an IPv4 block; expected a list like 10.0.0.0/8,192.168.0.0/16"#,
            r#"AWS_VPC_ENI_MTU is "9002": expected a whole number from 576 to 9001"#,
        ]
    );
}

#[test]
fn metrics_are_served_everywhere_unless_a_place_is_named_or_they_are_off() {
    let metrics = |variables: &[(&str, &str)]| read(variables).unwrap().metrics.map(|it| it.to_string());

    assert_eq!(metrics(&[]).as_deref(), Some("[::]:61678"));
    assert_eq!(metrics(&[("METRICS_BIND_ADDRESS", "127.0.0.1:9")]).as_deref(), Some("127.0.0.1:9"));
    assert_eq!(metrics(&[("DISABLE_METRICS", "true")]), None);
    assert_eq!(
        complaints(&[("METRICS_BIND_ADDRESS", "localhost"), ("DISABLE_METRICS", "yes")]),
        [
            r#"DISABLE_METRICS is "yes": expected true or false"#,
            r#"METRICS_BIND_ADDRESS is "localhost": expected an address with a port, like 127.0.0.1:61678"#,
        ]
    );
}

#[test]
fn booleans_have_exactly_the_forms_of_go() {
    for (value, expected) in [
        ("1", true),
        ("t", true),
        ("T", true),
        ("TRUE", true),
        ("true", true),
        ("True", true),
        ("0", false),
        ("f", false),
        ("F", false),
        ("FALSE", false),
        ("false", false),
        ("False", false),
    ] {
        assert_eq!(
            read(&[("MANAGE_UNTAGGED_ENI", value)]).unwrap().manages_untagged_enis,
            expected,
            "{value}"
        );
    }
    for value in ["yes", "no", "on", "off", "tRUE", " true", "2"] {
        assert_eq!(complaints(&[("MANAGE_UNTAGGED_ENI", value)]).len(), 1, "{value}");
    }
}

#[test]
fn a_feature_of_a_later_release_is_refused_by_name_when_on_and_accepted_when_off() {
    for (name, _) in UNSERVED {
        assert!(read(&[(name, "false")]).is_ok(), "{name}");
        let complaints = complaints(&[(name, "true")]);
        assert!(
            complaints[0].starts_with(&format!("{name} is \"true\": this release does not serve")),
            "{complaints:?}"
        );
    }
}

#[test]
fn egress_is_off_in_an_ipv4_cluster_and_on_in_an_ipv6_cluster_unless_told_otherwise() {
    assert!(!read(&[]).unwrap().host.egress);
    assert!(!read(&[("ENABLE_V4_EGRESS", "true"), ("ENABLE_V6_EGRESS", "")]).unwrap().host.egress);
    assert!(read(&[("ENABLE_V6_EGRESS", "true")]).unwrap().host.egress);
    assert!(read(&IPV6).unwrap().host.egress, "IPv6 pods need IPv4 more often than not");
    assert!(!read(&[IPV6.as_slice(), &[("ENABLE_V4_EGRESS", "0")]].concat()).unwrap().host.egress);
    assert_eq!(
        complaints(&[("ENABLE_V4_EGRESS", "maybe")]),
        [r#"ENABLE_V4_EGRESS is "maybe": expected true or false"#]
    );
}

#[test]
fn prefix_delegation_needs_a_target_that_counts_for_it() {
    let on = ("ENABLE_PREFIX_DELEGATION", "true");
    assert!(read(&[on]).unwrap().delegates_prefixes);
    for target in ["WARM_IP_TARGET", "MINIMUM_IP_TARGET"] {
        assert!(read(&[on, ("WARM_PREFIX_TARGET", "0"), (target, "1")]).is_ok(), "{target}");
    }

    let complaints = complaints(&[on, ("WARM_PREFIX_TARGET", "0")]);

    for name in ["ENABLE_PREFIX_DELEGATION", "WARM_PREFIX_TARGET", "WARM_IP_TARGET", "MINIMUM_IP_TARGET"] {
        assert!(complaints[0].contains(name), "{complaints:?}");
    }
}

#[test]
fn imds_only_mode_and_provisioning_off_say_what_ec2_may_be_asked() {
    let access = |variables| read(variables).unwrap().ec2_access;

    assert_eq!(access(&[("DISABLE_NETWORK_RESOURCE_PROVISIONING", "true")]), Ec2Access::Reads);
    assert_eq!(access(&[("ENABLE_IMDS_ONLY_MODE", "true")]), Ec2Access::Nothing);
    let both = [("ENABLE_IMDS_ONLY_MODE", "true"), ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "true")];
    assert_eq!(access(&both), Ec2Access::Nothing);
    assert!(!read(&[("DISABLE_LEAKED_ENI_CLEANUP", "true")]).unwrap().cleans_leaked_enis);
}

#[test]
fn the_pace_of_ec2_requests_is_read_and_bounded() {
    let pace = read(&[
        ("EC2_READ_BURST", "100"),
        ("EC2_READS_PER_SECOND", "20"),
        ("EC2_CHANGE_BURST", "50"),
        ("EC2_CHANGES_PER_SECOND", "0.5"),
    ])
    .unwrap()
    .pace;

    assert_eq!(pace.reads, Rate { burst: 100, per_second: 20.0 });
    assert_eq!(pace.changes, Rate { burst: 50, per_second: 0.5 });
    for (name, value) in
        [("EC2_READ_BURST", "0"), ("EC2_READS_PER_SECOND", "0"), ("EC2_CHANGES_PER_SECOND", "NaN")]
    {
        assert_eq!(complaints(&[(name, value)]).len(), 1, "{name}={value}");
    }
}

#[test]
fn a_maximum_of_enis_below_one_means_none() {
    assert_eq!(read(&[("MAX_ENI", "2")]).unwrap().max_enis, Some(2));
    for value in ["0", "-1"] {
        assert_eq!(read(&[("MAX_ENI", value)]).unwrap().max_enis, None);
    }
    assert_eq!(complaints(&[("MAX_ENI", "two")]).len(), 1);
}

#[test]
fn the_network_policy_mode_keeps_its_spelling_and_may_not_be_empty() {
    let mode =
        |value| read(&[("NETWORK_POLICY_ENFORCING_MODE", value)]).map(|config| config.network_policy_mode);

    assert_eq!(mode("StAndard").unwrap().as_deref(), Some("StAndard"));
    assert!(mode("").is_err() && mode("lenient").is_err());
}

#[test]
fn marks_have_the_forms_of_go_integers() {
    for value in ["128", "0x80", "0X80", "0o200", "0200", "0b1000_0000"] {
        assert_eq!(read(&[("AWS_VPC_K8S_CNI_CONNMARK", value)]).unwrap().host.connmark, 0x80, "{value}");
    }
    for value in ["0", "-1", "0x1_0000_0000", "mark", "0x", "+0"] {
        assert_eq!(complaints(&[("AWS_VPC_K8S_CNI_CONNMARK", value)]).len(), 1, "{value}");
    }
}

#[test]
fn veth_prefixes_that_would_meet_other_links_are_refused() {
    assert_eq!(read(&[("AWS_VPC_K8S_CNI_VETHPREFIX", "pod")]).unwrap().host.veth_prefix, "pod");
    for value in ["eth", "lo", "vlan", "pods-", "a/b", "a b"] {
        assert_eq!(complaints(&[("AWS_VPC_K8S_CNI_VETHPREFIX", value)]).len(), 1, "{value}");
    }
}

#[test]
fn lists_of_blocks_are_trimmed_and_lose_their_host_bits() {
    let config = read(&[("AWS_EXTERNAL_SERVICE_CIDRS", " 10.1.2.3/16 ,192.168.0.0/24,")]).unwrap();

    let blocks: Vec<_> = config.host.external_service_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["10.1.0.0/16", "192.168.0.0/24"]);
}

#[test]
fn tags_that_belong_to_kubernetes_are_dropped_from_additional_ones() {
    let tags = r#"{"team":"blue","node.k8s.amazonaws.com/instance_id":"i-1"}"#;

    let config = read(&[("ADDITIONAL_ENI_TAGS", tags)]).unwrap();

    assert_eq!(config.additional_eni_tags, BTreeMap::from([("team".to_owned(), "blue".to_owned())]));
    assert_eq!(complaints(&[("ADDITIONAL_ENI_TAGS", r#"{"a":1}"#)]).len(), 1);
}

#[test]
fn random_ports_and_endpoints_are_read() {
    let config = read(&[
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "hashrandom"),
        ("AWS_EC2_ENDPOINT", "http://10.0.0.1:8000"),
        ("HTTP_TIMEOUT", "20"),
    ])
    .unwrap();

    assert_eq!(config.host.random_snat, RandomSnat::HashRandom);
    assert_eq!(config.ec2_endpoint.as_deref(), Some("http://10.0.0.1:8000"));
    assert_eq!(config.http_timeout, Duration::from_secs(20));
    assert_eq!(
        complaints(&[
            ("AWS_EC2_ENDPOINT", "ec2"),
            ("HTTP_TIMEOUT", "3"),
            ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "x")
        ])
        .len(),
        3
    );
}

const IPV6: [(&str, &str); 3] =
    [("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "false"), ("ENABLE_PREFIX_DELEGATION", "true")];

#[test]
fn a_cluster_has_one_family_and_ipv6_needs_prefix_delegation() {
    assert_eq!(read(&[]).unwrap().family, Family::V4);
    assert_eq!(read(&IPV6).unwrap().family, Family::V6);
    assert_eq!(read(&[IPV6[0], IPV6[2]]).unwrap().family, Family::V6, "ENABLE_IPv4 not set");
    assert_eq!(
        complaints(&[("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "true")]),
        [
            r#"ENABLE_IPv6 is "true": expected false beside ENABLE_IPv4=true: pods have one family"#,
            "ENABLE_PREFIX_DELEGATION is not set: expected true with ENABLE_IPv6=true: IPv6 pods' addresses \
             come from a prefix",
        ]
    );
    assert_eq!(
        complaints(&[("ENABLE_IPv4", "false")]),
        [r#"ENABLE_IPv4 is "false": expected true, or ENABLE_IPv6=true: pods have one family"#]
    );
}

#[test]
fn ipv6_needs_the_least_mtu_of_ipv6_and_no_warm_target() {
    let with = |name, value| [IPV6.as_slice(), &[(name, value)]].concat();

    assert!(complaints(&with("AWS_VPC_ENI_MTU", "1279"))[0].contains("1280"));
    assert!(complaints(&with("POD_MTU", "1000"))[0].contains("1280"));
    assert!(read(&with("WARM_PREFIX_TARGET", "0")).is_ok());
}
