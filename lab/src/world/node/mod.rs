//! A node: an instance's network, file system and metadata service, and the programs on it.

mod ipamd;
mod mounts;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use self::ipamd::Lines;
pub use self::ipamd::{CONFLIST, IPAMD_LOG, IPAMD_SOCKET, Ipamd, IpamdOptions, STATE_FILE};
use super::Binaries;
use super::contain::small_tmpfs;
use super::place::{Place, at};
use super::policy_agent::{PolicyAgent, PolicyCall};
use crate::cloud::{CloudHandle, Instance};
use crate::front::{serve_ec2, serve_imds};

/// Where IMDS answers inside of every node.
pub const IMDS_URL: &str = "http://169.254.169.254";
/// Where EC2 answers inside of every node.
pub const EC2_URL: &str = "http://127.0.0.100";
/// Where the daemon keeps its files, inside of a node.
const STATE_DIRECTORY: &str = "/run/aws-node";
/// Where the network policy agent listens inside of a node.
const POLICY_AGENT_SOCKET: &str = "/run/aws-node/npa.sock";

/// A node. Clones are the same node.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    instance: Arc<Instance>,
    place: Place,
    /// The root directory of the mount namespace, through which files are reached from outside.
    root: OwnedFd,
    cloud: CloudHandle,
    binaries: Binaries,
    lines: Lines,
    policy_agent: Mutex<Option<PolicyAgent>>,
    fronts: Vec<AbortHandle>,
    net_name: PathBuf,
}

/// What a node is made from.
pub(crate) struct NodePlan {
    /// Name of the node and, behind the lab's prefix, of its namespace.
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) instance: Arc<Instance>,
    /// `net.ipv4.conf.default.rp_filter` of the image.
    pub(crate) rp_filter: u8,
    pub(crate) binaries: Binaries,
}

impl Node {
    /// Boots it: namespaces, the image's settings, metadata service, policy agent. Its ENIs are
    /// the fabric's business.
    pub(crate) async fn boot(plan: NodePlan, cloud: CloudHandle) -> Result<Node> {
        let namespace = format!("{}-{}", plan.prefix, plan.name);
        let net_name = Path::new("/run/netns").join(&namespace);
        let network = Place::create(&namespace, &net_name, None)?;
        let mounts = mounts::furnish(&network).with_context(|| format!("furnish {}", plan.name))?;
        let place = network.with_mounts(mounts.namespace);

        place.sysctl("ipv4/ip_forward", "1")?;
        place.sysctl("ipv4/conf/all/rp_filter", "0")?;
        place.sysctl("ipv4/conf/default/rp_filter", &plan.rp_filter.to_string())?;
        let lines = "link set lo up\naddr add 169.254.169.254/32 dev lo scope host\n";
        place.ip_batch(lines).await?;

        let imds = listen(&place, Ipv4Addr::new(169, 254, 169, 254))?;
        let ec2 = listen(&place, Ipv4Addr::new(127, 0, 0, 100))?;
        let fronts = vec![
            tokio::spawn(serve_imds(imds, cloud.clone(), plan.instance.id.clone())).abort_handle(),
            tokio::spawn(serve_ec2(ec2, cloud.clone())).abort_handle(),
        ];
        let node = Node(Arc::new(Inner {
            name: plan.name,
            instance: plan.instance,
            place,
            root: mounts.root,
            cloud,
            binaries: plan.binaries,
            lines: Lines::default(),
            policy_agent: Mutex::new(None),
            fronts,
            net_name,
        }));
        node.set_policy_agent(true)?;
        Ok(node)
    }

    /// Its name, e.g. `node1`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The instance behind it.
    pub fn instance(&self) -> &Instance {
        &self.0.instance
    }

    /// The instance's id.
    pub fn instance_id(&self) -> &str {
        &self.0.instance.id
    }

    /// The first address of its primary ENI.
    pub fn primary_ip(&self) -> Ipv4Addr {
        self.0.instance.private_ip
    }

    /// The cloud that it is in.
    pub fn cloud(&self) -> &CloudHandle {
        &self.0.cloud
    }

    /// Its namespaces.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// The same file as `inside` in the node, for this process to read and write.
    ///
    /// An absolute link on the way would lead to the lab's own files; `/var/run` is looked after.
    pub fn path(&self, inside: &str) -> PathBuf {
        let inside = match inside.strip_prefix("/var/run") {
            Some(rest) => format!("/run{rest}"),
            None => inside.to_owned(),
        };
        PathBuf::from(format!("/proc/self/fd/{}{inside}", self.0.root.as_raw_fd()))
    }

    /// Reads a file of the node.
    ///
    /// # Errors
    /// It is absent or no text.
    pub fn read(&self, inside: &str) -> Result<String> {
        std::fs::read_to_string(self.path(inside))
            .with_context(|| format!("read {inside} of {}", self.name()))
    }

    /// A command that will start on the node.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.0.place.command(program)
    }

    /// Runs a command on the node and gives what it printed.
    ///
    /// # Errors
    /// It failed; the text holds its complaint.
    pub async fn exec(&self, words: &[&str]) -> Result<String> {
        self.0.place.exec(words).await
    }

    /// `ip` on the node: its JSON when `-j` is among the words, else its lines.
    ///
    /// # Errors
    /// It failed.
    pub async fn ip(&self, words: &[&str]) -> Result<serde_json::Value> {
        self.0.place.ip(words).await
    }

    /// `nft` on the node: its JSON when `-j` is among the words, else its lines.
    ///
    /// # Errors
    /// It failed.
    pub async fn nft(&self, words: &[&str]) -> Result<serde_json::Value> {
        self.0.place.nft(words).await
    }

    /// Puts the plugin into `/opt/cni/bin`, under both of its names.
    ///
    /// # Errors
    /// The binary is missing.
    pub async fn install_plugin(&self, aws_cni: Option<&Path>) -> Result<()> {
        let source = match aws_cni {
            Some(path) => path.to_owned(),
            None => self.binaries().find("aws-cni")?,
        };
        self.install(&source, "aws-cni").await?;
        self.exec(&["ln", "-sf", "aws-cni", "/opt/cni/bin/egress-cni"]).await?;
        Ok(())
    }

    /// Puts any plugin into `/opt/cni/bin`.
    ///
    /// # Errors
    /// The binary is missing.
    pub async fn install(&self, source: &Path, name: &str) -> Result<()> {
        // Copied by another process: a file that is open for writing here while some thread forks
        // cannot be executed until that child has gone.
        let source = source.to_str().with_context(|| format!("copy {}: not UTF-8", source.display()))?;
        let target = format!("/opt/cni/bin/{name}");
        self.exec(&["install", "-m", "755", source, &target]).await?;
        Ok(())
    }

    /// Gives the directory of the daemon's files a file system of its own, which has room for so
    /// many bytes. What was in it is not seen any more.
    ///
    /// # Errors
    /// The kernel refuses the mount.
    pub fn set_state_room(&self, bytes: u64) -> Result<()> {
        self.set_policy_agent(false)?;
        self.place().run(|| small_tmpfs(STATE_DIRECTORY, bytes))??;
        self.set_policy_agent(true)
    }

    /// Switches the network policy agent on or off.
    ///
    /// # Errors
    /// Its socket cannot be made.
    pub fn set_policy_agent(&self, is_on: bool) -> Result<()> {
        let mut agent = self.0.policy_agent.lock().unwrap_or_else(PoisonError::into_inner);
        match (is_on, agent.is_some()) {
            (true, false) => *agent = Some(PolicyAgent::start(&self.path(POLICY_AGENT_SOCKET))?),
            (false, true) => *agent = None,
            _ => {}
        }
        Ok(())
    }

    /// What the network policy agent was asked since it was switched on.
    pub fn policy_calls(&self) -> Vec<PolicyCall> {
        let agent = self.0.policy_agent.lock().unwrap_or_else(PoisonError::into_inner);
        agent.as_ref().map(PolicyAgent::calls).unwrap_or_default()
    }

    /// Where the binaries under test come from.
    pub fn binaries(&self) -> &Binaries {
        &self.0.binaries
    }

    fn lines(&self) -> &Lines {
        &self.0.lines
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for front in &self.fronts {
            front.abort();
        }
        super::contain::unmount(&self.net_name);
        let _ = std::fs::remove_file(&self.net_name);
    }
}

fn listen(place: &Place, address: Ipv4Addr) -> Result<TcpListener> {
    let address: SocketAddr = at(address, 80);
    Ok(TcpListener::from_std(place.tcp_listener(address)?)?)
}

/// The caller's search path with the directories of system tools behind it.
pub(crate) fn tool_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
}
