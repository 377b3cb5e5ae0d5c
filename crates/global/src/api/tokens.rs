//! Tokens: make, list, remove.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use longshore_api::v1::{TokenCreated, TokenRequest, TokenView};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_store::{Compare, Transaction};
use longshore_types::AppName;
use longshore_types::token::Rights;

use super::access::Caller;
use super::params::Path;
use super::{parse, store_failed};
use crate::Plane;
use crate::events::with_event;
use crate::records::{Key, TokenRecord, encode};
use crate::tokens;

type Shared = State<Arc<Plane>>;

/// Those whose rights the caller could have given.
pub async fn list(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
) -> Json<Vec<TokenView>> {
    let catalog = plane.catalog();
    let view = |(name, record): (&AppName, &TokenRecord)| TokenView {
        name: name.clone(),
        rights: record.rights.clone(),
        created_at: record.created_at,
    };
    let own = catalog.tokens.iter().filter(|(_, record)| caller.rights.may_give(&record.rights));
    Json(own.map(view).collect())
}

/// Nobody gives to others, or takes from them, what is not theirs.
fn refuse_more_than_own(caller: &Caller, given: &Rights) -> Result<(), Refusal> {
    if caller.rights.may_give(given) {
        return Ok(());
    }
    let detail = format!("token {} does not administer all that this one may do", caller.token);
    Err(Problem::new(ProblemCode::Forbidden, detail).into())
}

pub async fn create(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Body(request): Body<TokenRequest>,
) -> Result<(StatusCode, Json<TokenCreated>), Refusal> {
    refuse_more_than_own(&caller, &request.rights)?;
    let token = tokens::generate().map_err(|error| {
        tracing::error!(%error, "cannot read random bytes");
        Problem::new(ProblemCode::Internal, "no random bytes can be had")
    })?;
    let record = TokenRecord {
        hash: tokens::hash(&token),
        rights: request.rights,
        created_at: now(),
        built_in: false,
    };
    let key = Key::Token(request.name.clone()).to_string();
    let change = Transaction::new().when(Compare::absent(&key)).put(key, encode(&record));
    let change = with_event(change, &caller.who(), None, "token create", &request.name);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    if !result.succeeded {
        let detail =
            format!("there is a token {} already; remove it or take another name", request.name);
        return Err(Problem::new(ProblemCode::Conflict, detail).into());
    }
    plane.catalog.reached(result.revision).await;
    Ok((StatusCode::CREATED, Json(TokenCreated { name: request.name, token })))
}

pub async fn remove(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    let name: AppName = parse("name", &name)?;
    let catalog = plane.catalog();
    let record = catalog.tokens.get(&name).ok_or_else(|| Problem::not_found("token", &name))?;
    refuse_more_than_own(&caller, &record.rights)?;
    if record.built_in {
        let detail = format!("token {name} is the platform's own and cannot be removed");
        return Err(Problem::new(ProblemCode::Conflict, detail).into());
    }
    let change = Transaction::new().delete(Key::Token(name.clone()).to_string());
    let change = with_event(change, &caller.who(), None, "token rm", name);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    Ok(StatusCode::NO_CONTENT)
}
