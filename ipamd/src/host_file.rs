//! Files that other programs on the host read: whole, with their mode, or not there at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What [`install`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The file is new or has new contents or a new mode.
    Written,
    /// The file had these contents and this mode; nothing was touched.
    Unchanged,
}

/// A file could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}", path = path.display())]
pub(crate) struct InstallError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Puts `contents` with `mode` at `directory/name`, so that a reader at any moment, and after a
/// crash, finds the old file or the new one, never a part and never one without its mode.
///
/// # Errors
/// [`InstallError`] names the step and the path; the old file then still stands.
pub(crate) fn install(
    directory: &Path,
    name: &str,
    contents: &[u8],
    mode: u32,
) -> Result<Outcome, InstallError> {
    let path = directory.join(name);
    let has_contents = fs::read(&path).is_ok_and(|present| present == contents);
    let has_mode = fs::metadata(&path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
    if has_contents && has_mode {
        return Ok(Outcome::Unchanged);
    }
    let beside = directory.join(format!("{name}.tmp"));
    let fail = |action, path: &Path| {
        let path = path.to_owned();
        move |source| InstallError { action, path, source }
    };
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail("remove the leftover", &beside)(error)),
    }
    let written = write_new(&beside, contents, mode)
        .map_err(fail("write", &beside))
        .and_then(|()| fs::rename(&beside, &path).map_err(fail("replace", &path)));
    if let Err(error) = written {
        // It is of no use to anybody, and the first error is the one to report.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    // Without this a crash may undo the rename.
    File::open(directory).and_then(|opened| opened.sync_all()).map_err(fail("sync", directory))?;
    Ok(Outcome::Written)
}

fn write_new(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(contents)?;
    // The process's umask may have taken bits away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("the file is there").permissions().mode() & 0o7777
    }

    #[test]
    fn a_new_file_has_its_contents_and_mode_and_leaves_nothing_beside_it() {
        let root = tempfile::tempdir().expect("make a directory");
        let outcome = install(root.path(), "aws-cni", b"binary", 0o755).expect("install");
        assert_eq!(outcome, Outcome::Written);
        assert_eq!(fs::read(root.path().join("aws-cni")).expect("read"), b"binary");
        assert_eq!(mode(&root.path().join("aws-cni")), 0o755);
        assert_eq!(fs::read_dir(root.path()).expect("list").count(), 1);
    }

    #[test]
    fn the_same_file_is_not_written_again() {
        let root = tempfile::tempdir().expect("make a directory");
        install(root.path(), "list", b"{}", 0o644).expect("install");
        let before = fs::metadata(root.path().join("list")).expect("stat");
        assert_eq!(install(root.path(), "list", b"{}", 0o644).expect("install"), Outcome::Unchanged);
        let after = fs::metadata(root.path().join("list")).expect("stat");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(before.ino(), after.ino());
    }

    #[test]
    fn a_wrong_mode_alone_is_put_right() {
        let root = tempfile::tempdir().expect("make a directory");
        install(root.path(), "aws-cni", b"binary", 0o644).expect("install");
        assert_eq!(install(root.path(), "aws-cni", b"binary", 0o755).expect("install"), Outcome::Written);
        assert_eq!(mode(&root.path().join("aws-cni")), 0o755);
    }

    #[test]
    fn a_running_binary_is_replaced_and_a_leftover_does_not_stand_in_the_way() {
        let root = tempfile::tempdir().expect("make a directory");
        install(root.path(), "aws-cni", b"old", 0o755).expect("install");
        fs::write(root.path().join("aws-cni.tmp"), b"half").expect("leave something behind");
        let opened = File::open(root.path().join("aws-cni")).expect("open");
        assert_eq!(install(root.path(), "aws-cni", b"new", 0o755).expect("install"), Outcome::Written);
        assert_eq!(io::read_to_string(opened).expect("read"), "old");
        assert_eq!(fs::read(root.path().join("aws-cni")).expect("read"), b"new");
        assert!(!root.path().join("aws-cni.tmp").exists());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let root = tempfile::tempdir().expect("make a directory");
        let error = install(&root.path().join("absent"), "x", b"", 0o644).expect_err("no directory");
        assert!(error.to_string().ends_with("absent/x.tmp"), "{error}");
    }
}
