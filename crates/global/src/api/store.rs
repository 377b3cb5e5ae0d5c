//! The state of the control plane, as a whole.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Refusal, now};
use longshore_store::backup::Backup;
use longshore_store::world::WorldError;

use super::access::Caller;
use super::{store_failed, tell};
use crate::Plane;

/// A backup of the store as it is now. It is read at one revision, so nothing has to stand still.
pub async fn backup(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Refusal> {
    tell(&plane, &caller, None, ("backup", "the store of the control plane")).await?;
    match Backup::take(plane.store.as_ref(), now().0).await {
        Ok(backup) => {
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CACHE_CONTROL, "no-store"),
            ];
            Ok((headers, backup.encode()).into_response())
        }
        Err(WorldError::Store(error)) => Err(store_failed(error)),
        Err(WorldError::Record(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store cannot be read");
            Err(Problem::new(ProblemCode::Internal, "the store cannot be understood").into())
        }
    }
}
