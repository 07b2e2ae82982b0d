//! A node for the plugin: namespaces of its own, and a daemon that answers as a test wants.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::node::node_server::{Node, NodeServer};
use proto::node::{
    CollectReply, CollectRequest, ConfirmReply, ConfirmRequest, ReadinessReply, ReadinessRequest,
    StatusReply, StatusRequest, WhyReply, WhyRequest,
};
use proto::rpc::cni_backend_server::{CniBackend, CniBackendServer};
use proto::rpc::{
    AddNetworkReply, AddNetworkRequest, DelNetworkReply, DelNetworkRequest, IpAllocationMetadata,
};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// A node: a user, a mount and a network namespace, in which `/run/aws-node` is `directory`.
pub(crate) struct World {
    directory: TempDir,
    keeper: Child,
    daemon: Option<Runtime>,
}

/// The plugin's path. Read when the test runs, since the shell that wraps the compiler drops
/// variables with a hyphen in their name.
pub(crate) fn plugin() -> String {
    std::env::var("CARGO_BIN_EXE_aws-cni").unwrap()
}

/// What the plugin left behind.
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl World {
    /// A node without a daemon; none if this machine does not allow namespaces.
    pub(crate) fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let setup = "mount -t tmpfs tmpfs /run && mkdir -p /run/aws-node /run/netns && \
                     mount --bind \"$1\" /run/aws-node && ip link set lo up && ip netns add pod && \
                     echo ready && exec cat";
        let mut keeper = Command::new("unshare")
            .args(["--map-root-user", "--mount", "--net", "sh", "-c", setup, "sh"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() != "ready" {
            keeper.wait().unwrap();
            eprintln!("skipped: unshare, mount or ip netns is not permitted or missing here");
            return None;
        }
        Some(Self { directory, keeper, daemon: None })
    }

    /// A path that the plugin knows below `/run/aws-node`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts `fake` on the daemon's socket.
    pub(crate) fn serve(&mut self, fake: &Fake) {
        let runtime = start(&self.path("ipamd.sock"), fake);
        self.daemon = Some(runtime);
    }

    /// Listens on the daemon's socket without speaking its language.
    pub(crate) fn listen(&self) -> StdListener {
        StdListener::bind(self.path("ipamd.sock")).unwrap()
    }

    /// Runs a program on the node.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--preserve-credentials", "--user", "--mount", "--net", "-t"]);
        command.arg(self.keeper.id().to_string()).arg(program);
        command
    }

    /// What a program on the node prints.
    pub(crate) fn output(&self, line: &str) -> String {
        let Output { status, stdout, stderr } = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(status.success(), "{line}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// Calls the plugin with the usual variables and those of `variables`.
    pub(crate) fn call(&self, verb: &str, variables: &[(&str, &str)], stdin: &str) -> Outcome {
        self.call_as(&plugin(), verb, variables, stdin)
    }

    /// Calls the plugin at `path`.
    pub(crate) fn call_as(&self, path: &str, verb: &str, variables: &[(&str, &str)], stdin: &str) -> Outcome {
        let started = Instant::now();
        let mut plugin = self.start(path, verb, variables);
        // A plugin that complains about its variables does not read stdin.
        let _ = plugin.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = plugin.wait_with_output().unwrap();
        Outcome {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: started.elapsed(),
        }
    }

    /// Starts the plugin at `path`, which then waits for its configuration on stdin.
    pub(crate) fn start(&self, path: &str, verb: &str, variables: &[(&str, &str)]) -> Child {
        self.command(path)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "abc"), ("CNI_IFNAME", "eth0")])
            .envs([("CNI_NETNS", "/run/netns/pod"), ("CNI_PATH", "/opt/cni/bin")])
            .env(
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=sample-pod;K8S_POD_UID=u",
            )
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// Serves `fake` on `socket` until the runtime is shut down.
pub(crate) fn start(socket: &Path, fake: &Fake) -> Runtime {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
    let node = fake.node.is_some().then(|| NodeServer::new(fake.clone()));
    let server = tonic::transport::Server::builder()
        .add_service(CniBackendServer::new(fake.clone()))
        .add_optional_service(node);
    runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    runtime
}

impl Drop for World {
    fn drop(&mut self) {
        // The keeper lives as long as its stdin.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        if let Some(runtime) = self.daemon.take() {
            runtime.shutdown_background();
        }
    }
}

impl Outcome {
    /// The error that the plugin printed: its number and its text.
    pub(crate) fn error(&self) -> (u64, String) {
        assert_eq!(self.code, 1, "{} {}", self.stdout, self.stderr);
        let error: serde_json::Value = serde_json::from_str(&self.stdout).unwrap();
        (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
    }

    /// Fails the test unless the plugin succeeded.
    #[track_caller]
    pub(crate) fn success(&self) -> &Self {
        assert_eq!(self.code, 0, "{} {}", self.stdout, self.stderr);
        self
    }
}

type Answer<M, R> = Arc<dyn Fn(&M) -> Result<R, Status> + Send + Sync>;

/// A node daemon that answers what it was told to, and notes what it was asked.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) add: Answer<AddNetworkRequest, AddNetworkReply>,
    pub(crate) del: Answer<DelNetworkRequest, DelNetworkReply>,
    /// Whether it is ready, if it knows that question at all.
    pub(crate) node: Option<ReadinessReply>,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Gives `address`, of the ENI at position `device`, to everybody.
    pub(crate) fn giving(address: &str, device: i32, table: i32) -> Self {
        let metadata = vec![IpAllocationMetadata {
            i_pv4_addr: address.to_owned(),
            device_number: device,
            route_table_id: table,
            ..IpAllocationMetadata::default()
        }];
        let back = metadata.clone();
        Self {
            add: Arc::new(move |_| {
                let ip_allocation_metadata = metadata.clone();
                Ok(AddNetworkReply { success: true, ip_allocation_metadata, ..AddNetworkReply::default() })
            }),
            del: Arc::new(move |_| {
                let ip_allocation_metadata = back.clone();
                Ok(DelNetworkReply { success: true, ip_allocation_metadata, ..DelNetworkReply::default() })
            }),
            node: None,
            seen: Arc::default(),
        }
    }

    /// What it was asked, in order.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, what: String) {
        self.seen.lock().unwrap().push(what);
    }
}

#[tonic::async_trait]
impl CniBackend for Fake {
    async fn add_network(
        &self,
        request: Request<AddNetworkRequest>,
    ) -> Result<Response<AddNetworkReply>, Status> {
        let timeout = request.metadata().contains_key("grpc-timeout");
        let request = request.into_inner();
        let version = &request.client_version;
        self.note(format!("ADD {} {version:?} deadline={timeout}", request.container_id));
        (self.add)(&request).map(Response::new)
    }

    async fn del_network(
        &self,
        request: Request<DelNetworkRequest>,
    ) -> Result<Response<DelNetworkReply>, Status> {
        let request = request.into_inner();
        self.note(format!("DEL {} {}", request.container_id, request.reason));
        (self.del)(&request).map(Response::new)
    }
}

#[tonic::async_trait]
impl Node for Fake {
    async fn readiness(&self, _: Request<ReadinessRequest>) -> Result<Response<ReadinessReply>, Status> {
        Ok(Response::new(self.node.clone().unwrap_or_default()))
    }

    async fn confirm(&self, _: Request<ConfirmRequest>) -> Result<Response<ConfirmReply>, Status> {
        Err(Status::unimplemented("this daemon confirms no ADD"))
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Result<Response<CollectReply>, Status> {
        self.note(format!("GC of all but {}", request.into_inner().valid.len()));
        Ok(Response::new(CollectReply::default()))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Err(Status::unimplemented("no plugin asks for this"))
    }

    async fn why(&self, _: Request<WhyRequest>) -> Result<Response<WhyReply>, Status> {
        Err(Status::unimplemented("no plugin asks for this"))
    }
}
