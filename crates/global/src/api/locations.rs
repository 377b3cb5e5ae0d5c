//! Locations, and what they have of an app.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use longshore_api::v1::{AppLocationView, AppMoveView, LocationView};
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_store::{MAX_OPERATIONS, Transaction};
use longshore_types::{AppName, LocationName, ProjectName};
use serde::Deserialize;

use super::access::Caller;
use super::apps::app_key;
use super::cordons::move_view;
use super::params::{Path, Query};
use super::{flag, parse, store_failed};
use crate::catalog::Catalog;
use crate::events::with_event;
use crate::records::{Key, LocationRecord};
use crate::reports::Received;
use crate::{Plane, scheduler, views};

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

/// Forgets a location that joined from another machine and has nothing any more, or of which nothing is heard. Its
/// certificates open nothing from then on.
pub async fn remove(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path(location): Path<String>,
) -> Result<StatusCode, Refusal> {
    let name: LocationName = parse("location", &location)?;
    let catalog = plane.catalog();
    refuse_needed(&plane, &catalog, &name)?;
    if catalog.locations.contains_key(&name) {
        let change = Transaction::new()
            .delete(Key::Location(name.clone()).to_string())
            .delete_prefix(Key::Cordon(name.clone(), None).to_string());
        let change = with_event(change, &caller.who(), None, "locations rm", &name);
        let result = plane.store.commit(change).await.map_err(store_failed)?;
        plane.catalog.reached(result.revision).await;
    }
    // Whoever is not let in reports no more, so that nothing new is planned there. What is left of a
    // removal that was broken off is removed by the next one.
    plane.reports.forget(&name);
    loop {
        let left = allotments_of(&plane.catalog(), &name);
        if left.is_empty() {
            return Ok(StatusCode::NO_CONTENT);
        }
        let change = left.into_iter().take(MAX_OPERATIONS / 2);
        let change = change.fold(Transaction::new(), Transaction::delete);
        let result = plane.store.commit(change).await.map_err(store_failed)?;
        plane.catalog.reached(result.revision).await;
    }
}

/// What removing a location would have started elsewhere, when it can be removed.
pub async fn preview_removal(
    State(plane): Shared,
    Path(location): Path<String>,
) -> Result<Json<Vec<AppMoveView>>, Refusal> {
    let name: LocationName = parse("location", &location)?;
    let catalog = plane.catalog();
    refuse_needed(&plane, &catalog, &name)?;
    let moves = scheduler::preview_removal(&catalog, &plane.reports.now(), &name);
    Ok(Json(moves.into_iter().map(move_view).collect()))
}

/// Refuses to forget a location that is none, or is needed.
fn refuse_needed(plane: &Plane, catalog: &Catalog, name: &LocationName) -> Result<(), Refusal> {
    let record = catalog.locations.get(name);
    let is_left = !allotments_of(catalog, name).is_empty();
    let Some(record) = record else {
        return match is_left {
            true => Ok(()),
            false => Err(Problem::not_found("location", name).into()),
        };
    };
    let reports = plane.reports.now();
    why_not_removed(record, reports.get(name), is_left).map_or(Ok(()), |why| {
        let detail = format!("location {name} is not removed: {why}");
        Err(Problem::new(ProblemCode::Conflict, detail).into())
    })
}

/// The keys of what a location was given.
fn allotments_of(catalog: &Catalog, location: &LocationName) -> Vec<String> {
    let key = |project: &ProjectName, app: &AppName| {
        Key::Allotment(location.clone(), project.clone(), app.clone()).to_string()
    };
    catalog.allotted(location).map(|(project, app, _)| key(project, app)).collect()
}

/// What stands in the way of forgetting a location.
fn why_not_removed(
    record: &LocationRecord,
    received: Option<&Received>,
    has_allotments: bool,
) -> Option<String> {
    if record.authority.is_none() {
        return Some("it is of the machine of the control plane".to_owned());
    }
    let received = received.filter(|received| received.reachable())?;
    let count = received.n_instances();
    let name = &received.report.location;
    (has_allotments || count > 0).then(|| {
        format!(
            "it reports, and has {count} instances; `longshore drain --location {name}` empties it"
        )
    })
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
