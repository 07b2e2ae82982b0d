//! Traffic that shows every packet lost: on each line a stream of numbered datagrams that an echo
//! service answers, and a TCP stream whose retransmissions are counted.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::MissedTickBehavior;

use super::place::{Place, at};
use super::pod::{ECHO_PORT, Pod};

/// Between two datagrams: 250 a second.
const PACE: Duration = Duration::from_millis(4);
/// How long one exchange of the TCP stream may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// After so long without any answer what is missing is lost.
const LATE: Duration = Duration::from_secs(10);
/// The bytes of a datagram. Its number stands at the end: an echo service writes the address that
/// it sees over the beginning.
const DATAGRAM: usize = 80;

/// Where traffic runs.
#[derive(Debug, Clone)]
pub struct Line {
    /// For messages.
    pub name: String,
    /// Who asks.
    pub from: Place,
    /// The echo service that is asked, perhaps by another address than its own.
    pub to: SocketAddr,
    /// Where the echo service is, so that its retransmissions count.
    pub at: Place,
}

impl Line {
    /// From one pod to the other's echo service.
    pub fn between(from: &Pod, to: &Pod) -> Line {
        Line {
            name: format!("{} to {}", from.label(), to.label()),
            from: from.place().clone(),
            to: at(to.ip(), ECHO_PORT),
            at: to.place().clone(),
        }
    }
}

/// What arrived: all that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Numbered datagrams, at 250 a second, each answered.
    pub datagrams: u32,
    /// Questions and answers over one TCP connection.
    pub exchanges: u32,
}

/// Sends streams from one pod to another while `event` runs, and says whether all arrived: no
/// datagram and no answer missing, no TCP segment sent twice by either end.
pub async fn undisturbed_by<T>(
    from: &Pod,
    to: &Pod,
    event: impl Future<Output = T>,
) -> (T, Result<Delivered>) {
    let line = Line::between(from, to);
    let (outcome, mut delivered) = on_lines(std::slice::from_ref(&line), event).await;
    (outcome, delivered.pop().unwrap_or_else(|| Err(anyhow::anyhow!("no line was watched"))))
}

/// Sends streams on all lines while `event` runs, which begins when each has brought an answer, and
/// says of each whether all arrived.
pub async fn on_lines<T>(lines: &[Line], event: impl Future<Output = T>) -> (T, Vec<Result<Delivered>>) {
    let stop = AtomicBool::new(false);
    let flowing = AtomicU32::new(0);
    let streams = join_all(lines.iter().map(|line| watch(line, &stop, &flowing)));
    let event = async {
        let all = u32::try_from(lines.len()).unwrap_or(u32::MAX);
        // A line that has failed counts too, so this ends.
        while flowing.load(Ordering::Relaxed) < all {
            tokio::time::sleep(PACE).await;
        }
        let outcome = event.await;
        stop.store(true, Ordering::Relaxed);
        outcome
    };
    let (streams, outcome) = tokio::join!(streams, event);
    (outcome, streams)
}

async fn watch(line: &Line, stop: &AtomicBool, flowing: &AtomicU32) -> Result<Delivered> {
    let begun = async {
        let (tcp, udp) = (connect(line).await?, line.from.connected_udp(line.to).await?);
        anyhow::Ok((SentAgain::between(&line.from, &line.at)?, tcp, udp))
    };
    let begun = begun.await;
    flowing.fetch_add(1, Ordering::Relaxed);
    let (before, tcp, udp) = begun.with_context(|| line.name.clone())?;
    let streams = async {
        // Both run to the end, also where one has lost something.
        let (udp, tcp) = tokio::join!(numbered(&udp, stop), ping_pong(tcp, stop));
        let (datagrams, exchanges) = (udp?, tcp?);
        before.insist_on_none_lost(&line.from, &line.at)?;
        anyhow::Ok(Delivered { datagrams, exchanges })
    };
    streams.await.with_context(|| line.name.clone())
}

async fn numbered(socket: &UdpSocket, stop: &AtomicBool) -> Result<u32> {
    let sent = AtomicU32::new(0);
    let has_ended = AtomicBool::new(false);
    let receive = async {
        let mut numbers = BTreeSet::new();
        let mut buffer = [0; DATAGRAM];
        let mut last = Instant::now();
        loop {
            match tokio::time::timeout(Duration::from_millis(400), socket.recv(&mut buffer)).await {
                Ok(got) => {
                    ensure!(got.context("an answer")? == DATAGRAM, "an answer of another length");
                    let [.., a, b, c, d] = buffer;
                    numbers.insert(u32::from_be_bytes([a, b, c, d]));
                    last = Instant::now();
                }
                Err(_) if has_ended.load(Ordering::Relaxed) => {
                    let all = usize::try_from(sent.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
                    // An answer that is late is on its way: a machine under load takes its time.
                    if numbers.len() >= all || last.elapsed() > LATE {
                        return anyhow::Ok(numbers);
                    }
                }
                Err(_) => {}
            }
        }
    };
    let send = async {
        let mut ticks = tokio::time::interval(PACE);
        // After a halt of this program no burst, which sockets might drop.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut datagram = [0; DATAGRAM];
        while !stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let number = sent.fetch_add(1, Ordering::Relaxed);
            datagram[DATAGRAM - 4..].copy_from_slice(&number.to_be_bytes());
            socket.send(&datagram).await.context("send a numbered datagram")?;
        }
        has_ended.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (numbers, ()) = tokio::try_join!(receive, send)?;
    let datagrams = sent.load(Ordering::Relaxed);
    let lost: Vec<_> = (0..datagrams).filter(|it| !numbers.contains(it)).collect();
    ensure!(
        lost.is_empty(),
        "{} of {datagrams} datagrams lost, the first is {:?}, the last {:?}",
        lost.len(),
        lost.first(),
        lost.last()
    );
    Ok(datagrams)
}

async fn connect(line: &Line) -> Result<tokio::net::TcpStream> {
    let mut stream = line.from.connect(line.to, DEADLINE).await?;
    stream.set_nodelay(true)?;
    // The echo service begins with a line that says whom it sees.
    let hello = async {
        while stream.read_u8().await? != b'\n' {}
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, hello).await.context("no first answer over TCP")??;
    Ok(stream)
}

async fn ping_pong(mut stream: tokio::net::TcpStream, stop: &AtomicBool) -> Result<u32> {
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

/// TCP segments that were sent again by the two ends of connections, and those that arrived twice.
///
/// A sender whose machine halts for a fifth of a second sends again what was not lost; the receiver
/// tells it so, and counts that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentAgain {
    sent_again: u64,
    arrived_twice: u64,
}

impl SentAgain {
    /// What both places have counted since they were made.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn between(one: &Place, other: &Place) -> Result<SentAgain> {
        let twice = |place| -> Result<u64> {
            Ok(counter(place, "netstat", "TcpExt: ", "TCPDSACKOldSent")?
                + counter(place, "netstat", "TcpExt: ", "TCPDSACKOfoSent")?)
        };
        Ok(SentAgain {
            sent_again: retransmissions(one)? + retransmissions(other)?,
            arrived_twice: twice(one)? + twice(other)?,
        })
    }

    /// Says whether no segment was lost since then.
    ///
    /// # Errors
    /// One was sent again that had not arrived.
    pub fn insist_on_none_lost(self, one: &Place, other: &Place) -> Result<()> {
        let now = SentAgain::between(one, other)?;
        let sent_again = now.sent_again - self.sent_again;
        let arrived_twice = now.arrived_twice - self.arrived_twice;
        ensure!(
            sent_again <= arrived_twice,
            "{sent_again} TCP segments were sent again, and {arrived_twice} arrived twice"
        );
        Ok(())
    }
}

/// TCP segments that were sent again in a place since it was made.
///
/// # Errors
/// The kernel does not tell.
fn retransmissions(place: &Place) -> Result<u64> {
    counter(place, "snmp", "Tcp: ", "RetransSegs")
}

/// One of the counters in `/proc/net`.
fn counter(place: &Place, file: &str, protocol: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/thread-self/net/{file}");
    let text = place.run(|| std::fs::read_to_string(&path))??;
    let mut lines = text.lines().filter_map(|it| it.strip_prefix(protocol));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(found, _)| *found == name);
    found.and_then(|(_, value)| value.parse().ok()).with_context(|| format!("find {name} in {path}"))
}
