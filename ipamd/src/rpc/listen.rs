//! The socket: where it is, who may use it, and its end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tracing::warn;

use super::{Services, cni_backend, config_server, node};

/// How long to leave the socket alone after the system gave no connection, for want of file
/// descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The socket could not be made.
    #[error("{action} {path:?}")]
    Socket { action: &'static str, path: PathBuf, source: io::Error },
    /// The server ended by itself.
    #[error("serve gRPC")]
    Server(#[from] tonic::transport::Error),
}

/// Opens the socket at `path`, in the place of whatever an earlier daemon left there.
///
/// # Errors
/// [`ServeError::Socket`] if the file system refuses, or something else than a socket is there.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let fail = |action: &'static str| {
        let path = path.to_owned();
        move |source| ServeError::Socket { action, path, source }
    };
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        fs::create_dir_all(parent).map_err(fail("make the directory of"))?;
        fs::set_permissions(parent, Permissions::from_mode(0o755)).map_err(fail("open the directory of"))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_dir() => {
            return Err(fail("listen on")(io::Error::other("a directory is in the way")));
        }
        Ok(found) => {
            if !found.file_type().is_socket() {
                warn!(path = %path.display(), "something else than a socket was in the way and is removed");
            }
            fs::remove_file(path).map_err(fail("remove the old socket"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(fail("listen on"))?;
    fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(fail("set the mode of"))?;
    Ok(listener)
}

/// Answers until `stop`, then finishes what it has accepted.
///
/// # Errors
/// [`ServeError::Server`] if the server ends by itself.
pub(crate) async fn serve(
    listener: UnixListener,
    services: Services,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    for name in ["", proto::IPAMD_HEALTH_SERVICE] {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    let server = Server::builder()
        .add_service(health)
        .add_service(cni_backend(services.clone()))
        .add_service(config_server(services.clone()))
        .add_service(node::server(services));
    Ok(server.serve_with_incoming_shutdown(connections(listener), stop).await?)
}

/// The connections to the socket, without end: a failure concerns one caller, not the others.
fn connections(listener: UnixListener) -> impl futures::Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
