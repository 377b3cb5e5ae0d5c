//! What lets machines join, on the side of locations: their authorities, and tokens that are used up.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use longshore_api::links::LocationReport;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Client, Endpoint, Refusal, Upgrade, now};
use longshore_store::{Compare, Transaction};
use longshore_trust::{
    AuthorityError, CertificateRequest, Credentials, Fingerprint, JoinAs, JoinRole,
    LocationJoinRequest, Name, Peer, RedeemRequest, RootAuthority, Signed,
};
use longshore_types::LocationName;

use crate::api::store_failed;
use crate::events::{Who, with_event};
use crate::records::{JoinTokenRecord, Key, LocationRecord, decode, encode};
use crate::{Plane, lives};

/// How often the global plane gets a new certificate, which is good for a day.
const RENEW: Duration = Duration::from_secs(3600);

impl Plane {
    /// Whether a peer is this location, as it joined.
    pub fn is_location(&self, peer: &Peer, location: &LocationName) -> bool {
        match peer {
            // A location elsewhere cannot be spoken for from this machine either.
            Peer::Local => self.authority_of(location).is_none(),
            Peer::Known { name: Name::Location(named), authority: Some(key), .. } => {
                named == location && self.authority_of(location) == Some(*key)
            }
            Peer::Known { .. } | Peer::Dialled(_) | Peer::Stranger => false,
        }
    }

    /// The key of the authority of a location that joined from another machine.
    fn authority_of(&self, location: &LocationName) -> Option<Fingerprint> {
        self.catalog().locations.get(location)?.authority
    }

    /// A client of a location: by the socket that it reported when it is on this machine, else over the
    /// connections that it opens.
    pub fn gate(&self, report: &LocationReport) -> Result<Client, Refusal> {
        let location = &report.location;
        if let Some(key) = self.authority_of(location) {
            return Ok(self.reverses.of(&Name::Location(location.clone()), key).client().clone());
        }
        match report.gate.as_deref().unwrap_or_default().parse() {
            Ok(endpoint @ Endpoint::Unix(_)) => Ok(Client::new(endpoint)),
            _ => {
                tracing::error!(%location, gate = ?report.gate, "it reported a gate of no use");
                Err(Problem::new(ProblemCode::Internal, "the location cannot be reached").into())
            }
        }
    }
}

/// A location of another machine opens a connection to be called over.
pub async fn reverse(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    plane.reverses.retain(|name| match name {
        Name::Location(named) => plane.authority_of(named).is_some(),
        _ => false,
    });
    let key = plane.authority_of(&location).ok_or_else(|| {
        let detail = format!("location {location} is on this machine and is dialled");
        Refusal(Problem::new(ProblemCode::InvalidRequest, detail))
    })?;
    plane.reverses.of(&Name::Location(location), key).accept(upgrade, &plane.service)
}

/// Keeps the certificate of the global plane good.
pub async fn keep_certificate(root: Arc<RootAuthority>, credentials: Credentials) {
    loop {
        tokio::time::sleep(RENEW).await;
        // A certificate of its own costs nothing, so it is simply a new one each time.
        let renewed = root.identify(&Name::Global, now());
        if let Err(error) = renewed.map(|identity| credentials.replace(&identity)) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the certificate is not renewed");
        }
    }
}

/// What an authority said, as it is answered.
pub fn signed(made: Result<Signed, AuthorityError>) -> Result<axum::Json<Signed>, Refusal> {
    let made = made.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot sign");
        Problem::new(ProblemCode::Internal, "the certificate cannot be made")
    })?;
    Ok(axum::Json(made))
}

/// Lets a location name its own roles: one of this machine with any key, another with that by which it
/// joined.
pub async fn authority(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Body(CertificateRequest { key }): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    let known = plane.authority_of(&location);
    if known.is_some_and(|known| known != key.fingerprint()) {
        let detail = format!("location {location} joined with another key");
        return Err(Problem::new(ProblemCode::Forbidden, detail).into());
    }
    tracing::info!(%location, key = %key.fingerprint(), "an authority is signed");
    signed(plane.root.sign_location(&location, &key, now()))
}

/// The same for the authority of another machine's location that has expired, so that whatever it signs is
/// worth nothing. Only the key by which it joined is asked for: what is said of that is of use to who has the
/// other half of it, and to nobody else.
pub async fn renew_expired(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Body(CertificateRequest { key }): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    if plane.authority_of(&location) != Some(key.fingerprint()) {
        let detail = format!("no location {location} joined with this key");
        return Err(Problem::new(ProblemCode::Forbidden, detail).into());
    }
    tracing::info!(%location, "an authority that had expired is signed anew");
    signed(plane.root.sign_location(&location, &key, now()))
}

/// Lets a location in whose token is good: a new one, or another machine in the place of the one that there is.
pub async fn join(
    State(plane): State<Arc<Plane>>,
    Body(LocationJoinRequest { secret, location, key }): Body<LocationJoinRequest>,
) -> Result<axum::Json<Signed>, Refusal> {
    let secret = Fingerprint::of(secret.as_bytes());
    let (change, token) = use_up(&plane, secret, &JoinAs::Location(location.clone())).await?;
    let own = Key::Location(location.clone()).to_string();
    let stored = plane.store.get(&own).await.map_err(store_failed)?;
    let (same, record) = match (&stored, token.recovers) {
        (Some(_), false) => return Err(taken(&location)),
        (None, false) => {
            (Compare::absent(&own), LocationRecord::joined(now(), Some(key.fingerprint())))
        }
        // It was removed since the token was made: there is nothing to take the place of.
        (None, true) => return Err(Problem::not_found("location", &location).into()),
        (Some(stored), true) => {
            let record = lives::read(stored)?.recovered_by(key.fingerprint(), now());
            (Compare::unchanged(stored), record)
        }
    };
    let record = record.bound_to(token.country);
    let change = change.when(same).put(own, encode(&record));
    let change = with_event(change, &nobody(), None, "location join", &location);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    if !result.succeeded {
        return Err(useless());
    }
    plane.catalog.reached(result.revision).await;
    tracing::info!(%location, key = %key.fingerprint(), "a location joined");
    signed(plane.root.sign_location(&location, &key, now()))
}

/// Uses a token up that is shown to its location.
pub async fn redeem(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Body(RedeemRequest { secret, role, name }): Body<RedeemRequest>,
) -> Result<axum::Json<()>, Refusal> {
    // A location lets nodes in, and nobody else.
    if role != JoinRole::Node {
        return Err(useless());
    }
    let (change, _) = use_up(&plane, secret, &JoinAs::Node(location.clone())).await?;
    let subject = format!("{name} of {location}");
    let change = with_event(change, &nobody(), None, "node join", subject);
    match plane.store.commit(change).await.map_err(store_failed)?.succeeded {
        true => Ok(axum::Json(())),
        false => Err(useless()),
    }
}

/// A token, and the change that uses it up. Of two that show the same at once, the change of one succeeds.
pub async fn use_up(
    plane: &Plane,
    secret: Fingerprint,
    joins: &JoinAs,
) -> Result<(Transaction, JoinTokenRecord), Refusal> {
    let key = Key::JoinToken(secret).to_string();
    let stored = plane.store.get(&key).await.map_err(store_failed)?.ok_or_else(useless)?;
    let token: JoinTokenRecord = decode(&stored).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot read a join token");
        Problem::new(ProblemCode::Internal, "the token cannot be read")
    })?;
    if token.joins != *joins || token.expires_at <= now() {
        return Err(useless());
    }
    Ok((Transaction::new().when(Compare::unchanged(&stored)).delete(key), token))
}

fn taken(location: &LocationName) -> Refusal {
    let detail = format!(
        "there is a location {location} already; make a token for another name, or remove that one \
         first: longshore locations rm {location}"
    );
    Refusal(Problem::new(ProblemCode::Conflict, detail))
}

/// Refuses a token.
pub fn useless() -> Refusal {
    let detail = "this join token is of no use: it was used, its hour is over, or it is for another \
                  place; make a new one with longshore join-token";
    Refusal(Problem::new(ProblemCode::Forbidden, detail))
}

/// Who joins has no token of the API.
pub fn nobody() -> Who {
    Who { token: None, from: None, once: None }
}
