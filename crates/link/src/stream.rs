//! Streams of JSON lines as answers.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http::header;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The media type of JSON lines.
pub const JSON_LINES: &str = "application/jsonl";

/// How often an idle stream sends a blank line, so that a reader can tell a quiet peer from a lost
/// one. [`crate::Client::watch`] gives up after three missing ones.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// Answers with `items` as JSON lines, blank lines between them when idle, until `items` ends or
/// `shutdown`.
pub fn json_lines<T: Serialize + Send>(
    items: impl Stream<Item = T> + Send + 'static,
    shutdown: CancellationToken,
) -> Response {
    let lines = items.map(|item| {
        let mut line = serde_json::to_vec(&item)
            .expect("wire types have string keys and no failing serializers");
        line.push(b'\n');
        line.into()
    });
    streamed(JSON_LINES, beating(lines, b"\n"), shutdown)
}

/// The pieces, and `beat` whenever none comes for [`HEARTBEAT`].
pub(crate) fn beating(
    pieces: impl Stream<Item = Bytes> + Send + 'static,
    beat: &'static [u8],
) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::unfold(Some(Box::pin(pieces)), move |state| async move {
        let mut pieces = state?;
        match tokio::time::timeout(HEARTBEAT, pieces.next()).await {
            Err(_idle) => Some((Bytes::from_static(beat), Some(pieces))),
            Ok(None) => None,
            Ok(Some(piece)) => Some((piece, Some(pieces))),
        }
    })
}

/// Answers with pieces as they come, until they end or `shutdown`.
pub(crate) fn streamed(
    media_type: &'static str,
    pieces: impl Stream<Item = Bytes> + Send + 'static,
    shutdown: CancellationToken,
) -> Response {
    let pieces = pieces.take_until(shutdown.cancelled_owned()).map(Ok::<_, Infallible>);
    let headers = [(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")];
    (headers, axum::body::Body::from_stream(pieces)).into_response()
}

/// The values of a `watch` channel as they change, the present one first, those in between left
/// out. Ends when the sender is gone.
pub fn watch_lines<T: Clone + Send + Sync + 'static>(
    mut receiver: watch::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    receiver.mark_changed();
    stream::unfold(receiver, |mut receiver| async {
        receiver.changed().await.ok()?;
        let value = receiver.borrow_and_update().clone();
        Some((value, receiver))
    })
}

/// Passes an answer of another service on as it comes, until it ends or `shutdown`.
pub fn relay(answer: http::Response<Incoming>, shutdown: CancellationToken) -> Response {
    let (parts, body) = answer.into_parts();
    let body = body.into_data_stream().take_until(shutdown.cancelled_owned());
    let mut response = Response::new(axum::body::Body::from_stream(body));
    *response.status_mut() = parts.status;
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    response
}
