//! Releases: look, and go back to an earlier one.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use longshore_api::v1::{DeployResponse, ReleaseView, RollbackRequest};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, Refusal};
use longshore_types::{ImageReference, Release, ReleaseNumber};

use super::access::Caller;
use super::apps::{
    TRIES, Wanted, Way, app_key, being_removed, put_release, refuse_what_cannot_be, too_busy,
    unchanged, update,
};
use super::params::Path;
use crate::catalog::{AppKey, Catalog};
use crate::records::RolloutStage;
use crate::{Plane, views};

pub async fn list(
    State(plane): State<Arc<Plane>>,
    Path((project, app)): Path<(String, String)>,
) -> Result<Json<Vec<ReleaseView>>, Refusal> {
    let key = app_key(&project, &app)?;
    let catalog = plane.catalog();
    let stored = catalog.app(&key)?;
    let current = stored.record.release;
    Ok(Json(catalog.releases_of(&key).map(|release| views::release(release, current)).collect()))
}

/// Makes an earlier release the one that should run. Its instances that are left are kept. How many
/// should run stays as it is: what is taken back is what runs, not the answer to today's load.
pub async fn rollback(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Path((project, app)): Path<(String, String)>,
    Body(request): Body<RollbackRequest>,
) -> Result<Json<DeployResponse>, Refusal> {
    let key = app_key(&project, &app)?;
    for _ in 0..TRIES {
        let catalog = plane.catalog();
        let before = catalog.app(&key)?;
        caller.expects.check(&key, Some(&before.record))?;
        if before.record.removing {
            return Err(being_removed(&key));
        }
        let wanted = find(&catalog, &key, before.record.release, request.release)?;
        if wanted.number == before.record.release {
            return Ok(unchanged(wanted, Some(before)));
        }
        refuse_what_cannot_be(&plane, &key, &wanted.manifest)?;
        // What the registry was called when it was deployed says nothing of where it is.
        let digest = Some(wanted.image_digest);
        let pinned = ImageReference { registry: None, digest, ..wanted.manifest.image.clone() };
        plane.resolve_image(&pinned).await?;
        let count = before.record.count.min(wanted.manifest.max.unwrap_or(u32::MAX));
        let wanted = Wanted { release: wanted, count, by: &caller, way: Way::Rollback };
        if let Some(response) = put_release(&plane, &key, Some(before), wanted).await? {
            return Ok(response);
        }
    }
    Err(too_busy(&key))
}

/// Lets the release whose canaries run take over.
pub async fn promote(
    State(plane): State<Arc<Plane>>,
    Extension(caller): Extension<Caller>,
    Path((project, app)): Path<(String, String)>,
) -> Result<Json<DeployResponse>, Refusal> {
    let key = app_key(&project, &app)?;
    update(&plane, &key, (&caller, "promote"), |_, record| {
        if record.removing {
            return Err(being_removed(&key));
        }
        if record.stage != RolloutStage::Canary {
            let detail = format!("no canary of app {} is running; nothing to promote", key.1);
            return Err(Problem::new(ProblemCode::Conflict, detail).into());
        }
        *record = record.at(RolloutStage::Whole);
        Ok(format!("{} {}", key.1, record.release))
    })
    .await?;
    let catalog = plane.catalog();
    let gone = || Refusal::from(catalog.no_app(&key));
    let stored = catalog.apps.get(&key).ok_or_else(gone)?;
    let release = catalog.current_release(&key).ok_or_else(gone)?;
    let release = views::release(release, stored.record.release);
    Ok(Json(DeployResponse { release, changed: true, generation: stored.record.generation }))
}

/// The release that is meant, `None` being the one before the present one.
fn find<'a>(
    catalog: &'a Catalog,
    key: &AppKey,
    current: ReleaseNumber,
    wanted: Option<ReleaseNumber>,
) -> Result<&'a Arc<Release>, Refusal> {
    let Some(number) = wanted else {
        let earlier = catalog.releases_of(key).filter(|release| release.number < current).last();
        return earlier.ok_or_else(|| {
            let detail = format!("app {} has no release before {current}", key.1);
            Problem::new(ProblemCode::Conflict, detail).into()
        });
    };
    let found = catalog.releases_of(key).find(|release| release.number == number);
    found.ok_or_else(|| {
        let kept: Vec<_> = catalog.releases_of(key).map(|kept| kept.number.to_string()).collect();
        let allowed = format!("a release of the app that is kept: {}", kept.join(", "));
        Problem::invalid_value("release", number, allowed).into()
    })
}
