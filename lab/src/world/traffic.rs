//! Traffic between two pods that shows every packet lost: a numbered UDP stream, and a TCP stream
//! whose retransmissions are counted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::place::{Place, at};
use super::pod::{ECHO_PORT, Pod};

/// Between two datagrams: 250 a second.
const PACE: Duration = Duration::from_millis(4);
/// Where the numbered stream goes.
const STREAM_PORT: u16 = 4000;
/// How long one exchange of the TCP stream may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What arrived: all that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Numbered datagrams, at 250 a second.
    pub datagrams: u32,
    /// Questions and answers over one TCP connection.
    pub exchanges: u32,
}

/// Sends streams from one pod to another while `event` runs, and says whether all arrived: no
/// datagram missing, no TCP segment sent twice by either end.
pub async fn undisturbed_by<T>(
    from: &Pod,
    to: &Pod,
    event: impl Future<Output = T>,
) -> (T, Result<Delivered>) {
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    let streams = async {
        let before = (retransmissions(from.place())?, retransmissions(to.place())?);
        let udp = numbered(from, to, &stop, &sent);
        let tcp = ping_pong(from, to, &stop);
        let (received, exchanges) = tokio::try_join!(udp, tcp)?;
        let datagrams = sent.load(Ordering::Relaxed);
        let lost: Vec<_> = (0..datagrams).filter(|it| !received.contains(it)).collect();
        ensure!(
            lost.is_empty(),
            "{} of {datagrams} datagrams lost, the first is {:?}",
            lost.len(),
            lost.first()
        );
        let after = (retransmissions(from.place())?, retransmissions(to.place())?);
        ensure!(before == after, "TCP retransmissions went from {before:?} to {after:?}");
        Ok(Delivered { datagrams, exchanges })
    };
    let event = async {
        let outcome = event.await;
        stop.store(true, Ordering::Relaxed);
        outcome
    };
    let (streams, outcome) = tokio::join!(streams, event);
    (outcome, streams)
}

async fn numbered(from: &Pod, to: &Pod, stop: &AtomicBool, sent: &AtomicU32) -> Result<BTreeSet<u32>> {
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

async fn ping_pong(from: &Pod, to: &Pod, stop: &AtomicBool) -> Result<u32> {
    let mut stream = from.connect(to.address(), ECHO_PORT, DEADLINE).await?;
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
        tokio::time::timeout(DEADLINE, exchange).await.context("the TCP stream stands still")??;
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
