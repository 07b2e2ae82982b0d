//! A scenario from a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::chance::Chance;
use super::disk::DiskTrouble;
use super::scenario::{ByHand, Event, IMDS_ONLY, NO_PROVISIONING, PREFIXES, Provided, Scenario, Wrong};

/// A subnet with room for everybody.
const WIDE: &str = "10.0.0.0/22";

impl Scenario {
    /// The run of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed, 1);
        let nodes = match chance.between(0, 99) {
            0..60 => 1,
            60..85 => 2,
            85..97 => 3,
            _ => 6,
        };
        let instance_type = chance.pick(&["t3.small", "t3.small", "t3.medium", "m5.large"]);
        let vars = vars(&mut chance);
        let subnet = if chance.percent(20) { "10.0.0.0/26" } else { WIDE };
        let mut subnets: Vec<Ipv4Net> = vec![subnet.parse().expect("a subnet")];
        if chance.percent(20) {
            subnets.push("10.0.16.0/24".parse().expect("a subnet"));
        }
        let most_latency = if chance.percent(20) { 1500 } else { 300 };
        let mut scenario = Self {
            seed,
            nodes,
            instance_type,
            vars,
            subnets,
            active: chance.secs(600, 2400),
            idle: Duration::from_secs(if chance.percent(15) { 7200 } else { 3600 }),
            latency: chance.millis(20, most_latency),
            attach_delay: chance.millis(0, 4000),
            detach_delay: chance.millis(0, 8000),
            keeps_run: chance.percent(30),
            provided: None,
            is_custom: false,
            lost_dels: 0,
            events: Vec::new(),
        };
        scenario.draw_mode();
        scenario.draw_pods();
        if !chance.percent(15) {
            scenario.draw_trouble();
            scenario.draw_wishes();
        }
        scenario.events.sort_by_key(|(at, _)| *at);
        scenario
    }

    /// Who makes ENIs, and where.
    fn draw_mode(&mut self) {
        let mut chance = Chance::new(self.seed, 4);
        match chance.between(0, 99) {
            kind @ 0..10 => {
                self.vars.insert(if kind < 5 { IMDS_ONLY } else { NO_PROVISIONING }, "true".to_owned());
                self.vars.remove("MAX_ENI");
                self.subnets = vec![WIDE.parse().expect("a subnet")];
                // Few enough for the subnet, prefixes included.
                let slots = u64::from(self.limits().slots_per_eni()).min(4);
                let mut some = || u16::try_from(chance.between(1, slots)).unwrap_or(1);
                let (on_primary, on_second) = (some(), some());
                let on_second = if chance.percent(60) { on_second } else { 0 };
                self.provided = Some(Provided { on_primary, on_second });
            }
            10..18 => {
                self.is_custom = true;
                self.subnets.truncate(1);
                self.subnets.push("10.0.16.0/24".parse().expect("a subnet"));
            }
            _ => {}
        }
        self.lost_dels = if chance.percent(25) { chance.between(2, 20) } else { 0 };
    }

    /// What Kubernetes, the runtime and other programs on the node do.
    fn draw_wishes(&mut self) {
        let mut chance = Chance::new(self.seed, 5);
        let active = self.active.as_secs();
        for _ in 0..chance.between(0, 3) {
            let (at, lasts, salt) = (chance.secs(0, active), chance.secs(60, 900), chance.next());
            let node = usize::try_from(chance.between(0, self.nodes as u64 - 1)).unwrap_or(0);
            match chance.between(0, 99) {
                0..30 => {
                    self.events.push((at, Event::Cordon { node, is_on: true }));
                    if chance.percent(70) && at + lasts < self.active {
                        self.events.push((at + lasts, Event::Cordon { node, is_on: false }));
                    }
                }
                30..60 => self.events.push((at, Event::Collect { node })),
                60..90 => self.events.push((at, Event::AnotherHand { node, salt, lasts })),
                _ => {
                    self.events.push((at, Event::Tag { subnet: 0, value: "0" }));
                    if chance.percent(70) && at + lasts < self.active {
                        self.events.push((at + lasts, Event::Tag { subnet: 0, value: "" }));
                    }
                }
            }
        }
        // Who makes no ENIs needs no other kind of block and does not get back what is taken, and
        // custom networking heeds no tags.
        let (is_provided, is_custom) = (self.provided.is_some(), self.is_custom);
        self.events.retain(|(_, event)| match event {
            Event::Switch { .. } | Event::Hand { what: ByHand::Detach | ByHand::Unassign, .. } => {
                !is_provided
            }
            Event::Tag { .. } => !is_provided && !is_custom,
            _ => true,
        });
    }

    /// Pods in waves: a few that stay, bursts, and a trickle.
    fn draw_pods(&mut self) {
        let mut chance = Chance::new(self.seed, 2);
        let active = self.active.as_secs();
        let mut name = 0;
        for node in 0..self.nodes {
            let room = u64::try_from(self.capacity()).unwrap_or(1).min(30);
            let staying = chance.between(0, room * 2 / 3);
            let mut pod = |at: Duration, lives, life, chance: &mut Chance| {
                name += 1;
                (at, Event::Pod { node, name, lives, life, salt: chance.next() })
            };
            let forever = self.active + self.idle + Duration::from_secs(7200);
            for _ in 0..staying {
                let at = chance.secs(0, active);
                self.events.push(pod(at, 1, forever, &mut chance));
            }
            for _ in 0..chance.between(0, 3) {
                let (at, size) = (chance.secs(0, active), chance.between(1, room));
                let life = chance.secs(1, 400);
                for _ in 0..size {
                    let at = at + chance.millis(0, 1500);
                    let life = life + chance.secs(0, 20);
                    self.events.push(pod(at, 1, life, &mut chance));
                }
            }
            for _ in 0..chance.between(0, 12) {
                let (at, lives) =
                    (chance.secs(0, active), if chance.percent(30) { chance.between(2, 8) } else { 1 });
                let life = chance.secs(0, if lives > 1 { 40 } else { 300 });
                self.events.push(pod(at, u32::try_from(lives).unwrap_or(1), life, &mut chance));
            }
        }
    }

    fn draw_trouble(&mut self) {
        let mut chance = Chance::new(self.seed, 3);
        let active = self.active.as_secs();
        for _ in 0..chance.between(1, 14) {
            let at = chance.secs(0, active);
            let node = usize::try_from(chance.between(0, self.nodes as u64 - 1)).unwrap_or(0);
            let lasts = chance.secs(1, 120);
            let salt = chance.next();
            let event = match chance.between(0, 99) {
                0..22 => fault(&mut chance, lasts),
                22..44 => {
                    let after = chance.percent(75).then(|| chance.between(0, 25));
                    Event::Kill { node, after: after.map(|after| u32::try_from(after).unwrap_or(0)) }
                }
                44..50 => Event::Restart { node },
                50..54 => Event::Reboot { node },
                54..59 => {
                    let size = i64::try_from(chance.between(1, 7200)).unwrap_or(1);
                    Event::WallJump { node, secs: if chance.percent(50) { size } else { -size } }
                }
                59..65 => {
                    let trouble = chance.pick(&[DiskTrouble::Full, DiskTrouble::NoSync]);
                    Event::Disk { node, trouble, lasts }
                }
                65..68 => Event::Damage { node, is_sidecar: chance.percent(40) },
                68..76 => {
                    let what = chance.pick(&[
                        ByHand::Detach,
                        ByHand::Unassign,
                        ByHand::AttachUntagged,
                        ByHand::AttachUnmanaged,
                    ]);
                    Event::Hand { node, what, salt }
                }
                76..82 => {
                    Event::Fill { leave: u32::try_from(chance.between(0, 6)).unwrap_or(0), lasts: 3 * lasts }
                }
                82..83 => Event::Switch { node },
                83..84 => Event::Tag { subnet: 1, value: chance.pick(&["0", "1", "1"]) },
                84..85 => Event::Fragment {
                    every: u32::try_from(chance.between(3, 20)).unwrap_or(3),
                    lasts: 4 * lasts,
                },
                85..86 => Event::ImdsLag { lag: chance.secs(5, 120), lasts },
                86..88 => Event::ImdsDown { lasts },
                88..92 => Event::LateLinks { node, delay: chance.secs(1, 40), lasts },
                92..96 => {
                    Event::Throttle { capacity: u32::try_from(chance.between(0, 4)).unwrap_or(0), lasts }
                }
                _ => Event::Slow { latency: chance.millis(500, 12_000), lasts },
            };
            self.events.push((at, event));
        }
    }
}

fn vars(chance: &mut Chance) -> BTreeMap<&'static str, String> {
    let mut vars = BTreeMap::from([("CLUSTER_NAME", "blue".to_owned())]);
    if chance.percent(25) {
        vars.insert(PREFIXES, "true".to_owned());
    }
    let has_prefixes = vars.contains_key(PREFIXES);
    let mut set = |name, value: u64| drop(vars.insert(name, value.to_string()));
    if has_prefixes {
        set("WARM_PREFIX_TARGET", chance.between(1, 2));
    }
    match chance.between(0, 3) {
        0 => {}
        1 => set("WARM_ENI_TARGET", chance.between(0, 2)),
        2 => {
            set("WARM_IP_TARGET", chance.between(1, 6));
            if chance.percent(50) {
                set("MINIMUM_IP_TARGET", chance.between(1, 15));
            }
        }
        _ => set("MINIMUM_IP_TARGET", chance.between(1, 12)),
    }
    if chance.percent(25) {
        set("MAX_ENI", chance.between(1, 3));
    }
    if chance.percent(70) {
        set("IP_COOLDOWN_PERIOD", chance.between(1, 60));
    }
    if chance.percent(70) {
        set("POOL_SHRINK_DELAY", chance.between(0, 180));
    }
    vars
}

fn fault(chance: &mut Chance, lasts: Duration) -> Event {
    let action = chance.pick(&[
        "*",
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "AssignPrivateIpAddresses",
        "AssignPrivateIpAddresses",
        "UnassignPrivateIpAddresses",
        "DetachNetworkInterface",
        "DeleteNetworkInterface",
        "DescribeNetworkInterfaces",
        "DescribeSubnets",
        "CreateTags",
    ]);
    let wrong = match chance.between(0, 9) {
        0..3 => Wrong::LoseAnswer,
        3 => Wrong::Hang,
        4 => Wrong::Drop,
        5 => Wrong::Throttle,
        6 => chance.pick(&[Wrong::Deny, Wrong::Expired]),
        7 => Wrong::Error("InternalError"),
        _ => Wrong::Error(match action {
            "AttachNetworkInterface" => {
                chance.pick(&["AttachmentLimitExceeded", "InvalidParameterValue", "IncorrectState"])
            }
            "CreateNetworkInterface" | "AssignPrivateIpAddresses" => {
                chance.pick(&["InsufficientFreeAddressesInSubnet", "PrivateIpAddressLimitExceeded"])
            }
            _ => chance.pick(&["Unavailable", "ServiceUnavailable", "OperationNotPermitted"]),
        }),
    };
    let times = if chance.percent(60) { chance.between(1, 3) } else { 1000 };
    Event::Fault { action, wrong, times: u32::try_from(times).unwrap_or(1), lasts }
}
