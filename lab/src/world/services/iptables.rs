//! Services as kube-proxy's mode `iptables` has them.

use std::fmt::Write;

use anyhow::Result;

use super::{Endpoint, Family, MASQUERADE_MARK, Service};
use crate::world::node::Node;
use crate::world::sight::Protocol;

/// The tables with all chains of kube-proxy, for `iptables-restore --noflush`. The jumps from the
/// kernel's own chains are part of it where they are `new`.
pub(super) fn text(node: &str, family: Family, services: &[&Service], new: bool) -> String {
    let mut nat = Chains::default();
    for name in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        nat.declare(name);
    }
    let mark = format!("{MASQUERADE_MARK:#x}");
    nat.rule(&format!("KUBE-MARK-MASQ -j MARK --or-mark {mark}"));
    nat.rule(&format!("KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN"));
    nat.rule(&format!("KUBE-POSTROUTING -j MARK --xor-mark {mark}"));
    nat.rule(
        "KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" \
         -j MASQUERADE --random-fully",
    );
    for service in services {
        for protocol in Protocol::ALL {
            add(&mut nat, node, family, service, protocol);
        }
    }
    nat.rule("KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
    if new {
        nat.rule("PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
        nat.rule("OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
        nat.rule("POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING");
    }

    let mut filter = Chains::default();
    filter.declare("KUBE-FORWARD");
    filter.rule("KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
    filter.rule(&format!("KUBE-FORWARD -m mark --mark {mark}/{mark} -j ACCEPT"));
    filter.rule("KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    if new {
        filter.rule("FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD");
    }
    format!("*filter\n{}COMMIT\n*nat\n{}COMMIT\n", filter.text(), nat.text())
}

/// Puts the rules into the node's tables.
///
/// # Errors
/// The tools' complaints.
pub(super) async fn load(node: &Node, family: Family, services: &[&Service]) -> Result<()> {
    let (save, restore) = match family {
        Family::V4 => ("iptables-save", "iptables-restore"),
        Family::V6 => ("ip6tables-save", "ip6tables-restore"),
    };
    let present = node.exec(&[save, "-t", "nat"]).await?;
    let text = text(node.name(), family, services, !present.contains("-j KUBE-SERVICES"));
    node.place().exec_with(&[restore, "--noflush"], Some(&text)).await?;
    Ok(())
}

fn add(nat: &mut Chains, node: &str, family: Family, service: &Service, protocol: Protocol) {
    let (word, length) = (protocol.as_str(), if family == Family::V4 { 32 } else { 128 });
    let digest = service.digest(word);
    let (all, external, local) =
        (format!("KUBE-SVC-{digest}"), format!("KUBE-EXT-{digest}"), format!("KUBE-SVL-{digest}"));
    let (cluster, port) = (service.address.ip(), service.address.port());
    nat.declare(&all);
    nat.rule(&format!("KUBE-SERVICES -d {cluster}/{length} -p {word} -m {word} --dport {port} -j {all}"));
    balance(nat, &all, service, protocol, &service.endpoints.iter().collect::<Vec<_>>(), length);
    let Some(node_port) = service.node_port else { return };
    nat.declare(&external);
    nat.rule(&format!("KUBE-NODEPORTS -p {word} -m {word} --dport {node_port} -j {external}"));
    if service.is_local {
        nat.declare(&local);
        nat.rule(&format!("{external} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
        nat.rule(&format!("{external} -m addrtype --src-type LOCAL -j {all}"));
        nat.rule(&format!("{external} -j {local}"));
        let here: Vec<_> = service.endpoints.iter().filter(|it| it.node.as_deref() == Some(node)).collect();
        balance(nat, &local, service, protocol, &here, length);
    } else {
        nat.rule(&format!("{external} -j KUBE-MARK-MASQ"));
        nat.rule(&format!("{external} -j {all}"));
    }
}

/// Chooses one of the endpoints, each as likely as the others.
fn balance(
    nat: &mut Chains,
    chain: &str,
    service: &Service,
    protocol: Protocol,
    endpoints: &[&Endpoint],
    length: u8,
) {
    let word = protocol.as_str();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let address = endpoint.address;
        let own = format!("KUBE-SEP-{}", service.digest(&format!("{word}{address}")));
        let left = endpoints.len() - index;
        let chance = match left {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability 0.{:04}", 10_000 / left),
        };
        nat.rule(&format!("{chain}{chance} -j {own}"));
        if nat.declare(&own) {
            nat.rule(&format!("{own} -s {}/{length} -j KUBE-MARK-MASQ", address.ip()));
            nat.rule(&format!("{own} -p {word} -m {word} -j DNAT --to-destination {address}"));
        }
    }
}

/// Chains and rules of one table.
#[derive(Default)]
struct Chains {
    declared: Vec<String>,
    rules: Vec<String>,
}

impl Chains {
    /// Whether the chain is new.
    fn declare(&mut self, name: &str) -> bool {
        let is_new = !self.declared.iter().any(|it| it == name);
        if is_new {
            self.declared.push(name.to_owned());
        }
        is_new
    }

    fn rule(&mut self, rule: &str) {
        self.rules.push(rule.to_owned());
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for name in &self.declared {
            let _ = writeln!(text, ":{name} - [0:0]");
        }
        for rule in &self.rules {
            let _ = writeln!(text, "-A {rule}");
        }
        text
    }
}
