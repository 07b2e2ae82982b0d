//! Messages as plugins of every release see them.

use std::net::Ipv4Addr;

use proto::rpc::RefusalReason;
use vpc::{EniSlot, RouteTable};

use super::*;
use crate::host::fake::FakeHost;
use crate::pool::{Allocation, Assignment, Reason, Refusal, Released};

fn facts(uses_external_snat: bool) -> ReplyFacts {
    ReplyFacts {
        family: Family::V4,
        instance: InstanceFacts {
            region: "eu-central-1".to_owned(),
            availability_zone: "eu-central-1a".to_owned(),
            instance: "i-1".parse().unwrap(),
            instance_type: "m5.large".to_owned(),
            primary_eni: "eni-1".parse().unwrap(),
            primary_mac: "02:00:00:00:00:01".parse().unwrap(),
            subnet: "subnet-1".parse().unwrap(),
            subnet_cidr: "10.0.1.0/24".parse().unwrap(),
            subnet_ipv6_cidr: None,
            vpc: "vpc-1".parse().unwrap(),
            node_ip: Ipv4Addr::new(10, 0, 1, 10),
            node_ipv6: None,
        },
        network: Arc::new(RwLock::new(network())),
        uses_external_snat,
        exclude_snat_cidrs: vec!["10.12.0.0/16".parse().unwrap()],
        network_policy_mode: "StAndard".to_owned(),
    }
}

fn network() -> NetworkFacts {
    NetworkFacts {
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        vpc_ipv6_cidrs: Vec::new(),
        security_groups: Vec::new(),
    }
}

fn assignment() -> Assignment {
    let slot = EniSlot::new(0, 2);
    Assignment {
        address: Ipv4Addr::new(10, 0, 1, 7).into(),
        eni: Some("eni-2".parse().unwrap()),
        slot,
        table: RouteTable::of(slot),
        is_new: true,
    }
}

#[test]
fn an_assignment_says_all_that_the_plugin_needs() {
    let reply = translate::assigned(&assignment(), &facts(false), &network());

    assert!(reply.success && reply.refusal.is_none() && !reply.use_external_snat);
    let [metadata] = &reply.ip_allocation_metadata[..] else { panic!("{reply:?}") };
    assert_eq!(metadata.i_pv4_addr, "10.0.1.7");
    assert_eq!((metadata.device_number, metadata.route_table_id), (2, 3));
    assert_eq!(reply.vp_cv4_cid_rs, ["10.0.0.0/16", "10.12.0.0/16"]);
    assert_eq!(reply.network_policy_mode, "StAndard");
}

#[test]
fn with_external_snat_the_exclusions_do_not_matter() {
    let reply = translate::assigned(&assignment(), &facts(true), &network());

    assert!(reply.use_external_snat);
    assert_eq!(reply.vp_cv4_cid_rs, ["10.0.0.0/16"]);
}

#[test]
fn a_refusal_is_an_answer_without_success_and_with_its_reason() {
    let refusal = Refusal {
        reason: Reason::NodeFull,
        message: "no free address".to_owned(),
        retry_after: Some(Duration::from_secs(10)),
    };

    let reply = translate::refused(&refusal);

    assert!(!reply.success && reply.ip_allocation_metadata.is_empty());
    let sent = reply.refusal.unwrap();
    assert_eq!(sent.reason(), RefusalReason::NodeFull);
    assert_eq!((sent.message.as_str(), sent.retry_after_ms), ("no free address", 10_000));
}

#[test]
fn a_release_names_what_the_pod_had() {
    let released = Released {
        allocation: Allocation {
            key: PodKey::new("aws-cni", "c", "eth0").unwrap(),
            pod: PodName::new("default", "web"),
            address: Ipv4Addr::new(10, 0, 1, 7).into(),
            assigned_unix_ns: 1,
        },
        slot: EniSlot::PRIMARY,
        table: RouteTable::MAIN,
    };

    let reply = translate::released(&released, &facts(false));

    assert!(reply.success);
    assert_eq!(reply.ip_allocation_metadata[0].i_pv4_addr, "10.0.1.7");
    assert_eq!(reply.ip_allocation_metadata[0].route_table_id, 254);
}

#[test]
fn an_unknown_pod_is_said_in_the_words_that_every_plugin_looks_for() {
    let status = translate::del_error(proto::UNKNOWN_POD);

    assert_eq!(status.code(), tonic::Code::Unknown);
    assert_eq!(status.message(), "1 error occurred:\n\t* datastore: unknown pod\n\n");
}

#[test]
fn a_pod_waits_no_longer_than_its_caller() {
    let now = Instant::now();
    let with = |timeout: &str| {
        let mut request = Request::new(());
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        let Patience { deadline, latest } = patience_of(&request, now);
        (deadline - now, latest - now)
    };
    let unsaid = patience_of(&Request::new(()), now);

    assert_eq!((unsaid.deadline - now, unsaid.latest - now), (LONGEST_WAIT, LONGEST_WAIT));
    assert_eq!(with("35S"), (LONGEST_WAIT, Duration::from_secs(35) - MARGIN));
    assert_eq!(with("5000000u"), (Duration::from_secs(5) - MARGIN, Duration::from_secs(5) - MARGIN));
    assert_eq!(with("100m"), (Duration::ZERO, Duration::ZERO));
    assert_eq!(with("18446744073709551615H").1, LONGEST_REST);
}

#[test]
fn timeouts_are_read_in_all_units_of_grpc() {
    for (text, expected) in [
        ("1H", Some(3_600_000)),
        ("2M", Some(120_000)),
        ("3S", Some(3_000)),
        ("4m", Some(4)),
        ("5000u", Some(5)),
        ("6000000n", Some(6)),
        ("", None),
        ("S", None),
        ("7", None),
        ("1é", None),
        ("-1S", None),
    ] {
        assert_eq!(translate::grpc_timeout(text), expected.map(Duration::from_millis), "{text:?}");
    }
}

/// What makes the daemon answer with each reason. A new one does not compile until it is here.
fn refused_with(reason: RefusalReason) -> Option<rpc::AddNetworkReply> {
    let by_pool = match reason {
        RefusalReason::Unspecified => return None,
        RefusalReason::BadRequest => return Some(translate::bad_request("what is asked for")),
        RefusalReason::NotReady => return Some(translate::not_ready()),
        RefusalReason::NodeFull => Reason::NodeFull,
        RefusalReason::CoolingDown => Reason::CoolingDown,
        RefusalReason::PoolFilling => Reason::PoolFilling,
        RefusalReason::SubnetExhausted => Reason::SubnetExhausted,
        RefusalReason::QuotaExceeded => Reason::QuotaExceeded,
        RefusalReason::Throttled => Reason::Throttled,
        RefusalReason::PermissionDenied => Reason::PermissionDenied,
        RefusalReason::Ec2Refuses => Reason::Ec2Refuses,
        RefusalReason::Ec2Unavailable => Reason::Ec2Unavailable,
        RefusalReason::HostSetupFailed => Reason::HostSetupFailed,
        RefusalReason::StateNotDurable => Reason::StateNotDurable,
        RefusalReason::ProvisioningOff => Reason::ProvisioningOff,
        RefusalReason::Quarantined => Reason::Quarantined,
    };
    let refusal = Refusal { reason: by_pool, message: "why".to_owned(), retry_after: None };
    Some(translate::refused(&refusal))
}

#[test]
fn every_reason_of_the_wire_is_given_and_never_without_words() {
    let reasons: Vec<_> = (0..).map_while(|number| RefusalReason::try_from(number).ok()).collect();
    assert!(reasons.len() > 13, "{reasons:?}");
    for reason in reasons {
        let Some(reply) = refused_with(reason) else { continue };

        let refusal = reply.refusal.unwrap();
        assert!(!reply.success && !refusal.message.is_empty(), "{reason:?}");
        assert_eq!(refusal.reason(), reason);
    }
    assert_eq!(translate::crowded().refusal.unwrap().reason(), RefusalReason::NotReady);
}

/// The services over a pool that nobody works for, with room for `calls` at once.
fn services(calls: usize) -> Services {
    let paced = Paced::new((), ec2::PaceOptions::default());
    let host = FakeHost::default().handle();
    let pool = PoolHandle::without_pool();
    Services {
        adds: Arc::new(Semaphore::new(calls)),
        dels: Arc::new(Semaphore::new(1)),
        ..Services::new(pool, host, facts(false), Budgets::of(paced))
    }
}

fn add_request(containers: &str) -> Request<rpc::AddNetworkRequest> {
    Request::new(rpc::AddNetworkRequest {
        network_name: "aws-cni".to_owned(),
        container_id: containers.to_owned(),
        if_name: "eth0".to_owned(),
        ..rpc::AddNetworkRequest::default()
    })
}

#[tokio::test(start_paused = true)]
async fn an_add_that_never_gets_its_turn_is_refused_with_a_reason() {
    let reply = services(0).add_network(add_request("c")).await.unwrap().into_inner();

    assert_eq!(reply.refusal.unwrap().reason(), RefusalReason::NotReady);
}

#[tokio::test(start_paused = true)]
async fn a_del_does_not_wait_behind_the_adds_that_wait_for_its_address() {
    let message = rpc::DelNetworkRequest {
        network_name: "aws-cni".to_owned(),
        container_id: "c".to_owned(),
        if_name: "eth0".to_owned(),
        ..rpc::DelNetworkRequest::default()
    };

    let services = services(0);
    let answer = services.del_network(Request::new(message));

    assert!(tokio::time::timeout(Duration::from_secs(1), answer).await.is_ok());
}

#[tokio::test]
async fn an_add_to_a_daemon_that_ends_is_refused_with_a_reason() {
    let reply = services(1).add_network(add_request("c")).await.unwrap().into_inner();
    assert_eq!(reply.refusal.unwrap().reason(), RefusalReason::NotReady);

    let closed = services(1);
    closed.adds.close();
    let reply = closed.add_network(add_request("c")).await.unwrap().into_inner();
    assert_eq!(reply.refusal.unwrap().reason(), RefusalReason::NotReady);
}

#[tokio::test]
async fn an_add_that_asks_for_what_is_not_served_is_refused_with_a_reason() {
    let nameless = services(1).add_network(add_request("")).await.unwrap().into_inner().refusal.unwrap();
    assert_eq!(nameless.reason(), RefusalReason::BadRequest);
    assert_eq!(nameless.message, "the request names no container id");

    let mut request = add_request("c");
    request.get_mut().requires_multi_nic_attachment = true;
    let several = services(1).add_network(request).await.unwrap().into_inner().refusal.unwrap();
    assert_eq!(several.reason(), RefusalReason::BadRequest);
}
