//! Files that are either wholly old or wholly new after a crash.

mod disk;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use disk::{Disk, Offload, RealDisk};

/// Makes `contents` the whole content of `path`, durably: once this returns, a crash keeps it.
///
/// The file is written beside its target under a name of its own, synced, moved into place, and
/// then the directory is synced, without which the move itself may be lost.
///
/// # Errors
/// [`WriteError`] if any of that fails. The old content stays, except where only the last sync
/// failed; then nobody knows which content a crash would leave.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, contents: &[u8]) -> Result<(), WriteError> {
    let fail = |action: &'static str| {
        let path = path.to_owned();
        move |source| WriteError { action, path, source }
    };
    let temporary = temporary_name(path);
    let written = disk
        .create(&temporary, contents)
        .and_then(|()| disk.sync(&temporary))
        .and_then(|()| disk.rename(&temporary, path));
    if let Err(source) = written {
        // The temporary file is of no use to anybody; its own removal can only fail likewise.
        let _ = disk.remove(&temporary);
        return Err(fail("write")(source));
    }
    disk.sync(directory(path)).map_err(fail("sync the directory of"))
}

/// Removes what a crash in the middle of [`replace`] left beside `path`.
///
/// # Errors
/// [`WriteError`] if the directory cannot be read or a leftover cannot be removed.
pub(crate) fn remove_leftovers(disk: &dyn Disk, path: &Path) -> Result<(), WriteError> {
    let fail = |source| WriteError { action: "remove leftovers of", path: path.to_owned(), source };
    let prefix = format!("{}.tmp", file_name(path));
    let entries = match disk.list(directory(path)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    for entry in entries {
        if file_name(&entry).starts_with(&prefix) {
            disk.remove(&entry).map_err(fail)?;
        }
    }
    Ok(())
}

/// Gives the file at `path` a second name and returns it: the same name and `.broken-<n>`, with the
/// lowest number that is free, or the last one, whose file it replaces, if none is.
///
/// # Errors
/// [`WriteError`] if the file system refuses.
pub(crate) fn keep_aside(disk: &dyn Disk, path: &Path) -> Result<PathBuf, WriteError> {
    let name_of = |number: u32| directory(path).join(format!("{}.broken-{number}", file_name(path)));
    let fail = |source| WriteError { action: "keep a copy of", path: path.to_owned(), source };
    for number in 1..=MOST_ASIDE {
        let aside = name_of(number);
        match disk.link(path, &aside) {
            Ok(()) => return Ok(aside),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fail(error)),
        }
    }
    // The first ones show how it began, and the last one how it is now.
    let aside = name_of(MOST_ASIDE);
    disk.remove(&aside).and_then(|()| disk.link(path, &aside)).map_err(fail)?;
    Ok(aside)
}

/// The copies that are kept of one file: more would only repeat what the first ones show.
const MOST_ASIDE: u32 = 20;

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The target's name, `.tmp` and digits, as other daemons that share the directory name theirs.
fn temporary_name(path: &Path) -> PathBuf {
    let digits = fastrand::u64(..10_000_000_000);
    directory(path).join(format!("{}.tmp{digits:010}", file_name(path)))
}

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}")]
pub(crate) struct WriteError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_stays_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");

        replace(&RealDisk, &path, b"first").unwrap();
        replace(&RealDisk, &path, b"second").unwrap();

        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();

        let error = replace(&RealDisk, &directory.path().join("gone/state.json"), b"").unwrap_err();

        assert!(error.to_string().contains("gone/state.json"), "{error}");
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_and_other_files_are_not() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["state.json", "state.json.tmp0123456789", "state.json.tmp1", "other.tmp1"] {
            fs::write(directory.path().join(name), b"").unwrap();
        }

        remove_leftovers(&RealDisk, &directory.path().join("state.json")).unwrap();

        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["other.tmp1", "state.json"]);
    }

    #[test]
    fn each_copy_that_is_kept_aside_has_a_name_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, b"broken").unwrap();

        let first = keep_aside(&RealDisk, &path).unwrap();
        let second = keep_aside(&RealDisk, &path).unwrap();

        assert!(first.ends_with("state.json.broken-1") && second.ends_with("state.json.broken-2"));
        assert_eq!(fs::read(first).unwrap(), b"broken");
    }

    #[test]
    fn when_there_are_many_copies_the_last_one_gives_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for number in 1..=MOST_ASIDE + 2 {
            let _ = fs::remove_file(&path);
            fs::write(&path, number.to_string()).unwrap();
            keep_aside(&RealDisk, &path).unwrap();
        }

        let copy = |number| fs::read_to_string(directory.path().join(format!("state.json.broken-{number}")));
        assert_eq!(copy(1).unwrap(), "1");
        assert_eq!(copy(MOST_ASIDE - 1).unwrap(), (MOST_ASIDE - 1).to_string());
        assert_eq!(copy(MOST_ASIDE).unwrap(), (MOST_ASIDE + 2).to_string());
        assert!(copy(MOST_ASIDE + 1).is_err());
    }
}
