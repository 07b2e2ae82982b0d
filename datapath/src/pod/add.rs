//! Building a pod's network.

use std::io;
use std::os::fd::AsFd;

use tracing::warn;
use vpc::{Family, Mac};

use super::{PodError, plan};
use crate::kernel::{
    ContainerQueue, KernelError, LinkRef, Netlink, Netns, Outcome, Step, VethPair, get_link, inside,
    parse_link, random_mac, single, sysctl,
};
use crate::wanted::{PodInterface, PodNetwork};

/// How many rules an address may have been left with; more is somebody's mistake of another kind.
const MAX_LEFTOVER_RULES: usize = 1000;

/// Builds a pod's network: veth pairs, addresses, routes, neighbours and the host's rules.
///
/// Three exchanges with the kernel per interface: the pair, the pod's side, the host's side.
///
/// # Errors
/// [`PodError`] with the first failure, once all steps done have been undone.
pub fn add(wanted: &PodNetwork, host: &Netns, pod: &Netns) -> Result<(), PodError> {
    let mut wiring = Wiring {
        in_pod: Netlink::open_in(pod).map_err(PodError::PodSide)?,
        on_host: Netlink::open_in(host).map_err(PodError::HostSide)?,
        host,
        pod,
        undo: Vec::new(),
    };
    for interface in &wanted.interfaces {
        if let Err(error) = wiring.add(interface) {
            wiring.undo();
            return Err(error);
        }
    }
    Ok(())
}

/// The two sides of a pod, and the way back.
struct Wiring<'a> {
    in_pod: Netlink,
    on_host: Netlink,
    host: &'a Netns,
    pod: &'a Netns,
    /// What takes back the steps done, in their order.
    undo: Vec<(Side, Step)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Pod,
    Host,
}

/// Both ends of a pair that is there.
struct Ends {
    in_pod: LinkRef,
    on_host: LinkRef,
    host_mac: Mac,
}

impl Wiring<'_> {
    fn add(&mut self, interface: &PodInterface) -> Result<(), PodError> {
        let ends = self.add_pair(interface)?;
        if Family::of(interface.address) == Family::V6 {
            self.enable_ipv6(&interface.container_interface)?;
        }
        let steps = plan::steps_in_pod(interface, &ends.in_pod, ends.host_mac);
        self.apply(Side::Pod, &steps)?;
        self.harden(&interface.host_veth, Family::of(interface.address))?;
        self.add_on_host(interface, &ends.on_host)
    }

    fn add_pair(&mut self, interface: &PodInterface) -> Result<Ends, PodError> {
        match self.try_pair(interface) {
            Err(PairError::HostNameTaken) => {
                self.remove_stale_link(interface)?;
                self.try_pair(interface)
            }
            outcome => outcome,
        }
        .map_err(|error| match error {
            PairError::HostNameTaken => PodError::Pair(KernelError::new(
                format!("create link {}", interface.host_veth),
                io::Error::from_raw_os_error(libc::EEXIST),
            )),
            PairError::Other(error) => error,
        })
    }

    /// Makes the pair and learns the numbers of both ends, in one exchange.
    fn try_pair(&mut self, interface: &PodInterface) -> Result<Ends, PairError> {
        let pair = VethPair {
            container: interface.container_interface.clone(),
            host: interface.host_veth.clone(),
            host_mac: random_mac(),
            mtu: interface.mtu,
            container_queue: ContainerQueue::None,
        };
        let action = || format!("create veth {} with peer {}", pair.container, pair.host);
        let failed = |cause: io::Error| PairError::Other(PodError::Pair(KernelError::new(action(), cause)));
        let mut answers = self
            .in_pod
            .exchange(&[pair.request(self.host.as_fd()), get_link(&pair.container)])
            .map_err(failed)?
            .into_iter();
        let created = answers.next().unwrap_or_default();
        let looked_up = answers.next().unwrap_or_default();
        match created.errno {
            0 => {}
            libc::EEXIST if looked_up.errno == 0 => {
                return Err(PairError::Other(PodError::InterfaceExists { interface: pair.container }));
            }
            libc::EEXIST => return Err(PairError::HostNameTaken),
            errno => {
                return Err(PairError::Other(PodError::Pair(KernelError {
                    action: action(),
                    cause: io::Error::from_raw_os_error(errno),
                    explanation: created.explanation,
                })));
            }
        }
        self.undo.push((Side::Pod, Step::DeleteLink(pair.container.clone())));
        let link = looked_up.messages.first().and_then(|message| parse_link(message));
        let (Some(link), true) = (link, looked_up.errno == 0) else {
            return Err(failed(io::Error::from_raw_os_error(looked_up.errno)));
        };
        let Some(host_index) = link.peer else {
            return Err(failed(io::Error::from_raw_os_error(libc::ENODEV)));
        };
        Ok(Ends {
            in_pod: link.reference(),
            on_host: LinkRef { index: host_index, name: pair.host },
            host_mac: pair.host_mac,
        })
    }

    /// Removes the link that an earlier sandbox of the pod left to the end of its namespace.
    ///
    /// Two pods can have links of one name: pod `web.1`, and the second interface of pod `web`.
    /// So a link by which another address is reached belongs to a pod that runs, and stays.
    fn remove_stale_link(&mut self, interface: &PodInterface) -> Result<(), PodError> {
        let links = self.on_host.links().map_err(PodError::Observe)?;
        for family in [Family::V4, Family::V6] {
            for route in self.on_host.routes(family, None, &links).map_err(PodError::Observe)? {
                let other = single(route.destination).filter(|address| *address != interface.address);
                let is_through_it = route.link.as_ref().is_some_and(|link| link.name == interface.host_veth);
                if let (Some(address), true) = (other, is_through_it && !is_link_local(&route.destination)) {
                    return Err(PodError::HostLinkInUse { link: interface.host_veth.clone(), address });
                }
            }
        }
        self.on_host
            .apply_one(&Step::DeleteLink(interface.host_veth.clone()))
            .map(drop)
            .map_err(PodError::HostSide)
    }

    /// A container runtime may have turned IPv6 off in the pod's namespace.
    fn enable_ipv6(&self, link: &str) -> Result<(), PodError> {
        inside(self.pod, || {
            for link in [link, "lo"] {
                sysctl::set(&format!("net/ipv6/conf/{link}/disable_ipv6"), "0")?;
            }
            Ok(())
        })?
        .map_err(PodError::PodSide)
    }

    /// Keeps a pod from giving the host routes; done before the link is up.
    ///
    /// The host asks for an IPv6 pod from its end's link-local address. Until the kernel has made
    /// sure that nobody else has that address, which takes a second or two, it cannot ask, and the
    /// pod would be deaf. On a link between two nobody else can have it.
    fn harden(&self, link: &str, family: Family) -> Result<(), PodError> {
        let duplicates = (family == Family::V6).then_some("accept_dad");
        let set = || {
            for setting in ["accept_ra", "accept_redirects", "forwarding"].into_iter().chain(duplicates) {
                sysctl::set(&format!("net/ipv6/conf/{link}/{setting}"), "0")?;
            }
            Ok(())
        };
        let outcome = if Netns::current()?.is_same(self.host)? { set() } else { inside(self.host, set)? };
        outcome.map_err(PodError::HostSide)
    }

    fn add_on_host(&mut self, interface: &PodInterface, link: &LinkRef) -> Result<(), PodError> {
        let steps = plan::steps_on_host(interface, link);
        let outcomes = self.apply(Side::Host, &steps)?;
        let had_leftovers = steps
            .iter()
            .zip(&outcomes)
            .any(|(step, is_done)| matches!(step, Step::DeleteRule(_)) && *is_done);
        if had_leftovers {
            // One deletion removes one rule. The rules just made go with the rest and are made
            // again; no packet of the pod is under way yet.
            for step in plan::leftover_rules(interface) {
                for _ in 0..MAX_LEFTOVER_RULES {
                    if !self.on_host.apply_one(&step).map_err(PodError::HostSide)? {
                        break;
                    }
                }
            }
            let rules: Vec<Step> = plan::pod_rules(interface).into_iter().map(Step::AddRule).collect();
            self.apply(Side::Host, &rules)?;
        }
        Ok(())
    }

    /// Applies `steps` and notes how to take back those that were done; says which were.
    fn apply(&mut self, side: Side, steps: &[Step]) -> Result<Vec<bool>, PodError> {
        let wrap = match side {
            Side::Pod => PodError::PodSide,
            Side::Host => PodError::HostSide,
        };
        let netlink = match side {
            Side::Pod => &mut self.in_pod,
            Side::Host => &mut self.on_host,
        };
        let mut done = Vec::with_capacity(steps.len());
        let mut first_error = None;
        for (step, outcome) in steps.iter().zip(netlink.apply(steps).map_err(wrap)?) {
            done.push(matches!(outcome, Outcome::Done));
            match outcome {
                // What lies in the pod goes with its link, except for rules.
                Outcome::Done if side == Side::Host || matches!(step, Step::AddRule(_)) => {
                    self.undo.extend(step.undo().map(|undo| (side, undo)));
                }
                Outcome::Failed(error) => {
                    first_error.get_or_insert(error);
                }
                Outcome::Done | Outcome::Satisfied => {}
            }
        }
        first_error.map_or(Ok(done), |error| Err(wrap(error)))
    }

    fn undo(&mut self) {
        while let Some((side, step)) = self.undo.pop() {
            let netlink = match side {
                Side::Pod => &mut self.in_pod,
                Side::Host => &mut self.on_host,
            };
            if let Err(error) = netlink.apply_one(&step) {
                warn!(%error, "cannot take back a step of a failed ADD");
            }
        }
    }
}

/// Why a pair is not there.
enum PairError {
    /// The host has a link of that name.
    HostNameTaken,
    /// Something that removing that link would not help.
    Other(PodError),
}

/// Blocks that every link has of itself.
fn is_link_local(block: &ipnet::IpNet) -> bool {
    match block {
        ipnet::IpNet::V4(block) => block.addr().is_link_local(),
        ipnet::IpNet::V6(block) => block.addr().is_unicast_link_local() || block.addr().is_multicast(),
    }
}
