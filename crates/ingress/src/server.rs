//! Connections from users, and from ingresses of other locations.
//!
//! HTTP/1.1 and HTTP/2 on one listener, told apart by the first bytes; with TLS clients choose by ALPN. Each connection
//! has a clock that every byte of its requests and answers moves on. That one clock ends all that
//! would hold a connection for ever: a client that never sends a request, one that keeps an idle
//! connection, one that does not take its answer.

mod activity;
mod stream;

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use longshore_link::{Listener, PublicTls};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use activity::{Activity, Busy, Clock};

use crate::elsewhere::{Came, Door, Guest, Others, Visit, Visitor, keep_relays};
use crate::gate::{Gates, Stream, prepare};
use crate::limits::{Limits, MAX_GUESTS, MAX_HEAD, MAX_SEND_BUFFER, MAX_STREAMS};
use crate::proxy::{Answer, Origin, Proxy};
use crate::relay::Relay;
use crate::secure;
use stream::{Accepted, Acceptor};

/// How long an idle HTTP/2 client has to close after it was told that the connection ends, and how
/// long tasks have to notice that the drain is over.
const LAST_WORD: Duration = Duration::from_secs(5);
/// The wait after the kernel gave no connection, most often for want of a descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the tasks of all connections share.
struct Server {
    proxy: Arc<Proxy>,
    relay: Option<Relay>,
    limits: Limits,
    builder: Builder<TokioExecutor>,
    shutdown: CancellationToken,
    /// Cancelled when the time to drain is over.
    end: CancellationToken,
}

/// Where connections come in.
pub(crate) struct Entrances {
    /// Those of users in the clear.
    pub users: Listener,
    /// Those of users by TLS, where they may come by it.
    pub secure: Option<(Listener, PublicTls)>,
    /// Those of other locations, where they may come: as whom they are let in, and who they are.
    pub others: Option<(Listener, Arc<Gates>, Arc<Others>)>,
}

/// Serves connections until `shutdown`, then lets those with requests end.
pub(crate) async fn serve(
    entrances: Entrances,
    proxy: Arc<Proxy>,
    limits: Limits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let acceptor = Acceptor::new(entrances.users)?;
    let places = Arc::new(Semaphore::new(limits.connections));
    let end = CancellationToken::new();
    let relay = entrances.others.as_ref().map(|(_, own, others)| {
        let (metrics, ends) = (proxy.metrics().clone(), (shutdown.clone(), end.clone()));
        Relay::new((Arc::clone(others), Arc::clone(own)), metrics, ends)
    });
    let server = Arc::new(Server {
        builder: builder(&limits),
        proxy,
        relay,
        limits,
        shutdown: shutdown.clone(),
        end,
    });
    let connections = TaskTracker::new();
    let accepting = accept(&acceptor, &places, &server, &connections);
    let secure = async {
        match entrances.secure {
            Some(secure) => accept_secure(secure, &places, &server, &connections).await,
            None => std::future::pending().await,
        }
    };
    let guests = async {
        match entrances.others {
            Some((listener, own, others)) => {
                accept_guests((listener, own, others), &server, &connections).await
            }
            None => std::future::pending().await,
        }
    };
    let accepting = async {
        tokio::select! {
            () = accepting => Ok(()),
            ended = secure => ended,
            ended = guests => ended,
        }
    };
    if let Some(ended) = shutdown.run_until_cancelled(accepting).await {
        ended?;
    }
    drop(acceptor);

    connections.close();
    let drained = async {
        connections.wait().await;
        server.proxy.tunnels_ended().await;
        server.nothing_is_carried().await;
    };
    if tokio::time::timeout(server.limits.drain, drained).await.is_err() {
        tracing::warn!(left = connections.len(), "requests did not end in time; breaking them off");
        server.end.cancel();
    }
    let ended = async {
        server.proxy.end().await;
        server.nothing_is_carried().await;
        connections.wait().await;
    };
    if tokio::time::timeout(LAST_WORD, ended).await.is_err() {
        tracing::warn!(left = connections.len(), "connections did not end; leaving them");
    }
    Ok(())
}

async fn accept(
    acceptor: &Acceptor,
    places: &Arc<Semaphore>,
    server: &Arc<Server>,
    connections: &TaskTracker,
) {
    loop {
        let place = Arc::clone(places).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        match acceptor.accept().await {
            Ok(accepted) => {
                connections.spawn(Arc::clone(server).serve_connection(accepted, place));
            }
            // The client was faster at leaving than we at accepting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Accepts users who speak TLS; they share the places of the others.
async fn accept_secure(
    (listener, tls): (Listener, PublicTls),
    places: &Arc<Semaphore>,
    server: &Arc<Server>,
    connections: &TaskTracker,
) -> io::Result<()> {
    let Listener::Tls(listener) = listener else {
        return Err(io::Error::other("this is where TLS is spoken"));
    };
    let listener = TcpListener::from_std(listener)?;
    loop {
        let place = Arc::clone(places).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, address)) => {
                let (server, tls) = (Arc::clone(server), tls.clone());
                connections.spawn(async move {
                    // Without it answers come a little later.
                    let _ = prepare(&stream);
                    match secure::shake(&tls, stream).await {
                        Ok(stream) => {
                            let (stream, client) = (Box::new(stream), Some(address.ip()));
                            let accepted = Accepted { stream, client, is_secure: true };
                            server.serve_connection(accepted, place).await;
                        }
                        Err(error) => {
                            server.proxy.metrics().note_handshake_failed();
                            tracing::debug!(%address, %error, "no handshake");
                        }
                    }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection by TLS");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Accepts from other locations, once the door can be opened; connections that came before wait. Those that cannot
/// dial this one come over connections that are kept open to relays.
async fn accept_guests(
    (listener, own, others): (Listener, Arc<Gates>, Arc<Others>),
    server: &Arc<Server>,
    connections: &TaskTracker,
) -> io::Result<()> {
    let Listener::Tls(listener) = listener else {
        return Err(io::Error::other("other locations are spoken to with TLS alone"));
    };
    let listener = TcpListener::from_std(listener)?;
    let hall = Hall {
        door: Door::open(Arc::clone(&own), Arc::clone(&others)).await?,
        places: Arc::new(Semaphore::new(MAX_GUESTS)),
        server: Arc::clone(server),
        connections: connections.clone(),
    };
    let relayed = hall.clone();
    let relays = keep_relays(others, own, move |tunnel| {
        let hall = relayed.clone();
        async move {
            let place = hall.place().await;
            hall.let_in(tunnel, Came::Relayed, place);
        }
    });
    let dialled = async {
        loop {
            let place = hall.place().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Without these answers come a little later, and a peer that is gone is noticed later.
                    let _ = prepare(&stream);
                    hall.let_in(stream, Came::Directly, place);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection of another location");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        () = relays => Ok(()),
        () = dialled => Ok(()),
    }
}

/// Where ingresses of other locations are once they came.
#[derive(Clone)]
struct Hall {
    door: Door,
    places: Arc<Semaphore>,
    server: Arc<Server>,
    connections: TaskTracker,
}

impl Hall {
    async fn place(&self) -> OwnedSemaphorePermit {
        let place = Arc::clone(&self.places).acquire_owned().await;
        place.expect("the semaphore is never closed")
    }

    /// Serves somebody, once he has shown who he is.
    fn let_in(&self, stream: impl Stream + 'static, came: Came, place: OwnedSemaphorePermit) {
        let (server, door) = (Arc::clone(&self.server), self.door.clone());
        self.connections.spawn(async move {
            match door.admit(stream, came).await {
                Ok(Visitor::Ingress(guest)) => server.serve_guest(guest, place).await,
                Ok(Visitor::Node(visit)) => server.serve_node(*visit, place).await,
                Err(error) => {
                    server.proxy.metrics().note_guest_refused();
                    let error = &error as &dyn std::error::Error;
                    // Whoever finds the port could fill the log by it.
                    tracing::debug!(?came, error, "somebody is no other location");
                }
            }
        });
    }
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("MAX_HEAD is a small constant"))
        .max_send_buf_size(MAX_SEND_BUFFER);
    builder
}

impl Server {
    async fn serve_connection(self: Arc<Self>, accepted: Accepted, _place: OwnedSemaphorePermit) {
        let _open = self.proxy.metrics().connection();
        let Accepted { stream, client, is_secure } = accepted;
        let activity = Arc::new(Activity::new());
        let origin = Origin { client, is_secure, from: None, came: Came::Directly, activity };
        self.serve_stream(stream, origin).await;
    }

    /// Serves an ingress of another location, for as long as that is one.
    async fn serve_guest(self: Arc<Self>, guest: Guest, _place: OwnedSemaphorePermit) {
        let came = guest.came;
        let (stream, location, removed) = guest.into_parts();
        let activity = Arc::new(Activity::new());
        let from = Some(location.clone());
        let origin = Origin { client: None, is_secure: true, from, came, activity };
        let serving = Arc::clone(&self).serve_stream(stream, origin);
        tokio::select! {
            () = serving => {}
            () = removed => tracing::info!(%location, "a location was removed; it is cut off"),
        }
    }

    /// Serves a node, which has one thing to ask: that its connection be kept to reach it over.
    async fn serve_node(self: Arc<Self>, visit: Visit, _place: OwnedSemaphorePermit) {
        let Visit { stream, node, reverse } = visit;
        let (shutdown, server) = (self.shutdown.clone(), Arc::clone(&self));
        let service = service_fn(move |request: Request<Incoming>| {
            let relay = server.relay.as_ref().expect("the door belongs to the relay");
            let answer = relay.answer_node(request, node.clone(), reverse.clone());
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let serving = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut serving = pin!(serving);
        tokio::select! {
            outcome = serving.as_mut() => note_end(outcome),
            () = shutdown.cancelled() => {}
        }
    }

    /// Answers a request, which from an ingress of another location may be for a relay.
    async fn answer(
        &self,
        request: Request<Incoming>,
        origin: Origin,
    ) -> Result<Response<Answer>, Infallible> {
        match (&origin.from, origin.came, &self.relay) {
            (Some(from), Came::Directly, Some(relay)) if Relay::is_asked(&request) => {
                Ok(relay.answer(request, from).await)
            }
            _ => self.proxy.answer(request, origin).await,
        }
    }

    async fn nothing_is_carried(&self) {
        if let Some(relay) = &self.relay {
            relay.ended().await;
        }
    }

    async fn serve_stream(self: Arc<Self>, stream: Box<dyn Stream>, origin: Origin) {
        let activity = Arc::clone(&origin.activity);
        let service = service_fn(|request: Request<Incoming>| {
            let (server, origin) = (Arc::clone(&self), origin.clone());
            async move { server.answer(request, origin).await }
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            outcome = connection.as_mut() => return note_end(outcome),
            () = self.end.cancelled() => return,
            () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
            () = activity.expired(&self.limits) => {
                if !activity.is_idle() {
                    tracing::debug!("a client takes nothing of its answer; closing");
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
        // Told to end; it may do so with the requests that it has, as long as these move.
        tokio::select! {
            outcome = connection.as_mut() => note_end(outcome),
            () = self.end.cancelled() => {}
            () = activity.over(&self.limits, LAST_WORD) => {}
        }
    }
}

/// Garbage, resets and time-outs of clients are everyday and theirs.
fn note_end(outcome: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = outcome {
        tracing::debug!(error = &*error as &dyn std::error::Error, "a connection ended badly");
    }
}
