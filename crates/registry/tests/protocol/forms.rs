//! What was converted of an image and nobody pulls goes, and is made again for who does.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use longshore_registry::RegistryOptions;

use super::converted::{blobs, converting, layer, serve_when_free};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A registry in which nothing is waited for but pulls of what it converted.
fn forgetful(root: &Path) -> RegistryOptions {
    let options = converting(options(root));
    RegistryOptions { push_lease: Duration::ZERO, keep_converted: HOUR, ..options }
}

async fn harness(options: impl FnOnce(&Path) -> RegistryOptions) -> Harness {
    let root = tempfile::tempdir().unwrap();
    let server = serve(options(root.path())).await;
    Harness::around(server, root)
}

fn make_old(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
}

impl Harness {
    fn link(&self, repository: &str, image: &str) -> PathBuf {
        let links = self.root.path().join("repositories").join(repository).join("_converted");
        links.join(image.trim_start_matches("sha256:"))
    }

    /// As if nobody had asked for it for two hours.
    fn make_old(&self, repository: &str, image: &str) {
        make_old(&self.link(repository, image));
        make_old(&self.noted_since());
    }

    /// What was written when it was first noted who asks.
    fn noted_since(&self) -> PathBuf {
        self.root.path().join("conversion-uses-noted")
    }

    /// Which of the blobs there are.
    async fn present(&self, repository: &str, blobs: &[String]) -> Vec<bool> {
        let mut present = Vec::new();
        for blob in blobs {
            present.push(self.status(format!("/v2/{repository}/blobs/{blob}")).await == 200);
        }
        present
    }

    async fn begin_again(self, options: impl FnOnce(&Path) -> RegistryOptions) -> Self {
        let _store = is_in_s3().then(s3::shared);
        let Self { server, http: _, root } = self;
        drop(server);
        let server = serve_when_free(options(root.path())).await;
        Self::around(server, root)
    }
}

fn both<'a>(shared: &'a [u8], own: &'a [u8]) -> [(&'a [u8], &'a [u8]); 2] {
    [(shared, shared), (own, own)]
}

#[tokio::test]
async fn what_nobody_pulls_goes_and_is_made_again_for_who_does() {
    let registry = harness(forgetful).await;
    let (shared, own, other) = (layer(90_000, 20), layer(70_000, 21), layer(60_000, 22));
    let one = registry.push_layers(ADMIN, "a/b", &both(&shared, &own)).await;
    let two = registry.push_layers(ADMIN, "a/b", &both(&shared, &other)).await;
    registry.push_layers(ADMIN, "c/d", &both(&shared, &own)).await;
    let parts = blobs(&registry.until_converted("a/b", &one).await);
    let of_two = blobs(&registry.until_converted("a/b", &two).await);
    registry.until_converted("c/d", &one).await;
    registry.make_old("a/b", &one);

    let look = registry.garbage("GET").await;
    let found: Vec<_> = look.converted.iter().map(|form| form.image.to_string()).collect();
    assert_eq!((found, look.manifests, look.blobs), (vec![one.clone()], 1, 3));
    assert!(look.converted[0].unused.0 >= 2 * HOUR, "{look:?}");
    assert!(look.items.iter().all(|item| !item.reason.is_of_manifest()), "{look:?}");
    let gone = registry.garbage("POST").await;
    assert_eq!((gone.converted.len(), gone.manifests, gone.blobs), (1, 1, 3));
    assert_eq!(gone.bytes.0, 0, "c/d has the same");
    let shared_parts: Vec<bool> = parts.iter().map(|part| of_two.contains(part)).collect();
    assert_eq!(shared_parts.iter().filter(|is_shared| **is_shared).count(), 3);
    assert_eq!(registry.present("a/b", &parts).await, shared_parts);
    assert_eq!(registry.present("c/d", &parts).await, [true; 6]);
    assert_eq!(registry.pull("a/b", &two).await.converted_layers, 2);
    assert_eq!(registry.present("a/b", &[digest(&own), digest(&shared)]).await, [true; 2]);
    assert_eq!(registry.garbage("POST").await.manifests, 0);

    // Nobody has it made again by looking, nor by pushing something else.
    let registry = registry.begin_again(forgetful).await;
    let fine = layer(50_000, 23);
    let fine = registry.push_layer(ADMIN, "a/b", &fine, &fine).await;
    registry.until_converted("a/b", &fine).await;
    assert_eq!(std::fs::read_to_string(registry.link("a/b", &one)).unwrap(), "unpulled");
    let report = registry.pull("a/b", &one).await;
    assert_eq!((report.layers, report.converted_layers, report.why_plain.len()), (2, 0, 0));
    assert_eq!(blobs(&registry.until_converted("a/b", &one).await), parts);
    assert_eq!(registry.pull("a/b", &one).await.converted_layers, 2);
    // An image that goes takes the word with it.
    registry.make_old("a/b", &one);
    assert_eq!(registry.garbage("POST").await.converted.len(), 1);
    let deleted = registry.send("DELETE", &format!("/v2/a/b/manifests/{one}"), &[], "").await;
    assert_eq!((deleted.status, registry.link("a/b", &one).exists()), (202, false));
}

#[tokio::test]
async fn what_somebody_asked_for_a_moment_ago_stays() {
    let patient = |root: &Path| RegistryOptions { push_lease: HOUR, ..forgetful(root) };
    let registry = harness(patient).await;
    let layer = layer(90_000, 24);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    let parts = blobs(&registry.until_converted("a/b", &image).await);
    // A pull may be under way of who was told of it, however long ago the one before was.
    registry.make_old("a/b", &image);
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    // And who asks makes it young.
    assert_eq!(registry.converted("a/b", &image).await.status, 200);
    let age = registry.link("a/b", &image).metadata().unwrap().modified().unwrap().elapsed();
    assert!(age.unwrap() < HOUR);
    let registry = registry.begin_again(forgetful).await;
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    assert_eq!(registry.present("a/b", &parts).await, [true; 3]);
    registry.make_old("a/b", &image);
    assert_eq!(registry.garbage("POST").await.manifests, 1);
    assert_eq!(registry.present("a/b", &parts).await, [false; 3]);
}

#[tokio::test]
async fn what_was_pulled_before_pulls_were_noted_stays() {
    let registry = harness(forgetful).await;
    let layer = layer(90_000, 26);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    let parts = blobs(&registry.until_converted("a/b", &image).await);
    registry.make_old("a/b", &image);
    // A release that notes nothing leaves no more than the time when it was made.
    std::fs::remove_file(registry.noted_since()).unwrap();
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    let registry = registry.begin_again(forgetful).await;
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    assert_eq!(registry.present("a/b", &parts).await, [true; 3]);
    // The next start changes nothing.
    make_old(&registry.noted_since());
    let registry = registry.begin_again(forgetful).await;
    assert_eq!(registry.garbage("POST").await.converted.len(), 1);
    assert_eq!(registry.present("a/b", &parts).await, [false; 3]);
}

#[tokio::test]
async fn what_is_said_of_an_image_that_is_gone_means_nothing() {
    let registry = harness(forgetful).await;
    let layer = layer(90_000, 27);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    registry.until_converted("a/b", &image).await;
    let [none, other] = [[1; 1], [2; 1]].map(|bytes| digest(&bytes));
    std::fs::write(registry.link("a/b", &none), "unpulled").unwrap();
    std::fs::write(registry.link("a/b", &other), "sha256:12").unwrap();
    registry.converted("a/b", &none).await.assert_refused(404, "MANIFEST_UNKNOWN");
    assert!(registry.link("a/b", &none).exists(), "who asks for it changes nothing");
    registry.garbage("POST").await;
    let registry = registry.begin_again(forgetful).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while registry.link("a/b", &none).exists() || registry.link("a/b", &other).exists() {
        assert!(std::time::Instant::now() < deadline, "the first look takes it away");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(registry.link("a/b", &image).exists());
}

/// Every state in which a crash can leave what is made or goes, made by hand.
#[tokio::test]
async fn a_crash_while_it_is_made_or_goes_leaves_nothing_half() {
    let registry = harness(forgetful).await;
    let layer = layer(90_000, 25);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    let parts = blobs(&registry.until_converted("a/b", &image).await);
    let artifact = digest(&registry.converted("a/b", &image).await.body);
    // It was said that it goes, and its artifact did not.
    std::fs::write(registry.link("a/b", &image), "unpulled").unwrap();
    let gone = registry.garbage("POST").await;
    assert_eq!((gone.manifests, gone.converted.len()), (1, 0));
    assert_eq!(gone.items[0].digest.to_string(), artifact);
    assert_eq!(registry.present("a/b", &parts).await, [false; 3]);
    // It was said that there is one, and none was written.
    std::fs::write(registry.link("a/b", &image), &artifact).unwrap();
    registry.converted("a/b", &image).await.assert_refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(registry.garbage("POST").await.manifests, 0);
    let registry = registry.begin_again(forgetful).await;
    assert_eq!(blobs(&registry.until_converted("a/b", &image).await), parts);
    assert_eq!(registry.pull("a/b", &image).await.converted_layers, 1);
    // What is neither is told, and nothing goes for it.
    std::fs::write(registry.link("a/b", &image), "sha256:12").unwrap();
    assert_eq!(registry.converted("a/b", &image).await.status, 500);
    assert_eq!(registry.send("POST", "/v2/_longshore/garbage", &[], "").await.status, 500);
    assert_eq!(registry.present("a/b", &parts).await, [true; 3]);
}
