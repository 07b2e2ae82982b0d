//! An echo service that tells callers which source address it saw.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};

use super::place::Place;

/// A running echo service, TCP and UDP on the same port; it ends with this value.
///
/// TCP: one line `address:port` as the service sees the caller, then every byte comes back.
/// UDP: each datagram comes back with such an address and a newline written over its beginning, or
/// instead of it where it is shorter. A caller over IPv4 is shown as such also where the service
/// listens on `[::]`.
#[derive(Debug)]
pub struct Echo {
    tcp: AbortHandle,
    udp: AbortHandle,
}

impl Echo {
    /// Starts it in `place`.
    ///
    /// # Errors
    /// The address is taken or not of this place.
    pub fn start(place: &Place, address: SocketAddr) -> Result<Echo> {
        let listener = TcpListener::from_std(place.tcp_listener(address)?)?;
        let socket = place.udp(address)?;
        Ok(Echo {
            tcp: tokio::spawn(serve_tcp(listener)).abort_handle(),
            udp: tokio::spawn(serve_udp(socket)).abort_handle(),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.tcp.abort();
        self.udp.abort();
    }
}

async fn serve_tcp(listener: TcpListener) {
    // Dropped with this task, and the connections with it.
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, peer)) = accepted {
                calls.spawn(answer(stream, peer));
            },
            Some(_) = calls.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{}\n", plain(peer)).as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    Ok(())
}

async fn serve_udp(socket: UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let line = format!("{}\n", plain(peer));
            buffer[..line.len()].copy_from_slice(line.as_bytes());
            let _ = socket.send_to(&buffer[..length.max(line.len())], peer).await;
        }
    }
}

/// Without the form that an IPv4 address has on an IPv6 socket.
fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
