//! What the runtime asks: environment variables and stdin, checked in the order of Go's skeleton.

mod args;
mod config;
pub(crate) mod version;

use std::io;

pub(crate) use args::PodArgs;
pub(crate) use config::{
    Attachment, LogTarget, NetworkConfig, log_target, previous_result, valid_attachments,
};

use crate::error::{CniError, Code};
use crate::json::{Json, go_quote};

/// What a process was started for.
#[derive(Debug)]
pub(crate) enum Called {
    /// By a person, without a command.
    About,
    /// For the versions it speaks.
    Version,
    /// For a verb of the specification.
    For(Box<Request>),
}

/// The specification's verbs that work on something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

impl Verb {
    fn of(command: &str) -> Option<Self> {
        Some(match command {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            _ => return None,
        })
    }

    /// The verb as `CNI_COMMAND` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }

    /// What an error's text begins with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Add => "add cmd",
            Self::Del => "del cmd",
            Self::Check => "check cmd",
            Self::Status => "status cmd",
            Self::Gc => "gc cmd",
        }
    }

    /// Whether the verb is about one attachment of one container.
    fn names_a_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// The oldest version whose configurations may ask for the verb.
    fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del => "0.1.0",
            Self::Check => "0.4.0",
            Self::Status | Self::Gc => "1.1.0",
        }
    }
}

/// A call whose frame is right: variables present and well-formed, a JSON object with a name on
/// stdin, a version that we speak. What the object holds besides is read by [`NetworkConfig`].
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) container_id: String,
    /// The path of the pod's network namespace; empty on DEL if the runtime has none.
    pub(crate) netns: String,
    pub(crate) interface: String,
    pub(crate) args: String,
    /// Whether the pod may be wired in the plugin's own namespace.
    pub(crate) allows_own_netns: bool,
    /// The configuration's version.
    pub(crate) version: &'static str,
    /// The network's name.
    pub(crate) network: String,
    pub(crate) config: Json,
}

impl Request {
    /// Reads the variables through `variable` and, if the call has a configuration, `stdin`.
    ///
    /// # Errors
    /// Codes 1 to 7 of the skeleton.
    pub(crate) fn read(
        variable: impl Fn(&str) -> String,
        stdin: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<Called, CniError> {
        let command = variable("CNI_COMMAND");
        match command.as_str() {
            "" => return Ok(Called::About),
            "VERSION" => return Ok(Called::Version),
            _ => {}
        }
        let verb = Verb::of(&command);
        let needs_container = verb.is_some_and(Verb::names_a_container);
        let mut missing = Vec::new();
        let mut required = |name: &'static str, is_required: bool| {
            let value = variable(name);
            if value.is_empty() && is_required {
                missing.push(name);
            }
            value
        };

        let container_id = required("CNI_CONTAINERID", needs_container);
        if needs_container && !container_id.is_empty() && !is_name(&container_id) {
            let error = CniError::new(Code::INVALID_ENVIRONMENT, "invalid characters in containerID");
            return Err(error.with_details(container_id));
        }
        let netns = required("CNI_NETNS", matches!(verb, Some(Verb::Add | Verb::Check)));
        let interface = required("CNI_IFNAME", needs_container);
        if needs_container && !interface.is_empty() {
            check_interface(&interface)?;
        }
        required("CNI_PATH", verb.is_some());
        if !missing.is_empty() {
            let message = format!("required env variables [{}] missing", missing.join(","));
            return Err(CniError::new(Code::INVALID_ENVIRONMENT, message));
        }

        let text = stdin()
            .map_err(|error| CniError::new(Code::IO_FAILURE, format!("error reading from stdin: {error}")))?;
        let (config, network) = read_config(&text)?;
        let verb = verb.ok_or_else(|| {
            CniError::new(Code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {command}"))
        })?;
        let version = negotiate(&config, verb)?;
        let netns_override = variable("CNI_NETNS_OVERRIDE");
        Ok(Called::For(Box::new(Self {
            verb,
            container_id,
            netns,
            interface,
            args: variable("CNI_ARGS"),
            allows_own_netns: netns_override == "1" || netns_override.eq_ignore_ascii_case("true"),
            version,
            network,
            config,
        })))
    }
}

/// Whether a container id or a network's name has the form that the specification gives.
fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn check_interface(name: &str) -> Result<(), CniError> {
    let error = |message| CniError::new(Code::INVALID_ENVIRONMENT, message);
    if name.len() > 15 {
        return Err(error("interface name is too long")
            .with_details("interface name should be less than 16 characters"));
    }
    if name == "." || name == ".." {
        return Err(error("interface name is . or .."));
    }
    if name.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace()) {
        return Err(error("interface name contains / or : or whitespace characters"));
    }
    Ok(())
}

/// The configuration and the network's name in it.
fn read_config(text: &[u8]) -> Result<(Json, String), CniError> {
    let wrong = |error: String| {
        CniError::new(Code::DECODING_FAILURE, format!("error unmarshall network config: {error}"))
    };
    let config = Json::parse(text).map_err(wrong)?;
    if !matches!(config, Json::Object(_) | Json::Null) {
        let shape = "struct { Name string \"json:\\\"name\\\"\" }";
        return Err(wrong(format!("json: cannot unmarshal {} into Go value of type {shape}", config.kind())));
    }
    let network = header(&config, "name").map_err(wrong)?;
    if network.is_empty() {
        return Err(CniError::new(Code::INVALID_CONFIG, "missing network name"));
    }
    if !is_name(&network) {
        let error = CniError::new(Code::INVALID_CONFIG, "invalid characters found in network name");
        return Err(error.with_details(network));
    }
    Ok((config, network))
}

/// A text that every configuration begins with; absent and null are empty.
fn header(config: &Json, key: &str) -> Result<String, String> {
    match config.field(key) {
        None | Some(Json::Null) => Ok(String::new()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => {
            Err(format!("json: cannot unmarshal {} into Go struct field .{key} of type string", other.kind()))
        }
    }
}

/// The version that the configuration asks for, if it may ask for `verb` and we speak it.
fn negotiate(config: &Json, verb: Verb) -> Result<&'static str, CniError> {
    let undecodable = |error| CniError::new(Code::DECODING_FAILURE, error);
    let wanted = header(config, "cniVersion")
        .map_err(|error| undecodable(format!("decoding version from network config: {error}")))?;
    let wanted = if wanted.is_empty() { "0.1.0" } else { wanted.as_str() };
    if !matches!(verb, Verb::Add | Verb::Del) {
        let numbers = version::parse(wanted).map_err(undecodable)?;
        let parsed = |text| version::parse(text).map_err(undecodable);
        if numbers < parsed(verb.since())? {
            let message = format!("config version does not allow {}", verb.name());
            return Err(CniError::new(Code::INCOMPATIBLE_VERSION, message));
        }
        if numbers > parsed(version::NEWEST)? {
            let message = format!("plugin version does not allow {}", verb.name());
            return Err(CniError::new(Code::INCOMPATIBLE_VERSION, message));
        }
    }
    version::SUPPORTED.into_iter().find(|version| *version == wanted).ok_or_else(|| {
        let supported = version::SUPPORTED.map(go_quote).join(" ");
        let details = format!("config is {}, plugin supports [{supported}]", go_quote(wanted));
        CniError::new(Code::INCOMPATIBLE_VERSION, "incompatible CNI versions").with_details(details)
    })
}

#[cfg(test)]
mod tests;
