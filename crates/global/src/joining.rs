//! What lets machines join, on the side of locations: their authorities, and tokens that are used up.

use std::sync::Arc;

use axum::extract::{Path, State};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_store::{Compare, Transaction};
use longshore_trust::{CertificateRequest, RedeemRequest, Signed};
use longshore_types::LocationName;

use crate::Plane;
use crate::api::store_failed;
use crate::events::{Who, with_event};
use crate::records::{JoinTokenRecord, Key, decode};

/// Lets a location name its own roles.
pub async fn authority(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Body(CertificateRequest { key }): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    let signed = plane.root.sign_location(&location, &key, now());
    let signed = signed.map_err(|error| {
        tracing::error!(%location, error = &error as &dyn std::error::Error, "cannot sign");
        Problem::new(ProblemCode::Internal, "the certificate cannot be made")
    })?;
    tracing::info!(%location, key = %key.fingerprint(), "an authority was signed");
    Ok(axum::Json(signed))
}

/// Uses a token up that is shown to its location.
pub async fn redeem(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Body(RedeemRequest { secret, role, name }): Body<RedeemRequest>,
) -> Result<axum::Json<()>, Refusal> {
    let useless = || {
        let detail = "this join token is of no use: it was used, its hour is over, or it is for \
                      another place; make a new one with longshore join-token";
        Refusal(Problem::new(ProblemCode::Forbidden, detail))
    };
    let key = Key::JoinToken(secret).to_string();
    let stored = plane.store.get(&key).await.map_err(store_failed)?.ok_or_else(useless)?;
    let token: JoinTokenRecord = decode(&stored).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot read a join token");
        Problem::new(ProblemCode::Internal, "the token cannot be read")
    })?;
    if token.location != location || token.role != role || token.expires_at <= now() {
        return Err(useless());
    }
    // Of two that show the same token at once, one is let in.
    let change = Transaction::new().when(Compare::unchanged(&stored)).delete(key);
    let who = Who { token: None, from: None, once: None };
    let change = with_event(change, &who, None, "node join", format!("{name} of {location}"));
    match plane.store.commit(change).await.map_err(store_failed)?.succeeded {
        true => Ok(axum::Json(())),
        false => Err(useless()),
    }
}
