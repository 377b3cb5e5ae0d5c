//! Bodies that are sent and read as they come, however long they are.
//!
//! How long one takes says nothing, so nothing but silence is limited: of a service that takes no bytes,
//! or sends none. Whoever waits for its own source is not silent. A body that cannot be sent to its end
//! breaks the connection off, so that nobody takes the half of it for the whole.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::next_data;
use crate::{CallError, Client};

/// How long a service may take no bytes, or send none.
const SILENCE: Duration = Duration::from_secs(60);

/// A body as it is read. It ends with an error when it is not whole.
pub type ByteStream = stream::BoxStream<'static, Result<Bytes, CallError>>;

/// When something was last taken of a body, and whether more is wanted than there is.
#[derive(Debug)]
struct Progress {
    at: Instant,
    waits_for_source: bool,
}

/// A body that notes how it is taken.
struct Watched<S> {
    body: S,
    progress: Arc<Mutex<Progress>>,
}

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let polled = self.body.poll_next_unpin(cx);
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        *progress = Progress { at: Instant::now(), waits_for_source: polled.is_pending() };
        polled
    }
}

impl Client {
    /// Sends a body as it comes, and waits for the answer to all of it.
    ///
    /// # Errors
    ///
    /// When the service refuses, or takes nothing for a minute.
    pub async fn upload<E>(
        &self,
        method: Method,
        path: &str,
        media_type: &'static str,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<http::Response<Incoming>, CallError>
    where
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let begun = Progress { at: Instant::now(), waits_for_source: false };
        let progress = Arc::new(Mutex::new(begun));
        let body = Watched { body: Box::pin(body), progress: Arc::clone(&progress) };
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        let headers = HeaderMap::from_iter([kind]);
        let mut call = pin!(self.exchange(method, path, Body::from_stream(body), headers));
        loop {
            let deadline = {
                let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                let from = if progress.waits_for_source { Instant::now() } else { progress.at };
                from + SILENCE
            };
            tokio::select! {
                answer = &mut call => return answer,
                () = sleep_until(deadline) => {
                    let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                    if !progress.waits_for_source && progress.at + SILENCE <= Instant::now() {
                        return Err(CallError::TimedOut { endpoint: self.endpoint().clone() });
                    }
                }
            }
        }
    }

    /// `GET path`, answered by bytes.
    ///
    /// # Errors
    ///
    /// When the service refuses. The bytes end with an error when the service falls silent for a minute,
    /// or breaks off.
    pub async fn download(&self, path: &str) -> Result<ByteStream, CallError> {
        let answer = self.send(Method::GET, path, None::<&()>).await?;
        let endpoint = self.endpoint().clone();
        let bytes = stream::try_unfold(answer.into_body(), move |mut body| {
            let endpoint = endpoint.clone();
            async move {
                let data = next_data(&mut body, SILENCE, &endpoint).await?;
                Ok(data.map(|data| (data, body)))
            }
        });
        Ok(bytes.boxed())
    }
}

/// Answers with bytes as they come. An error among them, or `shutdown`, breaks the answer off, and its
/// reader sees that it is not whole.
pub fn whole_or_broken<E: Display + 'static>(
    media_type: HeaderValue,
    bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    shutdown: CancellationToken,
) -> Response {
    let is_over = shutdown.clone();
    let end = stream::once(async move { is_over.is_cancelled() });
    let cut = end.filter_map(|is_cut| {
        let error = is_cut.then(|| Err(io::Error::other("the service is shutting down")));
        std::future::ready(error)
    });
    let bytes = bytes
        .map_err(|error| io::Error::other(error.to_string()))
        .take_until(shutdown.cancelled_owned())
        .chain(cut);
    let mut response = Response::new(Body::from_stream(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    let nowhere = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, nowhere);
    response
}

/// Passes an answer of another service on as it comes, and breaks off when that does, or at `shutdown`.
pub fn relay_whole(answer: http::Response<Incoming>, shutdown: CancellationToken) -> Response {
    let (parts, body) = answer.into_parts();
    let unknown = HeaderValue::from_static("application/octet-stream");
    let kind = parts.headers.get(header::CONTENT_TYPE).cloned().unwrap_or(unknown);
    let mut response = whole_or_broken(kind, body.into_data_stream(), shutdown);
    *response.status_mut() = parts.status;
    response
}

#[cfg(test)]
mod tests;
