//! What was changed, for those who may look at where it was.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::{Extension, Json};
use longshore_api::v1::EventView;
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_types::ProjectName;
use serde::Deserialize;

use super::access::Caller;
use super::{parse, store_failed};
use crate::Plane;
use crate::events::{self, EventsError};

/// How many are told to who does not say, and at most.
const LIMIT: (usize, usize) = (100, 10_000);

#[derive(Debug, Deserialize)]
pub struct EventsQuery {
    project: Option<String>,
    limit: Option<String>,
}

pub async fn list(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Vec<EventView>>, Refusal> {
    let wanted: Option<ProjectName> =
        query.project.as_deref().map(|text| parse("project", text)).transpose()?;
    let limit = match &query.limit {
        None => LIMIT.0,
        Some(text) => {
            let limit = text.parse().ok().filter(|limit| (1..=LIMIT.1).contains(limit));
            limit.ok_or_else(|| {
                let allowed = format!("a whole number from 1 to {}", LIMIT.1);
                Problem::invalid_value("limit", format_args!("{text:?}"), allowed)
            })?
        }
    };
    let is_shown = |event: &EventView| match &event.project {
        Some(project) => {
            wanted.as_ref().is_none_or(|wanted| wanted == project)
                && caller.rights.role_in(project).is_some()
        }
        None => wanted.is_none() && caller.rights.admin,
    };
    match events::newest(plane.store.as_ref(), limit, is_shown).await {
        Ok(events) => Ok(Json(events)),
        Err(EventsError::Store(error)) => Err(store_failed(error)),
        Err(EventsError::Record(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "an event cannot be read");
            Err(Problem::new(ProblemCode::Internal, "an event cannot be understood").into())
        }
    }
}
