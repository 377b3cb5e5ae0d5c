//! What instances use: asked of their nodes when somebody looks, and never kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use futures_util::{StreamExt, stream};
use http::Method;
use longshore_api::Problem;
use longshore_api::links::{InstanceStatus, InstanceUsage, UsageRequest};
use longshore_api::v1::UsageView;
use longshore_link::Refusal;
use longshore_types::{AppName, InstanceId, LocationName, NodeName, ProjectName};
use serde::Deserialize;

use super::instances::gate;
use super::params::{Path, Query};
use super::parse;
use crate::Plane;
use crate::catalog::Catalog;
use crate::reports::Received;

/// How many nodes are asked at the same time.
const ASKED_AT_ONCE: usize = 16;

#[derive(Debug, Deserialize)]
pub struct Filter {
    app: Option<String>,
    instance: Option<String>,
}

/// Everything that is to be asked of one node.
struct Question {
    received: Received,
    node: NodeName,
    statuses: Vec<InstanceStatus>,
}

/// What the instances of a project use. A node that does not answer leaves its part out.
pub async fn list(
    State(plane): State<Arc<Plane>>,
    Path(project): Path<String>,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<UsageView>>, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let app: Option<AppName> = filter.app.map(|app| parse("app", &app)).transpose()?;
    let id: Option<InstanceId> = filter.instance.map(|id| parse("instance", &id)).transpose()?;
    let catalog = plane.catalog();
    if let Some(app) = &app {
        catalog.app(&(project.clone(), app.clone()))?;
    }
    let wanted = |status: &InstanceStatus| {
        status.project == project
            && app.as_ref().is_none_or(|app| status.app == *app)
            && id.as_ref().is_none_or(|id| status.observed.instance == *id)
    };
    let questions = questions(&plane, wanted);
    let answers = stream::iter(questions).map(|question| ask(&plane, &catalog, question));
    let views: Vec<Vec<UsageView>> = answers.buffered(ASKED_AT_ONCE).collect().await;
    let mut views: Vec<UsageView> = views.into_iter().flatten().collect();
    if let Some(id) = id.filter(|_| views.is_empty()) {
        return Err(Problem::not_found("instance", id).into());
    }
    views.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(Json(views))
}

fn questions(plane: &Plane, wanted: impl Fn(&InstanceStatus) -> bool) -> Vec<Question> {
    let mut by_node: BTreeMap<(LocationName, NodeName), Question> = BTreeMap::new();
    for received in plane.reports.now().values() {
        for status in received.instances().filter(|status| wanted(status)) {
            let key = (received.report.location.clone(), status.node.clone());
            let question = by_node.entry(key).or_insert_with(|| Question {
                received: received.clone(),
                node: status.node.clone(),
                statuses: Vec::new(),
            });
            question.statuses.push(status.clone());
        }
    }
    by_node.into_values().collect()
}

async fn ask(plane: &Plane, catalog: &Catalog, question: Question) -> Vec<UsageView> {
    let instances = question.statuses.iter().map(|s| s.observed.instance.clone()).collect();
    let request = UsageRequest { instances };
    let path = format!("/gate/nodes/{}/usage", question.node);
    let answered: Result<Vec<InstanceUsage>, Refusal> = match gate(plane, &question.received) {
        Err(refusal) => Err(refusal),
        Ok(location) => location
            .call(Method::POST, &path, Some(&request))
            .await
            .map_err(super::instances::gate_failed),
    };
    let usages = answered.unwrap_or_else(|refusal| {
        // Logged where it was found; what is known of the instances is shown all the same.
        tracing::debug!(node = %question.node, detail = refusal.0.detail, "no usage");
        Vec::new()
    });
    let mut by_id: BTreeMap<_, _> =
        usages.into_iter().map(|usage| (usage.instance.clone(), usage)).collect();
    let view = |status: InstanceStatus| {
        let key = (status.project, status.app.clone(), status.release);
        Some(UsageView {
            app: status.app,
            location: question.received.report.location.clone(),
            node: status.node,
            phase: status.observed.phase,
            restarts: status.observed.restarts,
            // An app that was removed a moment ago has no releases any more.
            limits: catalog.releases.get(&key)?.manifest.resources.clone(),
            usage: by_id.remove(&status.observed.instance),
            instance: status.observed.instance,
        })
    };
    question.statuses.into_iter().filter_map(view).collect()
}
