//! A pool, a clock and an EC2 that does what it is asked.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use vpc::{DeviceIndex, Eni, EniId, EniKind, EniRole, EniSlot, Mac, PodKey, PodName};

use super::super::*;

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) struct World {
    pub(super) pool: Pool,
    pub(super) now: Instant,
    next_ip: u8,
    next_prefix: u16,
    enis: u16,
}

/// Settings of a made-up instance type with `enis` ENIs of `ips` secondary IPs.
pub(super) fn settings(enis: u32, ips: u32) -> Settings {
    Settings {
        targets: WarmTargets { warm_eni: 1, warm_ip: 0, minimum_ip: 0, warm_prefix: 1 },
        mode: BlockMode::SecondaryIps,
        instance_type: "m5.large".to_owned(),
        eni_limit: enis,
        is_eni_limit_configured: false,
        reserves_trunk: false,
        slots_per_eni: ips,
        max_pods: 110,
        cooldown: 30 * SECOND,
        shrink_delay: 180 * SECOND,
        may_provision: true,
        reads_subnets: false,
        grows_while_cordoned: false,
    }
}

pub(super) fn key(pod: &str) -> PodKey {
    PodKey::new("aws-cni", &format!("sandbox-{pod}"), "eth0").unwrap()
}

pub(super) fn eni_id(device: u16) -> EniId {
    format!("eni-{device:x}").parse().unwrap()
}

/// The ENI at `device` with the given secondary IPs, the last octets of 10.0.0.0/24.
pub(super) fn eni(device: u16, ips: &[u8]) -> Eni {
    Eni {
        id: eni_id(device),
        mac: Mac::new([2, 0, 0, 0, 0, device.to_be_bytes()[1]]),
        slot: EniSlot::new(0, device),
        role: if device == 0 { EniRole::Primary } else { EniRole::Secondary },
        kind: EniKind::Interface,
        is_managed: true,
        subnet: "subnet-1".parse().unwrap(),
        subnet_cidr: "10.0.0.0/20".parse().unwrap(),
        primary_ip: Ipv4Addr::new(10, 0, 1, device.to_be_bytes()[1]),
        ipv6: None,
        secondary_ips: ips.iter().map(|last| ip(*last)).collect(),
        prefixes: Vec::new(),
    }
}

pub(super) fn address(last: u8) -> IpAddr {
    ip(last).into()
}

/// The same as EC2 has it.
pub(super) fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

/// How many blocks the ENI holds.
fn blocks(eni: &EniReport) -> usize {
    let prefixes = eni.prefixes.len();
    prefixes + eni.addresses.len() - 16 * prefixes
}

/// One of EC2's prefixes, numbered.
pub(super) fn prefix(number: u16) -> Block {
    let [high, low] = (0x1000 + number * 16).to_be_bytes();
    Block::Prefix(format!("10.0.{high}.{low}/28").parse().unwrap())
}

/// One of EC2's IPv6 prefixes, numbered.
pub(super) fn ipv6_prefix(number: u16) -> Block {
    Block::Prefix(format!("2001:db8:0:1:{number:x}::/80").parse().unwrap())
}

/// A subnet that takes ENIs and has so many free addresses.
pub(super) fn subnet(id: &str, free_addresses: u32) -> Subnet {
    Subnet {
        id: id.parse().unwrap(),
        cidr: "10.0.0.0/20".parse().unwrap(),
        free_addresses,
        takes_enis: true,
        is_excluded: false,
    }
}

/// The step that makes an ENI at `device` in the subnet of the primary one.
pub(super) fn allocate(device: u16, blocks: Blocks) -> Step {
    Step::AllocateEni {
        slot: EniSlot::new(0, device),
        subnet: "subnet-1".parse().unwrap(),
        security_groups: None,
        blocks,
    }
}

pub(super) fn failure(class: FailureClass) -> Outcome {
    Outcome::Failed(StepFailure { class, message: format!("{class:?}"), retry_after: None })
}

impl World {
    /// A pool that has seen these ENIs and nothing else.
    pub(super) fn new(settings: Settings, enis: Vec<Eni>) -> Self {
        let now = Instant::now();
        let mut pool = Pool::new(settings);
        let next_ip = enis
            .iter()
            .flat_map(|eni| &eni.secondary_ips)
            .map(|ip| ip.octets()[3])
            .max()
            .map_or(0, |ip| ip + 1);
        let count = u16::try_from(enis.len()).unwrap();
        pool.observe(enis, now);
        Self { pool, now, next_ip, next_prefix: 0, enis: count }
    }

    /// A fresh instance: the primary ENI without secondary IPs.
    pub(super) fn bare(settings: Settings) -> Self {
        Self::new(settings, vec![eni(0, &[])])
    }

    /// A fresh instance on which so many pods came one after the other, at rest.
    pub(super) fn grown(settings: Settings, pods: usize) -> Self {
        let mut world = Self::bare(settings);
        world.run();
        for pod in 0..pods {
            let _ = world.add(&format!("pod-{pod}"));
            world.run();
            world.pool.settle(world.now);
        }
        world.run();
        world
    }

    pub(super) fn add(&mut self, pod: &str) -> Answer {
        self.add_patiently(pod, 20 * SECOND)
    }

    /// Adds a pod that waits this long for an address that rests, and 20 s for anything else.
    pub(super) fn add_patiently(&mut self, pod: &str, patience: Duration) -> Answer {
        let request = Request {
            key: key(pod),
            pod: PodName::new("default", pod),
            deadline: self.now + 20 * SECOND,
            latest: self.now + patience,
            unix_ns: 1,
        };
        self.pool.request(request, self.now)
    }

    /// Adds a pod that gets its address at once.
    pub(super) fn added(&mut self, pod: &str) -> IpAddr {
        match self.add(pod) {
            Answer::Assigned(assignment) => assignment.address,
            other => panic!("{pod}: {other:?}"),
        }
    }

    pub(super) fn del(&mut self, pod: &str) -> IpAddr {
        self.pool.release(&key(pod), self.now).unwrap().allocation.address
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub(super) fn plan(&mut self) -> Vec<(StepId, Step)> {
        self.pool.plan(self.now)
    }

    /// What the pool wants done now, without the ids.
    pub(super) fn steps(&mut self) -> Vec<Step> {
        self.plan().into_iter().map(|(_, step)| step).collect()
    }

    pub(super) fn finish(&mut self, id: StepId, outcome: Outcome) {
        self.pool.finish(id, outcome, self.now);
    }

    /// Blocks that EC2 has not given before.
    pub(super) fn fresh(&mut self, blocks: Blocks) -> Vec<Block> {
        let next = |_| match blocks.kind() {
            BlockKind::Ip => {
                self.next_ip += 1;
                Block::Ip(ip(self.next_ip))
            }
            BlockKind::Prefix => {
                self.next_prefix += 1;
                prefix(self.next_prefix)
            }
            BlockKind::Ipv6Prefix => {
                self.next_prefix += 1;
                ipv6_prefix(self.next_prefix)
            }
        };
        (0..blocks.count()).map(next).collect()
    }

    /// What EC2 and the host answer when all is well.
    pub(super) fn outcome(&mut self, step: &Step) -> Outcome {
        match step {
            Step::AllocateEni { slot, subnet, blocks, .. } => {
                self.enis += 1;
                let DeviceIndex(device) = slot.device;
                let mut allocated = eni(device, &[]);
                allocated.id = format!("eni-{device:x}{:x}", self.enis).parse().unwrap();
                allocated.subnet = subnet.clone();
                // EC2 gives a new ENI an IPv6 address of its own, and no prefix with it.
                let comes_with = Some(*blocks).filter(|blocks| blocks.kind() != BlockKind::Ipv6Prefix);
                for block in comes_with.map(|blocks| self.fresh(blocks)).unwrap_or_default() {
                    match block {
                        Block::Ip(ip) => allocated.secondary_ips.push(ip),
                        Block::Prefix(prefix) => allocated.prefixes.push(prefix),
                    }
                }
                Outcome::EniAllocated(allocated)
            }
            Step::Assign { blocks, .. } => Outcome::Assigned(self.fresh(*blocks)),
            Step::SetUpEni { .. } => Outcome::EniSetUp,
            Step::Unassign { .. } => Outcome::Unassigned,
            Step::FreeEni { .. } => Outcome::EniFreed,
            Step::ReadSubnets => Outcome::Subnets(vec![subnet("subnet-1", 4000)]),
            Step::ReadInventory => panic!("nothing was unclear"),
        }
    }

    /// Plans and does until nothing is left to do; returns what was done.
    pub(super) fn run(&mut self) -> Vec<Step> {
        let mut done = Vec::new();
        for _ in 0..100 {
            let steps = self.plan();
            if steps.is_empty() {
                return done;
            }
            for (id, step) in steps {
                let outcome = self.outcome(&step);
                self.finish(id, outcome);
                done.push(step);
            }
        }
        panic!("the plan never becomes empty: {done:?}");
    }

    /// The blocks per ENI, in the order of their slots.
    pub(super) fn layout(&self) -> Vec<usize> {
        self.pool.report(self.now).enis.iter().map(blocks).collect()
    }
}
