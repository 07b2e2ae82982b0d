//! A log file that turns over when it is full, without a thread of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Logs name pods and addresses; root alone reads them.
const MODE: u32 = 0o600;

pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    most_bytes: u64,
    old_files: u32,
}

impl RotatingFile {
    /// Appends to the file at `path`, which is made with its directory where absent.
    pub(super) fn open(path: &Path, most_bytes: u64, old_files: u32) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = append_to(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, most_bytes, old_files })
    }

    /// Adds a line, after turning the file over if the line would not fit.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.most_bytes {
            self.turn_over()?;
        }
        self.file.write_all(line)?;
        self.bytes = self.bytes.saturating_add(length);
        Ok(())
    }

    /// `ipamd.log` becomes `ipamd.log.1`, that one `.2`, and so on; the oldest is dropped.
    fn turn_over(&mut self) -> io::Result<()> {
        for number in (1..self.old_files).rev() {
            match fs::rename(self.old(number), self.old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.old(1))?;
        self.file = append_to(&self.path)?;
        self.bytes = 0;
        Ok(())
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(MODE).open(path)
}
