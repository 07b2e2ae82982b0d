//! One gRPC call over a unix socket: connect, ask, leave.
//!
//! A whole channel with its queue, reconnects and name resolution is built for processes that
//! live; this one asks once, so it speaks HTTP/2 on the one connection it makes.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Code, Request, Response, Status};

/// The part of the time that a caller keeps for itself, so that the other side answers first.
const MARGIN: Duration = Duration::from_millis(500);

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Nobody listens, or the connection broke before the answer: worth asking again.
    Unreachable(String),
    /// Time is up.
    TimedOut(Duration),
    /// The other side answered with a failure.
    Answered(Status),
    /// This process could not even begin.
    Unprepared(io::Error),
}

impl CallError {
    /// Whether the other side does not know the method.
    pub(crate) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Answered(status) if status.code() == Code::Unimplemented)
    }
}

/// As Go's gRPC prints it, since that is what people search for.
impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(cause) => write!(f, "rpc error: code = Unavailable desc = {cause}"),
            Self::TimedOut(after) => write!(
                f,
                "rpc error: code = DeadlineExceeded desc = context deadline exceeded: no answer within {after:?}"
            ),
            Self::Answered(status) => {
                write!(f, "rpc error: code = {:?} desc = {}", status.code(), status.message())
            }
            Self::Unprepared(cause) => write!(f, "start a runtime: {cause}"),
        }
    }
}

/// A connection as generated clients want it.
#[derive(Clone)]
pub(crate) struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Where generated clients think that they are connected; what Go's clients send on unix sockets.
pub(crate) fn origin() -> http::Uri {
    http::Uri::from_static("http://localhost")
}

/// A runtime for this thread alone.
pub(crate) fn runtime() -> Result<Runtime, CallError> {
    Builder::new_current_thread().enable_io().enable_time().build().map_err(CallError::Unprepared)
}

/// Sends `message` to the socket at `path` by means of `call`, and waits until `deadline`.
pub(crate) async fn ask<M, R, C, F>(
    path: &Path,
    deadline: Instant,
    message: M,
    call: C,
) -> Result<R, CallError>
where
    C: FnOnce(Connection, Request<M>) -> F,
    F: Future<Output = Result<Response<R>, Status>>,
{
    let left = deadline.saturating_duration_since(Instant::now());
    let conversation = async {
        let connection = connect(path).await?;
        let mut request = Request::new(message);
        request.set_timeout(left.saturating_sub(MARGIN).max(left / 2));
        call(connection, request).await.map(Response::into_inner).map_err(classify)
    };
    match tokio::time::timeout(left, conversation).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CallError::TimedOut(left)),
    }
}

async fn connect(path: &Path) -> Result<Connection, CallError> {
    let stream = UnixStream::connect(path).await.map_err(|error| {
        let cause = plain(&error);
        CallError::Unreachable(format!(
            "connection error: desc = \"transport: Error while dialing: dial unix {}: connect: {cause}\"",
            path.display()
        ))
    })?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| CallError::Unreachable(format!("connection error: desc = \"{}\"", chain(&error))))?;
    tokio::spawn(async {
        // Whatever ends the connection also ends the call that waits on it, and is reported there.
        let _ = connection.await;
    });
    Ok(Connection(sender))
}

fn classify(status: Status) -> CallError {
    // A status that has a source was made on this side, of a connection that broke.
    match status.source() {
        Some(source) => CallError::Unreachable(format!("connection error: desc = \"{}\"", chain(source))),
        None if status.code() == Code::Unavailable => CallError::Unreachable(status.message().to_owned()),
        None => CallError::Answered(status),
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// An errno's text without its number, in lower case as Go prints it.
fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
