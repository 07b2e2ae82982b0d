//! Questions about a node with a few pods, in every state.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use vpc::{EniKind, EniRole, EniSlot, RouteTable};

use super::*;
use crate::clock::Moment;
use crate::pool::{EniPhase, PoolReport, QuarantineReason, Reason, Stats, Wants};
use crate::report::{Cause, RefusedPod, Wait};

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 1, last).into()
}

fn key(container: &str) -> PodKey {
    PodKey::new("aws-cni", container, "eth0").unwrap()
}

fn held(container: &str, namespace: &str, name: &str, last: u8) -> Allocation {
    Allocation {
        key: key(container),
        pod: PodName::new(namespace, name),
        address: ip(last),
        assigned_unix_ns: 1_000_000_000,
    }
}

/// An ENI with: web, shop/web and a nameless sandbox on it; one address cooling after `gone`, one
/// held back, one free. `lost` is pinned, `next` waits, `db` was refused.
fn report() -> Report {
    let now = Instant::now();
    let states = [
        AddressState::Assigned(held("aaaaaaaa11", "default", "web", 1)),
        AddressState::Assigned(held("bbbbbbbb22", "shop", "web", 2)),
        AddressState::Assigned(held("cccccccc33", "", "", 3)),
        AddressState::Cooling { until: now + Duration::from_secs(20) },
        AddressState::Quarantined(QuarantineReason::LinkAlive),
        AddressState::Free,
    ];
    let addresses =
        (1..).zip(states).map(|(last, state)| AddressReport { address: ip(last), state }).collect();
    let slot = EniSlot::new(0, 1);
    let eni = EniReport {
        id: "eni-2".parse().unwrap(),
        slot,
        table: RouteTable::of(slot),
        role: EniRole::Secondary,
        kind: EniKind::Interface,
        is_managed: true,
        phase: EniPhase::Ready,
        subnet: "subnet-1".parse().unwrap(),
        primary_ip: Ipv4Addr::new(10, 0, 1, 200),
        ipv6: Some("2001:db8::c8".parse().unwrap()),
        unused_because: None,
        prefixes: vec!["10.0.1.96/28".parse().unwrap()],
        addresses,
    };
    let release = |container: &str, name: &str, last, ago| Release {
        allocation: held(container, "default", name, last),
        at: now - Duration::from_secs(ago),
    };
    Report {
        at: Moment::of(now, std::time::SystemTime::now()),
        pool: PoolReport {
            stats: Stats::default(),
            enis: vec![eni],
            pinned: vec![held("dddddddd44", "default", "lost", 44)],
            wants: Wants::of_three_enis(),
            held_back: Vec::new(),
            subnets: Vec::new(),
        },
        steps: Vec::new(),
        next_look: None,
        waiting: vec![Wait {
            key: key("eeeeeeee55"),
            pod: PodName::new("default", "next"),
            since: now,
            deadline: now + Duration::from_secs(20),
            latest: now + Duration::from_secs(35),
        }],
        failures: Vec::new(),
        refusals: vec![RefusedPod {
            key: key("ffffffff66"),
            pod: PodName::new("default", "db"),
            at: now,
            cause: Cause::Pool(Reason::NodeFull),
            message: "full".to_owned(),
            times: 2,
        }],
        releases: vec![release("aaaaaaaa00", "before", 4, 60), release("aaaaaaaa01", "gone", 4, 10)],
        is_draining: false,
    }
}

fn ask(subject: &str) -> WhyReply {
    why(&report(), &Subject::parse(subject).unwrap())
}

fn names(subject: &str) -> Vec<String> {
    ask(subject).pods.iter().map(|story| format!("{}/{}", story.namespace, story.name)).collect()
}

#[test]
fn pods_are_found_by_full_name_by_name_alone_and_by_container_id() {
    assert_eq!(names("default/web"), ["default/web"]);
    assert_eq!(names("web"), ["default/web", "shop/web"]);
    assert_eq!(names("bbbbbbbb"), ["shop/web"]);
    assert_eq!(names("bbbbbbbb22"), ["shop/web"]);
    assert_eq!(names("cccccccc"), ["/"]);
    assert_eq!(names(" next "), ["default/next"]);
    // Too short for an id, and nobody's name.
    assert_eq!(names("bbbbbbb"), [""; 0]);
    assert_eq!(names("default/nobody"), [""; 0]);
    assert_eq!(Subject::parse("  "), None);
}

#[test]
fn a_pod_with_an_address_is_placed() {
    let holds = ask("default/web").pods.remove(0).holds;

    let [Holding { ip, since_unix_ms, place: Some(place), .. }] = &holds[..] else { panic!("{holds:?}") };
    assert_eq!((ip.as_str(), *since_unix_ms), ("10.0.1.1", 1000));
    assert_eq!((place.eni.as_str(), place.route_table, place.eni_state.as_str()), ("eni-2", 2, "ready"));
}

#[test]
fn a_pod_whose_eni_ec2_does_not_show_has_its_address_but_no_place() {
    let holds = ask("lost").pods.remove(0).holds;

    assert_eq!((holds[0].ip.as_str(), &holds[0].place), ("10.0.1.44", &None));
}

#[test]
fn who_waits_and_who_was_refused_is_told() {
    assert_eq!(ask("next").pods[0].waits.len(), 1);
    let refused = ask("db").pods.remove(0).refused.unwrap();
    assert_eq!((refused.reason.as_str(), refused.times), ("NODE_FULL", 2));
}

#[test]
fn only_the_last_pod_of_an_address_is_told_that_it_cools() {
    let released = |name| ask(name).pods.remove(0).released.unwrap();

    assert!(released("gone").cooling_until_unix_ms.is_some());
    assert_eq!(released("before").cooling_until_unix_ms, None);
}

#[test]
fn an_address_says_its_state_and_who_had_it() {
    let states = [
        (1, "assigned"),
        (4, "cooling"),
        (5, "quarantined"),
        (6, "free"),
        (44, "assigned"),
        (100, "free"),
        (200, "node"),
        (250, "unknown"),
    ];
    for (last, state) in states {
        let story = ask(&ip(last).to_string()).address.unwrap();
        assert_eq!(story.state, state, "{last}");
        assert_eq!(story.place.is_some(), !matches!(last, 44 | 250), "{last}");
    }
    let cooling = ask("10.0.1.4").address.unwrap();
    assert_eq!(cooling.released.unwrap().pod.unwrap().name, "gone");
    assert!(
        ask("10.0.1.5").address.unwrap().quarantined_because.unwrap().contains("the pod's link is alive")
    );
}
