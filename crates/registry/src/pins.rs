//! Manifests that must stay: those that a release of an app may run, with all that they are made of.
//!
//! Who deploys knows which they are; the registry is told, and refuses to delete them. Tags may go:
//! a release names its image by digest.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use longshore_types::{Digest, Repository};
use tokio::sync::watch;

use crate::manifest::Manifest;
use crate::refusal::{Code, Refusal};
use crate::storage::Storage;

/// For whom each manifest has to stay, such as `web r3`.
pub type PinTable = BTreeMap<(Repository, Digest), String>;

/// The newest table.
#[derive(Debug, Clone)]
pub(crate) struct Pins(watch::Receiver<Arc<PinTable>>);

impl Pins {
    pub(crate) fn new(table: watch::Receiver<Arc<PinTable>>) -> Self {
        Self(table)
    }

    /// The table as it is now.
    pub(crate) fn table(&self) -> Arc<PinTable> {
        Arc::clone(&self.0.borrow())
    }

    /// Refuses the removal of a manifest or blob that something pinned is made of.
    pub(crate) fn check(
        &self,
        storage: &Storage,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Refusal> {
        let table = self.table();
        let of_repository = table.iter().filter(|((name, _), _)| name == repository);
        for ((_, pinned), release) in of_repository {
            if is_made_of(storage, repository, *pinned, digest)? {
                let message = format!(
                    "{digest} is in use by the release {release}; it can be deleted when that is gone"
                );
                return Err(Refusal::new(StatusCode::CONFLICT, Code::Denied, message));
            }
        }
        Ok(())
    }
}

/// Whether a manifest is, names or leads to a digest.
fn is_made_of(
    storage: &Storage,
    repository: &Repository,
    manifest: Digest,
    digest: &Digest,
) -> Result<bool, Refusal> {
    // An index leads to manifests that were there before it, so this ends.
    let mut to_read = vec![manifest];
    while let Some(next) = to_read.pop() {
        if next == *digest {
            return Ok(true);
        }
        let Some(stored) = storage.manifest(repository, &next)? else { continue };
        // It was read in the same way before it was kept.
        let Ok(manifest) = Manifest::parse(Some(&stored.media_type), &stored.bytes) else {
            continue;
        };
        if manifest.blobs.iter().any(|blob| blob.digest == *digest) {
            return Ok(true);
        }
        to_read.extend(manifest.manifests.iter().map(|child| child.digest));
    }
    Ok(false)
}
