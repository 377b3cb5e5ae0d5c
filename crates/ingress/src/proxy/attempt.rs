//! One try to have a request answered by one endpoint.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Proxy;
use super::body::{Progress, RequestBody};
use crate::fault::Fault;
use crate::gate::NodeGate;
use crate::upstream::{Sender, Upstream};

/// Why an endpoint did not answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing of the request was sent; here it is.
    NotSent(Box<Request<RequestBody>>),
    /// Something of it may have been sent.
    Sent(Fault),
    /// All of it may have been sent, and the connection ended without an answer.
    Closed,
}

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
enum DialError {
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
    limit: Duration,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Dialler {
    pub fn new(gate: Arc<dyn NodeGate>, limit: Duration, end: CancellationToken) -> Self {
        Self { gate, limit, tasks: TaskTracker::new(), end }
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

    async fn dial(&self, upstream: &Upstream) -> Result<Sender, DialError> {
        let dialling = tokio::time::timeout(self.limit, self.gate.dial(upstream.endpoint())).await;
        let stream = dialling.map_err(|_| DialError::TimedOut)?.map_err(DialError::Connect)?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(DialError::Handshake)?;
        let (end, instance) = (self.end.clone(), upstream.endpoint().instance.clone());
        self.tasks.spawn(async move {
            let outcome = tokio::select! {
                outcome = connection.with_upgrades() => outcome,
                () = end.cancelled() => Ok(()),
            };
            if let Err(error) = outcome {
                // Whoever had a request on it is told the same and answers for it.
                tracing::debug!(%instance, error = &error as &dyn Error, "a connection broke");
            }
        });
        Ok(sender)
    }
}

impl Proxy {
    /// Sends a request to an endpoint and waits for the head of its answer.
    pub(super) async fn attempt(
        &self,
        upstream: &Upstream,
        mut request: Request<RequestBody>,
        progress: &Progress,
    ) -> Result<(Response<Incoming>, Sender), Failed> {
        while let Some(mut sender) = upstream.take_idle() {
            let repetition = repetition(&request);
            match (self.send(&mut sender, request, progress).await, repetition) {
                // The instance closed this connection before the request was written.
                (Err(Failed::NotSent(unsent)), _) => request = *unsent,
                // It closed it while the request was on its way, as servers do with a connection
                // that was idle. The other idle ones may be closing too.
                (Err(Failed::Closed), Some(repetition)) => {
                    request = repetition;
                    break;
                }
                (Ok(answer), _) => {
                    upstream.note_connected();
                    return Ok((answer, sender));
                }
                (Err(failed), _) => return Err(failed),
            }
        }
        let mut sender = match self.dialler.dial(upstream).await {
            Ok(sender) => sender,
            Err(error) => {
                note_failed(upstream, &error);
                return Err(Failed::NotSent(Box::new(request)));
            }
        };
        upstream.note_connected();
        progress.touch();
        let answer = self.send(&mut sender, request, progress).await?;
        Ok((answer, sender))
    }

    async fn send(
        &self,
        sender: &mut Sender,
        request: Request<RequestBody>,
        progress: &Progress,
    ) -> Result<Response<Incoming>, Failed> {
        let outcome = tokio::select! {
            outcome = sender.try_send_request(request) => outcome,
            () = progress.silence(self.limits.silence) => {
                let fault = match progress.awaits_client() {
                    true => Fault::ClientSilent,
                    false => Fault::Silent,
                };
                return Err(Failed::Sent(fault));
            }
        };
        progress.touch();
        outcome.map_err(|mut error| match error.take_message() {
            Some(unsent) => Failed::NotSent(Box::new(unsent)),
            None => {
                let error = error.into_error();
                tracing::debug!(error = &error as &dyn Error, "a request broke off");
                match is_closed(&error) {
                    true => Failed::Closed,
                    false => Failed::Sent(Fault::Broken),
                }
            }
        })
    }
}

/// The same request once more, where that cannot be noticed: it asks for something and changes
/// nothing (RFC 9110, 9.2.1), and has no body.
fn repetition(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(request.body().empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// True when the connection ended, and not when there was an answer that is no HTTP.
fn is_closed(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let by_reset = source.is_some_and(|error| {
        matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    });
    error.is_incomplete_message() || error.is_closed() || by_reset
}

fn note_failed(upstream: &Upstream, error: &DialError) {
    let endpoint = upstream.endpoint();
    tracing::info!(
        instance = %endpoint.instance,
        address = %endpoint.address,
        error = error as &dyn Error,
        "an instance that should be healthy accepts no connection"
    );
    upstream.note_failed(Instant::now());
}
