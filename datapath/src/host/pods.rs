//! What the node holds for running pods: putting it back, and telling which of their links are of
//! no use any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use vpc::{Family, Mac, RouteTable, split_host_veth, veth_suffix};

use super::PodLink;
use super::observed::Observed;
use crate::egress::{LINK_LOCAL_PREFIX, link_local};
use crate::kernel::{Address, Link, Links, Route, Rule, Scope, Step, single};
use crate::wanted::{PodOnHost, priority};

/// The longest prefix that the name of a pod's host veth can have, in bytes.
const LONGEST_PREFIX: usize = 4;

/// How links of pods with security groups of their own begin; their routes are not in the main
/// table, and not ours to mend.
const BRANCH_PREFIX: &str = "vlan";

/// Links whose names are those of pods' host veths, by the part that tells whose.
pub(super) struct Veths<'a>(BTreeMap<&'a str, &'a Link>);

impl<'a> Veths<'a> {
    pub(super) fn of(links: &'a Links) -> Self {
        let veths = links.iter().filter_map(|link| {
            let (prefix, suffix) = split_host_veth(&link.name)?;
            let is_pods = (1..=LONGEST_PREFIX).contains(&prefix.len()) && prefix != BRANCH_PREFIX;
            is_pods.then_some((suffix, link))
        });
        Self(veths.collect())
    }

    fn of_pod(&self, pod: &PodOnHost) -> Option<&'a Link> {
        self.0.get(veth_suffix(&pod.pod, pod.nic).as_str()).copied()
    }
}

/// What the kernel holds for pods, by their addresses: a node has hundreds of them.
pub(super) struct PodView<'a> {
    veths: Veths<'a>,
    /// The numbers of links that have a link-local IPv6 address.
    link_local: BTreeSet<u32>,
    routes: BTreeMap<IpAddr, Vec<&'a Route>>,
    /// Rules of pods' priorities.
    rules: BTreeMap<IpAddr, Vec<&'a Rule>>,
}

impl<'a> PodView<'a> {
    pub(super) fn of(observed: &'a Observed) -> Self {
        let is_link_local = |address: &&Address| match address.net {
            IpNet::V4(_) => false,
            IpNet::V6(net) => net.addr().is_unicast_link_local(),
        };
        let mut view = Self {
            veths: Veths::of(&observed.links),
            link_local: observed.addresses.iter().filter(is_link_local).map(|it| it.link.index).collect(),
            routes: BTreeMap::new(),
            rules: BTreeMap::new(),
        };
        for route in &observed.routes {
            if let Some(address) = single(route.destination) {
                view.routes.entry(address).or_default().push(route);
            }
        }
        for rule in &observed.rules {
            let block = match rule.priority {
                priority::TO_POD => rule.to,
                priority::FROM_POD => rule.from,
                _ => None,
            };
            if let Some(address) = block.and_then(single) {
                view.rules.entry(address).or_default().push(rule);
            }
        }
        view
    }

    /// How the names of running pods' host veths begin. Some were made before the operator chose
    /// another prefix. What a rule of ours leads to is no other network's link.
    pub(super) fn prefixes(&self) -> BTreeSet<String> {
        let is_ours = |address: &IpAddr| {
            let to_pod = Rule::to_address(priority::TO_POD, *address, RouteTable::MAIN);
            self.rules.get(address).is_some_and(|rules| rules.contains(&&to_pod))
        };
        let prefix = |(suffix, link): (&&str, &&'a Link)| Some((link.index, link.name.strip_suffix(suffix)?));
        let veths: BTreeMap<u32, &str> = self.veths.0.iter().filter_map(prefix).collect();
        self.routes
            .iter()
            .filter(|(address, _)| is_ours(address))
            .flat_map(|(_, routes)| routes.iter().filter_map(|route| route.link.as_ref()))
            .filter_map(|link| veths.get(&link.index))
            .map(|prefix| (*prefix).to_owned())
            .collect()
    }

    /// The pod's link, if all is there that leads to the pod and from it.
    pub(super) fn whole_link(&self, pod: &PodOnHost) -> Option<PodLink> {
        let link = self.veths.of_pod(pod).filter(|_| steps(self, pod).is_empty())?;
        Some(PodLink { index: link.index, name: link.name.clone() })
    }
}

/// The steps after which a pod's packets find their way again; none if its link is gone, since
/// then the pod has ended and its DEL is on its way.
pub(super) fn steps(view: &PodView<'_>, pod: &PodOnHost) -> Vec<Step> {
    let Some(link) = view.veths.of_pod(pod) else { return Vec::new() };
    let routes = view.routes.get(&pod.address).map(Vec::as_slice).unwrap_or_default();
    let rules_there = view.rules.get(&pod.address).map(Vec::as_slice).unwrap_or_default();
    let mut steps = Vec::new();
    if !link.is_up {
        steps.push(Step::SetUp(link.reference()));
    }
    // A link that comes up gets it from the kernel.
    if link.is_up && pod.address.is_ipv6() && !view.link_local.contains(&link.index) {
        steps.extend(link.mac.map(|mac| Step::AddLinkAddress(link_local_address(link, mac))));
    }
    let route = Route {
        destination: pod.address.into(),
        gateway: None,
        link: Some(link.reference()),
        scope: Scope::on_link(Family::of(pod.address)),
        table: RouteTable::MAIN,
        preferred_source: None,
    };
    if !link.is_up || !routes.contains(&&route) {
        steps.push(Step::ReplaceRoute(route));
    }
    let wanted = rules(pod.address, pod.table);
    steps.extend(wanted.iter().filter(|rule| !rules_there.contains(rule)).cloned().map(Step::AddRule));
    // One to another table would win over ours, if it stands before it.
    let is_stale = |rule: &&Rule| {
        wanted.iter().any(|own| **rule != *own && Rule { table: own.table, ..(*rule).clone() } == *own)
    };
    steps.extend(rules_there.iter().copied().filter(is_stale).cloned().map(Step::DeleteRule));
    steps
}

/// Rules to and from a pod's address; the latter if its ENI is not the primary one.
pub(crate) fn rules(address: IpAddr, table: RouteTable) -> Vec<Rule> {
    let mut rules = vec![Rule::to_address(priority::TO_POD, address, RouteTable::MAIN)];
    if table != RouteTable::MAIN {
        rules.push(Rule::from_address(priority::FROM_POD, address, table));
    }
    rules
}

/// The address from which the node asks who has an IPv6 pod's address: without one it can ask
/// nobody, and the pod is deaf as soon as the kernel has forgotten the last answer.
fn link_local_address(link: &Link, mac: Mac) -> Address {
    let net = IpNet::new_assert(link_local(mac).into(), LINK_LOCAL_PREFIX);
    Address { link: link.reference(), net, broadcast: None }
}

/// Those of `wanted` that are there, each with whether a route leads to it. `routes` are those of
/// both families.
pub(super) fn reached(
    links: &Links,
    routes: &[Route],
    wanted: &BTreeSet<PodLink>,
) -> BTreeMap<PodLink, bool> {
    let led_to: BTreeSet<u32> = routes
        .iter()
        .filter(|route| single(route.destination).is_some())
        .filter_map(|route| route.link.as_ref().map(|link| link.index))
        .collect();
    let there = links.iter().map(|link| PodLink { index: link.index, name: link.name.clone() });
    let wanted = there.filter(|link| wanted.contains(link));
    wanted.map(|link| (link.clone(), led_to.contains(&link.index))).collect()
}

#[cfg(test)]
mod tests {
    use vpc::PodName;

    use super::*;

    fn pod(table: u32) -> PodOnHost {
        PodOnHost {
            pod: PodName::new("default", "sample-pod"),
            nic: 0,
            address: "10.0.1.7".parse().unwrap(),
            table: RouteTable(table),
        }
    }

    fn veth(name: &str, is_up: bool) -> Links {
        let link = Link {
            index: 7,
            name: name.to_owned(),
            mac: Some(Mac::new([2, 0, 0, 0, 0, 7])),
            mtu: 9001,
            is_up,
            peer: Some(2),
            peer_namespace: Some(0),
            rp_filter: None,
        };
        [link].into_iter().collect()
    }

    fn printed(links: &Links, rules: Vec<Rule>, table: u32) -> Vec<String> {
        let observed = Observed { links: links.clone(), rules, ..Observed::default() };
        steps(&PodView::of(&observed), &pod(table)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_that_lost_everything_gets_route_and_rules() {
        assert_eq!(
            printed(&veth("enicc21c2d7785", true), Vec::new(), 3),
            [
                "replace route 10.0.1.7 dev enicc21c2d7785",
                "add rule 512: from all to 10.0.1.7 lookup main",
                "add rule 1536: from 10.0.1.7 lookup 3",
            ]
        );
    }

    #[test]
    fn a_pod_is_found_whatever_prefix_its_link_was_made_with() {
        assert_eq!(
            printed(&veth("xcc21c2d7785", false), rules(pod(254).address, RouteTable::MAIN), 254),
            ["set link xcc21c2d7785 up", "replace route 10.0.1.7 dev xcc21c2d7785"]
        );
    }

    #[test]
    fn prefixes_are_those_of_links_that_a_rule_and_a_route_of_ours_lead_to() {
        let links = veth("podcc21c2d7785", true);
        let route = Route {
            destination: pod(3).address.into(),
            gateway: None,
            link: links.iter().next().map(Link::reference),
            scope: Scope::Link,
            table: RouteTable::MAIN,
            preferred_source: None,
        };
        let rules = rules(pod(3).address, RouteTable(3));
        let seen = |routes: &[Route], rules: &[Rule]| {
            let observed = Observed {
                links: links.clone(),
                routes: routes.to_vec(),
                rules: rules.to_vec(),
                ..Observed::default()
            };
            PodView::of(&observed).prefixes().into_iter().collect::<Vec<_>>()
        };

        assert_eq!(seen(std::slice::from_ref(&route), &rules), ["pod"]);
        assert_eq!(seen(&[], &rules), Vec::<String>::new());
        assert_eq!(seen(&[route], &[]), Vec::<String>::new(), "somebody else's link");
    }

    #[test]
    fn a_pod_whose_link_is_gone_or_is_a_branchs_is_left_alone() {
        for links in [veth("eni00000000000", true), veth("vlancc21c2d7785", true), Links::default()] {
            assert_eq!(printed(&links, Vec::new(), 3), Vec::<String>::new(), "{links:?}");
        }
    }

    #[test]
    fn a_rule_to_another_table_gives_way() {
        let stale = Rule::from_address(1536, pod(3).address, RouteTable(5));

        let steps = printed(&veth("enicc21c2d7785", true), vec![stale], 3);

        assert_eq!(steps.last().unwrap(), "delete rule 1536: from 10.0.1.7 lookup 5");
    }

    #[test]
    fn an_ipv6_pods_link_gets_the_address_back_from_which_the_node_asks_for_the_pod() {
        let mut links = veth("enicc21c2d7785", true);
        let pod = PodOnHost { address: "2001:db8::7".parse().unwrap(), ..pod(254) };
        let wanted = |links: &Links, addresses: &[Address]| {
            let rules = rules(pod.address, RouteTable::MAIN);
            let observed = Observed {
                links: links.clone(),
                addresses: addresses.to_vec(),
                rules,
                ..Observed::default()
            };
            steps(&PodView::of(&observed), &pod).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let route = "replace route 2001:db8::7 dev enicc21c2d7785";
        let of_the_kernel = Address {
            link: links.iter().next().map(Link::reference).unwrap(),
            net: "fe80::1234/64".parse().unwrap(),
            broadcast: None,
        };
        let global = Address { net: "2001:db8::1/64".parse().unwrap(), ..of_the_kernel.clone() };

        let address = "add address fe80::ff:fe00:7/64 dev enicc21c2d7785 scope link";
        assert_eq!(wanted(&links, &[global]), [address, route]);
        assert_eq!(wanted(&links, &[of_the_kernel]), [route]);

        links = veth("enicc21c2d7785", false);
        let up = "set link enicc21c2d7785 up";
        assert_eq!(wanted(&links, &[]), [up, route], "the kernel makes it when the link comes up");
    }

    #[test]
    fn a_link_is_found_by_number_and_name_and_reached_by_routes_to_single_addresses() {
        let links = veth("enicc21c2d7785", true);
        let link = |index: u32| PodLink { index, name: "enicc21c2d7785".to_owned() };
        let route = Route {
            destination: pod(3).address.into(),
            gateway: None,
            link: links.iter().next().map(Link::reference),
            scope: Scope::Link,
            table: RouteTable::MAIN,
            preferred_source: None,
        };
        let of_the_kernel = Route { destination: "fe80::/64".parse().unwrap(), ..route.clone() };
        let of_a_later_link = BTreeSet::from([link(6), link(8)]);

        let own = BTreeSet::from([link(7)]);
        assert_eq!(reached(&links, &[of_the_kernel], &own), BTreeMap::from([(link(7), false)]));
        assert_eq!(reached(&links, std::slice::from_ref(&route), &own), BTreeMap::from([(link(7), true)]));
        assert_eq!(reached(&links, &[route], &of_a_later_link), BTreeMap::new());
    }
}
