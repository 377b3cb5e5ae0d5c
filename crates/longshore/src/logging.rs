//! The log of a process: lines on standard error that begin with the role, so that the lines of all
//! roles of a platform can share one terminal or journal.
//!
//! Each role writes to the inherited standard error itself. Rejected: a pipe through the supervisor
//! that adds the prefix. It would end with the supervisor, and a role that goes on for a moment to
//! shut itself down would fail at its next line.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable that says what is logged, for processes without such a flag.
pub const VARIABLE: &str = "LONGSHORE_LOG";
/// The one that says how.
pub const FORMAT_VARIABLE: &str = "LONGSHORE_LOG_FORMAT";

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people: the role, the time, the level, the spans, the message, its fields.
    #[default]
    Text,
    /// For programs: an object with the same, and the spans with their ids.
    Json,
}

impl LogFormat {
    /// As it is written in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Text, Self::Json].into_iter().find(|one| one.as_str() == text).ok_or(())
    }
}

/// Begins to log as `role`, what `filter` lets through. A panic is logged as well.
pub fn begin(role: &'static str, filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        // It would tell of a full disk by a panic: standard error may lie on that disk too.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => builder
            .with_ansi(io::stderr().is_terminal())
            .event_format(Prefixed { role, format: Format::default().with_target(false) })
            .init(),
        LogFormat::Json => builder.json().event_format(Object::of(role)).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
    }));
}

/// How the environment says that lines look.
pub fn format_of_environment() -> LogFormat {
    let format = std::env::var(FORMAT_VARIABLE).ok();
    format.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// What the environment says is logged.
pub fn filter_of_environment() -> String {
    std::env::var(VARIABLE).unwrap_or_else(|_| "info".to_owned())
}

struct Prefixed {
    role: &'static str,
    format: Format<Full>,
}

impl<S, N> FormatEvent<S, N> for Prefixed
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "{:<8} ", self.role)?;
        self.format.format_event(context, writer, event)
    }
}

/// A line that is an object, of which the first member is the role.
struct Object {
    role: &'static str,
    format: Format<Json>,
}

impl Object {
    fn of(role: &'static str) -> Self {
        let format = Format::default().json().flatten_event(true).with_current_span(false);
        Self { role, format }
    }
}

impl<S, N> FormatEvent<S, N> for Object
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut object = String::new();
        self.format.format_event(context, Writer::new(&mut object), event)?;
        let members = object.strip_prefix('{').ok_or(fmt::Error)?;
        write!(writer, "{{\"role\":\"{}\",{members}", self.role)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is logged, kept.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_for_programs_is_an_object_with_the_role_and_the_ids_of_its_spans() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .json()
            .event_format(Object::of("node"))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("instance", id = "web-1");
            let _inside = span.enter();
            tracing::warn!(seconds = 3, "it \"waits\"");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["role"], "node");
        assert_eq!((&line["level"], &line["message"]), (&"WARN".into(), &"it \"waits\"".into()));
        assert_eq!(line["seconds"], 3);
        assert_eq!(line["spans"][0], serde_json::json!({"name": "instance", "id": "web-1"}));
        assert!(line["timestamp"].is_string() && line["target"].is_string(), "{text}");
    }

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.as_str().parse(), Ok(format));
        }
        assert_eq!("xml".parse::<LogFormat>(), Err(()));
    }
}
