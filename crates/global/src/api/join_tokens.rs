//! Tokens by which machines join.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use longshore_api::v1::{JoinTokenCreated, JoinTokenRequest, JoinTokenRole};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_store::{MAX_OPERATIONS, Page, Transaction};
use longshore_trust::{Fingerprint, JoinRole, JoinToken};
use longshore_types::{Duration, LocationName};

use super::access::Caller;
use super::store_failed;
use crate::events::with_event;
use crate::records::{JOIN_TOKENS, JoinTokenRecord, Key, decode, encode};
use crate::{Plane, tokens};

/// How long one is good.
const GOOD_FOR: Duration = Duration::from_secs(3600);

pub async fn create(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Body(JoinTokenRequest { location, role, recover: recovers }): Body<JoinTokenRequest>,
) -> Result<(StatusCode, Json<JoinTokenCreated>), Refusal> {
    let (role, address) = match (role, recovers) {
        (JoinTokenRole::Node, true) => {
            let detail = "recover is for role location: a node that lost what it knew joins anew";
            return Err(Problem::new(ProblemCode::InvalidRequest, detail).into());
        }
        (JoinTokenRole::Node, false) => (JoinRole::Node, address_for_nodes(&plane, &location)?),
        (JoinTokenRole::Location, true) => {
            (JoinRole::Location, address_to_recover(&plane, &location)?)
        }
        (JoinTokenRole::Location, false) => {
            (JoinRole::Location, address_for_new_locations(&plane, &location)?)
        }
    };
    let secret = tokens::random_text().map_err(|error| {
        tracing::error!(%error, "cannot read random bytes");
        Problem::new(ProblemCode::Internal, "no random bytes can be had")
    })?;
    let root = Fingerprint::of(plane.root.certificate());
    let expires_at = now().plus(GOOD_FOR);
    let record = JoinTokenRecord { role, location: location.clone(), expires_at, recovers };
    let key = Key::JoinToken(Fingerprint::of(secret.as_bytes())).to_string();
    let change = forget_expired(&plane).await?.put(key, encode(&record));
    let subject = match role {
        JoinRole::Node => format!("for a node of {location}"),
        JoinRole::Location if recovers => format!("to recover location {location}"),
        JoinRole::Location => format!("for location {location}"),
    };
    let change = with_event(change, &caller.who(), None, "join-token create", subject);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    let token = JoinToken { role, location, address, root, secret: secret.into(), recovers };
    let created =
        JoinTokenCreated { token: token.text().to_string(), expires_at: record.expires_at };
    Ok((StatusCode::CREATED, Json(created)))
}

fn address_for_nodes(plane: &Plane, location: &LocationName) -> Result<String, Refusal> {
    let reports = plane.reports.now();
    let received = reports.get(location);
    let received = received.ok_or_else(|| Problem::not_found("location", location))?;
    let address = received.report.joining.clone().ok_or_else(|| {
        let detail = format!(
            "no machine can join location {location}: it does not listen for any; start it with \
             --nodes-listen"
        );
        Problem::new(ProblemCode::Conflict, detail)
    })?;
    Ok(address)
}

fn address_for_new_locations(plane: &Plane, location: &LocationName) -> Result<String, Refusal> {
    if plane.catalog().locations.contains_key(location) {
        let detail = format!(
            "there is a location {location} already; if its machine is lost, give --recover to have \
             another take its place"
        );
        return Err(Problem::new(ProblemCode::Conflict, detail).into());
    }
    address_for_locations(plane)
}

fn address_to_recover(plane: &Plane, location: &LocationName) -> Result<String, Refusal> {
    let catalog = plane.catalog();
    let record = catalog.locations.get(location);
    let record = record.ok_or_else(|| Problem::not_found("location", location))?;
    if record.authority.is_none() {
        let detail = format!(
            "location {location} is of the machine of the control plane: without its store it recovers \
             there by itself, and nowhere else"
        );
        return Err(Problem::new(ProblemCode::Conflict, detail).into());
    }
    address_for_locations(plane)
}

fn address_for_locations(plane: &Plane) -> Result<String, Refusal> {
    let none = || {
        let detail = "no location can join: the control plane does not listen for any; start it \
                      with --locations-listen";
        Problem::new(ProblemCode::Conflict, detail)
    };
    Ok(plane.joining.as_ref().ok_or_else(none)?.advertised.clone())
}

/// Removes those that nobody used in time, a few at each look.
async fn forget_expired(plane: &Plane) -> Result<Transaction, Refusal> {
    let stored = plane.store.list(JOIN_TOKENS, Page::default()).await.map_err(store_failed)?;
    let is_over = |stored: &&longshore_store::KeyValue| {
        decode::<JoinTokenRecord>(stored).is_ok_and(|token| token.expires_at <= now())
    };
    let over = stored.items.iter().filter(is_over).take(MAX_OPERATIONS / 2);
    Ok(over.fold(Transaction::new(), |change, stored| change.delete(&stored.key)))
}
