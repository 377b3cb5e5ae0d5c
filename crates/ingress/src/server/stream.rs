//! Sockets of users.

use std::io;
use std::net::IpAddr;

use longshore_link::Listener;
use tokio::net::{TcpListener, UnixListener};

use crate::gate::{Stream, prepare};

/// A listener of either kind.
#[derive(Debug)]
pub(super) enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection from a user.
pub(super) struct Accepted {
    pub stream: Box<dyn Stream>,
    pub client: Option<IpAddr>,
    /// Whether it is by TLS.
    pub is_secure: bool,
}

impl Acceptor {
    pub fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            Listener::Unix(listener, _) => Self::Unix(UnixListener::from_std(listener)?),
            Listener::Tls(_) => return Err(io::Error::other("users speak in the clear here")),
        })
    }

    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                prepare(&stream)?;
                let client = Some(peer.ip());
                Ok(Accepted { stream: Box::new(stream), client, is_secure: false })
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted { stream: Box::new(stream), client: None, is_secure: false })
            }
        }
    }
}
