//! The steps that build one interface of a pod, as pure functions of what it should be.

use ipnet::IpNet;
use vpc::{Family, Mac, RouteTable, pod_gateway};

use crate::kernel::{Address, LinkRef, Neighbour, Route, Rule, Scope, Step};
use crate::wanted::{PodInterface, priority};

/// The pod's own table for interface number `nic`.
fn table_in_pod(nic: u8) -> RouteTable {
    if nic == 0 { RouteTable::MAIN } else { RouteTable(nic.into()) }
}

/// The route in the pod to its gateway, which is on the link though no block says so.
pub(super) fn gateway_route(interface: &PodInterface, link: &LinkRef) -> Route {
    Route {
        destination: pod_gateway(interface.address, interface.nic).into(),
        gateway: None,
        link: Some(link.clone()),
        scope: Scope::on_link(Family::of(interface.address)),
        table: table_in_pod(interface.nic),
        preferred_source: None,
    }
}

/// The pod's default route by this interface.
pub(super) fn default_route(interface: &PodInterface, link: &LinkRef) -> Route {
    Route {
        destination: Family::of(interface.address).everything(),
        gateway: Some(pod_gateway(interface.address, interface.nic)),
        scope: Scope::Universe,
        ..gateway_route(interface, link)
    }
}

/// The rule in the pod that leads to a further interface's table.
pub(super) fn interface_rule(interface: &PodInterface) -> Option<Rule> {
    (interface.nic > 0)
        .then(|| Rule::from_address(priority::FROM_INTERFACE, interface.address, table_in_pod(interface.nic)))
}

/// The pod's address on its end.
pub(super) fn address(interface: &PodInterface, link: &LinkRef) -> Address {
    Address { link: link.clone(), net: IpNet::from(interface.address), broadcast: None }
}

/// The entry that leads the gateway's packets to the host's end.
pub(super) fn gateway_neighbour(interface: &PodInterface, link: &LinkRef, host_mac: Mac) -> Neighbour {
    Neighbour { link: link.clone(), address: pod_gateway(interface.address, interface.nic), mac: host_mac }
}

/// The route on the host to the pod.
pub(super) fn pod_route(interface: &PodInterface, link: &LinkRef) -> Route {
    Route {
        destination: interface.address.into(),
        gateway: None,
        link: Some(link.clone()),
        scope: Scope::on_link(Family::of(interface.address)),
        table: RouteTable::MAIN,
        preferred_source: None,
    }
}

/// The host's rules for the pod: to it, and from it if its ENI is not the primary one.
pub(super) fn pod_rules(interface: &PodInterface) -> Vec<Rule> {
    let mut rules = vec![Rule::to_address(priority::TO_POD, interface.address, RouteTable::MAIN)];
    if interface.table != RouteTable::MAIN {
        rules.push(Rule::from_address(priority::FROM_POD, interface.address, interface.table));
    }
    rules
}

/// What removes rules that an earlier owner of the address left. One of them would lead the new
/// pod's packets out of another ENI than its own, where the VPC drops them.
pub(super) fn leftover_rules(interface: &PodInterface) -> [Step; 2] {
    [
        Step::DeleteRule(Rule::to_address(priority::TO_POD, interface.address, None)),
        Step::DeleteRule(Rule::from_address(priority::FROM_POD, interface.address, None)),
    ]
}

/// The steps in the pod, once the pair is there.
pub(super) fn steps_in_pod(interface: &PodInterface, link: &LinkRef, host_mac: Mac) -> Vec<Step> {
    let mut steps = vec![Step::ReplaceRoute(gateway_route(interface, link))];
    steps.extend(interface_rule(interface).map(Step::AddRule));
    steps.push(Step::AddRoute(default_route(interface, link)));
    steps.push(Step::AddAddress(address(interface, link)));
    steps.push(Step::AddNeighbour(gateway_neighbour(interface, link, host_mac)));
    steps
}

/// The steps on the host, once the pair is there: rules last, so that nothing is led to a route
/// that does not exist yet.
pub(super) fn steps_on_host(interface: &PodInterface, link: &LinkRef) -> Vec<Step> {
    let mut steps = vec![Step::SetUp(link.clone())];
    steps.extend(leftover_rules(interface));
    steps.push(Step::ReplaceRoute(pod_route(interface, link)));
    steps.extend(pod_rules(interface).into_iter().map(Step::AddRule));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(nic: u8, table: RouteTable) -> PodInterface {
        PodInterface {
            host_veth: "enicc21c2d7785".to_owned(),
            container_interface: vpc::container_interface("eth0", nic),
            nic,
            address: "10.0.1.7".parse().unwrap(),
            table,
            mtu: 9001,
        }
    }

    fn printed(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    fn link(name: &str) -> LinkRef {
        LinkRef { index: 2, name: name.to_owned() }
    }

    #[test]
    fn a_pod_of_the_primary_eni_needs_no_rule_from_its_address() {
        let steps = steps_on_host(&interface(0, RouteTable::MAIN), &link("enicc21c2d7785"));

        assert_eq!(
            printed(&steps),
            [
                "set link enicc21c2d7785 up",
                "delete rule 512: from all to 10.0.1.7",
                "delete rule 1536: from 10.0.1.7",
                "replace route 10.0.1.7 dev enicc21c2d7785",
                "add rule 512: from all to 10.0.1.7 lookup main",
            ]
        );
    }

    #[test]
    fn a_pod_of_another_eni_sends_through_that_enis_table() {
        let steps = steps_on_host(&interface(0, RouteTable(3)), &link("enicc21c2d7785"));

        assert_eq!(printed(&steps).last().unwrap(), "add rule 1536: from 10.0.1.7 lookup 3");
    }

    #[test]
    fn a_further_interface_has_its_routes_in_a_table_of_its_own() {
        let mac = Mac::new([2, 0, 0, 0, 0, 1]);

        let steps = steps_in_pod(&interface(1, RouteTable::MAIN), &link("mNicIf1"), mac);

        assert_eq!(
            printed(&steps),
            [
                "replace route 169.254.1.2 dev mNicIf1 table 1",
                "add rule 1: from 10.0.1.7 lookup 1",
                "add route default via 169.254.1.2 dev mNicIf1 table 1",
                "add address 10.0.1.7/32 dev mNicIf1",
                "add neighbour 169.254.1.2 lladdr 02:00:00:00:00:01 dev mNicIf1",
            ]
        );
    }
}
