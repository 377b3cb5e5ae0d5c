//! Calls to who only dials out.
//!
//! A machine behind a NAT or a firewall cannot be dialled. So it keeps connections open to whom it belongs, and is
//! called over those: each is a [`Tunnel`] that waits until the other side takes it, and from then on an HTTP
//! connection with the roles turned round. Who shows what to whom was settled when it was opened. At least one
//! waits, and as many as are in use: a burst of calls finds twice as many with each round trip.
//!
//! One that waited for long may lead nowhere by now, and a request on it would be lost. So it is taken by a
//! byte that is answered, before anything is asked.
//!
//! Rejected: one connection with streams on it, as HTTP/2 has them. Copying a file would hold up a terminal
//! beside it, and upgrades, of which most of what is asked consists, would need another form there.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::service::TowerToHyperService;
use longshore_trust::{Fingerprint, Name};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{CallError, Client, Refusal, Service, Tunnel, Upgrade};

/// What takes a connection, and what is answered.
const TAKE: u8 = b'?';
const TAKEN: u8 = b'!';
/// How long the answer may take.
const TAKE_WITHIN: Duration = Duration::from_secs(2);
/// How long to wait for a connection: who was just started is opening one.
const OPENED_WITHIN: Duration = Duration::from_secs(5);
/// The most that wait at either end.
const MOST: usize = 64;
/// The first and the longest wait before opening one is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// The connections of one peer, on the side that calls it. Clones share them.
#[derive(Debug, Clone)]
pub struct Reverse {
    waiting: Arc<Waiting>,
    client: Client,
}

impl Reverse {
    /// For a peer that has opened none yet.
    pub fn new(peer: &Name) -> Self {
        let waiting = Arc::new(Waiting { peer: peer.to_string(), ..Waiting::default() });
        Self { client: Client::reversed(Arc::clone(&waiting)), waiting }
    }

    /// Calls the peer.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Answers the peer that opens a connection for this.
    ///
    /// # Errors
    ///
    /// When it asks for something else.
    pub fn accept(&self, upgrade: Upgrade, service: &Service) -> Result<Response, Refusal> {
        // Weak: a peer that is not known any more has nothing to wait for.
        let waiting = Arc::downgrade(&self.waiting);
        upgrade.tunnel(service, "reverse", |tunnel| async move {
            if let Some(waiting) = waiting.upgrade() {
                waiting.put(tunnel);
            }
        })
    }

    /// Keeps a connection that the peer opened, where the caller answers the peer itself.
    pub fn keep(&self, tunnel: Tunnel) {
        self.waiting.put(tunnel);
    }

    /// One of the connections, for other things than calls over HTTP: bytes go to the peer and come from it.
    ///
    /// # Errors
    ///
    /// When the peer has none open, and opens none within a few seconds.
    pub async fn take(&self) -> io::Result<Tunnel> {
        self.waiting.take().await
    }

    /// Whether a connection waits to be taken. It may lead nowhere by now.
    pub fn is_open(&self) -> bool {
        !self.waiting.idle().is_empty()
    }
}

/// The connections of several peers.
#[derive(Debug, Default)]
pub struct Reverses {
    peers: Mutex<BTreeMap<Name, (Fingerprint, Reverse)>>,
}

impl Reverses {
    /// Those of a peer that is known by this key. What showed another under the same name is closed.
    pub fn of(&self, peer: &Name, key: Fingerprint) -> Reverse {
        let mut peers = self.peers();
        match peers.get(peer) {
            Some((known, reverse)) if *known == key => reverse.clone(),
            _ => {
                let reverse = Reverse::new(peer);
                peers.insert(peer.clone(), (key, reverse.clone()));
                reverse
            }
        }
    }

    /// Closes those of peers that are none any more.
    pub fn retain(&self, is_peer: impl Fn(&Name) -> bool) {
        self.peers().retain(|peer, _| is_peer(peer));
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<Name, (Fingerprint, Reverse)>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections that nobody has taken yet, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    peer: String,
    idle: Mutex<Vec<Tunnel>>,
    arrived: Notify,
}

impl Waiting {
    /// Who opens them.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    fn put(&self, tunnel: Tunnel) {
        let mut idle = self.idle();
        // Whose peer opens more than it should loses the oldest.
        if idle.len() == MOST {
            idle.remove(0);
        }
        idle.push(tunnel);
        drop(idle);
        self.arrived.notify_one();
    }

    /// One that leads to the peer now.
    pub async fn take(&self) -> io::Result<Tunnel> {
        let taken = tokio::time::timeout(OPENED_WITHIN, async {
            loop {
                let newest = self.idle().pop();
                let Some(mut tunnel) = newest else {
                    self.arrived.notified().await;
                    continue;
                };
                match tokio::time::timeout(TAKE_WITHIN, greet(&mut tunnel)).await {
                    Ok(Ok(())) => return tunnel,
                    // Closed, and perhaps it alone.
                    Ok(Err(_)) => {}
                    // Those that waited for longer lead nowhere either.
                    Err(_) => self.idle().clear(),
                }
            }
        });
        taken.await.map_err(|_| io::Error::new(io::ErrorKind::NotConnected, "it is not connected"))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Tunnel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn greet(tunnel: &mut Tunnel) -> io::Result<()> {
    tunnel.write_all(&[TAKE]).await?;
    tunnel.flush().await?;
    match tunnel.read_u8().await? {
        TAKEN => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Keeps connections open, each by `open`, over which `router` answers, until `shutdown`; then lets running
/// requests finish.
pub async fn be_called<F>(
    open: impl Fn() -> F,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    F: Future<Output = Result<Tunnel, CallError>> + Send + 'static,
{
    let until = shutdown.clone();
    be_reached(open, move |tunnel| serve(tunnel, router.clone(), until.clone()), shutdown).await
}

/// The same, and whatever is said over a connection that was taken is up to `serve`.
pub async fn be_reached<F, E, S>(
    open: impl Fn() -> F,
    serve: impl Fn(Tunnel) -> S,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    F: Future<Output = Result<Tunnel, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let (mut waiting, mut serving) = (JoinSet::new(), JoinSet::new());
    let mut pause = RETRY.0;
    while !shutdown.is_cancelled() {
        while waiting.len() < serving.len().clamp(1, MOST) {
            waiting.spawn(be_taken(open()));
        }
        let next = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = serving.join_next() => continue,
            Some(next) = waiting.join_next() => next.map_err(io::Error::other)?,
        };
        match next {
            Ok(tunnel) => {
                pause = RETRY.0;
                serving.spawn(serve(tunnel));
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot be called");
                shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
    waiting.abort_all();
    while serving.join_next().await.is_some() {}
    Ok(())
}

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
enum NotTaken<E: std::error::Error + 'static> {
    #[error("it was not opened")]
    Open(#[source] E),
    #[error("it was closed")]
    Closed(#[source] io::Error),
}

/// Opens a connection and waits until it is taken.
async fn be_taken<E: std::error::Error + 'static>(
    open: impl Future<Output = Result<Tunnel, E>>,
) -> Result<Tunnel, NotTaken<E>> {
    let mut tunnel = open.await.map_err(NotTaken::Open)?;
    answer(&mut tunnel).await.map_err(NotTaken::Closed)?;
    Ok(tunnel)
}

async fn answer(tunnel: &mut Tunnel) -> io::Result<()> {
    if tunnel.read_u8().await? != TAKE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    tunnel.write_all(&[TAKEN]).await?;
    tunnel.flush().await
}

async fn serve(tunnel: Tunnel, router: Router, shutdown: CancellationToken) {
    let answering = TowerToHyperService::new(router);
    let served = http1::Builder::new().serve_connection(tunnel.into_inner(), answering);
    let mut served = std::pin::pin!(served.with_upgrades());
    let done = tokio::select! {
        done = served.as_mut() => done,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke");
    }
}

#[cfg(test)]
mod tests;
