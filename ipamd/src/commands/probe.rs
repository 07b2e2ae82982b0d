//! `ipamd probe`: asks a health service once, for kubelet's probes.
//!
//! Flags and exit codes are grpc-health-probe's, under which name existing pod specs execute
//! this: 0 serving, 1 bad arguments, 2 no connection, 3 the call failed, 4 not serving. The
//! outcome is one JSON line on stderr; stdout stays empty.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::chain::chain;

/// Between two attempts to connect, for a daemon that is just starting.
const RETRY: Duration = Duration::from_millis(50);

/// Whom to ask, and how long to wait.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProbeArgs {
    /// unix:///path, or host:port
    #[arg(long, default_value_t = format!("unix://{}", proto::IPAMD_SOCKET))]
    addr: String,
    /// The service to ask about; empty for the server as a whole
    #[arg(long, default_value = "")]
    service: String,
    /// The name under which to ask
    #[arg(long, default_value = "grpc-health-probe")]
    user_agent: String,
    /// How long connecting may take, such as 1s or 500ms
    #[arg(long, default_value = "1s", value_parser = duration)]
    connect_timeout: Duration,
    /// How long the call may take
    #[arg(long, default_value = "1s", value_parser = duration)]
    rpc_timeout: Duration,
    /// Log more
    #[arg(short = 'v', long = "verbose", visible_alias = "v")]
    verbose: bool,
}

/// The process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// The service says that it serves.
    Serving = 0,
    /// The arguments name nothing that can be asked.
    BadArguments = 1,
    /// Nobody could be reached in time.
    NoConnection = 2,
    /// The call failed, is unknown there, or took too long.
    CallFailed = 3,
    /// The service answers that it does not serve.
    NotServing = 4,
}

impl From<Verdict> for std::process::ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(verdict as u8)
    }
}

/// Arguments with Go's single dashes doubled: `-addr` means `--addr`.
pub(crate) fn double_dashes(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    arguments
        .map(|argument| match argument.to_str() {
            Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => {
                OsString::from(format!("-{text}"))
            }
            _ => argument,
        })
        .collect()
}

/// Asks, and writes the outcome to `log`.
pub(crate) async fn run(args: &ProbeArgs, log: &mut impl Write) -> Verdict {
    let started = Instant::now();
    let (verdict, text) = match ask(args).await {
        Ok(ServingStatus::Serving) => (Verdict::Serving, "status: SERVING".to_owned()),
        Ok(status) => (Verdict::NotServing, format!("status: {}", status.as_str_name())),
        Err(failure) => failure,
    };
    let level = if verdict == Verdict::Serving { "info" } else { "error" };
    let mut line = json!({ "level": level, "msg": text });
    if args.verbose {
        line["addr"] = args.addr.as_str().into();
        line["service"] = args.service.as_str().into();
        line["took_ms"] = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).into();
    }
    // The exit code is the answer; without stderr there is nowhere to complain.
    let _ = writeln!(log, "{line}");
    verdict
}

type Failure = (Verdict, String);

async fn ask(args: &ProbeArgs) -> Result<ServingStatus, Failure> {
    let target = Target::parse(&args.addr).map_err(|text| (Verdict::BadArguments, text))?;
    let endpoint = target
        .endpoint()
        .and_then(|endpoint| endpoint.user_agent(args.user_agent.clone()))
        .map_err(|error| (Verdict::BadArguments, format!("address {:?}: {error}", args.addr)))?;
    let channel = connect(&target, &endpoint, args.connect_timeout).await.map_err(|cause| {
        let text = format!("connect to {} within {:?}: {cause}", args.addr, args.connect_timeout);
        (Verdict::NoConnection, text)
    })?;
    let request = HealthCheckRequest { service: args.service.clone() };
    let mut client = HealthClient::new(channel);
    match timeout(args.rpc_timeout, client.check(request)).await {
        Err(_) => {
            Err((Verdict::CallFailed, format!("the health check took longer than {:?}", args.rpc_timeout)))
        }
        Ok(Err(status)) => {
            let text = format!("the health check failed: {:?}: {}", status.code(), status.message());
            Err((Verdict::CallFailed, text))
        }
        Ok(Ok(answer)) => Ok(answer.get_ref().status()),
    }
}

/// Tries until it works or `limit` is over, because a starting daemon may take a moment.
async fn connect(target: &Target, endpoint: &Endpoint, limit: Duration) -> Result<Channel, String> {
    let deadline = Instant::now() + limit;
    let mut cause = "nothing answered".to_owned();
    loop {
        match timeout_at(deadline, target.connect(endpoint)).await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(error)) => cause = chain(&error),
            Err(_) => return Err(cause),
        }
        if Instant::now() + RETRY >= deadline {
            return Err(cause);
        }
        sleep(RETRY).await;
    }
}

/// Where the health service listens.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Socket(PathBuf),
    Tcp(String),
}

impl Target {
    fn parse(address: &str) -> Result<Self, String> {
        let path = address.strip_prefix("unix://").or_else(|| address.strip_prefix("unix:"));
        match path {
            Some("") => Err(format!("address {address:?}: expected a path after unix:")),
            Some(path) => Ok(Self::Socket(PathBuf::from(path))),
            None if address.contains(':') => Ok(Self::Tcp(address.to_owned())),
            None => Err(format!("address {address:?}: expected unix:///path or host:port")),
        }
    }

    fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        match self {
            // The authority is never looked up: the connector goes to the socket.
            Self::Socket(_) => Ok(Endpoint::from_static("http://localhost")),
            Self::Tcp(address) => Endpoint::from_shared(format!("http://{address}")),
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        match self {
            Self::Socket(path) => {
                let path = path.clone();
                let dial = move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                };
                endpoint.connect_with_connector(tower::service_fn(dial)).await
            }
            Self::Tcp(_) => endpoint.connect().await,
        }
    }
}

/// Go's notation: `1s`, `500ms`, `1m30s`, `1.5s`, or `0`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a duration such as 1s, 500ms or 1m30s".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = &rest[..rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len())];
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[unit.len()..];
    }
    // A day is more than any probe waits, and keeps the clock's arithmetic in bounds.
    if text.is_empty() || total > Duration::from_secs(86_400) { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests;
