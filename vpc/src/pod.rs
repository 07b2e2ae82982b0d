//! Pods: the key that the CNI gives them, the name that people give them, the links they get.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

/// What the CNI knows a pod's interface by; the key of an assignment.
///
/// No part is empty: an empty key once matched addresses that nobody held.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PodKey {
    network: Box<str>,
    container_id: Box<str>,
    interface: Box<str>,
}

/// A part of a [`PodKey`] is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request names no {0}")]
pub struct PodKeyError(&'static str);

impl PodKey {
    /// A key of the network's name, the container id and the interface's name in the pod.
    ///
    /// # Errors
    /// [`PodKeyError`] if one of them is empty.
    pub fn new(network: &str, container_id: &str, interface: &str) -> Result<Self, PodKeyError> {
        for (part, name) in
            [(container_id, "container id"), (interface, "interface name"), (network, "network name")]
        {
            if part.is_empty() {
                return Err(PodKeyError(name));
            }
        }
        Ok(Self { network: network.into(), container_id: container_id.into(), interface: interface.into() })
    }

    /// The network's name, `aws-cni` as a rule.
    #[must_use]
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The sandbox's id.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface's name in the pod, `eth0` as a rule.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container_id, self.interface)
    }
}

impl fmt::Debug for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What people call a pod. Both parts are empty for a sandbox that Kubernetes did not make.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

impl PodName {
    /// The pod `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Whether nobody named the pod.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.namespace.is_empty() || self.name.is_empty()
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The length of the part of a host link's name that tells whose it is, in bytes.
const SUFFIX: usize = 11;

/// The eleven hexadecimal digits by which a pod's host links are known, for its interface
/// number `nic` (from 0).
///
/// The network policy agent and Calico compute the same, so this is a contract.
#[must_use]
pub fn veth_suffix(pod: &PodName, nic: u8) -> String {
    let mut hash = Sha1::new();
    hash.update(pod.namespace.as_bytes());
    hash.update(b".");
    hash.update(pod.name.as_bytes());
    if nic > 0 {
        hash.update(format!(".{nic}").as_bytes());
    }
    let mut suffix = String::with_capacity(12);
    for byte in &hash.finalize()[..6] {
        suffix.push_str(&format!("{byte:02x}"));
    }
    suffix.truncate(SUFFIX);
    suffix
}

/// The name of the host's end of a pod's veth pair: `prefix` (at most four bytes, `eni` as a
/// rule) and the pod's suffix.
#[must_use]
pub fn host_veth(prefix: &str, pod: &PodName, nic: u8) -> String {
    format!("{prefix}{}", veth_suffix(pod, nic))
}

/// Prefix and suffix of a link that is named as the host's end of some pod's veth pair, under
/// whatever prefix; none of another link.
#[must_use]
pub fn split_host_veth(link: &str) -> Option<(&str, &str)> {
    let (prefix, suffix) = link.split_at_checked(link.len().checked_sub(SUFFIX)?)?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    suffix.bytes().all(is_digit).then_some((prefix, suffix))
}

/// The name of interface number `nic` in the pod: what the runtime asked for, or `mNicIf<n>`.
#[must_use]
pub fn container_interface(requested: &str, nic: u8) -> String {
    if nic == 0 { requested.to_owned() } else { format!("mNicIf{nic}") }
}

/// The name of the entry in a CNI result that is no interface but carries numbers for DEL.
#[must_use]
pub fn dummy_interface(pod: &PodName) -> String {
    format!("dummy{}", veth_suffix(pod, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_those_that_other_components_compute() {
        for (namespace, name, nic, suffix) in [
            ("kube-system", "coredns-57ff979f67-qqbdh", 0, "b5faff8a083"),
            ("kube-system", "coredns-57ff979f67-8ns9b", 0, "9571956a6cc"),
            ("default", "sample-pod", 0, "cc21c2d7785"),
            ("kube-system", "web-2", 0, "ca82d32c244"),
            ("kube-system", "web-2", 1, "7cd2485543c"),
            ("", "", 0, "3a52ce78095"),
            ("", "", 1, "ce799470a46"),
        ] {
            assert_eq!(veth_suffix(&PodName::new(namespace, name), nic), suffix, "{namespace}/{name} {nic}");
        }
    }

    #[test]
    fn the_default_host_link_name_fits_the_kernel() {
        let name = host_veth("eni", &PodName::new("default", "sample-pod"), 0);

        assert_eq!(name, "enicc21c2d7785");
        assert_eq!(host_veth("vlan", &PodName::default(), 0).len(), 15);
    }

    #[test]
    fn a_link_of_a_pod_is_known_by_its_name_whatever_the_prefix() {
        for prefix in ["eni", "vlan", "x", ""] {
            let web = PodName::new("default", "web");
            let suffix = veth_suffix(&web, 0);
            assert_eq!(split_host_veth(&host_veth(prefix, &web, 0)), Some((prefix, suffix.as_str())));
        }
        for other in ["eth0", "lo", "veth1a2b3c4", "docker0", "enicc21c2d778", "enicc21c2d778G"] {
            assert_eq!(split_host_veth(other), None, "{other}");
        }
    }

    #[test]
    fn further_interfaces_have_names_of_their_own() {
        assert_eq!(container_interface("eth0", 0), "eth0");
        assert_eq!(container_interface("eth0", 2), "mNicIf2");
        assert_eq!(dummy_interface(&PodName::new("default", "sample-pod")), "dummycc21c2d7785");
    }

    #[test]
    fn a_key_without_one_of_its_parts_is_refused_by_name() {
        assert_eq!(
            PodKey::new("aws-cni", "", "eth0").unwrap_err().to_string(),
            "the request names no container id"
        );
        assert_eq!(
            PodKey::new("", "c", "eth0").unwrap_err().to_string(),
            "the request names no network name"
        );
        assert_eq!(
            PodKey::new("aws-cni", "c", "").unwrap_err().to_string(),
            "the request names no interface name"
        );
    }
}
