//! A node under test with a peer to talk to, and what must hold on it whatever has happened.

mod checks;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::cloud::{CloudBuilder, CloudHandle, Fault, FaultId};
use lab::world::cni::PluginError;
use lab::world::{Ipamd, IpamdOptions, Lab, Node, Pod, PodSpec};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

/// How long kubelet's attempts may go on: past every pause that the daemon makes.
const PATIENCE: Duration = Duration::from_secs(150);
/// Kubelet waits between its attempts too.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(500);
/// How long a packet may take on a machine that is busy with other scenarios.
const ANSWER: Duration = Duration::from_secs(15);
/// Two nodes: the first is under test, on the second there is a pod to talk to.
#[derive(Debug)]
pub struct Stage {
    lab: Lab,
    options: IpamdOptions,
    cooldown: Duration,
    ipamd: Option<Ipamd>,
    peer: Pod,
    live: BTreeMap<String, Pod>,
    /// When each live pod had its address at the latest, in the cloud's time.
    since: BTreeMap<String, Duration>,
    /// When an address was given back at the earliest.
    released: BTreeMap<Ipv4Addr, Instant>,
    _peers_ipamd: Ipamd,
}

/// Sets a stage, acts on it, and on failure tells everything that there is to see.
///
/// # Errors
/// Those of `act`.
pub async fn on(setting: Setting, act: impl AsyncFnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let mut stage = setting.set().await.context("set the stage")?;
    let outcome = act(&mut stage).await;
    crate::end(stage.lab, outcome).await
}

/// What the stage is to be.
#[derive(Debug)]
pub struct Setting {
    instance_type: &'static str,
    cloud: CloudBuilder,
    cooldown: u64,
    options: IpamdOptions,
}

impl Setting {
    /// The node under test is of this type; addresses rest for 30 seconds.
    pub fn new(instance_type: &'static str) -> Setting {
        let cloud = CloudBuilder::two_zones(7);
        Setting { instance_type, cloud, cooldown: 30, options: IpamdOptions::new() }
    }

    /// In another cloud; it needs the zones `us-west-2a` for the node and `us-west-2b`.
    #[must_use]
    pub fn cloud(mut self, cloud: CloudBuilder) -> Setting {
        self.cloud = cloud;
        self
    }

    /// How many seconds an address rests.
    #[must_use]
    pub fn cooldown(mut self, seconds: u64) -> Setting {
        self.cooldown = seconds;
        self
    }

    /// Keeps one address warm and gives back what is beyond it as soon as may be.
    #[must_use]
    pub fn frugal(self) -> Setting {
        let counted = self.env("WARM_IP_TARGET", 1).env("MINIMUM_IP_TARGET", 1);
        counted.cooldown(1).env("POOL_SHRINK_DELAY", 1)
    }

    /// A variable of the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Setting {
        self.options = self.options.env(name, value);
        self
    }

    async fn set(self) -> Result<Stage> {
        let builder = Lab::builder().cloud(self.cloud);
        let lab =
            builder.node(self.instance_type, "us-west-2a").node("m5.large", "us-west-2b").start().await?;
        for node in lab.nodes() {
            node.install_plugin(None).await?;
        }
        // The peer's daemon makes no ENIs: gates and counts then concern the node under test alone.
        let few = IpamdOptions::new().env("WARM_IP_TARGET", 1).env("MINIMUM_IP_TARGET", 2);
        let peers_ipamd = lab.node("node2")?.start_ipamd(&few).await?;
        let peer = lab.node("node2")?.add_pod("default", "peer").await?;
        Ok(Stage {
            lab,
            options: self.options.env("IP_COOLDOWN_PERIOD", self.cooldown),
            cooldown: Duration::from_secs(self.cooldown),
            ipamd: None,
            peer,
            live: BTreeMap::new(),
            since: BTreeMap::new(),
            released: BTreeMap::new(),
            _peers_ipamd: peers_ipamd,
        })
    }
}

impl Stage {
    /// The node under test.
    pub fn node(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    /// The cloud around it.
    pub fn cloud(&self) -> &CloudHandle {
        self.lab.cloud()
    }

    /// Changes a variable of the daemon's environment, from its next start on.
    pub fn set_env(&mut self, name: &str, value: impl ToString) {
        self.options = std::mem::take(&mut self.options).env(name, value);
    }

    /// The pods on the node, by container id.
    pub fn live(&self) -> impl Iterator<Item = &Pod> {
        self.live.values()
    }

    /// Installs a fault that befalls the node under test alone.
    pub fn fault(&self, fault: Fault) -> FaultId {
        let instance = self.node().instance_id().to_owned();
        self.cloud().fault(fault.when(move |call| call.instance.as_deref() == Some(&instance)))
    }

    /// Starts the daemon and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub async fn start(&mut self) -> Result<()> {
        self.ipamd = Some(self.node().start_ipamd(&self.options).await?);
        Ok(())
    }

    /// Starts the daemon without waiting for it; [`Stage::serves`] does that.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin(&mut self) -> Result<()> {
        self.ipamd = Some(self.node().spawn_ipamd(&self.options)?);
        Ok(())
    }

    /// Waits until the daemon serves.
    ///
    /// # Errors
    /// It does not.
    pub async fn serves(&mut self) -> Result<()> {
        let node = self.node().clone();
        let ipamd = self.ipamd.as_mut().context("the daemon does not run")?;
        ipamd.wait_until_ready(&node, self.options.ready_within).await
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.ipamd.as_ref().context("the daemon does not run")?.signal(signal)
    }

    /// The running daemon's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn daemon_pid(&self) -> Result<i32> {
        Ok(self.ipamd.as_ref().context("the daemon does not run")?.pid())
    }

    /// Kills the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self) -> Result<()> {
        self.ipamd.take().context("the daemon does not run")?.kill().await
    }

    /// Takes note that the daemon has been killed by somebody else, and waits for its end.
    ///
    /// # Errors
    /// It still runs.
    pub async fn was_killed(&mut self) -> Result<()> {
        let mut ipamd = self.ipamd.take().context("the daemon does not run")?;
        ipamd.wait(ANSWER).await?;
        Ok(())
    }

    /// Kills the daemon and starts it anew.
    ///
    /// # Errors
    /// It does not serve again.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill().await?;
        self.start().await
    }

    /// One attempt to add a pod, as the runtime makes it: a failed ADD is followed by DEL.
    ///
    /// # Errors
    /// The plugin's, or the address may not be in use again yet.
    pub async fn add_once(&mut self, name: &str) -> Result<Pod> {
        let pod = match self.node().add_pod("default", name).await {
            Ok(pod) => pod,
            Err(error) => {
                if let Some(words) = plugin_error(&error) {
                    explains(words)?;
                }
                return Err(error);
            }
        };
        self.note_added(&pod)?;
        Ok(pod)
    }

    /// Adds a pod as kubelet does: again and again, each time with a new sandbox.
    ///
    /// # Errors
    /// The last attempt's; or an address came that may not be in use again yet.
    pub async fn add(&mut self, name: &str) -> Result<Pod> {
        let pod = attempt(self.node().clone(), name.to_owned()).await?;
        self.note_added(&pod)?;
        Ok(pod)
    }

    /// Adds pods side by side, `prefix-1` and so on, each as kubelet does.
    ///
    /// # Errors
    /// The first that gets no address in the end.
    pub async fn add_all(&mut self, prefix: &str, count: usize) -> Result<()> {
        let adding = self.adding(prefix, count);
        self.added(adding).await
    }

    /// Begins to add pods side by side, while the scenario goes on.
    pub fn adding(&self, prefix: &str, count: usize) -> JoinSet<Result<Pod>> {
        (1..=count).map(|number| attempt(self.node().clone(), format!("{prefix}-{number}"))).collect()
    }

    /// Waits for all that [`Stage::adding`] has begun.
    ///
    /// # Errors
    /// The first that gets no address in the end.
    pub async fn added(&mut self, mut adding: JoinSet<Result<Pod>>) -> Result<()> {
        while let Some(pod) = adding.join_next().await {
            self.note_added(&pod??)?;
        }
        Ok(())
    }

    /// Takes a pod into the books that was added in another way.
    ///
    /// # Errors
    /// Its address is another pod's, or rests.
    pub fn note_added(&mut self, pod: &Pod) -> Result<()> {
        let address = pod.address();
        if let Some(other) = self.live.values().find(|it| it.address() == address) {
            bail!("{address} was given to {} while {} has it", pod.label(), other.label());
        }
        if let Some(since) = self.released.get(&address) {
            let rested = since.elapsed();
            ensure!(rested >= self.cooldown, "{address} was given to {} after {rested:?}", pod.label());
        }
        self.live.insert(pod.container_id().to_owned(), pod.clone());
        self.since.insert(pod.container_id().to_owned(), self.cloud().now());
        Ok(())
    }

    /// Takes a pod out of the books that is being deleted in another way. To be called before.
    pub fn note_deleted(&mut self, pod: &Pod) {
        if self.live.remove(pod.container_id()).is_some() {
            self.released.insert(pod.address(), Instant::now());
        }
    }

    /// Takes note that an address rests since that time, or later.
    pub fn note_released(&mut self, address: Ipv4Addr, since: Instant) {
        self.released.insert(address, since);
    }

    /// Removes a pod: DEL, and its namespace goes.
    ///
    /// # Errors
    /// DEL's.
    pub async fn remove(&mut self, pod: Pod) -> Result<()> {
        self.note_deleted(&pod);
        pod.remove().await?;
        Ok(())
    }

    /// Removes every pod.
    ///
    /// # Errors
    /// The first DEL's.
    pub async fn remove_all(&mut self) -> Result<()> {
        for pod in self.live.values().cloned().collect::<Vec<_>>() {
            self.remove(pod).await?;
        }
        Ok(())
    }
}

/// Adds a pod as kubelet does.
async fn attempt(node: Node, name: String) -> Result<Pod> {
    let began = Instant::now();
    loop {
        match node.add_pod_timed(PodSpec::new("default", &name)).await {
            Ok((pod, _)) => return Ok(pod),
            Err(error) => {
                if let Some(words) = plugin_error(&error) {
                    explains(words)?;
                }
                if plugin_error(&error).is_none() || began.elapsed() > PATIENCE {
                    return Err(error);
                }
                tokio::time::sleep(BETWEEN_ATTEMPTS).await;
            }
        }
    }
}

/// The plugin's own words in an error, if it is one of its.
#[must_use]
pub fn plugin_error(error: &anyhow::Error) -> Option<&PluginError> {
    error.downcast_ref()
}

/// Whether an error of `aws-cni` says why there is no address, as the page for operators has it: one
/// of its reasons with the code that belongs to it, or that the daemon is away.
///
/// # Errors
/// It does not.
pub fn explains(error: &PluginError) -> Result<()> {
    const PAGE: &str = include_str!("../../docs/troubleshooting.md");
    let refused = error.msg.strip_prefix("add cmd: failed to assign an IP address to container: ");
    let is_explained = match refused.and_then(|rest| rest.split_once(": ")) {
        Some((reason, _)) => {
            reason != "REFUSAL_REASON_UNSPECIFIED"
                && PAGE.contains(&format!("\n### {reason}\n\nCode {}.\n", error.code))
        }
        None => {
            let call = "add cmd: Error received from AddNetwork gRPC call: rpc error: code = ";
            let status = error.msg.strip_prefix(call).unwrap_or_default();
            error.code == 11
                && (status.starts_with("Unavailable ") || status.starts_with("DeadlineExceeded "))
        }
    };
    ensure!(error.command != "ADD" || is_explained, "an ADD failed without a known reason: {error}");
    Ok(())
}
