//! Which repository has which blobs, manifests and tags.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use longshore_types::{Digest, Repository, Tag};
use serde::{Deserialize, Serialize};

use super::durable::{self, During as _};
use super::{Storage, StorageError};

const BLOBS: &str = "_blobs";
const MANIFESTS: &str = "_manifests";
const TAGS: &str = "_tags";

/// The version of [`ManifestLink`] that this code writes.
const LINK_VERSION: u32 = 1;

/// What is kept in the link of a manifest.
#[derive(Debug, Serialize, Deserialize)]
struct ManifestLink {
    version: u32,
    media_type: String,
}

/// A manifest of a repository.
#[derive(Debug)]
pub(crate) struct StoredManifest {
    /// The media type with which it was pushed.
    pub(crate) media_type: String,
    /// Its bytes as they were pushed.
    pub(crate) bytes: Vec<u8>,
}

impl Storage {
    fn repository_dir(&self, repository: &Repository) -> PathBuf {
        self.root.join("repositories").join(repository.as_str())
    }

    fn link(&self, repository: &Repository, kind: &str, name: &str) -> PathBuf {
        self.repository_dir(repository).join(kind).join(name)
    }

    /// The path for a new link; its directory exists afterwards.
    fn new_link(
        &self,
        repository: &Repository,
        kind: &str,
        name: &str,
    ) -> Result<PathBuf, StorageError> {
        durable::ensure_dir(&self.root, &self.repository_dir(repository).join(kind))?;
        Ok(self.link(repository, kind, name))
    }

    /// The size of a blob in bytes, when the repository has it.
    pub(crate) fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        if durable::size(&self.link(repository, BLOBS, &digest.hex()))?.is_none() {
            return Ok(None);
        }
        durable::size(&self.blob_path(digest))
    }

    /// The bytes of a blob and how many they are, when the repository has it.
    pub(crate) fn open_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<(File, u64)>, StorageError> {
        if self.blob_size(repository, digest)?.is_none() {
            return Ok(None);
        }
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            // Deleted since the line above.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.during("open", &path)?,
        };
        let size = file.metadata().during("read", &path)?.len();
        Ok(Some((file, size)))
    }

    /// Gives `to` a blob that `from` has; false when it has not.
    pub(crate) fn mount_blob(
        &self,
        from: &Repository,
        to: &Repository,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        let _guard = self.digests.lock(digest);
        if self.blob_size(from, digest)?.is_none() {
            return Ok(false);
        }
        durable::touch(&self.new_link(to, BLOBS, &digest.hex())?)?;
        Ok(true)
    }

    /// Makes a synced file of the registry's file system the bytes of a blob of the repository.
    pub(super) fn commit_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        data: &Path,
    ) -> Result<(), StorageError> {
        let _guard = self.digests.lock(digest);
        durable::touch(&self.new_link(repository, BLOBS, &digest.hex())?)?;
        // Renaming over equal bytes changes nothing, so whoever comes second needs no other path.
        durable::rename(data, &self.blob_path(digest))
    }

    /// Removes a blob from the repository; false when it was not there.
    pub(crate) fn delete_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        let _repository = self.lock_repository(repository);
        self.delete_link(repository, BLOBS, digest)
    }

    /// Keeps a manifest whose references were checked under [`Storage::lock_repository`].
    pub(crate) fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        manifest: &StoredManifest,
    ) -> Result<(), StorageError> {
        let _guard = self.digests.lock(digest);
        let link = ManifestLink { version: LINK_VERSION, media_type: manifest.media_type.clone() };
        let record = serde_json::to_vec(&link).expect("a number and a text are valid JSON");
        let path = self.new_link(repository, MANIFESTS, &digest.hex())?;
        durable::write(&self.tmp(), &path, &record)?;
        durable::write(&self.tmp(), &self.blob_path(digest), &manifest.bytes)
    }

    /// A manifest, when the repository has it.
    pub(crate) fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, StorageError> {
        let path = self.link(repository, MANIFESTS, &digest.hex());
        let Some(record) = durable::read(&path)? else {
            return Ok(None);
        };
        let link: ManifestLink = serde_json::from_slice(&record)
            .map_err(std::io::Error::from)
            .during("understand", &path)?;
        let bytes = durable::read(&self.blob_path(digest))?;
        Ok(bytes.map(|bytes| StoredManifest { media_type: link.media_type, bytes }))
    }

    /// The size of a manifest in bytes, when the repository has it.
    pub(crate) fn manifest_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        if durable::size(&self.link(repository, MANIFESTS, &digest.hex()))?.is_none() {
            return Ok(None);
        }
        durable::size(&self.blob_path(digest))
    }

    /// Removes a manifest and the tags that name it; false when it was not there. The tags go first:
    /// a crash between leaves a manifest without some of its tags, never a tag without a manifest.
    pub(crate) fn delete_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        let _repository = self.lock_repository(repository);
        for tag in durable::list(&self.repository_dir(repository).join(TAGS))? {
            let path = self.link(repository, TAGS, &tag);
            if durable::read(&path)?.is_some_and(|text| text == digest.to_string().into_bytes()) {
                durable::remove(&path)?;
            }
        }
        self.delete_link(repository, MANIFESTS, digest)
    }

    /// Points a tag at a manifest.
    pub(crate) fn put_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), StorageError> {
        let path = self.new_link(repository, TAGS, tag.as_str())?;
        durable::write(&self.tmp(), &path, digest.to_string().as_bytes())
    }

    /// The digest that a tag names.
    pub(crate) fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<Digest>, StorageError> {
        let path = self.link(repository, TAGS, tag.as_str());
        let Some(bytes) = durable::read(&path)? else {
            return Ok(None);
        };
        let digest = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| std::io::Error::other("not a digest"))
            .during("understand", &path)?;
        Ok(Some(digest))
    }

    /// Removes a tag; false when it was not there.
    pub(crate) fn delete_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<bool, StorageError> {
        let _repository = self.lock_repository(repository);
        durable::remove(&self.link(repository, TAGS, tag.as_str()))
    }

    /// The tags in order; `None` when nothing was ever pushed to the repository.
    pub(crate) fn tags(
        &self,
        repository: &Repository,
    ) -> Result<Option<Vec<String>>, StorageError> {
        let dir = self.repository_dir(repository);
        if !dir.join(BLOBS).is_dir() && !dir.join(MANIFESTS).is_dir() {
            return Ok(None);
        }
        durable::list(&dir.join(TAGS)).map(Some)
    }

    /// The repositories that have a manifest, in order.
    pub(crate) fn catalog(&self) -> Result<Vec<Repository>, StorageError> {
        let mut repositories = self.repositories()?;
        repositories.retain(|repository| {
            fs::read_dir(self.repository_dir(repository).join(MANIFESTS))
                .is_ok_and(|mut entries| entries.next().is_some())
        });
        Ok(repositories)
    }

    /// All repositories in which anything was ever kept, in order.
    fn repositories(&self) -> Result<Vec<Repository>, StorageError> {
        let mut found = Vec::new();
        let mut unseen = durable::list(&self.root.join("repositories"))?;
        while let Some(name) = unseen.pop() {
            let parts = durable::list(&self.root.join("repositories").join(&name))?;
            let (ours, deeper): (Vec<_>, Vec<_>) =
                parts.into_iter().partition(|part| part.starts_with('_'));
            unseen.extend(deeper.iter().map(|part| format!("{name}/{part}")));
            if !ours.is_empty() {
                found.extend(name.parse::<Repository>());
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes a link, and the bytes when no other link needs them.
    fn delete_link(
        &self,
        repository: &Repository,
        kind: &str,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        let _guard = self.digests.lock(digest);
        let hex = digest.hex();
        let link = self.link(repository, kind, &hex);
        let existed = durable::size(&link)?.is_some();
        if !existed {
            return Ok(false);
        }
        let mut needed = false;
        for other in self.repositories()? {
            for path in [BLOBS, MANIFESTS].map(|kind| self.link(&other, kind, &hex)) {
                needed |= path != link && durable::size(&path)?.is_some();
            }
        }
        let had_bytes = durable::size(&self.blob_path(digest))?.is_some();
        if !needed {
            durable::remove(&self.blob_path(digest))?;
        }
        durable::remove(&link)?;
        Ok(had_bytes)
    }
}
