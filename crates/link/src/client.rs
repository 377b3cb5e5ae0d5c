//! Calls to other services.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client as HttpClient, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo};
use longshore_api::Problem;
use longshore_trust::{Name, public_name};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::Endpoint;
use crate::reverse::Waiting;
use crate::sse::{EVENT_STREAM, EventParser, LAST_EVENT_ID, ServerSentEvent};
use crate::stream::HEARTBEAT;
use crate::tls::Expecting;

/// How long a call may take until its answer begins and, when it is not a stream, ends.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take to come about: a machine that is gone refuses nothing.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The largest answer that is read whole.
const MAX_ANSWER: usize = 64 << 20;
/// The longest line of a stream: a whole state of a location.
const MAX_LINE: usize = 64 << 20;

/// As much is told of what a registry says of a refusal, in characters.
const MAX_DETAIL: usize = 1000;
/// The status of an answer to who asks too often.
const TOO_MANY_REQUESTS: u16 = 429;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answers there.
    #[error("cannot reach {endpoint}")]
    Unreachable {
        /// Where.
        endpoint: Endpoint,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time, or a stream without a sign of life.
    #[error("no answer from {endpoint} in time")]
    TimedOut {
        /// Where.
        endpoint: Endpoint,
    },
    /// The service refused, and says why.
    #[error("{0}")]
    Refused(Problem),
    /// An error without a problem document, from a service that is not one of ours.
    #[error("{endpoint} answered with status {status}{}", told(detail.as_deref()))]
    Status {
        /// Where.
        endpoint: Endpoint,
        /// The HTTP status.
        status: u16,
        /// What a registry says about it.
        detail: Option<String>,
    },
    /// The answer is not what was expected.
    #[error("{endpoint} gave an answer that cannot be understood: {detail}")]
    Malformed {
        /// Where.
        endpoint: Endpoint,
        /// What is wrong with it.
        detail: String,
    },
}

fn told(detail: Option<&str>) -> String {
    detail.map(|detail| format!(": {detail}")).unwrap_or_default()
}

/// The text of a refusal as registries of images write it.
fn of_registry(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<OneError>,
    }
    #[derive(Deserialize)]
    struct OneError {
        message: String,
    }
    let mut errors = serde_json::from_slice::<Errors>(body).ok()?.errors;
    errors.pop().map(|error| error.message.chars().take(MAX_DETAIL).collect())
}

impl CallError {
    /// True when the same call may succeed later without anything else being changed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Refused(Problem { status, .. }) | Self::Status { status, .. } => {
                *status >= 500 || *status == TOO_MANY_REQUESTS
            }
            Self::Malformed { .. } => false,
        }
    }
}

/// A client of one service. Cheap to clone; connections are kept and shared.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<String>,
    /// Sent with every call.
    headers: HeaderMap,
    http: HttpClient<Connector, Body>,
}

impl Client {
    /// A client of the service at `endpoint`. Connects when first used. One of [`Endpoint::Tls`] can
    /// be reached by [`Self::secured`] alone.
    pub fn new(endpoint: Endpoint) -> Self {
        Self::dialling(endpoint, None)
    }

    /// The same where TLS is spoken: shows what `config` has, and expects to find `name` there.
    pub fn secured(endpoint: Endpoint, config: Arc<ClientConfig>, name: Name) -> Self {
        Self::dialling(endpoint, Some(Expecting::new(config, &name)))
    }

    /// The same of a server of users, which is called what the endpoint says: shows nothing, and trusts whom
    /// `config` does. One without TLS is a client as of [`Self::new`].
    pub fn public(endpoint: Endpoint, config: Arc<ClientConfig>) -> Self {
        let name = match &endpoint {
            Endpoint::Tls(authority) => public_name(authority),
            Endpoint::Unix(_) | Endpoint::Tcp(_) => None,
        };
        let expecting = name.map(|name| Expecting::server(config, name));
        Self::dialling(endpoint, expecting)
    }

    fn dialling(endpoint: Endpoint, expecting: Option<Expecting>) -> Self {
        Self::connecting(Connector::Dial(endpoint.clone(), expecting), endpoint)
    }

    /// A client of who keeps connections open for this.
    pub(crate) fn reversed(waiting: Arc<Waiting>) -> Self {
        let endpoint = Endpoint::Tls(waiting.peer().to_owned());
        Self::connecting(Connector::Reverse(waiting), endpoint)
    }

    fn connecting(connector: Connector, endpoint: Endpoint) -> Self {
        let mut http = HttpClient::builder(TokioExecutor::new());
        if let Connector::Reverse(_) = connector {
            // One that was used and then idle for long may lead nowhere by now; each is taken anew.
            http.pool_max_idle_per_host(0);
        }
        let http = http.build(connector);
        Self { endpoint, token: None, headers: HeaderMap::new(), http }
    }

    /// The same client, showing `token` with every call.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The same client, sending a header with every call.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Where the service is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `GET path`, answered in JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// A call with an optional JSON body, answered in JSON. An empty answer reads as `null`.
    pub async fn call<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, CallError> {
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            let bytes = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let bytes = bytes.map_err(|error| self.malformed(error))?.to_bytes();
            let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            serde_json::from_slice(text).map_err(|error| self.malformed(error))
        };
        self.in_time(exchange).await
    }

    /// A call whose answer is read by the caller as it comes.
    pub async fn send<B: Serialize + Sync>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Response<Incoming>, CallError> {
        self.send_with(method, path, body, HeaderMap::new()).await
    }

    /// The same with more headers; the answer may also be to switch protocols.
    pub(crate) async fn send_with<B: Serialize + Sync>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, CallError> {
        let mut headers = headers;
        let body = match body {
            Some(body) => {
                let kind = HeaderValue::from_static("application/json");
                headers.insert(header::CONTENT_TYPE, kind);
                serde_json::to_vec(body).map_err(|error| self.malformed(error))?.into()
            }
            None => Bytes::new(),
        };
        self.in_time(self.exchange(method, path, body.into(), headers)).await
    }

    /// One request, however long it takes, and its answer when that is not a refusal.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Body,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, CallError> {
        let answer = self.request(method, path, body, headers)?.await;
        let answer = answer.map_err(|error| self.unreachable(error))?;
        if answer.status().is_success() || answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        Err(self
            .in_time(async { Ok(self.refusal(answer).await) })
            .await
            .unwrap_or_else(|error| error))
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
        headers: HeaderMap,
    ) -> Result<ResponseFuture, CallError> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.endpoint.authority())
            .path_and_query(path)
            .build()
            .map_err(|error| self.malformed(error))?;
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut request = request.body(body).map_err(|error| self.malformed(error))?;
        request.headers_mut().extend(headers);
        Ok(self.http.request(request))
    }

    async fn refusal(&self, answer: Response<Incoming>) -> CallError {
        let status = answer.status();
        let body = match Limited::new(answer.into_body(), MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return self.malformed(error),
        };
        match serde_json::from_slice(&body) {
            Ok(problem) => CallError::Refused(problem),
            Err(_) => CallError::Status {
                endpoint: self.endpoint.clone(),
                status: status.as_u16(),
                detail: of_registry(&body),
            },
        }
    }

    /// `GET path`, answered by a stream of JSON lines.
    pub async fn watch<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Result<LineStream<T>, CallError> {
        self.lines(Method::GET, path, None::<&()>).await
    }

    /// A call answered by a stream of JSON lines. The stream ends with the answer, or with an error
    /// when the service falls silent or the connection breaks.
    pub async fn lines<B: Serialize + Sync, T: DeserializeOwned + Send + 'static>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<LineStream<T>, CallError> {
        let answer = self.send(method, path, body).await?;
        let reader = LineReader::new(answer, self.endpoint.clone());
        let lines = stream::try_unfold(reader, |mut reader| async move {
            while let Some(line) = reader.next_line().await? {
                if !line.trim_ascii().is_empty() {
                    let value =
                        serde_json::from_slice(&line).map_err(|error| reader.malformed(error))?;
                    return Ok(Some((value, reader)));
                }
            }
            Ok(None)
        });
        Ok(lines.boxed())
    }

    /// `GET path`, answered by a stream of events: those after the one named `after`, else from now on.
    /// Ends as [`Self::lines`] does.
    pub async fn events(&self, path: &str, after: Option<&str>) -> Result<EventStream, CallError> {
        let mut client = self.clone().with_header("accept", HeaderValue::from_static(EVENT_STREAM));
        if let Some(id) = after {
            let id = HeaderValue::from_str(id).map_err(|error| self.malformed(error))?;
            client = client.with_header(LAST_EVENT_ID, id);
        }
        let answer = client.send(Method::GET, path, None::<&()>).await?;
        let reader = LineReader::new(answer, self.endpoint.clone());
        let state = (reader, EventParser::default());
        let events = stream::try_unfold(state, |(mut reader, mut parser)| async move {
            while let Some(line) = reader.next_line().await? {
                let text = std::str::from_utf8(&line).map_err(|error| reader.malformed(error))?;
                if let Some(event) = parser.line(text.trim_end_matches(['\r', '\n'])) {
                    return Ok(Some((event, (reader, parser))));
                }
            }
            Ok(None)
        });
        Ok(events.boxed())
    }

    pub(crate) fn unreachable(
        &self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> CallError {
        CallError::Unreachable { endpoint: self.endpoint.clone(), source: error.into() }
    }

    pub(crate) fn malformed(&self, detail: impl ToString) -> CallError {
        CallError::Malformed { endpoint: self.endpoint.clone(), detail: detail.to_string() }
    }

    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::TimedOut { endpoint: self.endpoint.clone() }),
        }
    }
}

/// The values of a stream of JSON lines.
pub type LineStream<T> = stream::BoxStream<'static, Result<T, CallError>>;

/// The events of a stream of them.
pub type EventStream = stream::BoxStream<'static, Result<ServerSentEvent, CallError>>;

/// The next bytes of a body, whose sender may be silent for so long; none at its end.
pub(crate) async fn next_data(
    body: &mut Incoming,
    silence: Duration,
    endpoint: &Endpoint,
) -> Result<Option<Bytes>, CallError> {
    loop {
        match tokio::time::timeout(silence, body.frame()).await {
            Err(_) => return Err(CallError::TimedOut { endpoint: endpoint.clone() }),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                let (endpoint, source) = (endpoint.clone(), error.into());
                return Err(CallError::Unreachable { endpoint, source });
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Cuts a body into lines.
struct LineReader {
    body: Incoming,
    buffer: BytesMut,
    endpoint: Endpoint,
}

impl LineReader {
    fn new(answer: Response<Incoming>, endpoint: Endpoint) -> Self {
        Self { body: answer.into_body(), buffer: BytesMut::new(), endpoint }
    }

    /// The next line with its end; `None` at the end of the body. What follows the last line end
    /// is a torn line and is dropped.
    async fn next_line(&mut self) -> Result<Option<BytesMut>, CallError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.split_to(searched + end + 1)));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(self.malformed("a line is longer than 64 MiB"));
            }
            match next_data(&mut self.body, 3 * HEARTBEAT, &self.endpoint).await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None => return Ok(None),
            }
        }
    }

    fn malformed(&self, detail: impl ToString) -> CallError {
        CallError::Malformed { endpoint: self.endpoint.clone(), detail: detail.to_string() }
    }
}

/// Connects to one service, whatever the URI says.
#[derive(Debug, Clone)]
enum Connector {
    Dial(Endpoint, Option<Expecting>),
    /// Over what the service opened itself.
    Reverse(Arc<Waiting>),
}

impl tower_service::Service<Uri> for Connector {
    type Response = Dialled;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let (endpoint, expecting) = match connector {
                Self::Dial(endpoint, expecting) => (endpoint, expecting),
                Self::Reverse(waiting) => {
                    return Ok(Dialled::Reverse(waiting.take().await?.into_inner()));
                }
            };
            Ok(match endpoint {
                Endpoint::Unix(path) => {
                    Dialled::Unix(TokioIo::new(UnixStream::connect(path).await?))
                }
                Endpoint::Tcp(authority) => {
                    let connected = TcpStream::connect(authority);
                    let stream = tokio::time::timeout(CONNECT_WITHIN, connected).await??;
                    stream.set_nodelay(true)?;
                    Dialled::Tcp(TokioIo::new(stream))
                }
                Endpoint::Tls(authority) => {
                    let none = || io::Error::other("it is not said whom to expect there");
                    let expecting = expecting.ok_or_else(none)?;
                    let dialled = expecting.dial(&authority);
                    let stream = tokio::time::timeout(CONNECT_WITHIN, dialled).await??;
                    Dialled::Tls(Box::new(TokioIo::new(stream)))
                }
            })
        })
    }
}

/// A connection of any kind.
enum Dialled {
    Unix(TokioIo<UnixStream>),
    Tcp(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
    Reverse(Upgraded),
}

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Calls the same method of whichever connection it is.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Dialled::Unix($stream) => $call,
            Dialled::Tcp($stream) => $call,
            Dialled::Tls($stream) => $call,
            Dialled::Reverse($stream) => $call,
        }
    };
}

impl hyper::rt::Read for Dialled {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl hyper::rt::Write for Dialled {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests;
