//! Moments in the daemon's life that only its system calls show: how far the replacement of a
//! file has come, the answer to a plugin, a change of the node's network.
//!
//! Each is a judge for [`crate::trace::follow`]: it says when to kill.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::libc;
use nix::unistd::Pid;

use crate::trace::{Next, Side, SystemCall};

/// One of the daemon's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The state file.
    State,
    /// The second file, with cooldowns and ENI intents.
    Second,
}

/// How far the replacement of a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The temporary file is there and empty.
    Created,
    /// It is written, not synced.
    Written,
    /// It is synced, under its temporary name.
    Synced,
    /// It has taken the place of the old one; the directory is not synced.
    Moved,
    /// The directory is synced too.
    Durable,
}

/// What a daemon is about to do or has just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The `nth` replacement of a file from now on, from 1, has come so far.
    Replacing(Kept, Progress, usize),
    /// The first words to a plugin since a state file became durable.
    Answer(Side),
    /// The `nth` batch of changes of the node's network, from 1.
    NetworkChange(Side, usize),
}

/// Kills a process at a moment. One judge serves one [`crate::trace::follow`].
#[derive(Debug)]
pub struct Judge {
    pid: i32,
    moment: Moment,
    /// The file that each thread is replacing.
    replacing: BTreeMap<Pid, Kept>,
    /// How often each file's replacement has begun.
    begun: [usize; 2],
    is_durable: bool,
    /// The batch of changes that each thread is sending.
    sending: BTreeMap<Pid, usize>,
    changes: usize,
    /// The thread that is answering a plugin.
    answering: Option<Pid>,
}

impl Judge {
    /// A judge over the process `pid`.
    #[must_use]
    pub fn new(pid: i32, moment: Moment) -> Judge {
        Judge {
            pid,
            moment,
            replacing: BTreeMap::new(),
            begun: [0, 0],
            is_durable: false,
            sending: BTreeMap::new(),
            changes: 0,
            answering: None,
        }
    }

    /// Whether the moment has come.
    ///
    /// # Errors
    /// The process's memory cannot be read.
    pub fn judge(&mut self, side: Side, call: &SystemCall) -> Result<Next> {
        let is_it = match self.moment {
            Moment::Replacing(file, progress, nth) => {
                self.progress(side, call) == Some((file, progress)) && self.begun[file as usize] == nth
            }
            Moment::Answer(at) => {
                self.is_durable |= self.progress(side, call) == Some((Kept::State, Progress::Durable));
                self.is_durable && self.is_answer(side, call) && side == at
            }
            Moment::NetworkChange(at, nth) => self.change(side, call)? == Some(nth) && side == at,
        };
        Ok(if is_it { Next::Kill } else { Next::GoOn })
    }

    /// What this call says about the replacement of a file.
    fn progress(&mut self, side: Side, call: &SystemCall) -> Option<(Kept, Progress)> {
        let thread = call.thread;
        match (call.number, side) {
            (libc::SYS_write, Side::Before) => {
                let file = temporary(&self.link(call)?)?;
                self.begun[file as usize] += usize::from(self.replacing.insert(thread, file).is_none());
                Some((file, Progress::Created))
            }
            (libc::SYS_fsync, Side::Before) => {
                let link = self.link(call)?;
                match temporary(&link) {
                    Some(file) => Some((file, Progress::Written)),
                    None => Some((*self.replacing.get(&thread)?, Progress::Moved)),
                }
            }
            (number, Side::Before) if is_rename(number) => {
                Some((*self.replacing.get(&thread)?, Progress::Synced))
            }
            (libc::SYS_fsync, Side::After) if temporary(&self.link(call)?).is_none() => {
                Some((self.replacing.remove(&thread)?, Progress::Durable))
            }
            _ => None,
        }
    }

    fn is_answer(&mut self, side: Side, call: &SystemCall) -> bool {
        const SENDING: [i64; 4] = [libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_write, libc::SYS_writev];
        match side {
            Side::Before => {
                let is_it = SENDING.contains(&call.number) && self.is_socket_of("unix", call);
                if is_it {
                    self.answering = Some(call.thread);
                }
                is_it
            }
            Side::After => self.answering == Some(call.thread) && SENDING.contains(&call.number),
        }
    }

    /// Which batch of changes this call is, if it is one.
    fn change(&mut self, side: Side, call: &SystemCall) -> Result<Option<usize>> {
        if call.number != libc::SYS_sendto {
            return Ok(None);
        }
        if side == Side::After {
            return Ok(self.sending.remove(&call.thread));
        }
        if !self.is_socket_of("netlink", call) || !self.is_change(call)? {
            return Ok(None);
        }
        self.changes += 1;
        self.sending.insert(call.thread, self.changes);
        Ok(Some(self.changes))
    }

    /// Whether a netlink message is none of those that only ask.
    fn is_change(&self, call: &SystemCall) -> Result<bool> {
        /// Of every four kinds of message the third, RTM_GET…, asks.
        const ASKS: u16 = 2;
        let kind_at = call.arguments.get(1).context("a message without address")? + 4;
        let mut kind = [0; 2];
        let path = format!("/proc/{}/mem", self.pid);
        let memory = File::open(&path).with_context(|| format!("open {path}"))?;
        memory.read_exact_at(&mut kind, kind_at).with_context(|| format!("read {path} at {kind_at:#x}"))?;
        Ok(u16::from_ne_bytes(kind) % 4 != ASKS)
    }

    fn link(&self, call: &SystemCall) -> Option<String> {
        let descriptor = call.arguments.first()?;
        let link = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.pid)).ok()?;
        Some(link.to_string_lossy().into_owned())
    }

    /// Whether a call's first argument is a socket of this family, `unix` or `netlink`.
    fn is_socket_of(&self, family: &str, call: &SystemCall) -> bool {
        let link = self.link(call).unwrap_or_default();
        let Some(inode) = link.strip_prefix("socket:[").and_then(|it| it.strip_suffix(']')) else {
            return false;
        };
        let table = std::fs::read_to_string(format!("/proc/{}/net/{family}", self.pid)).unwrap_or_default();
        table.lines().any(|line| line.split_whitespace().any(|word| word == inode))
    }
}

fn is_rename(number: i64) -> bool {
    // Newer architectures lack the oldest of them.
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_rename {
        return true;
    }
    [libc::SYS_renameat, libc::SYS_renameat2].contains(&number)
}

/// The file that is being replaced when a descriptor has this name.
fn temporary(name: &str) -> Option<Kept> {
    let file = name.rsplit('/').next()?;
    match file.split_once(".tmp")?.0 {
        "ipam.json" => Some(Kept::State),
        "vpc-cni.json" => Some(Kept::Second),
        _ => None,
    }
}
