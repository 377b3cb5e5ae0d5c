//! The wishes for images as locations are told of them, and their end with the images.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use futures_util::StreamExt as _;
use longshore_api::ProblemCode;
use longshore_api::links::{PrewarmSet, PrewarmWish};
use longshore_link::{json_lines, watch_lines};
use longshore_store::{Compare, Relation, Transaction};
use longshore_types::{Digest, ImageReference, LocationName, PlaceMatch, ProjectName};

use crate::catalog::Catalog;
use crate::events::{Who, with_event};
use crate::records::{Key, PrewarmRecord, decode, encode};
use crate::{Plane, links};

/// How often the registry is asked whether it still has what is wished.
const INTERVAL: Duration = Duration::from_secs(60);

/// Why a wish ended by itself.
const GONE: &str = "the registry no longer has it";

/// What is wished of the nodes of a location, again at each change.
pub async fn told(State(plane): State<Arc<Plane>>, Path(location): Path<LocationName>) -> Response {
    let shutdown = plane.service.shutdown();
    let gone = links::removed(plane.catalog.subscribe(), location.clone());
    let mut last = None;
    let news = watch_lines(plane.catalog.subscribe()).filter_map(move |catalog| {
        // Most changes are of something else.
        let seen = (catalog.epoch, catalog.prewarms_changed);
        let is_news = last.replace(seen) != Some(seen);
        std::future::ready(is_news.then(|| set(&catalog, &location)))
    });
    json_lines(news.take_until(gone), shutdown)
}

fn set(catalog: &Catalog, location: &LocationName) -> PrewarmSet {
    let wishes = at(catalog, location).map(|(project, digest, record)| PrewarmWish {
        project: project.clone(),
        repository: record.repository.clone(),
        digest,
        named: record.named.clone(),
        places: record.places.clone(),
        pinned: record.pinned,
    });
    PrewarmSet { epoch: catalog.epoch, wishes: wishes.collect() }
}

/// The wishes that may be for nodes of a location: which labels these have, it knows best.
pub fn at<'a>(
    catalog: &'a Catalog,
    location: &'a LocationName,
) -> impl Iterator<Item = (&'a ProjectName, Digest, &'a PrewarmRecord)> {
    let may_be = move |record: &PrewarmRecord| {
        let is_other =
            |place: &PlaceMatch| matches!(place, PlaceMatch::Location(of) if of != location);
        record.ended.is_none() && (record.places.is_empty() || !record.places.iter().all(is_other))
    };
    let wishes = catalog.prewarms.iter().filter(move |(_, record)| may_be(record));
    wishes.map(|((project, digest), record)| (project, *digest, record))
}

/// Ends wishes for what was removed from the registry. What is pinned stays where it is until who pinned it takes
/// that back: the nodes have it. Ends with the control plane alone.
pub async fn keep(plane: Arc<Plane>) {
    let mut changes = plane.catalog.subscribe();
    loop {
        let catalog = Arc::clone(&changes.borrow_and_update());
        for ((project, digest), record) in &catalog.prewarms {
            if record.ended.is_none() && !record.pinned {
                end_if_gone(&plane, project, *digest, record).await;
            }
        }
        let is_news = |now: &Arc<Catalog>| now.prewarms_changed != catalog.prewarms_changed;
        let news = changes.wait_for(is_news);
        if let Ok(Err(_)) = tokio::time::timeout(INTERVAL, news).await {
            return;
        }
    }
}

async fn end_if_gone(plane: &Plane, project: &ProjectName, digest: Digest, record: &PrewarmRecord) {
    let image = ImageReference {
        registry: None,
        repository: record.repository.clone(),
        tag: None,
        digest: Some(digest),
    };
    // A registry that does not answer says nothing.
    match plane.resolve_image(&image).await {
        Err(problem) if problem.code == ProblemCode::ImageNotFound => {}
        _ => return,
    }
    let key = Key::Prewarm(project.clone(), digest).to_string();
    let before = match plane.store.get(&key).await {
        Ok(Some(stored)) => stored,
        // It was taken back meanwhile.
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read a wish");
            return;
        }
    };
    // It may have been wished anew since, of an image that is there again.
    if !decode::<PrewarmRecord>(&before).is_ok_and(|now| now == *record) {
        return;
    }
    let ended = PrewarmRecord { ended: Some(GONE.to_owned()), ..record.clone() };
    let unchanged = Compare::mod_revision(&key, Relation::Equal, before.mod_revision);
    let change = Transaction::new().when(unchanged).put(key, encode(&ended));
    let subject = format!("{}: {GONE}", record.named);
    let change = with_event(change, &Who::PLATFORM, Some(project), "image prewarm ends", subject);
    if let Err(error) = plane.store.commit(change).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot end a wish");
    }
}
