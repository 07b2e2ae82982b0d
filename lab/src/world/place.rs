//! Somewhere a process, a thread or a socket can be: a network namespace, perhaps with a mount
//! namespace around it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace and, for nodes and pods, the node's mount namespace. Clones are the same
/// place; the namespaces live as long as one of them or a process inside.
#[derive(Debug, Clone)]
pub struct Place {
    name: Arc<str>,
    net: Arc<OwnedFd>,
    mnt: Option<Arc<OwnedFd>>,
}

impl Place {
    /// Makes a network namespace and gives it the name `path` in the mount namespace of `around`
    /// (of this process when `None`). Everything in it is down and empty.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn create(name: &str, path: &Path, around: Option<&Place>) -> Result<Place> {
        let make = || -> Result<OwnedFd> {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)
                    .with_context(|| format!("create {}", directory.display()))?;
            }
            File::create(path).with_context(|| format!("create {}", path.display()))?;
            unshare(CloneFlags::CLONE_NEWNET).context("create a network namespace")?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("bind {own} to {}", path.display()))?;
            Ok(File::open(own).with_context(|| format!("open {own}"))?.into())
        };
        let mnt = around.and_then(|it| it.mnt.clone());
        let net = on_own_thread(|| {
            if let Some(mnt) = &mnt {
                join_mounts(mnt)?;
            }
            make()
        })??;
        Ok(Place { name: name.into(), net: Arc::new(net), mnt })
    }

    /// The same network with another mount namespace.
    pub(crate) fn with_mounts(&self, mnt: OwnedFd) -> Place {
        Place { mnt: Some(Arc::new(mnt)), ..self.clone() }
    }

    /// The place of this process itself.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn here() -> Result<Place> {
        let own = "/proc/thread-self/ns/net";
        let net = File::open(own).with_context(|| format!("open {own}"))?;
        Ok(Place { name: "lab".into(), net: Arc::new(net.into()), mnt: None })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace, for `setns`.
    pub fn net(&self) -> &Arc<OwnedFd> {
        &self.net
    }

    /// The mount namespace, where the place has one of its own.
    pub fn mnt(&self) -> Option<&Arc<OwnedFd>> {
        self.mnt.as_ref()
    }

    /// Runs `work` on a fresh thread inside; the thread ends with the call. Sockets that it
    /// makes stay in this network wherever they are used later; commands that it spawns start
    /// here.
    ///
    /// # Errors
    /// The namespaces cannot be joined, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            join(&self.net, self.mnt.as_deref())
                .with_context(|| format!("join the namespaces of {}", self.name))
                .map(|()| work())
        })?
    }

    /// A command that will start inside. The child joins the namespaces itself, between fork and
    /// exec, so its start costs no helper process and a tracer can be its parent.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let (net, mnt) = (self.net.clone(), self.mnt.clone());
        // SAFETY: the closure only makes system calls on descriptors that it keeps open.
        unsafe {
            command.pre_exec(move || Ok(join(&net, mnt.as_deref())?));
        }
        command
    }

    /// A TCP listener inside, ready for tokio.
    ///
    /// # Errors
    /// The address is taken or not of this place.
    pub fn tcp_listener(&self, address: SocketAddr) -> Result<std::net::TcpListener> {
        self.socket(|| {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .with_context(|| format!("listen on {address} in {}", self.name))
    }

    /// A UDP socket inside, ready for tokio.
    ///
    /// # Errors
    /// The address is taken or not of this place.
    pub fn udp(&self, address: SocketAddr) -> Result<tokio::net::UdpSocket> {
        let socket = self
            .socket(|| {
                let socket = std::net::UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                // Several streams at once must not overflow it while nobody reads.
                socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20)?;
                Ok(socket)
            })
            .with_context(|| format!("bind UDP {address} in {}", self.name))?;
        Ok(tokio::net::UdpSocket::from_std(socket)?)
    }

    /// A raw ICMP socket inside: sends echo requests and sees every ICMP message that arrives,
    /// requests of others included, each with its IP header in front.
    ///
    /// # Errors
    /// The kernel's.
    pub fn icmp(&self) -> Result<tokio::net::UdpSocket> {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = self
            .socket(|| {
                let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
                socket.set_nonblocking(true)?;
                // A burst of all pairs must not overflow it.
                socket.set_recv_buffer_size(1 << 20)?;
                Ok(socket)
            })
            .with_context(|| format!("open a raw ICMP socket in {}", self.name))?;
        // The standard library only calls send and receive on it, which a raw socket knows too.
        Ok(tokio::net::UdpSocket::from_std(socket.into())?)
    }

    /// Opens a TCP connection from inside.
    ///
    /// # Errors
    /// The peer's refusal, or no answer within `deadline`.
    pub async fn connect(
        &self,
        to: impl Into<SocketAddr>,
        deadline: std::time::Duration,
    ) -> Result<tokio::net::TcpStream> {
        use socket2::{Domain, Socket, Type};
        let to = to.into();
        let socket = self
            .socket(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .with_context(|| format!("open a TCP socket in {}", self.name))?;
        let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
        tokio::time::timeout(deadline, socket.connect(to))
            .await
            .map_err(|_| anyhow!("no answer within {deadline:?}"))
            .and_then(|it| Ok(it?))
            .with_context(|| format!("connect from {} to {to}", self.name))
    }

    /// Writes a setting below `/proc/sys/net`, e.g. `ipv4/ip_forward`.
    ///
    /// # Errors
    /// The kernel's, with the name and the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("write {value} to {path} in {}", self.name))
    }

    pub(crate) fn socket<T: Send>(&self, make: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        Ok(self.run(make)??)
    }
}

/// An address with a port, for the socket functions.
pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Runs `work` on a thread that shares neither root nor mount namespace with the process later.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("visitor".to_owned())
            .spawn_scoped(scope, work)
            .context("start a thread")?
            .join()
            .map_err(|_| anyhow!("the work inside of a namespace panicked"))
    })
}

fn join_mounts(mnt: &OwnedFd) -> nix::Result<()> {
    // The kernel lets only a thread of its own root and working directory change the mounts.
    unshare(CloneFlags::CLONE_FS)?;
    setns(mnt, CloneFlags::CLONE_NEWNS)
}

/// Joins with async-signal-safe calls only: also used between fork and exec.
fn join(net: &OwnedFd, mnt: Option<&OwnedFd>) -> nix::Result<()> {
    if let Some(mnt) = mnt {
        join_mounts(mnt)?;
    }
    setns(net, CloneFlags::CLONE_NEWNET)
}
