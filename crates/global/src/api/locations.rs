//! Locations, and what they have of an app.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use longshore_api::Problem;
use longshore_api::v1::{AppLocationView, LocationView};
use longshore_link::Refusal;
use longshore_types::{LocationName, ProjectName};
use serde::Deserialize;

use super::access::Caller;
use super::apps::app_key;
use super::params::{Path, Query};
use super::{flag, parse};
use crate::{Plane, views};

type Shared = State<Arc<Plane>>;

#[derive(Debug, Deserialize)]
pub struct LocationsQuery {
    nodes: Option<String>,
}

pub async fn list(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Query(query): Query<LocationsQuery>,
) -> Result<Json<Vec<LocationView>>, Refusal> {
    let with_nodes = flag("nodes", query.nodes.as_deref(), true)?;
    let (catalog, reports) = (plane.catalog(), plane.reports.now());
    let views = reports.values().map(|received| {
        let mut view = views::location(&catalog, &reports, received, may_look_at(&caller));
        if !with_nodes {
            view.nodes.clear();
        }
        view
    });
    Ok(Json(views.collect()))
}

pub async fn show(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path(location): Path<String>,
) -> Result<Json<LocationView>, Refusal> {
    let name: LocationName = parse("location", &location)?;
    let reports = plane.reports.now();
    let received = reports.get(&name).ok_or_else(|| Problem::not_found("location", &name))?;
    Ok(Json(views::location(&plane.catalog(), &reports, received, may_look_at(&caller))))
}

fn may_look_at(caller: &Caller) -> impl Fn(&ProjectName) -> bool {
    |project| caller.rights.role_in(project).is_some()
}

/// Of one app.
pub async fn of_app(
    State(plane): Shared,
    Path((project, app)): Path<(String, String)>,
) -> Result<Json<Vec<AppLocationView>>, Refusal> {
    let key = app_key(&project, &app)?;
    let catalog = plane.catalog();
    catalog.app(&key)?;
    Ok(Json(views::app_locations(&catalog, &plane.reports.now(), &key)))
}
