//! What must hold once nothing is out of order any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lab::cloud::Eni;
use tokio::time::sleep;

use super::node::Node;
use super::oracle::ROOMY;
use super::play::Stage;
use super::scenario::{Event, Scenario};
use super::violation::Violation;
use super::world::addresses_of;
use crate::pool::{AddressReport, AddressState, EniReport, Pool, Stats};

/// How long the longest back-off, the clean-up after a restart, and an ENI's youth may take.
const RECOVERY: Duration = Duration::from_secs(300);

/// How long the hourly sweep may let wait, its spread over the cluster included.
const SWEEP: Duration = Duration::from_secs(4500);

/// How often subnets are looked at in an hour if one had too little: every two minutes.
const LOOKS_AT_TIGHT_SUBNETS: u64 = 31;

/// How often to look while something may still settle.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What a pool says of itself.
#[derive(Debug, Clone)]
struct Books {
    stats: Stats,
    running: Vec<String>,
    /// By ENI: its addresses, without its own.
    enis: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Prefixes of which no pod has an address.
    empty_prefixes: u32,
    /// Single addresses and prefixes.
    slots_used: u32,
    /// Single addresses, and those of them that are free.
    singles: u32,
    free_singles: u32,
    /// Something is to go back to EC2 once that has lasted.
    has_surplus: bool,
    is_cordoned: bool,
    /// Free blocks of excluded subnets.
    excluded_free: Vec<(String, IpAddr)>,
    /// Addresses whose ENI EC2 has not shown.
    pinned: u32,
    /// What the planner says of itself.
    plans: String,
    /// The pods in the books.
    pods: Vec<String>,
    /// Secondary ENIs of which no pod has an address.
    empty_enis: usize,
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn is_in(prefix: &vpc::Prefix, address: &AddressReport) -> bool {
    prefix.contains(address.address)
}

fn empty_prefixes(eni: &EniReport) -> impl Iterator<Item = &vpc::Prefix> {
    eni.prefixes.iter().filter(|prefix| {
        let mut inside = eni.addresses.iter().filter(|address| is_in(prefix, address));
        inside.all(|address| matches!(address.state, AddressState::Free))
    })
}

fn singles(eni: &EniReport) -> impl Iterator<Item = &AddressReport> {
    let is_single = |address: &&AddressReport| !eni.prefixes.iter().any(|prefix| is_in(prefix, address));
    eni.addresses.iter().filter(is_single)
}

fn slots_used(eni: &EniReport) -> usize {
    singles(eni).count() + eni.prefixes.len()
}

/// The blocks of an ENI that could go back, each by an address, with the subnet.
fn free_of(eni: &EniReport) -> impl Iterator<Item = (String, IpAddr)> {
    let of_prefixes =
        empty_prefixes(eni).filter_map(|prefix| eni.addresses.iter().find(|address| is_in(prefix, address)));
    let free = singles(eni).filter(is_free).chain(of_prefixes);
    free.map(|address| (eni.subnet.to_string(), address.address))
}

fn is_free(address: &&AddressReport) -> bool {
    matches!(address.state, AddressState::Free)
}

fn books(pool: &Pool, now: std::time::Instant) -> Books {
    let report = pool.report(now);
    let plans =
        format!("surplus {}, missing {}, {:?}", report.wants.surplus, report.wants.missing, report.held_back);
    let enis = report.enis;
    let is_empty = |eni: &&EniReport| {
        eni.role == vpc::EniRole::Secondary && eni.addresses.iter().all(|address| is_free(&address))
    };
    Books {
        stats: pool.stats(),
        plans,
        empty_prefixes: count(enis.iter().flat_map(empty_prefixes).count()),
        slots_used: count(enis.iter().map(slots_used).sum()),
        singles: count(enis.iter().flat_map(singles).count()),
        free_singles: count(enis.iter().flat_map(singles).filter(is_free).count()),
        has_surplus: report.wants.surplus_goes_at.is_some(),
        is_cordoned: report.wants.is_cordoned,
        excluded_free: enis.iter().flat_map(free_of).collect(),
        pinned: u32::try_from(report.pinned.len()).unwrap_or(0),
        pods: pool.allocations().iter().map(|held| format!("{} {}", held.key, held.address)).collect(),
        running: pool.running().values().map(ToString::to_string).collect(),
        empty_enis: enis.iter().filter(is_empty).count(),
        enis: enis
            .into_iter()
            .map(|eni| {
                let addresses = eni.addresses.into_iter().map(|address| address.address).collect();
                (eni.id.to_string(), addresses)
            })
            .collect(),
    }
}

/// Waits until every node has come to rest, and holds it against the truth; then nothing more
/// may be asked of EC2.
pub(super) async fn settle(stage: &Stage<'_>) {
    // What people did to ENIs is seen by the hourly sweep at the latest, and ENIs of which a damaged
    // file told are found by it.
    let has_hands = has_hands(stage.scenario);
    let lost_intents = stage.scenario.damages_second_file();
    let patience =
        RECOVERY + stage.scenario.shrink_delay() + stage.scenario.cooldown() + 40 * stage.scenario.latency;
    sleep(RECOVERY).await;
    let mut left = patience.saturating_sub(RECOVERY) + Duration::from_secs(120) + SWEEP;
    let mut waits_for_sweep = has_hands;
    if stage.scenario.changes_subnets()
        || (stage.scenario.has_prefixes() && stage.scenario.has_tight_subnets())
    {
        // So are subnets: what their tags allow is asked for then, and prefixes in the place of single
        // addresses if they have whole blocks again.
        sleep(SWEEP).await;
    }
    let violations = loop {
        let violations = look(stage).await;
        let leaks = |found: &Violation| matches!(found, Violation::Leaked { .. });
        waits_for_sweep |= lost_intents && violations.iter().all(leaks);
        let is_time_up = left.is_zero() || (left <= SWEEP && !waits_for_sweep);
        if violations.is_empty() || is_time_up {
            break violations;
        }
        sleep(LOOK_EVERY).await;
        left = left.saturating_sub(LOOK_EVERY);
    };
    if let Some(violation) = violations.into_iter().next() {
        stage.world.oracle().violate(violation);
        return;
    }
    stage.world.note(|| "all nodes are at rest".to_owned());
    let before: Vec<_> = stage.nodes.iter().map(|node| stage.world.cloud.counts_of(&node.instance)).collect();
    sleep(stage.scenario.idle).await;
    for (node, before) in stage.nodes.iter().zip(before) {
        let now = stage.world.cloud.counts_of(&node.instance);
        let free = stage.world.free_addresses();
        if free < ROOMY || (stage.scenario.has_prefixes() && !has_whole_block(stage)) {
            // It asks for what the subnets do not have, now and then.
            continue;
        }
        // The sweep is hourly, and one more of it may fall into the time. It reads the subnets, what is
        // attached, and what is left over by the node and by others.
        let hours = stage.scenario.idle.as_secs() / 3600;
        let sweeps = hours + 1;
        let looks = if stage.scenario.has_tight_subnets() { hours * LOOKS_AT_TIGHT_SUBNETS } else { 0 };
        let new: Vec<_> = now
            .iter()
            .map(|(action, count)| {
                (action, count.received - before.get(action).map_or(0, |count| count.received))
            })
            .filter(|(action, count)| {
                *count
                    > match action.as_str() {
                        "DescribeSubnets" => sweeps + looks,
                        "DescribeNetworkInterfaces" => 3 * sweeps,
                        _ => 0,
                    }
            })
            .collect();
        if !new.is_empty() {
            let calls = format!("{new:?} within {:?}", stage.scenario.idle);
            stage.world.oracle().violate(Violation::Restless { node: node.index, calls });
        }
    }
}

/// Whether people change ENIs.
fn has_hands(scenario: &Scenario) -> bool {
    scenario.events.iter().any(|(_, event)| matches!(event, Event::Hand { .. }))
}

async fn look(stage: &Stage<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let now = tokio::time::Instant::now().into_std();
    for node in &stage.nodes {
        let Some(connection) = node.connect() else {
            violations.push(Violation::Down { node: node.index, error: "nobody listens".to_owned() });
            continue;
        };
        let Some(books) = connection.pool.look(move |pool| books(pool, now)).await else {
            violations.push(Violation::Down { node: node.index, error: "no answer".to_owned() });
            continue;
        };
        let mut books = books;
        books.excluded_free.retain(|(subnet, _)| stage.world.is_excluded(subnet));
        violations.extend(judge(stage, node, &books));
    }
    violations.extend(leaks(stage));
    violations
}

fn judge(stage: &Stage<'_>, node: &Node, books: &Books) -> Option<Violation> {
    let (index, scenario) = (node.index, stage.scenario);
    let not_settled = |what: String| Some(Violation::NotSettled { node: index, what });
    let Books { stats, .. } = books;
    if !books.running.is_empty() {
        return not_settled(format!("under way: {:?}", books.running));
    }
    if books.has_surplus {
        return not_settled(format!("something is to go back: {}; {stats:?}", books.plans));
    }
    let snapshot = stage.world.cloud.snapshot();
    let at_ec2: BTreeMap<String, BTreeSet<IpAddr>> = snapshot
        .attached(&node.instance)
        .into_iter()
        .map(|eni| (eni.id.clone(), addresses_of(eni).collect()))
        .collect();
    let oracle = stage.world.oracle();
    let enis: BTreeSet<_> = books.enis.keys().chain(at_ec2.keys()).collect();
    for eni in enis {
        let none = BTreeSet::new();
        let (known, held) = (books.enis.get(eni).unwrap_or(&none), at_ec2.get(eni).unwrap_or(&none));
        let excused = |address: &&IpAddr| oracle.was_taken_by_hand(**address);
        let unknown: Vec<_> = held.difference(known).filter(|address| !excused(address)).collect();
        let imagined: Vec<_> = known.difference(held).filter(|address| !excused(address)).collect();
        let is_missing = books.enis.contains_key(eni) != at_ec2.contains_key(eni);
        let by_hand = oracle.is_by_hand(index, eni);
        if !by_hand && (is_missing || !unknown.is_empty() || !imagined.is_empty()) {
            let what =
                format!("{eni}: only EC2 has {unknown:?}, only the books {imagined:?}, missing {is_missing}");
            return Some(Violation::NotInBooks { node: index, what });
        }
    }
    let foreign = at_ec2.keys().filter(|eni| oracle.is_by_hand(index, eni)).count();
    let (per_eni, hand) = (scenario.ips_per_eni(), foreign);
    let capacity = match scenario.provided {
        Some(_) => scenario.capacity(),
        // Where its subnet is excluded an ENI serves nobody but its old pods: the primary one for good,
        // others until they have gone.
        None => {
            let is_idle = |eni: &&Arc<Eni>| {
                let is_primary = eni.attachment.as_ref().is_some_and(|at| at.device_index == 0);
                stage.world.is_excluded(&eni.subnet_id)
                    && !oracle.is_by_hand(index, &eni.id)
                    && (is_primary || addresses_of(eni).any(|address| oracle.is_held(address)))
            };
            let idle = snapshot.attached(&node.instance).into_iter().filter(is_idle).count();
            scenario.serving_enis().saturating_sub(hand + idle) * per_eni
        }
    };
    let live = oracle.live(index);
    let lost_books = oracle.lost_books(index);
    let waiting = oracle.wanting(index, Duration::from_secs(45));
    drop(oracle);
    let free_at_subnets = stage.world.free_addresses();
    // Where the clock was set back, the runtime's list seems older than pods that it does not name.
    let is_judged = live + waiting.len() <= capacity && free_at_subnets >= ROOMY && !lost_books;
    if !waiting.is_empty() && is_judged {
        return Some(Violation::NeverServed { node: index, pods: waiting });
    }
    if stats.cooling > 0 || !waiting.is_empty() {
        // A pod that waits on a full node comes and goes.
        return if waiting.is_empty() { not_settled(format!("{stats:?}")) } else { None };
    }
    let assigned = usize::try_from(stats.assigned).unwrap_or(0);
    // An address that a person took may be another node's by now, and its old pod still lives.
    if assigned != live && !has_hands(scenario) && !lost_books {
        let what =
            format!("{assigned} addresses are assigned, {live} pods live; {stats:?}; {:?}", books.pods);
        return Some(Violation::NotInBooks { node: index, what });
    }
    if stats.quarantined > 0 && !lost_books {
        return not_settled(format!("still held back: {stats:?}"));
    }
    if !books.excluded_free.is_empty() {
        return not_settled(format!("free, and of excluded subnets: {:?}", books.excluded_free));
    }
    if scenario.changes_subnets() || hand > 0 || scenario.provided.is_some() {
        // What tags allow, ENIs of others leave, and others provide, is another matter.
        return None;
    }
    if node.delegates_prefixes() {
        return prefix_target(stage, index, books, capacity);
    }
    if scenario.has_prefixes() && books.empty_prefixes > 0 {
        return not_settled(format!("{} free prefixes that are no longer asked for", books.empty_prefixes));
    }
    if stats.prefixes > 0 {
        // What is free in a prefix of former times goes when its last pod does.
        return None;
    }
    target(stage, index, books, capacity, free_at_subnets)
}

/// Whether the node holds what its targets ask for, no less and no more.
fn target(stage: &Stage<'_>, node: usize, books: &Books, capacity: usize, subnets: u32) -> Option<Violation> {
    let scenario = stage.scenario;
    // A pinned address is its pod's, but stands on no ENI.
    let total = books.stats.total.saturating_sub(books.pinned);
    let free = books.stats.free;
    let per_eni = u32::try_from(scenario.ips_per_eni()).unwrap_or(0);
    let room = u32::try_from(capacity).unwrap_or(0).saturating_sub(total).min(subnets.saturating_sub(ROOMY));
    let (warm_ip, minimum) = (scenario.warm_ip(), scenario.minimum_ip());
    let is_low = if warm_ip > 0 || minimum > 0 {
        free < warm_ip || total < minimum
    } else {
        free < scenario.warm_eni() * per_eni || (scenario.warm_eni() == 0 && free == 0)
    };
    // The warm targets stop at the pods that the kubelet may start, which is the capacity and two
    // on the host's network, or less.
    let is_capped = total + per_eni >= u32::try_from(capacity).unwrap_or(0);
    let missed = |what: &str| {
        let what =
            format!("{what}: {:?}, {} ENIs, room for {room}; {}", books.stats, books.enis.len(), books.plans);
        Some(Violation::TargetMissed { node, what })
    };
    // Nothing is kept warm on a node that is to run no new pods.
    if is_low && room > 0 && !is_capped && !books.is_cordoned {
        return missed("too few");
    }
    let is_high = if warm_ip > 0 || minimum > 0 {
        free > warm_ip && total > minimum
    } else {
        books.empty_enis > 0 && free >= (scenario.warm_eni() * per_eni).max(1) + per_eni
    };
    if is_high { missed("too many") } else { None }
}

/// The same where prefixes are delegated.
fn prefix_target(stage: &Stage<'_>, node: usize, books: &Books, capacity: usize) -> Option<Violation> {
    const SIZE: u32 = 16;
    let scenario = stage.scenario;
    let total = books.stats.total.saturating_sub(books.pinned);
    let free = books.stats.free;
    let (warm_ip, minimum, warm) = (scenario.warm_ip(), scenario.minimum_ip(), scenario.warm_prefix() * SIZE);
    let counts_ips = warm_ip > 0 || minimum > 0;
    let is_low = if counts_ips { free < warm_ip || total < minimum } else { free < warm };
    // Single addresses of former times go with their last pod, and count for nothing.
    let (kept_free, kept) = match has_whole_block(stage) {
        true => (free - books.free_singles, total - books.singles),
        false => (free, total),
    };
    let left = (kept_free.saturating_sub(SIZE), kept.saturating_sub(SIZE));
    let keeps = if counts_ips { 0 } else { scenario.warm_prefix() };
    let is_high = books.empty_prefixes > keeps
        && if counts_ips { left.0 >= warm_ip && left.1 >= minimum } else { left.0 >= warm.max(1) };
    let slots = u32::try_from(capacity).unwrap_or(0);
    let has_room = books.slots_used < slots && total + SIZE < scenario.max_pods();
    let missed = |what: &str| {
        let what =
            format!("{what}: {:?}, {} free prefixes; {}", books.stats, books.empty_prefixes, books.plans);
        Some(Violation::TargetMissed { node, what })
    };
    if is_low && has_room && has_whole_block(stage) && !books.is_cordoned {
        return missed("too few");
    }
    if is_high { missed("too many") } else { None }
}

/// Whether some subnet that serves pods has a free /28.
fn has_whole_block(stage: &Stage<'_>) -> bool {
    let snapshot = stage.world.cloud.snapshot();
    let mut taken = BTreeSet::new();
    for eni in snapshot.enis.values() {
        taken.extend(eni.addresses.iter().map(|ip| ip.address.to_bits() >> 4));
        taken.extend(eni.prefixes.iter().map(|prefix| prefix.network().to_bits() >> 4));
    }
    stage.world.open_subnets(&snapshot).any(|subnet| {
        let blocks = (subnet.cidr.network().to_bits() >> 4) + 1..subnet.cidr.broadcast().to_bits() >> 4;
        blocks.into_iter().any(|block| !taken.contains(&block))
    })
}

/// ENIs that were made for a node and are attached to nothing.
fn leaks(stage: &Stage<'_>) -> Option<Violation> {
    let snapshot = stage.world.cloud.snapshot();
    let oracle = stage.world.oracle();
    // One that a person made and attached is that person's to delete.
    let is_by_hand = |eni: &str| (0..stage.nodes.len()).any(|node| oracle.is_by_hand(node, eni));
    let leaked: Vec<_> = snapshot
        .enis
        .values()
        .filter(|eni| eni.attachment.is_none() && eni.tags.contains_key(ec2::INSTANCE_TAG))
        .filter(|eni| !is_by_hand(&eni.id))
        .map(|eni| eni.id.clone())
        .collect();
    (!leaked.is_empty()).then(|| Violation::Leaked { what: format!("{leaked:?}") })
}
