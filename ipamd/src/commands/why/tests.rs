//! Every kind of answer, as a person reads it.

use proto::node::{AddressCounts, HeldBack, Planner, StepStatus};
use proto::node::{
    AddressPlace, AddressStory, Holding, PodStatus, PodStory, RefusedPod, ReleasedAddress, WaitingPod,
};

use super::*;

/// 2026-11-21T14:02:11Z.
const NOW: i64 = 1_795_269_731_000;

fn pod(name: &str) -> PodStatus {
    PodStatus {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        network: "aws-cni".to_owned(),
        container_id: "0123456789abcdef".to_owned(),
        interface: "eth0".to_owned(),
    }
}

fn story() -> PodStory {
    PodStory { namespace: "default".to_owned(), name: "web".to_owned(), ..PodStory::default() }
}

fn reply(pods: Vec<PodStory>) -> WhyReply {
    WhyReply { now_unix_ms: NOW, started_unix_ms: NOW - 7_200_000, pods, ..WhyReply::default() }
}

fn place() -> AddressPlace {
    AddressPlace {
        eni: "eni-2".to_owned(),
        subnet: "subnet-1".to_owned(),
        network_card: 0,
        device_index: 1,
        route_table: 2,
        eni_state: "ready".to_owned(),
        eni_unused_because: None,
    }
}

fn refusal() -> RefusedPod {
    RefusedPod {
        pod: Some(pod("web")),
        at_unix_ms: NOW - 5_000,
        reason: "NODE_FULL".to_owned(),
        message: "no free address: 9 assigned".to_owned(),
        times: 3,
    }
}

fn release() -> ReleasedAddress {
    ReleasedAddress {
        pod: Some(pod("web")),
        ip: "10.0.1.7".to_owned(),
        assigned_unix_ms: NOW - 70_000,
        released_unix_ms: NOW - 10_000,
        cooling_until_unix_ms: Some(NOW + 20_000),
    }
}

fn check(reply: &WhyReply, expected: (Known, &str)) {
    assert_eq!((known(reply), render("web", reply).as_str()), expected);
}

#[test]
fn a_pod_with_an_address_says_since_when_and_from_where() {
    let held = Holding {
        pod: Some(pod("web")),
        ip: "10.0.1.7".to_owned(),
        since_unix_ms: NOW - 180_000,
        place: Some(place()),
    };
    let text = "\
default/web has 10.0.1.7 since 2026-11-21T13:59:11Z (3 min ago)
  on eni-2 (card 0, device 1) in subnet-1, route table 2
  container 0123456789abcdef, interface eth0, network aws-cni
earlier it was refused 3 times, the last time at 2026-11-21T14:02:06Z (5 s ago): NODE_FULL
  no free address: 9 assigned
";

    check(
        &reply(vec![PodStory { holds: vec![held], refused: Some(refusal()), ..story() }]),
        (Known::Yes, text),
    );
}

#[test]
fn a_pod_that_waits_says_for_what() {
    let wait = WaitingPod {
        pod: Some(pod("web")),
        since_unix_ms: NOW - 3_000,
        until_unix_ms: NOW + 17_000,
        until_for_cooling_unix_ms: NOW + 31_000,
    };
    let step = StepStatus { step: "set up eni-2 on the host".to_owned(), since_unix_ms: Some(NOW - 400) };
    let held = HeldBack {
        step: "get 9 more addresses".to_owned(),
        until_unix_ms: None,
        because: "MAX_ENI allows 1 ENI".to_owned(),
    };
    let waiting = WhyReply {
        planner: Some(Planner { under_way: vec![step], held_back: vec![held], ..Planner::default() }),
        addresses: Some(AddressCounts {
            assigned: 9,
            cooling: 1,
            next_cooled_unix_ms: Some(NOW + 12_000),
            ..AddressCounts::default()
        }),
        ..reply(vec![PodStory { waits: vec![wait], ..story() }])
    };
    let text = "\
default/web waits for an address since 2026-11-21T14:02:08Z (3 s ago)
  it waits 17 s more at most, and 31 s for an address that cools
  under way: set up eni-2 on the host, for 0.4 s
  cannot get 9 more addresses: MAX_ENI allows 1 ENI
  addresses of this node: 9 assigned, 0 free, 1 cooling, 0 quarantined; the next one that cools is free in 12 s
  container 0123456789abcdef, interface eth0, network aws-cni
";

    check(&waiting, (Known::Yes, text));
}

#[test]
fn a_refused_pod_says_why() {
    let text = "\
default/web was refused 3 times, the last time at 2026-11-21T14:02:06Z (5 s ago): NODE_FULL
  no free address: 9 assigned
  no ADD of it is under way; the kubelet tries again by itself
  container 0123456789abcdef, interface eth0, network aws-cni
";

    check(&reply(vec![PodStory { refused: Some(refusal()), ..story() }]), (Known::Yes, text));
}

#[test]
fn a_pod_that_went_says_when_its_address_is_free_again() {
    let text = "\
default/web gave 10.0.1.7 back at 2026-11-21T14:02:01Z (10 s ago), after 1 min
  the address cools until 2026-11-21T14:02:31Z (in 20 s)
  container 0123456789abcdef, interface eth0, network aws-cni
";

    check(&reply(vec![PodStory { released: Some(release()), ..story() }]), (Known::Yes, text));
}

#[test]
fn a_stranger_is_said_to_be_one_and_how_far_back_that_goes() {
    let text = "\
no pod web is known on this node: it has no address and waits for none, and was neither refused nor \
deleted since the daemon began to serve at 2026-11-21T12:02:11Z (2 h ago)
";

    check(&reply(Vec::new()), (Known::No, text));
}

#[test]
fn a_name_that_several_pods_have_is_not_answered_for_one_of_them() {
    let other = PodStory { namespace: "shop".to_owned(), ..story() };
    let text = "\
web fits 2 pods; ask for one of them by its full name:
  default/web
  shop/web
";

    check(&reply(vec![story(), other]), (Known::No, text));
}

#[test]
fn an_address_says_what_it_is_doing() {
    let story = |state: &str| AddressStory {
        ip: "10.0.1.7".to_owned(),
        state: state.to_owned(),
        ..Default::default()
    };
    let on_eni = "  on eni-2 (card 0, device 1) in subnet-1, route table 2\n";
    let container = "  container 0123456789abcdef, interface eth0, network aws-cni\n";
    let cases = [
        (
            AddressStory {
                pod: Some(pod("web")),
                assigned_unix_ms: Some(NOW - 1_000),
                place: Some(place()),
                ..story("assigned")
            },
            Known::Yes,
            format!("10.0.1.7 is default/web's since 2026-11-21T14:02:10Z (1 s ago)\n{on_eni}{container}"),
        ),
        (
            AddressStory {
                cooling_until_unix_ms: Some(NOW + 20_000),
                place: Some(place()),
                released: Some(release()),
                ..story("cooling")
            },
            Known::Yes,
            format!(
                "10.0.1.7 cools after its last pod; it is free in 20 s\n{on_eni}\
                 default/web gave it back at 2026-11-21T14:02:01Z (10 s ago)\n"
            ),
        ),
        (
            AddressStory {
                quarantined_because: Some("the kernel routes it".to_owned()),
                ..story("quarantined")
            },
            Known::Yes,
            "10.0.1.7 is held back, neither given out nor returned: the kernel routes it\n".to_owned(),
        ),
        (
            AddressStory { place: Some(place()), ..story("free") },
            Known::Yes,
            format!("10.0.1.7 is free: the next pod may get it\n{on_eni}"),
        ),
        (story("unknown"), Known::No, "10.0.1.7 is no address that this node has for pods\n".to_owned()),
    ];
    for (address, is_known, text) in cases {
        check(&WhyReply { address: Some(address), ..reply(Vec::new()) }, (is_known, text.as_str()));
    }
}

#[test]
fn an_address_that_no_pod_can_get_yet_is_not_promised() {
    let with = |place: AddressPlace| {
        let story = AddressStory {
            ip: "10.0.1.7".to_owned(),
            state: "free".to_owned(),
            place: Some(place),
            ..AddressStory::default()
        };
        let text = render("10.0.1.7", &WhyReply { address: Some(story), ..reply(Vec::new()) });
        text.lines().next().unwrap().to_owned()
    };

    assert_eq!(
        with(AddressPlace { eni_state: "setting up".to_owned(), ..place() }),
        "10.0.1.7 is free, but its ENI is being set up"
    );
    let excluded = AddressPlace { eni_unused_because: Some("its subnet is excluded".to_owned()), ..place() };
    assert_eq!(
        with(excluded),
        "10.0.1.7 is free, but no pod gets it: its ENI is not used (its subnet is excluded)"
    );
}
