//! What was changed, for those who may look at where it was.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream::{self, StreamExt};
use http::HeaderMap;
use longshore_api::v1::EventView;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Refusal, event_frame, event_stream, last_event, wants_events};
use longshore_store::Revision;
use longshore_types::ProjectName;
use serde::Deserialize;

use super::access::Caller;
use super::params::Query;
use super::{number, parse, store_failed};
use crate::Plane;
use crate::events::{self, EventsError, News};

/// How many are told to who does not say.
const USUAL: usize = 100;
/// How many are told at most.
const MOST: usize = 10_000;

#[derive(Debug, Deserialize)]
pub struct EventsQuery {
    project: Option<String>,
    limit: Option<String>,
}

/// Whose events somebody is shown.
struct Shown {
    wanted: Option<ProjectName>,
    caller: Caller,
}

impl Shown {
    fn has(&self, event: &EventView) -> bool {
        let (wanted, rights) = (&self.wanted, &self.caller.rights);
        match &event.project {
            Some(project) => {
                wanted.as_ref().is_none_or(|wanted| wanted == project)
                    && rights.role_in(project).is_some()
            }
            None => wanted.is_none() && rights.admin,
        }
    }
}

/// The newest, or to who accepts events those from now on, or after the last that they saw.
pub async fn list(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let wanted: Option<ProjectName> =
        query.project.as_deref().map(|text| parse("project", text)).transpose()?;
    let limit = number("limit", query.limit.as_deref(), 1..=MOST)?.unwrap_or(USUAL);
    let shown = Shown { wanted, caller };
    if wants_events(&headers) {
        let last = last_event(&headers).and_then(|id| id.parse().ok());
        return Ok(follow(plane, shown, last.map(Revision)));
    }
    let is_shown = |event: &EventView| shown.has(event);
    match events::newest(plane.store.as_ref(), limit, is_shown).await {
        Ok(events) => Ok(Json(events).into_response()),
        Err(EventsError::Store(error)) => Err(store_failed(error)),
        Err(EventsError::Record(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "an event cannot be read");
            Err(Problem::new(ProblemCode::Internal, "an event cannot be understood").into())
        }
    }
}

/// Events as they are written. What a bearer may see is settled when they ask; a token that is removed
/// is no longer told anything.
fn follow(plane: Arc<Plane>, shown: Shown, last: Option<Revision>) -> Response {
    let mut revision = plane.told.subscribe();
    let place = last.unwrap_or_else(|| *revision.borrow());
    revision.mark_changed();
    let shutdown = plane.service.shutdown();
    let state = (plane, shown, revision, place);
    let frames = stream::unfold(state, |(plane, shown, mut revision, mut place)| async move {
        revision.changed().await.ok()?;
        if !plane.catalog().tokens.contains_key(&shown.caller.token) {
            return None;
        }
        let news = match plane.told.since(&mut place, plane.store.as_ref()).await {
            Ok(news) => news,
            Err(error) => {
                // The reader comes back and begins where it was.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot go on telling events");
                return None;
            }
        };
        let frames = frames(&news, &shown, place);
        Some((stream::iter(frames), (plane, shown, revision, place)))
    });
    event_stream(frames.flatten(), shutdown)
}

fn frames(news: &News, shown: &Shown, place: Revision) -> Vec<bytes::Bytes> {
    let missed = news.missed.then(|| {
        let oldest = news.events.first().map_or(place, |(revision, _)| *revision);
        event_frame("missed", &oldest.0.saturating_sub(1).to_string(), &())
    });
    let told = news.events.iter().filter(|(_, event)| shown.has(event));
    let told = told.map(|(revision, event)| event_frame("event", &revision.0.to_string(), event));
    missed.into_iter().chain(told).collect()
}
