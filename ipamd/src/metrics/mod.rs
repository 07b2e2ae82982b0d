//! `GET /metrics` for Prometheus: what the pool and the node's network say at the moment of asking.
//!
//! Names and port are those of amazon-vpc-cni-k8s, so that dashboards and cni-metrics-helper go on.
//! Anybody on the network may ask, hence a connection is one request, has a deadline for all of
//! it, and few are served at once.

mod families;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};
use vpc::Family;

use crate::host::HostHandle;
use crate::pool_task::PoolHandle;
use families::Families;

/// Version 0.0.4 of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long a connection may take, from its first byte to its last.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long the pool and the host may take to answer; both do so between two pieces of work.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Connections served at once; one more waits in the kernel.
const MOST_CONNECTIONS: usize = 4;

/// How much of a request is kept at most; scrapers send a few hundred bytes.
const REQUEST_SIZE: usize = 16 * 1024;

/// Connections that may wait in the kernel.
const BACKLOG: u32 = 32;

/// The first pause before another try to listen, which doubles each time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long to leave the socket alone after the system gave no connection, for want of file
/// descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whom a scrape asks.
#[derive(Debug)]
pub(crate) struct Source {
    pool: PoolHandle,
    host: HostHandle,
    families: Families,
}

impl Source {
    /// Figures of this pool, which serves pods of this family, and of this host.
    ///
    /// # Errors
    /// Two families share a name, which is a fault of the daemon.
    pub(crate) fn new(pool: PoolHandle, host: HostHandle, family: Family) -> Result<Self, prometheus::Error> {
        Ok(Self { pool, host, families: Families::new(family)? })
    }

    /// Every figure as text, or a sentence that says why there is none.
    async fn scrape(&self) -> Result<String, String> {
        let asked = async { tokio::join!(self.pool.report(), self.host.health()) };
        let (report, health) = timeout(ANSWER_DEADLINE, asked)
            .await
            .map_err(|_| format!("The daemon has not answered within {} s.", ANSWER_DEADLINE.as_secs()))?;
        let report = report.ok_or_else(|| "The daemon is shutting down.".to_owned())?;
        let health = health.map_err(|error| format!("The node's network cannot be told of: {error}."))?;
        self.families
            .text(&report, &health)
            .map_err(|error| format!("The figures cannot be written as text: {error}."))
    }
}

/// Answers scrapes at `address`, for ever. An address that is taken is tried again and again:
/// pods can be served without metrics.
pub(crate) async fn serve(address: SocketAddr, source: Source) {
    let router = router(source);
    let mut pause = FIRST_PAUSE;
    let listener = loop {
        match listen(address) {
            Ok(listener) => break listener,
            Err(error) => {
                error!(%address, %error, again_in = ?pause, "metrics are not served");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    };
    info!(%address, "serving metrics");
    accept(listener, &router).await;
}

fn router(source: Source) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(Arc::new(source))
}

async fn metrics(State(source): State<Arc<Source>>) -> Response {
    match source.scrape().await {
        Ok(text) => ([(CONTENT_TYPE, TEXT)], text).into_response(),
        Err(sentence) => {
            warn!(sentence, "no metrics for a scrape");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{sentence}\n")).into_response()
        }
    }
}

/// Listens; at `::` for both families, or for IPv4 alone where the kernel has no IPv6.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let (socket, address) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, address),
        SocketAddr::V6(_) => match TcpSocket::new_v6() {
            Ok(socket) => {
                setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
                (socket, address)
            }
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) && address.ip().is_unspecified() =>
            {
                (TcpSocket::new_v4()?, SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
            }
            Err(error) => return Err(error),
        },
    };
    // A daemon that has just ended leaves connections that the kernel keeps for a minute.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, router: &Router) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(answer(stream, router.clone()))),
                Err(error) => {
                    warn!(%error, "connection not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, router: Router) {
    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    server.http1().keep_alive(false).max_buf_size(REQUEST_SIZE);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error, "scrape broken off"),
        Err(_) => debug!("scrape took longer than {} s", DEADLINE.as_secs()),
    }
}
