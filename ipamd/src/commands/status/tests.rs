//! The text on call, and the keys that programs rely on.

use proto::node::{
    ActionBudget, AddressCounts, AddressStatus, Contested, DaemonStatus, EniStatus, Failure, HeldBack,
    InstanceStatus, NetworkStatus, Planner, PodStatus, RefusedPod, Repairs, StatusReply, StepStatus,
    SubnetStatus, Takeover, Targets, WaitingPod,
};

use super::*;

/// 2026-11-21T14:02:11Z.
const NOW: i64 = 1_795_269_731_000;

fn pod(name: &str) -> Option<PodStatus> {
    Some(PodStatus {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        network: "aws-cni".to_owned(),
        container_id: "0123456789abcdef".to_owned(),
        interface: "eth0".to_owned(),
    })
}

fn address(ip: &str, state: &str) -> AddressStatus {
    AddressStatus { ip: ip.to_owned(), state: state.to_owned(), ..Default::default() }
}

/// A quiet node with one ENI.
fn quiet() -> StatusReply {
    let counts = AddressCounts { total: 3, assigned: 1, free: 2, ..Default::default() };
    StatusReply {
        now_unix_ms: NOW,
        daemon: Some(DaemonStatus {
            version: "1.2.3".to_owned(),
            started_unix_ms: NOW - 7_980_000,
            state: "serving".to_owned(),
        }),
        instance: Some(InstanceStatus {
            id: "i-1".to_owned(),
            r#type: "m5.large".to_owned(),
            region: "us-west-2".to_owned(),
            availability_zone: "us-west-2a".to_owned(),
            vpc: "vpc-1".to_owned(),
            ip: "10.0.1.10".to_owned(),
        }),
        addresses: Some(counts),
        targets: Some(Targets {
            mode: "secondary IPs".to_owned(),
            warm_eni_target: 1,
            eni_limit: 3,
            address_limit: 27,
            max_pods: 29,
            may_provision: true,
            ..Default::default()
        }),
        enis: vec![EniStatus {
            id: "eni-1".to_owned(),
            route_table: 254,
            role: "primary".to_owned(),
            state: "ready".to_owned(),
            subnet: "subnet-1".to_owned(),
            primary_ip: "10.0.1.10".to_owned(),
            counts: Some(counts),
            addresses: vec![
                AddressStatus { pod: pod("web"), ..address("10.0.1.7", "assigned") },
                address("10.0.1.8", "free"),
                address("10.0.1.9", "free"),
            ],
            ..Default::default()
        }],
        planner: Some(Planner::default()),
        ec2_budget: vec![budget(25, 0, None)],
        ..Default::default()
    }
}

fn budget(tokens: u32, requests_waiting: u32, throttled_until_unix_ms: Option<i64>) -> ActionBudget {
    ActionBudget {
        action: "AssignPrivateIpAddresses".to_owned(),
        class: "change".to_owned(),
        tokens,
        burst: 25,
        tokens_per_second: 1.0,
        requests_waiting,
        throttled_until_unix_ms,
    }
}

#[test]
fn a_quiet_node_fits_on_a_small_screen() {
    let text = "\
node       i-1, m5.large in us-west-2a, 10.0.1.10, vpc-1
daemon     1.2.3, serving since 2026-11-21T11:49:11Z (2 h 13 min ago)
addresses  3 held of at most 27: 1 assigned, 2 free, 0 cooling, 0 quarantined
target     WARM_ENI_TARGET=1, by secondary IPs; reached
           the instance type allows 3 ENIs with 27 addresses; the kubelet may start 29 pods
waiting    0 pods

ENI    DEVICE  TABLE  SUBNET    STATE  HOLDS        ASSIGNED  FREE  COOLING  QUARANTINED
eni-1  0       main   subnet-1  ready  3 addresses  1         2     0        0

planner
  nothing to do: the target is reached

EC2 budget
  all actions  every token left
";

    assert_eq!(render(&quiet()), text);
}

#[test]
fn trouble_is_told_with_its_reasons_and_times() {
    let mut reply = quiet();
    reply.enis[0].prefixes = vec!["10.0.1.0/28".to_owned()];
    reply.enis[0].kind = Some("trunk".to_owned());
    reply.addresses.as_mut().unwrap().next_cooled_unix_ms = Some(NOW + 12_000);
    reply.enis[0].addresses[2].quarantined_because = Some("the kernel routes it".to_owned());
    reply.without_eni = vec![AddressStatus { pod: pod("lost"), ..address("10.0.2.2", "assigned") }];
    reply.subnets = vec![SubnetStatus {
        id: "subnet-1".to_owned(),
        cidr: "10.0.1.0/24".to_owned(),
        free_addresses: 40,
        free_prefixes_at_most: 2,
        read_unix_ms: Some(NOW - 60_000),
        exhausted_until_unix_ms: Some(NOW + 30_000),
        takes_enis: true,
        excluded: false,
    }];
    reply.targets.as_mut().unwrap().missing = 9;
    reply.planner = Some(Planner {
        under_way: vec![StepStatus {
            step: "assign 9 secondary IPs to eni-1".to_owned(),
            since_unix_ms: Some(NOW - 2_000),
        }],
        held_back: vec![
            HeldBack {
                step: "allocate an ENI".to_owned(),
                until_unix_ms: Some(NOW + 8_000),
                because: "EC2 denied ec2:CreateNetworkInterface".to_owned(),
            },
            HeldBack {
                step: "get 9 more addresses".to_owned(),
                until_unix_ms: None,
                because: "MAX_ENI allows 1 ENI".to_owned(),
            },
        ],
        next_look_unix_ms: None,
    });
    reply.ec2_budget = vec![budget(0, 2, Some(NOW + 4_000)), budget(25, 0, None)];
    reply.recent_failures = vec![Failure {
        at_unix_ms: NOW - 3_000,
        action: "allocate an ENI".to_owned(),
        class: "denied".to_owned(),
        message: "EC2 denied ec2:CreateNetworkInterface".to_owned(),
    }];
    reply.waiting_pods = vec![WaitingPod {
        pod: pod("next"),
        since_unix_ms: NOW - 3_000,
        until_unix_ms: NOW + 17_000,
        until_for_cooling_unix_ms: NOW + 31_000,
    }];
    reply.recent_refusals = vec![RefusedPod {
        pod: pod("db"),
        at_unix_ms: NOW - 1_000,
        reason: "NODE_FULL".to_owned(),
        message: "no free address".to_owned(),
        times: 2,
    }];
    let text = "\
node       i-1, m5.large in us-west-2a, 10.0.1.10, vpc-1
daemon     1.2.3, serving since 2026-11-21T11:49:11Z (2 h 13 min ago)
addresses  3 held of at most 27: 1 assigned, 2 free, 0 cooling, 0 quarantined
           the next one that cools is free in 12 s
target     WARM_ENI_TARGET=1, by secondary IPs; 9 addresses are missing
           the instance type allows 3 ENIs with 27 addresses; the kubelet may start 29 pods
waiting    1 pod

ENI            DEVICE  TABLE  SUBNET    STATE  HOLDS                   ASSIGNED  FREE  COOLING  QUARANTINED
eni-1 (trunk)  0       main   subnet-1  ready  1 prefix (3 addresses)  1         2     0        0

SUBNET    BLOCK        FREE  FREE /28   READ       NOTE
subnet-1  10.0.1.0/24  40    at most 2  1 min ago  had too little; left alone until 2026-11-21T14:02:41Z (in 30 s)

planner
  doing: assign 9 secondary IPs to eni-1, for 2 s
  waiting until 2026-11-21T14:02:19Z (in 8 s) to allocate an ENI, because EC2 denied ec2:CreateNetworkInterface
  cannot get 9 more addresses: MAX_ENI allows 1 ENI

EC2 budget
  AssignPrivateIpAddresses  0 of 25 tokens left, 1 a second come back; 2 requests wait; EC2 throttles: nothing is sent for 4 s
  other actions             every token left

waiting pods
  default/next  for 3 s  at most 31 s more

quarantined addresses, neither given out nor returned
  10.0.1.9  eni-1  the kernel routes it

addresses of pods whose ENI EC2 does not show
  10.0.2.2  default/lost

recent failures
  2026-11-21T14:02:08Z (3 s ago)  denied  allocate an ENI: EC2 denied ec2:CreateNetworkInterface

pods refused lately, newest first; `ipamd why POD` tells more
  default/db  2 times  2026-11-21T14:02:10Z (1 s ago)  NODE_FULL
";

    assert_eq!(render(&reply), text);
}

#[test]
fn a_take_over_is_told_of_where_there_is_something_to_do() {
    let with = |takeover: Takeover| render(&StatusReply { takeover: Some(takeover), ..quiet() });
    assert_eq!(with(Takeover { state: "done".to_owned(), ..Default::default() }), render(&quiet()));

    let text = with(Takeover {
        state: "failing".to_owned(),
        left: vec!["iptables-legacy has the tables nat".to_owned()],
        failures: vec!["iptables-nft-restore: Permission denied".to_owned()],
        signs_of_return: vec!["nft table ip aws-cni".to_owned()],
    });

    assert!(
        text.ends_with(
            "
rules of amazon-vpc-cni-k8s that may be left; tried again every minute
  iptables-nft-restore: Permission denied

left of amazon-vpc-cni-k8s
  iptables-legacy has the tables nat

amazon-vpc-cni-k8s runs on this node too; stop one of them
  nft table ip aws-cni
"
        ),
        "{text}"
    );
}

#[test]
fn an_idle_planner_says_why() {
    let with = |change: &dyn Fn(&mut Targets)| {
        let mut reply = quiet();
        change(reply.targets.as_mut().unwrap());
        let text = render(&reply);
        text.lines().skip_while(|line| *line != "planner").nth(1).unwrap().trim().to_owned()
    };

    assert_eq!(
        with(&|wanted| (wanted.surplus, wanted.surplus_goes_unix_ms) = (9, Some(NOW + 100_000))),
        "nothing to do yet: 9 addresses too many go back in 1 min 40 s if that lasts"
    );
    assert_eq!(with(&|wanted| wanted.missing = 1), "nothing under way, though 1 address is missing");
    let unknown = StatusReply {
        targets: None,
        planner: Some(Planner { next_look_unix_ms: Some(NOW + 9_000), ..Planner::default() }),
        ..quiet()
    };
    assert!(render(&unknown).contains("  nothing under way; it looks again in 9 s\n"));
}

#[test]
fn what_others_do_to_the_nodes_network_is_told() {
    let network = NetworkStatus {
        fault: Some("add rule 512: Operation not permitted".to_owned()),
        repairs: vec![Repairs {
            kind: "rule".to_owned(),
            times: 12,
            last_unix_ms: NOW - 3_000,
            last_change: "add rule 512: from all to 10.0.1.7 lookup main".to_owned(),
        }],
        contested: vec![Contested {
            what: "ip vpc-cni".to_owned(),
            times: 7,
            not_before_unix_ms: NOW + 4_000,
        }],
        warnings: vec!["net.ipv4.ip_forward is 0".to_owned()],
    };
    let text = render(&StatusReply { network: Some(network), ..quiet() });

    let part: Vec<&str> = text.lines().skip_while(|line| *line != "node network").skip(1).take(4).collect();
    assert_eq!(
        part,
        [
            "  not as wanted            add rule 512: Operation not permitted",
            "  somebody keeps changing  ip vpc-cni, put back 7 times lately; \
             not put back again before 2026-11-21T14:02:15Z (in 4 s)",
            "  put back: rule           12 times, last at 2026-11-21T14:02:08Z (3 s ago): \
             add rule 512: from all to 10.0.1.7 lookup main",
            "  check                    net.ipv4.ip_forward is 0",
        ]
    );
    assert!(!render(&quiet()).contains("node network"));
}

#[test]
fn only_the_targets_that_count_are_shown() {
    let with = |change: &dyn Fn(&mut Targets)| {
        let mut reply = quiet();
        let targets = reply.targets.as_mut().unwrap();
        targets.warm_prefix_target = 1;
        change(targets);
        let text = render(&reply);
        text.lines().find_map(|line| line.strip_prefix("target     ")).unwrap().to_owned()
    };

    assert_eq!(with(&|_| ()), "WARM_ENI_TARGET=1, by secondary IPs; reached");
    assert_eq!(
        with(&|wanted| wanted.mode = "prefixes".to_owned()),
        "WARM_PREFIX_TARGET=1, by prefixes; reached"
    );
    assert_eq!(
        with(&|wanted| wanted.warm_ip_target = 2),
        "WARM_IP_TARGET=2 MINIMUM_IP_TARGET=0, by secondary IPs; reached"
    );
}

#[test]
fn the_keys_of_the_json_stay_as_they_are() {
    let json = serde_json::to_value(quiet()).unwrap();
    let keys =
        |value: &serde_json::Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };

    let mut top = keys(&json);
    top.sort_unstable();
    assert_eq!(
        top,
        [
            "addresses",
            "daemon",
            "ec2_budget",
            "enis",
            "instance",
            "network",
            "now_unix_ms",
            "planner",
            "recent_failures",
            "recent_refusals",
            "subnets",
            "takeover",
            "targets",
            "waiting_pods",
            "without_eni"
        ]
    );
    assert_eq!(json["instance"]["type"], "m5.large");
    assert_eq!(json["addresses"]["assigned"], 1);
    let first = &json["enis"][0]["addresses"][0];
    assert_eq!((&first["ip"], &first["state"]), (&"10.0.1.7".into(), &"assigned".into()));
    assert_eq!(first["pod"]["container_id"], "0123456789abcdef");
    assert!(first["cooling_until_unix_ms"].is_null());
}
