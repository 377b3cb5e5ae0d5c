//! Which repository has which blobs, manifests and tags.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use longshore_types::{Digest, Repository, Tag};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::durable::{self, During as _};
use super::{Storage, StorageError};
use crate::objects::Objects;

pub(super) const BLOBS: &str = "_blobs";
pub(super) const MANIFESTS: &str = "_manifests";
pub(super) const TAGS: &str = "_tags";
const REFERRERS: &str = "_referrers";

/// The version of [`ManifestLink`] that this code writes.
const LINK_VERSION: u32 = 1;

/// What is kept in the link of a manifest.
#[derive(Debug, Serialize, Deserialize)]
struct ManifestLink {
    version: u32,
    media_type: String,
    /// What the manifest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Digest>,
}

/// A manifest of a repository.
#[derive(Debug)]
pub(crate) struct StoredManifest {
    /// The media type with which it was pushed.
    pub(crate) media_type: String,
    /// Its bytes as they were pushed.
    pub(crate) bytes: Vec<u8>,
}

/// Where the bytes of a blob can be read.
#[derive(Debug)]
pub(crate) enum BlobBytes {
    Here(File),
    /// In the object store, under this key.
    Object(Objects, String),
}

/// A manifest as one that is about another.
#[derive(Debug)]
pub(crate) struct Referrer {
    /// What it is about; need not exist.
    pub(crate) subject: Digest,
    /// How it is listed, in JSON.
    pub(crate) descriptor: Vec<u8>,
}

/// The kind of the links to manifests that are about the subject.
fn referrers_of(subject: &Digest) -> String {
    format!("{REFERRERS}/{}", subject.hex())
}

/// What is kept in a link, when it is there.
pub(super) fn read_json<T: DeserializeOwned>(link: &Path) -> Result<Option<T>, StorageError> {
    let Some(record) = durable::read(link)? else {
        return Ok(None);
    };
    let kept = serde_json::from_slice(&record).map_err(std::io::Error::from);
    kept.map(Some).during("understand", link)
}

impl Storage {
    pub(super) fn repository_dir(&self, repository: &Repository) -> PathBuf {
        self.root.join("repositories").join(repository.as_str())
    }

    pub(super) fn link(&self, repository: &Repository, kind: &str, name: &str) -> PathBuf {
        self.repository_dir(repository).join(kind).join(name)
    }

    /// The path for a new link; its directory exists afterwards.
    pub(super) fn new_link(
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
        self.bytes_size(digest)
    }

    /// Whether the repository has all of these blobs.
    pub(crate) fn has_blobs<'a>(
        &self,
        repository: &Repository,
        digests: impl IntoIterator<Item = &'a Digest>,
    ) -> Result<bool, StorageError> {
        for digest in digests {
            if self.blob_size(repository, digest)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The bytes of a blob and how many they are, when the repository has it.
    pub(crate) fn open_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<(BlobBytes, u64)>, StorageError> {
        let link = self.link(repository, BLOBS, &digest.hex());
        // What is not there is not remembered: anybody can ask for anything.
        if durable::size(&link)?.is_none() {
            return Ok(None);
        }
        // It may be going at this moment; what is found after this can be counted on.
        self.leases.touch(repository, digest);
        if durable::size(&link)?.is_none() {
            return Ok(None);
        }
        for path in self.bytes_paths(digest) {
            match File::open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                opened => {
                    let file = opened.during("open", &path)?;
                    let size = file.metadata().during("read", &path)?.len();
                    return Ok(Some((BlobBytes::Here(file), size)));
                }
            }
        }
        let found = self.objects.clone().zip(self.object(digest)?);
        Ok(found.map(|(objects, (key, size))| (BlobBytes::Object(objects, key), size)))
    }

    /// Gives `to` a blob that `from` has; false when it has not.
    pub(crate) fn mount_blob(
        &self,
        from: &Repository,
        to: &Repository,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        self.leases.touch(to, digest);
        let _guard = self.digests.lock(digest);
        if self.blob_size(from, digest)?.is_none() {
            return Ok(false);
        }
        self.pending.touch(&self.new_link(to, BLOBS, &digest.hex())?)?;
        Ok(true)
    }

    /// Makes a file of the registry's file system the bytes of a blob of the repository, which a
    /// power cut may take back until it is settled.
    pub(super) fn commit_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        data: &Path,
    ) -> Result<(), StorageError> {
        self.leases.touch(repository, digest);
        let _guard = self.digests.lock(digest);
        let link = self.new_link(repository, BLOBS, &digest.hex())?;
        // Bytes that are on the disk are not replaced by equal ones that may not be.
        if self.bytes_size(digest)?.is_some() {
            return self.pending.touch(&link);
        }
        let pending = self.pending_path(digest);
        fs::rename(data, &pending).during("put in place", &pending)?;
        let linked = self.pending.touch(&link);
        if linked.is_err() {
            // The upload stays what it was.
            fs::rename(&pending, data).during("put back", data)?;
        }
        linked
    }

    pub(super) fn blob_links_dir(&self, repository: &Repository) -> PathBuf {
        self.repository_dir(repository).join(BLOBS)
    }

    /// The names of all bytes that any repository has.
    pub(super) fn linked(&self) -> Result<HashSet<String>, StorageError> {
        let mut linked = HashSet::new();
        for repository in self.repositories()? {
            for kind in [BLOBS, MANIFESTS] {
                linked.extend(durable::list(&self.repository_dir(&repository).join(kind))?);
            }
        }
        Ok(linked)
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
        referrer: Option<&Referrer>,
    ) -> Result<(), StorageError> {
        let _guard = self.digests.lock(digest);
        // What is pending without a link is removed at the next start, so the bytes come first.
        let pending = self.pending_path(digest);
        let is_new = durable::size(&self.blob_path(digest))?.is_none();
        if is_new {
            durable::write(&self.tmp(), &pending, &manifest.bytes)?;
        }
        if let Err(error) = self.link_manifest(repository, digest, manifest, referrer) {
            if is_new && !self.linked()?.contains(&digest.hex()) {
                durable::remove(&pending)?;
            }
            return Err(error);
        }
        if is_new {
            let path = self.blob_path(digest);
            fs::rename(&pending, &path).during("put in place", &path)?;
        }
        Ok(())
    }

    fn link_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        manifest: &StoredManifest,
        referrer: Option<&Referrer>,
    ) -> Result<(), StorageError> {
        if let Some(Referrer { subject, descriptor }) = referrer {
            // Before the manifest, so that one that is there is listed; without it this means
            // nothing.
            let path = self.new_link(repository, &referrers_of(subject), &digest.hex())?;
            durable::write(&self.tmp(), &path, descriptor)?;
        }
        let link = ManifestLink {
            version: LINK_VERSION,
            media_type: manifest.media_type.clone(),
            subject: referrer.map(|referrer| referrer.subject),
        };
        let record = serde_json::to_vec(&link).expect("a number and texts are valid JSON");
        let path = self.new_link(repository, MANIFESTS, &digest.hex())?;
        durable::write(&self.tmp(), &path, &record)
    }

    /// A manifest, when the repository has it.
    pub(crate) fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, StorageError> {
        let Some(link) = self.manifest_link(repository, digest)? else {
            return Ok(None);
        };
        for path in self.bytes_paths(digest) {
            if let Some(bytes) = durable::read(&path)? {
                return Ok(Some(StoredManifest { media_type: link.media_type, bytes }));
            }
        }
        Ok(None)
    }

    fn manifest_link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<ManifestLink>, StorageError> {
        read_json(&self.link(repository, MANIFESTS, &digest.hex()))
    }

    /// The manifests that may be about the subject, in order.
    pub(crate) fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Digest>, StorageError> {
        let dir = self.repository_dir(repository).join(referrers_of(subject));
        let names = durable::list(&dir)?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name).ok()).collect())
    }

    /// How a manifest about the subject is listed, when the repository has it.
    pub(crate) fn referrer(
        &self,
        repository: &Repository,
        subject: &Digest,
        digest: &Digest,
    ) -> Result<Option<serde_json::Value>, StorageError> {
        if self.manifest_size(repository, digest)?.is_none() {
            return Ok(None);
        }
        read_json(&self.link(repository, &referrers_of(subject), &digest.hex()))
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
        self.bytes_size(digest)
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
        self.remove_manifest(repository, digest)
    }

    /// The same, for who holds the lock of the repository and knows that no tag names it.
    pub(super) fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        let subject = self.manifest_link(repository, digest)?.and_then(|link| link.subject);
        let existed = self.delete_link(repository, MANIFESTS, digest)?;
        self.forget_converted(repository, digest)?;
        if let Some(subject) = subject {
            durable::remove(&self.link(repository, &referrers_of(&subject), &digest.hex()))?;
        }
        Ok(existed)
    }

    /// Points a tag at a manifest.
    pub(crate) fn put_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(), StorageError> {
        self.renew_tagged(repository, tag)?;
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
        self.renew_tagged(repository, tag)?;
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
    pub(crate) fn repositories(&self) -> Result<Vec<Repository>, StorageError> {
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
    pub(super) fn delete_link(
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
        let had_bytes = self.bytes_size(digest)?.is_some();
        if !needed {
            self.remove_bytes(digest)?;
        }
        durable::remove(&link)?;
        Ok(had_bytes)
    }

    /// Removes bytes, for who holds the lock of their digest.
    pub(super) fn remove_bytes(&self, digest: &Digest) -> Result<(), StorageError> {
        durable::remove(&self.pending_path(digest))?;
        durable::remove(&self.blob_path(digest))?;
        self.drop_object_of(digest)
    }
}
