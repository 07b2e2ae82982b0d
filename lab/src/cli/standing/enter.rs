//! Running a command of the terminal inside of a standing world.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg};

use super::protocol::{Answer, Ask, connect, read_answer, say_to};

/// Joins the world and runs `words` at `target`; ends as they end.
///
/// The process must have no other thread yet.
pub(super) fn exec(target: &str, words: &[String]) -> Result<ExitCode> {
    let stream = connect()?;
    let mut rooms = locate(&stream, target)?.into_iter();
    let net = rooms.next().context("the world sent no network namespace")?;
    join_world(&stream)?;
    if let Some(mnt) = rooms.next() {
        setns(&mnt, CloneFlags::CLONE_NEWNS).with_context(|| format!("join the mounts of {target}"))?;
    }
    setns(&net, CloneFlags::CLONE_NEWNET).with_context(|| format!("join the network of {target}"))?;
    let (program, arguments) = words.split_first().context("no command given")?;
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("start {program} at {target}"))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Joins the namespaces that all of the world shares, found by the process that listens.
fn join_world(stream: &UnixStream) -> Result<()> {
    let peer = getsockopt(&stream.as_fd(), PeerCredentials).context("ask who serves the world")?.pid();
    let path = |kind: &str| format!("/proc/{peer}/ns/{kind}");
    // All are opened before any is joined: the names are those of this side.
    let user = File::open(path("user")).context("open the world's user namespace")?;
    let rooms = [("pid_for_children", CloneFlags::CLONE_NEWPID), ("mnt", CloneFlags::CLONE_NEWNS)]
        .map(|(kind, flag)| (kind, File::open(path(kind)), flag));
    let own = std::fs::metadata("/proc/self/ns/user").context("look at the own user namespace")?;
    let theirs = user.metadata().context("look at the world's user namespace")?;
    if (own.dev(), own.ino()) != (theirs.dev(), theirs.ino()) {
        setns(&user, CloneFlags::CLONE_NEWUSER).context("join the world's user namespace")?;
    }
    for (kind, file, flag) in rooms {
        let file = file.with_context(|| format!("open {}", path(kind)))?;
        setns(&file, flag).with_context(|| format!("join the world's {kind} namespace"))?;
    }
    Ok(())
}

/// Asks where `target` is; gives descriptors of its namespaces.
fn locate(stream: &UnixStream, target: &str) -> Result<Vec<OwnedFd>> {
    say_to(stream, &Ask::Locate { target: target.to_owned() })?;
    let mut buffer = [0; 4096];
    let mut room = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags)
        .context("receive the world's answer")?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs().context("read the descriptors that came along")? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel has just made these descriptors for this process, and nothing
            // else knows their numbers.
            descriptors.extend(received.into_iter().map(|it| unsafe { OwnedFd::from_raw_fd(it) }));
        }
    }
    let length = message.bytes;
    let Answer::Location { .. } = read_answer(&String::from_utf8_lossy(&buffer[..length]))? else {
        bail!("the world answered something else than a location");
    };
    Ok(descriptors)
}
