//! What a repository keeps, as its owners said, and the tags that go for that.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use longshore_types::{Digest, Repository, Retention, Tag};

use super::durable::{self, During as _};
use super::links::{TAGS, read_json};
use super::{Storage, StorageError};

const RETENTION: &str = "_retention";

/// A tag as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundTag {
    pub(crate) tag: Tag,
    pub(crate) digest: Digest,
    /// When it was pushed, by the machine's clock.
    pub(crate) pushed: SystemTime,
}

impl FoundTag {
    /// For how long it has been there.
    pub(crate) fn age(&self) -> Duration {
        // A clock that was put back makes things young, and nothing goes for that.
        SystemTime::now().duration_since(self.pushed).unwrap_or_default()
    }
}

impl Storage {
    fn retention_path(&self, repository: &Repository) -> PathBuf {
        self.repository_dir(repository).join(RETENTION)
    }

    /// What was said of it, if anything was.
    pub(crate) fn retention(
        &self,
        repository: &Repository,
    ) -> Result<Option<Retention>, StorageError> {
        read_json(&self.retention_path(repository))
    }

    /// Says it, also of a repository to which nothing was pushed yet.
    pub(crate) fn set_retention(
        &self,
        repository: &Repository,
        retention: &Retention,
    ) -> Result<(), StorageError> {
        durable::ensure_dir(&self.root, &self.repository_dir(repository))?;
        let text = serde_json::to_vec(retention).expect("numbers and texts are valid JSON");
        durable::write(&self.tmp(), &self.retention_path(repository), &text)
    }

    /// Takes it back; false when nothing was said.
    pub(crate) fn remove_retention(&self, repository: &Repository) -> Result<bool, StorageError> {
        durable::remove(&self.retention_path(repository))
    }

    /// The repository's tags, those that were pushed last first.
    pub(crate) fn tags_by_age(
        &self,
        repository: &Repository,
    ) -> Result<Vec<FoundTag>, StorageError> {
        let mut found = Vec::new();
        for name in durable::list(&self.repository_dir(repository).join(TAGS))? {
            let Ok(tag) = name.parse() else { continue };
            found.extend(self.found_tag(repository, tag)?);
        }
        found.sort_by(|a, b| b.pushed.cmp(&a.pushed).then_with(|| a.tag.cmp(&b.tag)));
        Ok(found)
    }

    /// A tag, if it is there.
    pub(crate) fn found_tag(
        &self,
        repository: &Repository,
        tag: Tag,
    ) -> Result<Option<FoundTag>, StorageError> {
        let path = self.link(repository, TAGS, tag.as_str());
        let pushed = match fs::metadata(&path).and_then(|file| file.modified()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            pushed => pushed.during("read", &path)?,
        };
        let digest = self.tag(repository, &tag)?;
        Ok(digest.map(|digest| FoundTag { tag, digest, pushed }))
    }

    /// Removes a tag, if it is still what was found; false when it was pushed anew or is gone.
    pub(crate) fn collect_tag(
        &self,
        repository: &Repository,
        found: &FoundTag,
    ) -> Result<bool, StorageError> {
        let _repository = self.lock_repository(repository);
        if self.found_tag(repository, found.tag.clone())?.as_ref() != Some(found) {
            return Ok(false);
        }
        self.renew_tagged(repository, &found.tag)?;
        durable::remove(&self.link(repository, TAGS, found.tag.as_str()))
    }
}
