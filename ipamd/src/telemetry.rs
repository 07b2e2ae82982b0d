//! Logs: JSON lines into the daemon's file and onto stderr.
//!
//! A line has the keys `level`, `ts`, `caller` and `msg`, then the event's own fields, as log
//! shippers know them from amazon-vpc-cni-k8s. The file turns over at 100 MB and five old ones
//! stay. A file that cannot be opened is a warning on stderr and never a reason not to start.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

mod file;
mod line;

use file::RotatingFile;

/// Where the manifest mounts the host's log directory.
pub(crate) const DEFAULT_LOG_FILE: &str = "/host/var/log/aws-routed-eni/ipamd.log";

/// How much a file holds before it turns over, and how many old ones stay.
const FILE_BYTES: u64 = 100 * 1024 * 1024;
const OLD_FILES: u32 = 5;

/// What to log, and where to beside stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSettings {
    level: LevelFilter,
    sink: Sink,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Sink {
    /// A file, and stderr.
    File(PathBuf),
    Stdout,
    Stderr,
}

impl LogSettings {
    /// From AWS_VPC_K8S_CNI_LOGLEVEL and AWS_VPC_K8S_CNI_LOG_FILE.
    ///
    /// Without a level it is info. An unknown level is info too and a warning: logs are needed
    /// most where something is misconfigured.
    pub(crate) fn from_vars(variable: impl Fn(&str) -> Option<String>) -> (Self, Option<String>) {
        let text = |name| variable(name).filter(|value| !value.is_empty());
        let mut warning = None;
        let level = text("AWS_VPC_K8S_CNI_LOGLEVEL").map_or(LevelFilter::INFO, |value| {
            level(&value).unwrap_or_else(|| {
                warning = Some(format!(
                    "AWS_VPC_K8S_CNI_LOGLEVEL is {value:?}: expected debug, info, warn, error or fatal; \
                     it is info now"
                ));
                LevelFilter::INFO
            })
        });
        let file = text("AWS_VPC_K8S_CNI_LOG_FILE").unwrap_or_else(|| DEFAULT_LOG_FILE.to_owned());
        let sink = match file.to_ascii_lowercase().as_str() {
            "stdout" => Sink::Stdout,
            "stderr" => Sink::Stderr,
            _ => Sink::File(PathBuf::from(file)),
        };
        (Self { level, sink }, warning)
    }
}

fn level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Some(LevelFilter::DEBUG),
        "info" => Some(LevelFilter::INFO),
        "warn" | "warning" => Some(LevelFilter::WARN),
        // There is nothing above error here; an operator who asks for less gets the least.
        "error" | "fatal" => Some(LevelFilter::ERROR),
        _ => None,
    }
}

/// Sets logging up for the whole process; once, at its start.
///
/// # Errors
/// If logging has been set up before.
pub(crate) fn init(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), tracing::subscriber::SetGlobalDefaultError> {
    let (settings, warning) = LogSettings::from_vars(variable);
    let (outputs, file_warning) = Outputs::open(&settings.sink);
    tracing::subscriber::set_global_default(subscriber(settings.level, outputs))?;
    for warning in [warning, file_warning].into_iter().flatten() {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// Our own events at the level asked for, the libraries' from warnings on: at debug they log
/// every request, which fills a quiet node's disk.
fn subscriber(level: LevelFilter, outputs: Outputs) -> impl Subscriber + Send + Sync {
    let targets = tracing_subscriber::filter::Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets(["ipamd", "datapath", "ec2", "vpc", "proto"].map(|own| (own, level)));
    let lines = tracing_subscriber::fmt::layer().event_format(line::JsonLine).with_writer(outputs);
    tracing_subscriber::registry().with(targets).with(lines)
}

/// The places that every line goes to.
#[derive(Clone)]
struct Outputs {
    file: Option<Arc<Mutex<RotatingFile>>>,
    stream: Stream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
    /// For tests, whose output stays readable.
    #[cfg(test)]
    None,
}

impl Outputs {
    /// Opens what `sink` names; a warning says why a file is missing from it.
    fn open(sink: &Sink) -> (Self, Option<String>) {
        match sink {
            Sink::Stdout => (Self { file: None, stream: Stream::Stdout }, None),
            Sink::Stderr => (Self { file: None, stream: Stream::Stderr }, None),
            Sink::File(path) => match Self::open_file(path) {
                Ok(file) => (Self { file: Some(file), stream: Stream::Stderr }, None),
                Err(error) => {
                    let warning = format!("log file {}: {error}; logging to stderr only", path.display());
                    (Self { file: None, stream: Stream::Stderr }, Some(warning))
                }
            },
        }
    }

    fn open_file(path: &Path) -> io::Result<Arc<Mutex<RotatingFile>>> {
        Ok(Arc::new(Mutex::new(RotatingFile::open(path, FILE_BYTES, OLD_FILES)?)))
    }
}

impl fmt::Debug for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outputs(file: {}, {:?})", self.file.is_some(), self.stream)
    }
}

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Outputs {
    /// Takes a whole line. A full disk or a closed stream loses the line there and nowhere else.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(file) = &self.file {
            // A panic elsewhere while it was locked leaves a file that is as good as before.
            let _ = file.lock().unwrap_or_else(PoisonError::into_inner).append(line);
        }
        let _ = match self.stream {
            Stream::Stdout => io::stdout().lock().write_all(line),
            Stream::Stderr => io::stderr().lock().write_all(line),
            #[cfg(test)]
            Stream::None => Ok(()),
        };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
