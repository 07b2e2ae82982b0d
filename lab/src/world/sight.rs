//! What the other end of a flow sees: echo services tell callers their source address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UdpSocket;

use super::place::Place;

/// What a flow consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// A datagram and its answer.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

    /// The word that packet filters use.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl Place {
    /// Asks an echo service which source it sees, once: a datagram is not sent again.
    ///
    /// # Errors
    /// No answer within `deadline`, or not an address.
    pub async fn seen(&self, protocol: Protocol, to: SocketAddr, deadline: Duration) -> Result<SocketAddr> {
        let answer = async {
            let mut line = String::new();
            match protocol {
                Protocol::Tcp => {
                    let mut reader = BufReader::new(self.connect(to, deadline).await?);
                    reader.read_line(&mut line).await?;
                }
                Protocol::Udp => return self.ask(&self.connected_udp(to).await?, 1).await.map(|it| it.0),
            }
            read(&line)
        };
        self.in_time(to, deadline, answer).await
    }

    /// Sends a datagram that makes an IP packet of `bytes` bytes, which may not be fragmented on
    /// the way, to an echo service, whose answer is as large; gives the source that it saw.
    ///
    /// # Errors
    /// The kernel knows the packet for too large, or no answer within `deadline`.
    pub async fn seen_in_one_piece(
        &self,
        to: SocketAddr,
        bytes: usize,
        deadline: Duration,
    ) -> Result<SocketAddr> {
        let answer = async {
            let socket = self.connected_udp(to).await?;
            // The packet says that it may not be fragmented, nor is it here.
            let (level, option, value) = match to {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
            };
            set_option(&socket, level, option, value).context("forbid fragments")?;
            let headers = if to.is_ipv4() { 28 } else { 48 };
            let (seen, length) = self.ask(&socket, bytes.saturating_sub(headers)).await?;
            ensure!(length + headers == bytes, "the answer has {} bytes of {bytes}", length + headers);
            Ok(seen)
        };
        self.in_time(to, deadline, answer).await
    }

    /// A UDP socket that speaks with `to` alone, from the address that the kernel chooses.
    ///
    /// # Errors
    /// The kernel knows no way there.
    pub async fn connected_udp(&self, to: SocketAddr) -> Result<UdpSocket> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.udp(SocketAddr::new(any, 0))?;
        socket.connect(to).await.with_context(|| format!("find a way from {} to {to}", self.name()))?;
        Ok(socket)
    }

    /// Sends so many bytes; gives the source that the echo service saw and the answer's length.
    async fn ask(&self, socket: &UdpSocket, length: usize) -> Result<(SocketAddr, usize)> {
        let mut buffer = vec![0; 1 << 16];
        socket.send(&buffer[..length]).await.context("send a datagram")?;
        let length = socket.recv(&mut buffer).await.context("receive the answer")?;
        let line = buffer[..length].split(|it| *it == b'\n').next().unwrap_or_default();
        Ok((read(&String::from_utf8_lossy(line))?, length))
    }

    async fn in_time<T>(
        &self,
        to: SocketAddr,
        deadline: Duration,
        answer: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(deadline, answer).await {
            Ok(answer) => answer.with_context(|| format!("ask {to} from {}", self.name())),
            Err(_) => bail!("{} got no answer from {to} within {deadline:?}", self.name()),
        }
    }
}

/// Reads the address with which an echo service answers.
fn read(line: &str) -> Result<SocketAddr> {
    line.trim().parse().with_context(|| format!("read whom the echo service saw: {line:?}"))
}

fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let size = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(0);
    // SAFETY: the kernel reads `size` bytes of `value`, which lives until the call returns.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
