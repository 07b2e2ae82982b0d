//! Leases of addresses in the directory of containernetworking's host-local plugin.
//!
//! The reference hands this work to that plugin; we read and write the same files, so that each
//! finds and releases what the other leased. A file per lease, named by the address, holds
//! container id, CR, LF and interface; `last_reserved_ip.0` holds the address given last, after
//! which the next search begins; `lock` is locked with flock(2) by whoever reads or writes.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::range::Range;

/// How long others may hold the lock; each needs it for about a millisecond.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

const LOCK: &str = "lock";
const LAST_RESERVED: &str = "last_reserved_ip.0";
/// What is being written, until it has its name. Under the lock there is one at a time, and what
/// a killed process left is overwritten by the next.
const UNFINISHED: &str = ".unfinished";

/// Why leases cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("{action} {path}: {cause}")]
    Io { action: &'static str, path: String, cause: io::Error },
    #[error("{path} has been locked by another process for {} s", LOCK_PATIENCE.as_secs())]
    Locked { path: String },
    #[error(
        "no IP addresses available in range set: {first}-{last}: {path} holds {leases} leases, \
         and {routes} more addresses have routes on this node"
    )]
    Full { first: IpAddr, last: IpAddr, path: String, leases: usize, routes: usize },
}

/// Whose a lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) container_id: String,
    /// Empty in leases that old releases of host-local wrote.
    pub(crate) interface: String,
}

/// A lease that [`Leases::reserve`] gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) address: IpAddr,
    /// False if an earlier ADD of the same attachment left it.
    pub(crate) is_new: bool,
}

/// A directory of leases.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    directory: PathBuf,
}

impl Leases {
    /// The leases of `network` under host-local's `data_dir`.
    pub(crate) fn new(data_dir: &Path, network: &str) -> Self {
        Self { directory: data_dir.join(network) }
    }

    /// The lease that `owner` has, or else a new one out of `range` which is not `in_use`.
    pub(crate) fn reserve(
        &self,
        owner: &Owner,
        range: Range,
        in_use: &BTreeSet<IpAddr>,
    ) -> Result<Reserved, LeaseError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.directory)
            .map_err(|cause| self.failed("create directory", "", cause))?;
        let _lock = self.lock()?;
        let leases = self.read()?;
        let own = leases.iter().find(|(address, other)| other == owner && range.block().contains(address));
        if let Some((address, _)) = own {
            return Ok(Reserved { address: *address, is_new: false });
        }
        let leased: BTreeSet<IpAddr> = leases.iter().map(|(address, _)| *address).collect();
        let taken = &leased | in_use;
        let last = fs::read_to_string(self.directory.join(LAST_RESERVED)).ok();
        let address = range.next(last.and_then(|text| text.trim().parse().ok()), &taken);
        let Some(address) = address else {
            let (first, last) = range.ends();
            let path = self.directory.display().to_string();
            return Err(LeaseError::Full {
                first,
                last,
                path,
                leases: leased.len(),
                routes: taken.len() - leased.len(),
            });
        };
        self.write(&address.to_string(), &owner.text())?;
        // Whoever is killed here has a lease, and the next search begins where this one did.
        if let Err(error) = self.write(LAST_RESERVED, &address.to_string()) {
            self.remove(address)?;
            return Err(error);
        }
        Ok(Reserved { address, is_new: true })
    }

    /// Releases what `owner` has; gives the addresses.
    pub(crate) fn release(&self, owner: &Owner) -> Result<Vec<IpAddr>, LeaseError> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let leases = self.read()?;
        let of = |owner: &Owner| -> Vec<IpAddr> {
            leases.iter().filter(|(_, other)| other == owner).map(|(address, _)| *address).collect()
        };
        let mut released = of(owner);
        if released.is_empty() {
            // As old releases of host-local wrote them.
            released = of(&Owner { interface: String::new(), ..owner.clone() });
        }
        for address in &released {
            self.remove(*address)?;
        }
        Ok(released)
    }

    /// All leases, in no particular order.
    pub(crate) fn all(&self) -> Result<Vec<(IpAddr, Owner)>, LeaseError> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.read()
    }

    fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Waits for the lock, which ends with the value.
    fn lock(&self) -> Result<File, LeaseError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.directory.join(LOCK))
            .map_err(|cause| self.failed("open", LOCK, cause))?;
        // Waiting has no deadline of its own; the thread that waits in vain ends with the process.
        let (sender, locked) = mpsc::channel();
        thread::spawn(move || {
            let outcome = file.lock().map(|()| file);
            let _ = sender.send(outcome);
        });
        match locked.recv_timeout(LOCK_PATIENCE) {
            Ok(outcome) => outcome.map_err(|cause| self.failed("lock", LOCK, cause)),
            Err(_) => Err(LeaseError::Locked { path: self.directory.join(LOCK).display().to_string() }),
        }
    }

    /// The leases; the lock is held.
    fn read(&self) -> Result<Vec<(IpAddr, Owner)>, LeaseError> {
        let entries = fs::read_dir(&self.directory).map_err(|cause| self.failed("list", "", cause))?;
        let mut leases = Vec::new();
        for entry in entries {
            let name = entry.map_err(|cause| self.failed("list", "", cause))?.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse::<IpAddr>().ok()) else { continue };
            let text = fs::read(self.directory.join(&name))
                .map_err(|cause| self.failed("read", &name.to_string_lossy(), cause))?;
            // host-local fills a lease after it made the file. It holds the lock meanwhile, so
            // the maker of an empty one has been killed.
            if let Some(owner) = Owner::read(&String::from_utf8_lossy(&text)) {
                leases.push((address, owner));
            }
        }
        Ok(leases)
    }

    /// Writes a file wholly or not at all; the lock is held.
    fn write(&self, name: &str, text: &str) -> Result<(), LeaseError> {
        let unfinished = self.directory.join(UNFINISHED);
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            // Leases do not outlive the node's pods, so there is no need to wait for the disk.
            .and_then(|()| fs::rename(&unfinished, self.directory.join(name)));
        written.map_err(|cause| self.failed("write", name, cause))
    }

    fn remove(&self, address: IpAddr) -> Result<(), LeaseError> {
        let name = address.to_string();
        match fs::remove_file(self.directory.join(&name)) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", &name, cause)),
            _ => Ok(()),
        }
    }

    fn failed(&self, action: &'static str, name: &str, cause: io::Error) -> LeaseError {
        let path = if name.is_empty() { self.directory.clone() } else { self.directory.join(name) };
        LeaseError::Io { action, path: path.display().to_string(), cause }
    }
}

impl Owner {
    fn text(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.interface)
    }

    fn read(text: &str) -> Option<Self> {
        let (container_id, interface) = text.trim().split_once("\r\n").unwrap_or((text.trim(), ""));
        (!container_id.is_empty())
            .then(|| Self { container_id: container_id.to_owned(), interface: interface.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn directory() -> (TempDir, Leases) {
        let temporary = tempfile::tempdir().unwrap();
        let leases = Leases::new(&temporary.path().join("data"), "aws-cni");
        (temporary, leases)
    }

    fn owner(container_id: &str) -> Owner {
        Owner { container_id: container_id.to_owned(), interface: "eth0".to_owned() }
    }

    fn small() -> Range {
        Range::parse("10.0.0.0/29").unwrap()
    }

    fn reserve(leases: &Leases, container_id: &str) -> Result<String, LeaseError> {
        leases.reserve(&owner(container_id), small(), &BTreeSet::new()).map(|it| it.address.to_string())
    }

    #[test]
    fn a_lease_is_a_file_as_host_local_writes_it() {
        let (_temporary, leases) = directory();

        assert_eq!(reserve(&leases, "abc").unwrap(), "10.0.0.2");

        let text = |name: &str| fs::read_to_string(leases.directory.join(name)).unwrap();
        assert_eq!(text("10.0.0.2"), "abc\r\neth0");
        assert_eq!(text(LAST_RESERVED), "10.0.0.2");
        assert_eq!(text(LOCK), "");
        assert_eq!(fs::read_dir(&leases.directory).unwrap().count(), 3);
    }

    #[test]
    fn a_repeated_add_gets_its_lease_again() {
        let (_temporary, leases) = directory();
        let first = leases.reserve(&owner("abc"), small(), &BTreeSet::new()).unwrap();
        reserve(&leases, "def").unwrap();

        let again = leases.reserve(&owner("abc"), small(), &BTreeSet::new()).unwrap();

        assert_eq!((again.address, first.is_new, again.is_new), (first.address, true, false));
    }

    #[test]
    fn an_address_rests_until_the_others_had_their_turn() {
        let (_temporary, leases) = directory();
        reserve(&leases, "abc").unwrap();

        assert_eq!(leases.release(&owner("abc")).unwrap().len(), 1);
        assert_eq!(leases.release(&owner("abc")).unwrap().len(), 0);

        for expected in ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"] {
            assert_eq!(reserve(&leases, expected).unwrap(), expected);
        }
    }

    #[test]
    fn an_address_that_the_kernel_knows_is_not_given_though_no_lease_is_left_of_it() {
        let (_temporary, leases) = directory();
        let in_use = BTreeSet::from(["10.0.0.2".parse().unwrap()]);

        let reserved = leases.reserve(&owner("abc"), small(), &in_use).unwrap();

        assert_eq!(reserved.address.to_string(), "10.0.0.3");
    }

    #[test]
    fn a_full_range_says_how_it_is_full() {
        let (_temporary, leases) = directory();
        for number in 0..4 {
            reserve(&leases, &format!("c{number}")).unwrap();
        }
        let in_use = BTreeSet::from(["10.0.0.6".parse().unwrap()]);

        let error = leases.reserve(&owner("late"), small(), &in_use).unwrap_err().to_string();

        let expected = "no IP addresses available in range set: 10.0.0.1-10.0.0.6: ";
        assert!(error.starts_with(expected), "{error}");
        assert!(error.ends_with("holds 4 leases, and 1 more addresses have routes on this node"), "{error}");
    }

    #[test]
    fn what_a_killed_process_left_half_done_is_nobodys() {
        let (_temporary, leases) = directory();
        fs::create_dir_all(&leases.directory).unwrap();
        for (name, text) in [("10.0.0.2", ""), (UNFINISHED, "abc\r\neth0"), (LAST_RESERVED, "")] {
            fs::write(leases.directory.join(name), text).unwrap();
        }

        assert_eq!(leases.all().unwrap(), []);
        assert_eq!(reserve(&leases, "abc").unwrap(), "10.0.0.2");
        assert_eq!(leases.all().unwrap(), [("10.0.0.2".parse().unwrap(), owner("abc"))]);
    }

    #[test]
    fn a_lease_of_an_old_host_local_is_released_by_its_container_alone() {
        let (_temporary, leases) = directory();
        fs::create_dir_all(&leases.directory).unwrap();
        fs::write(leases.directory.join("10.0.0.2"), "abc").unwrap();

        assert_eq!(leases.release(&owner("abcd")).unwrap().len(), 0);
        assert_eq!(leases.release(&owner("abc")).unwrap().len(), 1);
    }

    #[test]
    fn nothing_is_made_for_a_release() {
        let (temporary, leases) = directory();

        assert_eq!(leases.release(&owner("abc")).unwrap().len(), 0);

        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }

    #[test]
    fn many_at_once_get_an_address_each() {
        let (_temporary, leases) = directory();
        let range = Range::parse("fd00::ac:00/118").unwrap();
        let one = |number: usize| {
            leases.reserve(&owner(&format!("c{number}")), range, &BTreeSet::new()).unwrap().address
        };

        let given: BTreeSet<IpAddr> = thread::scope(|scope| {
            let all: Vec<_> = (0..50).map(|number| scope.spawn(move || one(number))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });

        assert_eq!(given.len(), 50);
    }
}
