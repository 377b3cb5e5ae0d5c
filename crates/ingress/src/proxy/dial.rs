//! Connections to instances, and the tasks that drive them.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use longshore_api::links::Endpoint;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::RequestBody;
use crate::elsewhere::{Location, Others, Way};
use crate::gate::{Gates, NodeGate, Stream};
use crate::limits::{
    ELSEWHERE_CONNECTION_WINDOW, ELSEWHERE_STREAM_WINDOW, HTTP2_CONNECTION_WINDOW,
    HTTP2_STREAM_WINDOW, Limits, MAX_HEAD, MAX_SEND_BUFFER, PING_INTERVAL, PING_TIMEOUT,
};
use crate::upstream::{Place, Sender, Site, Upstream};

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("the connection was not accepted in time")]
    TimedOut,
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("cannot speak HTTP over the connection")]
    Handshake(#[source] hyper::Error),
}

/// Makes connections to instances, and owns the tasks that drive them.
#[derive(Debug)]
pub(super) struct Dialler {
    gate: Arc<dyn NodeGate>,
    /// As whom other locations are dialled.
    own: Arc<Gates>,
    others: Arc<Others>,
    limit: Duration,
    look: Duration,
    tasks: TaskTracker,
    end: CancellationToken,
}

/// Where hyper spawns the sending of bodies on connections that are shared.
#[derive(Debug, Clone)]
struct Tasks(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

impl Dialler {
    pub fn new(
        gate: Arc<dyn NodeGate>,
        (own, others): (Arc<Gates>, Arc<Others>),
        &Limits { connect: limit, look, .. }: &Limits,
        end: CancellationToken,
    ) -> Self {
        Self { gate, own, others, limit, look, tasks: TaskTracker::new(), end }
    }

    /// Where tasks that end with their connection to an instance are spawned.
    pub fn tasks(&self) -> TaskTracker {
        self.tasks.clone()
    }

    /// Waits until no connection is left.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A connection for one request at a time.
    pub async fn dial(&self, upstream: &Upstream) -> Result<Sender, DialError> {
        let stream = self.connect(upstream).await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(DialError::Handshake)?;
        self.drive(upstream, connection.with_upgrades());
        Ok(sender)
    }

    /// A place on a connection that is shared, on a new one when there is none.
    pub async fn place(&self, upstream: &Upstream) -> Result<Place, DialError> {
        let shared = upstream.shared();
        if let Some(place) = shared.take() {
            return Ok(place);
        }
        let making = async {
            let _turn = shared.turn_to_dial().await;
            match shared.take() {
                Some(place) => Ok(place),
                None => self.dial_http2(upstream).await,
            }
        };
        // Bounds the wait for the turn too.
        tokio::time::timeout(self.limit, making).await.map_err(|_| DialError::TimedOut)?
    }

    /// There are no pings to instances: servers of gRPC take frequent ones for an attack, and the kernel's
    /// keep-alive finds a node that is gone. Another location is farther away and may be cut off from here at
    /// any time, which pings find in seconds.
    async fn dial_http2(&self, upstream: &Upstream) -> Result<Place, DialError> {
        let stream = self.connect(upstream).await?;
        let mut builder = http2::Builder::new(Tasks(self.tasks.clone()));
        let (stream_window, connection_window) = match upstream.site() {
            Site::Instance(_) => (HTTP2_STREAM_WINDOW, HTTP2_CONNECTION_WINDOW),
            Site::Location(_) => {
                let interval = Some(PING_INTERVAL);
                builder.keep_alive_interval(interval).keep_alive_timeout(PING_TIMEOUT);
                (ELSEWHERE_STREAM_WINDOW, ELSEWHERE_CONNECTION_WINDOW)
            }
        };
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .max_header_list_size(u32::try_from(MAX_HEAD).expect("MAX_HEAD is a small constant"))
            .max_send_buf_size(MAX_SEND_BUFFER);
        let handshake = builder.handshake::<_, RequestBody>(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(DialError::Handshake)?;
        self.drive(upstream, connection);
        Ok(upstream.shared().add(sender))
    }

    async fn connect(&self, upstream: &Upstream) -> Result<Box<dyn Stream>, DialError> {
        let dialling = async {
            match upstream.site() {
                Site::Instance(endpoint) => self.gate.dial(endpoint).await,
                Site::Location(way) => self.others.connect(way, &self.own).await,
            }
        };
        let dialling = tokio::time::timeout(self.limit, dialling).await;
        dialling.map_err(|_| DialError::TimedOut)?.map_err(DialError::Connect)
    }

    /// Looks now and then whether a location that is reached through another one can be dialled.
    pub async fn look_directly(&self, location: &Location) {
        location.look_directly(&self.own, (self.look, self.limit)).await;
    }

    fn drive<C>(&self, upstream: &Upstream, connection: C)
    where
        C: Future<Output = hyper::Result<()>> + Send + 'static,
    {
        let (end, site) = (self.end.clone(), upstream.site().to_string());
        self.tasks.spawn(async move {
            let outcome = tokio::select! {
                outcome = connection => outcome,
                () = end.cancelled() => Ok(()),
            };
            if let Err(error) = outcome {
                // Whoever had a request on it is told the same and answers for it.
                tracing::debug!(site, error = &error as &dyn Error, "a connection broke");
            }
        });
    }
}

/// Puts an endpoint that takes no connection aside.
pub(super) fn note_failed(upstream: &Upstream, error: &DialError) {
    let (site, error) = (upstream.site(), error as &dyn Error);
    match site {
        Site::Instance(Endpoint { instance, address, .. }) => tracing::info!(
            %instance, %address, error, "an instance that should be healthy accepts no connection"
        ),
        Site::Location(Way { location, address, .. }) => {
            tracing::info!(%location, ?address, error, "another location takes no connection");
        }
    }
    upstream.note_failed(Instant::now());
}
