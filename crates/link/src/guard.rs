//! Who may ask: decided by who is asked, told by one text.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use longshore_api::{Problem, ProblemCode};
use longshore_trust::Peer;

use crate::Refusal;

/// The most bytes that are read from who is not known yet.
pub const MAX_OF_STRANGERS: usize = 16 << 10;

/// Lets a request pass that its sender may make, and refuses any other.
pub async fn only(may: bool, peer: Peer, request: Request, next: Next) -> Response {
    if may {
        return next.run(request).await;
    }
    tracing::warn!(?peer, path = request.uri().path(), "refused");
    not_for(&peer).into_response()
}

/// Says to a peer that something is not for it.
pub fn not_for(peer: &Peer) -> Refusal {
    let who = match peer.name() {
        Some(name) => name.to_string(),
        None => "who shows no certificate of this world".to_owned(),
    };
    Refusal(Problem::new(ProblemCode::Forbidden, format!("this is not for {who}")))
}
