//! One question to the node daemon over its socket, and what to tell a person if it has no answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::node::node_client::NodeClient;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::chain::chain;

/// How long the daemon may take: it answers from memory, within milliseconds as a rule.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer: some ten thousand addresses of a hundred bytes, and the pods' names.
const ANSWER_SIZE: usize = 16 * 1024 * 1024;

/// How to ask, and how to print the answer.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AskArgs {
    /// The node daemon's socket
    #[arg(long, value_name = "PATH", default_value = proto::IPAMD_SOCKET)]
    pub(super) socket: PathBuf,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs; the keys stay as they are
    Json,
}

/// Why there is no answer, in words for the person who asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(
        "the node daemon does not run here: there is no socket {0:?}. On a node, run this in the aws-node \
         container, or name the socket with --socket"
    )]
    NoSocket(PathBuf),
    #[error(
        "the node daemon does not run: nobody listens on {0:?}, which an earlier one left behind. See the \
         log of the aws-node container for its end"
    )]
    NobodyListens(PathBuf),
    #[error("{0:?} is not open to this user: ask as root")]
    Forbidden(PathBuf),
    #[error("the node daemon at {path:?} cannot be reached: {cause}")]
    Unreachable { path: PathBuf, cause: String },
    #[error(
        "the node daemon at {path:?} accepts connections but has not answered within {} s: it hangs, or \
         the node is overloaded. See its log",
        after.as_secs()
    )]
    NoAnswer { path: PathBuf, after: Duration },
    #[error(
        "the daemon at {0:?} runs but does not know this question: it is amazon-vpc-cni-k8s, or another \
         release than this command"
    )]
    NotOurs(PathBuf),
    #[error("the node daemon at {path:?} runs but gave no answer: {cause}")]
    Failed { path: PathBuf, cause: String },
}

/// Asks the daemon at `socket` by means of `call`.
///
/// # Errors
/// [`AskError`], a sentence for the person who asked.
pub(super) async fn ask<T>(
    socket: &Path,
    call: impl AsyncFnOnce(NodeClient<Channel>) -> Result<Response<T>, Status>,
) -> Result<T, AskError> {
    let conversation = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| no_connection(socket, &error))?;
        let client = NodeClient::new(channel(socket, stream).await?).max_decoding_message_size(ANSWER_SIZE);
        call(client).await.map(Response::into_inner).map_err(|status| no_answer(socket, &status))
    };
    match timeout(PATIENCE, conversation).await {
        Ok(outcome) => outcome,
        Err(_) => Err(AskError::NoAnswer { path: socket.to_owned(), after: PATIENCE }),
    }
}

/// Speaks gRPC over a connection that stands already, so that its failure was the system's own.
async fn channel(socket: &Path, stream: UnixStream) -> Result<Channel, AskError> {
    let mut stream = Some(stream);
    let take = move |_| {
        let stream = stream.take();
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection has ended")) }
    };
    // The authority is never looked up.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint
        .connect_with_connector(tower::service_fn(take))
        .await
        .map_err(|error| AskError::Unreachable { path: socket.to_owned(), cause: chain(&error) })
}

fn no_connection(socket: &Path, error: &io::Error) -> AskError {
    let path = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => AskError::NoSocket(path),
        io::ErrorKind::ConnectionRefused => AskError::NobodyListens(path),
        io::ErrorKind::PermissionDenied => AskError::Forbidden(path),
        _ => AskError::Unreachable { path, cause: error.to_string() },
    }
}

fn no_answer(socket: &Path, status: &Status) -> AskError {
    let path = socket.to_owned();
    match status.code() {
        Code::Unimplemented => AskError::NotOurs(path),
        _ => AskError::Failed { path, cause: status.message().to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use proto::node::{StatusReply, StatusRequest};
    use tokio::net::UnixListener;
    use tokio_util::sync::CancellationToken;
    use tonic::transport::Server;

    use super::*;

    async fn status(socket: &Path) -> Result<StatusReply, AskError> {
        ask(socket, async |mut client| client.status(StatusRequest {}).await).await
    }

    async fn complaint(socket: &Path) -> String {
        status(socket).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn without_a_socket_the_daemon_does_not_run() {
        let directory = tempfile::tempdir().unwrap();

        let said = complaint(&directory.path().join("ipamd.sock")).await;

        assert!(said.starts_with("the node daemon does not run here: there is no socket"), "{said}");
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipamd.sock");
        drop(StdListener::bind(&path).unwrap());

        let said = complaint(&path).await;

        assert!(said.starts_with("the node daemon does not run: nobody listens on"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipamd.sock");
        let _hangs = StdListener::bind(&path).unwrap();

        let said = complaint(&path).await;

        assert!(said.contains("accepts connections but has not answered within 5 s"), "{said}");
    }

    #[tokio::test]
    async fn a_daemon_of_the_reference_runs_but_does_not_know_the_question() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipamd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let stop = CancellationToken::new();
        let (_, health) = tonic_health::server::health_reporter();
        let server = Server::builder().add_service(health);
        let server = server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let server = tokio::spawn(server);

        let said = complaint(&path).await;
        stop.cancel();
        server.await.unwrap().unwrap();

        assert!(said.contains("runs but does not know this question: it is amazon-vpc-cni-k8s"), "{said}");
    }
}
