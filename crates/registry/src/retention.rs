//! What the owners of a repository say of how long it keeps what no release needs.

use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use longshore_types::{Repository, Retention};

use crate::Registry;
use crate::refusal::{Code, Refusal};
use crate::server::{empty, json};
use crate::storage::Storage;
use crate::uploads::read_whole;

/// Far more than it takes to say it.
const MAX_BODY: usize = 4096;

/// `GET` tells it, `PUT` says it, `DELETE` takes it back.
pub(crate) async fn answer(
    registry: &Arc<Registry>,
    repository: Repository,
    parts: &Parts,
    body: &mut Body,
) -> Result<Response, Refusal> {
    match parts.method {
        Method::PUT => {
            let bytes = read_whole(registry, body, MAX_BODY).await?;
            let retention: Retention = serde_json::from_slice(&bytes).map_err(|error| {
                let message = format!("what is to be kept cannot be understood: {error}");
                Refusal::bad(Code::Unsupported, message)
            })?;
            let said = move |storage: &Storage| storage.set_retention(&repository, &retention);
            registry.blocking(said).await?;
            Ok(json(&retention))
        }
        Method::DELETE => {
            let removed = registry.blocking(move |storage| storage.remove_retention(&repository));
            removed.await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => {
            let found = registry.blocking(move |storage| storage.retention(&repository)).await?;
            Ok(json(&found.unwrap_or_default()))
        }
    }
}
