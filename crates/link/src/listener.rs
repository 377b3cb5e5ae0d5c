//! Where a service listens.
//!
//! The supervisor binds the sockets of all roles once and hands each to its role as a descriptor
//! named in an environment variable. A role that dies and is started again finds the same socket
//! with the connections that came meanwhile waiting in its backlog, so nobody is refused.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use axum::{Extension, Router};
use longshore_trust::{Credentials, Peer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{Endpoint, PublicTls, tls};

/// The environment variable that names inherited sockets: `name=descriptor`, joined by commas.
pub const FDS_VARIABLE: &str = "LONGSHORE_FDS";

/// Why a service cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is in use.
    #[error("{endpoint} is already in use by another process; choose another address for {name}")]
    InUse {
        /// What would have listened.
        name: String,
        /// Where.
        endpoint: Endpoint,
    },
    /// The socket could not be made.
    #[error("cannot listen on {endpoint} for {name}")]
    Bind {
        /// What would have listened.
        name: String,
        /// Where.
        endpoint: Endpoint,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A bound socket that is not served yet.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket; its file is removed and made anew at each bind.
    Unix(std::os::unix::net::UnixListener, PathBuf),
    /// A TCP socket.
    Tcp(std::net::TcpListener),
    /// The same, on which nothing is said without TLS.
    Tls(std::net::TcpListener),
}

impl Listener {
    /// Takes the socket that the supervisor passed under `name`, else binds `endpoint`.
    pub fn inherit_or_bind(name: &str, endpoint: &Endpoint) -> Result<Self, ListenError> {
        match inherited().get(name) {
            Some(fd) => Self::from_inherited(*fd, endpoint).map_err(|source| ListenError::Bind {
                name: name.to_owned(),
                endpoint: endpoint.clone(),
                source,
            }),
            None => Self::bind(name, endpoint),
        }
    }

    /// Binds `endpoint`; `name` is for the error.
    pub fn bind(name: &str, endpoint: &Endpoint) -> Result<Self, ListenError> {
        let bound = match endpoint {
            Endpoint::Unix(path) => bind_unix(path),
            Endpoint::Tcp(authority) => std::net::TcpListener::bind(authority).map(Self::Tcp),
            Endpoint::Tls(authority) => std::net::TcpListener::bind(authority).map(Self::Tls),
        };
        bound.and_then(Self::nonblocking).map_err(|source| {
            let (name, endpoint) = (name.to_owned(), endpoint.clone());
            match source.kind() {
                io::ErrorKind::AddrInUse => ListenError::InUse { name, endpoint },
                _ => ListenError::Bind { name, endpoint, source },
            }
        })
    }

    /// Takes over a descriptor that this process owns by inheritance.
    fn from_inherited(fd: RawFd, endpoint: &Endpoint) -> io::Result<Self> {
        // SAFETY: the supervisor opened the descriptor for this process alone and named it once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        match endpoint {
            Endpoint::Unix(path) => Self::Unix(fd.into(), path.clone()),
            Endpoint::Tcp(_) => Self::Tcp(fd.into()),
            Endpoint::Tls(_) => Self::Tls(fd.into()),
        }
        .nonblocking()
    }

    fn nonblocking(self) -> io::Result<Self> {
        match &self {
            Self::Unix(listener, _) => listener.set_nonblocking(true)?,
            Self::Tcp(listener) | Self::Tls(listener) => listener.set_nonblocking(true)?,
        }
        Ok(self)
    }

    /// The endpoint that is listened on, with the port that the kernel chose for port 0.
    pub fn endpoint(&self) -> io::Result<Endpoint> {
        Ok(match self {
            Self::Unix(_, path) => Endpoint::Unix(path.clone()),
            Self::Tcp(listener) => Endpoint::Tcp(listener.local_addr()?.to_string()),
            Self::Tls(listener) => Endpoint::Tls(listener.local_addr()?.to_string()),
        })
    }

    /// Serves `router` until `shutdown`, then lets running requests finish. Streams that never end must
    /// watch `shutdown` themselves, as those of [`crate::json_lines`] do. Requests over TCP have a
    /// `ConnectInfo` of the address, those over a Unix socket are of [`Peer::Local`].
    ///
    /// # Errors
    ///
    /// When the socket cannot be used; one of [`Endpoint::Tls`] wants [`Self::serve_with`].
    pub async fn serve(self, router: Router, shutdown: CancellationToken) -> io::Result<()> {
        let done = shutdown.cancelled_owned();
        match self {
            Self::Unix(listener, _) => {
                let listener = tokio::net::UnixListener::from_std(listener)?;
                let router = router.layer(Extension(Peer::Local));
                axum::serve(listener, router).with_graceful_shutdown(done).await
            }
            Self::Tls(_) => Err(io::Error::other("there is no certificate to show")),
            Self::Tcp(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let listener = axum::serve::ListenerExt::tap_io(listener, |stream| prepare(stream));
                let service = router.into_make_service_with_connect_info::<SocketAddr>();
                axum::serve(listener, service).with_graceful_shutdown(done).await
            }
        }
    }

    /// The same, showing these credentials where TLS is spoken. Each request then says which [`Peer`]
    /// sent it.
    ///
    /// # Errors
    ///
    /// When the socket or the credentials cannot be used.
    pub async fn serve_with(
        self,
        credentials: Credentials,
        router: Router,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        match self {
            Self::Tls(listener) => tls::serve(listener, &credentials, router, shutdown).await,
            other => other.serve(router, shutdown).await,
        }
    }

    /// The same for users, who show nothing: with the certificates of `tls` where TLS is spoken. Each request
    /// then has a `ConnectInfo` of the address.
    ///
    /// # Errors
    ///
    /// When the socket cannot be used, or TLS is spoken and there are none.
    pub async fn serve_users(
        self,
        tls: Option<PublicTls>,
        router: Router,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        match (self, tls) {
            (Self::Tls(listener), Some(tls)) => {
                tls::serve_by(listener, tls.config(), router, shutdown).await
            }
            (other, _) => other.serve(router, shutdown).await,
        }
    }

    /// Whether users are spoken to by TLS here.
    pub fn is_secure(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Sets what every connection wants.
pub(crate) fn prepare(stream: &TcpStream) {
    // Small answers go out at once; a failure only costs latency.
    let _ = stream.set_nodelay(true);
    // A client whose machine is gone says so to nobody, and what it has open, such as a tunnel that
    // is silent by right, would stay. Without this it does.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive());
}

/// A silent connection is asked after a while, which also keeps the memory of a NAT on the way alive, and ends
/// within half a minute when nobody answers.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3)
}

fn bind_unix(path: &PathBuf) -> io::Result<Listener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(Listener::Unix(std::os::unix::net::UnixListener::bind(path)?, path.clone()))
}

/// The descriptors that the environment names.
fn inherited() -> BTreeMap<String, RawFd> {
    let text = std::env::var(FDS_VARIABLE).unwrap_or_default();
    let pair = |entry: &str| {
        let (name, fd) = entry.split_once('=')?;
        Some((name.to_owned(), fd.parse().ok()?))
    };
    text.split(',').filter_map(pair).collect()
}
