//! The ground for packets: a node with pods on its primary and on a secondary ENI, and everybody
//! whom they may talk to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cloud::CloudBuilder;
use lab::world::{
    ECHO_PORT, Echo, INTERNET_ECHO, INTERNET_ECHO_V6, Ipamd, IpamdOptions, Lab, Node, PREMISES_ECHO, Place,
    Pod, at,
};

use crate::look::at_rest_with_mtu;

/// How long a daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who takes part in flows. `Near` and `Far` are pods of the node under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A pod on the primary ENI.
    Near,
    /// Another one there.
    NearToo,
    /// A pod on a secondary ENI.
    Far,
    /// Another one there.
    FarToo,
    /// A pod on the primary ENI of another node of the same subnet.
    OtherNear,
    /// A pod on a secondary ENI of that node.
    OtherFar,
    /// A pod in a subnet of another zone.
    OtherSubnet,
    /// A pod in the VPC's second range.
    SecondCidr,
    /// The node under test itself.
    Host,
    /// The other node of the same subnet.
    OtherHost,
    /// A host with a public address.
    Internet,
    /// A host of the network on premises.
    Premises,
}

/// The world in which flows run.
#[derive(Debug)]
pub struct Ground {
    lab: Lab,
    daemon: Option<Ipamd>,
    _peers: Vec<Ipamd>,
    pods: BTreeMap<End, Pod>,
    /// Pods that take up addresses.
    fillers: Vec<Pod>,
    /// Whether pods' addresses are IPv6.
    is_v6: bool,
    echoes: Vec<Echo>,
}

impl Ground {
    /// Four nodes whose image filters by reverse path, as strictly as an image may: the node under
    /// test with these options, one in its subnet, one in another zone and one in the VPC's second
    /// range. All pods are there, and the pools are at rest.
    ///
    /// Where the options say so, pods have IPv6 addresses, or the VPC has both families.
    ///
    /// # Errors
    /// A tool or a daemon fails, or a pod is on another ENI than expected.
    pub async fn lay(options: &IpamdOptions) -> Result<Ground> {
        let (first, second) = ("10.0.0.0/16".parse()?, "100.64.0.0/16".parse()?);
        let cloud = CloudBuilder::new(7)
            .vpc_cidrs(vec![first, second])
            .subnet("10.0.0.0/20".parse()?, "us-west-2a")
            .subnet("10.0.16.0/20".parse()?, "us-west-2b")
            .subnet("100.64.0.0/20".parse()?, "us-west-2c");
        let is_on = |name: &str| options.env.get(name).is_some_and(|it| it == "true");
        let is_v6 = is_on("ENABLE_IPv6");
        // Off, too, it is for a VPC that has both.
        let has_v6 = is_v6 || options.env.contains_key("ENABLE_V6_EGRESS");
        let cloud = if has_v6 { cloud.ipv6() } else { cloud };
        let mut builder = Lab::builder().cloud(cloud).rp_filter(1);
        for zone in ["us-west-2a", "us-west-2a", "us-west-2b", "us-west-2c"] {
            builder = builder.node("t3.small", zone);
        }
        let lab = builder.start().await?;
        for node in lab.nodes() {
            // The init container's part.
            node.place().sysctl("ipv4/conf/eth0/rp_filter", "2")?;
            if has_v6 {
                node.place().sysctl("ipv6/conf/all/forwarding", "1")?;
            }
            node.install_plugin(None).await?;
        }
        let daemon = lab.nodes()[0].start_ipamd(options).await?;
        let mut few = IpamdOptions::new().env("WARM_IP_TARGET", 1).env("MINIMUM_IP_TARGET", 1);
        if is_v6 {
            few = options.clone();
        }
        let mut peers = Vec::new();
        for node in &lab.nodes()[1..] {
            peers.push(node.start_ipamd(&few).await?);
        }
        let mut ground = Ground {
            lab,
            daemon: Some(daemon),
            _peers: peers,
            pods: BTreeMap::new(),
            fillers: Vec::new(),
            is_v6,
            echoes: Vec::new(),
        };
        let mtu = options.env.get("AWS_VPC_ENI_MTU").map_or(Ok(9001), |it| it.parse())?;
        if is_v6 {
            ground.populate_v6().await?;
        } else {
            ground.populate(mtu).await?;
        }
        for node in &ground.lab.nodes()[..2] {
            for own in [host_ip(node, false), host_ip(node, true)] {
                if !own.is_unspecified() {
                    ground.echoes.push(Echo::start(node.place(), at(own, ECHO_PORT))?);
                }
            }
        }
        Ok(ground)
    }

    /// Three pods fill the primary ENI of a t3.small, the next ones go to the second.
    async fn populate(&mut self, mtu: u32) -> Result<()> {
        use End::{Far, FarToo, Near, NearToo, OtherFar, OtherNear, OtherSubnet, SecondCidr};
        for (node, ends) in [
            (0, &[Some(Near), Some(NearToo), None, Some(Far), Some(FarToo)][..]),
            (1, &[Some(OtherNear), None, None, Some(OtherFar)]),
            (2, &[Some(OtherSubnet)]),
            (3, &[Some(SecondCidr)]),
        ] {
            let node = &self.lab.nodes()[node];
            for (index, end) in ends.iter().enumerate() {
                let name =
                    end.map_or_else(|| format!("filler{index}"), |it| format!("{it:?}").to_lowercase());
                let pod = node.add_pod("default", &name).await?;
                match end {
                    Some(end) => drop(self.pods.insert(*end, pod)),
                    None => self.fillers.push(pod),
                }
            }
        }
        at_rest_with_mtu(self.node(), 3, 4, mtu).await?;
        self.lab.settled().await?;
        for (end, is_primary) in [
            (Near, true),
            (NearToo, true),
            (Far, false),
            (FarToo, false),
            (OtherNear, true),
            (OtherFar, false),
        ] {
            let pod = &self.pods[&end];
            let primary = &pod.node().instance().primary_eni;
            ensure!((pod.eni().as_ref() == Some(primary)) == is_primary, "{end:?} is on {:?}", pod.eni());
        }
        Ok(())
    }

    /// A node's one prefix takes all pods; no pod is on another ENI.
    async fn populate_v6(&mut self) -> Result<()> {
        for (node, end) in [(0, End::Near), (0, End::NearToo), (1, End::OtherNear), (2, End::OtherSubnet)] {
            let name = format!("{end:?}").to_lowercase();
            let pod = self.lab.nodes()[node].add_pod("default", &name).await?;
            self.pods.insert(end, pod);
        }
        // What the kernel does by itself on new links is over then.
        for node in self.lab.nodes() {
            crate::until("no address is tentative", PATIENCE, || async {
                Ok(node.exec(&["ip", "-6", "addr", "show", "tentative"]).await?.trim().is_empty())
            })
            .await?;
        }
        self.lab.settled().await
    }

    /// The node under test.
    pub fn node(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    /// The world.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Starts a plain host with an echo service in a subnet; gives its address.
    ///
    /// # Errors
    /// EC2's, or a tool fails.
    pub async fn add_host(&mut self, subnet: &str) -> Result<Ipv4Addr> {
        let host = self.lab.add_node("t3.small", subnet).await?;
        self.echoes.push(Echo::start(host.place(), at(host.primary_ip(), ECHO_PORT))?);
        Ok(host.primary_ip())
    }

    /// A pod; `None` for an end that is none.
    pub fn pod(&self, end: End) -> Option<&Pod> {
        self.pods.get(&end)
    }

    /// The pods of the node under test.
    pub fn own_pods(&self) -> Vec<&Pod> {
        let all = self.pods.values().chain(&self.fillers);
        all.filter(|pod| pod.node().name() == self.node().name()).collect()
    }

    /// Where an end is.
    pub fn place(&self, end: End) -> &Place {
        match end {
            End::Host => self.node().place(),
            End::OtherHost => self.lab.nodes()[1].place(),
            End::Internet => self.lab.fabric().internet(),
            End::Premises => self.lab.fabric().premises(),
            pod => self.pods[&pod].place(),
        }
    }

    /// The address of an end.
    pub fn ip(&self, end: End) -> IpAddr {
        match end {
            End::Host => host_ip(self.node(), self.is_v6),
            End::OtherHost => host_ip(&self.lab.nodes()[1], self.is_v6),
            End::Internet if self.is_v6 => INTERNET_ECHO_V6.into(),
            End::Internet => INTERNET_ECHO.into(),
            End::Premises => PREMISES_ECHO.into(),
            pod => self.pods[&pod].ip(),
        }
    }

    /// The first address of the node under test, of the family of `other`.
    pub fn node_ip(&self, other: IpAddr) -> IpAddr {
        host_ip(self.node(), other.is_ipv6())
    }

    /// The own address of the ENI that a pod's address belongs to; of a node's the first one.
    ///
    /// # Errors
    /// EC2 knows no such ENI.
    pub fn eni_ip(&self, end: End) -> Result<IpAddr> {
        let Some(pod) = self.pod(end) else { return Ok(self.ip(end)) };
        let eni = pod.eni().with_context(|| format!("{end:?} is on no ENI"))?;
        Ok(self.lab.cloud().snapshot().enis[&eni].primary_ip().into())
    }

    /// Replaces the daemon by one with other options, as a rollout of the DaemonSet does, and waits
    /// until it serves.
    ///
    /// # Errors
    /// The old one does not end well, or the new one does not serve.
    pub async fn restart(&mut self, options: &IpamdOptions) -> Result<()> {
        let daemon = self.daemon.take().context("no daemon runs")?;
        let status = daemon.terminate(PATIENCE).await?;
        ensure!(status.success(), "ipamd answered SIGTERM with {status}:\n{}", self.node().ipamd_output());
        self.daemon = Some(self.node().start_ipamd(options).await?);
        Ok(())
    }

    /// Words for the addresses of the node under test and of its pods, so that nodes of different
    /// worlds can be compared.
    pub fn names(&self) -> Vec<(String, String)> {
        let node = self.node();
        let mut names = Vec::new();
        for pod in self.own_pods() {
            names.push((pod.ip().to_string(), format!("<{}>", pod.name())));
        }
        for (index, eni) in self.lab.cloud().snapshot().attached(node.instance_id()).iter().enumerate() {
            names.push((eni.primary_ip().to_string(), format!("<eth{index}>")));
            for address in &eni.ipv6_addresses {
                names.push((address.to_string(), format!("<eth{index} in IPv6>")));
            }
            names.push((eni.mac.clone(), format!("<mac of eth{index}>")));
        }
        // The longest first: one address may begin another.
        names.sort_by_key(|(address, _)| std::cmp::Reverse(address.len()));
        names
    }

    /// Ends the world.
    ///
    /// # Errors
    /// The daemon does not end well.
    pub async fn clear(mut self) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            daemon.terminate(PATIENCE).await?;
        }
        self.lab.shutdown().await
    }
}

/// The first address of a node's first ENI; where it has none in IPv6, the unspecified one.
fn host_ip(node: &Node, is_v6: bool) -> IpAddr {
    if !is_v6 {
        return node.primary_ip().into();
    }
    let snapshot = node.cloud().snapshot();
    let eni = snapshot.enis.get(&node.instance().primary_eni);
    let first = eni.and_then(|it| it.ipv6_addresses.first().copied());
    first.unwrap_or(Ipv6Addr::UNSPECIFIED).into()
}

/// Lays the ground, acts on it, and on failure tells everything that there is to see.
///
/// # Errors
/// Those of `act`.
pub async fn on(options: &IpamdOptions, act: impl AsyncFnOnce(&mut Ground) -> Result<()>) -> Result<()> {
    let mut ground = Ground::lay(options).await.context("lay the ground")?;
    let outcome = act(&mut ground).await;
    if outcome.is_err() {
        eprintln!("{}", ground.lab.dump().await);
    }
    outcome?;
    ground.clear().await
}
