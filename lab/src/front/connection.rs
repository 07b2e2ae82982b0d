//! Serving HTTP/1.1 with the freedom to close a connection without an answer.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Requests of the real services stay far below this.
const LARGEST_BODY: usize = 1 << 20;
/// Connections served at once; one more waits.
const MOST_CONNECTIONS: usize = 512;

/// What a front does with a request.
pub(super) enum Fate {
    /// Sends this.
    Answer(Response<Full<Bytes>>),
    /// Closes the connection.
    Close,
    /// Leaves the caller waiting.
    Silence,
}

/// The error that makes hyper close a connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection closes without an answer")]
struct Hangup;

/// Serves every connection of `listener` with `respond`, for ever.
pub(super) async fn serve<F, R>(listener: TcpListener, respond: F) -> Infallible
where
    F: Fn(Request<Bytes>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Fate> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or a client that left early; neither lasts.
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        // Small answers must not wait for the client's delayed acknowledgements.
        let _ = stream.set_nodelay(true);
        let respond = respond.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| one(request, respond.clone()));
            // An error is a client that left, or a hang-up that a test asked for.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn one<F, R>(request: Request<Incoming>, respond: F) -> Result<Response<Full<Bytes>>, Hangup>
where
    F: Fn(Request<Bytes>) -> R,
    R: Future<Output = Fate>,
{
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, LARGEST_BODY).collect().await else {
        return Ok(answer(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", String::new()));
    };
    match respond(Request::from_parts(head, body.to_bytes())).await {
        Fate::Answer(response) => Ok(response),
        Fate::Close => Err(Hangup),
        Fate::Silence => std::future::pending().await,
    }
}

/// A response with a body of this content type.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static(content_type));
    response
}
