//! `aws-cni`, the short-lived plugin that a container runtime executes for each pod; called as
//! `egress-cni`, the chained plugin behind it.
//!
//! Parse, ask the node daemon, wire, report. Stdout carries the CNI result or the CNI error and
//! nothing else; the exit status is 0 or 1.
#![forbid(unsafe_code)]

mod add;
mod check;
mod daemon;
mod del;
mod egress;
mod error;
mod gc;
mod json;
mod log;
mod policy_agent;
mod previous;
mod request;
mod result;
mod rpc;
mod spool;
mod status;
mod teardown;

use std::any::Any;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use error::{CniError, Code};
use json::Json;
use log::Journal;
use request::{Called, NetworkConfig, Request, Verb, version};

/// More than any network configuration has; what is longer is cut, and then no JSON.
const STDIN_LIMIT: u64 = 16 << 20;

/// Where the others are found.
struct Paths {
    ipamd: PathBuf,
    policy_agent: PathBuf,
    spool: PathBuf,
}

/// The plugins that this program is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plugin {
    Aws,
    Egress,
}

fn main() -> ExitCode {
    let started = Instant::now();
    let outcome = std::panic::catch_unwind(|| call(started)).unwrap_or_else(|panic| Err(broken(&*panic)));
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.render(), ExitCode::FAILURE),
    };
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What the runtime is told of a fault in this program.
fn broken(panic: &(dyn Any + Send)) -> CniError {
    let what = panic.downcast_ref::<&str>().copied();
    let what = what.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    CniError::new(Code::INTERNAL, format!("aws-cni has a fault, please report it: {what}"))
}

fn call(started: Instant) -> Result<String, CniError> {
    let called_as = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let is_egress = called_as.file_name().is_some_and(|name| name == "egress-cni");
    let plugin = if is_egress { Plugin::Egress } else { Plugin::Aws };
    let variable = |name: &str| {
        std::env::var_os(name)
            .map(OsString::into_string)
            .map_or_else(String::new, |text| text.unwrap_or_else(|raw| raw.to_string_lossy().into_owned()))
    };
    let stdin = || {
        let mut text = Vec::new();
        io::stdin().take(STDIN_LIMIT).read_to_end(&mut text).map(|_| text)
    };
    match Request::read(variable, stdin)? {
        Called::About => {
            about(plugin);
            Ok(String::new())
        }
        Called::Version => Ok(versions()),
        Called::For(request) if plugin == Plugin::Egress => egress::run(&request, started),
        Called::For(request) => {
            let at = |path: &str| Path::new(path).to_owned();
            let paths = Paths {
                ipamd: at(proto::IPAMD_SOCKET),
                policy_agent: at(proto::NPA_SOCKET),
                spool: at(proto::DEL_SPOOL),
            };
            serve(&request, &paths, started)
        }
    }
}

fn about(plugin: Plugin) {
    let name = match plugin {
        Plugin::Aws => "AWS CNI",
        Plugin::Egress => "egress CNI plugin",
    };
    let versions = version::SUPPORTED.join(", ");
    let text = format!("{name} {}\nCNI protocol versions supported: {versions}\n", env!("CARGO_PKG_VERSION"));
    // Whoever closed stderr does not want to know.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn versions() -> String {
    let supported = version::SUPPORTED.map(Json::string).to_vec();
    let answer = Json::object([
        ("cniVersion", Json::string(version::NEWEST)),
        ("supportedVersions", Json::Array(supported)),
    ]);
    let mut text = answer.compact();
    text.push('\n');
    text
}

fn serve(request: &Request, paths: &Paths, started: Instant) -> Result<String, CniError> {
    let prefix = request.verb.prefix();
    let config = NetworkConfig::read(&request.config, request.version).map_err(|error| {
        CniError::new(Code::INTERNAL, format!("{prefix}: error loading config from args: {error}"))
    })?;
    let mut journal = Journal::new("aws-cni", started);
    let outcome = match request.verb {
        Verb::Add => add::run(request, &config, paths, &mut journal),
        Verb::Del => del::run(request, &config, paths, &mut journal),
        Verb::Check => check::run(request, &config, &mut journal),
        Verb::Status => status::run(&paths.ipamd, &journal),
        Verb::Gc => gc::run(request, &config, paths, &mut journal),
    };
    journal.write(&config.log, &config.log_level, request, outcome.as_ref().err());
    outcome
}
