//! What garbage collection asks of the disk, and how it removes something that nobody counts on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, SystemTime};

use longshore_types::{Digest, Repository, Tag};

use super::converted::CONVERTER;
use super::durable;
use super::leases::Lease;
use super::links::{BLOBS, MANIFESTS, TAGS};
use super::uploads::REPOSITORY;
use super::{Storage, StorageError};

impl Storage {
    /// The repository's blobs and their sizes in bytes; without those whose bytes are gone.
    pub(crate) fn blobs(
        &self,
        repository: &Repository,
    ) -> Result<BTreeMap<Digest, u64>, StorageError> {
        let mut blobs = BTreeMap::new();
        for digest in self.digests_of(repository, BLOBS)? {
            if let Some(size) = self.bytes_size(&digest)? {
                blobs.insert(digest, size);
            }
        }
        Ok(blobs)
    }

    /// The repository's manifests, in order.
    pub(crate) fn manifests(&self, repository: &Repository) -> Result<Vec<Digest>, StorageError> {
        self.digests_of(repository, MANIFESTS)
    }

    /// The manifests that the repository's tags name.
    pub(crate) fn tagged(&self, repository: &Repository) -> Result<BTreeSet<Digest>, StorageError> {
        let mut tagged = BTreeSet::new();
        for name in durable::list(&self.repository_dir(repository).join(TAGS))? {
            // One that was removed meanwhile names nothing.
            let Ok(tag) = name.parse() else { continue };
            tagged.extend(self.tag(repository, &tag)?);
        }
        Ok(tagged)
    }

    /// Since a manifest was pushed, or lost a tag, by the machine's clock; `None` when it is gone.
    pub(crate) fn manifest_age(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Duration>, StorageError> {
        durable::age(&self.link(repository, MANIFESTS, &digest.hex()))
    }

    /// For how long the oldest upload to the repository, or of all, has been going on.
    pub(crate) fn oldest_upload(
        &self,
        repository: Option<&Repository>,
    ) -> Result<Option<Duration>, StorageError> {
        let mut oldest = None;
        for (dir, owner) in self.uploads()? {
            // What is being converted may be for any of them.
            let is_of =
                |of: &Repository| owner == of.as_str().as_bytes() || owner == CONVERTER.as_bytes();
            if !repository.is_none_or(is_of) {
                continue;
            }
            // Written when it began, and never again.
            let begun = fs::metadata(dir.join(REPOSITORY)).and_then(|owner| owner.modified());
            let age = begun.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
            oldest = oldest.max(age.ok());
        }
        Ok(oldest)
    }

    /// Whether anybody counts on a blob or manifest.
    pub(crate) fn is_leased(&self, repository: &Repository, digest: &Digest, lease: Lease) -> bool {
        self.leases.holds(repository, digest, lease)
    }

    /// Somebody counts on a blob or manifest of the repository from now on.
    pub(crate) fn touch(&self, repository: &Repository, digest: &Digest) {
        self.leases.touch(repository, digest);
    }

    /// Forgets when things were touched that nobody has touched for `longest`.
    pub(crate) fn forget_leases(&self, longest: Duration) {
        self.leases.forget(longest);
    }

    /// Removes a blob that nobody counts on; false when somebody does.
    pub(crate) fn collect_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        lease: Lease,
    ) -> Result<bool, StorageError> {
        self.collect(repository, digest, lease, || self.delete_link(repository, BLOBS, digest))
    }

    /// Removes a manifest that nobody counts on; false when somebody does.
    pub(crate) fn collect_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        lease: Lease,
    ) -> Result<bool, StorageError> {
        self.collect(repository, digest, lease, || self.remove_manifest(repository, digest))
    }

    /// Does so under the lock of the repository, while nobody learns anything of it.
    pub(super) fn collect(
        &self,
        repository: &Repository,
        digest: &Digest,
        lease: Lease,
        remove: impl FnOnce() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let _repository = self.lock_repository(repository);
        let Some(_going) = self.leases.take(repository, digest, lease) else {
            return Ok(false);
        };
        remove()
    }

    /// What a tag names that is about to name something else, or to go, is from then on as if it were
    /// pushed now.
    pub(super) fn renew_tagged(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<(), StorageError> {
        let digest = match self.tag(repository, tag) {
            Ok(Some(digest)) => digest,
            Ok(None) => return Ok(()),
            // A new one mends it.
            Err(error) => {
                tracing::warn!(%repository, %tag, %error, "a tag names nothing");
                return Ok(());
            }
        };
        durable::renew(&self.link(repository, MANIFESTS, &digest.hex()))
    }

    pub(super) fn digests_of(
        &self,
        repository: &Repository,
        kind: &str,
    ) -> Result<Vec<Digest>, StorageError> {
        let names = durable::list(&self.repository_dir(repository).join(kind))?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name).ok()).collect())
    }
}
