//! The text of a small node's figures, and what is said when there are none.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use datapath::host::ChangeKind;
use tower::ServiceExt;
use vpc::{EniKind, EniRole, EniSlot, PodKey, PodName, RouteTable};

use super::*;
use crate::clock::Moment;
use crate::host::fake::FakeHost;
use crate::host::{Count, HostHealth};
use crate::pool::{
    AddressReport, AddressState, Allocation, EniPhase, EniReport, PoolReport, Stats, SubnetReport, Wants,
};
use crate::report::Report;

/// What [`Families::text`] gives for [`small_node`] and [`mended`].
const SMALL_NODE: &str = include_str!("small-node.txt");

/// An ENI with this many addresses in pods' hands.
fn eni(id: &str, device: u8, assigned: u8) -> EniReport {
    let addresses = (0..assigned).map(|last| {
        let address = Ipv4Addr::new(10, 0, device, last).into();
        let key = PodKey::new("aws-cni", &format!("{id}-{last}"), "eth0").unwrap();
        let allocation =
            Allocation { key, pod: PodName::new("default", "web"), address, assigned_unix_ns: 1 };
        AddressReport { address, state: AddressState::Assigned(allocation) }
    });
    let slot = EniSlot::new(0, device.into());
    EniReport {
        id: id.parse().unwrap(),
        slot,
        table: RouteTable::of(slot),
        role: EniRole::Secondary,
        kind: EniKind::Interface,
        is_managed: true,
        phase: EniPhase::Ready,
        subnet: "subnet-1".parse().unwrap(),
        primary_ip: Ipv4Addr::new(10, 0, device, 200),
        ipv6: None,
        unused_because: None,
        prefixes: Vec::new(),
        addresses: addresses.collect(),
    }
}

fn wants() -> Wants {
    Wants { mode: "prefixes", warm_prefix: 1, ..Wants::of_three_enis() }
}

fn subnet() -> SubnetReport {
    SubnetReport {
        id: "subnet-1".parse().unwrap(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        free_addresses: 200,
        free_prefixes_at_most: 12,
        read_at: None,
        exhausted_until: None,
        takes_enis: true,
        is_excluded: false,
    }
}

fn report(stats: Stats, enis: Vec<EniReport>, subnets: Vec<SubnetReport>) -> Report {
    Report {
        at: Moment::now(),
        pool: PoolReport { stats, enis, pinned: Vec::new(), wants: wants(), held_back: Vec::new(), subnets },
        steps: Vec::new(),
        next_look: None,
        waiting: Vec::new(),
        failures: Vec::new(),
        refusals: Vec::new(),
        releases: Vec::new(),
        is_draining: false,
    }
}

/// Two ENIs of ours and one of somebody else's.
fn small_node() -> Report {
    let stats = Stats {
        enis: 3,
        total: 18,
        assigned: 3,
        cooling: 1,
        quarantined: 1,
        free: 4,
        setting_up: 9,
        prefixes: 0,
        waiting: 2,
    };
    let others = EniReport { is_managed: false, ..eni("eni-3", 2, 0) };
    report(stats, vec![eni("eni-1", 0, 2), eni("eni-2", 1, 1), others], vec![subnet()])
}

/// A host where rules were put back `times` times.
fn mended(times: u64) -> HostHealth {
    let count = Count { times, last: Instant::now(), change: "add rule".to_owned() };
    HostHealth { repairs: BTreeMap::from([(ChangeKind::Rule, count)]), ..HostHealth::default() }
}

/// The samples of a text, without comments.
fn samples(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

fn families(family: Family) -> Families {
    Families::new(family).unwrap()
}

#[test]
fn a_small_nodes_figures_are_told_under_the_names_of_the_reference_and_ours() {
    let text = families(Family::V4).text(&small_node(), &mended(4)).unwrap();

    assert_eq!(text, SMALL_NODE.replace("VERSION", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_is_gone_is_told_of_no_more_and_repairs_are_counted_on() {
    let families = families(Family::V4);
    families.text(&small_node(), &mended(4)).unwrap();

    let later = report(Stats::default(), vec![eni("eni-2", 1, 0)], Vec::new());
    let faulty = HostHealth { fault: Some("no".to_owned()), ..mended(6) };
    let text = families.text(&later, &faulty).unwrap();

    let samples = samples(&text);
    assert!(!text.contains("eni-1") && !text.contains("subnet-1"), "{text}");
    for sample in [
        r#"awscni_assigned_ip_per_eni{eni="eni-2"} 0"#,
        "awscni_assigned_ip_addresses 0",
        "awscni_eni_max 3",
        r#"vpc_cni_network_repairs_total{kind="rule"} 6"#,
        "vpc_cni_network_faulty 1",
        "vpc_cni_waiting_pods 0",
    ] {
        assert!(samples.contains(&sample), "no {sample} in {text}");
    }
}

#[test]
fn an_ipv6_prefix_counts_for_all_its_addresses() {
    let stats = Stats {
        enis: 1,
        total: u32::MAX,
        assigned: 3,
        cooling: 1,
        free: u32::MAX,
        prefixes: 1,
        ..Stats::default()
    };

    let text =
        families(Family::V6).text(&report(stats, vec![eni("eni-1", 0, 3)], Vec::new()), &mended(0)).unwrap();

    let samples = samples(&text);
    for sample in [
        "awscni_total_ip_addresses 281474976710656",
        "awscni_total_ipv4_prefixes 0",
        "awscni_ip_max 0",
        r#"vpc_cni_addresses{state="free"} 281474976710652"#,
        r#"vpc_cni_addresses{state="setting_up"} 0"#,
    ] {
        assert!(samples.contains(&sample), "no {sample} in {text}");
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_tell_its_figures_says_why() {
    let source = Source::new(PoolHandle::without_pool(), FakeHost::default().handle(), Family::V4).unwrap();
    let request = Request::get("/metrics").body(Body::empty()).unwrap();

    let response = router(source).oneshot(request).await.unwrap();

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let said = to_bytes(response.into_body(), 1024).await.unwrap();
    assert_eq!(said, "The daemon is shutting down.\n");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_taken_is_tried_again_and_served_once_it_is_free() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let source = Source::new(PoolHandle::without_pool(), FakeHost::default().handle(), Family::V4).unwrap();
    let server = tokio::spawn(serve(address, source));
    sleep(FIRST_PAUSE / 2).await;
    assert!(!server.is_finished());

    drop(taken);
    sleep(FIRST_PAUSE).await;

    TcpStream::connect(address).await.unwrap();
    server.abort();
}

#[tokio::test]
async fn every_interface_is_listened_on_for_both_families() {
    let listener = listen(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0))).unwrap();
    let port = listener.local_addr().unwrap().port();

    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
}
