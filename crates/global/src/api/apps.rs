//! Apps: deploy, scale, remove, look.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use http::{StatusCode, header};
use longshore_api::v1::{AppExplanation, AppView, DeployRequest, DeployResponse, ScaleRequest};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_store::{Compare, Relation, Revision, Transaction};
use longshore_types::{
    Digest, Generation, Manifest, ManifestProblem, ProjectName, Release, ReleaseNumber, SecretName,
    SecretVersion, runtime,
};

use super::access::Caller;
use super::params::Path;
use super::precondition::etag;
use super::secrets::{holding, pinned};
use super::{parse, store_failed};
use crate::catalog::{AppKey, Catalog, Stored};
use crate::events::with_event;
use crate::feeds::Scope;
use crate::records::{AppRecord, Key, ReleaseRecord, RolloutStage, encode};
use crate::reports::ByLocation;
use crate::{Plane, strays, views};

/// How often a write is tried again when another one came in between.
pub(super) const TRIES: u32 = 8;

type Shared = State<Arc<Plane>>;

pub(super) fn app_key(project: &str, app: &str) -> Result<AppKey, Refusal> {
    Ok((parse("project", project)?, parse("app", app)?))
}

pub async fn list(
    State(plane): Shared,
    Path(project): Path<String>,
) -> Result<Json<Vec<AppView>>, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let scope = Scope { project, app: None, instances: false };
    Ok(Json(scope.view(&plane).apps))
}

pub async fn show(
    State(plane): Shared,
    Path((project, app)): Path<(String, String)>,
) -> Result<impl IntoResponse, Refusal> {
    let key = app_key(&project, &app)?;
    let app = show_app(&plane, &key)?;
    Ok(([(header::ETAG, etag(app.generation))], Json(app)))
}

fn show_app(plane: &Plane, key: &AppKey) -> Result<AppView, Refusal> {
    let catalog = plane.catalog();
    views::app(&catalog, &plane.reports.now(), key, &plane.public)
        .ok_or_else(|| catalog.no_app(key).into())
}

pub async fn explain(
    State(plane): Shared,
    Path((project, app)): Path<(String, String)>,
) -> Result<Json<AppExplanation>, Refusal> {
    let key = app_key(&project, &app)?;
    let catalog = plane.catalog();
    let told = views::explained(&catalog, &plane.reports.now(), &key, &plane.public);
    told.map(Json).ok_or_else(|| catalog.no_app(&key).into())
}

pub async fn deploy(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, app)): Path<(String, String)>,
    Body(request): Body<DeployRequest>,
) -> Result<Json<DeployResponse>, Refusal> {
    let key = app_key(&project, &app)?;
    let manifest = checked(&plane, &caller, &key, &request)?;
    let image_digest = plane.resolve_image(&manifest.image).await?;
    for _ in 0..TRIES {
        let catalog = plane.catalog();
        let before = catalog.apps.get(&key);
        caller.expects.check(&key, before.map(|before| &before.record))?;
        if before.is_some_and(|before| before.record.removing) {
            return Err(being_removed(&key));
        }
        let current = catalog.current_release(&key).map(|release| &release.manifest);
        if current.is_some_and(|current| current.attached.or(manifest.attached).is_some()) {
            return Err(not_for_one_client(&key));
        }
        let secrets = pinned(&plane, &catalog, &manifest)?;
        if let Some(current) = present(&catalog, &key, &manifest, image_digest, &secrets) {
            return Ok(unchanged(current, before));
        }
        let number = next_number(&catalog, &key);
        let (manifest, created_at) = (manifest.clone(), now());
        let release = Release { number, manifest, image_digest, secrets, created_at };
        let count = release.manifest.count;
        let wanted = Wanted { release: &release, count, by: &caller, way: Way::Deploy };
        if let Some(response) = put_release(&plane, &key, before, wanted).await? {
            return Ok(response);
        }
    }
    Err(too_busy(&key))
}

/// The manifest of a request, once nothing speaks against it but perhaps its image.
pub(super) fn checked(
    plane: &Plane,
    caller: &Caller,
    key: &AppKey,
    request: &DeployRequest,
) -> Result<Manifest, Refusal> {
    let mut manifest = Manifest::from_document(&request.manifest).map_err(Problem::invalid)?;
    let mut misplaced = Vec::new();
    for (field, given, in_path) in [
        ("app", manifest.app.as_str(), key.1.as_str()),
        ("project", manifest.project.as_str(), key.0.as_str()),
    ] {
        if given != in_path {
            let allowed = format!("the same as in the path, {in_path:?}");
            let (field, value) = (field.to_owned(), format!("{given:?}"));
            misplaced.push(ManifestProblem { field, value, allowed });
        }
    }
    if !misplaced.is_empty() {
        return Err(Problem::invalid(misplaced).into());
    }
    refuse_what_cannot_be(plane, key, &manifest)?;
    super::placement::refuse_unknown(plane, &manifest.placement)?;
    // As every role pulls it, so that nobody else has to know what is where.
    manifest.image = plane.place_image(&manifest.image)?;
    caller.check_pull(&manifest.image.repository)?;
    Ok(manifest)
}

/// The present release, when it is what a deploy asks for.
pub(super) fn present<'a>(
    catalog: &'a Catalog,
    key: &AppKey,
    manifest: &Manifest,
    image_digest: Digest,
    secrets: &BTreeMap<SecretName, SecretVersion>,
) -> Option<&'a Release> {
    let current = catalog.current_release(key)?;
    let record = &catalog.apps.get(key)?.record;
    // One whose command failed is deployed again to run that again.
    if record.stage == RolloutStage::Command && record.failed == Some(record.release) {
        return None;
    }
    let is_same = current.manifest == *manifest
        && current.image_digest == image_digest
        && current.secrets == *secrets;
    is_same.then_some(&**current)
}

/// The answer when the release that is asked for is the present one.
pub(super) fn unchanged(
    current: &Release,
    stored: Option<&Stored<AppRecord>>,
) -> Json<DeployResponse> {
    let release = views::release(current, current.number);
    let generation = stored.map_or_else(Generation::default, |stored| stored.record.generation);
    Json(DeployResponse { release, changed: false, generation })
}

/// A release that should run.
pub(super) struct Wanted<'a> {
    pub release: &'a Release,
    /// How many instances.
    pub count: u32,
    pub by: &'a Caller,
    pub way: Way,
}

/// How a release came to be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// In the stages that its manifest asks for.
    Deploy,
    /// At once: it has been there before.
    Rollback,
}

/// Makes a release the one that should run, and keeps it when it is new; nothing when another write
/// came in between.
pub(super) async fn put_release(
    plane: &Plane,
    key: &AppKey,
    before: Option<&Stored<AppRecord>>,
    Wanted { release, count, by, way }: Wanted<'_>,
) -> Result<Option<Json<DeployResponse>>, Refusal> {
    let generation = before.map_or(Generation(1), |before| before.record.generation.next());
    let mut record = AppRecord {
        release: release.number,
        stage: RolloutStage::Whole,
        beside: before.and_then(|before| before.record.running()),
        count,
        generation,
        removing: false,
        good: before.and_then(|before| last_complete(plane, key, &before.record)),
        failed: None,
        why: None,
    };
    let stage = match &release.manifest.release {
        _ if way == Way::Rollback => RolloutStage::Whole,
        Some(_) => RolloutStage::Command,
        None => record.after_command(&release.manifest),
    };
    record = AppRecord { generation, ..record.at(stage) };
    let mut change = put_app(key, before.map(|before| before.revision), &record);
    let catalog = plane.catalog();
    change = holding(change, &catalog, release)?;
    let verb = match way {
        Way::Deploy => "deploy",
        Way::Rollback => "rollback",
    };
    let subject = format!("{} {}", key.1, release.number);
    change = with_event(change, &by.who(), Some(&key.0), verb, subject);
    let kept = (key.0.clone(), key.1.clone(), release.number);
    if !catalog.releases.contains_key(&kept) {
        let name = Key::Release(kept.0, kept.1, kept.2).to_string();
        change =
            change.when(Compare::absent(&name)).put(name, encode(&ReleaseRecord(release.clone())));
    }
    let release = views::release(release, release.number);
    let done = commit(plane, change).await?;
    Ok(done.then_some(Json(DeployResponse { release, changed: true, generation })))
}

/// The last release that was complete: the present one may be so since a moment ago, and the scheduler
/// be about to write it down.
fn last_complete(plane: &Plane, key: &AppKey, before: &AppRecord) -> Option<ReleaseNumber> {
    let view = show_app(plane, key).ok();
    let is_complete =
        view.is_some_and(|app| app.state == "running" && app.release == before.release);
    if is_complete { Some(before.release) } else { before.good }
}

/// Refuses what cannot run beside what there is.
pub(super) fn refuse_what_cannot_be(
    plane: &Plane,
    key: &AppKey,
    manifest: &Manifest,
) -> Result<(), Refusal> {
    refuse_taken_hosts(&plane.catalog(), key, manifest)?;
    refuse_runtime_that_nobody_has(&plane.reports.now(), manifest)
}

/// A host name leads to one app.
fn refuse_taken_hosts(catalog: &Catalog, key: &AppKey, manifest: &Manifest) -> Result<(), Refusal> {
    let mut taken = Vec::new();
    if manifest.hosts.is_empty() {
        return Ok(());
    }
    for other in catalog.apps.keys().filter(|other| *other != key) {
        let Some(release) = catalog.current_release(other) else { continue };
        for (idx, host) in manifest.hosts.iter().enumerate() {
            if release.manifest.hosts.contains(host) {
                let allowed =
                    format!("a name that no other app has; {} of {} has it", other.1, other.0);
                let (field, value) = (format!("hosts[{idx}]"), format!("\"{host}\""));
                taken.push(ManifestProblem { field, value, allowed });
            }
        }
    }
    if taken.is_empty() { Ok(()) } else { Err(Problem::invalid(taken).into()) }
}

/// What a runtime cannot do is refused at once when no node has one that can; otherwise the app would
/// wait for ever. As long as no node has reported, nothing is known, and the app waits for one.
fn refuse_runtime_that_nobody_has(
    reports: &ByLocation,
    manifest: &Manifest,
) -> Result<(), Refusal> {
    let needed = manifest.needed_abilities();
    let nodes = reports.values().flat_map(|received| &received.report.nodes);
    let mut refusals = Vec::new();
    for node in nodes {
        match runtime::refusal(&node.runtimes, manifest.runtime, &needed) {
            Some(why) => refusals.push(format!("{}: {why}", node.node)),
            None => return Ok(()),
        }
    }
    if refusals.is_empty() {
        return Ok(());
    }
    let allowed =
        format!("a runtime that a node has and that can do this ({})", refusals.join("; "));
    let value = format_args!("\"{}\"", manifest.runtime);
    Err(Problem::invalid_value("runtime", value, allowed).into())
}

pub(super) fn next_number(catalog: &Catalog, key: &AppKey) -> ReleaseNumber {
    catalog.releases_of(key).last().map_or(ReleaseNumber(1), |release| release.number.next())
}

/// Puts an app's record on the condition that it has not changed since `revision`.
fn put_app(key: &AppKey, revision: Option<Revision>, record: &AppRecord) -> Transaction {
    let key = Key::App(key.0.clone(), key.1.clone()).to_string();
    let unchanged = match revision {
        Some(revision) => Compare::mod_revision(&key, Relation::Equal, revision),
        None => Compare::absent(&key),
    };
    Transaction::new().when(unchanged).put(key, encode(record))
}

/// Commits and waits until the catalog shows it; false when a condition did not hold.
async fn commit(plane: &Plane, change: Transaction) -> Result<bool, Refusal> {
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    Ok(result.succeeded)
}

/// Changes an app's record; `change` is called again when another write came in between, and says what
/// the change is.
pub(super) async fn update(
    plane: &Plane,
    key: &AppKey,
    (by, verb): (&Caller, &str),
    change: impl Fn(&Catalog, &mut AppRecord) -> Result<String, Refusal>,
) -> Result<(), Refusal> {
    for _ in 0..TRIES {
        let catalog = plane.catalog();
        let before = catalog.app(key)?;
        by.expects.check(key, Some(&before.record))?;
        let mut record = before.record.clone();
        let subject = change(&catalog, &mut record)?;
        if record == before.record {
            return Ok(());
        }
        record.generation = record.generation.next();
        let put = put_app(key, Some(before.revision), &record);
        let put = with_event(put, &by.who(), Some(&key.0), verb, subject);
        if commit(plane, put).await? {
            return Ok(());
        }
    }
    Err(too_busy(key))
}

pub(super) fn being_removed(key: &AppKey) -> Refusal {
    let detail = format!("app {} is being removed; deploy it again once it is gone", key.1);
    Problem::new(ProblemCode::Conflict, detail).into()
}

/// What is there for one client is made for it, and goes with it.
fn not_for_one_client(key: &AppKey) -> Refusal {
    let detail = format!(
        "app {} is there already, and one that a client is attached to has one release: take \
         another name, or remove it first",
        key.1
    );
    Problem::new(ProblemCode::Conflict, detail).into()
}

pub(super) fn too_busy(key: &AppKey) -> Refusal {
    let detail = format!("app {} was changed by others again and again; nothing was done", key.1);
    Problem::new(ProblemCode::Conflict, detail).into()
}

pub async fn scale(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, app)): Path<(String, String)>,
    Body(request): Body<ScaleRequest>,
) -> Result<Json<AppView>, Refusal> {
    let key = app_key(&project, &app)?;
    let refuse = |allowed: String| Refusal(Problem::invalid_value("count", request.count, allowed));
    if request.count > 10_000 {
        return Err(refuse("a whole number from 0 to 10000".to_owned()));
    }
    update(&plane, &key, (&caller, "scale"), |catalog, record| {
        if record.removing {
            return Err(being_removed(&key));
        }
        let manifest = catalog.current_release(&key).map(|release| &release.manifest);
        if manifest.is_some_and(|manifest| manifest.attached.is_some()) && request.count != 1 {
            return Err(refuse("1: a client is attached to its one instance".to_owned()));
        }
        let max = manifest.and_then(|manifest| manifest.max);
        if let Some(max) = max.filter(|max| *max < request.count) {
            return Err(refuse(format!("at most max of the manifest, {max}")));
        }
        let subject = format!("{} from {} to {}", key.1, record.count, request.count);
        record.count = request.count;
        Ok(subject)
    })
    .await?;
    show_app(&plane, &key).map(Json)
}

pub async fn remove(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, app)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let key = app_key(&project, &app)?;
    if !plane.catalog().apps.contains_key(&key) && let_go(&plane, &caller, &key).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    update(&plane, &key, (&caller, "rm"), |_, record| {
        record.removing = true;
        Ok(key.1.to_string())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends what locations go on with of an app that the store does not know; false where there is none.
async fn let_go(plane: &Plane, caller: &Caller, key: &AppKey) -> Result<bool, Refusal> {
    let reports = plane.reports.now();
    let mut any = false;
    for location in strays::of(&reports, key) {
        any = true;
        let change = strays::let_go(location, key);
        let subject = format!("{} at {location}", key.1);
        commit(plane, with_event(change, &caller.who(), Some(&key.0), "rm", subject)).await?;
    }
    Ok(any)
}
