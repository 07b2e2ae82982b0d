//! Building a pod's egress.

use std::io;
use std::os::fd::AsFd;

use tracing::warn;
use vpc::Mac;

use super::{EgressEnds, EgressError, EgressNetwork, plan};
use crate::kernel::{
    ContainerQueue, KernelError, Link, LinkRef, Netlink, Netns, Outcome, Step, VethPair, get_link, inside,
    parse_link, random_bits, random_mac, sysctl,
};

/// How many names are tried for the host's end; one in four thousand million is taken by chance.
const NAME_ATTEMPTS: usize = 10;

/// Builds a pod's egress: the veth pair, addresses, routes and settings of both sides.
///
/// # Errors
/// [`EgressError`] with the first failure, once all steps done have been undone.
pub fn add(wanted: &EgressNetwork, host: &Netns, pod: &Netns) -> Result<EgressEnds, EgressError> {
    let mut in_pod = Netlink::open_in(pod).map_err(EgressError::PodSide)?;
    let mut on_host = Netlink::open_in(host).map_err(EgressError::HostSide)?;
    let pair = add_pair(&mut in_pod, wanted, host)?;
    let mut changed = Settings::default();
    let outcome = within(pod, || changed.set(&plan::settings_in_pod(wanted)))
        .and_then(|done| done.map_err(EgressError::PodSide))
        .and_then(|()| {
            apply(&mut in_pod, &plan::steps_in_pod(wanted, &pair.in_pod, pair.ends.host_mac))
                .map_err(EgressError::PodSide)
        })
        .and_then(|()| {
            let settings = plan::settings_on_host(wanted, &pair.on_host.name);
            within(host, || settings.iter().try_for_each(|(name, value)| sysctl::set(name, value)))?
                .map_err(EgressError::HostSide)
        })
        .and_then(|()| {
            apply(&mut on_host, &plan::steps_on_host(wanted, &pair.on_host, pair.ends.host_mac))
                .map_err(EgressError::HostSide)
        });
    if let Err(error) = outcome {
        // Addresses and routes of both sides go with the links.
        if let Err(error) = in_pod.apply_one(&Step::DeleteLink(wanted.interface().to_owned())) {
            warn!(%error, "cannot take back a link of a failed ADD");
        }
        if let Err(error) = within(pod, || changed.undo()) {
            warn!(%error, "cannot take back settings of a failed ADD");
        }
        return Err(error);
    }
    Ok(pair.ends)
}

/// A pair that is there.
struct Pair {
    in_pod: LinkRef,
    on_host: LinkRef,
    ends: EgressEnds,
}

fn add_pair(in_pod: &mut Netlink, wanted: &EgressNetwork, host: &Netns) -> Result<Pair, EgressError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let pair = VethPair {
            container: wanted.interface().to_owned(),
            host: format!("veth{:08x}", random_bits() >> 32),
            host_mac: random_mac(),
            mtu: wanted.mtu,
            container_queue: ContainerQueue::KernelDefault,
        };
        let action = || format!("create veth {} with peer {}", pair.container, pair.host);
        let failed =
            |errno: i32| EgressError::Pair(KernelError::new(action(), io::Error::from_raw_os_error(errno)));
        let requests = [pair.request(host.as_fd()), get_link(&pair.container)];
        let answers = in_pod
            .exchange(&requests)
            .map_err(|cause| EgressError::Pair(KernelError::new(action(), cause)))?;
        let [created, looked_up] = answers.as_slice() else { return Err(failed(libc::EPROTO)) };
        match created.errno {
            0 => {}
            libc::EEXIST if looked_up.errno == 0 => {
                return Err(EgressError::InterfaceExists { container: pair.container, host: pair.host });
            }
            libc::EEXIST if attempts < NAME_ATTEMPTS => continue,
            errno => {
                let explanation = created.explanation.clone();
                let cause = io::Error::from_raw_os_error(errno);
                return Err(EgressError::Pair(KernelError { action: action(), cause, explanation }));
            }
        }
        let link = looked_up.messages.first().and_then(|message| parse_link(message));
        return match link.as_ref().and_then(numbers) {
            Some((container, host_index, container_mac)) => Ok(Pair {
                in_pod: container,
                on_host: LinkRef { index: host_index, name: pair.host.clone() },
                ends: EgressEnds {
                    host_veth: pair.host,
                    host_mac: pair.host_mac,
                    container_interface: wanted.interface(),
                    container_mac,
                },
            }),
            None => {
                // It was made and is gone, or is not what it was a moment ago.
                let _ = in_pod.apply_one(&Step::DeleteLink(pair.container.clone()));
                Err(failed(libc::ENODEV))
            }
        };
    }
}

/// What is needed of the pod's end: itself, the other end's number, its link-layer address.
fn numbers(link: &Link) -> Option<(LinkRef, u32, Mac)> {
    Some((link.reference(), link.peer?, link.mac?))
}

/// Makes all of `steps`, or gives the first error.
fn apply(netlink: &mut Netlink, steps: &[Step]) -> Result<(), KernelError> {
    let outcomes = netlink.apply(steps)?;
    let failed = |outcome| if let Outcome::Failed(error) = outcome { Some(error) } else { None };
    outcomes.into_iter().find_map(failed).map_or(Ok(()), Err)
}

/// Runs `work` in `netns`, on this thread if it is there already.
fn within<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> Result<T, EgressError> {
    if Netns::current()?.is_same(netns)? { Ok(work()) } else { Ok(inside(netns, work)?) }
}

/// Settings that were changed, and what they were.
#[derive(Debug, Default)]
struct Settings(Vec<(String, String)>);

impl Settings {
    fn set(&mut self, wanted: &[(String, &'static str)]) -> Result<(), KernelError> {
        for (name, value) in wanted {
            let before = sysctl::read(name);
            sysctl::set(name, value)?;
            self.0.extend(before.ok().map(|before| (name.clone(), before)));
        }
        Ok(())
    }

    /// Gives each setting its old value; those of links that are gone are gone.
    fn undo(&mut self) {
        while let Some((name, before)) = self.0.pop() {
            if let Err(error) = sysctl::set(&name, &before) {
                warn!(%error, "cannot take back a setting of a failed ADD");
            }
        }
    }
}
