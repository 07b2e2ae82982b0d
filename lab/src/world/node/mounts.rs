//! What a node's processes see of the file system: the host's, with directories of their own
//! where a CNI lives.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::world::contain::{join_var_run, tmpfs};
use crate::world::place::{Place, on_own_thread};

/// Directories that exist in a fresh node, as on a host that kubelet has been installed on.
const OWN: [&str; 7] = [
    "/run/netns",
    "/run/lock",
    "/run/aws-node",
    "/run/cni",
    "/opt/cni/bin",
    "/etc/cni/net.d",
    "/var/log/aws-routed-eni",
];

/// A node's mount namespace and a handle on its root directory.
#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) namespace: OwnedFd,
    pub(crate) root: OwnedFd,
}

/// Makes a mount namespace with its own `/run`, `/opt`, `/etc/cni` and `/var/log`. Nothing in
/// it reaches the host's directories; what they held stays readable below `/opt` and `/etc`.
pub(crate) fn furnish(network: &Place) -> Result<Mounts> {
    let network = network.clone();
    on_own_thread(move || -> Result<Mounts> {
        nix::sched::setns(network.net(), CloneFlags::CLONE_NEWNET).context("join the node's network")?;
        unshare(CloneFlags::CLONE_NEWNS).context("create a mount namespace")?;
        tmpfs("/run")?;
        join_var_run()?;
        for directory in ["/etc", "/opt"] {
            let names = names_in(directory)?;
            let behind = PathBuf::from(format!("/run/.host{directory}"));
            cover_with_links(Path::new(directory), &behind, &names)?;
        }
        tmpfs("/var/log")?;
        // Where the kernel allows it, /sys/class/net lists the node's links and not the host's.
        let none = None::<&str>;
        let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none);
        for directory in OWN {
            fs::create_dir_all(directory).with_context(|| format!("create {directory} in the node"))?;
        }
        let namespace = File::open("/proc/thread-self/ns/mnt").context("open the node's mount namespace")?;
        let root = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open("/")
            .context("open the node's root directory")?;
        Ok(Mounts { namespace: namespace.into(), root: root.into() })
    })?
}

/// Names of a directory's entries except `cni`, which a node has for itself.
fn names_in(directory: &str) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {directory}"))?;
    let names: Result<Vec<_>, _> = entries.map(|entry| entry.map(|it| it.file_name())).collect();
    Ok(names?.into_iter().filter(|name| name != "cni").collect())
}

/// Puts a tmpfs over `directory` in which each old entry is a link to where it went. An overlay
/// would do the same, but is not allowed in every user namespace.
fn cover_with_links(directory: &Path, behind: &Path, names: &[std::ffi::OsString]) -> Result<()> {
    let none = None::<&str>;
    let shown = directory.display();
    fs::create_dir_all(behind).with_context(|| format!("create {}", behind.display()))?;
    mount(Some(directory), behind, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .with_context(|| format!("bind {shown} to {}", behind.display()))?;
    tmpfs(&directory.to_string_lossy())?;
    for name in names {
        symlink(behind.join(name), directory.join(name))
            .with_context(|| format!("link {} in the node", directory.join(name).display()))?;
    }
    Ok(())
}
