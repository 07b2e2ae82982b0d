//! The network policy agent: told of a pod once it is wired, and once it is gone.

use std::path::Path;
use std::time::{Duration, Instant};

use proto::rpc::np_backend_client::NpBackendClient;
use proto::rpc::{DeleteNpRequest, EnforceNpRequest};
use vpc::PodName;

use crate::rpc::{CallError, ask, origin, runtime};

/// How long the agent may be absent, as when it restarts.
const DIAL_FOR: Duration = Duration::from_secs(2);

/// How long it may think.
const CALL_LASTS: Duration = Duration::from_secs(5);

/// The pause between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(100);

/// Has the agent enforce `mode` on the pod's interfaces before its first packet.
///
/// # Errors
/// What went wrong; the pod must not run then.
pub(crate) fn enforce(socket: &Path, pod: &PodName, mode: &str, interfaces: usize) -> Result<(), String> {
    let message = EnforceNpRequest {
        k8s_pod_name: pod.name.clone(),
        k8s_pod_namespace: pod.namespace.clone(),
        network_policy_mode: mode.to_owned(),
        interface_count: i32::try_from(interfaces).unwrap_or(i32::MAX),
    };
    let answer = patiently(async || {
        ask(socket, Instant::now() + CALL_LASTS, message.clone(), |connection, request| async move {
            NpBackendClient::with_origin(connection, origin()).enforce_np_to_pod(request).await
        })
        .await
    });
    match answer {
        Ok(reply) if reply.success => Ok(()),
        Ok(_) => Err("the network policy agent refused the pod".to_owned()),
        Err(error) => Err(format!("ask the network policy agent on {}: {error}", socket.display())),
    }
}

/// Has the agent forget the pod.
///
/// # Errors
/// What went wrong; the agent then finds out by itself that the pod is gone.
pub(crate) fn forget(socket: &Path, pod: &PodName) -> Result<(), String> {
    let message =
        DeleteNpRequest { k8s_pod_name: pod.name.clone(), k8s_pod_namespace: pod.namespace.clone() };
    let answer = patiently(async || {
        ask(socket, Instant::now() + CALL_LASTS, message.clone(), |connection, request| async move {
            NpBackendClient::with_origin(connection, origin()).delete_pod_np(request).await
        })
        .await
    });
    match answer {
        Ok(reply) if reply.success => Ok(()),
        Ok(_) => Err("the network policy agent refused to forget the pod".to_owned()),
        Err(error) => Err(format!("tell the network policy agent on {}: {error}", socket.display())),
    }
}

/// Repeats a call while nobody listens, for [`DIAL_FOR`].
fn patiently<R>(call: impl AsyncFn() -> Result<R, CallError>) -> Result<R, CallError> {
    let until = Instant::now() + DIAL_FOR;
    runtime()?.block_on(async {
        loop {
            match call().await {
                Err(CallError::Unreachable(_)) if Instant::now() + PAUSE < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    })
}
