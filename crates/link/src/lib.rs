//! How the roles of Longshore talk: HTTP over TCP or Unix sockets, JSON, streams of JSON lines.
//!
//! - [`Endpoint`]: an address of a service. [`Listener`]: where a service listens, bound by itself
//!   or inherited from the supervisor, which keeps it open while the service is restarted.
//! - [`PublicTls`]: with which certificates users are spoken to there.
//! - [`Client`]: calls with a time limit, and watches that notice a silent peer.
//! - [`Refusal`]: a [`longshore_api::Problem`] as an answer. [`json_lines`] and
//!   [`event_stream`]: streams as answers.
//! - [`only`]: who may ask. [`join`]: how a machine comes to be known.
//! - [`ByteStream`]: bodies of any length, sent and read as they come.
//! - [`Upgrade`]: a connection that is passed on as bytes, or ended as a [`WebSocket`] or
//!   a [`Tunnel`].
//! - [`Client::pass_on_request`]: any request passed on whole, for a service that does not answer itself.
//! - [`Reverse`], [`be_called`], [`be_reached`]: calls to who only dials out.
//! - [`Followed`]: a client of whichever of several services leads.
//! - [`Service`]: the tasks of a role, ended together. [`Pace`]: spacing out what they repeat.
//!
//! The crate knows nothing of what is said; that is `longshore-api`.
//! Test: `cargo nextest run -p longshore-link`.

#![deny(missing_docs)]

mod client;
mod clock;
mod endpoint;
mod followed;
mod guard;
mod joining;
mod listener;
mod pace;
mod passing;
mod public;
mod refusal;
mod reverse;
mod service;
mod sse;
mod stream;
mod tls;
mod transfer;
mod upgrade;
mod websocket;

pub use client::{CallError, Client, EventStream, LineStream};
pub use clock::{now, simulate};
pub use endpoint::{Endpoint, Endpoints};
pub use followed::Followed;
pub use guard::{MAX_OF_STRANGERS, not_for, only};
pub use joining::{JoinError, KeptIdentity, expired_config, join, joined_identity};
pub use listener::{FDS_VARIABLE, ListenError, Listener};
pub use longshore_types::chain;
pub use pace::Pace;
pub use passing::NotPassedOn;
pub use public::{PublicTls, PublicTlsError};
pub use refusal::{Body, Refusal};
pub use reverse::{Reverse, Reverses, be_called, be_reached};
pub use service::{Service, ServiceError, Spawner};
pub use sse::{EVENT_STREAM, ServerSentEvent, event_frame, event_stream, last_event, wants_events};
pub use stream::{JSON_LINES, json_lines, relay, watch_lines};
pub use tls::refuse_plain;
pub use transfer::{ByteStream, relay_whole, whole_or_broken};
pub use upgrade::{Tunnel, Upgrade, WebSocketUpgrade, pass_on, pass_on_noting};
pub use websocket::{WebSocket, WebSocketError, WebSocketReceiver, WebSocketSender};
