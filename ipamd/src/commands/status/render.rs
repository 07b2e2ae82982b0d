//! The answer as text. A part that has nothing to say is left out.

use proto::node::{ActionBudget, EniStatus, StatusReply, SubnetStatus, Targets};

use crate::commands::text::{addresses, count, distance, held_back, moment, pod, span, states, table};

/// The kernel's main route table, which serves the primary ENI.
const MAIN_TABLE: u32 = 254;

/// Where the addresses of IPv6 pods come from.
const IPV6: &str = "an IPv6 prefix";

/// The pods that are listed of those refused; the JSON has all.
const REFUSALS: usize = 10;

/// All that a person on call wants to see, from the whole to the particular.
pub(super) fn render(reply: &StatusReply) -> String {
    let parts = [
        head(reply),
        enis(reply),
        subnets(reply),
        planner(reply),
        budget(reply),
        waiting(reply),
        quarantined(reply),
        without_eni(reply),
        network(reply),
        failures(reply),
        refusals(reply),
        takeover(reply),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn head(reply: &StatusReply) -> String {
    let mut rows = Vec::new();
    if let Some(node) = &reply.instance {
        let what =
            format!("{}, {} in {}, {}, {}", node.id, node.r#type, node.availability_zone, node.ip, node.vpc);
        rows.push(vec!["node".to_owned(), what]);
    }
    if let Some(daemon) = &reply.daemon {
        let since = moment(daemon.started_unix_ms, reply.now_unix_ms);
        rows.push(vec!["daemon".to_owned(), format!("{}, {} since {since}", daemon.version, daemon.state)]);
    }
    if let Some(counts) = &reply.addresses {
        let limit = reply.targets.as_ref().map(|it| format!(" of at most {}", addresses(it.address_limit)));
        let held =
            format!("{} held{}: {}", addresses(counts.total), limit.unwrap_or_default(), states(counts));
        rows.push(vec!["addresses".to_owned(), held]);
        if let Some(next) = counts.next_cooled_unix_ms {
            let text = format!("the next one that cools is free {}", distance(next, reply.now_unix_ms));
            rows.push(vec![String::new(), text]);
        }
    }
    if let Some(wanted) = &reply.targets {
        rows.push(vec!["target".to_owned(), settings(wanted)]);
        rows.push(vec![String::new(), limits(wanted)]);
    }
    let waiting = reply.waiting_pods.len() as u64;
    rows.push(vec!["waiting".to_owned(), count(waiting, "pod", "pods")]);
    table(0, &rows)
}

fn settings(wanted: &Targets) -> String {
    if wanted.mode == IPV6 {
        let is_missing = if wanted.missing > 0 { "it is missing" } else { "reached" };
        return format!("{IPV6}; {is_missing}");
    }
    let counts_ips = wanted.warm_ip_target > 0 || wanted.minimum_ip_target > 0;
    // Whole ENIs or prefixes are kept warm only where single addresses are not counted.
    let settings = match (counts_ips, wanted.mode.as_str()) {
        (true, _) => {
            vec![("WARM_IP_TARGET", wanted.warm_ip_target), ("MINIMUM_IP_TARGET", wanted.minimum_ip_target)]
        }
        (false, "prefixes") => vec![("WARM_PREFIX_TARGET", wanted.warm_prefix_target)],
        (false, _) => vec![("WARM_ENI_TARGET", wanted.warm_eni_target)],
    };
    let set: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let set = set.join(" ");
    let mut text = format!("{set}, by {}", wanted.mode);
    if wanted.missing > 0 {
        text.push_str(&format!("; {} missing", count(wanted.missing, "address is", "addresses are")));
    } else if wanted.surplus > 0 {
        text.push_str(&format!("; {} too many", count(wanted.surplus, "address is", "addresses are")));
    } else {
        text.push_str("; reached");
    }
    text
}

fn limits(wanted: &Targets) -> String {
    let who = if wanted.max_eni_is_set { "MAX_ENI" } else { "the instance type" };
    let mut text = format!(
        "{who} allows {} with {}; the kubelet may start {}",
        count(wanted.eni_limit, "ENI", "ENIs"),
        number_of_addresses(wanted.address_limit),
        count(wanted.max_pods, "pod", "pods")
    );
    if wanted.cordoned {
        text.push_str("; the node is cordoned");
    }
    if !wanted.may_provision {
        text.push_str("; provisioning is off: nothing is asked of EC2");
    }
    text
}

fn enis(reply: &StatusReply) -> String {
    let head =
        ["ENI", "DEVICE", "TABLE", "SUBNET", "STATE", "HOLDS", "ASSIGNED", "FREE", "COOLING", "QUARANTINED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(reply.enis.iter().map(eni));
    table(0, &rows)
}

fn eni(eni: &EniStatus) -> Vec<String> {
    let counts = eni.counts.unwrap_or_default();
    let device = match eni.network_card {
        0 => eni.device_index.to_string(),
        card => format!("{} on card {card}", eni.device_index),
    };
    let is_plain = |kind: &str| kind == "interface";
    let id = match eni.kind.as_deref().filter(|kind| !is_plain(kind)) {
        Some(kind) => format!("{} ({kind})", eni.id),
        None => eni.id.clone(),
    };
    vec![
        id,
        device,
        if eni.route_table == MAIN_TABLE { "main".to_owned() } else { eni.route_table.to_string() },
        eni.subnet.clone(),
        eni.unused_because.as_ref().map_or_else(|| eni.state.clone(), |why| format!("not used: {why}")),
        holds(eni, counts.total),
        counts.assigned.to_string(),
        addresses(counts.free.saturating_add(counts.setting_up)),
        counts.cooling.to_string(),
        counts.quarantined.to_string(),
    ]
}

fn holds(eni: &EniStatus, addresses: u32) -> String {
    match eni.prefixes.len() as u64 {
        0 => number_of_addresses(addresses),
        prefixes => {
            format!("{} ({})", count(prefixes, "prefix", "prefixes"), number_of_addresses(addresses))
        }
    }
}

fn number_of_addresses(number: u32) -> String {
    let plural = if number == 1 { "" } else { "es" };
    format!("{} address{plural}", addresses(number))
}

fn subnets(reply: &StatusReply) -> String {
    if reply.subnets.is_empty() {
        return String::new();
    }
    let head = ["SUBNET", "BLOCK", "FREE", "FREE /28", "READ", "NOTE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(reply.subnets.iter().map(|it| subnet(it, reply.now_unix_ms)));
    table(0, &rows)
}

fn subnet(subnet: &SubnetStatus, now: i64) -> Vec<String> {
    let note = match (subnet.exhausted_until_unix_ms, subnet.excluded, subnet.takes_enis) {
        (Some(until), ..) => format!("had too little; left alone until {}", moment(until, now)),
        (None, true, _) => "excluded by its tags".to_owned(),
        (None, false, false) => "takes no new ENIs by its tags".to_owned(),
        (None, false, true) => String::new(),
    };
    vec![
        subnet.id.clone(),
        subnet.cidr.clone(),
        subnet.free_addresses.to_string(),
        format!("at most {}", subnet.free_prefixes_at_most),
        subnet.read_unix_ms.map_or_else(|| "never".to_owned(), |at| distance(at, now)),
        note,
    ]
}

fn planner(reply: &StatusReply) -> String {
    let now = reply.now_unix_ms;
    let planner = reply.planner.clone().unwrap_or_default();
    let mut lines = Vec::new();
    for step in &planner.under_way {
        let since = step.since_unix_ms.map(|since| format!(", for {}", span(now - since)));
        lines.push(format!("doing: {}{}", step.step, since.unwrap_or_default()));
    }
    for held in &planner.held_back {
        lines.push(held_back(held, now));
    }
    if lines.is_empty() {
        lines.push(idle(reply));
    }
    let lines: Vec<_> = lines.iter().map(|line| format!("  {line}\n")).collect();
    format!("planner\n{}", lines.concat())
}

/// Why nothing is under way and nothing held back.
fn idle(reply: &StatusReply) -> String {
    let now = reply.now_unix_ms;
    let next = reply.planner.as_ref().and_then(|planner| planner.next_look_unix_ms);
    let next = next.map(|next| format!("; it looks again {}", distance(next, now))).unwrap_or_default();
    let Some(wanted) = &reply.targets else { return format!("nothing under way{next}") };
    let missing = count(wanted.missing, "address is", "addresses are");
    let surplus = count(wanted.surplus, "address", "addresses");
    match wanted.surplus_goes_unix_ms {
        _ if wanted.missing > 0 => format!("nothing under way, though {missing} missing{next}"),
        Some(goes) if wanted.surplus > 0 => {
            format!("nothing to do yet: {surplus} too many go back {} if that lasts", distance(goes, now))
        }
        _ => "nothing to do: the target is reached".to_owned(),
    }
}

fn budget(reply: &StatusReply) -> String {
    let is_full = |it: &&ActionBudget| {
        it.tokens >= it.burst && it.requests_waiting == 0 && it.throttled_until_unix_ms.is_none()
    };
    let used: Vec<_> = reply.ec2_budget.iter().filter(|it| !is_full(it)).collect();
    let full = reply.ec2_budget.len() - used.len();
    let mut rows: Vec<_> = used.into_iter().map(|it| action(it, reply.now_unix_ms)).collect();
    if full > 0 {
        let which = if rows.is_empty() { "all actions" } else { "other actions" };
        rows.push(vec![which.to_owned(), "every token left".to_owned()]);
    }
    format!("EC2 budget\n{}", table(2, &rows))
}

fn action(budget: &ActionBudget, now: i64) -> Vec<String> {
    let ActionBudget { action, tokens, burst, tokens_per_second, requests_waiting, .. } = budget;
    let mut text = format!("{tokens} of {burst} tokens left, {tokens_per_second} a second come back");
    if *requests_waiting > 0 {
        text.push_str(&format!("; {}", count(*requests_waiting, "request waits", "requests wait")));
    }
    if let Some(until) = budget.throttled_until_unix_ms {
        text.push_str(&format!("; EC2 throttles: nothing is sent for {}", span(until - now)));
    }
    vec![action.clone(), text]
}

fn waiting(reply: &StatusReply) -> String {
    let now = reply.now_unix_ms;
    let rows: Vec<_> = reply
        .waiting_pods
        .iter()
        .map(|it| {
            let until = it.until_unix_ms.max(it.until_for_cooling_unix_ms);
            let left = format!("at most {} more", span(until - now));
            vec![pod(it.pod.as_ref()), format!("for {}", span(now - it.since_unix_ms)), left]
        })
        .collect();
    titled("waiting pods", &rows)
}

fn quarantined(reply: &StatusReply) -> String {
    let mut rows = Vec::new();
    for eni in &reply.enis {
        for address in &eni.addresses {
            if let Some(why) = &address.quarantined_because {
                rows.push(vec![address.ip.clone(), eni.id.clone(), why.clone()]);
            }
        }
    }
    titled("quarantined addresses, neither given out nor returned", &rows)
}

fn without_eni(reply: &StatusReply) -> String {
    let rows = reply.without_eni.iter().map(|it| vec![it.ip.clone(), pod(it.pod.as_ref())]);
    titled("addresses of pods whose ENI EC2 does not show", &rows.collect::<Vec<_>>())
}

/// What others do to the node's network, and what is wrong with it.
fn network(reply: &StatusReply) -> String {
    let now = reply.now_unix_ms;
    let Some(network) = &reply.network else { return String::new() };
    let mut rows = Vec::new();
    if let Some(fault) = &network.fault {
        rows.push(vec!["not as wanted".to_owned(), fault.clone()]);
    }
    for contested in &network.contested {
        let next = match contested.not_before_unix_ms {
            next if next > now => format!("; not put back again before {}", moment(next, now)),
            _ => String::new(),
        };
        let times = count(contested.times, "time", "times");
        let text = format!("{}, put back {times} lately{next}", contested.what);
        rows.push(vec!["somebody keeps changing".to_owned(), text]);
    }
    for repairs in &network.repairs {
        let last = moment(repairs.last_unix_ms, now);
        let times = count(repairs.times, "time", "times");
        let text = format!("{times}, last at {last}: {}", repairs.last_change);
        rows.push(vec![format!("put back: {}", repairs.kind), text]);
    }
    rows.extend(network.warnings.iter().map(|warning| vec!["check".to_owned(), warning.clone()]));
    titled("node network", &rows)
}

fn failures(reply: &StatusReply) -> String {
    let rows = reply.recent_failures.iter().map(|it| {
        let what = format!("{}: {}", it.action, it.message);
        vec![moment(it.at_unix_ms, reply.now_unix_ms), it.class.clone(), what]
    });
    titled("recent failures", &rows.collect::<Vec<_>>())
}

fn refusals(reply: &StatusReply) -> String {
    let rows = reply.recent_refusals.iter().rev().take(REFUSALS).map(|it| {
        let times = count(it.times, "time", "times");
        vec![pod(it.pod.as_ref()), times, moment(it.at_unix_ms, reply.now_unix_ms), it.reason.clone()]
    });
    titled("pods refused lately, newest first; `ipamd why POD` tells more", &rows.collect::<Vec<_>>())
}

/// What came of amazon-vpc-cni-k8s's rules, where there is something to do about them.
fn takeover(reply: &StatusReply) -> String {
    let told = reply.takeover.clone().unwrap_or_default();
    let rows = |lines: Vec<String>| lines.into_iter().map(|line| vec![line]).collect::<Vec<_>>();
    let parts = [
        titled(
            "rules of amazon-vpc-cni-k8s that may be left; tried again every minute",
            &rows(told.failures),
        ),
        titled("left of amazon-vpc-cni-k8s", &rows(told.left)),
        titled("amazon-vpc-cni-k8s runs on this node too; stop one of them", &rows(told.signs_of_return)),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn titled(title: &str, rows: &[Vec<String>]) -> String {
    if rows.is_empty() { String::new() } else { format!("{title}\n{}", table(2, rows)) }
}
