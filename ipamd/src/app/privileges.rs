//! Giving up every privilege that the daemon does not need.

use anyhow::Context;
use caps::{CapSet, Capability, CapsHashSet};
use tracing::debug;

/// Keeps CAP_NET_ADMIN and CAP_NET_RAW, and of these what the process has; forbids gaining
/// others. To be called before there is a second thread: each has privileges of its own.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn drop_all_but_needed() -> anyhow::Result<()> {
    let needed: CapsHashSet = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW].into_iter().collect();
    let held = caps::read(None, CapSet::Permitted).context("read the process's capabilities")?;
    let kept: CapsHashSet = held.intersection(&needed).copied().collect();
    // The bounding set can only be lowered with a capability that an ordinary container lacks;
    // without it there is nothing in the set to lower for.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        for capability in caps::read(None, CapSet::Bounding).context("read the bounding set")? {
            if !needed.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).context("lower the bounding set")?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient).context("clear the ambient capabilities")?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())
        .context("clear the inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &kept).context("drop effective capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).context("drop permitted capabilities")?;
    nix::sys::prctl::set_no_new_privs().context("forbid new privileges")?;
    debug!(?kept, "privileges dropped");
    Ok(())
}

/// Drops CAP_NET_RAW from the calling thread, and from those that it starts from now on. Only
/// who takes over from the reference needs it, for the older front end of iptables.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn drop_net_raw() -> anyhow::Result<()> {
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::drop(None, set, Capability::CAP_NET_RAW).context("drop CAP_NET_RAW")?;
    }
    Ok(())
}
