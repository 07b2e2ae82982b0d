use proptest::prelude::*;

use super::*;

fn read(variables: &[(&str, &str)], stdin: &str) -> Result<Called, CniError> {
    let variable = |name: &str| {
        variables.iter().find(|(key, _)| *key == name).map_or(String::new(), |(_, value)| (*value).to_owned())
    };
    Request::read(variable, || Ok(stdin.as_bytes().to_vec()))
}

const ADD: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "abc"),
    ("CNI_NETNS", "/run/netns/x"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/opt/cni/bin"),
];

fn with(key: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut variables = ADD.to_vec();
    variables.retain(|(name, _)| *name != key);
    variables.push((key, value));
    variables
}

fn check(variables: &[(&str, &str)], stdin: &str, code: u32, message: &str, details: &str) {
    let error = read(variables, stdin).expect_err(message);

    assert_eq!((error.code.0, error.message.as_str(), error.details.as_str()), (code, message, details));
}

#[test]
fn the_environment_is_complained_about_before_stdin() {
    check(&with("CNI_CONTAINERID", "a b"), "", 4, "invalid characters in containerID", "a b");
    let too_long = "interface name should be less than 16 characters";
    check(&with("CNI_IFNAME", "sixteen-letters1"), "", 4, "interface name is too long", too_long);
    check(&with("CNI_IFNAME", ".."), "", 4, "interface name is . or ..", "");
    let characters = "interface name contains / or : or whitespace characters";
    check(&with("CNI_IFNAME", "a/b"), "", 4, characters, "");
    check(&with("CNI_IFNAME", "a\u{a0}b"), "", 4, characters, "");
    let missing = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
    check(&[("CNI_COMMAND", "ADD")], "", 4, missing, "");
    check(&[("CNI_COMMAND", "GC")], "", 4, "required env variables [CNI_PATH] missing", "");
    let missing = "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing";
    check(&[("CNI_COMMAND", "DEL")], "", 4, missing, "");
}

#[test]
fn an_invalid_value_is_reported_before_a_missing_variable() {
    check(
        &[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "/")],
        "",
        4,
        "invalid characters in containerID",
        "/",
    );
}

#[test]
fn stdin_is_complained_about_before_the_verb_and_the_version() {
    let unmarshal = "error unmarshall network config: ";
    check(&ADD, "", 6, &format!("{unmarshal}unexpected end of JSON input"), "");
    let shape = "struct { Name string \"json:\\\"name\\\"\" }";
    let array = format!("{unmarshal}json: cannot unmarshal array into Go value of type {shape}");
    check(&ADD, "[]", 6, &array, "");
    let number = "json: cannot unmarshal number into Go struct field .name of type string";
    check(&ADD, r#"{"name":1}"#, 6, &format!("{unmarshal}{number}"), "");
    check(&ADD, "null", 7, "missing network name", "");
    check(&ADD, r#"{"name":"a b"}"#, 7, "invalid characters found in network name", "a b");
    check(&with("CNI_COMMAND", "FOO"), "{}", 7, "missing network name", "");
    check(&with("CNI_COMMAND", "FOO"), r#"{"name":"n"}"#, 4, "unknown CNI_COMMAND: FOO", "");
}

#[test]
fn a_version_that_we_do_not_speak_is_refused_with_those_that_we_do() {
    let details =
        r#"config is "0.9.0", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#;
    check(&ADD, r#"{"name":"n","cniVersion":"0.9.0"}"#, 1, "incompatible CNI versions", details);
    let number = "decoding version from network config: json: cannot unmarshal number into Go struct field \
                  .cniVersion of type string";
    check(&ADD, r#"{"name":"n","cniVersion":1}"#, 6, number, "");
}

#[test]
fn verbs_are_allowed_from_the_version_that_brought_them() {
    for (command, version, error) in [
        ("CHECK", "0.3.1", Some("config version does not allow CHECK")),
        ("CHECK", "0.4.0", None),
        ("CHECK", "2.0.0", Some("plugin version does not allow CHECK")),
        ("GC", "1.0.0", Some("config version does not allow GC")),
        ("GC", "1.1.0", None),
        ("STATUS", "1.0.0", Some("config version does not allow STATUS")),
        ("STATUS", "1.1.0", None),
    ] {
        let outcome =
            read(&with("CNI_COMMAND", command), &format!(r#"{{"name":"n","cniVersion":"{version}"}}"#));

        assert_eq!(outcome.err().map(|error| error.message), error.map(str::to_owned), "{command} {version}");
    }
}

#[test]
fn a_configuration_without_a_version_means_the_first_one() {
    let Ok(Called::For(request)) = read(&ADD, r#"{"NAME":"n","cniversion":""}"#) else { panic!("refused") };

    assert_eq!((request.version, request.network.as_str()), ("0.1.0", "n"));
}

fn config(text: &str) -> Result<NetworkConfig, String> {
    NetworkConfig::read(&Json::parse(text.as_bytes()).unwrap(), "0.4.0")
}

#[test]
fn a_configuration_has_defaults_for_everything() {
    let config = config("{}").unwrap();

    assert_eq!((config.veth_prefix.as_str(), config.mtu, config.log), ("eni", 9001, LogTarget::Stderr));
    assert!(!config.wants_all_nics && config.previous.is_none());
}

#[test]
fn an_mtu_that_cannot_be_used_means_the_default() {
    for (text, mtu) in
        [("1500", 1500), ("", 9001), (" 1500", 9001), ("575", 9001), ("9002", 9001), ("x", 9001)]
    {
        assert_eq!(config(&format!(r#"{{"mtu":"{text}"}}"#)).unwrap().mtu, mtu, "{text:?}");
    }
}

#[test]
fn wrong_kinds_are_described_as_go_describes_them() {
    let error = config(r#"{"mtu":1500}"#).unwrap_err();

    let expected = "add cmd: error loading config from args: json: cannot unmarshal number into Go struct \
                    field NetConf.mtu of type string";
    assert_eq!(error, expected);
    assert!(
        config(r#"{"vethPrefix":"toolong"}"#).unwrap_err().starts_with("conf.VethPrefix can be at most 4")
    );
}

#[test]
fn a_log_on_stdout_would_spoil_the_result_and_goes_to_stderr() {
    assert_eq!(config(r#"{"pluginLogFile":"stdout"}"#).unwrap().log, LogTarget::Stderr);
    assert_eq!(config(r#"{"pluginLogFile":"/x"}"#).unwrap().log, LogTarget::File("/x".into()));
}

#[test]
fn a_pod_asks_for_all_network_cards_by_annotation() {
    let text = r#"{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"k8s.amazonaws.com/nicConfig":"multi-nic-attachment"}}}"#;
    assert!(config(text).unwrap().wants_all_nics);
}

#[test]
fn a_previous_result_that_is_none_is_refused_with_the_reason() {
    let address = r#"{"prevResult":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"x"}]}}"#;
    let expected = "could not parse prevResult: could not parse prevResult: invalid CIDR address: x";
    assert_eq!(config(address).unwrap_err(), expected);

    let newer = r#"{"prevResult":{"cniVersion":"1.0.0"}}"#;
    let expected = "could not parse prevResult: could not parse prevResult: result type supports \
                    [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is \"1.0.0\"";
    assert_eq!(config(newer).unwrap_err(), expected);
    assert!(config(r#"{"prevResult":null}"#).unwrap().previous.is_none());
}

proptest! {
    #[test]
    fn no_stdin_makes_the_reader_panic(text in "\\PC*", version in prop::sample::select(&version::SUPPORTED[..])) {
        let stdin = format!(r#"{{"name":"n","cniVersion":"{version}","prevResult":{text}}}"#);
        if let Ok(Called::For(request)) = read(&ADD, &stdin) {
            let _ = NetworkConfig::read(&request.config, request.version);
        }
        let _ = read(&ADD, &text);
    }
}
