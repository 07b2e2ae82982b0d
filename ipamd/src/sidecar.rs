//! The second file: what the state file has no room for.
//!
//! Addresses that rest or are held back, the ENIs that are being made, and what EC2 is asked to take
//! back. Losing it is safe: cooldowns then start anew, EC2 is searched for ENIs without an owner, and
//! what it took back meanwhile is seen when it is read.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use tracing::warn;
use vpc::{EniId, EniSlot, SubnetId};

use crate::clock::Moment;
use crate::durable::{self, Disk, Offload, WriteError};
use crate::pool::{Block, QuarantineReason, Returning};

const VERSION: &str = "vpc-cni-node/1";

/// The file's name, beside the state file.
pub(crate) const FILE_NAME: &str = "vpc-cni.json";

/// An ENI that somebody set out to make. Recorded before EC2 is asked, removed when the ENI is
/// attached or known to be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EniIntent {
    /// Where it was to be attached.
    pub(crate) slot: EniSlot,
    /// The subnet that was chosen.
    pub(crate) subnet: SubnetId,
    /// How many secondary IPs it comes with.
    pub(crate) ips: u16,
    /// How many prefixes.
    #[serde(default)]
    pub(crate) prefixes: u16,
    /// When it was begun, in seconds since 1970.
    pub(crate) created_unix_secs: i64,
    /// Its id, once EC2 has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eni: Option<EniId>,
}

/// For how long what EC2 was asked to take back may leave: the half minute that a request waits for
/// its turn at most, and the minute that EC2 may take for what it does not confirm.
const RETURN_TAKES: Duration = Duration::from_secs(90);

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    version: String,
    boot_id: String,
    #[serde(default)]
    cooling: Vec<Cooling>,
    #[serde(default)]
    quarantined: Vec<Quarantined>,
    /// By client token.
    #[serde(default)]
    eni_intents: BTreeMap<String, EniIntent>,
    #[serde(default)]
    returns: Vec<Return>,
}

/// Recorded before EC2 is asked to take blocks or an ENI back, since it may do so after a process
/// that was killed has a successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Return {
    eni: EniId,
    /// None for the ENI itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocks: Option<Vec<Block>>,
    asked_unix_ms: i64,
}

impl Return {
    fn ends(&self, moment: Moment) -> Instant {
        let takes = i64::try_from(RETURN_TAKES.as_millis()).unwrap_or(0);
        moment.instant_at(self.asked_unix_ms.saturating_add(takes), RETURN_TAKES)
    }

    fn is_over(&self, moment: Moment) -> bool {
        self.ends(moment) <= moment.instant()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cooling {
    address: IpAddr,
    until_unix_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Quarantined {
    address: IpAddr,
    reason: QuarantineReason,
}

/// What the last process of this boot left.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) cooling: Vec<(IpAddr, Instant)>,
    pub(crate) quarantined: Vec<(IpAddr, QuarantineReason)>,
    /// The file is of another boot: whatever was under way then has ended.
    pub(crate) is_of_another_boot: bool,
    /// By client token; those of earlier boots too, since ENIs outlive a reboot.
    pub(crate) intents: BTreeMap<String, EniIntent>,
    /// What may go back to EC2 still; a request outlives a reboot too.
    pub(crate) returning: Vec<Returning>,
}

/// The second file, and its content in memory.
#[derive(Debug)]
pub(crate) struct Sidecar {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    content: Mutex<Content>,
}

impl Sidecar {
    /// Opens the file at `path`, which may be missing or damaged, in the boot named `boot_id`.
    ///
    /// Cooldowns last `cooldown` at most. Those of another boot are void, since every pod ended
    /// with it.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        boot_id: &str,
        moment: Moment,
        cooldown: Duration,
    ) -> (Self, Remembered) {
        let found = read(&*disk, &path).unwrap_or_else(|fault| {
            warn!(path = %path.display(), fault, "second state file not usable; cooldowns start anew");
            None
        });
        let found = found.unwrap_or_default();
        let mut returns = found.returns;
        returns.retain(|entry| !entry.is_over(moment));
        let mut remembered = Remembered {
            intents: found.eni_intents.clone(),
            returning: returns
                .iter()
                .map(|entry| Returning {
                    eni: entry.eni.clone(),
                    blocks: entry.blocks.clone(),
                    until: entry.ends(moment),
                })
                .collect(),
            is_of_another_boot: !found.boot_id.is_empty() && found.boot_id != boot_id,
            ..Remembered::default()
        };
        let mut content = Content {
            version: VERSION.to_owned(),
            boot_id: boot_id.to_owned(),
            eni_intents: found.eni_intents,
            returns,
            ..Content::default()
        };
        if found.boot_id == boot_id {
            remembered.cooling = found
                .cooling
                .iter()
                .map(|entry| (entry.address, moment.instant_at(entry.until_unix_ms, cooldown)))
                .collect();
            remembered.quarantined =
                found.quarantined.iter().map(|entry| (entry.address, entry.reason)).collect();
            // An intent may be recorded before the pool is: that must not forget the rest.
            content.cooling = found.cooling;
            content.quarantined = found.quarantined;
        }
        (Self { disk, path, content: Mutex::new(content) }, remembered)
    }

    /// Records which addresses rest and which are held back; writes only if that is news.
    ///
    /// # Errors
    /// [`WriteError`] if the record is not durable.
    pub(crate) fn record_pool(
        &self,
        cooling: &[(IpAddr, Instant)],
        quarantined: &[(IpAddr, QuarantineReason)],
        moment: Moment,
    ) -> Result<(), WriteError> {
        // Whole seconds, so that the same cooldown gives the same text whenever it is computed.
        let until = |instant| moment.unix_ms_at(instant).div_euclid(1000).saturating_add(1) * 1000;
        let cooling = cooling
            .iter()
            .map(|(address, instant)| Cooling { address: *address, until_unix_ms: until(*instant) })
            .collect();
        let quarantined = quarantined
            .iter()
            .map(|(address, reason)| Quarantined { address: *address, reason: *reason })
            .collect();
        self.change(|content| {
            content.cooling = cooling;
            content.quarantined = quarantined;
        })
    }

    /// Records that an ENI is about to be made under the client token, or what is known of it since.
    ///
    /// # Errors
    /// [`WriteError`] if the record is not durable; then the ENI must not be made.
    pub(crate) fn record_intent(&self, token: &str, intent: EniIntent) -> Result<(), WriteError> {
        self.change(|content| {
            content.eni_intents.insert(token.to_owned(), intent);
        })
    }

    /// The ENIs that are being made, or may have been.
    pub(crate) fn intents(&self) -> BTreeMap<String, EniIntent> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).eni_intents.clone()
    }

    /// Forgets an ENI that is attached, or known to be gone.
    ///
    /// # Errors
    /// [`WriteError`] if the record is not durable; at worst the ENI is looked for once more.
    pub(crate) fn forget_intent(&self, token: &str) -> Result<(), WriteError> {
        self.change(|content| {
            content.eni_intents.remove(token);
        })
    }

    /// Records that EC2 is about to be asked to take blocks of an ENI back, or with none the ENI.
    /// Forgets on the way what is over.
    ///
    /// # Errors
    /// [`WriteError`] if the record is not durable; then EC2 must not be asked.
    pub(crate) fn record_return(
        &self,
        eni: &EniId,
        blocks: Option<&[Block]>,
        moment: Moment,
    ) -> Result<(), WriteError> {
        let asked_unix_ms = moment.unix_ms_at(moment.instant());
        let entry = Return { eni: eni.clone(), blocks: blocks.map(<[_]>::to_vec), asked_unix_ms };
        self.change(|content| {
            content.returns.retain(|entry| !entry.is_over(moment));
            content.returns.push(entry);
        })
    }

    /// Forgets a return of which EC2 has said what came of it. The next write takes it out of the
    /// file, which is soon enough: until then a start waits in vain for what has left.
    pub(crate) fn settle_return(&self, eni: &EniId, blocks: Option<&[Block]>) {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        content.returns.retain(|entry| entry.eni != *eni || entry.blocks.as_deref() != blocks);
    }

    /// Where to run what changes the file.
    pub(crate) fn offload(&self) -> Offload {
        self.disk.offload()
    }

    fn change(&self, edit: impl FnOnce(&mut Content)) -> Result<(), WriteError> {
        // A panic while the lock was held cannot leave half a change: edits are plain moves.
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = content.clone();
        edit(&mut next);
        if next == *content {
            return Ok(());
        }
        durable::replace(&*self.disk, &self.path, render(&next).as_bytes())?;
        *content = next;
        Ok(())
    }
}

fn render(content: &Content) -> String {
    #[expect(clippy::expect_used, reason = "strings and numbers always have a JSON form")]
    let mut text = serde_json::to_string(content).expect("render the second state file");
    text.push('\n');
    text
}

/// The content of the file; none if there is no file.
fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Content>, String> {
    let bytes = match disk.read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let content: Content = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if content.version == VERSION {
        Ok(Some(content))
    } else {
        Err(format!("its version is {:?}: expected {VERSION:?}", content.version))
    }
}

/// What tells this boot of the machine from every other.
///
/// # Errors
/// The file system's error if the kernel does not say.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
