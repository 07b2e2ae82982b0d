//! What durable files need of a file system, and where such work runs.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Readable by root alone: the files name every pod of the node.
const FILE_MODE: u32 = 0o600;

/// A file system, with no more than durable files need. Each method is one step after which a
/// crash may come.
pub(crate) trait Disk: fmt::Debug + Send + Sync + 'static {
    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Makes a new file, private to root. It is durable once it and its directory are synced.
    fn create(&self, path: &Path, contents: &[u8]) -> io::Result<()>;

    /// Has the content of a file, or the entries of a directory, outlast a crash.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Moves a file over another, or to a new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name that is not taken.
    fn link(&self, path: &Path, other: &Path) -> io::Result<()>;

    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The files in a directory, in no particular order.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;

    /// Where to run what calls the methods above, since a disk can stall.
    fn offload(&self) -> Offload;
}

/// The machine's own file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn create(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        file.write_all(contents)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, path: &Path, other: &Path) -> io::Result<()> {
        fs::hard_link(path, other)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }

    fn offload(&self) -> Offload {
        Offload::Threads
    }
}

/// Where work runs that waits for a disk.
#[derive(Clone)]
pub(crate) enum Offload {
    /// On threads of its own.
    Threads,
    /// On the caller's only thread, after and before a pause: under simulated time there is no
    /// other.
    #[cfg(test)]
    Here(std::sync::Arc<dyn Fn() -> std::time::Duration + Send + Sync>),
}

impl Offload {
    /// Does the work and waits for its end, which comes even if the caller does not wait.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Self::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(outcome) => outcome,
                Err(failure) => match failure.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is ending, and the caller with it.
                    Err(_) => std::future::pending().await,
                },
            },
            #[cfg(test)]
            Self::Here(pause) => {
                tokio::time::sleep(pause()).await;
                let outcome = work();
                tokio::time::sleep(pause()).await;
                outcome
            }
        }
    }
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threads => "Threads",
            #[cfg(test)]
            Self::Here(_) => "Here",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn under_simulated_time_work_takes_its_pauses() {
        let start = tokio::time::Instant::now();
        let pause = Duration::from_millis(5);
        let done_after = Offload::Here(Arc::new(move || pause)).run(tokio::time::Instant::now).await - start;

        assert_eq!((done_after, start.elapsed()), (pause, 2 * pause));
    }
}
