//! WebSockets of binary messages.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{self, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::stream::HEARTBEAT;

/// Each connection takes a buffer of this size at once.
const READ_BUFFER: usize = 16 << 10;
/// Beyond the message that is being written.
const WRITE_BUFFER: usize = 16 << 10;

/// Why nothing more comes or goes.
#[derive(Debug, thiserror::Error)]
pub enum WebSocketError {
    /// The connection broke, or the other side does not keep to the protocol.
    #[error("the connection broke")]
    Broken(#[source] Box<Error>),
    /// No sign of life.
    #[error("the connection gave no sign of life")]
    Silent,
    /// A message that is not binary.
    #[error("the other side sent text")]
    NotBinary,
}

impl From<Error> for WebSocketError {
    fn from(error: Error) -> Self {
        Self::Broken(Box::new(error))
    }
}

/// Which side this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// A WebSocket. Messages that are longer than was agreed break it.
pub struct WebSocket(WebSocketStream<TokioIo<Upgraded>>, Role);

/// The way out.
pub struct WebSocketSender(SplitSink<WebSocketStream<TokioIo<Upgraded>>, Message>);

/// The way in.
pub struct WebSocketReceiver {
    stream: SplitStream<WebSocketStream<TokioIo<Upgraded>>>,
    patience: Option<Duration>,
}

impl WebSocket {
    pub(crate) async fn new(connection: TokioIo<Upgraded>, role: Role, longest: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(longest + WRITE_BUFFER)
            .max_message_size(Some(longest))
            .max_frame_size(Some(longest));
        let as_role = match role {
            Role::Client => protocol::Role::Client,
            Role::Server => protocol::Role::Server,
        };
        Self(WebSocketStream::from_raw_socket(connection, as_role, Some(config)).await, role)
    }

    /// The two ways.
    pub fn split(self) -> (WebSocketSender, WebSocketReceiver) {
        let (sink, stream) = self.0.split();
        // A server sends pings; a client, which may be busy showing what it got, need not.
        let patience = (self.1 == Role::Client).then_some(3 * HEARTBEAT);
        (WebSocketSender(sink), WebSocketReceiver { stream, patience })
    }
}

impl WebSocketSender {
    /// How long a server may have nothing to say before it sends a [`WebSocketSender::ping`].
    pub const HEARTBEAT: Duration = HEARTBEAT;

    /// Sends a message; waits while the other side is slow.
    ///
    /// # Errors
    ///
    /// When the connection is broken.
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), WebSocketError> {
        Ok(self.0.send(Message::Binary(message.into())).await?)
    }

    /// Sends a sign of life.
    ///
    /// # Errors
    ///
    /// When the connection is broken.
    pub async fn ping(&mut self) -> Result<(), WebSocketError> {
        Ok(self.0.send(Message::Ping(Bytes::new())).await?)
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    ///
    /// When the connection is broken.
    pub async fn close(&mut self) -> Result<(), WebSocketError> {
        Ok(self.0.send(Message::Close(None)).await?)
    }
}

impl WebSocketReceiver {
    /// The next message; absent once the other side has said that nothing more comes. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the connection broke, or a server has been silent for long.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, WebSocketError> {
        loop {
            let next = self.stream.next();
            let next = match self.patience {
                None => next.await,
                Some(patience) => match tokio::time::timeout(patience, next).await {
                    Ok(next) => next,
                    Err(_) => return Err(WebSocketError::Silent),
                },
            };
            match next.transpose()? {
                Some(Message::Binary(message)) => return Ok(Some(message)),
                Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Some(Message::Text(_)) => return Err(WebSocketError::NotBinary),
                Some(Message::Close(_)) | None => return Ok(None),
            }
        }
    }
}
