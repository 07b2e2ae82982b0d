//! The lab's command line.

use std::process::ExitCode;

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    ExitCode::SUCCESS
}
