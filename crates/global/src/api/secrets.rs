//! Secrets: set, list, remove, and change the key that seals them. Values come in and never go out.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use longshore_api::v1::{SecretKeyView, SecretRequest, SecretView};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal, now};
use longshore_store::{Compare, Relation, Transaction};
use longshore_types::{
    AppName, Manifest, ManifestProblem, ProjectName, Release, SecretName, SecretPlace, SecretValue,
    SecretVersion,
};

use super::access::Caller;
use super::apps::TRIES;
use super::params::Path;
use super::{parse, store_failed, tell};
use crate::Plane;
use crate::catalog::Catalog;
use crate::events::with_event;
use crate::records::{Key, SecretRecord, encode};

type Shared = State<Arc<Plane>>;

pub async fn list(
    State(plane): Shared,
    Path(project): Path<String>,
) -> Result<Json<Vec<SecretView>>, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let catalog = plane.catalog();
    let newest = newest(&catalog, &project);
    Ok(Json(newest.keys().filter_map(|name| view(&catalog, &project, name)).collect()))
}

/// Keeps a value as the next version of a secret. What runs goes on with the one that it has.
pub async fn set(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, name)): Path<(String, String)>,
    Body(request): Body<SecretRequest>,
) -> Result<Json<SecretView>, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let name: SecretName = parse("name", &name)?;
    let n_bytes = request.value.bytes().len();
    if !(1..=SecretValue::MAX).contains(&n_bytes) {
        let (value, allowed) =
            (format_args!("({n_bytes} bytes)"), format!("1 to {} bytes", SecretValue::MAX));
        return Err(Problem::invalid_value("value", value, allowed).into());
    }
    for _ in 0..TRIES {
        let catalog = plane.catalog();
        let version = newest(&catalog, &project).get(&name).map_or(1, |version| version.0 + 1);
        let key = Key::Secret(project.clone(), name.clone(), SecretVersion(version)).to_string();
        let sealed = plane.keyring.seal(&key, &request.value).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot seal a secret");
            Problem::new(ProblemCode::Internal, "a secret cannot be sealed; nothing was changed")
        })?;
        let record = SecretRecord { sealed, created_at: now() };
        let change = Transaction::new().when(Compare::absent(&key)).put(key, encode(&record));
        let subject = format!("{name} v{version}");
        let change = with_event(change, &caller.who(), Some(&project), "secret set", subject);
        let result = plane.store.commit(change).await.map_err(store_failed)?;
        let catalog = plane.catalog.reached(result.revision).await;
        if result.succeeded {
            let gone = || Problem::not_found("secret", &name);
            return Ok(Json(view(&catalog, &project, &name).ok_or_else(gone)?));
        }
    }
    let detail = format!("secret {name} was set by others again and again; nothing was done");
    Err(Problem::new(ProblemCode::Conflict, detail).into())
}

/// Removes a secret that no release needs which runs or may be taken back.
pub async fn remove(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
    Path((project, name)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let project: ProjectName = parse("project", &project)?;
    let name: SecretName = parse("name", &name)?;
    let catalog = plane.catalog();
    let view = view(&catalog, &project, &name);
    let view = view.ok_or_else(|| Problem::not_found("secret", &name))?;
    if let Some(app) = view.used_by.first() {
        let detail = format!("secret {name} is used by app {app}; deploy that without it first");
        return Err(Problem::new(ProblemCode::Conflict, detail).into());
    }
    let versions = catalog.secrets.iter().filter(|(key, _)| (&key.0, &key.1) == (&project, &name));
    let change = versions.fold(Transaction::new(), |change, (key, stored)| {
        let key = Key::Secret(key.0.clone(), key.1.clone(), key.2).to_string();
        // A deploy that takes it at this moment writes it again.
        let unchanged = Compare::mod_revision(&key, Relation::Equal, stored.revision);
        change.when(unchanged).delete(key)
    });
    let change = with_event(change, &caller.who(), Some(&project), "secret rm", &name);
    let result = plane.store.commit(change).await.map_err(store_failed)?;
    plane.catalog.reached(result.revision).await;
    if !result.succeeded {
        let detail = format!("secret {name} was taken or set at this moment; it was not removed");
        return Err(Problem::new(ProblemCode::Conflict, detail).into());
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a new key, seals everything with it, and forgets the old one.
pub async fn rotate(
    State(plane): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<Json<SecretKeyView>, Refusal> {
    let failed = |error: longshore_secrets::KeyringError| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot change the secret keys");
        Refusal(Problem::new(ProblemCode::Internal, "the key file cannot be changed"))
    };
    let _alone = plane.rotating.lock().await;
    tell(&plane, &caller, None, ("secret rotate-key", "all secrets")).await?;
    plane.keyring.add_key().map_err(failed)?;
    let resealed = reseal(&plane).await?;
    plane.keyring.forget_old_keys().map_err(failed)?;
    Ok(Json(SecretKeyView { resealed }))
}

/// Seals everything with the newest key; a control plane that died in the middle goes on here.
async fn reseal(plane: &Plane) -> Result<u32, Refusal> {
    let mut resealed = 0;
    loop {
        let catalog = plane.catalog();
        let old = catalog.secrets.iter().find(|(_, stored)| {
            let sealed = &stored.record.sealed;
            !plane.keyring.is_newest(sealed)
        });
        let Some(((project, name, version), stored)) = old else { return Ok(resealed) };
        let key = Key::Secret(project.clone(), name.clone(), *version).to_string();
        let again = plane.keyring.unseal(&key, &stored.record.sealed);
        let again = again
            .map_err(|error| error.to_string())
            .and_then(|value| plane.keyring.seal(&key, &value).map_err(|error| error.to_string()));
        let sealed = again.map_err(|why| {
            tracing::error!(%name, %version, why, "a secret cannot be sealed anew");
            let detail = format!("secret {name} cannot be sealed anew: {why}; both keys are kept");
            Problem::new(ProblemCode::Internal, detail)
        })?;
        let record = SecretRecord { sealed, created_at: stored.record.created_at };
        let unchanged = Compare::mod_revision(&key, Relation::Equal, stored.revision);
        let change = Transaction::new().when(unchanged).put(key, encode(&record));
        let result = plane.store.commit(change).await.map_err(store_failed)?;
        plane.catalog.reached(result.revision).await;
        resealed += u32::from(result.succeeded);
    }
}

/// The newest version of each secret of a project.
fn newest(catalog: &Catalog, project: &ProjectName) -> BTreeMap<SecretName, SecretVersion> {
    let of_project = catalog.secrets.keys().filter(|(owner, _, _)| owner == project);
    // They come in the order of their versions.
    of_project.map(|(_, name, version)| (name.clone(), *version)).collect()
}

fn view(catalog: &Catalog, project: &ProjectName, name: &SecretName) -> Option<SecretView> {
    let version = *newest(catalog, project).get(name)?;
    let key = (project.clone(), name.clone(), version);
    let created_at = catalog.secrets.get(&key)?.record.created_at;
    Some(SecretView {
        name: name.clone(),
        version,
        created_at,
        used_by: users(catalog, project, name),
    })
}

/// The apps whose releases use a secret: those that run, and those that may be taken back to at any moment.
fn users(catalog: &Catalog, project: &ProjectName, name: &SecretName) -> Vec<AppName> {
    let of_project = catalog.apps.iter().filter(|((owner, _), _)| owner == project);
    let uses = of_project.filter(|(key, stored)| {
        let record = &stored.record;
        let numbers = [Some(record.release), record.beside, record.good];
        numbers.into_iter().flatten().any(|number| {
            let release = catalog.releases.get(&(key.0.clone(), key.1.clone(), number));
            release.is_some_and(|release| release.secrets.contains_key(name))
        })
    });
    uses.map(|((_, app), _)| app.clone()).collect()
}

/// The versions that the secrets of a manifest have now; refuses one that names what is not there,
/// or what its place cannot hold.
pub(super) fn pinned(
    plane: &Plane,
    catalog: &Catalog,
    manifest: &Manifest,
) -> Result<BTreeMap<SecretName, SecretVersion>, Refusal> {
    let newest = newest(catalog, &manifest.project);
    let mut problems = Vec::new();
    let mut pinned = BTreeMap::new();
    for (place, name) in &manifest.secrets {
        let field = format!("secrets.{place}");
        let Some(version) = newest.get(name) else {
            let known: Vec<_> = newest.keys().map(SecretName::as_str).collect();
            let known = match known.is_empty() {
                true => String::new(),
                false => format!("; there are {}", known.join(", ")),
            };
            let allowed =
                format!("a secret of the project, made with longshore secret set {name}{known}");
            problems.push(ManifestProblem { field, value: format!("\"{name}\""), allowed });
            continue;
        };
        if matches!(place, SecretPlace::Variable(_))
            && !fits_a_variable(plane, catalog, manifest, (name, *version))
        {
            let allowed = "a secret that is text; show this one as a file".to_owned();
            problems.push(ManifestProblem { field, value: format!("\"{name}\""), allowed });
        }
        pinned.insert(name.clone(), *version);
    }
    if problems.is_empty() { Ok(pinned) } else { Err(Problem::invalid(problems).into()) }
}

/// Adds to the change that makes a release the one that should run that its secrets are there, and
/// writes them again as they are: so nobody removes one at the same moment.
pub(super) fn holding(
    change: Transaction,
    catalog: &Catalog,
    release: &Release,
) -> Result<Transaction, Refusal> {
    release.secrets.iter().try_fold(change, |change, (name, version)| {
        let project = &release.manifest.project;
        let stored = catalog.secrets.get(&(project.clone(), name.clone(), *version));
        let stored = stored.ok_or_else(|| {
            let number = release.number;
            let detail = format!("{number} needs {version} of secret {name}, which was removed");
            Problem::new(ProblemCode::Conflict, detail)
        })?;
        let key = Key::Secret(project.clone(), name.clone(), *version).to_string();
        Ok(change.when(Compare::exists(&key)).put(key, encode(&stored.record)))
    })
}

fn fits_a_variable(
    plane: &Plane,
    catalog: &Catalog,
    manifest: &Manifest,
    (name, version): (&SecretName, SecretVersion),
) -> bool {
    let value = value(plane, catalog, &manifest.project, (name, version));
    // One that does not open is told when it is needed.
    value.is_none_or(|value| value.as_variable().is_some())
}

/// The value of a version of a secret; nothing when it is not there or does not open, which is logged.
pub fn value(
    plane: &Plane,
    catalog: &Catalog,
    project: &ProjectName,
    (name, version): (&SecretName, SecretVersion),
) -> Option<SecretValue> {
    let stored = catalog.secrets.get(&(project.clone(), name.clone(), version))?;
    let key = Key::Secret(project.clone(), name.clone(), version).to_string();
    let opened = plane.keyring.unseal(&key, &stored.record.sealed);
    opened
        .inspect_err(|error| tracing::error!(%name, %version, %error, "a secret does not open"))
        .ok()
}
