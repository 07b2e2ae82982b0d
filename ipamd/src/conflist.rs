//! The list of CNI plugins that the container runtime reads, `10-aws.conflist`.
//!
//! Its presence tells the runtime that the node can run pods, so it is written last. The layout
//! is amazon-vpc-cni-k8s's, byte for byte, so that going to it and back changes nothing.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use vpc::Family;

use crate::host_file::{self, InstallError};

#[cfg(test)]
mod tests;

/// The file's name in the runtime's configuration directory.
pub(crate) const FILE_NAME: &str = "10-aws.conflist";

/// Where the manifest mounts the runtime's configuration directory.
pub(crate) const DEFAULT_DIRECTORY: &str = "/host/etc/cni/net.d";

const FILE_MODE: u32 = 0o644;

/// The version of the CNI specification that the list speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CniVersion {
    /// 0.4.0 without CHECK, which every runtime and every chained plugin takes.
    V0_4_0,
    /// 1.1.0, with which runtimes call CHECK, GC and STATUS.
    V1_1_0,
}

/// The egress plugin's part: IPv4 for the pods of an IPv6 cluster, or the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Egress {
    /// An IPv4 cluster without IPv6 egress: the plugin passes results through.
    V6Off,
    /// An IPv4 cluster whose pods reach IPv6 through this address of the node.
    V6(Ipv6Addr),
    /// An IPv6 cluster whose pods reach IPv4 through this address of the node, if switched on.
    V4 { node: Ipv4Addr, is_enabled: bool },
}

impl Egress {
    /// What egress comes to on a node with these addresses, whose pods' addresses are of `family`.
    pub(crate) fn of(family: Family, is_enabled: bool, node: Ipv4Addr, node_v6: Option<Ipv6Addr>) -> Self {
        match (family, node_v6) {
            (Family::V6, _) => Self::V4 { node, is_enabled },
            (Family::V4, Some(node)) if is_enabled => Self::V6(node),
            (Family::V4, _) => Self::V6Off,
        }
    }

    /// Whether pods get a second link.
    pub(crate) fn is_on(self) -> bool {
        match self {
            Self::V6Off => false,
            Self::V6(_) => true,
            Self::V4 { is_enabled, .. } => is_enabled,
        }
    }
}

/// Everything that the list depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflist {
    pub(crate) cni_version: CniVersion,
    /// AWS_VPC_K8S_CNI_VETHPREFIX
    pub(crate) veth_prefix: String,
    /// POD_MTU, else AWS_VPC_ENI_MTU
    pub(crate) pod_mtu: u32,
    /// POD_SECURITY_GROUP_ENFORCING_MODE
    pub(crate) pod_security_group_mode: String,
    /// AWS_VPC_K8S_PLUGIN_LOG_FILE
    pub(crate) log_file: String,
    /// AWS_VPC_K8S_PLUGIN_LOG_LEVEL
    pub(crate) log_level: String,
    /// AWS_VPC_K8S_CNI_RANDOMIZESNAT
    pub(crate) randomize_snat: String,
    pub(crate) egress: Egress,
    /// AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE
    pub(crate) egress_v4_log_file: String,
    /// AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE
    pub(crate) egress_v6_log_file: String,
    /// ENABLE_BANDWIDTH_PLUGIN
    pub(crate) has_bandwidth: bool,
    /// DISABLE_POD_V6
    pub(crate) disables_pod_v6: bool,
}

impl Default for Conflist {
    /// What the manifest's environment gives.
    fn default() -> Self {
        Self {
            cni_version: CniVersion::V0_4_0,
            veth_prefix: "eni".to_owned(),
            pod_mtu: 9001,
            pod_security_group_mode: "strict".to_owned(),
            log_file: "/var/log/aws-routed-eni/plugin.log".to_owned(),
            log_level: "DEBUG".to_owned(),
            randomize_snat: "prng".to_owned(),
            egress: Egress::V6Off,
            egress_v4_log_file: "/var/log/aws-routed-eni/egress-v4-plugin.log".to_owned(),
            egress_v6_log_file: "/var/log/aws-routed-eni/egress-v6-plugin.log".to_owned(),
            has_bandwidth: false,
            disables_pod_v6: false,
        }
    }
}

/// Settings with which the plugins could not work, all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ConflistError(pub(crate) Vec<String>);

impl fmt::Display for ConflistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the plugin list cannot be written: {}", self.0.join("; "))
    }
}

impl Conflist {
    /// The file's contents.
    ///
    /// # Errors
    /// [`ConflistError`] with everything that is wrong with the settings.
    pub(crate) fn render(&self) -> Result<Vec<u8>, ConflistError> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(ConflistError(faults));
        }
        let head = match self.cni_version {
            CniVersion::V0_4_0 => {
                "\"cniVersion\": \"0.4.0\",\n  \"name\": \"aws-cni\",\n  \"disableCheck\": true,"
            }
            CniVersion::V1_1_0 => "\"cniVersion\": \"1.1.0\",\n  \"name\": \"aws-cni\",",
        };
        let mut plugins = vec![self.aws_cni(), self.egress_cni(), PORTMAP.to_owned()];
        if self.has_bandwidth {
            plugins.push(BANDWIDTH.to_owned());
        }
        if self.disables_pod_v6 {
            plugins.push(TUNING.to_owned());
        }
        let plugins = plugins.join(",\n");
        Ok(format!("{{\n  {head}\n  \"plugins\": [\n{plugins}\n  ]\n}}\n").into_bytes())
    }

    fn aws_cni(&self) -> String {
        format!(
            r#"    {{
      "name": "aws-cni",
      "type": "aws-cni",
      "vethPrefix": {veth_prefix},
      "mtu": "{mtu}",
      "podSGEnforcingMode": {mode},
      "pluginLogFile": {log_file},
      "pluginLogLevel": {log_level},
      "capabilities": {{"io.kubernetes.cri.pod-annotations": true}}
    }}"#,
            veth_prefix = json(&self.veth_prefix),
            mtu = self.pod_mtu,
            mode = json(&self.pod_security_group_mode),
            log_file = json(&self.log_file),
            log_level = json(&self.log_level),
        )
    }

    fn egress_cni(&self) -> String {
        let is_v4 = matches!(self.egress, Egress::V4 { .. });
        let enabled = self.egress.is_on();
        let node_ip = match self.egress {
            Egress::V6Off => String::new(),
            Egress::V6(node) => node.to_string(),
            Egress::V4 { node, .. } => node.to_string(),
        };
        let (subnet, destination, directory, log_file) = if is_v4 {
            ("169.254.172.0/22", "0.0.0.0/0", "/run/cni/v6pd/egress-v4-ipam", &self.egress_v4_log_file)
        } else {
            ("fd00::ac:00/118", "::/0", "/run/cni/v4pd/egress-v6-ipam", &self.egress_v6_log_file)
        };
        format!(
            r#"    {{
      "name": "egress-cni",
      "type": "egress-cni",
      "mtu": "{mtu}",
      "enabled": "{enabled}",
      "randomizeSNAT": {randomize_snat},
      "nodeIP": "{node_ip}",
      "ipam": {{
         "type": "host-local",
         "ranges": [[{{"subnet": "{subnet}"}}]],
         "routes": [{{"dst": "{destination}"}}],
         "dataDir": "{directory}"
      }},
      "pluginLogFile": {log_file},
      "pluginLogLevel": {log_level}
    }}"#,
            mtu = self.pod_mtu,
            randomize_snat = json(&self.randomize_snat),
            log_file = json(log_file),
            log_level = json(&self.log_level),
        )
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let is_reserved = ["eth", "lo", "vlan"].contains(&self.veth_prefix.as_str());
        if !(1..=4).contains(&self.veth_prefix.len()) || is_reserved {
            faults.push(format!(
                "AWS_VPC_K8S_CNI_VETHPREFIX is {:?}: expected 1 to 4 characters, and not eth, lo or vlan",
                self.veth_prefix
            ));
        }
        // Pods have an IPv6 link in both other cases.
        let least = if self.egress == Egress::V6Off { 576 } else { 1280 };
        if !(least..=9001).contains(&self.pod_mtu) {
            faults.push(format!("POD_MTU is {}: expected {least} to 9001", self.pod_mtu));
        }
        if !["strict", "standard"].contains(&self.pod_security_group_mode.as_str()) {
            faults.push(format!(
                "POD_SECURITY_GROUP_ENFORCING_MODE is {:?}: expected strict or standard",
                self.pod_security_group_mode
            ));
        }
        for (name, file) in [
            ("AWS_VPC_K8S_PLUGIN_LOG_FILE", &self.log_file),
            ("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", &self.egress_v4_log_file),
            ("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", &self.egress_v6_log_file),
        ] {
            // A plugin's standard output carries its result and nothing else.
            if file.eq_ignore_ascii_case("stdout") {
                faults.push(format!("{name} is {file:?}: expected a path or stderr"));
            }
        }
        faults
    }
}

const PORTMAP: &str = r#"    {
      "type": "portmap",
      "capabilities": {"portMappings": true},
      "snat": true
    }"#;

const BANDWIDTH: &str = r#"    {
      "type": "bandwidth",
      "capabilities": {"bandwidth": true}
    }"#;

const TUNING: &str = r#"    {
      "type": "tuning",
      "sysctl": {
        "net.ipv6.conf.all.disable_ipv6": "1",
        "net.ipv6.conf.default.disable_ipv6": "1",
        "net.ipv6.conf.lo.disable_ipv6": "1"
      }
    }"#;

/// A JSON string, quotes included.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What became of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Installed {
    /// It is new.
    Written,
    /// It was there with these contents.
    Unchanged,
    /// There is no such directory, and nobody named it; worth a warning.
    NoDirectory(PathBuf),
}

/// Puts the list into the runtime's configuration directory: `named` (HOST_CNI_CONFDIR_PATH), or
/// [`DEFAULT_DIRECTORY`], which may be absent where the daemon runs outside its pod.
///
/// # Errors
/// [`InstallError`] if the file cannot be written, or the directory that was named does not exist.
pub(crate) fn install(named: Option<&Path>, contents: &[u8]) -> Result<Installed, InstallError> {
    install_into(named, Path::new(DEFAULT_DIRECTORY), contents)
}

fn install_into(named: Option<&Path>, default: &Path, contents: &[u8]) -> Result<Installed, InstallError> {
    let directory = named.unwrap_or(default);
    if named.is_none() && !directory.is_dir() {
        return Ok(Installed::NoDirectory(directory.to_owned()));
    }
    Ok(match host_file::install(directory, FILE_NAME, contents, FILE_MODE)? {
        host_file::Outcome::Written => Installed::Written,
        host_file::Outcome::Unchanged => Installed::Unchanged,
    })
}
