//! One kernel setting: read first, written only where it differs.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

/// A setting under /proc/sys and the value it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Knob {
    path: String,
    value: &'static str,
    may_be_absent: bool,
}

impl Knob {
    pub(super) fn new(path: impl Into<String>, value: &'static str) -> Self {
        Self { path: path.into(), value, may_be_absent: false }
    }

    /// Some kernels do not have it, and that is no fault.
    pub(super) fn if_present(self) -> Self {
        Self { may_be_absent: true, ..self }
    }

    /// Makes it so, and says what changed; nothing where nothing did.
    pub(super) fn set(&self, root: &Path) -> Result<Option<String>> {
        let path = root.join(&self.path);
        let before = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.may_be_absent => return Ok(None),
            read => read.with_context(|| format!("read sysctl {}", self.path))?,
        };
        let before = before.trim();
        if before == self.value {
            return Ok(None);
        }
        fs::write(&path, self.value)
            .with_context(|| format!("set sysctl {} to {}", self.path, self.value))?;
        Ok(Some(format!("sysctl {}: {before} -> {}", self.path, self.value)))
    }
}
