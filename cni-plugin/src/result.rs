//! CNI results of every version: reading those of others, printing ours.

use std::net::IpAddr;

use crate::json::{Json, go_quote};
use crate::request::version::Generation;

/// A result in the newest form; older ones are converted when they are read and printed.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct CniResult {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<IpConfig>,
    /// Routes of other plugins, as they wrote them; ours has none.
    routes: Vec<Json>,
    /// Name servers of other plugins, as they wrote them.
    dns: Vec<(String, Json)>,
}

/// An entry under `interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) sandbox: String,
    mtu: Option<String>,
    socket_path: String,
    pci_id: String,
}

impl Interface {
    /// An interface with what our results say of one; empty texts are left out.
    pub(crate) fn new(name: impl Into<String>, mac: impl ToString, sandbox: impl ToString) -> Self {
        Self { name: name.into(), mac: mac.to_string(), sandbox: sandbox.to_string(), ..Self::default() }
    }
}

/// An entry under `ips`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IpConfig {
    /// A position under `interfaces`.
    pub(crate) interface: Option<usize>,
    pub(crate) address: IpAddr,
    /// The length of the address's prefix, in bits.
    pub(crate) length: u8,
    pub(crate) gateway: Option<IpAddr>,
}

impl IpConfig {
    /// The single address `address` on the interface at position `interface`.
    pub(crate) fn single(address: IpAddr, interface: usize) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Self { interface: Some(interface), address, length, gateway: None }
    }
}

impl CniResult {
    /// A result of ours.
    pub(crate) fn new(interfaces: Vec<Interface>, ips: Vec<IpConfig>) -> Self {
        Self { interfaces, ips, ..Self::default() }
    }

    /// Reads a result as plugins of `generation` write it; one that names no version has that of
    /// the configuration, `version`.
    ///
    /// # Errors
    /// What Go's CNI library would say, as far as it can be said of one value.
    pub(crate) fn read(json: &Json, generation: Generation, version: &str) -> Result<Self, String> {
        let own = text(json, "cniVersion", "Result")?;
        let own = if json.field("cniVersion").is_none() { version } else { &own };
        let (versions, fits) = match generation {
            Generation::Oldest => {
                ("[ 0.1.0 0.2.0]", own.is_empty() || Generation::of(own) == Some(generation))
            }
            Generation::Middle => ("[0.3.0 0.3.1 0.4.0]", Generation::of(own) == Some(generation)),
            Generation::Newest => ("[1.0.0 1.1.0]", Generation::of(own) == Some(generation)),
        };
        if !fits {
            let own = go_quote(own);
            return Err(format!("result type supports {versions} but unmarshalled CNIVersion is {own}"));
        }
        let mut result = Self { dns: known_fields(json.field("dns"), &DNS_KEYS), ..Self::default() };
        if generation == Generation::Oldest {
            for family in ["ip4", "ip6"] {
                let Some(entry @ Json::Object(_)) = json.field(family) else { continue };
                let (address, length) = cidr(&text(entry, "ip", "ipConfig")?)?;
                let gateway = gateway(entry)?;
                result.ips.push(IpConfig { interface: None, address, length, gateway });
                result.routes.extend(routes(entry));
            }
            return Ok(result);
        }
        for entry in array(json, "interfaces")? {
            result.interfaces.push(interface(entry)?);
        }
        for entry in array(json, "ips")? {
            let (address, length) = cidr(&text(entry, "address", "ipConfig")?)?;
            let interface = position(entry)?;
            result.ips.push(IpConfig { interface, address, length, gateway: gateway(entry)? });
        }
        result.routes = routes(json);
        Ok(result)
    }

    /// The result as stdout carries it in `version`.
    ///
    /// # Errors
    /// The oldest versions cannot say that there is no address.
    pub(crate) fn render(&self, version: &str, generation: Generation) -> Result<String, String> {
        let mut fields = vec![("cniVersion".to_owned(), Json::string(version))];
        let mut field = |name: &str, value: Json| fields.push((name.to_owned(), value));
        match generation {
            Generation::Oldest => {
                if self.ips.is_empty() {
                    return Err("cannot convert: no valid IP addresses".to_owned());
                }
                for (name, is_v4) in [("ip4", true), ("ip6", false)] {
                    if let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == is_v4) {
                        field(name, self.oldest(ip));
                    }
                }
            }
            Generation::Middle | Generation::Newest => {
                if !self.interfaces.is_empty() {
                    let print = |entry: &Interface| entry.print(generation);
                    field("interfaces", Json::Array(self.interfaces.iter().map(print).collect()));
                }
                if !self.ips.is_empty() {
                    let print = |entry: &IpConfig| entry.print(generation);
                    field("ips", Json::Array(self.ips.iter().map(print).collect()));
                }
                if !self.routes.is_empty() {
                    field("routes", Json::Array(self.routes.clone()));
                }
            }
        }
        if generation != Generation::Newest || !self.dns.is_empty() {
            field("dns", Json::Object(self.dns.clone()));
        }
        let mut result = Json::Object(fields);
        if generation == Generation::Newest {
            sort_keys(&mut result);
        }
        Ok(result.pretty())
    }

    fn oldest(&self, ip: &IpConfig) -> Json {
        let mut fields = vec![("ip".to_owned(), Json::string(format!("{}/{}", ip.address, ip.length)))];
        if let Some(gateway) = ip.gateway {
            fields.push(("gateway".to_owned(), Json::string(gateway.to_string())));
        }
        let is_of_family = |route: &&Json| match route.field("dst") {
            Some(Json::String(destination)) => destination.contains(':') == ip.address.is_ipv6(),
            _ => false,
        };
        let routes: Vec<Json> = self
            .routes
            .iter()
            .filter(is_of_family)
            .map(|route| Json::Object(known_fields(Some(route), &["dst", "gw"])))
            .collect();
        if !routes.is_empty() {
            fields.push(("routes".to_owned(), Json::Array(routes)));
        }
        Json::Object(fields)
    }
}

const DNS_KEYS: [&str; 4] = ["nameservers", "domain", "search", "options"];
const ROUTE_KEYS: [&str; 7] = ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];

impl Interface {
    fn print(&self, generation: Generation) -> Json {
        let mut fields = vec![("name".to_owned(), Json::string(self.name.as_str()))];
        let mut field = |name: &str, value: &str| {
            if !value.is_empty() {
                fields.push((name.to_owned(), Json::string(value)));
            }
        };
        field("mac", &self.mac);
        field("sandbox", &self.sandbox);
        if generation == Generation::Newest {
            field("socketPath", &self.socket_path);
            field("pciID", &self.pci_id);
            if let Some(mtu) = &self.mtu {
                fields.push(("mtu".to_owned(), Json::Number(mtu.clone())));
            }
        }
        Json::Object(fields)
    }
}

impl IpConfig {
    fn print(&self, generation: Generation) -> Json {
        let mut fields = Vec::new();
        if generation == Generation::Middle {
            let family = if self.address.is_ipv4() { "4" } else { "6" };
            fields.push(("version".to_owned(), Json::string(family)));
        }
        if let Some(interface) = self.interface {
            fields.push(("interface".to_owned(), Json::number(interface)));
        }
        fields.push(("address".to_owned(), Json::string(format!("{}/{}", self.address, self.length))));
        if let Some(gateway) = self.gateway {
            fields.push(("gateway".to_owned(), Json::string(gateway.to_string())));
        }
        Json::Object(fields)
    }
}

fn sort_keys(json: &mut Json) {
    match json {
        Json::Object(fields) => {
            fields.sort_by(|(left, _), (right, _)| left.cmp(right));
            fields.iter_mut().for_each(|(_, value)| sort_keys(value));
        }
        Json::Array(items) => items.iter_mut().for_each(sort_keys),
        _ => {}
    }
}

/// The fields of `object` that Go's types know and would print, in their order.
fn known_fields(object: Option<&Json>, keys: &[&str]) -> Vec<(String, Json)> {
    let is_empty = |value: &Json| match value {
        Json::Null => true,
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        _ => false,
    };
    let known = |key: &&str| {
        let value = object?.field(key).filter(|value| !is_empty(value))?;
        Some(((*key).to_owned(), value.clone()))
    };
    keys.iter().filter_map(known).collect()
}

fn routes(json: &Json) -> Vec<Json> {
    let Some(Json::Array(routes)) = json.field("routes") else { return Vec::new() };
    routes.iter().map(|route| Json::Object(known_fields(Some(route), &ROUTE_KEYS))).collect()
}

fn mismatch(value: &Json, field: &str, go_type: &str) -> String {
    format!("json: cannot unmarshal {} into Go struct field {field} of type {go_type}", value.kind())
}

fn text(json: &Json, key: &str, of: &str) -> Result<String, String> {
    match json.field(key) {
        None | Some(Json::Null) => Ok(String::new()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => Err(mismatch(other, &format!("{of}.{key}"), "string")),
    }
}

fn array<'a>(json: &'a Json, key: &str) -> Result<&'a [Json], String> {
    match json.field(key) {
        None | Some(Json::Null) => Ok(&[]),
        Some(Json::Array(items)) => Ok(items),
        Some(other) => Err(mismatch(other, &format!("Result.{key}"), "[]")),
    }
}

fn interface(entry: &Json) -> Result<Interface, String> {
    Ok(Interface {
        name: text(entry, "name", "Interface")?,
        mac: text(entry, "mac", "Interface")?,
        sandbox: text(entry, "sandbox", "Interface")?,
        mtu: match entry.field("mtu") {
            Some(Json::Number(number)) if number != "0" => Some(number.clone()),
            _ => None,
        },
        socket_path: text(entry, "socketPath", "Interface")?,
        pci_id: text(entry, "pciID", "Interface")?,
    })
}

fn position(entry: &Json) -> Result<Option<usize>, String> {
    match entry.field("interface") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(number)) => match number.parse::<i64>() {
            // A position before the first interface names none.
            Ok(position) => Ok(usize::try_from(position).ok()),
            Err(_) => Err(format!(
                "json: cannot unmarshal number {number} into Go struct field ipConfig.interface of type int"
            )),
        },
        Some(other) => Err(mismatch(other, "ipConfig.interface", "int")),
    }
}

fn gateway(entry: &Json) -> Result<Option<IpAddr>, String> {
    let text = text(entry, "gateway", "ipConfig")?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("invalid IP address: {text}"))
}

fn cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || format!("invalid CIDR address: {text}");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = Some(length).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let length = length.and_then(|digits| digits.parse().ok()).filter(|length| *length <= longest);
    Ok((address, length.ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CniResult {
        let interfaces = vec![
            Interface::new("enicc21c2d7785", "", ""),
            Interface::new("eth0", 2, "/var/run/netns/cni-1"),
            Interface::new("dummycc21c2d7785", 0, 1),
        ];
        CniResult::new(interfaces, vec![IpConfig::single("10.0.1.31".parse().unwrap(), 1)])
    }

    #[test]
    fn a_result_is_printed_as_each_version_has_it() {
        for (version, golden) in [
            ("0.2.0", include_str!("../golden/result-0.2.0.json")),
            ("0.4.0", include_str!("../golden/result-0.4.0.json")),
            ("1.0.0", include_str!("../golden/result-1.0.0.json")),
        ] {
            let generation = Generation::of(version).unwrap();

            assert_eq!(sample().render(version, generation).unwrap(), golden.trim_end(), "{version}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back_in_every_version_with_interfaces() {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let generation = Generation::of(version).unwrap();
            let printed = sample().render(version, generation).unwrap();
            let json = Json::parse(printed.as_bytes()).unwrap();

            assert_eq!(CniResult::read(&json, generation, version).unwrap(), sample(), "{version}");
        }
    }

    #[test]
    fn what_other_plugins_added_passes_through() {
        let text = include_str!("../golden/foreign-1.0.0.json").trim_end();
        let result =
            CniResult::read(&Json::parse(text.as_bytes()).unwrap(), Generation::Newest, "1.0.0").unwrap();

        assert_eq!(result.render("1.0.0", Generation::Newest).unwrap(), text);
    }

    #[test]
    fn the_oldest_form_cannot_say_that_there_is_no_address() {
        assert!(CniResult::default().render("0.2.0", Generation::Oldest).is_err());
    }
}
