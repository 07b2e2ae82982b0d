//! An hour in which a pod comes and one goes every ten seconds: what EC2 is asked, beside what
//! the reference asks by its rules. The lab runs the same history thirty times faster.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::cloud::IMDS;
use lab::measure::reference::{self, PodEvent, Rules};

use super::play::play_and_ask;
use super::scenario::{Event, Scenario};

const PERIOD: u64 = 10;
/// How long a pod lives: five are there all the time, and half of it a sixth.
const LIFE: u64 = 55;
/// Until as many addresses rest as the churn needs.
const WARM_UP: u64 = 300;
const HOUR: u64 = 3600;
const WARM_IP: u32 = 2;

fn scenario() -> Scenario {
    let pod = |number: u64| {
        let name = u32::try_from(number).unwrap();
        let life = Duration::from_secs(LIFE);
        (Duration::from_secs(number * PERIOD), Event::Pod { node: 0, name, lives: 1, life, salt: number })
    };
    Scenario {
        seed: 1,
        nodes: 1,
        instance_type: "m5.large",
        vars: BTreeMap::from([("CLUSTER_NAME", "blue".to_owned()), ("WARM_IP_TARGET", WARM_IP.to_string())]),
        subnets: vec!["10.0.0.0/22".parse().unwrap()],
        active: Duration::from_secs(WARM_UP + HOUR),
        idle: Duration::from_secs(600),
        latency: Duration::from_millis(200),
        attach_delay: Duration::from_secs(1),
        detach_delay: Duration::from_secs(1),
        keeps_run: false,
        provided: None,
        is_custom: false,
        lost_dels: 0,
        events: (0..(WARM_UP + HOUR) / PERIOD).map(pod).collect(),
    }
}

/// The reference's calls in the same hour.
fn by_rules() -> u64 {
    let rules = Rules {
        enis: 3,
        slots: 9,
        uses_prefixes: false,
        warm_ip: usize::try_from(WARM_IP).unwrap(),
        max_pods: 29,
        assign: 300,
        new_eni: 3000,
    };
    let mut events = Vec::new();
    for number in 0..(WARM_UP + HOUR) / PERIOD {
        let at = number * PERIOD;
        events.extend([(at * 1000, PodEvent::Arrives), ((at + LIFE) * 1000, PodEvent::OldestLeaves)]);
    }
    events.sort_by_key(|(at, _)| *at);
    let until = |secs: u64| reference::run(rules, &events, secs * 1000).total_calls();
    until(WARM_UP + HOUR) - until(WARM_UP)
}

#[test]
fn an_hour_of_churn_costs_ec2_few_calls() {
    let (outcome, calls) = play_and_ask(&scenario(), false, |world| world.cloud.calls());

    assert_eq!(outcome.violation, None, "{}", outcome.trace.join("\n"));
    let hour = Duration::from_secs(WARM_UP)..Duration::from_secs(WARM_UP + HOUR);
    let mut by_action: BTreeMap<String, u64> = BTreeMap::new();
    for record in calls {
        if record.call.action != IMDS && hour.contains(&record.call.received) {
            *by_action.entry(record.call.action).or_default() += 1;
        }
    }
    let (ours, reference) = (by_action.values().sum::<u64>(), by_rules());
    eprintln!("EC2 calls in an hour of churn: {ours} ({by_action:?}); the reference's: {reference}");
    assert!(reference > 100, "{reference}");
    // A peak that comes less often than the shrink delay costs two calls each time.
    assert!(ours <= 20, "{by_action:?}");
}
