//! A world that stands until it is told to go, for people who want to look around.

mod enter;
mod knob;
mod protocol;
mod server;

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub(crate) use self::knob::Knob;
use self::protocol::{Answer, Ask, ask, connect, directory, socket};

/// What stands.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UpOptions {
    /// How many nodes, in two zones by turns.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: u8,
    /// Instance type of every node.
    #[arg(long, default_value = "m5.large")]
    instance_type: String,
    /// Seed of EC2's ids and addresses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where `ipamd` and `aws-cni` are; else LAB_BIN_DIR, else beside this program.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Nodes without daemon and plugin, to start them by hand.
    #[arg(long)]
    bare: bool,
    /// Stay in the foreground.
    #[arg(long)]
    foreground: bool,
}

/// Pods of a standing world.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum PodVerb {
    /// Adds a pod through the plugin chain.
    Add(PodArgs),
    /// Deletes it through the plugin chain.
    Del(PodArgs),
}

/// Which pod.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PodArgs {
    /// Node, e.g. `node1`.
    node: String,
    /// Pod name, or `NAMESPACE/NAME`.
    name: String,
    /// Kubernetes namespace of a name without one.
    #[arg(long, short, default_value = "default")]
    namespace: String,
}

/// What others do to a node's network.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
pub(crate) struct EraseArgs {
    /// Node, e.g. `node1`.
    node: String,
    /// rules, routes, eni-tables, eni-addresses, filter, our-filter, mtu or eni-links; without it,
    /// what is erased repeatedly is so no more.
    what: Option<String>,
    /// Again after every so many milliseconds.
    #[arg(long)]
    every: Option<u64>,
}

/// A service at 10.100.0.N, port 80.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
pub(crate) struct ServiceArgs {
    /// Its name.
    name: String,
    /// Pods that it leads to.
    #[arg(long, required = true)]
    to: Vec<String>,
    /// A port of every node that leads there too.
    #[arg(long)]
    node_port: Option<u16>,
    /// From the node port to pods of the same node only: externalTrafficPolicy Local.
    #[arg(long)]
    local: bool,
    /// By iptables instead of nftables.
    #[arg(long)]
    iptables: bool,
}

impl PodArgs {
    /// Node, namespace and name.
    fn parts(self) -> (String, String, String) {
        match self.name.split_once('/') {
            Some((namespace, name)) => (self.node, namespace.to_owned(), name.to_owned()),
            None => (self.node, self.namespace, self.name),
        }
    }
}

/// Makes a world; returns when it stands, or stays with `--foreground`.
pub(crate) fn up(options: UpOptions) -> Result<()> {
    if connect().is_ok() {
        bail!("a world stands already at {}; `lab down` ends it", socket().display());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory())
        .with_context(|| format!("create {}", directory().display()))?;
    if options.foreground { stand(options) } else { send_to_background() }
}

/// Serves in this process. The socket is opened before the world closes around it, so that it
/// is reached from outside.
fn stand(options: UpOptions) -> Result<()> {
    let path = socket();
    // What a world that was killed has left.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    lab::world::contain()?;
    crate::cli::runtime()?.block_on(server::serve(listener, options))
}

fn send_to_background() -> Result<()> {
    let log = directory().join("lab.log");
    let file = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let program = std::env::current_exe().context("find the lab's own program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--foreground");
    command.stdin(Stdio::null()).stdout(file.try_clone().context("share the log")?).stderr(file);
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| Ok(nix::unistd::setsid().map(|_| ())?));
    }
    let mut child = command.spawn().context("start the world")?;
    say(&until_it_stands(&mut child).with_context(|| {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        format!("the world does not stand; it said: {}", said.trim())
    })?);
    Ok(())
}

fn until_it_stands(child: &mut Child) -> Result<String> {
    let stream = loop {
        if let Ok(stream) = connect() {
            break stream;
        }
        if let Some(status) = child.try_wait().context("look at the world")? {
            bail!("it ended ({status})");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    text(ask(&stream, &Ask::Status)?)
}

/// Tells what stands.
pub(crate) fn status() -> Result<()> {
    tell(&Ask::Status)
}

/// Adds or deletes a pod.
pub(crate) fn pod(verb: PodVerb) -> Result<()> {
    tell(&match verb {
        PodVerb::Add(pod) => {
            let (node, namespace, name) = pod.parts();
            Ask::PodAdd { node, namespace, name }
        }
        PodVerb::Del(pod) => {
            let (node, namespace, name) = pod.parts();
            Ask::PodDel { node, namespace, name }
        }
    })
}

/// Erases something of a node's network.
pub(crate) fn erase(args: EraseArgs) -> Result<()> {
    tell(&Ask::Erase(args))
}

/// Adds a service.
pub(crate) fn service(args: ServiceArgs) -> Result<()> {
    tell(&Ask::Service(args))
}

/// Turns a knob of the world.
pub(crate) fn turn(knob: Knob) -> Result<()> {
    tell(&Ask::Turn { knob })
}

/// Runs a command inside.
pub(crate) fn exec(target: &str, words: &[String]) -> Result<ExitCode> {
    enter::exec(target, words)
}

/// Ends the world and waits for its end.
pub(crate) fn down() -> Result<()> {
    let stream = connect()?;
    say(&text(ask(&stream, &Ask::Down)?)?);
    // The connection closes with the world.
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut &stream, &mut rest);
    let _ = std::fs::remove_file(socket());
    Ok(())
}

fn tell(question: &Ask) -> Result<()> {
    say(&text(ask(&connect()?, question)?)?);
    Ok(())
}

fn text(answer: Answer) -> Result<String> {
    match answer {
        Answer::Text { text } => Ok(text),
        other => bail!("the world answered {other:?} instead of text"),
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}
