//! The state file against golden bytes and against every kind of damage.

use std::fs;

use super::*;

/// As a daemon of the reference wrote it.
const GOLDEN: &str = concat!(
    r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","#,
    r#""containerID":"8f5e7f5149cd5f2dbf6360aa2032e26f7c6c139b161b477fb5db295edd896d63","ifName":"eth0","#,
    r#""ipv4":"10.0.2.153","allocationTimestamp":1795245887457644830,"#,
    r#""metadata":{"k8sPodNamespace":"default","k8sPodName":"web","interfacesCount":1}}]}"#,
    "\n"
);

fn web() -> Allocation {
    let container = "8f5e7f5149cd5f2dbf6360aa2032e26f7c6c139b161b477fb5db295edd896d63";
    Allocation {
        key: PodKey::new("aws-cni", container, "eth0").unwrap(),
        pod: PodName::new("default", "web"),
        address: Ipv4Addr::new(10, 0, 2, 153).into(),
        assigned_unix_ns: 1_795_245_887_457_644_830,
    }
}

#[test]
fn the_file_is_what_the_reference_writes_byte_for_byte() {
    assert_eq!(render(&[web()]), GOLDEN);
    assert_eq!(render(&[]), "{\"version\":\"vpc-cni-ipam/1\",\"allocations\":[]}\n");
}

#[test]
fn what_the_reference_wrote_is_read() {
    let loaded = parse(GOLDEN.as_bytes(), Family::V4);

    assert_eq!(loaded.allocations, [web()]);
    assert_eq!(loaded.problems, []);
}

#[test]
fn a_sandbox_without_a_pod_has_no_names_in_the_file() {
    let nameless = Allocation { pod: PodName::default(), ..web() };

    assert!(render(&[nameless]).contains(r#""metadata":{"interfacesCount":1}"#));
}

#[test]
fn optional_parts_may_be_missing_and_unknown_keys_are_ignored() {
    let text = r#"{"version":"vpc-cni-ipam/1","future":{"a":1},"allocations":[
        {"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.1","color":"blue"}]} trailing"#;

    let loaded = parse(text.as_bytes(), Family::V4);

    assert_eq!(loaded.problems, []);
    assert_eq!(loaded.allocations[0].pod, PodName::default());
    assert_eq!(loaded.allocations[0].assigned_unix_ns, 0);
}

#[test]
fn no_allocations_and_null_mean_none() {
    for text in [r#"{"version":"vpc-cni-ipam/1"}"#, r#"{"version":"vpc-cni-ipam/1","allocations":null}"#] {
        let loaded = parse(text.as_bytes(), Family::V4);

        assert!(loaded.allocations.is_empty() && loaded.problems.is_empty(), "{text}");
    }
}

#[test]
fn a_file_cut_short_anywhere_yields_the_entries_before_the_cut() {
    let two = render(&[web(), Allocation { address: Ipv4Addr::new(10, 0, 2, 154).into(), ..web() }]);
    let first_ends = two.find("},{").unwrap() + 1;

    for length in 0..two.len() - 2 {
        let loaded = parse(&two.as_bytes()[..length], Family::V4);

        let expected = usize::from(length >= first_ends) + usize::from(length >= two.len() - 3);
        assert_eq!(loaded.allocations.len(), expected, "cut at {length}: {}", &two[..length]);
        assert!(!loaded.problems.is_empty(), "cut at {length}");
    }
}

#[test]
fn an_unusable_entry_is_named_and_the_others_are_kept() {
    let text = r#"{"version":"vpc-cni-ipam/1","allocations":[
        {"networkName":"n","containerID":"","ifName":"eth0","ipv4":"10.0.0.1"},
        {"networkName":"n","containerID":"c","ifName":"eth0","ipv6":"2001:db8::1"},
        {"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.1","allocationTimestamp":"noon"},
        7,
        {"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.2"}]}"#;

    let loaded = parse(text.as_bytes(), Family::V4);

    assert_eq!(loaded.allocations.len(), 1);
    let problems: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert_eq!(problems[0], "allocation 1 is not usable: the request names no container id");
    assert_eq!(problems[1], r#"allocation 2 is not usable: ipv4 is "": expected an address like 10.0.1.7"#);
}

#[test]
fn another_version_is_reported_and_its_entries_are_used() {
    for version in [r#""vpc-cni-ipam/2""#, "null", r#""""#] {
        let text = GOLDEN.replace(r#""vpc-cni-ipam/1""#, version);

        let loaded = parse(text.as_bytes(), Family::V4);

        assert_eq!(loaded.allocations, [web()]);
        assert!(matches!(loaded.problems[..], [Problem::ForeignVersion(_)]), "{version}");
    }
}

#[test]
fn files_that_are_no_state_file_are_reported() {
    for text in ["", " ", "[]", "7", "{}", "null", "\u{0}\u{0}", "{\"version\":3}"] {
        let loaded = parse(text.as_bytes(), Family::V4);

        assert!(loaded.allocations.is_empty() && !loaded.problems.is_empty(), "{text:?}");
    }
}

#[test]
fn two_claims_on_one_address_are_reported_and_both_handed_on_for_judgement() {
    let loaded = parse(render(&[web(), web()]).as_bytes(), Family::V4);

    assert_eq!(loaded.allocations.len(), 2);
    assert_eq!(loaded.problems, [Problem::Contradiction { number: 2, earlier: 1 }]);
}

#[test]
fn a_damaged_file_is_kept_before_anything_can_replace_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    fs::write(&path, &GOLDEN[..GOLDEN.len() - 4]).unwrap();
    let mut checkpoint = Checkpoint::at(Arc::new(durable::RealDisk), path, Family::V4);

    let loaded = checkpoint.load();
    checkpoint.write(&loaded.allocations).unwrap();

    let kept = fs::read_to_string(loaded.kept_as.unwrap()).unwrap();
    assert_eq!(kept, GOLDEN[..GOLDEN.len() - 4]);
}

#[test]
fn a_damaged_file_of_which_no_copy_can_be_kept_is_loaded_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    fs::write(&path, &GOLDEN[..GOLDEN.len() - 4]).unwrap();
    // The name of a copy that is neither free nor a file's.
    for number in 1..=20 {
        fs::create_dir(directory.path().join(format!("ipam.json.broken-{number}"))).unwrap();
    }

    let loaded = Checkpoint::at(Arc::new(durable::RealDisk), path, Family::V4).load();

    assert!(loaded.kept_as.is_none());
    assert!(matches!(loaded.problems[..], [.., Problem::NotKept(_)]), "{:?}", loaded.problems);
}

#[test]
fn a_good_file_is_not_copied_and_a_missing_one_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let mut checkpoint =
        Checkpoint::at(Arc::new(durable::RealDisk), directory.path().join("ipam.json"), Family::V4);

    assert!(checkpoint.load().allocations.is_empty());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    checkpoint.write(&[web()]).unwrap();
    assert_eq!(checkpoint.load().allocations, [web()]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// As a daemon of the reference wrote it on a node with IPv6.
const GOLDEN_IPV6: &str = concat!(
    r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"c77e","#,
    r#""ifName":"eth0","ipv6":"2001:db8:1:1:728a::","allocationTimestamp":1733401400000000000,"#,
    r#""metadata":{"k8sPodNamespace":"web","k8sPodName":"front-5","interfacesCount":1}}]}"#,
    "\n"
);

#[test]
fn ipv6_addresses_are_read_and_written_as_the_reference_does() {
    let loaded = parse(GOLDEN_IPV6.as_bytes(), Family::V6);

    assert_eq!(loaded.problems, []);
    assert_eq!(loaded.allocations[0].address.to_string(), "2001:db8:1:1:728a::");
    assert_eq!(render(&loaded.allocations), GOLDEN_IPV6);
}

#[test]
fn of_an_entry_with_both_families_the_pods_own_counts_and_one_without_it_is_a_problem() {
    let both = GOLDEN_IPV6.replace(r#""ipv6""#, r#""ipv4":"10.0.0.7","ipv6""#);
    let address = |family| parse(both.as_bytes(), family).allocations[0].address.to_string();
    assert_eq!(address(Family::V4), "10.0.0.7");
    assert_eq!(address(Family::V6), "2001:db8:1:1:728a::");

    let loaded = parse(GOLDEN.as_bytes(), Family::V6);
    assert!(loaded.allocations.is_empty());
    assert_eq!(
        loaded.problems[0].to_string(),
        r#"allocation 1 is not usable: ipv6 is "": expected an address like 2001:db8::7"#
    );
}
