//! Services as kube-proxy's mode `nftables` has them.

use std::fmt::Write;

use super::{Endpoint, Family, MASQUERADE_MARK, Service};
use crate::world::sight::Protocol;

/// One transaction that puts the table in the place of an earlier one.
pub(super) fn text(node: &str, addresses: &[String], family: Family, services: &[&Service]) -> String {
    let (word, kind) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let mut lines = Lines::default();
    for service in services {
        for protocol in Protocol::ALL {
            lines.add(node, word, service, protocol);
        }
    }
    let Lines { ips, node_ports, chains } = lines;
    let elements = |list: &[String]| match list {
        [] => String::new(),
        list => format!("elements = {{ {} }}", list.join(", ")),
    };
    format!(
        "table {word} kube-proxy {{ }}
delete table {word} kube-proxy
table {word} kube-proxy {{
  comment \"rules for kube-proxy\"
  set nodeport-ips {{ type {kind}; {addresses} }}
  chain mark-for-masquerade {{ mark set mark or {MASQUERADE_MARK:#x}; }}
{chains}
  map service-ips {{ type {kind} . inet_proto . inet_service : verdict; {ips} }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; {node_ports} }}
  chain services {{
    {word} daddr . meta l4proto . th dport vmap @service-ips
    {word} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain masquerading {{
    mark and {MASQUERADE_MARK:#x} == 0 return
    mark set mark xor {MASQUERADE_MARK:#x}
    masquerade fully-random
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
  chain filter-forward {{
    type filter hook forward priority -110;
    ct state invalid drop
  }}
}}
",
        addresses = elements(addresses),
        ips = elements(&ips),
        node_ports = elements(&node_ports),
    )
}

#[derive(Default)]
struct Lines {
    ips: Vec<String>,
    node_ports: Vec<String>,
    chains: String,
}

impl Lines {
    fn add(&mut self, node: &str, word: &str, service: &Service, protocol: Protocol) {
        let (name, tcp_or_udp) = (&service.name, protocol.as_str());
        let label = |kind: &str| format!("{kind}-{}-{name}-{tcp_or_udp}", service.digest(tcp_or_udp));
        let (all, external) = (label("service"), label("external"));
        let (cluster, port) = (service.address.ip(), service.address.port());
        self.endpoints(word, service, protocol);
        let every: Vec<_> = service.endpoints.iter().collect();
        let _ = writeln!(self.chains, "  chain {all} {{ {} }}", balance(service, protocol, &every));
        self.ips.push(format!("{cluster} . {tcp_or_udp} . {port} : goto {all}"));
        let Some(node_port) = service.node_port else { return };
        let content = if service.is_local {
            let here: Vec<_> =
                service.endpoints.iter().filter(|it| it.node.as_deref() == Some(node)).collect();
            format!(
                "fib saddr type local jump mark-for-masquerade; fib saddr type local goto {all}; {}",
                balance(service, protocol, &here)
            )
        } else {
            format!("jump mark-for-masquerade; goto {all};")
        };
        let _ = writeln!(self.chains, "  chain {external} {{ {content} }}");
        self.node_ports.push(format!("{tcp_or_udp} . {node_port} : goto {external}"));
    }

    fn endpoints(&mut self, word: &str, service: &Service, protocol: Protocol) {
        for endpoint in &service.endpoints {
            let (chain, address) = (endpoint_chain(service, protocol, endpoint), endpoint.address);
            let _ = writeln!(
                self.chains,
                "  chain {chain} {{ {word} saddr {} jump mark-for-masquerade; meta l4proto {} dnat to {address}; }}",
                address.ip(),
                protocol.as_str(),
            );
        }
    }
}

/// Chooses one of the endpoints, each as likely as the others.
fn balance(service: &Service, protocol: Protocol, endpoints: &[&Endpoint]) -> String {
    let choices = endpoints.iter().enumerate();
    let choices =
        choices.map(|(index, it)| format!("{index} : goto {}", endpoint_chain(service, protocol, it)));
    match endpoints.len() {
        0 => String::new(),
        count => {
            let choices: Vec<_> = choices.collect();
            format!("numgen random mod {count} vmap {{ {} }};", choices.join(", "))
        }
    }
}

fn endpoint_chain(service: &Service, protocol: Protocol, endpoint: &Endpoint) -> String {
    let of = format!("{}{}", protocol.as_str(), endpoint.address);
    format!("endpoint-{}-{}", service.digest(&of), service.name)
}
