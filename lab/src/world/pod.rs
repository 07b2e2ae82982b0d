//! A pod: a network namespace on a node, and the runtime's part in filling it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cni::{Conflist, RuntimeConfig, outcome};
use super::echo::Echo;
use super::node::{CONFLIST, Node, tool_path};
use super::place::{Place, at};
use super::run::finish;
use super::sight::Protocol;

/// Where each pod's echo service listens, TCP and UDP, on every address of the pod.
pub const ECHO_PORT: u16 = 7;
/// How long kubelet's runtime would wait for a plugin.
const PLUGIN_DEADLINE: Duration = Duration::from_secs(60);

/// What a pod is to be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// The sandbox's id; a random one when `None`.
    pub container_id: Option<String>,
    /// What the runtime offers to plugins.
    pub runtime: RuntimeConfig,
}

impl PodSpec {
    /// An ordinary pod.
    pub fn new(namespace: &str, name: &str) -> PodSpec {
        PodSpec {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            container_id: None,
            runtime: RuntimeConfig::new(),
        }
    }
}

/// A pod's sandbox. Clones are the same pod. Its namespace goes with [`Pod::remove`] or the node.
#[derive(Debug, Clone)]
pub struct Pod(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: Node,
    spec: PodSpec,
    uid: String,
    container_id: String,
    netns: String,
    place: Place,
    _echo: Echo,
    result: Mutex<Option<Value>>,
}

/// One plugin of the chain, ready to be executed.
#[derive(Debug)]
pub struct PluginCall {
    /// Name of the binary.
    pub plugin: String,
    /// The command with its environment, to be started as the runtime would.
    pub command: Command,
    /// What goes to its standard input.
    pub input: Vec<u8>,
}

/// How long each plugin of a chain took from start to exit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timings {
    /// By plugin, in the order of execution.
    pub plugins: Vec<(String, Duration)>,
    /// Plugins of the list whose binary is not installed.
    pub skipped: Vec<String>,
}

impl Timings {
    /// Start to exit of `aws-cni`.
    pub fn aws_cni(&self) -> Duration {
        self.plugins.iter().find(|(name, _)| name == "aws-cni").map_or(Duration::ZERO, |(_, took)| *took)
    }
}

impl Node {
    /// Makes a sandbox and executes the chain with ADD; where that fails, does what a runtime
    /// does: DEL, and the namespace goes.
    ///
    /// # Errors
    /// The plugin's own ([`super::cni::PluginError`] is in the chain).
    pub async fn add_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        Ok(self.add_pod_timed(PodSpec::new(namespace, name)).await?.0)
    }

    /// The same with all choices, and how long the plugins took.
    ///
    /// # Errors
    /// The plugin's own.
    pub async fn add_pod_timed(&self, spec: PodSpec) -> Result<(Pod, Timings)> {
        let pod = self.sandbox(spec).await?;
        match pod.add().await {
            Ok(timings) => Ok((pod, timings)),
            Err(error) => {
                // The first error is the one that counts.
                let _ = pod.remove().await;
                Err(error)
            }
        }
    }

    /// DEL, and the namespace goes.
    ///
    /// # Errors
    /// The plugin's own; the namespace is gone nevertheless.
    pub async fn del_pod(&self, pod: &Pod) -> Result<Timings> {
        pod.remove().await
    }

    /// Makes a sandbox without calling a plugin: loopback up, the image's settings, an echo
    /// service on [`ECHO_PORT`].
    ///
    /// # Errors
    /// The kernel's.
    pub async fn sandbox(&self, spec: PodSpec) -> Result<Pod> {
        let uid = uuid::Uuid::new_v4().to_string();
        let netns = format!("/var/run/netns/cni-{uid}");
        let label = format!("{}/{}", spec.namespace, spec.name);
        let place = Place::create(&label, Path::new(&netns), Some(self.place()))?;
        // A new namespace takes these from the machine's first one, which is not ours.
        place.sysctl("ipv4/conf/all/rp_filter", "0")?;
        place.sysctl("ipv4/conf/default/rp_filter", "0")?;
        place.ip_batch("link set lo up\n").await?;
        let echo = Echo::start(&place, at(Ipv6Addr::UNSPECIFIED, ECHO_PORT))?;
        let container_id =
            spec.container_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string().repeat(2));
        let inner = Inner {
            node: self.clone(),
            spec,
            uid,
            container_id,
            netns,
            place,
            _echo: echo,
            result: Mutex::new(None),
        };
        Ok(Pod(Arc::new(inner)))
    }

    /// The list that the runtime would use now: the daemon's, or our plugin alone where there is
    /// none yet.
    ///
    /// # Errors
    /// The daemon's list cannot be read.
    pub fn conflist(&self) -> Result<Conflist> {
        match self.path(CONFLIST).exists() {
            true => Conflist::parse(&self.read(CONFLIST)?).with_context(|| format!("read {CONFLIST}")),
            false => Ok(Conflist::builtin()),
        }
    }
}

impl Pod {
    /// Executes the chain with ADD and keeps the result.
    ///
    /// # Errors
    /// The first plugin that fails; nothing is undone.
    pub async fn add(&self) -> Result<Timings> {
        let list = self.0.node.conflist()?;
        let mut result = None;
        let mut timings = Timings::default();
        for plugin in &list.plugins {
            let input = list.input(plugin, result.as_ref(), &self.0.spec.runtime);
            let binary = Conflist::binary(plugin);
            if let Some(next) = self.call(binary, "ADD", &input, &mut timings).await? {
                result = Some(next);
            }
        }
        *self.0.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
        Ok(timings)
    }

    /// Executes the chain backwards with DEL and the result of ADD, if there was one.
    ///
    /// # Errors
    /// The first plugin that fails.
    pub async fn del(&self) -> Result<Timings> {
        let list = self.0.node.conflist()?;
        let previous = self.result();
        let mut timings = Timings::default();
        for plugin in list.plugins.iter().rev() {
            let input = list.input(plugin, previous.as_ref(), &self.0.spec.runtime);
            self.call(Conflist::binary(plugin), "DEL", &input, &mut timings).await?;
        }
        *self.0.result.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(timings)
    }

    /// DEL, then the namespace goes, as when a pod ends.
    ///
    /// # Errors
    /// Those of DEL; the namespace is gone nevertheless.
    pub async fn remove(&self) -> Result<Timings> {
        let deleted = self.del().await;
        self.drop_namespace()?;
        deleted
    }

    /// Takes the namespace's name away without calling a plugin. The namespace itself lives on
    /// while this value or a clone does.
    ///
    /// # Errors
    /// The node's mounts cannot be joined.
    pub fn drop_namespace(&self) -> Result<()> {
        let path = PathBuf::from(&self.0.netns);
        self.0.node.place().run(|| {
            super::contain::unmount(&path);
            let _ = std::fs::remove_file(&path);
        })
    }

    /// One plugin with any verb and input, not yet started: for tests that trace it, starve it,
    /// or feed it nonsense.
    pub fn plugin_call(&self, plugin: &str, verb: &str, input: &Value) -> PluginCall {
        let mut command = self.0.node.command(format!("/opt/cni/bin/{plugin}"));
        command.env_clear().env("PATH", tool_path()).envs(self.cni_env(verb));
        PluginCall { plugin: plugin.to_owned(), command, input: input.to_string().into_bytes() }
    }

    /// The first plugin of the node's list with its proper input for `verb`.
    ///
    /// # Errors
    /// The list cannot be read or is empty.
    pub fn first_plugin_call(&self, verb: &str) -> Result<PluginCall> {
        let list = self.0.node.conflist()?;
        let plugin = list.plugins.first().context("the conflist has no plugins")?;
        let previous = if verb == "ADD" { None } else { self.result() };
        let input = list.input(plugin, previous.as_ref(), &self.0.spec.runtime);
        Ok(self.plugin_call(Conflist::binary(plugin), verb, &input))
    }

    /// The variables with which the runtime calls a plugin.
    pub fn cni_env(&self, verb: &str) -> Vec<(String, String)> {
        let PodSpec { namespace, name, .. } = &self.0.spec;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.0.container_id, self.0.uid
        );
        [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", self.0.container_id.clone()),
            ("CNI_NETNS", self.0.netns.clone()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", args),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    async fn call(
        &self,
        plugin: &str,
        verb: &str,
        input: &Value,
        timings: &mut Timings,
    ) -> Result<Option<Value>> {
        // The first plugin makes the network; without it there is no pod. Others may be missing on
        // a machine without the upstream plugins.
        let is_first = timings.plugins.is_empty() && timings.skipped.is_empty() && verb == "ADD";
        if !is_first && !self.0.node.path("/opt/cni/bin").join(plugin).exists() {
            timings.skipped.push(plugin.to_owned());
            return Ok(None);
        }
        let PluginCall { command, input, .. } = self.plugin_call(plugin, verb, input);
        let ran = finish(command, Some(&input), PLUGIN_DEADLINE).await?;
        timings.plugins.push((plugin.to_owned(), ran.elapsed));
        outcome(plugin, verb, ran.status.success(), &ran.stdout).with_context(|| {
            let complaint = ran.complaint();
            let pod = self.label();
            if complaint.is_empty() { pod } else { format!("{pod} (stderr: {complaint})") }
        })
    }

    /// `namespace/name`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.0.spec.namespace, self.0.spec.name)
    }

    /// Pod name.
    pub fn name(&self) -> &str {
        &self.0.spec.name
    }

    /// Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.0.spec.namespace
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.0.node
    }

    /// The sandbox's id, as plugins get it.
    pub fn container_id(&self) -> &str {
        &self.0.container_id
    }

    /// The namespace's path, inside of the node.
    pub fn netns(&self) -> &str {
        &self.0.netns
    }

    /// Its network, for sockets and commands.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// What the last plugin of ADD printed; `None` before ADD and after DEL.
    pub fn result(&self) -> Option<Value> {
        self.0.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the kept result, e.g. by one of another implementation.
    pub fn set_result(&self, result: Option<Value>) {
        *self.0.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
    }

    /// Its address of either family by ADD's result; 0.0.0.0 where there is none.
    pub fn ip(&self) -> IpAddr {
        let result = self.result().unwrap_or(json!({}));
        let places = [&result["ips"][0]["address"], &result["ip4"]["ip"], &result["ip6"]["ip"]];
        let text = places.iter().find_map(|it| it.as_str()).unwrap_or_default();
        let bare = text.split('/').next().unwrap_or_default();
        bare.parse().unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// Its IPv4 address by ADD's result; 0.0.0.0 where there is none.
    pub fn address(&self) -> Ipv4Addr {
        if let IpAddr::V4(address) = self.ip() { address } else { Ipv4Addr::UNSPECIFIED }
    }

    /// Name of its link on the node by ADD's result; empty where there is none.
    pub fn host_veth(&self) -> String {
        let result = self.result().unwrap_or(json!({}));
        result["interfaces"][0]["name"].as_str().unwrap_or_default().to_owned()
    }

    /// The ENI that its address belongs to, as EC2 says.
    pub fn eni(&self) -> Option<String> {
        self.0.node.cloud().snapshot().eni_of(self.ip()).map(|it| it.id.clone())
    }

    /// Runs a command in the pod and gives what it printed.
    ///
    /// # Errors
    /// It failed; the text holds its complaint.
    pub async fn exec(&self, words: &[&str]) -> Result<String> {
        self.0.place.exec(words).await
    }

    /// Opens a TCP connection from the pod.
    ///
    /// # Errors
    /// Refused, or no answer within `deadline`.
    pub async fn connect(
        &self,
        to: Ipv4Addr,
        port: u16,
        deadline: Duration,
    ) -> Result<tokio::net::TcpStream> {
        self.0.place.connect(at(to, port), deadline).await
    }

    /// Connects to an echo service and gives the source address that it saw, and how long the
    /// answer took.
    ///
    /// # Errors
    /// No answer within `deadline`, or not an address.
    pub async fn seen_by(&self, to: Ipv4Addr, port: u16, deadline: Duration) -> Result<(Ipv4Addr, Duration)> {
        let began = Instant::now();
        let seen = self.0.place.seen(Protocol::Tcp, at(to, port), deadline).await?;
        let IpAddr::V4(seen) = seen.ip() else { bail!("{to} saw {seen}") };
        Ok((seen, began.elapsed()))
    }
}
