//! The daemon dies and comes back while traffic runs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::world::{ECHO_PORT, Ipamd, IpamdOptions, Place, Pod, at};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Between two datagrams: 250 a second.
const PACE: Duration = Duration::from_millis(4);
/// Traffic before the kill and after the return.
const MARGIN: Duration = Duration::from_millis(700);
/// How long the node stays without its daemon.
const ABSENCE: Duration = Duration::from_millis(500);
/// Where the numbered stream goes.
const STREAM_PORT: u16 = 4000;

/// Runs streams from `from` to `to` while the daemon of `to`'s node is killed and started again.
/// Gives the new daemon and what was found.
pub(super) async fn under_traffic(
    from: &Pod,
    to: &Pod,
    ipamd: Ipamd,
    options: &IpamdOptions,
    pods: &[Pod],
) -> (Result<Ipamd>, Result<String>) {
    let before: Vec<_> = pods.iter().map(Pod::address).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU32::new(0));
    let streams = async {
        let retransmitted = (retransmissions(from.place())?, retransmissions(to.place())?);
        let udp = numbered(from, to, stop.clone(), sent.clone());
        let tcp = ping_pong(from, to, stop.clone());
        let (received, exchanges) = tokio::try_join!(udp, tcp)?;
        let count = sent.load(Ordering::Relaxed);
        let lost: Vec<_> = (0..count).filter(|it| !received.contains(it)).collect();
        ensure!(lost.is_empty(), "{} of {count} datagrams lost, the first is {:?}", lost.len(), lost.first());
        let after = (retransmissions(from.place())?, retransmissions(to.place())?);
        ensure!(retransmitted == after, "TCP retransmissions went from {retransmitted:?} to {after:?}");
        Ok((count, exchanges))
    };
    let restart = async {
        tokio::time::sleep(MARGIN).await;
        let killed = ipamd.kill().await;
        tokio::time::sleep(ABSENCE).await;
        let again = to.node().start_ipamd(options).await;
        tokio::time::sleep(MARGIN).await;
        stop.store(true, Ordering::Relaxed);
        killed.and(again)
    };
    let (streams, restarted) = tokio::join!(streams, restart);
    let verdict = async {
        let (count, exchanges) = streams?;
        for (pod, address) in pods.iter().zip(before) {
            let now = address_inside(pod).await?;
            ensure!(now == address, "{} had {address} and now has {now}", pod.label());
        }
        Ok(format!(
            "{count} datagrams without a gap, {exchanges} TCP exchanges without a retransmission, \
             {} addresses unchanged",
            pods.len()
        ))
    };
    (restarted, verdict.await)
}

/// The address that the pod's own eth0 holds.
async fn address_inside(pod: &Pod) -> Result<Ipv4Addr> {
    let shown = pod.place().ip(&["-j", "-4", "addr", "show", "eth0"]).await?;
    let text = shown[0]["addr_info"][0]["local"].as_str().unwrap_or_default();
    text.parse().with_context(|| format!("{} has no address on eth0: {shown}", pod.label()))
}

async fn numbered(
    from: &Pod,
    to: &Pod,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
) -> Result<BTreeSet<u32>> {
    let sink = to.place().udp(at(to.address(), STREAM_PORT))?;
    let source = from.place().udp(at(from.address(), 0))?;
    let target = at(to.address(), STREAM_PORT);
    let receive = async {
        let mut numbers = BTreeSet::new();
        let mut buffer = [0; 4];
        loop {
            // The last datagram is long there when nothing has come for so long.
            match tokio::time::timeout(Duration::from_millis(400), sink.recv(&mut buffer)).await {
                Ok(got) => {
                    got?;
                    numbers.insert(u32::from_be_bytes(buffer));
                }
                Err(_) if stop.load(Ordering::Relaxed) => return anyhow::Ok(numbers),
                Err(_) => {}
            }
        }
    };
    let send = async {
        let mut ticks = tokio::time::interval(PACE);
        while !stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let number = sent.fetch_add(1, Ordering::Relaxed);
            source.send_to(&number.to_be_bytes(), target).await.context("send a numbered datagram")?;
        }
        anyhow::Ok(())
    };
    Ok(tokio::try_join!(receive, send)?.0)
}

async fn ping_pong(from: &Pod, to: &Pod, stop: Arc<AtomicBool>) -> Result<u32> {
    let deadline = Duration::from_secs(5);
    let mut stream = from.connect(to.address(), ECHO_PORT, deadline).await?;
    stream.set_nodelay(true)?;
    // The echo service begins with a line that says whom it sees.
    while stream.read_u8().await? != b'\n' {}
    let mut exchanges = 0;
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let exchange = async {
            stream.write_all(&[7; 512]).await?;
            stream.read_exact(&mut buffer).await
        };
        tokio::time::timeout(deadline, exchange).await.context("the TCP stream stands still")??;
        exchanges += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(exchanges)
}

/// TCP segments that were sent again in a namespace.
fn retransmissions(place: &Place) -> Result<u64> {
    let text = place.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter_map(|it| it.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
    found.and_then(|(_, value)| value.parse().ok()).context("find RetransSegs in /proc/net/snmp")
}
