//! Server-sent events: the frames, as an answer and as they are read.
//!
//! Browsers know the format, and whoever lost the connection says with `Last-Event-ID` how far they
//! came. Between our own roles whole states travel as JSON lines instead, which need neither.

use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http::{HeaderMap, header};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::stream::{beating, streamed};

/// The media type of a stream of events.
pub const EVENT_STREAM: &str = "text/event-stream";
/// The header by which a reader says which event it saw last.
pub(crate) const LAST_EVENT_ID: &str = "last-event-id";

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerSentEvent {
    /// What a reader that lost the connection gives back, to go on after this one.
    pub id: Option<String>,
    /// Its kind; `message` when the sender does not say.
    pub name: String,
    /// What it says.
    pub data: String,
}

/// An event as it is sent. `value` is sent as JSON, which has no line ends that could end the event.
pub fn event_frame<T: Serialize>(name: &str, id: &str, value: &T) -> Bytes {
    let data = serde_json::to_string(value)
        .expect("wire types have string keys and no failing serializers");
    format!("event: {name}\nid: {id}\ndata: {data}\n\n").into()
}

/// True when the sender of a request would rather have events than JSON.
pub fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case(EVENT_STREAM)
    })
}

/// Answers with frames, comments between them when idle, until they end or `shutdown`.
pub fn event_stream(
    frames: impl Stream<Item = Bytes> + Send + 'static,
    shutdown: CancellationToken,
) -> Response {
    // The first bytes go out at once: a reader learns that it is connected, and when to try again.
    let first = stream::once(async { Bytes::from_static(b"retry: 1000\n\n") });
    streamed(EVENT_STREAM, first.chain(beating(frames, b":\n\n")), shutdown)
}

/// Which event the sender of a request saw last, if it says.
pub fn last_event(headers: &HeaderMap) -> Option<&str> {
    headers.get(LAST_EVENT_ID)?.to_str().ok()
}

/// Puts events together from the lines of a stream.
#[derive(Debug, Default)]
pub(crate) struct EventParser {
    event: ServerSentEvent,
    data: Option<String>,
}

impl EventParser {
    /// Takes a line without its end; an event when the line ends one.
    pub fn line(&mut self, line: &str) -> Option<ServerSentEvent> {
        if line.is_empty() {
            let mut event = std::mem::take(&mut self.event);
            event.data = self.data.take()?;
            if event.name.is_empty() {
                event.name.push_str("message");
            }
            return Some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.name = value.to_owned(),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // Comments, and fields that are not ours.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_again() {
        let frame = event_frame("state", "7", &serde_json::json!({"text": "a\nb"}));
        let text = String::from_utf8(frame.to_vec()).unwrap();
        let mut parser = EventParser::default();
        let stream = format!("retry: 1000\n\n:\n\n{text}");
        let events: Vec<_> = stream.lines().filter_map(|line| parser.line(line)).collect();
        let data = r#"{"text":"a\nb"}"#.to_owned();
        assert_eq!(
            events,
            [ServerSentEvent { id: Some("7".to_owned()), name: "state".to_owned(), data }]
        );
    }

    #[test]
    fn data_in_many_lines_is_one_event() {
        let mut parser = EventParser::default();
        for line in ["data:a", "data", "data: b"] {
            assert_eq!(parser.line(line), None);
        }
        let event = parser.line("").unwrap();
        assert_eq!((event.name.as_str(), event.data.as_str()), ("message", "a\n\nb"));
    }

    #[test]
    fn events_are_sent_to_who_accepts_them() {
        let wants = |accept: &str| {
            wants_events(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]))
        };
        assert!(wants("text/event-stream"));
        assert!(wants("application/json;q=0.1, Text/Event-Stream;q=0.9"));
        assert!(!wants("*/*") && !wants("application/json"));
    }
}
