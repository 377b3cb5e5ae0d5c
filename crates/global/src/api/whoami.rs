//! Whose token a request came with.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use longshore_api::v1::CallerView;
use longshore_types::ProjectName;

use super::access::Caller;
use crate::Plane;

pub async fn show(
    State(plane): State<Arc<Plane>>,
    Extension(Caller { token, rights, .. }): Extension<Caller>,
) -> Json<CallerView> {
    let catalog = plane.catalog();
    let with_apps = catalog.apps.keys().map(|(project, _)| project.clone());
    let named = rights.roles.iter().filter_map(|role| role.project.clone());
    let all: BTreeSet<_> = with_apps.chain(named).chain([ProjectName::default()]).collect();
    let projects = all.into_iter().filter(|project| rights.role_in(project).is_some());
    Json(CallerView { projects: projects.collect(), token, rights })
}
