//! A new release comes to one location after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_api::links::{Allotment, AllotmentSet, InstanceStatus, RegistryTable};
use longshore_api::v1::EventView;
use longshore_link::LineStream;
use longshore_types::{Generation, ReleaseNumber};
use serde_json::json;

use crate::plane::*;

const LOCATIONS: [&str; 3] = ["ams", "sin", "syd"];

/// Locations that do what they are told, when the test says so.
struct World {
    plane: Plane,
    /// How many releases of an app are kept at least.
    keep_releases: u32,
    sets: BTreeMap<&'static str, LineStream<AllotmentSet>>,
    running: BTreeMap<&'static str, Vec<InstanceStatus>>,
}

impl World {
    /// One app of three instances, one at each.
    async fn start(dir: &std::path::Path) -> Self {
        Self::start_keeping(dir, 20).await
    }

    /// The same with no more releases than these, but for those that are needed.
    async fn start_keeping(dir: &std::path::Path, keep_releases: u32) -> Self {
        let plane = Plane::start_keeping(dir, keep_releases);
        let mut sets = BTreeMap::new();
        for name in LOCATIONS {
            plane.report_from(name, Generation(0), vec![], vec![]).await;
            let path = format!("/link/locations/{name}/allotments");
            sets.insert(name, plane.link.watch(&path).await.unwrap());
        }
        let mut world = Self { plane, keep_releases, sets, running: BTreeMap::new() };
        world.deploy("one").await;
        for name in LOCATIONS {
            world.serves(name, 1).await;
        }
        world.plane.app_when(|app| app.state == "running").await;
        world
    }

    async fn deploy(&self, word: &str) {
        self.deploy_with(word, "never").await;
    }

    async fn deploy_with(&self, word: &str, replace_lost: &str) {
        let mut document = web_with(word, json!({"deadline": "2s"}));
        document["count"] = json!(3);
        document["image"] = json!(if word == "one" { "default/web:1" } else { "default/web:3" });
        document["replace_lost"] = json!(replace_lost);
        self.plane.deploy(document).await.unwrap();
    }

    /// The same with a control plane that was started anew and has heard of nobody since, of whom one stays
    /// away.
    async fn without_sin(self, dir: &std::path::Path) -> Self {
        let Self { plane, keep_releases, running, .. } = self;
        plane.stop().await;
        let plane = Plane::start_keeping(dir, keep_releases);
        let mut sets = BTreeMap::new();
        for name in LOCATIONS {
            let path = format!("/link/locations/{name}/allotments");
            let mut watch = plane.link.watch::<AllotmentSet>(&path).await.unwrap();
            if name != "sin" {
                let set = until(&mut watch, |_| true).await;
                plane.report_from(name, set.generation, running[name].clone(), vec![]).await;
            }
            sets.insert(name, watch);
        }
        Self { plane, keep_releases, sets, running }
    }

    /// The releases that are kept and the digests of the images that the registry has to keep for them, once these
    /// are so many.
    async fn kept(&self, n_images: usize) -> (Vec<u64>, BTreeSet<String>) {
        let path = "/link/registry/table";
        let mut tables = self.plane.link.watch::<RegistryTable>(path).await.unwrap();
        let table = async {
            loop {
                let table = tables.next().await.expect("the watch goes on").unwrap();
                if table.pins.len() == n_images {
                    return table;
                }
            }
        };
        let table = tokio::time::timeout(Duration::from_secs(20), table).await.expect("in time");
        let releases = self.plane.releases().await.iter().map(|one| one.number.0).collect();
        (releases, table.pins.iter().map(|pin| pin.digest.to_string()).collect())
    }

    /// Waits until it was told that a release is complete.
    async fn complete(&self, release: u64) {
        let is_it = |event: &EventView| {
            event.what == "complete" && event.subject == format!("web r{release}")
        };
        let told = async {
            while !self
                .plane
                .user
                .get::<Vec<EventView>>("/v1/events")
                .await
                .unwrap()
                .iter()
                .any(is_it)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.expect("in time");
    }

    /// How many instances each location is told to run now.
    async fn counts(&self) -> Vec<u32> {
        let mut counts = Vec::new();
        for name in LOCATIONS {
            let path = format!("/link/locations/{name}/allotments");
            let mut sets = self.plane.link.watch::<AllotmentSet>(&path).await.unwrap();
            counts.push(until(&mut sets, |_| true).await.allotments[0].count);
        }
        counts
    }

    /// Waits until a location is told of a release.
    async fn told(&mut self, name: &'static str, release: u64) -> AllotmentSet {
        let is_told = |set: &AllotmentSet| release_in(set) == Some(release);
        until(self.sets.get_mut(name).unwrap(), is_told).await
    }

    /// The same, and it then runs that.
    async fn serves(&mut self, name: &'static str, release: u64) {
        let set = self.told(name, release).await;
        let [allotment] = &set.allotments[..] else { panic!("{set:?}") };
        assert_eq!(allotment.count, 1);
        let running = vec![healthy(allotment, &format!("web-{:08}", release * 3 + index(name)))];
        self.plane.report_from(name, set.generation, running.clone(), vec![]).await;
        self.running.insert(name, running);
    }

    /// The release that each location is told to run now.
    async fn now(&self) -> Vec<u64> {
        let mut releases = Vec::new();
        for name in LOCATIONS {
            let path = format!("/link/locations/{name}/allotments");
            let mut sets = self.plane.link.watch::<AllotmentSet>(&path).await.unwrap();
            releases.push(release_in(&until(&mut sets, |_| true).await).unwrap());
        }
        releases
    }
}

/// Tells ids of locations apart.
fn index(name: &str) -> u64 {
    u64::from(name == "sin") + 2 * u64::from(name == "syd")
}

fn release_in(set: &AllotmentSet) -> Option<u64> {
    set.allotments.first().map(|Allotment { release, .. }| release.number.0)
}

#[tokio::test]
async fn one_location_then_more_each_wave_once_the_one_before_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.deploy("two").await;
    let set = world.told("ams", 2).await;
    assert_eq!(world.now().await, [2, 1, 1]);
    let note = world.plane.app_when(|app| app.note.is_some()).await.note;
    assert_eq!(note.as_deref(), Some("r2 is at 1 of 3 locations"));
    // Heard, and not healthy yet.
    let before = world.running["ams"].clone();
    world.plane.report_from("ams", set.generation, before, vec![]).await;
    assert_eq!(world.now().await, [2, 1, 1]);
    let running = vec![healthy(&set.allotments[0], "web-00000002")];
    world.plane.report_from("ams", set.generation, running, vec![]).await;
    world.serves("sin", 2).await;
    world.serves("syd", 2).await;
    let app = world.plane.app_when(|app| app.state == "running").await;
    assert_eq!((app.release, app.ready, app.outdated), (ReleaseNumber(2), 3, 0));
    // Back, all at once.
    world.plane.rollback(Some(1)).await.unwrap();
    for name in LOCATIONS {
        world.told(name, 1).await;
    }
    world.plane.stop().await;
}

#[tokio::test]
async fn a_bad_release_never_comes_further_than_the_first_location() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.deploy("bad").await;
    let set = world.told("ams", 2).await;
    let kept = world.running["ams"].clone();
    world.plane.report_from("ams", set.generation, kept, vec![]).await;
    assert_eq!(world.now().await, [2, 1, 1]);
    let app = world.plane.app_when(|app| app.release == ReleaseNumber(1)).await;
    assert_eq!(app.failed, Some(ReleaseNumber(2)));
    world.told("ams", 1).await;
    assert_eq!(world.now().await, [1, 1, 1]);
    world.plane.stop().await;
}

#[tokio::test]
async fn a_location_that_is_not_heard_of_stops_nobody_and_goes_straight_to_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start_keeping(dir.path(), 1).await;
    world = world.without_sin(dir.path()).await;
    let app = world.plane.app_when(|app| app.ready == 2).await;
    assert_eq!((app.state.as_str(), app.away.len()), ("running", 1));
    assert_eq!(app.note.as_deref(), Some("not counting sin (not heard of, running r1)"));

    for (release, word) in [(2, "two"), (3, "three")] {
        world.deploy(word).await;
        world.serves("ams", release).await;
        world.serves("syd", release).await;
        let is_complete = |app: &longshore_api::v1::AppView| {
            app.release == ReleaseNumber(release) && app.state == "running"
        };
        let app = world.plane.app_when(is_complete).await;
        let note = "complete except sin (not heard of, running r1)";
        assert_eq!(app.note.as_deref(), Some(note));
        // It is not waited for: past its deadline the release would have been taken back.
        world.complete(release).await;
    }
    let all = [DIGEST, OTHER_DIGEST].map(ToOwned::to_owned).into();
    assert_eq!(world.kept(2).await, (vec![1, 2, 3], all), "what it may still run is kept");
    // The next control plane knows as much.
    let mut world = world.without_sin(dir.path()).await;
    let app = world.plane.app_when(|app| app.ready == 2).await;
    let note = "complete except sin (not heard of, running r1)";
    assert_eq!(app.note.as_deref(), Some(note));
    // It is back, still with the first, and is told of nothing but the newest.
    let set = world.told("sin", 3).await;
    let before = world.running["sin"].clone();
    world.plane.report_from("sin", set.generation, before, vec![]).await;
    world.plane.app_when(|app| app.state == "rolling" && app.outdated == 1).await;
    // What nobody runs goes; what runs there is needed there once more, if its container ends.
    let forgotten = async {
        while world.plane.releases().await.len() > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), forgotten).await.expect("in time");
    let all = [DIGEST, OTHER_DIGEST].map(ToOwned::to_owned).into();
    assert_eq!(world.kept(2).await, (vec![1, 3], all));
    let running = vec![healthy(&set.allotments[0], "web-00000009")];
    world.plane.report_from("sin", set.generation, running.clone(), vec![]).await;
    let app = world.plane.app_when(|app| app.state == "running").await;
    assert_eq!((app.ready, app.note), (3, None));
    assert_eq!(world.kept(1).await, (vec![3], [OTHER_DIGEST.to_owned()].into()));
    // What it was left with is over, also for the next one.
    let is_newer = |newer: &AllotmentSet| newer.generation > set.generation;
    let set = until(world.sets.get_mut("sin").unwrap(), is_newer).await;
    world.plane.report_from("sin", set.generation, running.clone(), vec![]).await;
    world.running.insert("sin", running);
    let world = world.without_sin(dir.path()).await;
    let app = world.plane.app_when(|app| app.ready == 2).await;
    assert_eq!(app.note.as_deref(), Some("not counting sin (not heard of, running r3)"));
    world.plane.stop().await;
}

#[tokio::test]
async fn a_release_is_taken_back_for_a_location_that_is_heard_beside_one_that_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let mut world = world.without_sin(dir.path()).await;
    world.deploy("two").await;
    world.serves("ams", 2).await;
    let set = world.told("syd", 2).await;
    let before = world.running["syd"].clone();
    world.plane.report_from("syd", set.generation, before, vec![]).await;
    let app = world.plane.app_when(|app| app.failed.is_some()).await;
    assert_eq!((app.release, app.failed), (ReleaseNumber(1), Some(ReleaseNumber(2))));
    world.told("syd", 1).await;
    assert_eq!(world.now().await, [1, 1, 1]);
    world.plane.stop().await;
}

#[tokio::test]
async fn what_a_lost_location_had_runs_elsewhere_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.deploy_with("two", "2s").await;
    for name in LOCATIONS {
        world.serves(name, 2).await;
    }
    world.plane.app_when(|app| app.state == "running").await;
    let mut world = world.without_sin(dir.path()).await;
    assert_eq!(world.counts().await, [1, 1, 1], "it may only be late");
    let has_two = |set: &AllotmentSet| set.allotments[0].count == 2;
    let set = until(world.sets.get_mut("ams").unwrap(), has_two).await;
    assert_eq!(world.counts().await, [2, 1, 1], "what it may still run counts");
    let budgets = |set: &AllotmentSet| set.allotments[0].budget;
    assert!(budgets(&set) <= 5, "max is 9, and each of the others may run two");
    let more = healthy(&set.allotments[0], "web-00000099");
    let running = [world.running["ams"].clone(), vec![more]].concat();
    world.plane.report_from("ams", set.generation, running, vec![]).await;
    world.plane.app_when(|app| app.ready == 3 && app.away.len() == 1).await;

    // Back and healthy, it goes on, and what is too much goes.
    let set = until(world.sets.get_mut("sin").unwrap(), |_| true).await;
    let there = world.running["sin"].clone();
    world.plane.report_from("sin", set.generation, there, vec![]).await;
    until(world.sets.get_mut("ams").unwrap(), |set| set.allotments[0].count == 1).await;
    assert_eq!(world.counts().await, [1, 1, 1]);
    world.plane.stop().await;
}
