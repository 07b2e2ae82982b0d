//! The answer in sentences: the present first, the past after it.

use proto::node::{
    AddressPlace, AddressStory, Holding, PodStatus, PodStory, RefusedPod, ReleasedAddress, WaitingPod,
    WhyReply,
};

use crate::commands::text::{count, distance, held_back, moment, pod, span, states};

pub(super) fn render(subject: &str, reply: &WhyReply) -> String {
    let lines = match (&reply.address, reply.pods.as_slice()) {
        (Some(address), _) => address_lines(address, reply),
        (None, []) => vec![format!(
            "no pod {subject} is known on this node: it has no address and waits for none, and was neither \
             refused nor deleted since the daemon began to serve at {}",
            moment(reply.started_unix_ms, reply.now_unix_ms)
        )],
        (None, [story]) => pod_lines(story, reply),
        (None, several) => {
            let names: Vec<_> = several.iter().map(|story| format!("  {}", name(story))).collect();
            let head =
                format!("{subject} fits {} pods; ask for one of them by its full name:", several.len());
            [vec![head], names].concat()
        }
    };
    lines.into_iter().map(|line| line + "\n").collect()
}

fn name(story: &PodStory) -> String {
    let whose = [
        story.holds.first().and_then(|it| it.pod.as_ref()),
        story.waits.first().and_then(|it| it.pod.as_ref()),
        story.refused.as_ref().and_then(|it| it.pod.as_ref()),
        story.released.as_ref().and_then(|it| it.pod.as_ref()),
    ];
    match whose.into_iter().flatten().next() {
        Some(known) => pod(Some(known)),
        None => format!("{}/{}", story.namespace, story.name),
    }
}

fn pod_lines(story: &PodStory, reply: &WhyReply) -> Vec<String> {
    let who = name(story);
    let now = reply.now_unix_ms;
    let mut lines = Vec::new();
    for it in &story.holds {
        lines.extend(holding(&who, it, now));
    }
    for it in &story.waits {
        lines.extend(waiting(&who, it, reply));
    }
    let is_settled = !story.holds.is_empty() || !story.waits.is_empty();
    if let Some(it) = &story.refused {
        lines.extend(refused(&who, it, is_settled, now));
    }
    if let Some(it) = &story.released {
        lines.extend(released(&who, it, now));
    }
    lines
}

fn holding(who: &str, held: &Holding, now: i64) -> Vec<String> {
    let mut lines = vec![format!("{who} has {} since {}", held.ip, moment(held.since_unix_ms, now))];
    match &held.place {
        Some(it) => lines.push(format!("  on {}", place(it))),
        None => lines.push(
            "  EC2 does not show the ENI of this address now; the address stays the pod's until the pod goes"
                .to_owned(),
        ),
    }
    lines.extend(sandbox(held.pod.as_ref()));
    lines
}

fn place(place: &AddressPlace) -> String {
    let AddressPlace { eni, subnet, network_card, device_index, route_table, eni_state, .. } = place;
    let table = if *route_table == 254 { "main".to_owned() } else { route_table.to_string() };
    let state = if eni_state == "ready" { String::new() } else { format!(", which is {}", doing(eni_state)) };
    format!("{eni}{state} (card {network_card}, device {device_index}) in {subnet}, route table {table}")
}

/// What an ENI is doing, after `is`.
fn doing(eni_state: &str) -> &str {
    if eni_state == "setting up" { "being set up" } else { eni_state }
}

fn sandbox(pod: Option<&PodStatus>) -> Option<String> {
    let PodStatus { network, container_id, interface, .. } = pod?;
    Some(format!("  container {container_id}, interface {interface}, network {network}"))
}

fn waiting(who: &str, wait: &WaitingPod, reply: &WhyReply) -> Vec<String> {
    let now = reply.now_unix_ms;
    let mut lines = vec![format!("{who} waits for an address since {}", moment(wait.since_unix_ms, now))];
    let left = span(wait.until_unix_ms - now);
    let rests = wait.until_for_cooling_unix_ms;
    lines.push(if rests > wait.until_unix_ms {
        format!("  it waits {left} more at most, and {} for an address that cools", span(rests - now))
    } else {
        format!("  it waits {left} more at most")
    });
    let planner = reply.planner.clone().unwrap_or_default();
    for step in &planner.under_way {
        let since = step.since_unix_ms.map(|since| format!(", for {}", span(now - since)));
        lines.push(format!("  under way: {}{}", step.step, since.unwrap_or_default()));
    }
    for held in &planner.held_back {
        lines.push(format!("  {}", held_back(held, now)));
    }
    if let Some(addresses) = &reply.addresses {
        let next = addresses.next_cooled_unix_ms.map(|at| distance(at, now));
        let next = next.map(|next| format!("; the next one that cools is free {next}"));
        lines.push(format!("  addresses of this node: {}{}", states(addresses), next.unwrap_or_default()));
    }
    lines.extend(sandbox(wait.pod.as_ref()));
    lines
}

fn refused(who: &str, refused: &RefusedPod, is_settled: bool, now: i64) -> Vec<String> {
    let times = count(refused.times, "time", "times");
    let at = moment(refused.at_unix_ms, now);
    let head = if is_settled {
        format!("earlier it was refused {times}, the last time at {at}: {}", refused.reason)
    } else {
        format!("{who} was refused {times}, the last time at {at}: {}", refused.reason)
    };
    let mut lines = vec![head, format!("  {}", refused.message)];
    if !is_settled {
        lines.push("  no ADD of it is under way; the kubelet tries again by itself".to_owned());
        lines.extend(sandbox(refused.pod.as_ref()));
    }
    lines
}

fn released(who: &str, released: &ReleasedAddress, now: i64) -> Vec<String> {
    let had = span(released.released_unix_ms - released.assigned_unix_ms);
    let rest = match released.cooling_until_unix_ms {
        Some(until) => format!("the address cools until {}", moment(until, now)),
        None => "the address does not cool any more".to_owned(),
    };
    let at = moment(released.released_unix_ms, now);
    let mut lines =
        vec![format!("{who} gave {} back at {at}, after {had}", released.ip), format!("  {rest}")];
    lines.extend(sandbox(released.pod.as_ref()));
    lines
}

fn free(ip: &str, place: Option<&AddressPlace>) -> String {
    let Some(AddressPlace { eni_state, eni_unused_because, .. }) = place else {
        return format!("{ip} is free");
    };
    match eni_unused_because {
        Some(why) => format!("{ip} is free, but no pod gets it: its ENI is not used ({why})"),
        None if eni_state != "ready" => format!("{ip} is free, but its ENI is {}", doing(eni_state)),
        None => format!("{ip} is free: the next pod may get it"),
    }
}

fn address_lines(story: &AddressStory, reply: &WhyReply) -> Vec<String> {
    let now = reply.now_unix_ms;
    let ip = &story.ip;
    let what = match story.state.as_str() {
        "assigned" => {
            let since = story.assigned_unix_ms.map(|since| format!(" since {}", moment(since, now)));
            format!("{ip} is {}'s{}", pod(story.pod.as_ref()), since.unwrap_or_default())
        }
        "free" => free(ip, story.place.as_ref()),
        "cooling" => {
            let until = story.cooling_until_unix_ms.map(|until| distance(until, now));
            format!("{ip} cools after its last pod; it is free {}", until.unwrap_or_default())
        }
        "quarantined" => format!(
            "{ip} is held back, neither given out nor returned: {}",
            story.quarantined_because.as_deref().unwrap_or("nobody says why")
        ),
        "leaving" => format!("{ip} is on its way back to EC2"),
        "node" => format!("{ip} is an ENI's own address; no pod gets it"),
        "unknown" => format!("{ip} is no address that this node has for pods"),
        other => format!("{ip} is {other}"),
    };
    let mut lines = vec![what];
    match &story.place {
        Some(it) => lines.push(format!("  on {}", place(it))),
        None if story.state == "assigned" => {
            lines.push("  EC2 does not show the ENI of this address now".to_owned());
        }
        None => {}
    }
    lines.extend(sandbox(story.pod.as_ref()));
    if let Some(last) = &story.released {
        let at = moment(last.released_unix_ms, now);
        lines.push(format!("{} gave it back at {at}", pod(last.pod.as_ref())));
    }
    lines
}
