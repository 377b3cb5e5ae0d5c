//! The public REST API; `longshore_api::v1` lists it.

mod access;
mod apps;
mod archive;
mod cordons;
mod endpoint;
mod endpoints;
mod events;
pub mod idempotency;
mod images;
mod instances;
mod join_tokens;
pub mod limits;
mod locations;
mod openapi;
mod params;
mod placement;
mod plan;
mod precondition;
mod prewarms;
mod registry;
mod releases;
pub mod secrets;
mod store;
mod tokens;
mod usage;
mod watch;
mod whoami;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderValue, header};
use longshore_api::links::TAR;
use longshore_api::v1::HealthView;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{EVENT_STREAM, JSON_LINES, Refusal};
use longshore_store::{StoreError, Transaction};
use longshore_types::ProjectName;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

use crate::events::with_event;
use crate::{Plane, ui};
pub use access::Access;
use access::{Caller, Guard, authorise};
use endpoints::endpoints;
use params::Path;

/// The largest body that a request may have: a manifest is a few KiB.
const MAX_BODY: usize = 1 << 20;

/// The whole API.
pub fn router(plane: Arc<Plane>) -> Router {
    let guarded = endpoints().into_iter().fold(Router::new(), |router, endpoint| {
        let by_key = endpoint.is_idempotent_by_key();
        let guard = Guard { plane: Arc::clone(&plane), access: endpoint.access, by_key };
        router.route(endpoint.path, endpoint.handler.layer(from_fn_with_state(guard, authorise)))
    });
    let open = guarded
        .route("/health", get(health))
        .route("/openapi.json", get(openapi_document))
        .route("/errors/{code}", get(error_page));
    let wrong_method = "the path has other methods; the header Allow lists them";
    let wrong_method = Problem::new(ProblemCode::MethodNotAllowed, wrong_method);
    Router::new()
        .nest("/v1", open.layer(CompressionLayer::new().compress_when(worth_compressing())))
        .merge(ui::router())
        .method_not_allowed_fallback(move || async move { Refusal(wrong_method) })
        .fallback(|| async { Refusal(Problem::not_found("endpoint", "of this path")) })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_response(unguessed))
        .with_state(plane)
}

/// Keeps browsers from taking an answer for something else than it says, a log for a page.
async fn unguessed(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Answers that end and are not tiny. A stream is sent as it comes: what is compressed waits for more.
fn worth_compressing() -> impl Predicate {
    SizeAbove::new(1024)
        .and(NotForContentType::const_new(EVENT_STREAM))
        .and(NotForContentType::const_new(JSON_LINES))
        .and(NotForContentType::const_new(TAR))
}

/// Every method and path of the API below `/v1` that asks for a token, with who may call it.
pub fn accesses() -> Vec<(&'static str, &'static str, Access)> {
    endpoints().iter().map(|endpoint| (endpoint.method.0, endpoint.path, endpoint.access)).collect()
}

async fn health(State(plane): State<Arc<Plane>>) -> axum::Json<HealthView> {
    let (registry, is_secure) =
        plane.public_registry().map(|public| (public.authority, public.is_secure)).unzip();
    axum::Json(HealthView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        registry,
        registry_secure: is_secure.unwrap_or_default(),
        ingress: Some(plane.public.ingress.clone()),
    })
}

async fn openapi_document() -> axum::Json<serde_json::Value> {
    static DOCUMENT: LazyLock<serde_json::Value> = LazyLock::new(openapi::document);
    axum::Json(DOCUMENT.clone())
}

/// What a code means, to where the `type` of a problem leads.
async fn error_page(Path(code): Path<String>) -> Result<impl IntoResponse, Refusal> {
    let found = ProblemCode::ALL.into_iter().find(|known| known.as_str() == code);
    let found = found.ok_or_else(|| Problem::not_found("code", &code))?;
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], found.page()))
}

/// Writes an event of what is about to be done.
async fn tell(
    plane: &Plane,
    caller: &Caller,
    project: Option<&ProjectName>,
    (what, subject): (&str, &str),
) -> Result<(), Refusal> {
    let event = with_event(Transaction::new(), &caller.who(), project, what, subject);
    plane.store.commit(event).await.map_err(store_failed)?;
    Ok(())
}

/// A failure of the store as an answer. The caller did nothing wrong and may try again.
pub fn store_failed(error: StoreError) -> Refusal {
    if matches!(error, StoreError::DiskFull { .. }) {
        tracing::warn!("{error}");
        let detail = format!("{error}; nothing was changed: make room there and try again");
        return Problem::new(ProblemCode::Unavailable, detail).into();
    }
    tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
    Problem::new(ProblemCode::Unavailable, "the store failed; nothing was changed").into()
}

/// A part of a path parsed into its type, or a problem that names it.
fn parse<T: std::str::FromStr<Err = longshore_types::ParseError>>(
    field: &str,
    text: &str,
) -> Result<T, Refusal> {
    text.parse().map_err(|error| Refusal(Problem::invalid_field(field, &error)))
}

/// A query parameter that is true or false; alone, without a value, it is true.
fn flag(field: &str, text: Option<&str>, default: bool) -> Result<bool, Refusal> {
    match text {
        None => Ok(default),
        Some("false") => Ok(false),
        Some("true" | "") => Ok(true),
        Some(other) => Err(invalid(field, other, "true or false")),
    }
}

/// A query parameter that is a whole number within bounds.
fn number(
    field: &str,
    text: Option<&str>,
    allowed: std::ops::RangeInclusive<usize>,
) -> Result<Option<usize>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(number) if allowed.contains(&number) => Ok(Some(number)),
        _ => {
            let (least, most) = (allowed.start(), allowed.end());
            Err(invalid(field, text, &format!("a whole number from {least} to {most}")))
        }
    }
}

fn invalid(field: &str, text: &str, allowed: &str) -> Refusal {
    Problem::invalid_value(field, format_args!("{text:?}"), allowed).into()
}
