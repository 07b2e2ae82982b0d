//! Leaving a DEL for a daemon that is not there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use proto::spool::{EXTENSION, MAX_ENTRIES, SpooledDel};

/// Why an entry could not be left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    #[error("{action} {path}: {cause}")]
    Io { action: &'static str, path: String, cause: io::Error },
    #[error("{path} holds {MAX_ENTRIES} entries already: is a daemon of this release running?")]
    Full { path: String },
}

/// The time that an entry of now carries.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Leaves `entry` in `directory`, which is made if it is missing: wholly and durably, or not at
/// all.
pub(crate) fn leave(directory: &Path, entry: &SpooledDel) -> Result<(), SpoolError> {
    let failed = |action, path: &Path| {
        let path = path.display().to_string();
        move |cause| SpoolError::Io { action, path, cause }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("create directory", directory))?;
    let entries = fs::read_dir(directory).map_err(failed("read directory", directory))?;
    let kept = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(EXTENSION));
    if kept.count() >= MAX_ENTRIES {
        return Err(SpoolError::Full { path: directory.display().to_string() });
    }

    let name = entry.file_name(std::process::id());
    let finished = directory.join(&name);
    let beside = directory.join(format!(".{name}.tmp"));
    let text = serde_json::to_vec(entry).map_err(|error| failed("encode", &finished)(error.into()))?;
    let written = write(&beside, &text).and_then(|()| fs::rename(&beside, &finished));
    if written.is_err() {
        // The half-written file may not be there at all.
        let _ = fs::remove_file(&beside);
    }
    written.map_err(failed("write", &finished))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(unix_time_ns: u64) -> SpooledDel {
        SpooledDel {
            network: "aws-cni".to_owned(),
            container_id: "abc".to_owned(),
            interface: "eth0".to_owned(),
            pod_name: "web-0".to_owned(),
            pod_namespace: "default".to_owned(),
            addresses: vec!["10.0.1.7".parse().unwrap()],
            unix_time_ns,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_entry_is_found_again_as_it_was_left() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("del-spool");

        leave(&directory, &entry(9)).unwrap();
        leave(&directory, &entry(10)).unwrap();

        let names = names(&directory);
        assert_eq!(names.len(), 2, "{names:?}");
        let first: SpooledDel =
            serde_json::from_slice(&fs::read(directory.join(&names[0])).unwrap()).unwrap();
        assert_eq!(first, entry(9));
    }

    #[test]
    fn a_full_spool_keeps_its_oldest_entries_and_takes_no_more() {
        let temporary = tempfile::tempdir().unwrap();
        for number in 0..MAX_ENTRIES {
            fs::write(temporary.path().join(format!("{number:020}-1.json")), "{}").unwrap();
        }

        assert!(matches!(leave(temporary.path(), &entry(1)), Err(SpoolError::Full { .. })));
        assert_eq!(names(temporary.path()).len(), MAX_ENTRIES);
    }
}
