//! A project as it changes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::stream::{self, StreamExt};
use http::HeaderMap;
use longshore_link::{Refusal, event_stream, json_lines, last_event, wants_events};
use longshore_types::{AppName, ProjectName};
use serde::Deserialize;

use super::params::{Path, Query};
use super::{flag, parse};
use crate::Plane;
use crate::feeds::{Feeds, Scope};

#[derive(Debug, Deserialize)]
pub struct WatchQuery {
    app: Option<String>,
    instances: Option<String>,
}

/// Events of what changes to who accepts them, else the whole state again at each change. An app that is
/// not there is nothing that could not come.
pub async fn watch(
    State(plane): State<Arc<Plane>>,
    Path(project): Path<String>,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let app: Option<AppName> = query.app.map(|app| parse("app", &app)).transpose()?;
    let instances = flag("instances", query.instances.as_deref(), true)?;
    let shutdown = plane.service.shutdown();
    let feed = Feeds::join(&plane, Scope { project, app, instances });
    let mut newest = feed.subscribe();
    newest.mark_changed();
    if !wants_events(&headers) {
        let states = stream::unfold((feed, newest), |(feed, mut newest)| async {
            newest.changed().await.ok()?;
            Some((feed.view(), (feed, newest)))
        });
        return Ok(json_lines(states, shutdown));
    }
    let place = feed.place(last_event(&headers));
    let frames =
        stream::unfold((feed, newest, place), |(feed, mut newest, mut place)| async move {
            newest.changed().await.ok()?;
            let news = feed.news(&mut place);
            Some((stream::iter(news), (feed, newest, place)))
        });
    Ok(event_stream(frames.flatten(), shutdown))
}
