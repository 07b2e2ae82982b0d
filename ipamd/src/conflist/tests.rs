//! The list's bytes and its way into the runtime's directory.

use std::fs;

use serde_json::{Value, json};

use super::*;

fn rendered(list: &Conflist) -> Value {
    let bytes = list.render().expect("the settings are good");
    serde_json::from_slice(&bytes).expect("the list is JSON")
}

#[test]
fn the_manifests_environment_gives_the_well_known_bytes() {
    let bytes = Conflist::default().render().expect("the settings are good");
    assert_eq!(String::from_utf8(bytes).expect("UTF-8"), include_str!("default.conflist"));
    assert_eq!(include_str!("default.conflist").len(), 973);
}

#[test]
fn cni_1_1_0_lets_the_runtime_check() {
    let list = rendered(&Conflist { cni_version: CniVersion::V1_1_0, ..Conflist::default() });
    assert_eq!(list["cniVersion"], "1.1.0");
    assert_eq!(list.get("disableCheck"), None);
    assert_eq!(list["plugins"].as_array().map(Vec::len), Some(3));
}

#[test]
fn ipv6_egress_names_the_nodes_address() {
    let egress = Egress::V6("2001:db8::7".parse().expect("an address"));
    let plugin = &rendered(&Conflist { egress, ..Conflist::default() })["plugins"][1];
    assert_eq!((&plugin["enabled"], &plugin["nodeIP"]), (&json!("true"), &json!("2001:db8::7")));
    assert_eq!(plugin["ipam"]["ranges"], json!([[{"subnet": "fd00::ac:00/118"}]]));
}

#[test]
fn ipv4_egress_of_an_ipv6_cluster_has_its_own_range_directory_and_log() {
    for (is_enabled, text) in [(true, "true"), (false, "false")] {
        let egress = Egress::V4 { node: "10.0.0.7".parse().expect("an address"), is_enabled };
        let plugin = &rendered(&Conflist { egress, ..Conflist::default() })["plugins"][1];
        assert_eq!((&plugin["enabled"], &plugin["nodeIP"]), (&json!(text), &json!("10.0.0.7")));
        assert_eq!(
            plugin["ipam"],
            json!({
                "type": "host-local",
                "ranges": [[{"subnet": "169.254.172.0/22"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/run/cni/v6pd/egress-v4-ipam",
            })
        );
        assert_eq!(plugin["pluginLogFile"], "/var/log/aws-routed-eni/egress-v4-plugin.log");
    }
}

#[test]
fn ipv6_egress_is_off_on_a_node_without_ipv6_and_ipv4_egress_always_names_the_node() {
    let (node, v6) = (Ipv4Addr::new(10, 0, 0, 7), "2001:db8::7".parse().expect("an address"));
    for (family, is_enabled, node_v6, expected) in [
        (Family::V4, true, Some(v6), Egress::V6(v6)),
        (Family::V4, true, None, Egress::V6Off),
        (Family::V4, false, Some(v6), Egress::V6Off),
        (Family::V6, true, Some(v6), Egress::V4 { node, is_enabled: true }),
        (Family::V6, false, None, Egress::V4 { node, is_enabled: false }),
    ] {
        let egress = Egress::of(family, is_enabled, node, node_v6);
        assert_eq!((egress, egress.is_on()), (expected, is_enabled && expected != Egress::V6Off));
    }
}

#[test]
fn a_link_for_ipv6_needs_the_least_mtu_of_ipv6() {
    let egress = Egress::V6("2001:db8::7".parse().expect("an address"));
    let ConflistError(faults) =
        Conflist { egress, pod_mtu: 1279, ..Conflist::default() }.render().expect_err("too small");
    assert_eq!(faults, ["POD_MTU is 1279: expected 1280 to 9001"]);
}

#[test]
fn bandwidth_precedes_tuning_and_portmap_keeps_its_snat() {
    let list = rendered(&Conflist { has_bandwidth: true, disables_pod_v6: true, ..Conflist::default() });
    let types: Vec<&str> =
        list["plugins"].as_array().expect("plugins").iter().filter_map(|p| p["type"].as_str()).collect();
    assert_eq!(types, ["aws-cni", "egress-cni", "portmap", "bandwidth", "tuning"]);
    assert_eq!(list["plugins"][2]["snat"], true);
    assert_eq!(list["plugins"][3]["capabilities"], json!({"bandwidth": true}));
    assert_eq!(list["plugins"][4]["sysctl"]["net.ipv6.conf.default.disable_ipv6"], "1");
}

#[test]
fn a_path_with_quotes_stays_one_string() {
    let log_file = "/var/log/\"odd\"\\name.log".to_owned();
    let list = rendered(&Conflist { log_file: log_file.clone(), ..Conflist::default() });
    assert_eq!(list["plugins"][0]["pluginLogFile"], Value::from(log_file));
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let list = Conflist {
        veth_prefix: "vlan".to_owned(),
        pod_mtu: 9002,
        pod_security_group_mode: "Strict".to_owned(),
        log_file: "STDOUT".to_owned(),
        ..Conflist::default()
    };
    let ConflistError(faults) = list.render().expect_err("four faults");
    assert_eq!(faults.len(), 4, "{faults:?}");
    assert_eq!(faults[1], "POD_MTU is 9002: expected 576 to 9001");
}

#[test]
fn a_directory_that_nobody_named_may_be_absent() {
    let root = tempfile::tempdir().expect("make a directory");
    let absent = root.path().join("net.d");
    let outcome = install_into(None, &absent, b"{}").expect("a warning at most");
    assert_eq!(outcome, Installed::NoDirectory(absent.clone()));
    install_into(Some(&absent), root.path(), b"{}").expect_err("it was named");
}

#[test]
fn the_list_is_readable_by_all_and_not_written_twice() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().expect("make a directory");
    assert_eq!(install_into(Some(root.path()), root.path(), b"{}").expect("install"), Installed::Written);
    assert_eq!(install_into(None, root.path(), b"{}").expect("install"), Installed::Unchanged);
    let file = root.path().join("10-aws.conflist");
    assert_eq!(fs::metadata(file).expect("stat").permissions().mode() & 0o7777, 0o644);
}
