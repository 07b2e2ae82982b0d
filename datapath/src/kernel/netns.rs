//! Network namespaces: opening them, comparing them, working inside them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, NSFS_MAGIC, PROC_SUPER_MAGIC, statfs};

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// Why a namespace cannot be opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is at the path, or what is there cannot be looked at.
    #[error("failed to Statfs {path:?}: {}", plain(*.cause))]
    Missing {
        /// Where a namespace was expected.
        path: PathBuf,
        /// What the kernel said.
        cause: Errno,
    },
    /// Something else than a namespace is at the path.
    #[error("unknown FS magic on {path:?}: {magic}: expected a network namespace")]
    NotANamespace {
        /// Where a namespace was expected.
        path: PathBuf,
        /// The magic number of the file system found there, in hexadecimal digits.
        magic: String,
    },
    /// The namespace cannot be opened.
    #[error("open network namespace {path:?}: {cause}")]
    Open {
        /// Where it is.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The namespace cannot be entered.
    #[error("enter network namespace {path:?}: {cause}")]
    Enter {
        /// Where it is.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No thread could be started to enter it.
    #[error("start a thread for network namespace {path:?}: {cause}")]
    Thread {
        /// Where it is.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The errno's text in lower case and without its number, as people search for it.
fn plain(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

impl Netns {
    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`NetnsError`] if /proc is not what it should be.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace at `path`: a bind mount, or an entry in /proc.
    ///
    /// # Errors
    /// [`NetnsError`] if there is none.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let found = statfs(path).map_err(|cause| NetnsError::Missing { path: path.to_owned(), cause })?;
        let FsType(magic) = found.filesystem_type();
        if FsType(magic) != NSFS_MAGIC && FsType(magic) != PROC_SUPER_MAGIC {
            return Err(NetnsError::NotANamespace { path: path.to_owned(), magic: format!("{magic:x}") });
        }
        let file = File::open(path).map_err(|cause| NetnsError::Open { path: path.to_owned(), cause })?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Whether both are one namespace.
    ///
    /// # Errors
    /// [`NetnsError`] if one of them cannot be looked at.
    pub fn is_same(&self, other: &Self) -> Result<bool, NetnsError> {
        Ok(self.identity()? == other.identity()?)
    }

    /// Where it was opened; used in messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn identity(&self) -> Result<(u64, u64), NetnsError> {
        let found =
            self.file.metadata().map_err(|cause| NetnsError::Open { path: self.path.clone(), cause })?;
        Ok((found.dev(), found.ino()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `work` on a fresh thread that has joined `netns`; the thread ends with the call.
///
/// The calling thread's namespace never changes, so nothing else can land in the wrong place.
///
/// # Errors
/// [`NetnsError`] if the namespace cannot be entered; `work` has not run then.
pub fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let joined = thread::Builder::new()
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET)
                    .map_err(|cause| NetnsError::Enter { path: netns.path.clone(), cause: cause.into() })?;
                Ok(work())
            })
            .map_err(|cause| NetnsError::Thread { path: netns.path.clone(), cause })?;
        match joined.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
