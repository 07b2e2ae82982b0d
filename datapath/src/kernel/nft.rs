//! Our packet filter table, through the `nft` binary: read, replaced as a whole, removed.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use vpc::Family;

use crate::wanted::nft::{Ruleset, TABLE, nft_family};

/// How long nft may take. With an empty table of ours it takes 10 ms; other tables of the node
/// can make it slower.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why the packet filter could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft` to run.
    #[error("{action}: run nft: {cause}; the nftables package has it")]
    Binary {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel has no nftables.
    #[error("{action}: the kernel has no nf_tables, or not all of it: {message}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What nft said.
        message: String,
    },
    /// nft or the kernel refused.
    #[error("{action}: {message}")]
    Refused {
        /// What was attempted.
        action: &'static str,
        /// What nft said.
        message: String,
    },
    /// nft did not end in time and was killed.
    #[error("{action}: nft did not end within {} s", DEADLINE.as_secs())]
    Deadline {
        /// What was attempted.
        action: &'static str,
    },
    /// nft printed something else than its JSON.
    #[error("{action}: read what nft printed: {cause}")]
    Output {
        /// What was attempted.
        action: &'static str,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
}

/// Family and name of our table, as nft names it.
pub(crate) fn table(family: Family) -> String {
    format!("{} {TABLE}", nft_family(family))
}

/// What our table of a family holds in the calling thread's namespace; none if there is no table.
pub(crate) fn observe(family: Family) -> Result<Option<Ruleset>, NftError> {
    let action = "list our nft table";
    let listing = match run(action, &["-j", "list", "table", nft_family(family), TABLE], None) {
        Err(NftError::Refused { message, .. }) if message.contains("No such file or directory") => {
            return Ok(None);
        }
        outcome => outcome?,
    };
    let listing: Value =
        serde_json::from_slice(&listing).map_err(|cause| NftError::Output { action, cause })?;
    let objects = listing["nftables"].as_array().into_iter().flatten().cloned();
    Ok(Some(Ruleset::listed(family, objects.filter(is_content).map(without_handle).collect())))
}

/// Puts `wanted` in the place of our table of a family, in one transaction; none removes the table.
pub(crate) fn replace(family: Family, wanted: Option<&Ruleset>) -> Result<(), NftError> {
    let transaction = wanted.map_or_else(|| Ruleset::removal(family), Ruleset::transaction);
    run("replace our nft table", &["-j", "-f", "-"], Some(transaction.to_string().as_bytes())).map(drop)
}

/// The tables of which a chain drops, by policy, what the node would forward over IPv4.
pub(crate) fn tables_that_drop_forwarded() -> Result<Vec<String>, NftError> {
    let action = "list nft chains";
    let listing = run(action, &["-j", "list", "chains"], None)?;
    let listing: Value =
        serde_json::from_slice(&listing).map_err(|cause| NftError::Output { action, cause })?;
    let chains = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    Ok(chains
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop" && chain["family"] != "ip6")
        .map(|chain| {
            let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}", text("family"), text("table"))
        })
        .collect())
}

/// Whether a listed object is something that we could have added.
fn is_content(object: &Value) -> bool {
    object.get("metainfo").is_none()
}

/// A listed object without the number that the kernel gave it.
fn without_handle(mut object: Value) -> Value {
    for content in object.as_object_mut().into_iter().flat_map(|object| object.values_mut()) {
        if let Some(content) = content.as_object_mut() {
            content.remove("handle");
        }
    }
    object
}

fn run(action: &'static str, arguments: &[&str], input: Option<&[u8]>) -> Result<Vec<u8>, NftError> {
    let failed = |cause| NftError::Binary { action, cause };
    let mut child = Command::new("nft")
        .args(arguments)
        // Messages are told apart by their English texts.
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());

    let (sender, finished) = mpsc::channel();
    let (printed, complaint, is_late) = thread::scope(|scope| {
        let (stdin, stdout, stderr) = pipes;
        scope.spawn(move || {
            // If nft ends without reading all, its message says why.
            let _ = stdin.map(|mut stdin| stdin.write_all(input.unwrap_or_default()));
        });
        let complaint = scope.spawn(move || read_all(stderr));
        let printed = scope.spawn(move || {
            let printed = read_all(stdout);
            let _ = sender.send(());
            printed
        });
        let is_late = finished.recv_timeout(DEADLINE).is_err();
        if is_late {
            // The readers end with the pipes.
            let _ = child.kill();
        }
        (printed.join().unwrap_or_default(), complaint.join().unwrap_or_default(), is_late)
    });
    let status = child.wait().map_err(failed)?;
    if is_late {
        return Err(NftError::Deadline { action });
    }
    if status.success() {
        return Ok(printed);
    }
    let message = String::from_utf8_lossy(&complaint).split_whitespace().collect::<Vec<_>>().join(" ");
    let lacks_support = ["Operation not supported", "Protocol not supported", "cache initialization failed"];
    if lacks_support.iter().any(|text| message.contains(text)) {
        return Err(NftError::Kernel { action, message });
    }
    Err(NftError::Refused { action, message })
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut content = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut content);
    }
    content
}
