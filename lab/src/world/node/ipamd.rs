//! The daemon under test, as the DaemonSet would run it.

use std::collections::BTreeMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;

use super::Node;

/// Where the daemon listens, inside of a node.
pub const IPAMD_SOCKET: &str = "/run/aws-node/ipamd.sock";
/// Where it keeps what it has promised.
pub const STATE_FILE: &str = "/run/aws-node/ipam.json";
/// Where it tells the runtime which plugins to call.
pub const CONFLIST: &str = "/etc/cni/net.d/10-aws.conflist";
/// Its log, inside of a node.
pub const IPAMD_LOG: &str = "/var/log/aws-routed-eni/ipamd.log";

/// Lines of standard error that are kept per node.
const KEPT_LINES: usize = 2000;

/// How the daemon is started.
#[derive(Debug, Clone)]
pub struct IpamdOptions {
    /// The binary; `None` takes `ipamd` from the lab's directory of binaries.
    pub binary: Option<PathBuf>,
    /// Its arguments: `run`.
    pub arguments: Vec<String>,
    /// Added to the DaemonSet's environment, or replacing what is there.
    pub env: BTreeMap<String, String>,
    /// Taken out of the DaemonSet's environment.
    pub without: Vec<String>,
    /// How long it may take until its socket accepts.
    pub ready_within: Duration,
}

impl Default for IpamdOptions {
    fn default() -> IpamdOptions {
        IpamdOptions {
            binary: None,
            arguments: vec!["run".to_owned()],
            env: BTreeMap::new(),
            without: Vec::new(),
            ready_within: Duration::from_secs(30),
        }
    }
}

impl IpamdOptions {
    /// The DaemonSet's environment as it is.
    pub fn new() -> IpamdOptions {
        IpamdOptions::default()
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl ToString) -> IpamdOptions {
        self.env.insert(name.to_owned(), value.to_string());
        self
    }
}

/// A running daemon; killed when this value goes.
#[derive(Debug)]
pub struct Ipamd {
    child: Child,
    pid: Pid,
    /// From start until its socket accepted.
    pub ready_after: Duration,
}

/// The newest lines of a node's daemons' standard error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<std::collections::VecDeque<String>>>);

impl Lines {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(crate) fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|it| format!("{it}\n")).collect()
    }
}

impl Node {
    /// The environment that the reference's DaemonSet gives its daemon, with the paths of a node
    /// that is its own container, and the way to this world's EC2 and IMDS.
    pub fn ipamd_env(&self) -> BTreeMap<String, String> {
        let manifest = [
            ("ADDITIONAL_ENI_TAGS", "{}"),
            ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "true"),
            ("AWS_VPC_ENI_MTU", "9001"),
            ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "false"),
            ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "false"),
            ("AWS_VPC_K8S_CNI_LOGLEVEL", "DEBUG"),
            ("AWS_VPC_K8S_CNI_LOG_FILE", IPAMD_LOG),
            ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng"),
            ("AWS_VPC_K8S_CNI_VETHPREFIX", "eni"),
            ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/plugin.log"),
            ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "DEBUG"),
            ("CLUSTER_NAME", "lab"),
            ("DISABLE_INTROSPECTION", "false"),
            ("DISABLE_METRICS", "false"),
            ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "false"),
            ("ENABLE_IMDS_ONLY_MODE", "false"),
            ("ENABLE_IPv4", "true"),
            ("ENABLE_IPv6", "false"),
            ("ENABLE_MULTI_NIC", "false"),
            ("ENABLE_POD_ENI", "false"),
            ("ENABLE_PREFIX_DELEGATION", "false"),
            ("ENABLE_SUBNET_DISCOVERY", "true"),
            ("MY_POD_NAME", "aws-node-lab"),
            ("NETWORK_POLICY_ENFORCING_MODE", "standard"),
            ("VPC_CNI_VERSION", "v1.23.1"),
            ("WARM_ENI_TARGET", "1"),
            ("WARM_PREFIX_TARGET", "1"),
            ("HOST_CNI_BIN_PATH", "/opt/cni/bin"),
            ("HOST_CNI_CONFDIR_PATH", "/etc/cni/net.d"),
            ("HOME", "/root"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", super::IMDS_URL),
            ("AWS_ENDPOINT_URL_EC2", super::EC2_URL),
        ];
        let mut env: BTreeMap<_, _> =
            manifest.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        env.insert("MY_NODE_NAME".to_owned(), self.name().to_owned());
        env.insert("PATH".to_owned(), super::tool_path());
        env
    }

    /// Starts the daemon and waits until its socket accepts.
    ///
    /// # Errors
    /// It cannot be started, ends early, or is not ready in time; the text has what it said.
    pub async fn start_ipamd(&self, options: &IpamdOptions) -> Result<Ipamd> {
        let mut ipamd = self.spawn_ipamd(options)?;
        ipamd.wait_until_ready(self, options.ready_within).await?;
        Ok(ipamd)
    }

    /// Starts the daemon without waiting for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_ipamd(&self, options: &IpamdOptions) -> Result<Ipamd> {
        let binary = match &options.binary {
            Some(path) => path.clone(),
            None => self.binaries().find("ipamd")?,
        };
        let mut env = self.ipamd_env();
        env.extend(options.env.clone());
        env.retain(|name, _| !options.without.contains(name));
        let mut command = self.command(&binary);
        command.args(&options.arguments).env_clear().envs(env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // An interrupt from the terminal is for the lab; the daemon hears of it from the lab.
        command.process_group(0);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {}", binary.display()))?;
        if let Some(stream) = child.stdout.take() {
            self.collect(stream);
        }
        if let Some(stream) = child.stderr.take() {
            self.collect(stream);
        }
        let pid = child.id().and_then(|it| i32::try_from(it).ok()).context("the daemon has no process id")?;
        Ok(Ipamd { child, pid: Pid::from_raw(pid), ready_after: Duration::ZERO })
    }

    /// What this node's daemons have written to standard output and error, newest lines.
    pub fn ipamd_output(&self) -> String {
        self.lines().text()
    }

    fn collect(&self, stream: impl tokio::io::AsyncRead + Unpin + Send + 'static) {
        let lines = self.lines().clone();
        tokio::spawn(async move {
            let mut reader = BufReader::new(stream).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                lines.push(line);
            }
        });
    }
}

impl Ipamd {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits until its socket accepts.
    ///
    /// # Errors
    /// It ended, or the time is up; the text has what it said.
    pub async fn wait_until_ready(&mut self, node: &Node, within: Duration) -> Result<()> {
        let began = Instant::now();
        let socket = node.path(IPAMD_SOCKET);
        // A predecessor that was killed leaves a socket file behind, which refuses.
        while UnixStream::connect(&socket).await.is_err() {
            if let Some(status) = self.child.try_wait().context("look at the daemon")? {
                bail!("ipamd on {} ended early ({status}):\n{}", node.name(), node.ipamd_output());
            }
            if began.elapsed() > within {
                bail!("ipamd on {} not ready within {within:?}:\n{}", node.name(), node.ipamd_output());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.ready_after = began.elapsed();
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("send {signal} to ipamd ({})", self.pid))
    }

    /// Stops it, as a debugger does, and waits until none of its threads runs: the signal is taken
    /// by one of them, and the others may answer until that one has had its turn. SIGCONT ends it.
    ///
    /// # Errors
    /// It has ended already.
    pub async fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        while !self.is_frozen()? {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn is_frozen(&self) -> Result<bool> {
        let path = format!("/proc/{}/task", self.pid);
        for task in std::fs::read_dir(&path).with_context(|| format!("list {path}"))? {
            // A thread may end meanwhile.
            let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
            // The name before the state may hold anything, a parenthesis too.
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Asks it to end and waits; killed when `within` passes.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn terminate(mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        tokio::time::timeout(within, self.child.wait())
            .await
            .map_err(|_| anyhow!("ipamd did not end within {within:?} after SIGTERM"))?
            .context("wait for ipamd")
    }

    /// Kills it, as the kernel does when memory runs out, and waits for its end.
    ///
    /// # Errors
    /// It had ended by itself.
    pub async fn kill(mut self) -> Result<()> {
        self.child.start_kill().context("kill ipamd")?;
        let status = self.child.wait().await.context("wait for ipamd")?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("ipamd had ended by itself: {status}");
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It is still there after `within`.
    pub async fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        tokio::time::timeout(within, self.child.wait())
            .await
            .map_err(|_| anyhow!("ipamd still runs after {within:?}"))?
            .context("wait for ipamd")
    }

    /// Its resident memory in KiB.
    ///
    /// # Errors
    /// `/proc` does not show it: it has ended, or the world has no `/proc` of its own.
    pub fn resident_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|it| it.split_whitespace().next()).and_then(|it| it.parse().ok());
        number.with_context(|| format!("find VmRSS in {path}"))
    }
}
