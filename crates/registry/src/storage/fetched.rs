//! What came from another registry.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use longshore_types::{Digest, Repository, Tag};
use uuid::Uuid;

use super::durable::{self, During as _};
use super::links::{MANIFESTS, TAGS};
use super::{Storage, StorageError, UploadHash};

/// In a repository that is one of an upstream: its name.
const UPSTREAM: &str = "_upstream";

/// A use is noted when the last one that was is older.
pub(super) const NOTED_EACH: Duration = Duration::from_secs(3600);

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

impl Storage {
    /// Whether what a repository has came from an upstream.
    pub(crate) fn is_of_upstream(&self, repository: &Repository) -> Result<bool, StorageError> {
        let mark = durable::size(&self.repository_dir(repository).join(UPSTREAM))?;
        Ok(mark.is_some())
    }

    /// Says that what a repository has comes from an upstream.
    pub(crate) fn mark_upstream(
        &self,
        repository: &Repository,
        upstream: &str,
    ) -> Result<(), StorageError> {
        if self.is_of_upstream(repository)? {
            return Ok(());
        }
        let dir = self.repository_dir(repository);
        durable::ensure_dir(&self.root, &dir)?;
        durable::write(&self.tmp(), &dir.join(UPSTREAM), upstream.as_bytes())
    }

    /// Says that somebody pushes to it, where there is no such upstream any more.
    pub(crate) fn unmark_upstream(&self, repository: &Repository) -> Result<(), StorageError> {
        durable::remove(&self.repository_dir(repository).join(UPSTREAM)).map(drop)
    }

    /// A file that is gone with the next start unless it becomes something.
    pub(crate) fn passing_file(&self) -> Result<(PathBuf, File), StorageError> {
        let path = self.tmp().join(Uuid::new_v4().simple().to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        Ok((path.clone(), file.during("make", &path)?))
    }

    /// Makes a file, whose digest was found to be this, a blob of the repository.
    pub(crate) fn keep_fetched(
        &self,
        repository: &Repository,
        digest: &Digest,
        data: &Path,
    ) -> Result<(), StorageError> {
        if self.objects.is_none() {
            return self.commit_blob(repository, digest, data);
        }
        let (upload, mut hash) = self.begin_own_upload()?;
        let sent = send(data, &mut hash);
        let kept = sent.and_then(|()| self.finish_upload(repository, upload, &mut hash));
        if kept.is_err() {
            // The first error is the one to tell; what is left goes at the next start.
            let _ = self.remove_upload(upload);
        }
        kept
    }

    /// Remembers that a manifest was used, on which it depends when it goes.
    pub(crate) fn note_use(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), StorageError> {
        if self.manifest_age(repository, digest)?.is_none_or(|age| age < NOTED_EACH) {
            return Ok(());
        }
        durable::renew(&self.link(repository, MANIFESTS, &digest.hex()))
    }

    /// Removes the tags of a repository whose manifests are gone.
    pub(crate) fn drop_loose_tags(&self, repository: &Repository) -> Result<(), StorageError> {
        for name in durable::list(&self.repository_dir(repository).join(TAGS))? {
            let Ok(tag) = name.parse::<Tag>() else { continue };
            let _unchanged = self.lock_repository(repository);
            let Some(digest) = self.tag(repository, &tag)? else { continue };
            if self.manifest_size(repository, &digest)?.is_none() {
                durable::remove(&self.link(repository, TAGS, tag.as_str()))?;
            }
        }
        Ok(())
    }
}

/// Sends a file on to where the bytes of blobs are.
fn send(data: &Path, hash: &mut UploadHash) -> Result<(), StorageError> {
    let mut file = File::open(data).during("open", data)?;
    loop {
        let mut piece = vec![0; PIECE];
        let n_bytes = file.read(&mut piece).during("read", data)?;
        if n_bytes == 0 {
            return hash.settle();
        }
        piece.truncate(n_bytes);
        hash.append(&[Bytes::from(piece)])?;
    }
}
