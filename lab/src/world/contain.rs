//! A container for the whole world: namespaces that the kernel removes with their last process.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, raise, signal};
use nix::sys::wait::{WaitStatus, wait, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid};

/// Moves the rest of the program into fresh mount, process and network namespaces, and into a
/// user namespace where the caller is not root. Returns in a new process; the calling process
/// waits for it and ends as it ends.
///
/// Call it first in `main`, before any thread exists. Nothing that happens inside is left on
/// the host: `/run` is a tmpfs of its own, mounts do not propagate, and when the caller dies, by
/// whatever signal, the kernel kills every process inside and takes the namespaces down.
///
/// It forks instead of executing the program again: arguments, environment and open files stay,
/// and a socket that was opened before is still there inside.
///
/// # Errors
/// Threads exist already, or the kernel refuses the namespaces (the text says what to allow).
pub fn contain() -> Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").context("count threads in /proc/self/task")?.count();
    ensure!(threads == 1, "contain the lab: {threads} threads exist, expected only the first one");
    leave_the_host()?;
    // Two generations: the first is process 1 of the new process namespace and does nothing but
    // collect orphans, the second goes on with the program.
    match fork_once()? {
        ForkResult::Parent { child } => end_like(await_child(child)),
        ForkResult::Child => {
            die_with_parent()?;
            furnish()?;
        }
    }
    match fork_once()? {
        ForkResult::Parent { child } => end_like(collect_orphans_until(child)),
        ForkResult::Child => die_with_parent(),
    }
}

fn leave_the_host() -> Result<()> {
    let rooms = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        match unshare(rooms) {
            Ok(()) => return Ok(()),
            // Root of a container without CAP_SYS_ADMIN: a user namespace may still be allowed.
            Err(Errno::EPERM) => {}
            Err(error) => return Err(error).context("create mount, process and network namespaces"),
        }
    }
    unshare(rooms | CloneFlags::CLONE_NEWUSER).context(
        "create a user namespace; run as root, or allow them to ordinary users: \
         user.max_user_namespaces must be above 0 and, where they exist, \
         kernel.unprivileged_userns_clone 1 and kernel.apparmor_restrict_unprivileged_userns 0",
    )?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, &text).with_context(|| format!("write {text:?} to {path}"))?;
    }
    Ok(())
}

fn fork_once() -> Result<ForkResult> {
    // SAFETY: `contain` has seen that this is the only thread, so no lock can be held by a thread
    // that the child lacks.
    unsafe { fork() }.context("fork")
}

/// Has the kernel kill this process when its parent is gone.
fn die_with_parent() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("ask to die with the parent process")
}

/// Mounts what the world needs: nothing propagates out, `/run` is empty, `/proc` is of the new
/// process namespace.
fn furnish() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    // A container runtime that masks parts of /proc makes the kernel refuse a fresh one to a user
    // namespace. The old one still serves: /proc/self and /proc/sys follow the reader.
    let _ = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none);
    tmpfs("/run")?;
    for directory in ["/run/netns", "/run/lab", "/run/lock"] {
        std::fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    join_var_run()
}

/// Makes `/var/run` the same directory as `/run`, where the distribution has not linked them.
pub(crate) fn join_var_run() -> Result<()> {
    let var_run = Path::new("/var/run");
    if !var_run.is_symlink() && var_run.is_dir() {
        mount(Some("/run"), var_run, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("bind /run to /var/run")?;
    }
    Ok(())
}

/// Mounts an empty tmpfs.
pub(crate) fn tmpfs(at: &str) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .with_context(|| format!("mount a tmpfs on {at}"))
}

/// Mounts a tmpfs with room for so many bytes.
pub(crate) fn small_tmpfs(at: &str, bytes: u64) -> Result<()> {
    let data = format!("mode=755,size={bytes}");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID, Some(data.as_str()))
        .with_context(|| format!("mount a tmpfs of {bytes} bytes on {at}"))
}

/// Detaches a mount; content with there being none.
pub(crate) fn unmount(at: &Path) {
    let _ = umount2(at, MntFlags::MNT_DETACH);
}

fn await_child(child: Pid) -> WaitStatus {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Ok(status) => return status,
            Err(_) => return WaitStatus::Exited(child, 1),
        }
    }
}

fn collect_orphans_until(child: Pid) -> WaitStatus {
    loop {
        match wait() {
            Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) if pid == child => {
                return status;
            }
            Err(Errno::ECHILD) => return WaitStatus::Exited(child, 1),
            Ok(_) | Err(_) => {}
        }
    }
}

/// Ends this process as another one ended.
fn end_like(status: WaitStatus) -> ! {
    match status {
        WaitStatus::Exited(_, code) => std::process::exit(code),
        WaitStatus::Signaled(_, by, _) => {
            // SAFETY: the default action runs no code of ours.
            let _ = unsafe { signal(by, SigHandler::SigDfl) };
            let _ = raise(by);
            // Process 1 of a namespace is immune to its own signals.
            std::process::exit(128 + by as i32)
        }
        _ => std::process::exit(1),
    }
}

/// Refuses work outside of a contained process, where it would change the host.
pub(crate) fn insist_on_containment() -> Result<()> {
    if !Path::new("/run/lab").is_dir() {
        bail!("the lab is not contained: call lab::world::contain() first in main");
    }
    Ok(())
}
