//! The public REST API; `longshore_api::v1` lists it.

mod apps;
mod instances;
mod plan;
mod releases;
pub mod secrets;
mod tokens;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::header;
use longshore_api::v1::{HealthView, LocationView};
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_store::StoreError;

use crate::{Plane, views};

/// The largest body that a request may have: a manifest is a few KiB.
const MAX_BODY: usize = 1 << 20;

pub fn router(plane: Arc<Plane>) -> Router {
    let guarded = Router::new()
        .route("/projects/{project}/apps", get(apps::list))
        .route(
            "/projects/{project}/apps/{app}",
            get(apps::show).put(apps::deploy).delete(apps::remove),
        )
        .route("/projects/{project}/apps/{app}/plan", post(plan::show))
        .route("/projects/{project}/apps/{app}/scale", post(apps::scale))
        .route("/projects/{project}/apps/{app}/releases", get(releases::list))
        .route("/projects/{project}/apps/{app}/rollback", post(releases::rollback))
        .route("/projects/{project}/apps/{app}/promote", post(releases::promote))
        .route("/projects/{project}/instances", get(instances::list))
        .route("/projects/{project}/instances/{instance}", get(instances::show))
        .route("/projects/{project}/instances/{instance}/explain", get(instances::explain))
        .route("/projects/{project}/instances/{instance}/stop", post(instances::stop))
        .route("/projects/{project}/instances/{instance}/logs", get(instances::logs))
        .route("/projects/{project}/instances/{instance}/exec", post(instances::exec))
        .route("/projects/{project}/secrets", get(secrets::list))
        .route("/projects/{project}/secrets/{name}", put(secrets::set).delete(secrets::remove))
        .route("/secrets/rotate-key", post(secrets::rotate))
        .route("/projects/{project}/usage", get(usage::list))
        .route("/projects/{project}/watch", get(apps::watch))
        .route("/locations", get(locations))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{name}", delete(tokens::remove))
        .layer(from_fn_with_state(Arc::clone(&plane), authorise));
    Router::new()
        .nest("/v1", guarded.route("/health", get(health)))
        .fallback(|| async { Refusal(Problem::not_found("endpoint", "of this path")) })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(plane)
}

/// Lets a request pass when its token may use the API. Today that is an admin's token; roles per
/// project come with issue 4.
async fn authorise(State(plane): State<Arc<Plane>>, request: Request, next: Next) -> Response {
    let value = request.headers().get(header::AUTHORIZATION);
    let token = value.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(token) = token else {
        let detail = "send Authorization: Bearer and a token; the first one is in the file admin-token of the data directory";
        return Refusal(Problem::new(ProblemCode::Unauthenticated, detail)).into_response();
    };
    let hash = crate::tokens::hash(token);
    let catalog = plane.catalog();
    match catalog.tokens.values().find(|record| record.hash == hash) {
        None => {
            let detail = "this token is not known here; it may have been removed";
            Refusal(Problem::new(ProblemCode::Unauthenticated, detail)).into_response()
        }
        Some(record) if !record.rights.admin => {
            let detail =
                "this token gives rights in the registry only; the API needs an admin token";
            Refusal(Problem::new(ProblemCode::Forbidden, detail)).into_response()
        }
        Some(_) => next.run(request).await,
    }
}

async fn health(State(plane): State<Arc<Plane>>) -> axum::Json<HealthView> {
    axum::Json(HealthView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        registry: Some(plane.public.registry.clone()),
        ingress: Some(plane.public.ingress.clone()),
    })
}

async fn locations(State(plane): State<Arc<Plane>>) -> axum::Json<Vec<LocationView>> {
    axum::Json(plane.reports.now().values().map(views::location).collect())
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
