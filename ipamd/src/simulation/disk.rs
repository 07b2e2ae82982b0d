//! A disk in memory: it tells what was written from what would outlast a crash, and fails.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::chance::Chance;
use super::life::Life;
use crate::durable::{Disk, Offload};

#[derive(Debug, Clone, Default)]
struct File {
    content: Vec<u8>,
    is_synced: bool,
}

/// How a disk is out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskTrouble {
    /// Nothing new fits.
    Full,
    /// Syncing fails.
    NoSync,
}

#[derive(Debug, Default)]
struct Platter {
    files: BTreeMap<u64, File>,
    names: BTreeMap<PathBuf, u64>,
    /// The names that a crash would leave.
    durable_names: BTreeMap<PathBuf, u64>,
    last: u64,
    trouble: Option<DiskTrouble>,
}

/// The disk of one node.
#[derive(Debug, Clone, Default)]
pub(super) struct SimDisk(Arc<Mutex<Platter>>);

impl SimDisk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as one process sees it.
    pub(super) fn of_process(&self, life: Arc<Life>, chance: Chance) -> Arc<dyn Disk> {
        Arc::new(ProcessDisk { disk: self.clone(), life, chance: Arc::new(Mutex::new(chance)) })
    }

    pub(super) fn set_trouble(&self, trouble: Option<DiskTrouble>) {
        self.platter().trouble = trouble;
    }

    /// Power is lost: of what was not synced, chance decides what is left.
    pub(super) fn crash(&self, chance: &mut Chance) {
        let mut platter = self.platter();
        let mut names = platter.durable_names.clone();
        let current = platter.names.clone();
        for (name, file) in &current {
            if names.get(name) != Some(file) && chance.percent(50) {
                names.insert(name.clone(), *file);
            }
        }
        for name in platter.durable_names.keys() {
            if !current.contains_key(name) && chance.percent(50) {
                names.remove(name);
            }
        }
        for file in platter.files.values_mut().filter(|file| !file.is_synced) {
            let left = chance.between(0, file.content.len() as u64);
            file.content.truncate(usize::try_from(left).unwrap_or(0));
            file.is_synced = true;
        }
        platter.names.clone_from(&names);
        platter.durable_names = names;
        platter.sweep();
    }

    /// A file system in memory ends with the machine.
    pub(super) fn clear(&self) {
        let trouble = self.platter().trouble;
        *self.platter() = Platter { trouble, ..Platter::default() };
    }

    /// Puts a finished file there, as another process would.
    pub(super) fn put(&self, path: &Path, content: Vec<u8>) {
        let mut platter = self.platter();
        platter.add(path, content);
        let names = platter.names.clone();
        platter.durable_names = names;
    }

    /// Cuts a file short, or empties it; says whether it is there.
    pub(super) fn damage(&self, path: &Path, chance: &mut Chance) -> bool {
        let mut platter = self.platter();
        let Some(number) = platter.names.get(path).copied() else { return false };
        let Some(file) = platter.files.get_mut(&number) else { return false };
        let left = chance.between(0, file.content.len() as u64);
        file.content.truncate(usize::try_from(left).unwrap_or(0));
        true
    }
}

impl Platter {
    fn add(&mut self, path: &Path, content: Vec<u8>) {
        self.last += 1;
        self.files.insert(self.last, File { content, is_synced: false });
        self.names.insert(path.to_owned(), self.last);
    }

    /// Forgets files without a name.
    fn sweep(&mut self) {
        let (names, durable) = (&self.names, &self.durable_names);
        self.files.retain(|number, _| {
            names.values().any(|held| held == number) || durable.values().any(|held| held == number)
        });
    }
}

/// The disk in the hands of one process.
#[derive(Debug)]
struct ProcessDisk {
    disk: SimDisk,
    life: Arc<Life>,
    chance: Arc<Mutex<Chance>>,
}

impl ProcessDisk {
    /// Does one operation, if the process lives to do it.
    fn act<T>(&self, work: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        if !self.life.acts() {
            return Err(io::Error::other("the process has ended"));
        }
        work(&mut self.disk.platter())
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for ProcessDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.act(|platter| {
            let number = platter.names.get(path).ok_or_else(missing)?;
            platter.files.get(number).map(|file| file.content.clone()).ok_or_else(missing)
        })
    }

    fn create(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        self.act(|platter| {
            if platter.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if platter.trouble == Some(DiskTrouble::Full) {
                // As on a real disk the name comes first, and then there is no room.
                platter.add(path, Vec::new());
                return Err(io::ErrorKind::StorageFull.into());
            }
            platter.add(path, contents.to_vec());
            Ok(())
        })
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.act(|platter| {
            if platter.trouble == Some(DiskTrouble::NoSync) {
                return Err(io::Error::other("input/output error"));
            }
            match platter.names.get(path).copied() {
                Some(number) => {
                    if let Some(file) = platter.files.get_mut(&number) {
                        file.is_synced = true;
                    }
                }
                None => {
                    platter.durable_names = platter.names.clone();
                    platter.sweep();
                }
            }
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(|platter| {
            let number = platter.names.remove(from).ok_or_else(missing)?;
            platter.names.insert(to.to_owned(), number);
            Ok(())
        })
    }

    fn link(&self, path: &Path, other: &Path) -> io::Result<()> {
        self.act(|platter| {
            if platter.names.contains_key(other) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if platter.trouble == Some(DiskTrouble::Full) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let number = *platter.names.get(path).ok_or_else(missing)?;
            platter.names.insert(other.to_owned(), number);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.act(|platter| platter.names.remove(path).map(drop).ok_or_else(missing))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.act(|platter| {
            let is_inside = |path: &&PathBuf| path.parent() == Some(directory);
            Ok(platter.names.keys().filter(is_inside).cloned().collect())
        })
    }

    fn offload(&self) -> Offload {
        let chance = Arc::clone(&self.chance);
        Offload::Here(Arc::new(move || {
            let mut chance = chance.lock().unwrap_or_else(PoisonError::into_inner);
            // Mostly fast; now and then somebody else has the disk.
            let most = if chance.percent(3) { 400 } else { 4 };
            Duration::from_micros(200) + chance.millis(0, most)
        }))
    }
}
