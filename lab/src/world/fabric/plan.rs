//! From what is there to what is wanted. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::wanted::{HOST_V6, ROUTER_V6, VPC_MTU, Wanted, Wire, plain};

/// What the `vpc` namespace holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Far ends and their labels.
    pub(crate) links: BTreeMap<String, String>,
    /// What each far end receives beyond its primary address.
    pub(crate) routes: BTreeMap<String, BTreeSet<IpNet>>,
    /// Ranges that lead nowhere.
    pub(crate) blackholes: BTreeSet<IpNet>,
}

impl Observed {
    /// Reads `ip -j link`, and `ip -j route` of each family, of the `vpc` namespace.
    ///
    /// # Errors
    /// A destination that is no network.
    pub(crate) fn read(links: &Value, routes: &[Value]) -> Result<Observed> {
        let mut observed = Observed::default();
        for link in links.as_array().into_iter().flatten() {
            let Some(name) = link["ifname"].as_str().filter(|it| it.starts_with("e-")) else { continue };
            let label = link["ifalias"].as_str().unwrap_or_default();
            observed.links.insert(name.to_owned(), label.to_owned());
        }
        for route in routes.iter().filter_map(Value::as_array).flatten() {
            let Some(text) = route["dst"].as_str().filter(|it| *it != "default") else { continue };
            let net = network(text)?;
            if route["type"] == "blackhole" {
                observed.blackholes.insert(net);
            } else if let (Some(dev), true) = (route["dev"].as_str(), route.get("gateway").is_some()) {
                observed.routes.entry(dev.to_owned()).or_default().insert(net);
            }
        }
        Ok(observed)
    }
}

fn network(text: &str) -> Result<IpNet> {
    let parsed = match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse().ok().map(|address: std::net::IpAddr| IpNet::from(address)),
    };
    parsed.with_context(|| format!("read the route to {text:?}: expected a network"))
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Takes both ends away.
    Unwire { far: String },
    /// Makes both ends and configures what is ours, and the image's, to configure.
    Wire(Wire),
    /// Sends a network to an ENI.
    Route { far: String, net: IpNet, wire: Wire },
    /// No longer sends it there.
    Unroute { far: String, net: IpNet },
    /// Lets unused addresses of a range lead nowhere.
    Blackhole(IpNet),
    /// Forgets a range.
    Unblackhole(IpNet),
}

/// The changes that lead from `observed` to `wanted`; what goes is ahead of what comes, because
/// an address or a MAC may move from one ENI to another.
pub(crate) fn plan(wanted: &Wanted, observed: &Observed) -> Vec<Step> {
    let mut going = Vec::new();
    let mut coming = Vec::new();
    let none = BTreeSet::new();
    let stays = |far: &str| {
        let label = observed.links.get(far)?;
        wanted.wires.get(far).filter(|wire| wire.label() == *label)
    };
    for far in observed.links.keys().filter(|far| stays(far).is_none()) {
        going.push(Step::Unwire { far: far.clone() });
    }
    for (far, wire) in &wanted.wires {
        let present = match stays(far) {
            Some(_) => observed.routes.get(far).unwrap_or(&none),
            None => {
                coming.push(Step::Wire(wire.clone()));
                &none
            }
        };
        for net in present.difference(&wire.others) {
            going.push(Step::Unroute { far: far.clone(), net: *net });
        }
        for net in wire.others.difference(present) {
            coming.push(Step::Route { far: far.clone(), net: *net, wire: wire.clone() });
        }
    }
    going.extend(observed.blackholes.difference(&wanted.cidrs).map(|it| Step::Unblackhole(*it)));
    coming.extend(wanted.cidrs.difference(&observed.blackholes).map(|it| Step::Blackhole(*it)));
    going.extend(coming);
    going
}

/// The steps as `ip -batch` lines for the `vpc` namespace.
pub(crate) fn vpc_lines(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        // Writing to a string cannot fail.
        let _ = match step {
            Step::Unwire { far } => writeln!(text, "link del {far}"),
            Step::Wire(wire) => {
                text.push_str(&wire_lines(wire));
                Ok(())
            }
            Step::Route { far, net: IpNet::V6(net), .. } => {
                writeln!(text, "route add {net} via {HOST_V6} dev {far}")
            }
            Step::Route { far, net, wire } => {
                writeln!(text, "route add {} via {} dev {far} onlink", plain(*net), wire.primary)
            }
            Step::Unroute { far, net } => writeln!(text, "route del {} dev {far}", plain(*net)),
            Step::Blackhole(net) => writeln!(text, "route add blackhole {net}"),
            Step::Unblackhole(net) => writeln!(text, "route del blackhole {net}"),
        };
    }
    text
}

fn wire_lines(wire: &Wire) -> String {
    let Wire { far, near, node, mac, primary, gateway, .. } = wire;
    let label = wire.label();
    format!(
        "link add {far} mtu {VPC_MTU} type veth peer name {near} address {mac} mtu {VPC_MTU} netns {node}\n\
         link set {far} alias {label} addrgenmode none up\n\
         addr add {gateway}/32 dev {far}\n\
         addr add {ROUTER_V6}/64 dev {far} nodad\n\
         neigh replace {HOST_V6} lladdr {mac} dev {far} nud permanent\n\
         neigh replace {primary} lladdr {mac} dev {far} nud permanent\n\
         route add {primary}/32 dev {far}\n"
    )
}

/// What the image does with the instance's first ENI at boot, as `ip -batch` lines for the node.
pub(crate) fn image_lines(wire: &Wire) -> String {
    let Wire { near, primary, length, gateway, .. } = wire;
    let v4 = format!(
        "link set {near} up\n\
         addr add {primary}/{length} brd + dev {near}\n\
         route add default via {gateway} dev {near} proto dhcp src {primary} metric 512\n"
    );
    let v6 = wire.primary_v6.map(|primary| {
        format!(
            "addr add {primary}/128 dev {near} nodad\n\
             route add default via {ROUTER_V6} dev {near} proto ra metric 512\n"
        )
    });
    v4 + &v6.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(far: &str, others: &[&str]) -> Wire {
        Wire {
            far: far.to_owned(),
            node: "l0-a".to_owned(),
            near: "eth1".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            primary: "10.0.0.9".parse().unwrap(),
            length: 20,
            gateway: "10.0.0.1".parse().unwrap(),
            others: others.iter().map(|it| network(it).unwrap()).collect(),
            primary_v6: None,
            is_checked: true,
            is_first: false,
        }
    }

    fn wanted(wires: &[Wire]) -> Wanted {
        Wanted {
            wires: wires.iter().map(|it| (it.far.clone(), it.clone())).collect(),
            cidrs: BTreeSet::from(["10.0.0.0/16".parse().unwrap()]),
        }
    }

    fn holds(wires: &[Wire]) -> Observed {
        Observed {
            links: wires.iter().map(|it| (it.far.clone(), it.label())).collect(),
            routes: wires.iter().map(|it| (it.far.clone(), it.others.clone())).collect(),
            blackholes: BTreeSet::from(["10.0.0.0/16".parse().unwrap()]),
        }
    }

    #[test]
    fn what_is_already_so_asks_for_nothing() {
        let wires = [wire("e-1", &["10.0.0.16/28", "10.0.0.7/32"])];

        assert_eq!(plan(&wanted(&wires), &holds(&wires)), []);
    }

    #[test]
    fn a_new_eni_is_wired_before_its_addresses_are_routed() {
        let new = wire("e-1", &["10.0.0.7/32"]);

        let steps = plan(&wanted(std::slice::from_ref(&new)), &holds(&[]));

        let net = network("10.0.0.7").unwrap();
        assert_eq!(steps, [Step::Wire(new.clone()), Step::Route { far: "e-1".to_owned(), net, wire: new }]);
    }

    #[test]
    fn an_address_that_moves_leaves_the_old_eni_first() {
        let before = [wire("e-1", &["10.0.0.7/32"]), wire("e-2", &[])];
        let after = [wire("e-1", &[]), wire("e-2", &["10.0.0.7/32"])];

        let steps = plan(&wanted(&after), &holds(&before));

        assert!(matches!(&steps[..], [Step::Unroute { far, .. }, Step::Route { far: to, .. }]
            if far == "e-1" && to == "e-2"));
    }

    #[test]
    fn an_eni_that_moves_to_another_device_is_wired_anew_with_its_routes() {
        let before = wire("e-1", &["10.0.0.7/32"]);
        let after = Wire { near: "eth2".to_owned(), ..before.clone() };

        let steps = plan(&wanted(std::slice::from_ref(&after)), &holds(&[before]));

        assert!(matches!(&steps[..], [Step::Unwire { .. }, Step::Wire(_), Step::Route { .. }]), "{steps:?}");
    }

    #[test]
    fn a_detached_eni_takes_its_link_with_it_and_nothing_else() {
        let (stays, goes) = (wire("e-1", &[]), wire("e-2", &["10.0.0.7/32"]));

        let steps = plan(&wanted(std::slice::from_ref(&stays)), &holds(&[stays.clone(), goes]));

        assert_eq!(steps, [Step::Unwire { far: "e-2".to_owned() }]);
    }

    #[test]
    fn what_ip_prints_is_read_back() {
        let links = serde_json::json!([
            {"ifname": "lo"}, {"ifname": "internet"},
            {"ifname": "e-1", "ifalias": "l0-a/eth1/02:00:00:00:00:01/10.0.0.9"},
        ]);
        let routes = serde_json::json!([
            {"dst": "default", "gateway": "198.51.100.2", "dev": "internet"},
            {"type": "blackhole", "dst": "10.0.0.0/16"},
            {"dst": "10.0.0.9", "dev": "e-1", "scope": "link"},
            {"dst": "10.0.0.7", "gateway": "10.0.0.9", "dev": "e-1"},
            {"dst": "10.0.0.16/28", "gateway": "10.0.0.9", "dev": "e-1"},
        ]);

        let routes_v6 = serde_json::json!([
            {"dst": "2600:db8:0:1:a::/80", "gateway": "fe80:ec2::2", "dev": "e-1", "flags": []},
            {"dst": "fe80::/64", "dev": "e-1", "protocol": "kernel"},
        ]);

        let observed = Observed::read(&links, &[routes, routes_v6]).unwrap();

        let others = ["10.0.0.16/28", "10.0.0.7/32", "2600:db8:0:1:a::/80"];
        assert_eq!(observed, holds(&[wire("e-1", &others)]));
    }
}
