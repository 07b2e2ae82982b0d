//! The `egress-cni` plugin of the reference's list, as it is while egress is off: it hands the
//! previous result on.

use std::net::IpAddr;

use crate::error::{CniError, Code};
use crate::json::{Json, go_quote};
use crate::request::version::Generation;
use crate::request::{Request, Verb, previous_result};

/// Serves a call by the name `egress-cni`.
pub(crate) fn run(request: &Request) -> Result<String, CniError> {
    let internal = |message: String| CniError::new(Code::INTERNAL, message);
    let parse = |error: String| internal(format!("failed to parse config: {error}"));
    if !matches!(request.verb, Verb::Add | Verb::Del) {
        return Ok(String::new());
    }
    let mtu = text(&request.config, "mtu").map_err(parse)?;
    let enabled = text(&request.config, "enabled").map_err(parse)?;
    let node_ip = text(&request.config, "nodeIP").map_err(parse)?;
    if !node_ip.is_empty() && node_ip.parse::<IpAddr>().is_err() {
        return Err(parse(format!("invalid IP address: {node_ip}")));
    }
    let previous = previous_result(&request.config, request.version).map_err(parse)?;
    if request.verb == Verb::Del {
        return Ok(String::new());
    }
    let previous = previous.ok_or_else(|| internal("must be called as a chained plugin".to_owned()))?;
    if mtu.parse::<i64>().is_err() {
        return Err(internal(format!("strconv.Atoi: parsing {}: invalid syntax", go_quote(&mtu))));
    }
    if enabled == "true" {
        let message = "egress-cni: enabled is \"true\": translation between IPv4 and IPv6 is not supported by \
                       this release; set ENABLE_V4_EGRESS and ENABLE_V6_EGRESS to false";
        return Err(CniError::new(Code::NOT_SERVED, message));
    }
    let generation = Generation::of(request.version).unwrap_or(Generation::Newest);
    previous.render(request.version, generation).map_err(internal)
}

fn text(config: &Json, key: &str) -> Result<String, String> {
    match config.field(key) {
        None | Some(Json::Null) => Ok(String::new()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!(
            "json: cannot unmarshal {} into Go struct field NetConf.{key} of type string",
            other.kind()
        )),
    }
}
