//! Files of instances, as archives. They go through here as they come, whatever their size.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{Method, StatusCode};
use longshore_api::links::{ArchiveRequest, TAR};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Client, Refusal, relay_whole};
use serde::Deserialize;

use super::access::Caller;
use super::instances::{find, gate, gate_failed};
use super::params::{Path, Query};
use super::{flag, invalid, tell};
use crate::Plane;

#[derive(Debug, Deserialize)]
pub struct ArchiveQuery {
    path: Option<String>,
    cp: Option<String>,
    owners: Option<String>,
}

impl ArchiveQuery {
    fn request(self) -> Result<ArchiveRequest, Refusal> {
        let path = self.path.unwrap_or_default();
        if path.is_empty() || path.contains('\0') {
            return Err(invalid("path", &path, "a path in the instance, such as /var/log"));
        }
        let cp = flag("cp", self.cp.as_deref(), false)?;
        let owners = flag("owners", self.owners.as_deref(), false)?;
        Ok(ArchiveRequest { path, cp, owners })
    }
}

/// The location of an instance and the path of its files there, once it is told that they are copied.
async fn begin(
    plane: &Plane,
    caller: &Caller,
    (project, id): (&str, &str),
    query: ArchiveQuery,
    way: &str,
) -> Result<(Client, String), Refusal> {
    let (received, status) = find(plane, project, id)?;
    let request = query.request()?;
    let subject = format!("{way} {id}:{}", request.path.escape_debug());
    tell(plane, caller, Some(&status.project), ("cp", &subject)).await?;
    let query = request.to_query();
    let path = format!("/gate/nodes/{}/instances/{id}/archive?{query}", status.node);
    Ok((gate(plane, &received)?, path))
}

pub async fn pack(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Path((project, id)): Path<(String, String)>,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response, Refusal> {
    let (location, path) = begin(&plane, &caller, (&project, &id), query, "from").await?;
    let answer = location.send(Method::GET, &path, None::<&()>).await;
    Ok(relay_whole(answer.map_err(gate_failed)?, plane.service.shutdown()))
}

pub async fn unpack(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Path((project, id)): Path<(String, String)>,
    Query(query): Query<ArchiveQuery>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let (location, path) = begin(&plane, &caller, (&project, &id), query, "to").await?;
    let sent = location.upload(Method::PUT, &path, TAR, body.into_data_stream());
    let ending = || Problem::new(ProblemCode::Unavailable, "the API is shutting down");
    let sent = plane.service.shutdown().run_until_cancelled_owned(sent).await;
    sent.ok_or_else(ending)?.map_err(gate_failed)?;
    Ok(StatusCode::NO_CONTENT)
}
