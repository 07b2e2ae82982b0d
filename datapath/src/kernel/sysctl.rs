//! Kernel settings under /proc/sys, of the calling thread's namespace.

use std::path::PathBuf;
use std::{fs, io};

use super::KernelError;

/// The value of setting `key`, with `/` between its parts, as names of links may hold dots.
pub(crate) fn read(key: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(key))?.trim_end().to_owned())
}

/// Gives setting `key` the value `value` unless it has it. What the kernel does not have, as
/// IPv6 settings on a node without IPv6, is left at that.
pub(crate) fn set(key: &str, value: &str) -> Result<(), KernelError> {
    let changed = match read(key) {
        Ok(found) if found == value => Ok(()),
        Ok(_) => fs::write(path(key), value),
        Err(cause) => Err(cause),
    };
    match changed {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::new(format!("set {key} to {value}"), cause))
        }
        _ => Ok(()),
    }
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}
