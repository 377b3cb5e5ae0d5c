//! Which images should be on which nodes before anything starts from them.
//!
//! A wish is a record of the store, one for each image of a project. Locations are told of all that may be
//! theirs, nodes pull what is theirs as long as it is wished, those too that join later. What became of it is asked
//! of the nodes when somebody wants to know.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use longshore_api::v1::{PrewarmRequest, PrewarmStatus, PrewarmView, PrewarmedNode};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_store::{Compare, Relation, Transaction};
use longshore_types::jurisdiction::is_within;
use longshore_types::{
    Digest, ImageReference, ImageState, Jurisdiction, NodeImage, PlaceMatch, ProjectName,
    Repository,
};

use super::access::Caller;
use super::apps::app_key;
use super::params::Path;
use super::{images, invalid, parse, placement, store_failed};
use crate::Plane;
use crate::catalog::Catalog;
use crate::events::with_event;
use crate::records::{Key, PrewarmRecord, decode, encode};
use crate::reports::Received;

type Shared = State<Arc<Plane>>;

/// How many nodes are asked at the same time.
const AT_ONCE: usize = 32;
/// How many wishes a project may have: every location is told of all.
const MOST_WISHES: usize = 100;

pub async fn list(
    State(plane): Shared,
    Path(project): Path<String>,
) -> Result<Json<Vec<PrewarmView>>, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let catalog = plane.catalog();
    let wishes = catalog.prewarms.iter().filter(|((of, _), _)| *of == project);
    Ok(Json(wishes.map(|((_, digest), record)| view(*digest, record)).collect()))
}

/// Wishes it, or wishes it elsewhere than before. What is pinned stays so.
pub async fn set(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path(project): Path<String>,
    Body(request): Body<PrewarmRequest>,
) -> Result<Json<PrewarmView>, Refusal> {
    let key: ProjectName = parse("project", &project)?;
    let (named, repository, digest) = image(&plane, &caller, &project, &request).await?;
    let catalog = plane.catalog();
    let n_wishes = catalog.prewarms.keys().filter(|(of, _)| *of == key).count();
    if n_wishes >= MOST_WISHES && !catalog.prewarms.contains_key(&(key.clone(), digest)) {
        let allowed = format!("one of {MOST_WISHES} wishes of a project; take one back first");
        return Err(invalid("image", &named, &allowed));
    }
    let places = request.places;
    placement::refuse_unknown_places(&plane, "places", &places)?;
    refuse_abroad(&plane, &catalog, &digest, &places)?;
    let wish = Key::Prewarm(key.clone(), digest).to_string();
    let (before, unchanged) = stored(&plane, &wish).await?;
    let before = before.filter(|before| before.pinned);
    let pinned = request.pin || before.is_some();
    if pinned && before.is_none_or(|before| before.places != places) {
        check_pin(&caller, &named)?;
    }
    let (created_at, by, ended) = (now(), caller.token.clone(), None);
    let record = PrewarmRecord { named, repository, places, created_at, by, pinned, ended };
    let change = Transaction::new().when(unchanged).put(wish, encode(&record));
    let what = if pinned { "image prewarm --pin" } else { "image prewarm" };
    let change = with_event(change, &caller.who(), Some(&key), what, &record.named);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    if !result.succeeded {
        return Err(changed_meanwhile(&record));
    }
    Ok(Json(view(digest, &record)))
}

/// A wish as it stands in the store, and that it stays so.
async fn stored(plane: &Plane, key: &str) -> Result<(Option<PrewarmRecord>, Compare), Refusal> {
    let Some(stored) = plane.store.get(key).await.map_err(store_failed)? else {
        return Ok((None, Compare::absent(key)));
    };
    let record = decode(&stored).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "a wish cannot be read");
        Problem::new(ProblemCode::Internal, "what is kept of this wish cannot be understood")
    })?;
    Ok((Some(record), Compare::mod_revision(key, Relation::Equal, stored.mod_revision)))
}

fn changed_meanwhile(record: &PrewarmRecord) -> Refusal {
    let detail = format!("{} was wished or no longer wished meanwhile", record.named);
    Problem::new(ProblemCode::Conflict, detail).into()
}

/// Refuses to pin, or to let go, for who has no right to: what is pinned takes room from all projects.
fn check_pin(caller: &Caller, named: &str) -> Result<(), Refusal> {
    if caller.rights.admin {
        return Ok(());
    }
    let detail = format!(
        "token {} is not of an administrator of the platform, and only one says where {named} is pinned, and \
         whether: that takes room from all projects",
        caller.token
    );
    Err(Problem::new(ProblemCode::Forbidden, detail).into())
}

/// Takes a wish back; what came by it stays until room is needed.
pub async fn remove(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, digest)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (project, digest): (ProjectName, Digest) =
        (parse("project", &project)?, parse("digest", &digest)?);
    let key = Key::Prewarm(project.clone(), digest).to_string();
    let (record, unchanged) = stored(&plane, &key).await?;
    let record = record.ok_or_else(|| no_wish(digest))?;
    if record.pinned {
        check_pin(&caller, &record.named)?;
    }
    let change = Transaction::new().when(unchanged).delete(key);
    let what = "image prewarm --rm";
    let change = with_event(change, &caller.who(), Some(&project), what, &record.named);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    if !result.succeeded {
        return Err(changed_meanwhile(&record));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A wish, with how far it is on each node that it is for.
pub async fn show(
    State(plane): Shared,
    Path((project, digest)): Path<(String, String)>,
) -> Result<Json<PrewarmStatus>, Refusal> {
    let (project, digest): (ProjectName, Digest) =
        (parse("project", &project)?, parse("digest", &digest)?);
    let catalog = plane.catalog();
    let record = wish(&catalog, &project, digest)?.clone();
    let reports = plane.reports.now();
    let asked = reports.values().flat_map(|received| {
        let location = &received.report.location;
        let nodes = received.report.nodes.iter();
        let nodes = nodes.filter(|node| record.is_for(location, &node.traits.labels));
        nodes.map(move |node| (received.clone(), node.node.clone(), node.reachable))
    });
    let asked: Vec<_> = asked.collect();
    let answers = asked.into_iter().map(|(received, node, reachable)| {
        let plane = &plane;
        async move { ask(plane, &received, (node, reachable), digest).await }
    });
    let nodes = stream::iter(answers).buffered(AT_ONCE).collect().await;
    Ok(Json(PrewarmStatus { wish: view(digest, &record), nodes }))
}

async fn ask(
    plane: &Plane,
    received: &Received,
    (node, reachable): (longshore_types::NodeName, bool),
    digest: Digest,
) -> PrewarmedNode {
    let location = received.report.location.clone();
    let absent = |note| PrewarmedNode {
        location: location.clone(),
        node: node.clone(),
        state: ImageState::Absent,
        note,
        given_up: false,
    };
    if !reachable {
        return absent(Some("its location does not hear from it".to_owned()));
    }
    match images::ask(plane, received, &node).await {
        Err(Refusal(problem)) => absent(Some(problem.detail)),
        Ok(images) => match images.into_iter().find(|image| image.digest == digest) {
            None => absent(None),
            Some(NodeImage { state, note, given_up, .. }) => {
                PrewarmedNode { state, note, given_up, ..absent(None) }
            }
        },
    }
}

fn wish<'a>(
    catalog: &'a Catalog,
    project: &ProjectName,
    digest: Digest,
) -> Result<&'a PrewarmRecord, Refusal> {
    let found = catalog.prewarms.get(&(project.clone(), digest));
    found.ok_or_else(|| no_wish(digest))
}

fn no_wish(digest: Digest) -> Refusal {
    Problem::not_found("wish for an image", digest).into()
}

fn view(digest: Digest, record: &PrewarmRecord) -> PrewarmView {
    let PrewarmRecord { named, repository, places, created_at, by, pinned, ended } = record.clone();
    PrewarmView { image: named, repository, digest, places, created_at, by, pinned, ended }
}

/// What a request means: as its image is named, and which one that is now.
async fn image(
    plane: &Plane,
    caller: &Caller,
    project: &str,
    PrewarmRequest { app, image, .. }: &PrewarmRequest,
) -> Result<(String, Repository, Digest), Refusal> {
    match (app, image) {
        (Some(app), None) => {
            let key = app_key(project, app.as_str())?;
            let catalog = plane.catalog();
            let release = catalog.current_release(&key).ok_or_else(|| catalog.no_app(&key))?;
            let named = format!("{app} {}", release.number);
            caller.check_pull(&release.manifest.image.repository)?;
            Ok((named, release.manifest.image.repository.clone(), release.image_digest))
        }
        (None, Some(image)) => {
            let image = plane.place_image(image)?;
            caller.check_pull(&image.repository)?;
            let digest = plane.resolve_image(&image).await?;
            let image = ImageReference { registry: None, ..image };
            Ok((image.to_string(), image.repository, digest))
        }
        _ => Err(invalid("app", "(given)", "either an app or an image")),
    }
}

/// The image of an app that has to stay in a jurisdiction goes where that holds, and nowhere else.
fn refuse_abroad(
    plane: &Plane,
    catalog: &Catalog,
    digest: &Digest,
    places: &[PlaceMatch],
) -> Result<(), Refusal> {
    let bound = catalog.releases.iter().filter(|(_, release)| {
        release.image_digest == *digest && !release.manifest.placement.jurisdiction.is_empty()
    });
    let reports = plane.reports.now();
    let is_inside = |all: &BTreeSet<Jurisdiction>, place: &PlaceMatch| match place {
        PlaceMatch::Location(location) => reports.get(location).is_some_and(|received| {
            let nodes = &received.report.nodes;
            !nodes.is_empty() && nodes.iter().all(|node| is_within(all, node.traits.country))
        }),
        PlaceMatch::Label(_) => false,
    };
    let mut bound = bound.map(|(_, release)| &release.manifest.placement.jurisdiction);
    let broken =
        bound.find(|all| places.is_empty() || !places.iter().all(|place| is_inside(all, place)));
    let Some(all) = broken else { return Ok(()) };
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    // Not which app: it may be somebody else's.
    let allowed =
        format!("location=NAME of locations in {}: an app keeps its image there", all.join(" or "));
    let given: Vec<_> = places.iter().map(ToString::to_string).collect();
    let given = if given.is_empty() { "everywhere".to_owned() } else { given.join(", ") };
    Err(invalid("places", &given, &allowed))
}
