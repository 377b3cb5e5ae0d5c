//! Instances: look, explain, stop, logs, exec, ports.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::{Extension, Json};
use http::{Method, StatusCode};
use longshore_api::links::{
    AttachRequest, ExecQueryProblem, ExecRequest, InstanceStatus, StopInstance,
};
use longshore_api::v1::{Explanation, InstanceView};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, Refusal, Upgrade, relay};
use longshore_types::{AppName, InstanceId, LocationName, Port, ProjectName};
use serde::{Deserialize, Serialize};

use super::access::Caller;
use super::params::{Path, Query};
use super::{flag, invalid, number, parse, tell};
use crate::reports::Received;
use crate::{Plane, strays, views};

type Shared = State<Arc<Plane>>;

/// The most instances that are listed at once to who sets a limit.
const MOST: usize = 10_000;

#[derive(Debug, Deserialize)]
pub struct Filter {
    app: Option<String>,
    location: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

pub async fn list(
    State(plane): Shared,
    Path(project): Path<String>,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<InstanceView>>, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let app: Option<AppName> = filter.app.map(|app| parse("app", &app)).transpose()?;
    let location: Option<LocationName> =
        filter.location.map(|location| parse("location", &location)).transpose()?;
    let after: Option<InstanceId> = filter.after.map(|id| parse("after", &id)).transpose()?;
    let limit = number("limit", filter.limit.as_deref(), 1..=MOST)?;
    let reports = plane.reports.now();
    if let Some(app) = &app {
        let key = (project.clone(), app.clone());
        if strays::of(&reports, &key).next().is_none() {
            plane.catalog().app(&key)?;
        }
    }
    if let Some(location) = location.as_ref().filter(|location| !reports.contains_key(*location)) {
        return Err(Problem::not_found("location", location).into());
    }
    let mut found: Vec<_> = views::statuses(&reports, &project)
        .filter(|(_, status)| app.as_ref().is_none_or(|app| *app == status.app))
        .filter(|(place, _)| location.as_ref().is_none_or(|location| location == *place))
        .filter(|(_, status)| after.as_ref().is_none_or(|after| status.observed.instance > *after))
        .collect();
    // By a key that never changes, so that whoever reads page after page misses none.
    found.sort_unstable_by_key(|(_, status)| &status.observed.instance);
    found.truncate(limit.unwrap_or(usize::MAX));
    Ok(Json(
        found.into_iter().map(|(location, status)| views::instance(location, status)).collect(),
    ))
}

/// The instance that a path names.
pub(super) fn find(
    plane: &Plane,
    project: &str,
    id: &str,
) -> Result<(Received, InstanceStatus), Refusal> {
    let project: ProjectName = parse("project", project)?;
    let id: InstanceId = parse("instance", id)?;
    plane.reports.find(&project, &id).ok_or_else(|| Problem::not_found("instance", id).into())
}

pub async fn show(
    State(plane): Shared,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<InstanceView>, Refusal> {
    let (received, status) = find(&plane, &project, &id)?;
    Ok(Json(views::instance(&received.report.location, &status)))
}

pub async fn explain(
    State(plane): Shared,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Explanation>, Refusal> {
    let (received, status) = find(&plane, &project, &id)?;
    let location = &received.report.location;
    let key = (location.clone(), status.project.clone(), status.app.clone());
    let catalog = plane.catalog();
    let allotment = catalog.allotments.get(&key).ok_or_else(|| {
        let app = (status.project.clone(), status.app.clone());
        let is_stray = strays::of(&plane.reports.now(), &app).any(|at| at == location);
        let detail = match &status.observed.note {
            Some(note) if is_stray => format!("{id} goes on: {note}"),
            _ => format!("{id} is leaving: {} is no longer wanted in {location}", status.app),
        };
        Problem::new(ProblemCode::Conflict, detail)
    })?;
    Ok(Json(Explanation {
        instance: views::instance(location, &status),
        location: allotment.record.decision.clone(),
        node: status.decision,
    }))
}

/// A client of the HTTP interface of the location that reported an instance.
pub(super) fn gate(plane: &Plane, received: &Received) -> Result<Client, Refusal> {
    plane.gate(&received.report)
}

pub(super) fn gate_failed(error: CallError) -> Refusal {
    match error {
        CallError::Refused(problem) => problem.into(),
        error => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot ask a location");
            let detail = "the location of the instance cannot be reached now; try again";
            Problem::new(ProblemCode::Unavailable, detail).into()
        }
    }
}

pub async fn stop(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (received, status) = find(&plane, &project, &id)?;
    tell(&plane, &caller, Some(&status.project), ("stop", &id)).await?;
    let order = StopInstance { instance: status.observed.instance };
    let location = gate(&plane, &received)?;
    let answer = location.call::<_, ()>(Method::POST, "/gate/stop", Some(&order));
    answer.await.map_err(gate_failed)?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Debug, Deserialize, Serialize)]
pub struct LogsQuery {
    tail: Option<String>,
    follow: Option<String>,
    since: Option<String>,
}

pub async fn logs(
    State(plane): Shared,
    Path((project, id)): Path<(String, String)>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Refusal> {
    let (received, status) = find(&plane, &project, &id)?;
    let tail = number("tail", query.tail.as_deref(), 0..=usize::MAX)?;
    let follow = flag("follow", query.follow.as_deref(), false)?;
    let since: u64 = match &query.since {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| invalid("since", text, "milliseconds since 1970, a whole number"))?,
    };
    let node = &status.node;
    let mut path = format!("/gate/nodes/{node}/instances/{id}/logs?follow={follow}&since={since}");
    if let Some(tail) = tail {
        path.push_str(&format!("&tail={tail}"));
    }
    let location = gate(&plane, &received)?;
    let answer = location.send(Method::GET, &path, None::<&()>);
    Ok(relay(answer.await.map_err(gate_failed)?, plane.service.shutdown()))
}

pub async fn exec(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, id)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let (received, status) = find(&plane, &project, &id)?;
    let request = ExecRequest::from_query(&query.unwrap_or_default()).map_err(refused)?;
    // The program alone: its arguments may hold what is nobody else's business.
    let subject = format!("{id}: {}", request.command[0]);
    tell(&plane, &caller, Some(&status.project), ("exec", &subject)).await?;
    let below = format!("{id}/exec?{}", request.to_query());
    upgraded(&plane, (&received, &status), &below, upgrade).await
}

/// Asks the node of an instance for an upgrade, and passes the bytes on.
async fn upgraded(
    plane: &Plane,
    (received, status): (&Received, &InstanceStatus),
    below: &str,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let path = format!("/gate/nodes/{}/instances/{below}", status.node);
    let answer = gate(plane, received)?.relay_upgrade(&path, upgrade, &plane.service).await;
    answer.map_err(gate_failed)
}

pub async fn attach(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, id)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let (received, status) = find(&plane, &project, &id)?;
    let request = AttachRequest::from_query(&query.unwrap_or_default()).map_err(refused)?;
    tell(&plane, &caller, Some(&status.project), ("attach", &id)).await?;
    let below = format!("{id}/attach?{}", request.to_query());
    upgraded(&plane, (&received, &status), &below, upgrade).await
}

fn refused(problem: ExecQueryProblem) -> Refusal {
    invalid(&problem.field, &problem.value, problem.allowed)
}

#[derive(Debug, Deserialize)]
pub struct PortQuery {
    port: Option<String>,
}

/// One connection to a port of an instance. No event: a browser makes many, and they change nothing
/// that the instance does not let its own network change.
pub async fn port_forward(
    State(plane): Shared,
    Path((project, id)): Path<(String, String)>,
    Query(PortQuery { port }): Query<PortQuery>,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let (received, status) = find(&plane, &project, &id)?;
    let port: Port = parse("port", port.as_deref().unwrap_or_default())?;
    let below = format!("{id}/port-forward?port={port}");
    upgraded(&plane, (&received, &status), &below, upgrade).await
}
