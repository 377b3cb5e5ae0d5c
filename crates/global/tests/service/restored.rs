//! A store that was restored from a backup, and locations that saw what came after that.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{AllotmentSet, AppRef, InstanceStatus, LocationReport};
use longshore_api::v1::{AppView, DeployRequest, EventView, InstanceView};
use longshore_link::{CallError, LineStream};
use longshore_store::RedbStore;
use longshore_store::backup::Backup;
use longshore_store::world::{Origin, World};
use longshore_types::{Epoch, Generation};

use crate::plane::{Plane, healthy, report_of, until, web};

/// A store as it is now.
async fn backup(of: &Path) -> Backup {
    let store = RedbStore::open(&of.join("data/store.redb")).unwrap();
    Backup::take(&store, 1).await.unwrap()
}

/// A control plane on a new store with what is in a backup.
async fn restored(dir: &Path, backup: &Backup) -> Plane {
    std::fs::create_dir_all(dir.join("data")).unwrap();
    let store = RedbStore::open(&dir.join("data/store.redb")).unwrap();
    let world = World::after(backup.epoch, Origin::Restored, 7);
    backup.restore(&store, &world).await.unwrap();
    drop(store);
    Plane::start(dir).await
}

fn report(location: &str, (epoch, acknowledged): (Epoch, Generation)) -> LocationReport {
    LocationReport { epoch, ..report_of(location, acknowledged, vec![], vec![]) }
}

fn stray(app: &str) -> AppRef {
    AppRef { project: "default".parse().unwrap(), app: app.parse().unwrap() }
}

async fn sets_of(plane: &Plane, location: &str) -> LineStream<AllotmentSet> {
    plane.link.watch(&format!("/link/locations/{location}/allotments")).await.unwrap()
}

/// Two instances of an app.
fn two_of(set: &AllotmentSet, app: &str) -> Vec<Arc<InstanceStatus>> {
    let allotment = set.allotments.iter().find(|allotment| allotment.app().as_str() == app);
    let allotment = allotment.unwrap();
    ["00000001", "00000002"].map(|id| Arc::new(healthy(allotment, &format!("{app}-{id}")))).into()
}

#[tokio::test]
async fn what_came_after_the_backup_goes_on_and_what_was_acknowledged_then_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let (old_dir, new_dir) = (dir.path().join("old"), dir.path().join("new"));
    std::fs::create_dir(&old_dir).unwrap();
    let (old, _) = Plane::start_with_web(&old_dir).await;
    old.stop().await;
    let backup = backup(&old_dir).await;

    // After the backup another app came.
    let old = Plane::start(&old_dir).await;
    old.report(Generation(0), vec![]).await;
    let mut late = web();
    late["app"] = "late".into();
    let late = DeployRequest { manifest: late };
    let path = "/v1/projects/default/apps/late";
    old.user.call::<_, serde_json::Value>(Method::PUT, path, Some(&late)).await.unwrap();
    let before = until(&mut sets_of(&old, "ams").await, |set| set.allotments.len() == 2).await;

    let new = restored(&new_dir, &backup).await;
    let mut sets = sets_of(&new, "ams").await;
    let set = until(&mut sets, |_| true).await;
    assert_eq!((set.epoch, set.allotments.len()), (Epoch(7), 1));
    assert!(set.let_go.is_empty() && set.epoch > before.epoch);

    // A report of before acknowledges nothing here, however new it was there.
    let web_path = "/v1/projects/default/apps/web";
    new.user.call::<(), ()>(Method::DELETE, web_path, None).await.unwrap();
    until(&mut sets, |set| set.allotments.is_empty()).await;
    new.try_send(&report("ams", (Epoch(0), Generation(u64::MAX)))).await.unwrap();
    let view: AppView = new.user.get(web_path).await.unwrap();
    assert_eq!(view.state, "removing");

    // The location goes on with what is not known, and that is told.
    let heard = (Epoch(7), until(&mut sets_of(&new, "ams").await, |_| true).await.generation);
    let with_stray = LocationReport {
        strays: vec![stray("late")],
        instances: two_of(&before, "late"),
        ..report("ams", heard)
    };
    new.try_send(&with_stray).await.unwrap();
    let told = async {
        loop {
            let events: Vec<EventView> = new.user.get("/v1/events").await.unwrap();
            if let Some(event) = events.into_iter().find(|event| event.what == "keep") {
                break event;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(20), told).await.expect("it is told");
    assert!(told.subject.starts_with("late at ams, which the restored store"), "{told:?}");
    let listed = "/v1/projects/default/instances?app=late";
    assert_eq!(new.user.get::<Vec<InstanceView>>(listed).await.unwrap().len(), 2);
    // Now that it was heard, what was removed is gone.
    let gone = async {
        while new.user.get::<AppView>(web_path).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it is gone");

    // It ends when a user says so.
    new.user.call::<(), ()>(Method::DELETE, path, None).await.unwrap();
    let set = until(&mut sets, |set| !set.let_go.is_empty()).await;
    assert_eq!(set.let_go, [stray("late")]);
    new.try_send(&report("ams", (set.epoch, set.generation))).await.unwrap();
    until(&mut sets, |set| set.let_go.is_empty()).await;
    let again = new.user.call::<(), ()>(Method::DELETE, path, None).await;
    assert!(matches!(again, Err(CallError::Refused(p)) if p.code == ProblemCode::NotFound));

    // The control plane that still runs on the store before is told that it counts no more.
    let superseded = old.try_send(&with_stray).await;
    assert!(matches!(superseded, Err(CallError::Refused(p)) if p.code == ProblemCode::Superseded));
    old.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn an_app_that_has_moved_since_the_backup_goes_there_once_enough_of_it_runs_here() {
    let dir = tempfile::tempdir().unwrap();
    let (old_dir, new_dir) = (dir.path().join("old"), dir.path().join("new"));
    std::fs::create_dir(&old_dir).unwrap();
    let (old, before) = Plane::start_with_web(&old_dir).await;
    old.stop().await;
    let new = restored(&new_dir, &backup(&old_dir).await).await;
    let (mut here, mut there) = (sets_of(&new, "ams").await, sets_of(&new, "sin").await);
    let set = until(&mut here, |set| set.allotments.len() == 1).await;
    let there_now = until(&mut there, |_| true).await;
    let moved = LocationReport {
        strays: vec![stray("web")],
        instances: two_of(&before, "web"),
        ..report("sin", (Epoch(7), there_now.generation))
    };
    new.try_send(&moved).await.unwrap();
    new.try_send(&report("ams", (Epoch(7), set.generation))).await.unwrap();
    let told = async {
        loop {
            let events: Vec<EventView> = new.user.get("/v1/events").await.unwrap();
            if events.iter().any(|event| event.what == "keep") {
                assert!(events.iter().all(|event| event.what != "let-go"), "too soon");
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("it is told");
    let ready = LocationReport {
        instances: two_of(&set, "web"),
        ..report("ams", (Epoch(7), set.generation))
    };
    new.try_send(&ready).await.unwrap();
    let set = until(&mut there, |set| !set.let_go.is_empty()).await;
    assert_eq!(set.let_go, [stray("web")]);
    new.stop().await;
}

#[tokio::test]
async fn a_store_that_was_restored_by_half_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let store = RedbStore::open(&dir.path().join("data/store.redb")).unwrap();
    let half = longshore_store::Transaction::new().put("/restoring", "{}");
    longshore_store::Store::commit(&store, half).await.unwrap();
    drop(store);
    let ended = Plane::start(dir.path()).await.done.await.unwrap_err();
    let panic = ended.into_panic();
    let said = panic.downcast_ref::<String>().unwrap();
    assert!(said.contains("HalfRestored"), "{said}");
}
