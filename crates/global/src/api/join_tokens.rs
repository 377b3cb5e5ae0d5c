//! Tokens by which machines join.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use longshore_api::v1::{JoinTokenCreated, JoinTokenRequest, JoinTokenRole};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_store::{MAX_OPERATIONS, Page, Transaction};
use longshore_trust::{Fingerprint, JoinAs, JoinToken};
use longshore_types::{Duration, LocationName};

use super::access::Caller;
use super::store_failed;
use crate::events::with_event;
use crate::records::{JOIN_TOKENS, JoinTokenRecord, Key, decode, encode};
use crate::{Plane, registry, tokens};

/// How long one is good.
const GOOD_FOR: Duration = Duration::from_secs(3600);

pub async fn create(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<JoinTokenRequest>,
) -> Result<(StatusCode, Json<JoinTokenCreated>), Refusal> {
    let (recovers, country) = (request.recover, request.country);
    let joins = joins_as(request)?;
    let address = match &joins {
        JoinAs::Node(location) => address_for_nodes(&plane, location)?,
        JoinAs::Location(location) if recovers => address_to_recover(&plane, location)?,
        JoinAs::Location(location) => address_for_new_locations(&plane, location)?,
        JoinAs::Registry => {
            registry::refuse_second(&plane)?;
            address_for_locations(&plane)?
        }
    };
    let secret = tokens::random_text().map_err(|error| {
        tracing::error!(%error, "cannot read random bytes");
        Problem::new(ProblemCode::Internal, "no random bytes can be had")
    })?;
    let root = Fingerprint::of(plane.root.certificate());
    let expires_at = now().plus(GOOD_FOR);
    let record = JoinTokenRecord { joins: joins.clone(), expires_at, recovers, country };
    let key = Key::JoinToken(Fingerprint::of(secret.as_bytes())).to_string();
    let change = forget_expired(&plane).await?.put(key, encode(&record));
    let subject = if recovers { format!("to recover {joins}") } else { format!("for {joins}") };
    let subject = country.map_or(subject.clone(), |country| format!("{subject} in {country}"));
    let change = with_event(change, &caller.who(), None, "join-token create", subject);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    let token = JoinToken { joins, address, root, secret: secret.into(), recovers };
    let created =
        JoinTokenCreated { token: token.text().to_string(), expires_at: record.expires_at };
    Ok((StatusCode::CREATED, Json(created)))
}

/// What is asked for, when it makes sense.
fn joins_as(request: JoinTokenRequest) -> Result<JoinAs, Refusal> {
    let JoinTokenRequest { location, role, recover, country } = request;
    if recover && role != JoinTokenRole::Location {
        let detail =
            "recover is for role location: a node or a registry that lost what it knew joins anew";
        return Err(Problem::new(ProblemCode::InvalidRequest, detail).into());
    }
    if let Some(country) = country.filter(|_| role != JoinTokenRole::Location) {
        let allowed = "nothing but with role location, whose nodes are where it is";
        return Err(Problem::invalid_value("country", country, allowed).into());
    }
    match (role, location) {
        (JoinTokenRole::Node, Some(location)) => Ok(JoinAs::Node(location)),
        (JoinTokenRole::Location, Some(location)) => Ok(JoinAs::Location(location)),
        (JoinTokenRole::Registry, None) => Ok(JoinAs::Registry),
        (JoinTokenRole::Registry, Some(location)) => {
            let allowed = "nothing with role registry, which joins no location";
            Err(Problem::invalid_value("location", location, allowed).into())
        }
        (JoinTokenRole::Node | JoinTokenRole::Location, None) => {
            Err(Problem::invalid_value("location", "(none)", "the name of the location").into())
        }
    }
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
        let detail = "no location or registry can join: the control plane does not listen for any; \
                      start it with --locations-listen";
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
