//! Following a process from system call to system call, to end it at a chosen one.
//!
//! The shipped programs have no hooks for this: the kernel's tracer stops them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::world::PluginCall;
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::task::JoinHandle;

/// How long to leave a process alone that has not stopped yet.
const PAUSE: Duration = Duration::from_micros(100);

/// On which side of a system call a thread has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Nothing is done yet.
    Before,
    /// It is done; the thread does not know yet.
    After,
}

/// A system call with its arguments as they were at its entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemCall {
    /// The calling thread.
    pub thread: Pid,
    /// One of `libc::SYS_…`.
    pub number: i64,
    /// What it was called with; pointers are of the traced process.
    pub arguments: Vec<u64>,
}

/// What to do with a process that has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Let it go on.
    GoOn,
    /// Leave the thread where it stands, and judge again soon; the others go on.
    Hold,
    /// Kill it where it stands.
    Kill,
}

/// How a followed process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// We killed it.
    Killed,
    /// It ended by itself.
    ByItself(WaitStatus),
}

/// Follows all threads of a running process until `judge` wants it killed or it ends.
///
/// `ready` runs once the process stands still for the first time. The whole work is done by a
/// thread of its own, since the kernel ties a tracee to a thread.
///
/// # Errors
/// The kernel refuses to trace it, or `judge` fails; the process is killed then too.
pub async fn follow(
    pid: i32,
    ready: impl FnOnce() -> Result<()> + Send + 'static,
    judge: impl FnMut(Side, &SystemCall) -> Result<Next> + Send + 'static,
) -> Result<End> {
    let leader = Pid::from_raw(pid);
    let (done, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let outcome = Tracees::seize(leader).and_then(|mut tracees| {
            ready()?;
            tracees.run(judge)
        });
        if outcome.is_err() {
            let _ = kill(leader, Signal::SIGKILL);
        }
        let _ = done.send(outcome);
    });
    end.await.context("the tracing thread ended early")?
}

/// Begins to follow a running process; returns once nothing that it does is missed any more.
///
/// # Errors
/// The kernel refuses to trace it.
pub async fn begin_to_follow(
    pid: i32,
    judge: impl FnMut(Side, &SystemCall) -> Result<Next> + Send + 'static,
) -> Result<JoinHandle<Result<End>>> {
    let (ready, is_traced) = tokio::sync::oneshot::channel();
    let say = move || {
        let _ = ready.send(());
        Ok(())
    };
    let end = tokio::spawn(follow(pid, say, judge));
    is_traced.await.context("the process is not traced")?;
    Ok(end)
}

/// The threads of one process, each with the system call that it is in.
struct Tracees {
    leader: Pid,
    threads: BTreeMap<Pid, Option<SystemCall>>,
    /// Threads that are left where they stand.
    held: Vec<(Pid, Side, SystemCall)>,
}

impl Tracees {
    /// Stops every thread that there is.
    fn seize(leader: Pid) -> Result<Tracees> {
        let options =
            Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
        let mut threads = BTreeMap::new();
        loop {
            let new: Vec<_> = tasks(leader)?.into_iter().filter(|it| !threads.contains_key(it)).collect();
            if new.is_empty() {
                break;
            }
            for thread in new {
                match ptrace::seize(thread, options) {
                    // A thread that its creator's tracing brought along already.
                    Ok(()) | Err(Errno::EPERM) => {}
                    Err(Errno::ESRCH) => continue,
                    Err(error) => return Err(error).with_context(|| format!("trace thread {thread}")),
                }
                ptrace::interrupt(thread).ok();
                threads.insert(thread, None);
            }
        }
        let mut tracees = Tracees { leader, threads, held: Vec::new() };
        tracees.await_leader_stop()?;
        Ok(tracees)
    }

    /// The first stop of the leader; the others are met on the way.
    fn await_leader_stop(&mut self) -> Result<()> {
        match waitpid(self.leader, Some(WaitPidFlag::__WALL)).context("wait for the traced process")? {
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => Ok(()),
            other => bail!("the process ended before it could be traced: {other:?}"),
        }
    }

    fn run(&mut self, mut judge: impl FnMut(Side, &SystemCall) -> Result<Next>) -> Result<End> {
        self.resume(self.leader, None);
        loop {
            let mut has_moved = false;
            for (thread, side, call) in std::mem::take(&mut self.held) {
                match judge(side, &call)? {
                    Next::GoOn => self.resume(thread, None),
                    Next::Hold => self.held.push((thread, side, call)),
                    Next::Kill => return self.kill(),
                }
            }
            for thread in self.threads.keys().copied().collect::<Vec<_>>() {
                let status = match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => continue,
                    Ok(status) => status,
                    Err(Errno::ECHILD) => {
                        self.threads.remove(&thread);
                        continue;
                    }
                    Err(error) => return Err(error).context("wait for a traced thread"),
                };
                has_moved = true;
                match status {
                    WaitStatus::PtraceSyscall(_) => {
                        let Some((side, call)) = self.system_call(thread)? else {
                            self.resume(thread, None);
                            continue;
                        };
                        match judge(side, &call)? {
                            Next::GoOn => self.resume(thread, None),
                            Next::Hold => self.held.push((thread, side, call)),
                            Next::Kill => return self.kill(),
                        }
                    }
                    WaitStatus::PtraceEvent(_, _, event) => {
                        if event == libc::PTRACE_EVENT_CLONE {
                            let new = ptrace::getevent(thread).context("ask for the new thread")?;
                            let new = Pid::from_raw(i32::try_from(new).context("a thread id")?);
                            self.threads.entry(new).or_insert(None);
                        }
                        self.resume(thread, None);
                    }
                    WaitStatus::Stopped(_, signal) => self.resume(thread, Some(signal)),
                    status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                        if thread == self.leader {
                            return Ok(End::ByItself(status));
                        }
                        self.threads.remove(&thread);
                    }
                    WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
                }
            }
            ensure!(!self.threads.is_empty(), "all traced threads are gone");
            if !has_moved {
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn kill(&self) -> Result<End> {
        kill(self.leader, Signal::SIGKILL).context("kill the traced process")?;
        Ok(End::Killed)
    }

    /// The system call that a thread has stopped at.
    fn system_call(&mut self, thread: Pid) -> Result<Option<(Side, SystemCall)>> {
        let info = ptrace::syscall_info(thread).context("ask for the system call")?;
        if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            let call = read_call(self.leader, thread)?;
            self.threads.insert(thread, Some(call.clone()));
            return Ok(Some((Side::Before, call)));
        }
        // Nothing is known of the end of a call that was under way when tracing began.
        let call = self.threads.get_mut(&thread).and_then(Option::take);
        Ok(call.map(|call| (Side::After, call)))
    }

    fn resume(&self, thread: Pid, signal: Option<Signal>) {
        // A thread that is gone by now is noticed by the next wait.
        let _ = ptrace::syscall(thread, signal);
    }
}

fn tasks(leader: Pid) -> Result<Vec<Pid>> {
    let path = format!("/proc/{leader}/task");
    let entries = std::fs::read_dir(&path).with_context(|| format!("list {path}"))?;
    let ids = entries.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.map(Pid::from_raw).collect())
}

/// The call that a stopped thread is entering, as the kernel prints it.
fn read_call(leader: Pid, thread: Pid) -> Result<SystemCall> {
    let path = format!("/proc/{leader}/task/{thread}/syscall");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mut words = text.split_whitespace();
    let number = words.next().and_then(|it| it.parse().ok());
    let number = number.with_context(|| format!("find a system call in {path}: {text:?}"))?;
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    Ok(SystemCall { thread, number, arguments: words.take(6).filter_map(hex).collect() })
}

/// Whom a plugin sends messages to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The kernel, over netlink.
    Kernel,
    /// The node's daemons, over unix sockets.
    Daemon,
}

impl Peer {
    fn family(self) -> u64 {
        let family = match self {
            Peer::Kernel => libc::AF_NETLINK,
            Peer::Daemon => libc::AF_UNIX,
        };
        u64::try_from(family).unwrap_or_default()
    }
}

/// What became of a plugin that was to be killed.
#[derive(Debug)]
pub enum Fate {
    /// It was killed at that message.
    Killed,
    /// It ended before, having sent so many.
    Ended {
        /// How many messages it sent to that peer.
        messages: usize,
        /// Whether it reported success.
        is_success: bool,
        /// What it printed.
        stdout: String,
    },
}

/// Runs a plugin and kills it at its `nth` message (from 1) to `peer`: before the kernel has taken
/// it, or after it has, and before the plugin knows.
///
/// One message is one system call, however many requests it carries: the kernel works through all
/// of them before it looks at signals.
///
/// # Errors
/// It cannot be started or traced.
pub async fn kill_at_message(call: PluginCall, peer: Peer, nth: usize, side: Side) -> Result<Fate> {
    let PluginCall { mut command, input, .. } = call;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("start the plugin")?;
    let pid = i32::try_from(child.id()).context("a process id")?;
    let mut stdin = child.stdin.take().context("the plugin's input")?;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = sent.clone();
    let mut sockets = Sockets { pid, family: peer.family(), known: BTreeSet::new(), before: BTreeSet::new() };
    let judge = move |at: Side, call: &SystemCall| {
        sockets.learn(at, call)?;
        if !sockets.is_message(call)? {
            return Ok(Next::GoOn);
        }
        if at == Side::Before {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        let is_it = counter.load(std::sync::atomic::Ordering::Relaxed) == nth && at == side;
        Ok(if is_it { Next::Kill } else { Next::GoOn })
    };
    // The plugin reads its input before it does anything, so it cannot run ahead of us.
    let feed = move || stdin.write_all(&input).context("feed the plugin");
    let end = follow(pid, feed, judge).await?;
    let mut stdout = String::new();
    let mut printed = child.stdout.take().context("the plugin's output")?;
    match end {
        End::Killed => {
            let status =
                tokio::task::spawn_blocking(move || child.wait()).await?.context("wait for the plugin")?;
            ensure!(status.signal() == Some(libc::SIGKILL), "the plugin was to be killed: {status}");
            Ok(Fate::Killed)
        }
        End::ByItself(status) => {
            printed.read_to_string(&mut stdout).context("read what the plugin printed")?;
            let is_success = matches!(status, WaitStatus::Exited(_, 0));
            let messages = sent.load(std::sync::atomic::Ordering::Relaxed);
            Ok(Fate::Ended { messages, is_success, stdout })
        }
    }
}

/// The sockets of one family that a process has opened under our eyes.
struct Sockets {
    pid: i32,
    family: u64,
    /// By descriptor and inode, since numbers are used again.
    known: BTreeSet<(u64, String)>,
    before: BTreeSet<(u64, String)>,
}

impl Sockets {
    fn learn(&mut self, at: Side, call: &SystemCall) -> Result<()> {
        if call.number != libc::SYS_socket || call.arguments.first() != Some(&self.family) {
            return Ok(());
        }
        let open = self.open()?;
        match at {
            Side::Before => self.before = open,
            Side::After => self.known.extend(open.difference(&self.before).cloned()),
        }
        Ok(())
    }

    fn is_message(&self, call: &SystemCall) -> Result<bool> {
        const SENDING: [i64; 5] =
            [libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_write, libc::SYS_writev];
        let Some(descriptor) = call.arguments.first().filter(|_| SENDING.contains(&call.number)) else {
            return Ok(false);
        };
        let link = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.pid));
        let Ok(link) = link else { return Ok(false) };
        Ok(self.known.contains(&(*descriptor, link.to_string_lossy().into_owned())))
    }

    fn open(&self) -> Result<BTreeSet<(u64, String)>> {
        let path = format!("/proc/{}/fd", self.pid);
        let entries = std::fs::read_dir(&path).with_context(|| format!("list {path}"))?;
        let socket = |entry: std::fs::DirEntry| {
            let descriptor = entry.file_name().to_str()?.parse().ok()?;
            let link = std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            link.starts_with("socket:").then_some((descriptor, link))
        };
        Ok(entries.filter_map(|it| socket(it.ok()?)).collect())
    }
}
