//! A standing world that does what commands ask.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::world::{Erased, Eraser, Ipamd, IpamdOptions, KubeProxy, Lab, Place, Pod, Service};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};

use super::protocol::{Answer, Ask};
use super::{EraseArgs, ServiceArgs, UpOptions};

/// Zones that nodes are put into by turns.
const ZONES: [&str; 2] = ["us-west-2a", "us-west-2b"];

struct World {
    lab: Lab,
    /// By node name; a node whose daemon is to be started by hand has none.
    daemons: BTreeMap<String, Ipamd>,
    /// By node and `namespace/name`.
    pods: Mutex<BTreeMap<(String, String), Pod>>,
    /// By node.
    erasers: Mutex<BTreeMap<String, Eraser>>,
    services: Mutex<Vec<Service>>,
    down: Notify,
}

/// Makes the world and answers until one asks for its end.
pub(super) async fn serve(listener: std::os::unix::net::UnixListener, options: UpOptions) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut builder = Lab::builder().seed(options.seed);
    if let Some(directory) = &options.bin_dir {
        builder = builder.bin_dir(directory);
    }
    for index in 0..options.nodes {
        builder = builder.node(&options.instance_type, ZONES[usize::from(index) % ZONES.len()]);
    }
    let lab = builder.start().await?;
    let mut daemons = BTreeMap::new();
    if !options.bare {
        for node in lab.nodes() {
            node.install_plugin(None).await?;
            let ipamd = node.start_ipamd(&IpamdOptions::new()).await?;
            daemons.insert(node.name().to_owned(), ipamd);
        }
    }
    let world = Arc::new(World {
        lab,
        daemons,
        pods: Mutex::default(),
        erasers: Mutex::default(),
        services: Mutex::default(),
        down: Notify::new(),
    });
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept a command")?;
                tokio::spawn(converse(world.clone(), stream));
            }
            () = world.down.notified() => return Ok(()),
        }
    }
}

async fn converse(world: Arc<World>, stream: UnixStream) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let question: Ask = serde_json::from_str(&line)?;
        line.clear();
        let is_last = matches!(question, Ask::Down);
        let (answer, place) = match world.answer(question).await {
            Ok(answer) => answer,
            Err(error) => (Answer::Failed { error: format!("{error:#}") }, None),
        };
        let mut reply = serde_json::to_string(&answer)?;
        reply.push('\n');
        send(stream.get_ref(), reply.as_bytes(), place.as_ref()).await?;
        if is_last {
            world.down.notify_one();
        }
    }
    Ok(())
}

/// Sends a line, and descriptors of a place's namespaces with it.
async fn send(stream: &UnixStream, line: &[u8], place: Option<&Place>) -> Result<()> {
    let rooms: Vec<_> =
        place.iter().flat_map(|it| [Some(it.net()), it.mnt()]).flatten().map(|it| it.as_raw_fd()).collect();
    let message = [ControlMessage::ScmRights(&rooms)];
    let message = if rooms.is_empty() { &[][..] } else { &message[..] };
    let parts = [IoSlice::new(line)];
    let send = || {
        let flags = MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(stream.as_raw_fd(), &parts, message, flags, None)?)
    };
    // A line is far smaller than the socket's buffer, so it goes in one piece.
    stream.async_io(Interest::WRITABLE, send).await.context("answer a command")?;
    Ok(())
}

impl World {
    async fn answer(&self, question: Ask) -> Result<(Answer, Option<Place>)> {
        let text = match question {
            Ask::Status => self.status().await?,
            Ask::Down => String::from("the world ends"),
            Ask::Locate { target } => {
                let place = self.locate(&target).await?;
                return Ok((Answer::Location { name: place.name().to_owned() }, Some(place)));
            }
            Ask::Turn { knob } => knob.turn(&self.lab).await?,
            Ask::Erase(args) => self.erase(args).await?,
            Ask::Service(args) => self.serve(args).await?,
            Ask::PodAdd { node, namespace, name } => {
                let key = (node.clone(), format!("{namespace}/{name}"));
                let mut pods = self.pods.lock().await;
                if pods.contains_key(&key) {
                    bail!("pod {} is already on {node}", key.1);
                }
                let pod = self.lab.node(&node)?.add_pod(&namespace, &name).await?;
                let text = format!("{} {} on {node}, host link {}", key.1, pod.address(), pod.host_veth());
                pods.insert(key, pod);
                text
            }
            Ask::PodDel { node, namespace, name } => {
                let key = (node.clone(), format!("{namespace}/{name}"));
                let pod = self.pods.lock().await.remove(&key);
                pod.with_context(|| format!("no pod {} on {node}", key.1))?.remove().await?;
                format!("{} is gone from {node}", key.1)
            }
        };
        Ok((Answer::Text { text }, None))
    }

    async fn erase(&self, EraseArgs { node, what, every }: EraseArgs) -> Result<String> {
        let place = self.lab.node(&node)?;
        let Some(what) = what else {
            let eraser = self.erasers.lock().await.remove(&node);
            let strokes = eraser.map_or(0, |it| it.strokes());
            return Ok(format!("{node}: no more erasing; {strokes} times until now"));
        };
        let names = Erased::ALL.map(|(name, _)| name).join(", ");
        let erased = Erased::ALL.into_iter().find(|(name, _)| *name == what);
        let (_, erased) = erased.with_context(|| format!("erase {what:?}: expected one of {names}"))?;
        match every {
            None => place.erase(erased).await?,
            Some(milliseconds) => {
                let eraser = place.erase_repeatedly(erased, Duration::from_millis(milliseconds));
                self.erasers.lock().await.insert(node.clone(), eraser);
            }
        }
        Ok(format!("{node}: erased {what}"))
    }

    async fn serve(&self, args: ServiceArgs) -> Result<String> {
        let mut services = self.services.lock().await;
        let number = u8::try_from(services.len() + 1).context("a service more: there are 255 already")?;
        let address = [10, 100, 0, number];
        let mut service = Service::new(&args.name, address, 80);
        for label in &args.to {
            let pods = self.pods.lock().await;
            let pod = pods.values().find(|it| it.name() == label || it.label() == *label);
            service =
                service.to_pod(pod.with_context(|| format!("no pod {label:?}; `lab status` lists them"))?);
        }
        if let Some(port) = args.node_port {
            service = service.node_port(port);
        }
        services.push(if args.local { service.local() } else { service });
        let proxy = if args.iptables { KubeProxy::Iptables } else { KubeProxy::Nftables };
        for node in self.lab.nodes() {
            node.set_services(proxy, &services).await?;
        }
        Ok(format!("{} is at {}:80 on every node", args.name, std::net::Ipv4Addr::from(address)))
    }

    async fn status(&self) -> Result<String> {
        let mut text = String::new();
        let snapshot = self.lab.cloud().snapshot();
        for node in self.lab.nodes() {
            let instance = node.instance();
            let daemon = match self.daemons.get(node.name()) {
                Some(ipamd) => format!("ipamd {}", ipamd.pid()),
                None => "no ipamd".to_owned(),
            };
            let (kind, zone) = (&instance.instance_type, &instance.zone);
            writeln!(text, "{} {} {kind} {zone} {}, {daemon}", node.name(), instance.id, node.primary_ip())?;
            for eni in snapshot.attached(node.instance_id()) {
                let index = eni.attachment.as_ref().map_or(0, |it| it.device_index);
                let (own, more) = (eni.primary_ip(), eni.slots_used() - 1);
                writeln!(text, "  eth{index} {} {own} and {more} more", eni.id)?;
            }
        }
        for ((node, label), pod) in &*self.pods.lock().await {
            let eni = pod.eni().unwrap_or_default();
            writeln!(text, "pod {label} on {node}: {} {eni} {}", pod.address(), pod.host_veth())?;
        }
        Ok(text)
    }

    async fn locate(&self, target: &str) -> Result<Place> {
        if let Some(pod) = target.strip_prefix("pod:") {
            let pods = self.pods.lock().await;
            let found = pods.values().find(|it| it.name() == pod || it.label() == pod);
            let pod = found.with_context(|| format!("no pod {pod:?}; `lab status` lists them"))?;
            return Ok(pod.place().clone());
        }
        match target {
            "vpc" => Ok(self.lab.fabric().vpc().clone()),
            "internet" => Ok(self.lab.fabric().internet().clone()),
            "premises" => Ok(self.lab.fabric().premises().clone()),
            name => {
                let node =
                    self.lab.node(name).context("expected vpc, internet, premises, pod:NAME or a node")?;
                Ok(node.place().clone())
            }
        }
    }
}
