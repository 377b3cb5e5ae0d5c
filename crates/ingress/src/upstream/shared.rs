//! Connections over which HTTP/2 is spoken: each carries many requests at one time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use tokio::sync::{Mutex as Turns, MutexGuard};
use tokio::time::Instant;

use super::lock;
use crate::proxy::RequestBody;

/// Requests at one time on one connection, before another one is made. Servers allow 100 at least
/// (RFC 9113, 6.5.2), and one connection is driven by one core.
const MAX_STREAMS: usize = 100;

/// The connections of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct SharedConnections {
    open: Mutex<Open>,
    dialling: Turns<()>,
}

#[derive(Debug, Default)]
struct Open {
    connections: Vec<Shared>,
    /// The endpoint left the table: connections end with their last request.
    retired: bool,
}

#[derive(Debug)]
struct Shared {
    sender: SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
    used: Instant,
}

/// A place on a connection, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub sender: SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn place(&mut self) -> Place {
        self.used = Instant::now();
        self.streams.fetch_add(1, Ordering::AcqRel);
        Place { sender: self.sender.clone(), streams: Arc::clone(&self.streams) }
    }
}

impl SharedConnections {
    /// A place on a connection that lives and has one.
    pub fn take(&self) -> Option<Place> {
        let mut open = lock(&self.open);
        open.connections.retain(|shared| !shared.sender.is_closed());
        let free = |shared: &&mut Shared| shared.streams.load(Ordering::Acquire) < MAX_STREAMS;
        open.connections.iter_mut().find(free).map(Shared::place)
    }

    /// The turn to dial, so that a hundred requests at once make one connection and not a hundred.
    /// Whoever has it looks for a place again first.
    pub async fn turn_to_dial(&self) -> MutexGuard<'_, ()> {
        self.dialling.lock().await
    }

    /// A place on a new connection, which others use too unless the endpoint left the table.
    pub fn add(&self, sender: SendRequest<RequestBody>) -> Place {
        let streams = Arc::default();
        let mut shared = Shared { sender, streams, used: Instant::now() };
        let place = shared.place();
        let mut open = lock(&self.open);
        if !open.retired {
            open.connections.push(shared);
        }
        place
    }

    pub(super) fn retire(&self) {
        let mut open = lock(&self.open);
        open.retired = true;
        open.connections.clear();
    }

    /// Has the next request make a new connection; those under way go on with theirs.
    pub fn abandon(&self) {
        lock(&self.open).connections.clear();
    }

    pub(super) fn sweep(&self, now: Instant, max_idle: Duration) {
        lock(&self.open).connections.retain_mut(|shared| {
            let busy = shared.streams.load(Ordering::Acquire) > 0;
            if busy {
                shared.used = now;
            }
            !shared.sender.is_closed() && (busy || now < shared.used + max_idle)
        });
    }
}
