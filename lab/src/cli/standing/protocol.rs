//! What the commands say to a standing world: one JSON line each way.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::knob::Knob;
use super::{EraseArgs, ServiceArgs};

/// What a command asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub(super) enum Ask {
    /// Answered when the world stands, and with what is in it.
    Status,
    /// Adds a pod through the plugin chain.
    PodAdd { node: String, namespace: String, name: String },
    /// Deletes it likewise.
    PodDel { node: String, namespace: String, name: String },
    /// Turns something while the world runs.
    Turn { knob: Knob },
    /// Erases something of a node's network, or ends that.
    Erase(EraseArgs),
    /// Adds a service on every node.
    Service(ServiceArgs),
    /// Where a command for `target` has to run.
    Locate { target: String },
    /// Ends the world.
    Down,
}

/// What the world answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// Text for people.
    Text { text: String },
    /// A place; descriptors of its namespaces come along, the network first, then perhaps the
    /// mounts.
    Location { name: String },
    /// What went wrong.
    Failed { error: String },
}

/// Where a world of this user listens, and keeps its log.
pub(super) fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(base) if PathBuf::from(&base).is_dir() => PathBuf::from(base).join("lab"),
        _ => std::env::temp_dir().join(format!("lab-{}", nix::unistd::getuid())),
    }
}

/// The socket in [`directory`].
pub(super) fn socket() -> PathBuf {
    directory().join("control.sock")
}

/// Connects to this user's world.
///
/// # Errors
/// None stands.
pub(super) fn connect() -> Result<UnixStream> {
    let path = socket();
    UnixStream::connect(&path)
        .with_context(|| format!("no world stands at {}; `lab up` makes one", path.display()))
}

/// Asks once.
///
/// # Errors
/// The world has gone, or says that it failed.
pub(super) fn ask(stream: &UnixStream, question: &Ask) -> Result<Answer> {
    say_to(stream, question)?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).context("read the world's answer")?;
    read_answer(&reply)
}

/// Sends a question.
pub(super) fn say_to(mut stream: &UnixStream, question: &Ask) -> Result<()> {
    let mut line = serde_json::to_string(question).context("write a question")?;
    line.push('\n');
    stream.write_all(line.as_bytes()).context("ask the world")
}

/// Reads an answer's line; a failure that it tells of is an error here too.
pub(super) fn read_answer(line: &str) -> Result<Answer> {
    if line.is_empty() {
        bail!("the world ended before it answered");
    }
    match serde_json::from_str(line).with_context(|| format!("read the world's answer {line:?}"))? {
        Answer::Failed { error } => bail!("{error}"),
        answer => Ok(answer),
    }
}
