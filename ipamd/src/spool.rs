//! The DELs that plugins left while the daemon was away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::spool::{EXTENSION, MAX_ENTRIES, SpooledDel};
use tracing::{info, warn};
use vpc::PodKey;

use crate::durable::Disk;
use crate::pool_task::{DelError, LateDel, PoolHandle};

/// Takes in everything in the directory, oldest first, and removes what is done with. A missing
/// directory holds nothing.
pub(crate) async fn take_in(disk: &Arc<dyn Disk>, directory: &Path, pool: &PoolHandle) {
    let offload = disk.offload();
    let (reader, owned) = (Arc::clone(disk), directory.to_owned());
    let entries = match offload.run(move || read(&*reader, &owned)).await {
        Ok(entries) => entries,
        Err(error) => {
            warn!(path = %directory.display(), %error, "DELs left by plugins not read");
            return;
        }
    };
    for (path, entry) in entries {
        let is_done = match entry {
            Ok(del) => apply(del, pool).await,
            Err(fault) => {
                warn!(path = %path.display(), fault, "DEL left by a plugin is not usable");
                true
            }
        };
        if !is_done {
            continue;
        }
        let (remover, owned) = (Arc::clone(disk), path.clone());
        if let Err(error) = offload.run(move || remover.remove(&owned)).await {
            warn!(path = %path.display(), %error, "DEL left by a plugin not removed; it will be judged again");
        }
    }
}

type Entry = (PathBuf, Result<LateDel, String>);

fn read(disk: &dyn Disk, directory: &Path) -> io::Result<Vec<Entry>> {
    let mut paths = match disk.list(directory) {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    paths.retain(|path| path.to_string_lossy().ends_with(EXTENSION));
    paths.sort();
    // More than plugins leave; the rest has its turn next time.
    paths.truncate(MAX_ENTRIES);
    Ok(paths.into_iter().map(|path| (path.clone(), read_one(disk, &path))).collect())
}

fn read_one(disk: &dyn Disk, path: &Path) -> Result<LateDel, String> {
    let bytes = disk.read(path).map_err(|error| error.to_string())?;
    let entry: SpooledDel = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let key = PodKey::new(&entry.network, &entry.container_id, &entry.interface)
        .map_err(|error| error.to_string())?;
    let addresses = entry.addresses;
    Ok(LateDel { key, addresses, unix_ns: i64::try_from(entry.unix_time_ns).unwrap_or(i64::MAX) })
}

/// Hands one DEL to the pool; says whether nothing remains to be done for it.
async fn apply(del: LateDel, pool: &PoolHandle) -> bool {
    let key = del.key.clone();
    match pool.late_del(del).await {
        Ok(released) => {
            info!(pod = %released.allocation.pod, address = %released.allocation.address, "late DEL taken in");
            true
        }
        Err(DelError::UnknownPod) => {
            info!(%key, "late DEL is void: the pod holds nothing, or was added again");
            true
        }
        Err(error) => {
            warn!(%key, %error, "late DEL not taken in; trying again later");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::durable::RealDisk;

    fn entry(unix_time_ns: u64) -> SpooledDel {
        SpooledDel {
            network: "aws-cni".to_owned(),
            container_id: "c1".to_owned(),
            interface: "eth0".to_owned(),
            pod_name: String::new(),
            pod_namespace: String::new(),
            addresses: vec!["10.0.1.7".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            unix_time_ns,
        }
    }

    #[test]
    fn entries_are_read_oldest_first_and_unfinished_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for time in [30, 9, 200] {
            let path = directory.path().join(entry(time).file_name(1));
            fs::write(path, serde_json::to_vec(&entry(time)).unwrap()).unwrap();
        }
        fs::write(directory.path().join("00000000000000000001-1.json.tmp"), "{").unwrap();

        let times: Vec<_> = read(&RealDisk, directory.path())
            .unwrap()
            .into_iter()
            .map(|(_, entry)| entry.unwrap().unix_ns)
            .collect();

        assert_eq!(times, [9, 30, 200]);
    }

    #[test]
    fn an_entry_keeps_its_addresses_of_both_families() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(entry(1).file_name(1));
        fs::write(&path, serde_json::to_vec(&entry(1)).unwrap()).unwrap();

        assert_eq!(read_one(&RealDisk, &path).unwrap().addresses, entry(1).addresses);
    }

    #[test]
    fn an_unreadable_entry_says_why_and_a_missing_directory_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let nameless = SpooledDel { container_id: String::new(), ..entry(1) };
        fs::write(directory.path().join("1.json"), "{").unwrap();
        fs::write(directory.path().join("2.json"), serde_json::to_vec(&nameless).unwrap()).unwrap();

        let entries = read(&RealDisk, directory.path()).unwrap();

        assert!(entries.iter().all(|(_, entry)| entry.is_err()), "{entries:?}");
        assert!(read(&RealDisk, &directory.path().join("gone")).unwrap().is_empty());
    }
}
