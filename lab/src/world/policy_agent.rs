//! A network policy agent that says yes and remembers what it was asked.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tokio::task::AbortHandle;
use tonic::{Request, Response, Status};

use self::wire::np_backend_server::{NpBackend, NpBackendServer};
use self::wire::{DeleteNpReply, DeleteNpRequest, EnforceNpReply, EnforceNpRequest};

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod wire {
    tonic::include_proto!("rpc");
}

/// One thing that the agent was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyCall {
    /// Enforce policies on a new pod.
    Enforce {
        /// Kubernetes namespace.
        namespace: String,
        /// Pod name.
        name: String,
        /// `standard`, `strict`, `none`, as the daemon was configured.
        mode: String,
        /// How many interfaces the pod has.
        interfaces: i32,
    },
    /// Forget a pod.
    Delete {
        /// Kubernetes namespace.
        namespace: String,
        /// Pod name.
        name: String,
    },
}

/// A running agent; it ends, and its socket goes, with this value.
#[derive(Debug)]
pub struct PolicyAgent {
    calls: Calls,
    server: AbortHandle,
    socket: std::path::PathBuf,
}

#[derive(Debug, Clone, Default)]
struct Calls(Arc<Mutex<Vec<PolicyCall>>>);

impl PolicyAgent {
    /// Serves on a unix socket at `path`.
    pub(crate) fn start(path: &Path) -> Result<PolicyAgent> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let calls = Calls::default();
        let server = tonic::transport::Server::builder()
            .add_service(NpBackendServer::new(calls.clone()))
            .serve_with_incoming(incoming);
        Ok(PolicyAgent { calls, server: tokio::spawn(server).abort_handle(), socket: path.to_owned() })
    }

    /// What it was asked so far, oldest first.
    pub fn calls(&self) -> Vec<PolicyCall> {
        self.calls.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for PolicyAgent {
    fn drop(&mut self) {
        self.server.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Calls {
    fn note(&self, call: PolicyCall) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

#[tonic::async_trait]
impl NpBackend for Calls {
    async fn enforce_np_to_pod(
        &self,
        request: Request<EnforceNpRequest>,
    ) -> Result<Response<EnforceNpReply>, Status> {
        let it = request.into_inner();
        self.note(PolicyCall::Enforce {
            namespace: it.k8s_pod_namespace,
            name: it.k8s_pod_name,
            mode: it.network_policy_mode,
            interfaces: it.interface_count,
        });
        Ok(Response::new(EnforceNpReply { success: true }))
    }

    async fn delete_pod_np(
        &self,
        request: Request<DeleteNpRequest>,
    ) -> Result<Response<DeleteNpReply>, Status> {
        let it = request.into_inner();
        self.note(PolicyCall::Delete { namespace: it.k8s_pod_namespace, name: it.k8s_pod_name });
        Ok(Response::new(DeleteNpReply { success: true }))
    }
}
