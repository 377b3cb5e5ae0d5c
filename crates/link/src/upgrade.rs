//! Connections that stop being HTTP: passed on as bytes, or ended as WebSockets.
//!
//! A role on the way asks the next one for the same upgrade and then only moves bytes, so that what
//! is said over them is known at both ends alone, and a slow end slows the other down through the
//! buffers of the kernel. `axum`'s own WebSockets were not taken: they run outside of any
//! [`Service`], and cannot be passed on.

use std::future::Future;

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use longshore_api::{Problem, ProblemCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::websocket::{Role, WebSocket};
use crate::{CallError, Client, Refusal, Service};

/// A WebSocket, as `Upgrade` says it.
const WEBSOCKET: &str = "websocket";
/// What a [`Tunnel`] carries, likewise.
const TUNNEL: &str = "tcp";
/// What is moved in one go.
const PASSED_AT_ONCE: usize = 32 << 10;
/// What makes an upgrade, both ways.
const HEADERS: [HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
];

/// A request to turn the connection into something else.
#[derive(Debug)]
pub struct Upgrade {
    headers: HeaderMap,
    connection: OnUpgrade,
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let asked = names(&parts.headers, &header::CONNECTION, "upgrade")
            && parts.headers.contains_key(header::UPGRADE);
        let connection = parts.extensions.remove::<OnUpgrade>().filter(|_| asked);
        let connection = connection.ok_or_else(|| {
            let detail = "this is answered over an upgraded connection: send Connection: Upgrade";
            Problem::new(ProblemCode::InvalidRequest, detail)
        })?;
        Ok(Self { headers: of_upgrade(&parts.headers), connection })
    }
}

/// Those of a message that are about an upgrade.
pub(crate) fn of_upgrade(headers: &HeaderMap) -> HeaderMap {
    let of_message = |name: HeaderName| Some((name.clone(), headers.get(name)?.clone()));
    HEADERS.into_iter().filter_map(of_message).collect()
}

/// What asks for an upgrade, or grants it.
fn upgrade_to(protocol: &'static str) -> HeaderMap {
    HeaderMap::from_iter([
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static(protocol)),
    ])
}

/// Whether a header that lists words has this one.
pub(crate) fn names(headers: &HeaderMap, header: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

impl Upgrade {
    /// The upgrade to a WebSocket that speaks `protocol`, whose messages are at most so many bytes.
    ///
    /// # Errors
    ///
    /// When something else is asked for.
    pub fn websocket(
        self,
        protocol: &'static str,
        longest: usize,
    ) -> Result<WebSocketUpgrade, Refusal> {
        let refuse = |detail: String| Refusal(Problem::new(ProblemCode::InvalidRequest, detail));
        let Self { headers, connection } = self;
        let is = |name: &HeaderName, wanted: &str| {
            headers.get(name).is_some_and(|value| value.as_bytes() == wanted.as_bytes())
        };
        if !names(&headers, &header::UPGRADE, WEBSOCKET)
            || !is(&header::SEC_WEBSOCKET_VERSION, "13")
        {
            return Err(refuse("this is answered over a WebSocket of version 13".to_owned()));
        }
        if !names(&headers, &header::SEC_WEBSOCKET_PROTOCOL, protocol) {
            return Err(refuse(format!("this WebSocket speaks the subprotocol {protocol} alone")));
        }
        match headers.get(header::SEC_WEBSOCKET_KEY).and_then(accept_key) {
            Some(accept) => Ok(WebSocketUpgrade { accept, connection, protocol, longest }),
            None => Err(refuse("a WebSocket needs a Sec-WebSocket-Key".to_owned())),
        }
    }
}

/// A connection that carries the bytes of another, such as one of TCP, both ways.
pub type Tunnel = TokioIo<Upgraded>;

impl Upgrade {
    /// Answers with a tunnel, and has `talk` use it as a task of the service, which is dropped when
    /// that ends.
    ///
    /// # Errors
    ///
    /// When something else is asked for.
    pub fn tunnel<F: Future<Output = ()> + Send>(
        self,
        service: &Service,
        task: &'static str,
        talk: impl FnOnce(Tunnel) -> F + Send + 'static,
    ) -> Result<Response, Refusal> {
        if !names(&self.headers, &header::UPGRADE, TUNNEL) {
            let detail = "this is answered over a tunnel: send Upgrade: tcp";
            return Err(Problem::new(ProblemCode::InvalidRequest, detail).into());
        }
        service.spawn_request(task, async move {
            if let Ok(connection) = self.connection.await {
                talk(TokioIo::new(connection)).await;
            }
        });
        Ok(switching(upgrade_to(TUNNEL)))
    }
}

/// What shows a client that its key was read.
fn accept_key(key: &HeaderValue) -> Option<HeaderValue> {
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()
}

/// A WebSocket that was asked for as it should be.
#[derive(Debug)]
pub struct WebSocketUpgrade {
    accept: HeaderValue,
    connection: OnUpgrade,
    protocol: &'static str,
    longest: usize,
}

impl WebSocketUpgrade {
    /// Answers, and has `talk` speak over the WebSocket as a task of the service, which is dropped
    /// when that ends.
    pub fn accept<F: Future<Output = ()> + Send>(
        self,
        service: &Service,
        task: &'static str,
        talk: impl FnOnce(WebSocket) -> F + Send + 'static,
    ) -> Response {
        let Self { accept, connection, protocol, longest } = self;
        service.spawn_request(task, async move {
            // A client that went away meanwhile needs nobody to talk to.
            if let Ok(connection) = connection.await {
                let connection = TokioIo::new(connection);
                talk(WebSocket::new(connection, Role::Server, longest).await).await;
            }
        });
        let mut headers = upgrade_to(WEBSOCKET);
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        switching(headers)
    }
}

pub(crate) fn switching(headers: HeaderMap) -> Response {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

impl Client {
    /// Asks the service for the same upgrade, and passes the bytes of both sides on as a task of
    /// `service` until both have ended or that does.
    ///
    /// # Errors
    ///
    /// When the service refuses, or answers without an upgrade.
    pub async fn relay_upgrade(
        &self,
        path: &str,
        upgrade: Upgrade,
        service: &Service,
    ) -> Result<Response, CallError> {
        let answer = self.send_with(Method::GET, path, None::<&()>, upgrade.headers).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.malformed("an answer without an upgrade"));
        }
        let headers = of_upgrade(answer.headers());
        service.spawn_request("relay", async move {
            // Where one side went away meanwhile, the other is closed by this.
            if let (Ok(near), Ok(far)) =
                (upgrade.connection.await, hyper::upgrade::on(answer).await)
            {
                pass_on(TokioIo::new(near), TokioIo::new(far)).await;
            }
        });
        Ok(switching(headers))
    }

    /// Opens a WebSocket that speaks `protocol`, whose messages are at most so many bytes.
    ///
    /// # Errors
    ///
    /// When the service refuses, or answers with something else.
    pub async fn websocket(
        &self,
        path: &str,
        protocol: &'static str,
        longest: usize,
    ) -> Result<WebSocket, CallError> {
        let key = HeaderValue::from_str(&generate_key());
        let key = key.map_err(|error| self.malformed(error))?;
        let mut headers = upgrade_to(WEBSOCKET);
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
        let answer = self.send_with(Method::GET, path, None::<&()>, headers).await?;
        let is = |name: HeaderName, wanted: Option<&HeaderValue>| {
            answer.headers().get(name).is_some_and(|value| Some(value) == wanted)
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS
            || !is(header::SEC_WEBSOCKET_ACCEPT, accept_key(&key).as_ref())
            || !is(header::SEC_WEBSOCKET_PROTOCOL, Some(&HeaderValue::from_static(protocol)))
        {
            return Err(self.malformed(format_args!("no WebSocket that speaks {protocol}")));
        }
        let connection = hyper::upgrade::on(answer).await;
        let connection = connection.map_err(|error| self.unreachable(error))?;
        Ok(WebSocket::new(TokioIo::new(connection), Role::Client, longest).await)
    }
}

impl Client {
    /// Opens a tunnel.
    ///
    /// # Errors
    ///
    /// When the service refuses, or answers with something else.
    pub async fn tunnel(&self, path: &str) -> Result<Tunnel, CallError> {
        let answer = self.send_with(Method::GET, path, None::<&()>, upgrade_to(TUNNEL)).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.malformed("an answer without a tunnel"));
        }
        let connection = hyper::upgrade::on(answer).await;
        let connection = connection.map_err(|error| self.unreachable(error))?;
        Ok(TokioIo::new(connection))
    }
}

/// Moves bytes both ways until both sides have ended. A side that takes no more does not end the way
/// back: its last words may still be on it.
pub async fn pass_on(near: impl AsyncRead + AsyncWrite, far: impl AsyncRead + AsyncWrite) {
    pass_on_noting(near, far, |_| ()).await;
}

/// The same, and says each time how many bytes went on.
pub async fn pass_on_noting(
    near: impl AsyncRead + AsyncWrite,
    far: impl AsyncRead + AsyncWrite,
    note: impl Fn(usize),
) {
    let ((mut near_reads, mut near_writes), (mut far_reads, mut far_writes)) =
        (tokio::io::split(near), tokio::io::split(far));
    tokio::join!(
        pass(&mut near_reads, &mut far_writes, &note),
        pass(&mut far_reads, &mut near_writes, &note)
    );
}

/// Moves bytes one way until either side has ended, and tells the other.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    note: &impl Fn(usize),
) {
    let mut buffer = vec![0; PASSED_AT_ONCE];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
        // What is above, such as TLS, may hold back the end of it until it has more.
        if to.flush().await.is_err() {
            break;
        }
        note(length);
    }
    // It may be gone already.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests;
