//! Services on a node, by the rules that kube-proxy makes of them: as iptables and as nftables.

mod iptables;
mod nftables;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::node::Node;
use super::place::at;
use super::pod::{ECHO_PORT, Pod};

/// The packet mark that asks for the node's address as source, as kube-proxy sets it.
const MASQUERADE_MARK: u32 = 0x4000;

/// How kube-proxy keeps its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeProxy {
    /// By `iptables-restore`, with the iptables of the machine.
    Iptables,
    /// In a table `kube-proxy` of its own.
    Nftables,
}

impl KubeProxy {
    /// Both forms.
    pub const ALL: [KubeProxy; 2] = [KubeProxy::Iptables, KubeProxy::Nftables];
}

/// A service, for TCP and UDP on the same port. All its addresses are of one family.
#[derive(Debug, Clone)]
pub struct Service {
    name: String,
    address: SocketAddr,
    node_port: Option<u16>,
    is_local: bool,
    endpoints: Vec<Endpoint>,
}

/// Where a service leads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    address: SocketAddr,
    /// The node that it is on; `None` for something outside of the cluster.
    node: Option<String>,
}

impl Service {
    /// A service that leads nowhere yet, at a cluster address and port.
    pub fn new(name: &str, cluster_ip: impl Into<IpAddr>, port: u16) -> Service {
        let address = at(cluster_ip, port);
        Service { name: name.to_owned(), address, node_port: None, is_local: false, endpoints: Vec::new() }
    }

    /// Leads to a pod's echo service too.
    pub fn to_pod(mut self, pod: &Pod) -> Service {
        let node = Some(pod.node().name().to_owned());
        self.endpoints.push(Endpoint { address: at(pod.ip(), ECHO_PORT), node });
        self
    }

    /// Leads to something outside of the cluster too.
    pub fn to(mut self, address: SocketAddr) -> Service {
        self.endpoints.push(Endpoint { address, node: None });
        self
    }

    /// Is reached by that port of every node too.
    pub fn node_port(mut self, port: u16) -> Service {
        self.node_port = Some(port);
        self
    }

    /// What comes in by the node port goes to pods of that node only, and keeps its source:
    /// `externalTrafficPolicy: Local`.
    pub fn local(mut self) -> Service {
        self.is_local = true;
        self
    }

    /// A name for chains: the same service has the same one everywhere.
    fn digest(&self, of: &str) -> String {
        // FNV-1a, which is the same in every release.
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = self.name.bytes().chain(of.bytes()).fold(0xcbf2_9ce4_8422_2325, step);
        format!("{hash:016X}")
    }
}

impl Node {
    /// Has the node's kube-proxy serve these services and no others.
    ///
    /// # Errors
    /// The tools' complaints.
    pub async fn set_services(&self, proxy: KubeProxy, services: &[Service]) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let is_of = |service: &&Service| service.address.is_ipv6() == (family == Family::V6);
            let services: Vec<_> = services.iter().filter(is_of).collect();
            if services.is_empty() && family == Family::V6 {
                continue;
            }
            match proxy {
                KubeProxy::Iptables => iptables::load(self, family, &services).await?,
                KubeProxy::Nftables => {
                    let addresses = self.addresses(family).await?;
                    let text = nftables::text(self.name(), &addresses, family, &services);
                    self.place().nft_load(&text).await?;
                }
            }
        }
        Ok(())
    }

    /// The addresses on which the node takes node ports: those of its first ENI.
    async fn addresses(&self, family: Family) -> Result<Vec<String>> {
        let option = if family == Family::V4 { "-4" } else { "-6" };
        let shown = self.ip(&["-j", option, "addr", "show", "eth0", "scope", "global"]).await?;
        let all = shown.as_array().into_iter().flatten();
        let all = all.filter_map(|link| link["addr_info"].as_array()).flatten();
        Ok(all.filter_map(|it| it["local"].as_str().map(str::to_owned)).collect())
    }
}

/// Of rules and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        let mut service = Service::new("web", [10, 100, 0, 1], 80).node_port(30080).local();
        for (last, node) in [(1, "node1"), (2, "node2")] {
            let address = at([10, 0, 0, last], 7);
            service.endpoints.push(Endpoint { address, node: Some(node.to_owned()) });
        }
        service
    }

    #[test]
    fn a_local_service_leads_to_pods_of_the_node_from_its_node_port_only() {
        let service = service();

        let text = iptables::text("node1", Family::V4, &[&service], true);

        let jumps = |chain: &str| {
            let head = format!("-A {chain}{} ", service.digest("tcp"));
            text.lines().filter(|line| line.starts_with(&head) && line.contains("KUBE-SEP-")).count()
        };
        assert_eq!((jumps("KUBE-SVC-"), jumps("KUBE-SVL-")), (2, 1), "{text}");
    }

    #[test]
    fn names_of_chains_fit_into_what_iptables_takes() {
        let service = service();
        let text = iptables::text("node1", Family::V4, &[&service], true);
        let names = text.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
        assert!(names.clone().count() > 10);
        assert!(names.into_iter().all(|name| name.len() <= 28), "{text}");
    }
}
