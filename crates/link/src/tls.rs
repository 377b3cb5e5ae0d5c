//! Connections with certificates on both sides.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::middleware::Next;
use axum::serve::IncomingStream;
use longshore_trust::{Credentials, Name, Peer, server_config, server_name};
use rustls::ClientConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::listener::prepare;

/// How long a peer may take to show who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many may be about to at once; more wait in the backlog.
const HANDSHAKES: usize = 256;

/// Serves until `shutdown`, with an `Extension` of the [`Peer`] and a `ConnectInfo` of its address in each
/// request.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    credentials: &Credentials,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let config = server_config(credentials).map_err(io::Error::other)?;
    let listener = TlsListener {
        listener: TcpListener::from_std(listener)?,
        acceptor: TlsAcceptor::from(config),
        shaking: JoinSet::new(),
    };
    let router = router.layer(axum::middleware::from_fn(tell_peer));
    let service = router.into_make_service_with_connect_info::<Seen>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn tell_peer(
    ConnectInfo(seen): ConnectInfo<Seen>,
    mut request: Request,
    next: Next,
) -> axum::response::Response {
    request.extensions_mut().insert(seen.peer);
    request.extensions_mut().insert(ConnectInfo(seen.address));
    next.run(request).await
}

/// Who is at the other end, and where.
#[derive(Debug, Clone)]
struct Seen {
    peer: Peer,
    address: SocketAddr,
}

impl Connected<IncomingStream<'_, TlsListener>> for Seen {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Accepts who shook hands, while others still do.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shaking: JoinSet<io::Result<(TlsStream<TcpStream>, Seen)>>,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = Seen;

    async fn accept(&mut self) -> (Self::Io, Seen) {
        loop {
            let may_accept = self.shaking.len() < HANDSHAKES;
            tokio::select! {
                Some(shaken) = self.shaking.join_next() => match shaken {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err(error)) => tracing::debug!(%error, "a peer was not let in"),
                    Err(error) => tracing::error!(%error, "a handshake did not end"),
                },
                (stream, address) = axum::serve::Listener::accept(&mut self.listener),
                    if may_accept =>
                {
                    self.shaking.spawn(shake(self.acceptor.clone(), stream, address));
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Seen> {
        Ok(Seen { peer: Peer::Local, address: self.listener.local_addr()? })
    }
}

async fn shake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, Seen)> {
    prepare(&stream);
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let peer = Peer::of(stream.get_ref().1.peer_certificates());
    Ok((stream, Seen { peer, address }))
}

/// With what a client shows who it is, and whom it expects.
#[derive(Clone)]
pub(crate) struct Expecting {
    connector: TlsConnector,
    name: Name,
}

impl std::fmt::Debug for Expecting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expecting({})", self.name)
    }
}

impl Expecting {
    pub fn new(config: Arc<ClientConfig>, name: Name) -> Self {
        Self { connector: TlsConnector::from(config), name }
    }

    pub async fn dial(
        &self,
        authority: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(authority).await?;
        prepare(&stream);
        self.connector.connect(server_name(&self.name), stream).await
    }
}
