//! A node that amazon-vpc-cni-k8s set up, made by hand: ENIs, routes and rules, pods, packet
//! filter and state file, command by command as the reference makes them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::look::{self, Placed, lines};
use e2e::until;
use lab::cloud::{AttachNetworkInterface, CreateNetworkInterface, Request, Response};
use lab::world::traffic::SentAgain;
use lab::world::{
    ECHO_PORT, Echo, INTERNET_ECHO, IpamdOptions, Lab, Node, Place, Pod, PodSpec, STATE_FILE, at, finish,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::reference::{Reference, content, foreign};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A port of every node that leads to the pod on the secondary ENI.
pub(crate) const NODE_PORT: u16 = 30007;

/// The node, with two pods on the primary and three on a secondary ENI, and another node as a peer.
pub(crate) struct OldNode {
    pub(crate) lab: Lab,
    pub(crate) reference: Reference,
    pub(crate) secondary: Placed,
    pub(crate) on_primary: Vec<Pod>,
    pub(crate) on_secondary: Vec<Pod>,
    _peers_echo: Echo,
}

impl OldNode {
    /// Makes it. `options` are those of the reference, whose addresses are filled in.
    pub(crate) async fn new(options: Reference) -> Result<OldNode> {
        let lab =
            Lab::builder().node("m5.large", "us-west-2a").node("m5.large", "us-west-2b").start().await?;
        let node = lab.nodes()[0].clone();
        let peer = &lab.nodes()[1];
        let _peers_echo = Echo::start(peer.place(), at(peer.primary_ip(), ECHO_PORT))?;
        node.install_plugin(None).await?;
        let reference = Reference { node: node.primary_ip().to_string(), ..options };

        let (secondary, free) = attach_eni(&lab, &node).await?;
        node.place().ip_batch(&eni_commands(&secondary)).await.context("set the ENI up")?;
        if reference.node_port || !reference.external_snat {
            let mark = format!("{0:#x}/{0:#x}", reference.mark);
            node.exec(&["ip", "rule", "add", "pref", "1024", "fwmark", &mark, "lookup", "main"]).await?;
        }
        let own = primary_addresses(&lab, &node, 2).await?;
        let mut old = OldNode {
            lab,
            reference,
            secondary,
            on_primary: Vec::new(),
            on_secondary: Vec::new(),
            _peers_echo,
        };
        for (index, address) in own.into_iter().enumerate() {
            let pod = old.wire_pod(&format!("p{index}"), address, 254).await?;
            old.on_primary.push(pod);
        }
        let (last, free) = free.split_last().context("an ENI without addresses")?;
        for (index, address) in free.iter().enumerate() {
            let pod = old.wire_pod(&format!("w{index}"), *address, old.secondary.table).await?;
            old.on_secondary.push(pod);
        }
        old.wire_second_card(*last).await?;
        write_state(old.node(), old.pods())?;
        let [before, after] = foreign(old.reference.iptables);
        for script in [before, old.reference.script(), after, old.node_port()] {
            old.run(&script).await?;
        }
        // A link's own IPv6 address is announced once more when the kernel is sure of it.
        until("the kernel is sure of all addresses", PATIENCE, || async {
            Ok(old.node().exec(&["ip", "-6", "addr", "show", "tentative"]).await?.trim().is_empty())
        })
        .await?;
        Ok(old)
    }

    pub(crate) fn node(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    pub(crate) fn peer(&self) -> Ipv4Addr {
        self.lab.nodes()[1].primary_ip()
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.on_primary.iter().chain(&self.on_secondary)
    }

    /// Runs a shell script on the node.
    pub(crate) async fn run(&self, script: &str) -> Result<()> {
        self.node()
            .place()
            .exec_with(&["sh", "-e"], Some(script))
            .await
            .with_context(|| script.to_owned())?;
        Ok(())
    }

    /// The rules that the node's front end of iptables holds.
    pub(crate) async fn rules(&self) -> Result<Vec<String>> {
        Ok(content(&self.node().exec(&[&format!("{}-save", self.reference.iptables)]).await?))
    }

    /// The daemon's settings that say the same as the reference's.
    pub(crate) fn options(&self) -> IpamdOptions {
        let Reference { node_port, external_snat, mark, prefix, excluded, .. } = &self.reference;
        IpamdOptions::new()
            .env("AWS_VPC_CNI_NODE_PORT_SUPPORT", node_port)
            .env("AWS_VPC_K8S_CNI_EXTERNALSNAT", external_snat)
            .env("AWS_VPC_K8S_CNI_CONNMARK", format!("{mark:#x}"))
            .env("AWS_VPC_K8S_CNI_VETHPREFIX", prefix)
            .env("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", excluded.join(","))
            .env("MAX_ENI", 2)
    }

    /// Waits until the daemon has taken over; what its status says then.
    pub(crate) async fn taken_over(&self) -> Result<Value> {
        until("the daemon has taken over", PATIENCE, || async {
            Ok(self.status().await?["takeover"]["state"] == "done")
        })
        .await
        .with_context(|| self.node().ipamd_output())?;
        Ok(self.status().await?["takeover"].clone())
    }

    pub(crate) async fn status(&self) -> Result<Value> {
        let mut command = self.node().command(e2e::binary("ipamd")?);
        command.args(["status", "--output", "json"]).env_clear();
        let ran = finish(command, None, PATIENCE).await?;
        serde_json::from_slice(&ran.stdout).with_context(|| ran.complaint())
    }

    /// A stream from a pod on the secondary ENI to as far away as its packets may go.
    pub(crate) async fn stream(&self) -> Result<Stream> {
        let pod = &self.on_secondary[0];
        if self.reference.external_snat {
            Stream::start(pod, self.peer(), self.lab.nodes()[1].place()).await
        } else {
            Stream::start(pod, INTERNET_ECHO, self.lab.fabric().internet()).await
        }
    }

    /// Every pod is seen with the address that `external_snat` asks for, and the node port works.
    pub(crate) async fn speaks(&self, external_snat: bool) -> Result<()> {
        let pods: Vec<&Pod> = self.pods().collect();
        self.all_speak(&pods, external_snat).await
    }

    /// The same for some of the pods.
    pub(crate) async fn all_speak(&self, pods: &[&Pod], external_snat: bool) -> Result<()> {
        for pod in pods {
            let (seen, _) = pod.seen_by(self.peer(), ECHO_PORT, PATIENCE).await?;
            ensure!(seen == pod.address(), "{} is seen as {seen} within the VPC", pod.label());
            if external_snat {
                self.leaves_as_itself(pod).await?;
            } else {
                let (seen, _) = pod.seen_by(INTERNET_ECHO, ECHO_PORT, PATIENCE).await?;
                ensure!(seen == self.node().primary_ip(), "{} is seen as {seen} outside", pod.label());
            }
        }
        if self.reference.node_port {
            let stranger = self.lab.nodes()[1].place();
            let to = std::net::SocketAddrV4::new(self.node().primary_ip(), NODE_PORT);
            let mut stream = stranger.connect(to, PATIENCE).await.context("by the node port")?;
            ensure!(tokio::time::timeout(PATIENCE, stream.read_u8()).await?? != 0);
        }
        Ok(())
    }

    /// What a pod sends to the internet arrives there with the pod's address, which is dropped.
    async fn leaves_as_itself(&self, pod: &Pod) -> Result<()> {
        let before = self.lab.fabric().drops().await?;
        let socket = pod.place().udp(at(pod.address(), 0))?;
        until("the packet is dropped at the internet's border", PATIENCE, || async {
            socket.send_to(b"x", at(INTERNET_ECHO, ECHO_PORT)).await?;
            let now = self.lab.fabric().drops().await?;
            ensure!(now.spoofed == before.spoofed, "{}: {before:?}, {now:?}", pod.label());
            Ok(now.not_public > before.not_public)
        })
        .await
        .with_context(|| pod.label())
    }

    /// A node port as kube-proxy makes it for a pod on the secondary ENI.
    fn node_port(&self) -> String {
        let (iptables, pod) = (self.reference.iptables, self.on_secondary[0].address());
        format!(
            "{iptables} -t nat -A KUBE-SERVICES -p tcp -m comment --comment 'default/web node port' \
             -m addrtype --dst-type LOCAL --dport {NODE_PORT} -j DNAT --to-destination {pod}:{ECHO_PORT}\n"
        )
    }

    /// Wires a pod as the reference's plugin does, and keeps the result that it would print.
    async fn wire_pod(&self, name: &str, address: Ipv4Addr, table: u32) -> Result<Pod> {
        let node = self.node();
        let pod = node.sandbox(PodSpec::new("default", name)).await?;
        let suffix = look::suffix(node, "default", name).await?;
        let veth = format!("{}{suffix}", self.reference.prefix);
        let netns = pod.netns().rsplit('/').next().context("a namespace without a name")?;
        node.place()
            .ip_batch(&format!(
                "link add {veth} mtu 9001 type veth peer name eth0 mtu 9001 netns {netns}\nlink set {veth} up\n"
            ))
            .await?;
        let link = node.ip(&["-j", "link", "show", &veth]).await?;
        let mac = link[0]["address"].as_str().context("a link without address")?;
        pod.place()
            .ip_batch(&format!(
                "link set eth0 up\n\
                 route replace 169.254.1.1 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n\
                 addr add {address}/32 dev eth0\n\
                 neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent\n"
            ))
            .await?;
        let from = match table {
            254 => String::new(),
            table => format!("rule add pref 1536 from {address} lookup {table}\n"),
        };
        node.place()
            .ip_batch(&format!(
                "route replace {address} dev {veth} scope link\nrule add pref 512 to {address} lookup main\n{from}"
            ))
            .await?;
        let device = if table == 254 { 0 } else { table - 1 };
        pod.set_result(Some(json!({
            "cniVersion": "0.4.0",
            "interfaces": [
                { "name": veth },
                { "name": "eth0", "mac": table.to_string(), "sandbox": pod.netns() },
                { "name": format!("dummy{suffix}"), "mac": "0", "sandbox": device.to_string() },
            ],
            "ips": [{ "version": "4", "interface": 1, "address": format!("{address}/32") }],
            "dns": {},
        })));
        Ok(pod)
    }

    /// A second interface of a pod, as on an ENI of another network card, whose table has a
    /// number of its own. Our daemon serves no such pods yet, and leaves what they have.
    async fn wire_second_card(&self, address: Ipv4Addr) -> Result<()> {
        let pod = &self.on_secondary[0];
        let suffix = look::suffix(self.node(), "default", &format!("{}.1", pod.name())).await?;
        let veth = format!("{}{suffix}", self.reference.prefix);
        let netns = pod.netns().rsplit('/').next().context("a namespace without a name")?;
        let Placed { link, gateway, .. } = &self.secondary;
        let lines = format!(
            "link add {veth} mtu 9001 type veth peer name mNicIf1 mtu 9001 netns {netns}\n\
             link set {veth} up\n\
             route replace {address} dev {veth} scope link\n\
             rule add pref 512 to {address} lookup main\n\
             rule add pref 1536 from {address} lookup 10100\n\
             route replace {gateway} dev {link} scope link table 10100\n\
             route replace default via {gateway} dev {link} table 10100\n"
        );
        self.node().place().ip_batch(&lines).await?;
        pod.place().ip_batch(&format!("link set mNicIf1 up\naddr add {address}/32 dev mNicIf1\n")).await
    }
}

/// The state file as the reference writes it for pods that it has wired on a node.
pub(crate) fn write_state<'a>(node: &Node, pods: impl Iterator<Item = &'a Pod>) -> Result<()> {
    let allocations = pods.map(|pod| {
        let family = if pod.ip().is_ipv4() { "ipv4" } else { "ipv6" };
        json!({
            "networkName": "aws-cni",
            "containerID": pod.container_id(),
            "ifName": "eth0",
            family: pod.ip().to_string(),
            "allocationTimestamp": 1_795_245_887_457_644_830_i64,
            "metadata": { "k8sPodNamespace": "default", "k8sPodName": pod.name(), "interfacesCount": 1 },
        })
    });
    let state = json!({ "version": "vpc-cni-ipam/1", "allocations": allocations.collect::<Vec<_>>() });
    std::fs::write(node.path(STATE_FILE), format!("{state}\n")).context("write the state file")
}

/// An ENI with addresses for pods, made and attached as the reference does it.
async fn attach_eni(lab: &Lab, node: &Node) -> Result<(Placed, Vec<Ipv4Addr>)> {
    let subnet_id = lab.cloud().snapshot().attached(node.instance_id())[0].subnet_id.clone();
    let instance = node.instance_id().to_owned();
    let wish = CreateNetworkInterface {
        subnet_id,
        description: format!("aws-K8S-{instance}"),
        secondary_count: Some(4),
        tags: [
            ("cluster.k8s.amazonaws.com/name".to_owned(), "lab".to_owned()),
            ("node.k8s.amazonaws.com/instance_id".to_owned(), instance.clone()),
        ]
        .into(),
        ..CreateNetworkInterface::default()
    };
    let Response::Created { eni, .. } = ask(lab, Request::CreateNetworkInterface(wish)).await? else {
        bail!("no ENI was made")
    };
    let attach = AttachNetworkInterface {
        eni_id: eni.id.clone(),
        instance_id: instance,
        device_index: 1,
        network_card: 0,
    };
    ask(lab, Request::AttachNetworkInterface(attach)).await?;
    until("the ENI's link is there", PATIENCE, || async {
        Ok(lines(node.place(), &["ip", "-br", "link"]).await?.iter().any(|line| line.starts_with("eth1")))
    })
    .await?;
    lab.settled().await?;
    let snapshot = lab.cloud().snapshot();
    let eni = snapshot.enis.get(&eni.id).context("the ENI is gone")?;
    let free = eni.addresses.iter().filter(|it| !it.is_primary).map(|it| it.address).collect();
    Ok((look::placed(node, eni)?, free))
}

/// Addresses for pods on the primary ENI.
async fn primary_addresses(lab: &Lab, node: &Node, count: u16) -> Result<Vec<Ipv4Addr>> {
    let eni_id = lab.cloud().snapshot().attached(node.instance_id())[0].id.clone();
    let wish = lab::cloud::AssignPrivateIpAddresses { eni_id, count: Some(count), ..Default::default() };
    ask(lab, Request::AssignPrivateIpAddresses(wish)).await?;
    lab.settled().await?;
    let snapshot = lab.cloud().snapshot();
    let eni = snapshot.attached(node.instance_id())[0];
    Ok(eni.addresses.iter().filter(|it| !it.is_primary).map(|it| it.address).collect())
}

async fn ask(lab: &Lab, request: Request) -> Result<Response> {
    lab.cloud().ask(request).await.map_err(|error| anyhow::anyhow!("{error:?}"))
}

fn eni_commands(eni: &Placed) -> String {
    let Placed { link, table, own, gateway, subnet: (length, broadcast) } = eni;
    let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
    let network = Ipv4Addr::from(u32::from(*own) & mask);
    format!(
        "link set eth0 mtu 9001\n\
         link set {link} mtu 9001\n\
         link set {link} up\n\
         addr add {own}/{length} brd {broadcast} dev {link}\n\
         route replace {gateway} dev {link} scope link table {table}\n\
         route replace default via {gateway} dev {link} table {table}\n\
         route del {network}/{length} dev {link} src {own} scope link\n\
         rule add pref 32765 from {own} lookup {table}\n"
    )
}

/// One TCP connection that asks and is answered all the time.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
    ends: [Place; 2],
    before: SentAgain,
}

impl Stream {
    async fn start(pod: &Pod, to: Ipv4Addr, far: &Place) -> Result<Stream> {
        let mut tcp = pod.connect(to, ECHO_PORT, PATIENCE).await?;
        tcp.set_nodelay(true)?;
        while tcp.read_u8().await? != b'\n' {}
        let ends = [pod.place().clone(), far.clone()];
        let before = SentAgain::between(&ends[0], &ends[1])?;
        let (stop, exchanges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (stop.clone(), exchanges.clone());
        let task = tokio::spawn(async move {
            let mut buffer = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let exchange = async {
                    tcp.write_all(&[7; 512]).await?;
                    tcp.read_exact(&mut buffer).await
                };
                tokio::time::timeout(PATIENCE, exchange).await.context("the stream stands still")??;
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        });
        Ok(Stream { stop, exchanges, task, ends, before })
    }

    /// Waits until it has gone on for some more exchanges.
    pub(crate) async fn goes_on(&self) -> Result<()> {
        let goal = self.exchanges.load(Ordering::Relaxed) + 100;
        until("the stream has gone on", PATIENCE, || async {
            ensure!(!self.task.is_finished(), "the stream has ended");
            Ok(self.exchanges.load(Ordering::Relaxed) >= goal)
        })
        .await
    }

    /// Ends it, and says whether no segment was lost.
    pub(crate) async fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        self.before.insist_on_none_lost(&self.ends[0], &self.ends[1])
    }
}
