//! The network configuration on stdin.

use std::path::PathBuf;

use crate::json::Json;
use crate::result::CniResult;

use super::version::Generation;

/// The veth MTU where the configuration names none that can be used.
const DEFAULT_MTU: u32 = 9001;

/// The annotation that asks for one interface per network card, and the value that does so.
const NIC_CONFIG: (&str, &str) = ("k8s.amazonaws.com/nicConfig", "multi-nic-attachment");

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogTarget {
    Stderr,
    File(PathBuf),
}

/// An attachment that the runtime still knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    pub(crate) interface: String,
}

/// The configuration's own keys, with their defaults.
#[derive(Debug, Clone)]
pub(crate) struct NetworkConfig {
    /// What host links' names begin with; at most four bytes.
    pub(crate) veth_prefix: String,
    /// The MTU of pods' links, 576 to 9001 bytes.
    pub(crate) mtu: u32,
    pub(crate) log: LogTarget,
    /// `debug`, `info`, `warn`, `error` or `fatal`.
    pub(crate) log_level: String,
    /// Whether the pod asks for an interface on every network card.
    pub(crate) wants_all_nics: bool,
    /// What the plugins before us, or our own ADD, answered.
    pub(crate) previous: Option<CniResult>,
    /// GC: every attachment that stays.
    pub(crate) valid_attachments: Vec<Attachment>,
}

impl NetworkConfig {
    /// Reads the configuration, whose version is `version`.
    ///
    /// # Errors
    /// What follows `error loading config from args: `.
    pub(crate) fn read(config: &Json, version: &str) -> Result<Self, String> {
        let wrong = |error| format!("add cmd: error loading config from args: {error}");
        check_shapes(config).map_err(wrong)?;
        let text = |key: &str| match config.field(key) {
            Some(Json::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let previous = previous_result(config, version)?;
        let veth_prefix = text("vethPrefix").unwrap_or("eni").to_owned();
        if veth_prefix.len() > 4 {
            return Err(format!(
                "conf.VethPrefix can be at most 4 characters long: {veth_prefix:?} has {}",
                veth_prefix.len()
            ));
        }
        Ok(Self {
            veth_prefix,
            mtu: text("mtu").map_or(DEFAULT_MTU, mtu),
            log: log_target(text("pluginLogFile").unwrap_or_default()),
            log_level: text("pluginLogLevel").unwrap_or_default().to_lowercase(),
            wants_all_nics: wants_all_nics(config),
            previous,
            valid_attachments: valid_attachments(config).map_err(wrong)?,
        })
    }
}

/// The previous result in the configuration's own version, if there is one.
pub(crate) fn previous_result(config: &Json, version: &str) -> Result<Option<CniResult>, String> {
    let wrong = |error| format!("could not parse prevResult: could not parse prevResult: {error}");
    let Some(previous @ Json::Object(_)) = config.field("prevResult") else { return Ok(None) };
    let generation = Generation::of(version).ok_or_else(|| format!("unknown version {version:?}"))?;
    CniResult::read(previous, generation, version).map(Some).map_err(wrong)
}

/// The first value of a kind that its key does not take, in the order of the document.
fn check_shapes(config: &Json) -> Result<(), String> {
    let Json::Object(fields) = config else { return Ok(()) };
    for (name, value) in fields {
        let (key, fits, go_type) = match name.to_ascii_lowercase().as_str() {
            "type" => ("type", is_text(value), "string"),
            "vethprefix" => ("vethPrefix", is_text(value), "string"),
            "mtu" => ("mtu", is_text(value), "string"),
            "podsgenforcingmode" => ("podSGEnforcingMode", is_text(value), "string"),
            "pluginlogfile" => ("pluginLogFile", is_text(value), "string"),
            "pluginloglevel" => ("pluginLogLevel", is_text(value), "string"),
            "capabilities" => ("capabilities", is_object(value), "map[string]bool"),
            "ipam" => ("ipam", is_object(value), "types.IPAM"),
            "dns" => ("dns", is_object(value), "types.DNS"),
            "prevresult" => ("prevResult", is_object(value), "map[string]interface {}"),
            _ => continue,
        };
        if !fits {
            return Err(format!(
                "json: cannot unmarshal {} into Go struct field NetConf.{key} of type {go_type}",
                value.kind()
            ));
        }
    }
    Ok(())
}

fn is_text(value: &Json) -> bool {
    matches!(value, Json::String(_) | Json::Null)
}

fn is_object(value: &Json) -> bool {
    matches!(value, Json::Object(_) | Json::Null)
}

/// What is no whole number from 576 to 9001 means the default, as it always has.
fn mtu(text: &str) -> u32 {
    text.parse().ok().filter(|mtu| (576..=9001).contains(mtu)).unwrap_or(DEFAULT_MTU)
}

/// `stdout` belongs to the result alone, so a log that is sent there goes to stderr.
pub(crate) fn log_target(text: &str) -> LogTarget {
    match text {
        "" | "stderr" | "stdout" => LogTarget::Stderr,
        path => LogTarget::File(path.into()),
    }
}

fn wants_all_nics(config: &Json) -> bool {
    let annotations =
        config.field("runtimeConfig").and_then(|runtime| runtime.field("io.kubernetes.cri.pod-annotations"));
    let Some(Json::Object(annotations)) = annotations else { return false };
    let value = annotations.iter().rev().find(|(key, _)| key == NIC_CONFIG.0);
    value.is_some_and(|(_, value)| *value == Json::string(NIC_CONFIG.1))
}

/// GC: every attachment that stays.
pub(crate) fn valid_attachments(config: &Json) -> Result<Vec<Attachment>, String> {
    let key = "cni.dev/valid-attachments";
    let items = match config.field(key) {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Array(items)) => items,
        Some(other) => {
            return Err(format!("{key} is of kind {}: expected an array of attachments", other.kind()));
        }
    };
    let read = |item: &Json| match (item.field("containerID"), item.field("ifname")) {
        (Some(Json::String(container_id)), Some(Json::String(interface))) => {
            Ok(Attachment { container_id: container_id.clone(), interface: interface.clone() })
        }
        _ => Err(format!("{key} holds {}: expected containerID and ifname, both strings", item.compact())),
    };
    items.iter().map(read).collect()
}
