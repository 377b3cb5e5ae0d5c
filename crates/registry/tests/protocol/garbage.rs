//! What nobody needs goes, and never what somebody does or is about to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_registry::RegistryOptions;
use longshore_types::garbage::{Garbage, GarbageReason, KeptManifest, KeptReason};
use tokio::sync::watch;

use super::*;

const GARBAGE: &str = "/v2/_longshore/garbage";

/// A registry in which nothing is waited for, unless the test says so.
fn impatient(root: &std::path::Path) -> RegistryOptions {
    let (push_lease, keep_untagged) = (Duration::ZERO, Duration::ZERO);
    RegistryOptions { push_lease, keep_untagged, ..options(root) }
}

async fn harness(change: impl FnOnce(&mut RegistryOptions)) -> Harness {
    let root = tempfile::tempdir().unwrap();
    let mut options = impatient(root.path());
    change(&mut options);
    Harness::around(serve(options).await, root)
}

impl Harness {
    pub(super) async fn garbage(&self, method: &str) -> Garbage {
        let answer = self.send(method, GARBAGE, &[], "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn has(&self, path: &str) -> bool {
        self.get(path).await.status == 200
    }

    async fn push_manifest(&self, path: &str, kind: &str, manifest: &Value) -> String {
        let answer = self.send("PUT", path, &[("content-type", kind)], manifest.to_string()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        digest(manifest.to_string().as_bytes())
    }
}

#[tokio::test]
async fn what_nobody_needs_goes_and_nothing_else() {
    let (pins, pinned) = watch::channel(Arc::default());
    let registry = harness(|options| options.pins = pinned).await;
    let tagged = registry.push_image("a/b", "one", b"tagged").await;
    let released = registry.push_image("a/b", "two", b"released").await;
    let replaced = registry.push_image("a/b", "two", b"replaced").await;
    registry.push_image("a/b", "two", b"newest").await;
    let about = json!({"schemaVersion": 2, "mediaType": IMAGE, "layers": [],
        "config": descriptor(&digest(b"{}"), 2), "subject": descriptor(&replaced, 1)});
    let path = format!("/v2/a/b/manifests/{}", digest(about.to_string().as_bytes()));
    let about = registry.push_manifest(&path, IMAGE, &about).await;
    let lone = registry.push_blob("a/b", b"nobody's").await;
    registry.push_blob("a/other", b"tagged").await;
    let pin = [(("a/b".parse().unwrap(), released.parse().unwrap()), "web r1".to_owned())];
    pins.send_replace(Arc::new(BTreeMap::from(pin)));

    let look = registry.garbage("GET").await;
    let found: Vec<_> =
        look.items.iter().map(|item| (item.digest.to_string(), item.reason)).collect();
    let mut expected = vec![
        (replaced.clone(), GarbageReason::Untagged),
        (about.clone(), GarbageReason::SubjectGone),
        (digest(b"replaced"), GarbageReason::Unreferenced),
        (lone.clone(), GarbageReason::Unreferenced),
        (digest(b"tagged"), GarbageReason::Unreferenced),
    ];
    let sorted = |mut all: Vec<(String, GarbageReason)>| {
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    expected = sorted(expected);
    assert_eq!(sorted(found), expected);
    assert_eq!((look.removed, look.manifests, look.blobs), (false, 2, 3));

    let gone = registry.garbage("POST").await;
    assert_eq!(Garbage { removed: false, ..gone.clone() }, look);
    // The bytes that `a/other` had are still those of `a/b`.
    let sizes = gone.items.iter().filter(|item| item.digest.to_string() != digest(b"tagged"));
    assert_eq!(gone.bytes.0, sizes.map(|item| item.size.0).sum::<u64>());
    for path in [
        format!("manifests/{replaced}"),
        format!("manifests/{about}"),
        format!("blobs/{lone}"),
        format!("blobs/{}", digest(b"replaced")),
    ] {
        assert!(!registry.has(&format!("/v2/a/b/{path}")).await, "{path}");
    }
    for path in [
        format!("manifests/{tagged}"),
        format!("manifests/{released}"),
        "manifests/two".to_owned(),
        format!("blobs/{}", digest(b"released")),
        format!("blobs/{}", digest(b"newest")),
        format!("blobs/{}", digest(b"tagged")),
    ] {
        assert!(registry.has(&format!("/v2/a/b/{path}")).await, "{path}");
    }
    assert_eq!(registry.garbage("POST").await, Garbage { removed: true, ..Garbage::default() });
}

/// The parts of an image whose manifest is yet to come.
async fn half_pushed(registry: &Harness) -> Value {
    let config = descriptor(&registry.push_blob("a/b", b"{}").await, 2);
    let layer = descriptor(&registry.push_blob("a/b", b"layer").await, 5);
    json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [layer]})
}

#[tokio::test]
async fn a_push_under_way_loses_nothing() {
    let registry = harness(|options| options.push_lease = Duration::from_secs(3600)).await;
    let image = half_pushed(&registry).await;
    assert_eq!(registry.garbage("POST").await.blobs, 0);
    // An index is pushed after its images, which no tag names.
    let bytes = image.to_string();
    let path = format!("/v2/a/b/manifests/{}", digest(bytes.as_bytes()));
    let child = registry.push_manifest(&path, IMAGE, &image).await;
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    let mut child = descriptor(&child, bytes.len());
    child["mediaType"] = json!(IMAGE);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]});
    registry.push_manifest("/v2/a/b/manifests/index", INDEX, &index).await;
}

#[tokio::test]
async fn what_somebody_counts_on_stays_with_all_that_it_leads_to() {
    let lease = Duration::from_secs(1);
    let registry = harness(|options| options.push_lease = lease).await;
    let image = half_pushed(&registry).await;
    let bytes = image.to_string();
    let path = format!("/v2/a/b/manifests/{}", digest(bytes.as_bytes()));
    let mut child = descriptor(&registry.push_manifest(&path, IMAGE, &image).await, bytes.len());
    child["mediaType"] = json!(IMAGE);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]});
    let at = format!("/v2/a/b/manifests/{}", digest(index.to_string().as_bytes()));
    registry.push_manifest(&at, INDEX, &index).await;
    tokio::time::sleep(lease).await;
    // Nobody asked for what it leads to, and who was told that it is there may want that too.
    assert!(registry.has(&at).await);
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    tokio::time::sleep(lease).await;
    assert_eq!(registry.garbage("POST").await.manifests, 2);
    assert!(!registry.has(&path).await);
}

#[tokio::test]
async fn what_an_upload_may_belong_to_stays_as_long_as_that_goes_on() {
    let registry = harness(|_| ()).await;
    let upload = registry.begin("a/b").await;
    // Even after the lease of what was pushed meanwhile.
    let image = half_pushed(&registry).await;
    assert_eq!(registry.garbage("POST").await.blobs, 0);
    registry.push_manifest("/v2/a/b/manifests/one", IMAGE, &image).await;
    registry.push_blob("a/b", b"another").await;
    registry.send("DELETE", &upload, &[], "").await;
    assert_eq!(registry.garbage("POST").await.blobs, 1);
}

#[tokio::test]
async fn what_lost_its_tag_is_kept_for_a_while() {
    let registry = harness(|options| options.keep_untagged = Duration::from_secs(3600)).await;
    let before = registry.push_image("a/b", "one", b"before").await;
    registry.push_image("a/b", "one", b"after").await;
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    assert!(registry.has(&format!("/v2/a/b/blobs/{}", digest(b"before"))).await);
    // As if it were long ago.
    let link = registry.root.path().join("repositories/a/b/_manifests").join(&before[7..]);
    let link = std::fs::File::open(link).unwrap();
    link.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).unwrap();
    assert_eq!(registry.garbage("POST").await.manifests, 1);
    assert!(!registry.has(&format!("/v2/a/b/blobs/{}", digest(b"before"))).await);
}

#[tokio::test]
async fn a_repository_keeps_as_many_tags_as_it_was_told_to() {
    const RETENTION: &str = "/v2/_longshore/retention/a/b";
    let (pins, pinned) = watch::channel(Arc::default());
    let registry = harness(|options| {
        options.pins = pinned;
        options.keep_untagged = Duration::from_secs(3600);
    });
    let registry = registry.await;
    let mut images = Vec::new();
    for tag in ["one", "two", "three", "four", "five"] {
        images.push(registry.push_image("a/b", tag, tag.as_bytes()).await);
        registry.push_image("a/other", tag, tag.as_bytes()).await;
    }
    // As if these were pushed long ago, `one` first.
    let tags = registry.root.path().join("repositories/a/b/_tags");
    for (tag, days) in [("one", 5), ("two", 4), ("three", 3), ("four", 2)] {
        let file = std::fs::File::open(tags.join(tag)).unwrap();
        let age = Duration::from_secs(days * 86_400);
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    let pin = [(("a/b".parse().unwrap(), images[0].parse().unwrap()), "web r1".to_owned())];
    pins.send_replace(Arc::new(BTreeMap::from(pin)));
    assert_eq!(registry.get(RETENTION).await.json(), json!({}));
    let look = registry.garbage("GET").await;
    assert_eq!(look, Garbage::default(), "nothing was said, nothing goes");

    let say = async |text: &str| registry.send("PUT", RETENTION, &[], text.to_owned()).await;
    for bad in ["", "{}x", r#"{"keep_tags":0}"#, r#"{"keep_tagged":"soon"}"#, r#"{"tags":1}"#] {
        say(bad).await.assert_refused(400, "UNSUPPORTED");
    }
    let policy = json!({"keep_tags": 1, "keep_tagged": "60h"});
    assert_eq!(say(&policy.to_string()).await.status, 200);
    assert_eq!(registry.get(RETENTION).await.json(), policy);
    let expected = [("three", 2), ("two", 3)];
    let look = registry.garbage("GET").await;
    let found = |garbage: &Garbage| {
        let tags = garbage.tags.iter().map(|tag| (tag.tag.to_string(), tag.n_newer));
        tags.collect::<Vec<_>>()
    };
    assert_eq!(found(&look), expected.map(|(tag, n)| (tag.to_owned(), n)));
    assert!(look.tags.iter().all(|tag| tag.repository.as_str() == "a/b"), "{look:?}");
    let gone = registry.garbage("POST").await;
    assert_eq!((found(&gone), gone.manifests), (found(&look), 0));
    let left = registry.get("/v2/a/b/tags/list").await.json();
    assert_eq!(left["tags"], json!(["five", "four", "one"]), "one is what a release needs");
    assert_eq!(
        registry.get("/v2/a/other/tags/list").await.json()["tags"].as_array().unwrap().len(),
        5
    );
    // What they named is there for a while, and goes with what it is made of.
    assert!(registry.has(&format!("/v2/a/b/manifests/{}", images[1])).await);
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    assert_eq!(say(r#"{"keep_untagged":"0s"}"#).await.status, 200);
    assert_eq!(registry.garbage("POST").await.manifests, 2);
    assert!(!registry.has(&format!("/v2/a/b/blobs/{}", digest(b"two"))).await);

    // To say it is to have things deleted; to know it, to see them.
    let team = "/v2/_longshore/retention/team/a";
    for (token, method, status) in [
        (server::READER, "GET", 200),
        (server::READER, "PUT", 403),
        (server::TEAM, "DELETE", 403),
        (server::NOBODY, "GET", 403),
        (server::ADMIN, "DELETE", 204),
    ] {
        let answer = registry.send_as(token, method, team, &[], "{}").await;
        assert_eq!(answer.status, status, "{method}");
    }
    registry.send("POST", team, &[], "").await.assert_refused(405, "UNSUPPORTED");
    assert_eq!(registry.send("DELETE", RETENTION, &[], "").await.status, 204);
    assert_eq!(registry.get(RETENTION).await.json(), json!({}));
}

#[tokio::test]
async fn while_it_is_not_known_what_releases_need_nothing_goes() {
    let (told, is_told) = watch::channel(false);
    let registry = harness(|options| options.is_told = is_told).await;
    registry.push_blob("a/b", b"nobody's").await;
    let refused = registry.send("POST", GARBAGE, &[], "").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("what releases need is not known"), "{}", refused.text());
    told.send_replace(true);
    assert_eq!(registry.garbage("POST").await.blobs, 1);
}

#[tokio::test]
async fn who_may_delete_is_told_why_each_manifest_is_there() {
    const KEPT: &str = "/v2/_longshore/kept/a/b";
    let (pins, pinned) = watch::channel(Arc::default());
    let (told, is_told) = watch::channel(true);
    let registry = harness(|options| (options.pins, options.is_told) = (pinned, is_told)).await;
    registry.get(KEPT).await.assert_refused(404, "NAME_UNKNOWN");
    let released = registry.push_image("a/b", "one", b"released").await;
    let replaced = registry.push_image("a/b", "two", b"replaced").await;
    let newest = registry.push_image("a/b", "two", b"newest").await;
    registry.push_image("a/other", "one", b"other").await;
    let about = json!({"schemaVersion": 2, "mediaType": IMAGE, "layers": [],
        "config": descriptor(&digest(b"{}"), 2), "subject": descriptor(&newest, 1)});
    let path = format!("/v2/a/b/manifests/{}", digest(about.to_string().as_bytes()));
    let about = registry.push_manifest(&path, IMAGE, &about).await;
    let pin = [(("a/b".parse().unwrap(), released.parse().unwrap()), "web r1".to_owned())];
    pins.send_replace(Arc::new(BTreeMap::from(pin)));
    let kept = registry.get(KEPT).await;
    assert_eq!(kept.status, 200, "{}", kept.text());
    let kept: Vec<KeptManifest> = serde_json::from_slice(&kept.body).unwrap();
    let of = |digest: &str| {
        let found = kept.iter().find(|kept| kept.digest.to_string() == digest).unwrap();
        let tags: Vec<_> = found.tags.iter().map(ToString::to_string).collect();
        (tags.join(" "), found.kept.clone())
    };
    let release = KeptReason::Release { release: "web r1".to_owned() };
    assert_eq!(of(&released), ("one".to_owned(), vec![release, KeptReason::Tagged]));
    assert_eq!(of(&replaced), (String::new(), vec![]));
    assert_eq!(of(&newest), ("two".to_owned(), vec![KeptReason::Tagged]));
    let subject = KeptReason::About { manifest: newest.parse().unwrap() };
    assert_eq!(of(&about), (String::new(), vec![subject]));
    assert_eq!(kept.len(), 4);
    // The collector goes by the same.
    registry.garbage("POST").await;
    for kept in &kept {
        let is_there = registry.has(&format!("/v2/a/b/manifests/{}", kept.digest)).await;
        assert_eq!(is_there, !kept.kept.is_empty(), "{kept:?}");
    }
    for token in [server::READER, server::TEAM, server::NOBODY] {
        registry.send_as(token, "GET", KEPT, &[], "").await.assert_refused(403, "DENIED");
    }
    registry.send("POST", KEPT, &[], "").await.assert_refused(405, "UNSUPPORTED");
    told.send_replace(false);
    assert_eq!(registry.get(KEPT).await.status, 503, "what releases need is not known");
}

#[tokio::test]
async fn only_an_administrator_may_do_it() {
    let registry = harness(|_| ()).await;
    for token in [server::READER, server::TEAM, server::NOBODY] {
        for method in ["GET", "POST"] {
            registry.send_as(token, method, GARBAGE, &[], "").await.assert_refused(403, "DENIED");
        }
    }
    registry.send("DELETE", GARBAGE, &[], "").await.assert_refused(405, "UNSUPPORTED");
}
