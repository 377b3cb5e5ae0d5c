//! What locations and the registry call. Only they can: the socket is theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use axum::extract::{DefaultBodyLimit, Path, Query, RawPathParams, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::{StreamExt, stream};
use longshore_api::links::{
    Allotment, AllotmentSet, AllotmentsQuery, AppRef, Canary, LocationReport, Pin, RegistryTable,
    ReportTaken, RollbackImage, SecretValues, SecretsRequest,
};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, MAX_OF_STRANGERS, Pace, Refusal, json_lines, only, watch_lines};
use longshore_store::{Page, Revision};
use longshore_trust::{Peer, RootAuthority};
use longshore_types::token::{RegistryAction, RegistryRight, Rights};
use longshore_types::{
    AppName, Epoch, Generation, LocationName, ProjectName, ReachAddress, Release, ReleaseNumber,
    Traits,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::catalog::{AppKey, Catalog};
use crate::records::AllotmentRecord;
use crate::{Plane, Serves, api, elsewhere, joining, lives, prewarms, registry, tokens, views};

/// The longest report, in bytes: a location with a hundred thousand instances tells of all of them.
const MOST_OF_A_REPORT: usize = 256 << 20;
/// How long to rest after a table for the registry was made, in times that took.
const TABLE_REST: u32 = 4;

pub fn router(plane: Arc<Plane>) -> Router {
    let locations = Router::new()
        .route("/link/locations/{location}/allotments", get(allotments))
        .route("/link/locations/{location}/begin", post(lives::begin))
        .route("/link/locations/{location}/report", post(report))
        .route("/link/locations/{location}/report/changes", post(report))
        .route("/link/locations/{location}/secrets", post(secrets))
        .route("/link/locations/{location}/authority", post(joining::authority))
        .route("/link/locations/{location}/join-tokens", post(joining::redeem))
        .route("/link/locations/{location}/registry", get(registry::access))
        .route("/link/locations/{location}/registry/told", get(registry::told))
        .route("/link/locations/{location}/prewarm", get(prewarms::told))
        .route("/link/locations/{location}/reverse", get(joining::reverse))
        .route("/link/locations/{location}/elsewhere", get(elsewhere::elsewhere))
        .route_layer(from_fn_with_state(Arc::clone(&plane), only_that_location));
    let of_registry = Router::new()
        .route("/link/registry/table", get(registry_table))
        .route("/link/registry/certificate", post(registry::certificate))
        .route("/link/registry/place", post(registry::place))
        .route_layer(from_fn_with_state(Arc::clone(&plane), only_the_registry));
    let strangers = Router::new()
        .route("/join", post(joining::join))
        .route("/renew/{location}", post(joining::renew_expired))
        .route("/registry/join", post(registry::join))
        .route("/registry/renew", post(registry::renew_expired))
        .route_layer(DefaultBodyLimit::max(MAX_OF_STRANGERS));
    Router::new()
        .merge(strangers)
        .merge(locations)
        .merge(of_registry)
        .layer(DefaultBodyLimit::max(MOST_OF_A_REPORT))
        .with_state(plane)
}

/// A location speaks for itself alone.
async fn only_that_location(
    State(plane): State<Arc<Plane>>,
    params: RawPathParams,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let named = params.iter().find(|(name, _)| *name == "location");
    let location = named.and_then(|(_, location)| location.parse().ok());
    let is_location = location.as_ref().is_some_and(|location| plane.is_location(&peer, location));
    if let Some(location) = location.filter(|_| !is_location)
        && let Some(refusal) = lives::recovered_elsewhere(&plane, &peer, &location)
    {
        return refusal.into_response();
    }
    only(is_location, peer, request, next).await
}

async fn only_the_registry(
    State(plane): State<Arc<Plane>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    only(plane.is_registry(&peer), peer, request, next).await
}

/// The allotments of a location, again at each change: as a whole, or what differs, to who asks for that.
async fn allotments(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Query(AllotmentsQuery { changes }): Query<AllotmentsQuery>,
) -> Response {
    let mut told: Option<Told> = None;
    let shutdown = plane.service.shutdown();
    let removed = removed(plane.catalog.subscribe(), location.clone());
    let sets = watch_lines(plane.catalog.subscribe()).filter_map(move |catalog| {
        let domain = &plane.public.domain;
        std::future::ready(next_set(&catalog, (&location, domain), &mut told, changes))
    });
    // One that is removed or recovered is told nothing more from that moment on.
    json_lines(sets.take_until(removed), shutdown)
}

/// What a location was told.
#[derive(Debug, Clone)]
pub struct Told {
    epoch: Epoch,
    generation: Revision,
    /// Up to where the catalog was looked at for that.
    seen: Revision,
    reach: Arc<BTreeSet<ReachAddress>>,
}

/// What a location is to be told after what it was, if anything: the whole, or what differs, where it takes changes.
pub fn next_set(
    catalog: &Catalog,
    (location, domain): (&LocationName, &str),
    told: &mut Option<Told>,
    changes: bool,
) -> Option<AllotmentSet> {
    let now = Told {
        epoch: catalog.epoch,
        generation: catalog.changed_at(location),
        seen: catalog.revision,
        reach: Arc::clone(&catalog.reach),
    };
    let before = told.replace(now.clone());
    // Most changes are of other locations.
    let is_known =
        |before: &Told| (before.generation, &before.reach) == (now.generation, &now.reach);
    if before.as_ref().is_some_and(is_known) {
        return None;
    }
    let before = before.filter(|before| changes && before.epoch == now.epoch);
    let change = before.and_then(|before| change(catalog, location, domain, &before));
    Some(change.unwrap_or_else(|| allotment_set(catalog, location, domain)))
}

/// What differs from what a location was told; nothing when that is too long ago to be known.
fn change(
    catalog: &Catalog,
    location: &LocationName,
    domain: &str,
    before: &Told,
) -> Option<AllotmentSet> {
    let mut gone = Vec::new();
    let mut allotments = Vec::new();
    let touched = catalog.touched_after(before.seen)?.map(|(_, key)| key);
    for key in touched.collect::<BTreeSet<_>>() {
        let at = (location.clone(), key.0.clone(), key.1.clone());
        let stored = catalog.allotments.get(&at);
        match stored.and_then(|stored| allotment(catalog, key, &stored.record, domain)) {
            Some(allotment) => allotments.push(allotment),
            None => gone.push(AppRef { project: key.0.clone(), app: key.1.clone() }),
        }
    }
    let since = Some(Generation(before.generation.0));
    Some(AllotmentSet { since, allotments, gone, ..without_apps(catalog, location) })
}

/// Waits until a location is not the one any more that it is now: it was removed, or another life of it began.
pub async fn removed(mut catalog: watch::Receiver<Arc<Catalog>>, location: LocationName) {
    let life = |catalog: &Arc<Catalog>| {
        let record = catalog.locations.get(&location)?;
        Some((record.authority, record.epoch.unwrap_or_default()))
    };
    let now = life(&catalog.borrow());
    // One that was not known at first has nothing to lose; and an error means that the control plane ends.
    if now.is_none() || catalog.wait_for(|catalog| life(catalog) != now).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn allotment_set(catalog: &Catalog, location: &LocationName, domain: &str) -> AllotmentSet {
    let allotments = catalog.allotted(location).filter_map(|(project, app, stored)| {
        allotment(catalog, &(project.clone(), app.clone()), &stored.record, domain)
    });
    AllotmentSet { allotments: allotments.collect(), ..without_apps(catalog, location) }
}

/// What a location was given of an app, as it is told.
fn allotment(
    catalog: &Catalog,
    key: &AppKey,
    record: &AllotmentRecord,
    domain: &str,
) -> Option<Allotment> {
    let release = catalog.release(key, record.release)?;
    let canary = record.canary.and_then(|canary| {
        let release = Arc::clone(catalog.release(key, canary.release)?);
        Some(Canary { release, count: canary.count })
    });
    let command = record.command.and_then(|number| {
        let release = catalog.release(key, number)?.as_ref();
        let manifest = release.manifest.of_release_command()?;
        Some(Arc::new(Release { manifest, ..release.clone() }))
    });
    Some(Allotment {
        release: Arc::clone(release),
        count: if record.held_back { 0 } else { record.count },
        canary,
        command,
        budget: record.budget,
        make_room: record.make_room,
        rollback: rollback_image(catalog, key, record.release),
        hosts: views::hosts(&release.manifest, domain),
        generation: record.generation,
        decision: record.decision.clone(),
    })
}

/// The image of the release that a rollback from this one would go to: the newest before it, as `rollback` has it.
fn rollback_image(
    catalog: &Catalog,
    key: &AppKey,
    release: ReleaseNumber,
) -> Option<RollbackImage> {
    let before = catalog.releases_of(key).take_while(|other| other.number < release).last()?;
    Some(RollbackImage { release: before.number, image: before.image_digest })
}

/// What a location is told beside its allotments.
fn without_apps(catalog: &Catalog, location: &LocationName) -> AllotmentSet {
    let cordons = catalog.node_cordons(location);
    let cordons = cordons.map(|(node, cordon)| (node.clone(), cordon.clone())).collect();
    let let_go = catalog.let_go.keys().filter(|(of, _, _)| of == location);
    let let_go =
        let_go.map(|(_, project, app)| AppRef { project: project.clone(), app: app.clone() });
    AllotmentSet {
        epoch: catalog.epoch,
        generation: Generation(catalog.changed_at(location).0),
        since: None,
        allotments: Vec::new(),
        gone: Vec::new(),
        cordons,
        reach: BTreeSet::clone(&catalog.reach),
        let_go: let_go.collect(),
    }
}

/// The secrets of releases that a location was given, and no others.
async fn secrets(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Body(SecretsRequest { project, secrets }): Body<SecretsRequest>,
) -> Result<axum::Json<SecretValues>, Refusal> {
    let catalog = plane.catalog();
    let given: Vec<_> = releases_at(&catalog, &location).collect();
    let mut values = BTreeMap::new();
    for (name, version) in secrets {
        let is_given = given.iter().any(|release| {
            release.manifest.project == project && release.secrets.get(&name) == Some(&version)
        });
        if !is_given {
            let detail = format!("no release at {location} needs {version} of secret {name}");
            return Err(Problem::new(ProblemCode::Forbidden, detail).into());
        }
        let value = api::secrets::value(&plane, &catalog, &project, (&name, version));
        let value = value.ok_or_else(|| Problem::not_found("secret", &name))?;
        values.insert(name, value);
    }
    Ok(axum::Json(SecretValues { values }))
}

/// Every release of which a location may run instances.
fn releases_at<'a>(
    catalog: &'a Catalog,
    location: &'a LocationName,
) -> impl Iterator<Item = &'a Release> {
    catalog.allotted(location).flat_map(|(project, app, stored)| {
        let record = &stored.record;
        let canary = record.canary.map(|canary| canary.release);
        let numbers = [Some(record.release), canary, record.command].into_iter().flatten();
        numbers.filter_map(|number| {
            let key = (project.clone(), app.clone(), number);
            catalog.releases.get(&key).map(|release| &**release)
        })
    })
}

async fn report(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
    Extension(peer): Extension<Peer>,
    Body(report): Body<LocationReport>,
) -> Result<axum::Json<Option<ReportTaken>>, Refusal> {
    take_report(&plane, location, &peer, report).await.map(axum::Json)
}

/// Takes over what a location says. One that knows of no answer is given none.
pub async fn take_report(
    plane: &Plane,
    location: LocationName,
    peer: &Peer,
    report: LocationReport,
) -> Result<Option<ReportTaken>, Refusal> {
    if report.location != location {
        let detail = format!("a report of {} came over the link of {location}", report.location);
        return Err(Problem::new(ProblemCode::InvalidRequest, detail).into());
    }
    let report = as_joined(plane, of_this_life(plane, report).await?);
    lives::follow(plane, peer, &report).await?;
    plane.starts.look(&report);
    let number = report.number;
    let is_known = plane.reports.receive(report);
    Ok((number > 0).then(|| ReportTaken { number: is_known.then_some(number) }))
}

/// A report as it counts here: what a location acknowledged of an earlier life of the store says nothing of
/// this one, and one that heard of a later life is none of ours.
async fn of_this_life(plane: &Plane, report: LocationReport) -> Result<LocationReport, Refusal> {
    let epoch = plane.catalog().epoch;
    if report.epoch < epoch {
        return Ok(LocationReport { acknowledged: Generation(0), strays: Vec::new(), ..report });
    }
    if report.epoch == epoch {
        refuse_ahead(plane, &report).await?;
        return Ok(report);
    }
    let LocationReport { location, epoch: theirs, .. } = report;
    let detail = format!(
        "{location} heard from a store of epoch {theirs}, which was restored or moved after this one \
         of epoch {epoch}: this control plane counts no more there"
    );
    let mut known = plane.superseded.lock().unwrap_or_else(PoisonError::into_inner);
    if known.insert(location, theirs) != Some(theirs) {
        tracing::error!("{detail}");
    }
    Err(Problem::new(ProblemCode::Superseded, detail).into())
}

/// A report as it counts of a location that joined for a country. Where it says that it, or a node of it, is in another
/// one, it and all of its nodes are in none that is known: no jurisdiction is kept by who is not where its operator has
/// it, and on which of its nodes an instance runs it decides itself.
fn as_joined(plane: &Plane, mut report: LocationReport) -> LocationReport {
    let catalog = plane.catalog();
    let record = catalog.locations.get(&report.location);
    let Some(bound) = record.and_then(|record| record.country) else { return report };
    let is_elsewhere = |traits: &Traits| traits.country.is_some_and(|said| said != bound);
    if is_elsewhere(&report.traits) || report.nodes.iter().any(|node| is_elsewhere(&node.traits)) {
        let of_nodes = report.nodes.iter_mut().map(|node| &mut node.traits);
        of_nodes.chain([&mut report.traits]).for_each(|traits| traits.country = None);
    }
    report
}

/// Refuses a report that acknowledges what was not decided yet: it would count for whatever is decided later, and what
/// a location loses then would be given to others before it was told.
async fn refuse_ahead(plane: &Plane, report: &LocationReport) -> Result<(), Refusal> {
    let acknowledged = report.acknowledged.0;
    if acknowledged <= plane.catalog().revision.0 {
        return Ok(());
    }
    // Another control plane that led until now may have told it what is on its way here.
    let one = Page { limit: Some(1), ..Page::default() };
    let newest = plane.store.list("/", one).await.map_err(api::store_failed)?.revision.0;
    if acknowledged <= newest {
        return Ok(());
    }
    let detail = format!(
        "a report of {} has acknowledged = {acknowledged}; the newest generation that any location can \
         have been told of is {newest}",
        report.location
    );
    // From then on it looks as if it were cut off.
    tracing::error!("{detail}");
    Err(Problem::new(ProblemCode::InvalidRequest, detail).into())
}

/// What the registry has to know, again when it changes. It is of everything, so those of many changes in a row are
/// one.
async fn registry_table(
    State(plane): State<Arc<Plane>>,
    Extension(peer): Extension<Peer>,
) -> Response {
    let (root, serves) = (Arc::clone(&plane.root), plane.registry.serves());
    let removed = registry::removed(plane.catalog.subscribe(), peer);
    let mut catalogs = plane.catalog.subscribe();
    catalogs.mark_changed();
    let begin = (catalogs, None, Pace::new(TABLE_REST));
    let tables = stream::unfold(begin, move |(mut catalogs, mut last, mut pace)| {
        let root = Arc::clone(&root);
        async move {
            loop {
                catalogs.changed().await.ok()?;
                pace.rest().await;
                let began = Instant::now();
                let catalog = Arc::clone(&catalogs.borrow_and_update());
                let allotted = catalog.any_changed_at();
                let newest = catalog.tokens_changed.max(catalog.releases_changed).max(allotted);
                if last.replace(newest) == Some(newest) {
                    continue;
                }
                let table = table_of(&catalog, &root, serves);
                pace.worked_since(began);
                return Some((table, (catalogs, last, pace)));
            }
        }
    });
    // One that is removed is told nothing more from that moment on.
    json_lines(tables.take_until(removed), plane.service.shutdown())
}

fn table_of(catalog: &Catalog, root: &RootAuthority, serves: Serves) -> RegistryTable {
    // One that joined is shown none that would open another in its place, or the one of this machine.
    let key = match serves {
        Serves::OtherMachines => None,
        Serves::Everyone => catalog.registry.as_ref().map(|record| record.key),
    };
    let is_shown =
        |name: &AppName| serves == Serves::OtherMachines || name.as_str() != tokens::SYSTEM;
    let known = catalog.tokens.iter().filter(|(name, _)| is_shown(name));
    let tokens = known.map(|(_, token)| (token.hash.clone(), token.rights.clone()));
    let asks = (serves == Serves::Everyone).then(|| {
        let token = registry::token(root, key, registry::CONTROL_PLANE);
        let registry = vec![tokens::pull_everything()];
        (tokens::hash(&token), Rights { registry, ..Rights::default() })
    });
    let called_by = catalog.locations.iter().filter(|(_, record)| match serves {
        Serves::OtherMachines => record.authority.is_some(),
        Serves::Everyone => true,
    });
    let of_locations = called_by.map(|(location, _)| {
        let repositories: BTreeSet<_> = releases_at(catalog, location)
            .map(|release| release.manifest.image.repository.to_string())
            .chain(prewarms::at(catalog, location).map(|(_, _, wish)| wish.repository.to_string()))
            .collect();
        let right =
            |repositories| RegistryRight { repositories, actions: vec![RegistryAction::Pull] };
        let registry = repositories.into_iter().map(right).collect();
        let token = registry::token(root, key, &registry::of_location(location));
        (tokens::hash(&token), Rights { registry, ..Rights::default() })
    });
    let tokens = tokens.chain(asks).chain(of_locations).collect();
    let mut pins = BTreeMap::new();
    for ((project, app, number), release) in &catalog.releases {
        let image = (release.manifest.image.repository.clone(), release.image_digest);
        let name = match *project == ProjectName::default() {
            true => format!("{app} {number}"),
            false => format!("{app} {number} of {project}"),
        };
        pins.insert(image, name);
    }
    let pin = |((repository, digest), release)| Pin { repository, digest, release };
    RegistryTable { epoch: catalog.epoch, tokens, pins: pins.into_iter().map(pin).collect() }
}
