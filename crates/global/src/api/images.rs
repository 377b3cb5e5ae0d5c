//! The images of nodes, which their locations are asked for.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Method;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Refusal};
use longshore_types::{LocationName, NodeImage, NodeName};

use super::instances::{gate, gate_failed};
use super::params::Path;
use super::parse;
use crate::Plane;
use crate::reports::Received;

/// What a node has, as it says itself: reports have no more of it than which images are whole.
pub async fn of_node(
    State(plane): State<Arc<Plane>>,
    Path((location, node)): Path<(String, String)>,
) -> Result<Json<Vec<NodeImage>>, Refusal> {
    let location: LocationName = parse("location", &location)?;
    let node: NodeName = parse("node", &node)?;
    let reports = plane.reports.now();
    let received = reports.get(&location);
    let received = received.ok_or_else(|| Problem::not_found("location", &location))?;
    if !received.report.nodes.iter().any(|summary| summary.node == node) {
        return Err(Problem::not_found("node", &node).into());
    }
    ask(&plane, received, &node).await.map(Json)
}

/// Asks a node, through its location.
pub async fn ask(
    plane: &Plane,
    received: &Received,
    node: &NodeName,
) -> Result<Vec<NodeImage>, Refusal> {
    let path = format!("/gate/nodes/{node}/images");
    let images = gate(plane, received)?.call::<(), _>(Method::GET, &path, None).await;
    images.map_err(|error| match error {
        CallError::Status { status: 404, .. } => {
            let location = &received.report.location;
            let detail =
                format!("location {location} is of an earlier release, which does not tell");
            Problem::new(ProblemCode::Unavailable, detail).into()
        }
        error => gate_failed(error),
    })
}
