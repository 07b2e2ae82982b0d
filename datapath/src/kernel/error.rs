//! Why the kernel refused.

use std::io;

/// A request that the kernel refused, or an answer that did not come.
///
/// Its text names action, object and cause: `delete rule from 10.0.1.7 lookup 3: No such file
/// or directory (os error 2)`.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}{}", hint(.explanation))]
pub struct KernelError {
    /// What was attempted, on which object.
    pub action: String,
    /// The errno that came back.
    pub cause: io::Error,
    /// What the kernel said besides.
    pub explanation: Option<String>,
}

fn hint(explanation: &Option<String>) -> String {
    explanation.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

impl KernelError {
    /// The failure of `action` by `cause`.
    pub(crate) fn new(action: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        Self { action: action.into(), cause: cause.into(), explanation: None }
    }

    /// The errno, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }
}
