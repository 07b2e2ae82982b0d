//! Everything there is to see when something went wrong.

use std::fmt::Write;

use super::Lab;
use super::node::{IPAMD_LOG, Node, STATE_FILE};
use super::place::Place;

/// The end of a log that is worth a look.
const LOG_LINES: usize = 200;

impl Lab {
    /// Links, addresses, routes, rules, neighbours and packet filter of every namespace, daemon
    /// logs, plugin logs and state files, and EC2's view, as text.
    pub async fn dump(&self) -> String {
        let mut text = String::new();
        for place in self.fabric().places() {
            network(place, &mut text).await;
        }
        for node in self.nodes() {
            text.push_str(&node.dump().await);
        }
        let _ = writeln!(text, "=== cloud\n{:#?}", self.cloud().snapshot().enis);
        for call in self.cloud().calls() {
            let at = call.call.received;
            let (action, summary) = (&call.call.action, &call.call.summary);
            let _ = writeln!(text, "{at:?} {action} {summary} -> {:?}", call.outcome);
        }
        text
    }
}

impl Node {
    /// The same of one node.
    pub async fn dump(&self) -> String {
        let mut text = String::new();
        network(self.place(), &mut text).await;
        let _ = writeln!(text, "=== {} ipamd output\n{}", self.name(), tail(&self.ipamd_output()));
        for file in [IPAMD_LOG, "/var/log/aws-routed-eni/plugin.log", STATE_FILE] {
            let content = self.read(file).unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(text, "=== {} {file}\n{}", self.name(), tail(&content));
        }
        text
    }
}

async fn network(place: &Place, text: &mut String) {
    let looks: [&[&str]; 9] = [
        &["ip", "-d", "link"],
        &["ip", "addr"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-4", "rule"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-6", "rule"],
        &["ip", "neigh"],
        &["nft", "list", "ruleset"],
        &["ss", "-tunap"],
    ];
    for words in looks {
        let seen = place.exec(words).await.unwrap_or_else(|error| format!("{error:#}\n"));
        let _ = writeln!(text, "=== {} {}\n{seen}", place.name(), words.join(" "));
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
