//! What a deploy would do: the same checks and the same planner, and nothing written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use longshore_api::v1::{Change, DeployRequest, Placement, PlanView, WaitingView};
use longshore_link::{Body, Refusal};
use longshore_planning::global::{Shared, Waiting};
use longshore_types::{Digest, LocationName, Manifest, ManifestProblem, SecretName, SecretVersion};
use serde_json::{Value, json};

use super::access::Caller;
use super::apps::{app_key, being_removed, checked, next_number, present};
use super::params::Path;
use super::secrets::pinned;
use crate::catalog::{AppKey, Catalog};
use crate::reports::ByLocation;
use crate::{Plane, scheduler};

pub async fn show(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Path((project, app)): Path<(String, String)>,
    Body(request): Body<DeployRequest>,
) -> Result<Json<PlanView>, Refusal> {
    let key = app_key(&project, &app)?;
    let manifest = checked(&plane, &caller, &key, &request)?;
    let digest = plane.resolve_image(&manifest.image).await?;
    let catalog = plane.catalog();
    let stored = catalog.apps.get(&key).map(|stored| &stored.record);
    if stored.is_some_and(|record| record.removing) {
        return Err(being_removed(&key));
    }
    let current = catalog.current_release(&key);
    let number = current.map(|current| current.number);
    let secrets = pinned(&plane, &catalog, &manifest)?;
    let after = Planned { manifest: &manifest, digest: Some(digest), secrets: &secrets };
    let is_present = present(&catalog, &key, &manifest, digest, &secrets).is_some();
    let (release, count, changes) = match (current, stored) {
        (Some(current), Some(record)) if is_present => (current.number, record.count, vec![]),
        (Some(current), Some(record)) => {
            // A deploy of something else also takes back what `scale` made of the count.
            let manifest = Manifest { count: record.count, ..current.manifest.clone() };
            let digest = Some(current.image_digest);
            let before = Planned { manifest: &manifest, digest, secrets: &current.secrets };
            (next_number(&catalog, &key), after.manifest.count, changes(&before, &after))
        }
        _ => {
            let manifest = defaults(&manifest)?;
            let before =
                Planned { manifest: &manifest, digest: None, secrets: &BTreeMap::default() };
            (next_number(&catalog, &key), after.manifest.count, changes(&before, &after))
        }
    };
    let reports = plane.reports.now();
    let (placement, waiting) = placement(&catalog, &reports, &key, (count, &manifest));
    let then = placement.iter().map(|one| (&one.location, one.after));
    let latency = scheduler::latency_with(&reports, (&key, &manifest.placement), then);
    Ok(Json(PlanView { current: number, release, placement, waiting, latency, changes }))
}

/// The manifest that says as little as one of this app can.
fn defaults(manifest: &Manifest) -> Result<Manifest, Refusal> {
    let least = json!({"app": manifest.app, "project": manifest.project, "image": manifest.image});
    let read = Manifest::from_document(&least);
    read.map_err(|problems: Vec<ManifestProblem>| longshore_api::Problem::invalid(problems).into())
}

/// What a release is made of.
struct Planned<'a> {
    manifest: &'a Manifest,
    digest: Option<Digest>,
    secrets: &'a BTreeMap<SecretName, SecretVersion>,
}

impl Planned<'_> {
    fn values(&self) -> BTreeMap<String, Value> {
        let mut values = BTreeMap::new();
        let manifest = serde_json::to_value(self.manifest).unwrap_or_default();
        flatten(String::new(), manifest, &mut values);
        values.extend(self.digest.map(|digest| ("image_digest".to_owned(), json!(digest))));
        for (name, version) in self.secrets {
            values.insert(format!("secret_versions.{name}"), json!(version));
        }
        values
    }
}

fn changes(before: &Planned<'_>, after: &Planned<'_>) -> Vec<Change> {
    let (mut before, mut after) = (before.values(), after.values());
    let fields: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    let each = fields.into_iter().map(|field| {
        let (before, after) = (before.remove(&field), after.remove(&field));
        Change { field, before, after }
    });
    each.filter(|change| change.before != change.after).collect()
}

/// Every value in tables and tables of tables by its path. What is absent has none; a list is one.
fn flatten(path: String, value: Value, values: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(path, value, values);
            }
        }
        Value::Null => {}
        value => {
            values.insert(path, value);
        }
    }
}

fn placement(
    catalog: &Catalog,
    reports: &ByLocation,
    key: &AppKey,
    wanted: (u32, &Manifest),
) -> (Vec<Placement>, Option<WaitingView>) {
    let held = scheduler::held(catalog, key);
    let before = |location: &LocationName| held.get(location).map_or(0, |held| held.record.count);
    let Shared { shares, waiting } = scheduler::shares(catalog, reports, (key, &held), wanted);
    let emptied = held.keys().filter(|location| shares.iter().all(|s| s.location != ***location));
    let emptied = emptied.filter(|location| before(location) > 0).map(|location| Placement {
        location: (*location).clone(),
        before: before(location),
        after: 0,
        decision: None,
    });
    let given = shares.iter().map(|share| {
        let (before, after) = (before(&share.location), share.count);
        let decision = (after > before).then(|| share.decision.clone());
        Placement { location: share.location.clone(), before, after, decision }
    });
    let waiting = waiting.map(|Waiting { missing, decision }| WaitingView { missing, decision });
    (given.chain(emptied).collect(), waiting)
}
