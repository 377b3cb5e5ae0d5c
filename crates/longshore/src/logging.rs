//! The log of a process: lines on standard error that begin with the role, so that the lines of all
//! roles of a platform can share one terminal or journal.
//!
//! Each role writes to the inherited standard error itself. Rejected: a pipe through the supervisor
//! that adds the prefix. It would end with the supervisor, and a role that goes on for a moment to
//! shut itself down would fail at its next line.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable that says what is logged, for processes without such a flag.
pub const VARIABLE: &str = "LONGSHORE_LOG";

/// Begins to log as `role`, what `filter` lets through. A panic is logged as well.
pub fn begin(role: &'static str, filter: &str) {
    let format = Prefixed { role, format: Format::default().with_target(false) };
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        // It would tell of a full disk by a panic: standard error may lie on that disk too.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .event_format(format)
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
    }));
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
