//! The public REST API; `longshore_api::v1` lists it.

mod access;
mod apps;
mod events;
mod instances;
mod plan;
mod releases;
pub mod secrets;
mod tokens;
mod usage;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, MethodRouter, get, on};
use http::header;
use longshore_api::v1::{HealthView, LocationView};
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_store::{StoreError, Transaction};
use longshore_types::ProjectName;
use longshore_types::token::Role;

use crate::events::with_event;
use crate::{Plane, views};
pub use access::Access;
use access::{Caller, Guard, authorise};

/// The largest body that a request may have: a manifest is a few KiB.
const MAX_BODY: usize = 1 << 20;

/// The whole API.
pub fn router(plane: Arc<Plane>) -> Router {
    let guarded = endpoints().into_iter().fold(Router::new(), |router, endpoint| {
        let guard = Guard { plane: Arc::clone(&plane), access: endpoint.access };
        router.route(endpoint.path, endpoint.handler.layer(from_fn_with_state(guard, authorise)))
    });
    Router::new()
        .nest("/v1", guarded.route("/health", get(health)).route("/errors/{code}", get(error_page)))
        .fallback(|| async { Refusal(Problem::not_found("endpoint", "of this path")) })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(plane)
}

/// One method of one path below `/v1`. There is no other way to be served than by being in this list,
/// and so no way to be served without a word on who may call it.
struct Endpoint {
    method: Verb,
    path: &'static str,
    access: Access,
    handler: MethodRouter<Arc<Plane>>,
}

/// A method by its name, and as the router has it.
type Verb = (&'static str, MethodFilter);

const GET: Verb = ("GET", MethodFilter::GET);
const PUT: Verb = ("PUT", MethodFilter::PUT);
const POST: Verb = ("POST", MethodFilter::POST);
const DELETE: Verb = ("DELETE", MethodFilter::DELETE);

fn endpoint<H: Handler<T, Arc<Plane>>, T: 'static>(
    method: Verb,
    path: &'static str,
    access: Access,
    handler: H,
) -> Endpoint {
    Endpoint { method, path, access, handler: on(method.1, handler) }
}

fn endpoints() -> Vec<Endpoint> {
    use Access::{Everywhere, InProject, SomeProject};
    const READ: Access = InProject(Role::Read);
    const DEPLOY: Access = InProject(Role::Deploy);
    vec![
        endpoint(GET, "/projects/{project}/apps", READ, apps::list),
        endpoint(GET, "/projects/{project}/apps/{app}", READ, apps::show),
        endpoint(PUT, "/projects/{project}/apps/{app}", DEPLOY, apps::deploy),
        endpoint(DELETE, "/projects/{project}/apps/{app}", DEPLOY, apps::remove),
        endpoint(POST, "/projects/{project}/apps/{app}/plan", READ, plan::show),
        endpoint(POST, "/projects/{project}/apps/{app}/scale", DEPLOY, apps::scale),
        endpoint(GET, "/projects/{project}/apps/{app}/releases", READ, releases::list),
        endpoint(POST, "/projects/{project}/apps/{app}/rollback", DEPLOY, releases::rollback),
        endpoint(POST, "/projects/{project}/apps/{app}/promote", DEPLOY, releases::promote),
        endpoint(GET, "/projects/{project}/instances", READ, instances::list),
        endpoint(GET, "/projects/{project}/instances/{instance}", READ, instances::show),
        endpoint(GET, "/projects/{project}/instances/{instance}/explain", READ, instances::explain),
        endpoint(POST, "/projects/{project}/instances/{instance}/stop", DEPLOY, instances::stop),
        endpoint(GET, "/projects/{project}/instances/{instance}/logs", READ, instances::logs),
        // Who runs commands inside reads what is secret there, and changes what it likes.
        endpoint(POST, "/projects/{project}/instances/{instance}/exec", DEPLOY, instances::exec),
        endpoint(GET, "/projects/{project}/secrets", READ, secrets::list),
        endpoint(PUT, "/projects/{project}/secrets/{name}", DEPLOY, secrets::set),
        endpoint(DELETE, "/projects/{project}/secrets/{name}", DEPLOY, secrets::remove),
        endpoint(GET, "/projects/{project}/usage", READ, usage::list),
        endpoint(GET, "/projects/{project}/watch", READ, watch::watch),
        endpoint(POST, "/secrets/rotate-key", Everywhere, secrets::rotate),
        // Those of the projects that the caller may look at.
        endpoint(GET, "/events", SomeProject(Role::Read), events::list),
        endpoint(GET, "/locations", SomeProject(Role::Read), locations),
        // Whose tokens these may be is looked at there.
        endpoint(GET, "/tokens", SomeProject(Role::Admin), tokens::list),
        endpoint(POST, "/tokens", SomeProject(Role::Admin), tokens::create),
        endpoint(DELETE, "/tokens/{name}", SomeProject(Role::Admin), tokens::remove),
    ]
}

/// Every method and path of the API below `/v1` that asks for a token, with who may call it.
pub fn accesses() -> Vec<(&'static str, &'static str, Access)> {
    endpoints().iter().map(|endpoint| (endpoint.method.0, endpoint.path, endpoint.access)).collect()
}

async fn health(State(plane): State<Arc<Plane>>) -> axum::Json<HealthView> {
    axum::Json(HealthView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        registry: Some(plane.public.registry.clone()),
        ingress: Some(plane.public.ingress.clone()),
    })
}

/// What a code means, to where the `type` of a problem leads.
async fn error_page(Path(code): Path<String>) -> Result<impl IntoResponse, Refusal> {
    let found = ProblemCode::ALL.into_iter().find(|known| known.as_str() == code);
    let found = found.ok_or_else(|| Problem::not_found("code", &code))?;
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], found.page()))
}

async fn locations(State(plane): State<Arc<Plane>>) -> axum::Json<Vec<LocationView>> {
    axum::Json(plane.reports.now().values().map(views::location).collect())
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
