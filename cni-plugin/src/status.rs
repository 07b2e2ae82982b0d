//! STATUS: whether an ADD could be served now.

use std::path::Path;

use crate::daemon::Daemon;
use crate::error::{CniError, Code};
use crate::log::Journal;

/// Serves a STATUS, which prints nothing.
pub(crate) fn run(socket: &Path, journal: &Journal) -> Result<String, CniError> {
    let daemon = Daemon { socket, started: journal.started() };
    let unavailable = |message| CniError::new(Code::UNAVAILABLE, format!("status cmd: {message}"));
    match daemon.readiness() {
        Ok(Ok(())) => Ok(String::new()),
        Ok(Err(what)) => Err(unavailable(format!("the node daemon serves no ADD now: {what}"))),
        Err(error) => Err(unavailable(format!("the node daemon does not answer: {error}"))),
    }
}
