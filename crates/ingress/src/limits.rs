//! What bounds the ingress: every queue, buffer and wait has its number here.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::balance::Times;

/// Connections from users at one time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16_384;
/// Requests and upgraded connections at one time; more are answered with 503.
const MAX_REQUESTS: usize = 8_192;
/// The largest head of a request, and the most that is read ahead of one HTTP/1 connection, bytes.
pub(crate) const MAX_HEAD: usize = 64 << 10;
/// Requests at one time on one HTTP/2 connection.
pub(crate) const MAX_STREAMS: u32 = 256;
/// The most that is buffered of one answer on an HTTP/2 connection, bytes.
pub(crate) const MAX_SEND_BUFFER: usize = 64 << 10;

/// The most that is read ahead of one answer of an instance that speaks HTTP/2, bytes.
pub(crate) const HTTP2_STREAM_WINDOW: u32 = 128 << 10;
/// The same for all answers on one connection: room for each, so that users who read slowly never
/// hold up the others on it.
pub(crate) const HTTP2_CONNECTION_WINDOW: u32 = 100 * HTTP2_STREAM_WINDOW;

/// The same for an answer of another location: as far ahead as a stream can be at 150 ms and 28 Mbit/s.
pub(crate) const ELSEWHERE_STREAM_WINDOW: u32 = 512 << 10;
/// And for all on one connection to it.
pub(crate) const ELSEWHERE_CONNECTION_WINDOW: u32 = 100 * ELSEWHERE_STREAM_WINDOW;
/// How often the other end of such a connection is asked whether it is there, while requests are on it.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long it may take to say so.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// Connections from other locations at one time.
pub(crate) const MAX_GUESTS: usize = 1_024;

/// Connections between other locations that are carried at one time.
pub(crate) const MAX_CARRIED: usize = 1_024;

/// The limits that tests shorten.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Connections from users at one time.
    pub connections: usize,
    /// Requests at one time.
    pub requests: usize,
    /// Until an instance accepts a connection.
    pub connect: Duration,
    /// Without a byte of a request or its answer, while one of them is awaited.
    pub silence: Duration,
    /// From the opening of a connection, or the end of an HTTP/1 request, to the end of the head of
    /// the next one.
    pub head: Duration,
    /// Without a request on a connection that had one.
    pub idle: Duration,
    /// Between two looks whether a location that is reached through another one can be dialled.
    pub look: Duration,
    /// Of outlier ejection.
    pub outliers: Times,
    /// For requests in flight at shutdown. The supervisor kills after 20 seconds.
    pub drain: Duration,
}

impl Limits {
    /// Limits for a process that may open so many files. A request takes a socket at each end, and
    /// HTTP/2 carries many requests on one.
    pub fn within(open_files: usize) -> Self {
        Self {
            connections: MAX_CONNECTIONS.min(open_files / 2),
            requests: MAX_REQUESTS.min(open_files / 4),
            connect: Duration::from_secs(2),
            silence: Duration::from_secs(60),
            head: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            look: Duration::from_secs(60),
            outliers: Times::default(),
            drain: Duration::from_secs(15),
        }
    }
}

/// Raises the soft limit of open files, often 1,024, to the hard one; returns what holds now.
pub(crate) fn raise_open_files() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let holds = match raised {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, ?current, "cannot raise the limit of open files");
            current
        }
    };
    holds.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}
