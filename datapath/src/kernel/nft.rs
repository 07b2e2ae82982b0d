//! Our packet filter table, through the `nft` binary: read, replaced as a whole, removed.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use serde_json::Value;
use vpc::Family;

use super::tool::{self, Ran};
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
    /// The kernel has no nftables, or lacks a part of it.
    #[error(
        "{action}: the kernel has no nf_tables, or not all that is needed of it (CONFIG_NF_TABLES for IPv4 and \
         IPv6, NFT_CT, NFT_FIB_IPV4, NFT_NAT, NFT_REJECT_IPV4, NFT_REJECT_IPV6): {message}"
    )]
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
    let Some(listing) = present(run(action, &["-j", "list", "table", nft_family(family), TABLE], None))?
    else {
        return Ok(None);
    };
    let listing: Value =
        serde_json::from_slice(&listing).map_err(|cause| NftError::Output { action, cause })?;
    let objects = listing["nftables"].as_array().into_iter().flatten().cloned();
    Ok(Some(Ruleset::listed(family, objects.filter(is_content).map(without_handle).collect())))
}

/// Puts `wanted` in the place of our table of a family, in one transaction; none removes the table.
pub(crate) fn replace(family: Family, wanted: Option<&Ruleset>) -> Result<(), NftError> {
    let transaction = wanted.map_or_else(|| Ruleset::removal(family), Ruleset::transaction);
    match run("replace our nft table", &["-j", "-f", "-"], Some(transaction.to_string().as_bytes())) {
        // Whatever it names it makes itself, so it is a kind of expression or chain that is missing.
        Err(NftError::Refused { action, message }) if message.contains("No such file or directory") => {
            Err(NftError::Kernel { action, message })
        }
        done => done.map(drop),
    }
}

/// The tables of which a chain drops, by policy, what the node would forward in one of `families`.
pub(crate) fn tables_that_drop_forwarded(families: &[Family]) -> Result<Vec<String>, NftError> {
    let action = "list nft chains";
    let listing = run(action, &["-j", "list", "chains"], None)?;
    let listing: Value =
        serde_json::from_slice(&listing).map_err(|cause| NftError::Output { action, cause })?;
    let chains = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    let is_concerned = |chain: &Value| {
        chain["family"] == "inet" || families.iter().any(|family| chain["family"] == nft_family(*family))
    };
    Ok(chains
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop" && is_concerned(chain))
        .map(|chain| {
            let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}", text("family"), text("table"))
        })
        .collect())
}

/// Family and name of every table of the calling thread's namespace.
pub(crate) fn tables() -> Result<BTreeSet<(String, String)>, NftError> {
    let action = "list nft tables";
    let listing = run(action, &["-j", "list", "tables"], None)?;
    let listing: Value =
        serde_json::from_slice(&listing).map_err(|cause| NftError::Output { action, cause })?;
    let tables = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["table"]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(tables.filter_map(|table| Some((text(&table["family"])?, text(&table["name"])?))).collect())
}

/// Whether there is such an object: `table ip NAME`, `chain ip TABLE NAME`.
pub(crate) fn exists(object: &[&str]) -> Result<bool, NftError> {
    let words: Vec<&str> = ["list"].iter().chain(object).copied().collect();
    present(run("look for an nft object", &words, None)).map(|listing| listing.is_some())
}

/// Deletes a table with all that it holds; false if there is none.
pub(crate) fn delete_table(family: &str, name: &str) -> Result<bool, NftError> {
    let deleted = run("delete an nft table", &["delete", "table", family, name], None);
    present(deleted).map(|done| done.is_some())
}

/// None where nft says that what it was asked for is not there.
fn present<T>(outcome: Result<T, NftError>) -> Result<Option<T>, NftError> {
    match outcome {
        Err(NftError::Refused { message, .. }) if message.contains("No such file or directory") => Ok(None),
        outcome => outcome.map(Some),
    }
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
    let ran = tool::run("nft", arguments, input, DEADLINE);
    let ran = ran.map_err(|cause| NftError::Binary { action, cause })?;
    let Ran { succeeded, printed, complaint: message } = ran.ok_or(NftError::Deadline { action })?;
    if succeeded {
        return Ok(printed);
    }
    let lacks_support = ["Operation not supported", "Protocol not supported", "cache initialization failed"];
    if lacks_support.iter().any(|text| message.contains(text)) {
        return Err(NftError::Kernel { action, message });
    }
    Err(NftError::Refused { action, message })
}
