//! Flows, and the source that their receivers see.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::world::traffic::{Delivered, Line};
use lab::world::{Drops, ECHO_PORT, IpamdOptions, NAT_GATEWAY, Protocol, at};
use tokio::task::JoinSet;

use crate::ground::{End, Ground};
use crate::until;

/// How long a packet may take on a machine that is busy with other scenarios.
pub const ANSWER: Duration = Duration::from_secs(15);

/// What an operator chooses for packets that leave a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// `AWS_VPC_CNI_NODE_PORT_SUPPORT`.
    pub node_port: bool,
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`.
    pub external_snat: bool,
    /// `AWS_VPC_K8S_CNI_RANDOMIZESNAT`.
    pub random: &'static str,
}

impl Mode {
    /// The ways in which source ports are chosen.
    pub const RANDOM: [&str; 3] = ["none", "hashrandom", "prng"];

    /// With ports by a generator, as is the default.
    #[must_use]
    pub fn new(node_port: bool, external_snat: bool) -> Mode {
        Mode { node_port, external_snat, random: "prng" }
    }

    /// These and the other options of a daemon.
    #[must_use]
    pub fn on(self, options: IpamdOptions) -> IpamdOptions {
        options
            .env("AWS_VPC_CNI_NODE_PORT_SUPPORT", self.node_port)
            .env("AWS_VPC_K8S_CNI_EXTERNALSNAT", self.external_snat)
            .env("AWS_VPC_K8S_CNI_RANDOMIZESNAT", self.random)
    }

    /// The daemon's default options with these.
    #[must_use]
    pub fn options(self) -> IpamdOptions {
        self.on(IpamdOptions::new())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mode { node_port, external_snat, random } = self;
        write!(f, "node port {node_port}, external SNAT {external_snat}, random {random}")
    }
}

/// Whom the receiver sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// The sender's own address.
    Sender,
    /// The first address of the node under test, of the family in which the flow arrives.
    Node,
    /// The NAT gateway of the VPC.
    NatGateway,
}

/// From whom to whom, and what the receiver sees.
#[derive(Debug, Clone)]
pub struct Flow {
    /// For messages.
    pub name: String,
    /// Who asks.
    pub from: End,
    /// Whom it asks: the receiver, or a service that leads there.
    pub to: SocketAddr,
    /// The address that the receiver sees.
    pub sees: IpAddr,
}

/// Insists that no line of traffic has lost anything, and that there was traffic on each.
///
/// # Errors
/// All lines that have.
pub fn all_delivered(lines: Vec<Result<Delivered>>) -> Result<()> {
    let lost: Vec<_> = lines.iter().filter_map(|it| it.as_ref().err()).map(|it| format!("{it:#}")).collect();
    ensure!(lost.is_empty(), "{} of {} lines lost packets:\n{}", lost.len(), lines.len(), lost.join("\n"));
    for line in lines {
        let delivered = line?;
        ensure!(delivered.datagrams > 250 && delivered.exchanges > 50, "{delivered:?}");
    }
    Ok(())
}

impl Ground {
    /// A flow to an end itself.
    pub fn direct(&self, from: End, to: End, sees: Sees) -> Flow {
        self.flow(&format!("{to:?}"), from, at(self.ip(to), ECHO_PORT), sees)
    }

    /// A flow to any address.
    pub fn flow(&self, name: &str, from: End, to: SocketAddr, sees: Sees) -> Flow {
        let sees = match sees {
            Sees::Sender => self.ip(from),
            Sees::Node => self.node_ip(to.ip()),
            Sees::NatGateway => NAT_GATEWAY.into(),
        };
        Flow { name: format!("{from:?} to {name}"), from, to, sees }
    }

    /// A line of traffic on which losses show; `at` is who answers.
    pub fn line(&self, flow: &Flow, at: End) -> Line {
        Line {
            name: flow.name.clone(),
            from: self.place(flow.from).clone(),
            to: flow.to,
            at: self.place(at).clone(),
        }
    }

    /// Tries every flow with TCP and UDP, side by side.
    ///
    /// # Errors
    /// All flows that are not answered, or whose receiver sees somebody else.
    pub async fn try_all(&self, flows: &[Flow]) -> Result<()> {
        self.try_with(flows, |place, to, protocol| async move { place.seen(protocol, to, ANSWER).await })
            .await
    }

    /// Tries every flow with one packet, and one answer, of that many bytes, which may not be
    /// fragmented.
    ///
    /// # Errors
    /// As for [`Ground::try_all`].
    pub async fn try_large(&self, flows: &[Flow], bytes: usize) -> Result<()> {
        self.try_with(flows, move |place, to, protocol| async move {
            match protocol {
                Protocol::Udp => place.seen_in_one_piece(to, bytes, ANSWER).await,
                Protocol::Tcp => place.seen(protocol, to, ANSWER).await,
            }
        })
        .await
    }

    async fn try_with<F>(
        &self,
        flows: &[Flow],
        ask: impl Fn(lab::world::Place, SocketAddr, Protocol) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<SocketAddr>> + Send + 'static,
    {
        let mut tries = JoinSet::new();
        for flow in flows {
            for protocol in Protocol::ALL {
                let (asked, flow) = (ask(self.place(flow.from).clone(), flow.to, protocol), flow.clone());
                tries.spawn(async move { (asked.await, flow, protocol) });
            }
        }
        let mut failures = Vec::new();
        while let Some(tried) = tries.join_next().await {
            match tried? {
                (Ok(seen), flow, _) if seen.ip() == flow.sees => {}
                (Ok(seen), flow, protocol) => failures.push(format!(
                    "{}, {protocol:?}: seen as {}, expected {}",
                    flow.name,
                    seen.ip(),
                    flow.sees
                )),
                (Err(error), flow, protocol) => {
                    failures.push(format!("{}, {protocol:?}: {error:#}", flow.name))
                }
            }
        }
        failures.sort();
        ensure!(
            failures.is_empty(),
            "{} of {} flows fail:\n{}",
            failures.len(),
            flows.len() * 2,
            failures.join("\n")
        );
        Ok(())
    }

    /// Sees that a flow is forbidden: its packets are dropped where `count` counts.
    ///
    /// # Errors
    /// It is answered, or nothing is dropped.
    pub async fn is_dropped(&self, flow: &Flow, count: impl Fn(Drops) -> u64) -> Result<()> {
        let fabric = self.lab().fabric();
        let before = count(fabric.drops().await?);
        let place = self.place(flow.from).clone();
        let to = flow.to;
        let asking = tokio::spawn(async move { place.seen(Protocol::Udp, to, ANSWER).await });
        until(&format!("{} is dropped", flow.name), ANSWER, || async {
            Ok(count(fabric.drops().await?) > before)
        })
        .await?;
        let is_answered = asking.is_finished();
        asking.abort();
        if is_answered {
            bail!("{} is answered", flow.name);
        }
        Ok(())
    }

    /// On how many of several tries the receiver sees the source port that the sender has.
    ///
    /// # Errors
    /// No answer.
    pub async fn kept_ports(&self, from: End, to: End, tries: usize) -> Result<usize> {
        let mut kept = 0;
        for _ in 0..tries {
            let socket = self.place(from).connected_udp(at(self.ip(to), ECHO_PORT)).await?;
            let mut buffer = [0; 64];
            socket.send(&[0]).await?;
            let length =
                tokio::time::timeout(ANSWER, socket.recv(&mut buffer)).await.context("no answer")??;
            let seen: SocketAddr = std::str::from_utf8(&buffer[..length])?.trim().parse()?;
            kept += usize::from(seen.port() == socket.local_addr()?.port());
        }
        Ok(kept)
    }
}
