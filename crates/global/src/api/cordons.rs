//! What operators wish of locations and nodes: nothing new, nothing at all, or to be forgotten.
//!
//! A wish is a record of the store, written with the event that tells of it. The schedulers look at it like
//! at everything else; nobody carries out steps. So it outlives every process, and one that was taken back is
//! as if it had never been.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use http::{Method, StatusCode};
use longshore_api::links::{Move, NodeSummary};
use longshore_api::v1::{AppMoveView, CordonRequest};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_planning::global::AppMove;
use longshore_store::{Compare, Relation, Transaction};
use longshore_types::{Cordon, LocationName, NodeName};

use super::access::Caller;
use super::instances::{gate, gate_failed};
use super::params::Path;
use super::{parse, store_failed};
use crate::Plane;
use crate::catalog::Catalog;
use crate::events::with_event;
use crate::records::{CordonRecord, Key, encode};
use crate::reports::Received;
use crate::scheduler;

type Shared = State<Arc<Plane>>;

/// A location, or one of its nodes.
struct Place {
    location: LocationName,
    node: Option<NodeName>,
}

impl Place {
    fn parse(location: &str, node: Option<&str>) -> Result<Self, Refusal> {
        let location = parse("location", location)?;
        Ok(Self { location, node: node.map(|node| parse("node", node)).transpose()? })
    }

    /// As events name it.
    fn subject(&self) -> String {
        match &self.node {
            Some(node) => format!("node {node} of {}", self.location),
            None => format!("location {}", self.location),
        }
    }

    fn key(&self) -> String {
        Key::Cordon(self.location.clone(), self.node.clone()).to_string()
    }

    /// What is wished of it now.
    fn cordon<'a>(&self, catalog: &'a Catalog) -> Option<&'a Cordon> {
        let stored = catalog.cordons.get(&(self.location.clone(), self.node.clone()));
        stored.map(|stored| &stored.record.0)
    }

    /// What its location last reported, if there is such a place.
    fn reported(&self, plane: &Plane) -> Result<Received, Refusal> {
        let reports = plane.reports.now();
        let received = reports.get(&self.location);
        let received = received.ok_or_else(|| Problem::not_found("location", &self.location))?;
        match &self.node {
            Some(node) if summary(received, node).is_none() => {
                Err(Problem::not_found("node", node).into())
            }
            _ => Ok(received.clone()),
        }
    }

    /// Writes what is wished of it, unless something else was wished meanwhile.
    async fn write(
        &self,
        plane: &Plane,
        caller: &Caller,
        what: &str,
        wish: Option<&Cordon>,
    ) -> Result<(), Refusal> {
        let key = self.key();
        let catalog = plane.catalog();
        let unchanged = match catalog.cordons.get(&(self.location.clone(), self.node.clone())) {
            Some(stored) => Compare::mod_revision(&key, Relation::Equal, stored.revision),
            None => Compare::absent(&key),
        };
        let change = Transaction::new().when(unchanged);
        let change = match wish {
            Some(cordon) => change.put(key, encode(&CordonRecord(cordon.clone()))),
            None => change.delete(key),
        };
        let change = with_event(change, &caller.who(), None, what, self.subject());
        let result = plane.store.commit(change).await.map_err(store_failed)?;
        plane.catalog.reached(result.revision).await;
        if result.succeeded {
            return Ok(());
        }
        let detail = format!("something else was wished of {} meanwhile", self.subject());
        Err(Problem::new(ProblemCode::Conflict, detail).into())
    }

    async fn close(
        &self,
        plane: &Plane,
        caller: &Caller,
        CordonRequest { drains }: CordonRequest,
    ) -> Result<Json<Cordon>, Refusal> {
        let catalog = plane.catalog();
        let before = self.cordon(&catalog);
        match before {
            Some(before) if before.removed => {
                let detail = format!("{} was removed; uncordon it first", self.subject());
                return Err(Problem::new(ProblemCode::Conflict, detail).into());
            }
            Some(before) if before.drains == drains => return Ok(Json(before.clone())),
            _ => {}
        }
        self.reported(plane)?;
        let by = Some(caller.token.clone());
        let cordon = Cordon { since: now(), by, drains, removed: false };
        let what = if drains { "drain" } else { "cordon" };
        self.write(plane, caller, what, Some(&cordon)).await?;
        Ok(Json(cordon))
    }

    async fn open(&self, plane: &Plane, caller: &Caller) -> Result<StatusCode, Refusal> {
        if self.cordon(&plane.catalog()).is_some() {
            self.write(plane, caller, "uncordon", None).await?;
        } else {
            // What nobody cordoned is as it should be, if it is there.
            self.reported(plane)?;
        }
        Ok(StatusCode::NO_CONTENT)
    }
}

fn summary<'a>(received: &'a Received, node: &NodeName) -> Option<&'a NodeSummary> {
    received.report.nodes.iter().find(|summary| summary.node == *node)
}

pub async fn close_location(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path(location): Path<String>,
    Body(request): Body<CordonRequest>,
) -> Result<Json<Cordon>, Refusal> {
    Place::parse(&location, None)?.close(&plane, &caller, request).await
}

pub async fn close_node(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((location, node)): Path<(String, String)>,
    Body(request): Body<CordonRequest>,
) -> Result<Json<Cordon>, Refusal> {
    Place::parse(&location, Some(&node))?.close(&plane, &caller, request).await
}

pub async fn open_location(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path(location): Path<String>,
) -> Result<StatusCode, Refusal> {
    Place::parse(&location, None)?.open(&plane, &caller).await
}

pub async fn open_node(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((location, node)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    Place::parse(&location, Some(&node))?.open(&plane, &caller).await
}

/// What draining a location would do, by the planner that would do it.
pub async fn preview_location(
    State(plane): Shared,
    Path(location): Path<String>,
) -> Result<Json<Vec<AppMoveView>>, Refusal> {
    let place = Place::parse(&location, None)?;
    place.reported(&plane)?;
    let (catalog, reports) = (plane.catalog(), plane.reports.now());
    let moves = scheduler::preview_drain(&catalog, &reports, &place.location);
    Ok(Json(moves.into_iter().map(move_view).collect()))
}

/// What would become of an app, as users see it.
pub fn move_view(app: AppMove) -> AppMoveView {
    let (staying, why) = app.stays.map_or((0, None), |(staying, why)| (staying, Some(why)));
    let to = app.to.into_iter().collect();
    AppMoveView { project: app.project, app: app.app, count: app.count, to, staying, why }
}

/// What draining a node would do, by its location, which alone knows its nodes.
pub async fn preview_node(
    State(plane): Shared,
    Path((location, node)): Path<(String, String)>,
) -> Result<Json<Vec<Move>>, Refusal> {
    let place = Place::parse(&location, Some(&node))?;
    let received = place.reported(&plane)?;
    let path = format!("/gate/nodes/{node}/drain");
    let moves = gate(&plane, &received)?.call::<(), Vec<Move>>(Method::GET, &path, None).await;
    Ok(Json(moves.map_err(gate_failed)?))
}

/// What forgetting a node would have started on others, when it can be forgotten.
pub async fn preview_node_removal(
    State(plane): Shared,
    Path((location, node)): Path<(String, String)>,
) -> Result<Json<Vec<Move>>, Refusal> {
    let place = Place::parse(&location, Some(&node))?;
    refuse_needed(&place, &plane.catalog(), &place.reported(&plane)?)?;
    preview_node(State(plane), Path((location, node))).await
}

/// Refuses to forget a node that is needed, or may be.
fn refuse_needed(place: &Place, catalog: &Catalog, received: &Received) -> Result<(), Refusal> {
    let wished = place.cordon(catalog).is_some_and(|cordon| cordon.drains);
    let found = place.node.as_ref().and_then(|node| summary(received, node));
    let refusal = found.and_then(|node| why_not_removed(node, wished, received.reachable()));
    refusal.map_or(Ok(()), |why| {
        let detail = format!("{} is not removed: {why}", place.subject());
        Err(Problem::new(ProblemCode::Conflict, detail).into())
    })
}

/// Forgets a node that has nothing any more, or of which nothing is heard.
pub async fn remove_node(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((location, node)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let place = Place::parse(&location, Some(&node))?;
    let catalog = plane.catalog();
    if place.cordon(&catalog).is_some_and(|cordon| cordon.removed) {
        return Ok(StatusCode::NO_CONTENT);
    }
    refuse_needed(&place, &catalog, &place.reported(&plane)?)?;
    let by = Some(caller.token.clone());
    let cordon = Cordon { since: now(), by, drains: true, removed: true };
    place.write(&plane, &caller, "nodes rm", Some(&cordon)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What stands in the way of forgetting a node.
fn why_not_removed(node: &NodeSummary, is_drained: bool, is_known: bool) -> Option<String> {
    let NodeSummary { node: name, instances, drained, lost, .. } = node;
    if !is_known {
        return Some("its location does not report, so nobody knows what it has".to_owned());
    }
    if *lost || (*drained && is_drained) {
        return None;
    }
    Some(match is_drained {
        true => format!("it is drained and still has {instances} instances"),
        false => format!("it is neither drained nor lost; `longshore drain {name}` empties it"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_that_is_empty_for_good_or_lost_is_removed() {
        let node = |instances, drained, lost: bool| NodeSummary {
            node: "n1".parse().unwrap(),
            reachable: !lost,
            reported_at: now(),
            capacity: Default::default(),
            promised: Default::default(),
            leaving: Default::default(),
            yielding: Vec::new(),
            gpus: Vec::new(),
            reached: Vec::new(),
            version: "1".to_owned(),
            runtimes: Vec::new(),
            image_mount: None,
            traits: Default::default(),
            lost,
            instances,
            cordon: None,
            drained,
        };
        for (node, is_drained, is_known, why) in [
            (node(0, true, false), true, true, None),
            (node(3, false, true), false, true, None),
            (node(0, false, false), false, true, Some("neither drained nor lost")),
            // The drain was taken back, and the location has not heard of it.
            (node(0, true, false), false, true, Some("neither drained nor lost")),
            (node(2, false, false), true, true, Some("still has 2 instances")),
            (node(0, true, true), true, false, Some("its location does not report")),
        ] {
            let found = why_not_removed(&node, is_drained, is_known);
            assert_eq!(found.is_some(), why.is_some(), "{found:?}");
            assert!(why.is_none_or(|why| found.unwrap().contains(why)));
        }
    }
}
