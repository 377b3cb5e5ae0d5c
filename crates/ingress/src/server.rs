//! Connections from users.
//!
//! HTTP/1.1 and cleartext HTTP/2 on one listener, told apart by the first bytes. Each connection
//! has a clock that every byte of its requests and answers moves on. That one clock ends all that
//! would hold a connection for ever: a client that never sends a request, one that keeps an idle
//! connection, one that does not take its answer.

mod activity;
mod stream;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use longshore_link::Listener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use activity::{Activity, Busy, Clock};

use crate::limits::{Limits, MAX_HEAD, MAX_SEND_BUFFER, MAX_STREAMS};
use crate::proxy::{Origin, Proxy};
use stream::{Accepted, Acceptor};

/// How long an idle HTTP/2 client has to close after it was told that the connection ends, and how
/// long tasks have to notice that the drain is over.
const LAST_WORD: Duration = Duration::from_secs(5);
/// The wait after the kernel gave no connection, most often for want of a descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the tasks of all connections share.
struct Server {
    proxy: Arc<Proxy>,
    limits: Limits,
    builder: Builder<TokioExecutor>,
    shutdown: CancellationToken,
    /// Cancelled when the time to drain is over.
    end: CancellationToken,
}

/// Serves connections until `shutdown`, then lets those with requests end.
pub(crate) async fn serve(
    listener: Listener,
    proxy: Arc<Proxy>,
    limits: Limits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let acceptor = Acceptor::new(listener)?;
    let places = Arc::new(Semaphore::new(limits.connections));
    let server = Arc::new(Server {
        builder: builder(&limits),
        proxy,
        limits,
        shutdown: shutdown.clone(),
        end: CancellationToken::new(),
    });
    let connections = TaskTracker::new();
    let accepting = accept(&acceptor, &places, &server, &connections);
    shutdown.run_until_cancelled(accepting).await;
    drop(acceptor);

    connections.close();
    let drained = async {
        connections.wait().await;
        server.proxy.tunnels_ended().await;
    };
    if tokio::time::timeout(server.limits.drain, drained).await.is_err() {
        tracing::warn!(left = connections.len(), "requests did not end in time; breaking them off");
        server.end.cancel();
    }
    let ended = async {
        server.proxy.end().await;
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
        let Accepted { stream, client } = accepted;
        let origin = Origin { client, activity: Arc::new(Activity::new()) };
        let activity = Arc::clone(&origin.activity);
        let service = service_fn(|request: Request<Incoming>| {
            let (server, origin) = (Arc::clone(&self), origin.clone());
            async move { server.proxy.answer(request, origin).await }
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
