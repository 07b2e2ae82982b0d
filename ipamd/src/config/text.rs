//! The forms of settings that are neither numbers nor booleans. An error says what is accepted.

use std::collections::BTreeMap;

use datapath::wanted::RandomSnat;
use ipnet::Ipv4Net;
use vpc::Family;

/// The least MTU that every host with addresses of `family` must take.
pub(super) fn mtu_least(family: Family) -> u32 {
    match family {
        Family::V4 => 576,
        Family::V6 => 1280,
    }
}

/// The largest MTU within a VPC.
pub(super) const MTU_MOST: u32 = 9001;

/// Tags as a JSON object of strings. Keys that belong to Kubernetes are dropped: the daemon and
/// its kin set them.
pub(super) fn eni_tags(value: &str) -> Result<BTreeMap<String, String>, String> {
    const RESERVED: &str = "k8s.amazonaws.com";
    let mut tags: BTreeMap<String, String> = serde_json::from_str(value)
        .map_err(|error| format!("expected a JSON object of strings like {{\"team\": \"blue\"}}: {error}"))?;
    tags.retain(|key, _| !key.contains(RESERVED));
    Ok(tags)
}

/// How often a second something may happen, as a decimal number.
pub(super) fn per_second(value: &str) -> Result<f64, String> {
    let number = value.parse::<f64>().ok().filter(|number| (0.01..=1000.0).contains(number));
    number.ok_or_else(|| "expected a number from 0.01 to 1000, like 0.5".to_owned())
}

/// IPv4 blocks separated by commas; bits below the prefix length are cleared.
pub(super) fn cidrs(value: &str) -> Result<Vec<Ipv4Net>, String> {
    value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| {
            item.parse::<Ipv4Net>().map(|net| net.trunc()).map_err(|_| {
                format!("{item:?} is not an IPv4 block; expected a list like 10.0.0.0/8,192.168.0.0/16")
            })
        })
        .collect()
}

pub(super) fn random_snat(value: &str) -> Result<RandomSnat, String> {
    match value {
        "prng" => Ok(RandomSnat::Prng),
        "hashrandom" => Ok(RandomSnat::HashRandom),
        "none" => Ok(RandomSnat::None),
        _ => Err("expected prng, hashrandom or none".to_owned()),
    }
}

/// A mark in any of the forms of Go's integers: 128, 0x80, 0o200, 0200, 0b1000_0000.
pub(super) fn connmark(value: &str) -> Result<u32, String> {
    let lower = value.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (&lower[..], 10),
    };
    u32::from_str_radix(&digits.replace('_', ""), radix)
        .ok()
        .filter(|mark| *mark > 0 && !digits.starts_with('+'))
        .ok_or_else(|| "expected a number from 1 to 4294967295, like 0x80 or 128".to_owned())
}

/// How the names of host veths begin: the kernel takes 15 bytes, 11 of which are the pod's.
pub(super) fn veth_prefix(value: &str) -> Result<String, String> {
    let is_short = (1..=4).contains(&value.len());
    let is_plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if is_short && is_plain && !["eth", "lo", "vlan"].contains(&value) {
        Ok(value.to_owned())
    } else {
        Err("expected one to four letters or digits, and not eth, lo or vlan".to_owned())
    }
}

pub(super) fn url(value: &str) -> Result<String, String> {
    let host = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() => Ok(value.to_owned()),
        _ => Err("expected an address like https://ec2.eu-central-1.amazonaws.com".to_owned()),
    }
}

/// Where a plugin logs; its standard output carries its result and nothing else.
pub(super) fn plugin_log_file(value: &str) -> Result<String, String> {
    if value.eq_ignore_ascii_case("stdout") {
        Err("expected a path or stderr: a plugin's standard output carries its result".to_owned())
    } else {
        Ok(value.to_owned())
    }
}
