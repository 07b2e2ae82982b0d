//! The configuration of `egress-cni` on stdin.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::json::{Json, go_quote};
use crate::request::{LogTarget, log_target, previous_result};
use crate::result::CniResult;

use super::range::Range;

/// Where host-local keeps leases unless its configuration says otherwise.
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The configuration's own keys.
#[derive(Debug, Clone)]
pub(crate) struct EgressConfig {
    /// As it stands: an ADD complains if it is no number, other verbs do not look at it.
    mtu: String,
    pub(crate) is_enabled: bool,
    /// The node's address that pods' packets leave with; it also says which family egress is for.
    node_ip: Option<IpAddr>,
    pub(crate) log: LogTarget,
    pub(crate) log_level: String,
    /// What the plugins before us, or our own ADD, answered.
    pub(crate) previous: Option<CniResult>,
    ipam: Result<Ipam, String>,
}

/// What host-local would be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ipam {
    pub(crate) range: Range,
    pub(crate) data_dir: PathBuf,
}

impl EgressConfig {
    /// Reads the configuration, whose version is `version`.
    ///
    /// # Errors
    /// What follows `failed to parse config: `.
    pub(crate) fn read(config: &Json, version: &str) -> Result<Self, String> {
        let text = |key: &str| text(config, key, "NetConf");
        let node_ip = text("nodeIP")?;
        Ok(Self {
            mtu: text("mtu")?,
            is_enabled: text("enabled")? == "true",
            node_ip: match node_ip.as_str() {
                "" => None,
                given => Some(given.parse::<IpAddr>().map_err(|_| format!("invalid IP address: {given}"))?),
            },
            log: log_target(&text("pluginLogFile")?),
            log_level: text("pluginLogLevel")?.to_lowercase(),
            previous: previous_result(config, version)?,
            ipam: Ipam::read(config),
        })
    }

    /// The MTU of both ends, in bytes.
    ///
    /// # Errors
    /// What Go says of a text that is no number.
    pub(crate) fn mtu(&self) -> Result<i64, String> {
        // Go takes a sign.
        self.mtu.parse().map_err(|_| format!("strconv.Atoi: parsing {}: invalid syntax", go_quote(&self.mtu)))
    }

    /// Where addresses come from, once it is sure that pods' packets can leave the node.
    ///
    /// # Errors
    /// What an operator should know.
    pub(crate) fn ipam(&self) -> Result<&Ipam, String> {
        let node = self.node_ip.map(|address| address.to_canonical()).filter(is_global_unicast);
        let node = node.ok_or(
            "global unicast IPv6 not found in host primary interface which is mandatory to support IPv6 egress",
        )?;
        let ipam = self.leases()?;
        let block = ipam.range.block();
        if block.addr().is_ipv4() != node.is_ipv4() {
            return Err(format!("ipam range {block} and nodeIP {node} are of different families"));
        }
        Ok(ipam)
    }

    /// Where leases are, whatever the node's address.
    ///
    /// # Errors
    /// What an operator should know.
    pub(crate) fn leases(&self) -> Result<&Ipam, String> {
        self.ipam.as_ref().map_err(|error| format!("running IPAM plugin failed: {error}"))
    }
}

impl Ipam {
    fn read(config: &Json) -> Result<Self, String> {
        let Some(ipam @ Json::Object(_)) = config.field("ipam") else {
            return Err("IPAM config missing 'ipam' key".to_owned());
        };
        let kind = text(ipam, "type", "IPAM")?;
        if kind != "host-local" {
            // Its work is done here; others would have to be executed.
            return Err(format!("ipam type is {}: expected \"host-local\"", go_quote(&kind)));
        }
        let range = match ipam.field("ranges") {
            Some(Json::Array(sets)) => match sets.as_slice() {
                [Json::Array(set)] => match set.as_slice() {
                    [range @ Json::Object(_)] => range,
                    _ => return Err(one_range(ipam)),
                },
                _ => return Err(one_range(ipam)),
            },
            _ => return Err("no IP ranges specified".to_owned()),
        };
        for key in ["rangeStart", "rangeEnd", "gateway"] {
            if range.field(key).is_some() {
                return Err(format!("ipam range has {key}: expected a subnet alone"));
            }
        }
        let range = Range::parse(&text(range, "subnet", "Range")?)
            .map_err(|error| format!("invalid range set 0: {error}"))?;
        let data_dir = match text(ipam, "dataDir", "IPAM")? {
            empty if empty.is_empty() => DEFAULT_DATA_DIR.to_owned(),
            given => given,
        };
        Ok(Self { range, data_dir: data_dir.into() })
    }
}

fn one_range(ipam: &Json) -> String {
    let ranges = ipam.field("ranges").map(Json::compact).unwrap_or_default();
    format!("ipam ranges are {ranges}: expected one set of one range")
}

/// What Go's `IsGlobalUnicast` says.
fn is_global_unicast(address: &IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_link_local)
}

fn text(config: &Json, key: &str, of: &str) -> Result<String, String> {
    match config.field(key) {
        None | Some(Json::Null) => Ok(String::new()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!(
            "json: cannot unmarshal {} into Go struct field {of}.{key} of type string",
            other.kind()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<EgressConfig, String> {
        let text =
            format!(r#"{{"cniVersion":"0.4.0","name":"aws-cni","mtu":"9001","enabled":"true"{more}}}"#);
        EgressConfig::read(&Json::parse(text.as_bytes()).unwrap(), "0.4.0")
    }

    fn with_node(node: &str) -> EgressConfig {
        read(&format!(
            r#","nodeIP":"{node}","ipam":{{"type":"host-local","dataDir":"/run/x",
            "ranges":[[{{"subnet":"fd00::ac:00/118"}}]],"routes":[{{"dst":"::/0"}}]}}"#
        ))
        .unwrap()
    }

    #[test]
    fn the_configuration_of_the_reference_is_read() {
        let config = with_node("2001:db8::7");

        let ipam = config.ipam().unwrap();
        assert_eq!(
            (ipam.range.block().to_string().as_str(), ipam.data_dir.to_str()),
            ("fd00::ac:0/118", Some("/run/x"))
        );
        assert_eq!((config.mtu(), config.is_enabled), (Ok(9001), true));
    }

    #[test]
    fn a_node_without_a_global_address_cannot_serve_and_can_release() {
        for node in ["", "fe80::1", "::1", "ff02::1", "::", "127.0.0.1"] {
            let config = with_node(node);
            let error = config.ipam().unwrap_err();
            assert!(error.starts_with("global unicast IPv6 not found in host primary interface"), "{error}");
            assert!(config.leases().is_ok());
        }
        let error = with_node("10.0.0.7").ipam().unwrap_err();
        assert!(error.ends_with("are of different families"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_said_as_go_says_it() {
        for (more, error) in [
            (r#","nodeIP":"xx""#, "invalid IP address: xx"),
            (
                r#","mtu":9001"#,
                "json: cannot unmarshal number into Go struct field NetConf.mtu of type string",
            ),
            (
                r#","prevResult":{"ips":[{"address":"x"}]}"#,
                "could not parse prevResult: could not parse prevResult: invalid CIDR address: x",
            ),
        ] {
            assert_eq!(read(more).unwrap_err(), error);
        }
        let error = read(r#","mtu":"x""#).unwrap().mtu().unwrap_err();
        assert_eq!(error, "strconv.Atoi: parsing \"x\": invalid syntax");
    }

    #[test]
    fn an_address_management_that_is_not_ours_is_refused_by_name() {
        for (ipam, end) in [
            (r#"{"type":"dhcp"}"#, "ipam type is \"dhcp\": expected \"host-local\""),
            (r#"{"type":"host-local"}"#, "no IP ranges specified"),
            (r#"{"type":"host-local","ranges":[[]]}"#, "ipam ranges are [[]]: expected one set of one range"),
            (
                r#"{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.9"}]]}"#,
                "ipam range has gateway: expected a subnet alone",
            ),
        ] {
            let error = read(&format!(r#","nodeIP":"10.0.0.7","ipam":{ipam}"#)).unwrap().ipam().unwrap_err();
            assert_eq!(error, format!("running IPAM plugin failed: {end}"));
        }
    }
}
