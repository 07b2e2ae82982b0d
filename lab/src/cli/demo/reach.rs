//! Who reaches whom, and under which address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use lab::world::{ECHO_PORT, INTERNET_ECHO, Pod, at};
use tokio::net::UdpSocket;

const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of an ICMP header.
const ICMP_HEADER: usize = 8;

/// Every pod opens a TCP connection to every other; the receiver must see the sender's address.
pub(super) async fn tcp_all_pairs(pods: &[Pod]) -> Result<String> {
    let mut pairs = 0;
    for from in pods {
        let others = pods.iter().filter(|to| to.address() != from.address());
        let calls = others.map(|to| async move {
            let (seen, _) = from.seen_by(to.address(), ECHO_PORT, DEADLINE).await?;
            ensure!(seen == from.address(), "{} saw {seen} instead of {}", to.label(), from.address());
            anyhow::Ok(())
        });
        pairs += try_join_all(calls).await?.len();
    }
    Ok(format!("{pairs} pairs, source addresses unchanged"))
}

/// Every pod connects to the internet, which must see the address of the pod's node.
pub(super) async fn internet(pods: &[Pod]) -> Result<String> {
    let calls = pods.iter().map(|pod| async move {
        let (seen, _) = pod.seen_by(INTERNET_ECHO, ECHO_PORT, DEADLINE).await?;
        let node = pod.node().primary_ip();
        ensure!(seen == node, "the internet saw {seen} instead of {node} for {}", pod.label());
        anyhow::Ok(())
    });
    let count = try_join_all(calls).await?.len();
    Ok(format!("{count} pods, seen as their node's primary address"))
}

/// Every pod sends an ICMP echo request to every other. The receiver must see the sender's
/// address on the request, the sender the receiver's on the answer.
pub(super) async fn icmp_all_pairs(pods: &[Pod]) -> Result<String> {
    let addresses: BTreeSet<Ipv4Addr> = pods.iter().map(Pod::address).collect();
    let sockets: Vec<(Ipv4Addr, UdpSocket)> =
        pods.iter().map(|pod| Ok((pod.address(), pod.place().icmp()?))).collect::<Result<_>>()?;
    let visits = sockets.iter().map(|(own, socket)| one_pod(*own, socket, &addresses));
    try_join_all(visits).await?;
    Ok(format!("{} pairs, source addresses unchanged", addresses.len() * (addresses.len() - 1)))
}

/// Sends to all, then listens until both a request and an answer have come from each.
async fn one_pod(own: Ipv4Addr, socket: &UdpSocket, all: &BTreeSet<Ipv4Addr>) -> Result<()> {
    let others: BTreeSet<_> = all.iter().copied().filter(|it| *it != own).collect();
    for to in &others {
        socket.send_to(&echo_request(), at(*to, 0)).await.with_context(|| format!("ping {to} from {own}"))?;
    }
    let mut missing: BTreeMap<u8, BTreeSet<Ipv4Addr>> = [(0, others.clone()), (8, others)].into();
    let listen = async {
        let mut buffer = [0; 256];
        while missing.values().any(|it| !it.is_empty()) {
            let (length, from) = socket.recv_from(&mut buffer).await?;
            let IpAddr::V4(from) = from.ip() else { continue };
            let header = usize::from(buffer[0] & 0x0f) * 4;
            if length < header + ICMP_HEADER {
                continue;
            }
            match (buffer[header], all.contains(&from)) {
                (kind @ (0 | 8), true) => {
                    missing.get_mut(&kind).map(|it| it.remove(&from));
                }
                (0 | 8, false) => bail!("{own} was pinged from {from}, which is no pod"),
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    let ended = tokio::time::timeout(DEADLINE, listen).await;
    match ended {
        Ok(result) => result,
        Err(_) => bail!("{own}: no answer from {:?}, no request from {:?}", missing[&0], missing[&8]),
    }
}

/// An echo request without data, checksum in place.
fn echo_request() -> [u8; ICMP_HEADER] {
    let (kind, identifier) = (0x0800_u16, 0x6c61_u16);
    let sum = u32::from(kind) + u32::from(identifier);
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default();
    let [a, b] = (!folded).to_be_bytes();
    let [c, d] = identifier.to_be_bytes();
    [8, 0, a, b, c, d, 0, 0]
}
