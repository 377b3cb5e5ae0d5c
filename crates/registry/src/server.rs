//! From a request to the function that answers it: who is asking, what is named, is it allowed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use longshore_types::Repository;
use longshore_types::token::RegistryAction;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::access::{Access, Scopes, passing};
use crate::refusal::{Code, Refusal};
use crate::route::{Route, Target};
use crate::{
    Registry, blobs, converter, garbage, listings, manifests, referrers, retention, route, uploads,
};

pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// How much of a body is read after its request was refused, and for how long. A server that closes
/// a connection with bytes unread makes the client's kernel drop the answer, so that the client
/// reports a broken pipe in place of our reason.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// How clients reach a registry, for the addresses that they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// By TLS.
    Https,
}

impl Scheme {
    /// As it stands in an address.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The endpoints of the registry, for clients that reach it in this way: those below `/v2/`, and `/token`.
pub fn router(registry: Arc<Registry>, scheme: Scheme) -> Router {
    Router::new().fallback(serve).with_state((registry, scheme))
}

async fn serve(
    State((registry, scheme)): State<(Arc<Registry>, Scheme)>,
    request: Request,
) -> Response {
    let (parts, mut body) = request.into_parts();
    let mut response = match answer(&registry, &parts, &mut body).await {
        Ok(response) => response,
        Err(refusal) => {
            tracing::debug!(method = %parts.method, path = parts.uri.path(), ?refusal, "refused");
            if !refusal.is_stalled_body() {
                drain(&mut body).await;
            }
            refusal.challenge_at(scheme, host(&parts).as_ref()).into_response()
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

async fn answer(
    registry: &Arc<Registry>,
    parts: &Parts,
    body: &mut Body,
) -> Result<Response, Refusal> {
    let route = Route::parse(parts.uri.path());
    if let Ok(Route::Token) = route {
        return match parts.method {
            Method::GET => passing::issue(&*registry.authorizer, &registry.passing, parts),
            _ => Err(Refusal::method(&parts.method, "GET")),
        };
    }
    // Before anything else is said of the path: strangers learn nothing from the answer.
    let access = Access::of(&*registry.authorizer, &registry.passing, &parts.headers);
    let access = access.ok_or_else(|| {
        Refusal::unauthorized(route.as_ref().ok().and_then(|route| route.scopes(&parts.method)))
    })?;
    let (repository, target) = match route? {
        Route::Base if [Method::GET, Method::HEAD].contains(&parts.method) => {
            return Ok(json(&serde_json::json!({})));
        }
        Route::Catalog if parts.method == Method::GET => {
            return listings::catalog(registry, query(parts)?, access.for_catalog()?).await;
        }
        Route::Garbage => {
            access.check_all()?;
            return garbage::answer(registry, parts).await;
        }
        Route::Retention(repository) => {
            let action = route::retention_action(&parts.method)?;
            may(registry, parts, access, (&repository, action)).await?;
            return retention::answer(registry, repository, parts, body).await;
        }
        Route::Kept(repository) => {
            // It names releases, as a refusal to delete does.
            access.check(&repository, RegistryAction::Delete)?;
            return garbage::answer_kept(registry, repository, parts).await;
        }
        Route::Converted(repository) => {
            access.check(&repository, RegistryAction::Pull)?;
            return converter::answer(registry, repository, parts).await;
        }
        Route::Base | Route::Token => return Err(Refusal::method(&parts.method, "GET, HEAD")),
        Route::Catalog => return Err(Refusal::method(&parts.method, "GET")),
        Route::In(repository, target) => (repository, target),
    };
    let action = target.action(&parts.method)?;
    let access = may(registry, parts, access, (&repository, action)).await?;
    if action == RegistryAction::Push
        && let Some(theirs) = registry.upstreams.of(&repository)
    {
        return Err(Refusal::of_upstream(theirs.name()));
    }
    match target {
        Target::Tags => listings::tags(registry, repository, query(parts)?).await,
        Target::Referrers(subject) => {
            let wanted = (query(parts)?, query(parts)?);
            referrers::answer(registry, repository, &subject, wanted).await
        }
        Target::Manifest(reference) => {
            manifests::answer(registry, repository, &reference, parts, body).await
        }
        Target::Blob(digest) => blobs::answer(registry, repository, &digest, parts).await,
        Target::Uploads => {
            let mut start: uploads::Start = query(parts)?;
            start.from.take_if(|from| !may_pull(&access, from));
            uploads::start(registry, repository, start, body).await
        }
        Target::Upload(id) => uploads::answer(registry, repository, &id, parts, body).await,
    }
}

/// What whoever sent a request may do, when that may be done. What changes something waits until it is known who may,
/// and is looked at again then: a token may have been removed meanwhile.
async fn may(
    registry: &Registry,
    parts: &Parts,
    access: Access,
    (repository, action): (&Repository, RegistryAction),
) -> Result<Access, Refusal> {
    access.check(repository, action)?;
    if action == RegistryAction::Pull {
        return Ok(access);
    }
    registry.check_told().await?;
    let access = Access::of(&*registry.authorizer, &registry.passing, &parts.headers)
        .ok_or_else(|| Refusal::unauthorized(Some(Scopes::of(repository, action))))?;
    access.check(repository, action)?;
    Ok(access)
}

/// A mount from where the token may not pull is answered like one from where the blob is not, so
/// that it tells nothing; the client then sends the bytes, which shows that it has them.
fn may_pull(access: &Access, from: &str) -> bool {
    from.parse().is_ok_and(|from| access.check(&from, RegistryAction::Pull).is_ok())
}

/// The host by which the client called us, when it is one.
fn host(parts: &Parts) -> Option<Authority> {
    let host = match parts.uri.authority() {
        Some(authority) => authority.clone(),
        None => text(parts, header::HOST)?.parse().ok()?,
    };
    // A user name has no place in it.
    (!host.as_str().contains('@')).then_some(host)
}

/// Reads the query of a request.
pub(crate) fn query<T: DeserializeOwned>(parts: &Parts) -> Result<T, Refusal> {
    match Query::try_from_uri(&parts.uri) {
        Ok(Query(value)) => Ok(value),
        Err(error) => Err(Refusal::bad(Code::Unsupported, error)),
    }
}

/// A header's value, when it is there and is text.
pub(crate) fn text(parts: &Parts, name: HeaderName) -> Option<&str> {
    parts.headers.get(name)?.to_str().ok()
}

/// True when the client says that it has what this entity tag names.
pub(crate) fn is_known_to_client(parts: &Parts, etag: &str) -> bool {
    text(parts, header::IF_NONE_MATCH).is_some_and(|known| {
        known.split(',').any(|known| {
            let known = known.trim();
            known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag
        })
    })
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A 200 with a JSON body.
pub(crate) fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("our answers are plain data");
    let mut response = Response::new(Body::from(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Sets a header whose value was made from validated names, digests and numbers.
pub(crate) fn set(response: &mut Response, name: HeaderName, value: impl ToString) {
    response.headers_mut().insert(name, visible(value));
}

/// A header's value made from validated names, digests and numbers.
pub(crate) fn visible(value: impl ToString) -> HeaderValue {
    HeaderValue::try_from(value.to_string()).expect("names, digests and numbers are visible ASCII")
}

async fn drain(body: &mut Body) {
    let mut left = DRAIN_BYTES;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let read = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(read) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Past the limit the connection is closed, as it would be without a drain.
    let _ = tokio::time::timeout(DRAIN_TIME, all).await;
}
