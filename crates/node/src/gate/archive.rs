//! Files of an instance, read and written as archives for users.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderValue, StatusCode};
use longshore_api::links::{ArchiveRequest, TAR};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Refusal, chain, whole_or_broken};
use longshore_runtime::{ArchiveError, UnpackRequest};
use longshore_types::InstanceId;

use crate::Node;

/// Reads what is at a path. Once the answer has begun, a failure breaks it off.
pub async fn pack(
    State(node): State<Arc<Node>>,
    Path(instance): Path<InstanceId>,
    Query(request): Query<ArchiveRequest>,
) -> Result<Response, Refusal> {
    let reader = node.shims.pack(&instance, &request.path).await.map_err(refusal)?;
    let bytes = stream::try_unfold((reader, instance), |(mut reader, instance)| async move {
        match reader.next().await {
            Ok(Some(chunk)) => {
                let chunk = Bytes::copy_from_slice(chunk);
                Ok(Some((chunk, (reader, instance))))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                let shown = &error as &dyn std::error::Error;
                tracing::warn!(%instance, error = shown, "a copy of files broke off");
                Err(error)
            }
        }
    });
    let shutdown = node.service.shutdown();
    Ok(whole_or_broken(HeaderValue::from_static(TAR), bytes, shutdown))
}

/// Unpacks an archive as it comes. One that breaks off leaves what was unpacked before, and no file
/// that is not whole.
pub async fn unpack(
    State(node): State<Arc<Node>>,
    Path(instance): Path<InstanceId>,
    Query(request): Query<ArchiveRequest>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let ArchiveRequest { path, cp, owners } = request;
    let request = UnpackRequest { path, as_cp: cp, keep_owners: owners };
    let mut writer = node.shims.unpack(&instance, request).await.map_err(refusal)?;
    let mut body = body.into_data_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            let detail = format!("the archive broke off: {error}");
            Problem::new(ProblemCode::InvalidRequest, detail)
        })?;
        let taken = writer.write(&chunk).await.map_err(|error| refusal(error.into()))?;
        if !taken {
            break;
        }
    }
    writer.finish().await.map_err(refusal)?;
    Ok(StatusCode::NO_CONTENT)
}

fn refusal(error: ArchiveError) -> Refusal {
    let code = match error {
        ArchiveError::Missing { .. } => ProblemCode::NotFound,
        ArchiveError::BadArchive { .. } => ProblemCode::InvalidRequest,
        ArchiveError::NotRunning(_)
        | ArchiveError::Sandboxed
        | ArchiveError::Spec(_)
        | ArchiveError::Io(_)
        | ArchiveError::Failed { .. }
        | ArchiveError::Died => ProblemCode::Conflict,
    };
    Problem::new(code, chain(&error)).into()
}
