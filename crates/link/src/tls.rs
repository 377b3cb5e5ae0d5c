//! Connections by TLS: between roles with certificates on both sides, from users with ours alone.

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
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncWriteExt as _;
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

/// The first byte of every connection that begins with a handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// What is answered to who speaks HTTP where TLS is spoken.
const SPEAK_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 38\r\n\r\nTLS is spoken here; ask with https://\n";

/// Serves until `shutdown`, with an `Extension` of the [`Peer`] and a `ConnectInfo` of its address in each
/// request.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    credentials: &Credentials,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let config = server_config(credentials).map_err(io::Error::other)?;
    serve_by(listener, config, router, shutdown).await
}

/// The same by any configuration.
pub(crate) async fn serve_by(
    listener: std::net::TcpListener,
    config: Arc<ServerConfig>,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
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
    let shaken = async {
        let stream = refuse_plain(stream).await?;
        acceptor.accept(stream).await
    };
    let stream = tokio::time::timeout(HANDSHAKE, shaken).await??;
    let peer = Peer::of(stream.get_ref().1.peer_certificates());
    Ok((stream, Seen { peer, address }))
}

/// Tells who speaks HTTP here what is spoken: a handshake that failed would tell a person nothing.
pub async fn refuse_plain(mut stream: TcpStream) -> io::Result<TcpStream> {
    let mut first = [0];
    // Nothing at all is for the handshake to refuse.
    if stream.peek(&mut first).await? == 0 || first[0] == HANDSHAKE_RECORD {
        return Ok(stream);
    }
    if first[0].is_ascii_uppercase() {
        stream.write_all(SPEAK_TLS).await?;
        // What was sent is read first: to close over it would take the answer away from the client.
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.try_read(&mut rest).is_ok_and(|read| read > 0) {}
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the peer does not speak TLS"))
}

/// With what a client shows who it is, and whom it expects.
#[derive(Clone)]
pub(crate) struct Expecting {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Expecting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expecting({:?})", self.name)
    }
}

impl Expecting {
    pub fn new(config: Arc<ClientConfig>, name: &Name) -> Self {
        Self::server(config, server_name(name))
    }

    /// The same of a server that is no role.
    pub fn server(config: Arc<ClientConfig>, name: ServerName<'static>) -> Self {
        Self { connector: TlsConnector::from(config), name }
    }

    pub async fn dial(
        &self,
        authority: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(authority).await?;
        prepare(&stream);
        self.connector.connect(self.name.clone(), stream).await
    }
}
