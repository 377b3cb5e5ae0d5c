//! One try to have a request answered by one endpoint.

use std::error::Error;
use std::io;

use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::TrySendError;
use longshore_types::AppProtocol;

use super::body::{Progress, RequestBody};
use super::dial::note_failed;
use super::lease::Connection;
use super::{Proxy, headers};
use crate::fault::Fault;
use crate::upstream::{Sender, Upstream};

/// Why an endpoint did not answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing of the request was sent, or the instance says that it did nothing for it; here it is.
    NotSent(Box<Request<RequestBody>>),
    /// Something of it may have been sent.
    Sent(Fault),
    /// All of it may have been sent, and the connection ended without an answer.
    Closed,
    /// The instance says that it did nothing for it.
    Refused,
}

impl Proxy {
    /// Sends a request to an endpoint and waits for the head of its answer.
    pub(super) async fn attempt(
        &self,
        upstream: &Upstream,
        mut request: Request<RequestBody>,
        progress: &Progress,
    ) -> Result<(Response<Incoming>, Connection), Failed> {
        let is_upgrade = request.headers().contains_key(http::header::UPGRADE);
        let protocol = upstream.site().protocol(is_upgrade);
        headers::form_for(protocol, &mut request);
        match protocol {
            AppProtocol::Http1 => {
                let (answer, sender) = self.attempt_alone(upstream, request, progress).await?;
                Ok((answer, Connection::Own(sender)))
            }
            AppProtocol::H2c => self.attempt_shared(upstream, request, progress).await,
        }
    }

    async fn attempt_alone(
        &self,
        upstream: &Upstream,
        mut request: Request<RequestBody>,
        progress: &Progress,
    ) -> Result<(Response<Incoming>, Sender), Failed> {
        while let Some(mut sender) = upstream.take_idle() {
            let repetition = repetition(&request).filter(|request| request.method().is_safe());
            let sending = sender.try_send_request(request);
            match (self.answered(sending, progress).await, repetition) {
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
        let answer = self.answered(sender.try_send_request(request), progress).await?;
        Ok((answer, sender))
    }

    async fn attempt_shared(
        &self,
        upstream: &Upstream,
        mut request: Request<RequestBody>,
        progress: &Progress,
    ) -> Result<(Response<Incoming>, Connection), Failed> {
        // The second time for a connection that was found closed, or closes under a safe request.
        let mut may_repeat = true;
        loop {
            let mut place = match self.dialler.place(upstream).await {
                Ok(place) => place,
                Err(error) => {
                    note_failed(upstream, &error);
                    return Err(Failed::NotSent(Box::new(request)));
                }
            };
            upstream.note_connected();
            progress.touch();
            let again = repetition(&request);
            let sending = place.sender.try_send_request(request);
            request = match (self.answered(sending, progress).await, again) {
                (Ok(answer), _) => return Ok((answer, Connection::Shared { _place: place })),
                (Err(Failed::NotSent(unsent)), _) if may_repeat => *unsent,
                (Err(Failed::Closed), Some(again)) if may_repeat && again.method().is_safe() => {
                    again
                }
                // Another endpoint may have room.
                (Err(Failed::Refused), Some(again)) => {
                    return Err(Failed::NotSent(Box::new(again)));
                }
                (Err(failed), _) => return Err(failed),
            };
            may_repeat = false;
        }
    }

    async fn answered(
        &self,
        sending: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
        progress: &Progress,
    ) -> Result<Response<Incoming>, Failed> {
        let outcome = tokio::select! {
            outcome = sending => outcome,
            () = progress.silence() => {
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
                if is_refused(&error) {
                    Failed::Refused
                } else if is_closed(&error) {
                    Failed::Closed
                } else {
                    Failed::Sent(Fault::Broken)
                }
            }
        })
    }
}

/// The same request once more, when it has no body. It may be sent where the first cannot be noticed:
/// nothing was done for it, or it asks for something and changes nothing (RFC 9110, 9.2.1).
pub(super) fn repetition(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.body().is_end_stream() {
        return None;
    }
    Some(with_head_of(request, request.body().empty()))
}

/// Another body under the head of a request.
pub(super) fn with_head_of<A, B>(request: &Request<A>, body: B) -> Request<B> {
    let mut again = Request::new(body);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    again
}

/// True when the connection ended, and not when there was an answer that is no HTTP.
fn is_closed(error: &hyper::Error) -> bool {
    let by_reset = |error: &io::Error| {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        // The last is TLS whose other end died without a word.
        matches!(error.kind(), ConnectionReset | BrokenPipe | UnexpectedEof)
    };
    let by_reset = match error.source() {
        Some(source) => {
            let io_of_http2 = || source.downcast_ref().and_then(h2::Error::get_io);
            source.downcast_ref().or_else(io_of_http2).is_some_and(by_reset)
        }
        None => false,
    };
    error.is_incomplete_message() || error.is_closed() || by_reset
}

/// True when the instance reset the request without a look at it (RFC 9113, 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    let http2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    http2.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}
