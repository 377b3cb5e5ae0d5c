//! Uploads that are not finished. Their bytes outlive this process; the running hash does not and
//! is computed anew from the bytes when a client resumes after a restart.

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use longshore_types::{Digest, Repository};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::durable::{self, During as _};
use super::{Storage, StorageError};

const DATA: &str = "data";
const REPOSITORY: &str = "repository";
const HASH_BUFFER: usize = 1 << 20;

/// Names an upload; 122 random bits, so it cannot be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct UploadId(Uuid);

impl FromStr for UploadId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(Self)
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The running hash over the bytes of an upload, always equal to what its file holds.
#[derive(Debug)]
pub(crate) struct UploadHash {
    data: PathBuf,
    hasher: Sha256,
    length: u64,
}

impl UploadHash {
    /// Bytes received so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The digest of the bytes received so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_sha256(self.hasher.clone().finalize().into())
    }

    /// Writes and hashes the next bytes.
    pub(crate) fn append(&mut self, parts: &[Bytes]) -> Result<(), StorageError> {
        let file = File::options().write(true).open(&self.data).during("open", &self.data)?;
        let mut end = self.length;
        for part in parts {
            if let Err(error) = file.write_all_at(part, end) {
                let failed = Err(error).during("write", &self.data);
                // What was written of this call is not in the hash: the file must not keep it.
                file.set_len(self.length).during("shorten", &self.data)?;
                return failed;
            }
            end += part.len() as u64;
        }
        for part in parts {
            self.hasher.update(part);
        }
        self.length = end;
        Ok(())
    }

    /// A way to bring the bytes so far to the disk while further ones come.
    pub(crate) fn flusher(&self) -> Flusher {
        Flusher { data: self.data.clone() }
    }

    /// Hashes what an earlier process left.
    pub(super) fn resume(data: PathBuf) -> Result<Self, StorageError> {
        let mut file = File::open(&data).during("open", &data)?;
        let mut hasher = Sha256::new();
        let mut length = 0;
        let mut buffer = vec![0; HASH_BUFFER];
        loop {
            match file.read(&mut buffer).during("read", &data)? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    length += n as u64;
                }
            }
        }
        Ok(Self { data, hasher, length })
    }
}

/// Brings what an upload has to the disk.
#[derive(Debug)]
pub(crate) struct Flusher {
    data: PathBuf,
}

impl Flusher {
    /// Does so, for the benefit of whoever settles the blob later. A failure is told only once by
    /// the kernel, so the bytes go with it: whoever comes later must not take them for good.
    pub(crate) fn flush(self) {
        let synced = File::open(&self.data).and_then(|file| file.sync_data());
        if let Err(error) = synced {
            tracing::error!(path = %self.data.display(), %error, "cannot sync; dropping it");
            // Also when it fails: then there is nothing more to be done.
            let _ = fs::remove_file(&self.data);
        }
    }
}

impl Storage {
    fn upload_dir(&self, upload: UploadId) -> PathBuf {
        self.root.join("uploads").join(upload.to_string())
    }

    /// Begins an upload. It need not outlive a power cut, so nothing is synced.
    pub(crate) fn begin_upload(
        &self,
        repository: &Repository,
    ) -> Result<(UploadId, UploadHash), StorageError> {
        let upload = UploadId(Uuid::new_v4());
        let dir = self.upload_dir(upload);
        let made = fs::create_dir(&dir)
            .and_then(|()| File::create_new(dir.join(DATA)).map(drop))
            .and_then(|()| fs::write(dir.join(REPOSITORY), repository.as_str()))
            .during("begin an upload in", &dir);
        if made.is_err() {
            // The first error is the one to tell; the sweep removes what this cannot.
            let _ = fs::remove_dir_all(&dir);
        }
        let hash = UploadHash { data: dir.join(DATA), hasher: Sha256::new(), length: 0 };
        made.map(|()| (upload, hash))
    }

    /// True when the upload exists and is one of this repository.
    pub(crate) fn has_upload(
        &self,
        repository: &Repository,
        upload: UploadId,
    ) -> Result<bool, StorageError> {
        let owner = durable::read(&self.upload_dir(upload).join(REPOSITORY))?;
        Ok(owner.is_some_and(|owner| owner == repository.as_str().as_bytes()))
    }

    /// The hash over the bytes that the upload has, read from its file; `None` when it is gone.
    pub(crate) fn resume_upload(
        &self,
        upload: UploadId,
    ) -> Result<Option<UploadHash>, StorageError> {
        let data = self.upload_dir(upload).join(DATA);
        if durable::size(&data)?.is_none() {
            return Ok(None);
        }
        UploadHash::resume(data).map(Some)
    }

    /// Makes the bytes of the upload a blob of the repository and ends the upload.
    pub(crate) fn finish_upload(
        &self,
        repository: &Repository,
        upload: UploadId,
        hash: &UploadHash,
    ) -> Result<(), StorageError> {
        self.commit_blob(repository, &hash.digest(), &hash.data)?;
        self.remove_upload(upload)
    }

    /// Ends an upload and drops its bytes.
    pub(crate) fn remove_upload(&self, upload: UploadId) -> Result<(), StorageError> {
        remove_dir(&self.upload_dir(upload))
    }

    /// The directories of all uploads, each with whose it is; of nobody when it is half made.
    pub(super) fn uploads(&self) -> Result<Vec<(PathBuf, Vec<u8>)>, StorageError> {
        let uploads = self.root.join("uploads");
        let dirs = durable::list(&uploads)?.into_iter().map(|name| uploads.join(name));
        dirs.map(|dir| {
            let owner = durable::read(&dir.join(REPOSITORY))?;
            Ok((dir, owner.unwrap_or_default()))
        })
        .collect()
    }

    /// Removes uploads that got no byte for `age`, and those that a crash left half made.
    pub(crate) fn sweep_uploads(&self, age: Duration) -> Result<usize, StorageError> {
        let mut removed = 0;
        for (dir, _) in self.uploads()? {
            // One that is half made has no data file; then its directory tells the age.
            let idle = fs::metadata(dir.join(DATA))
                .or_else(|_| fs::metadata(&dir))
                .and_then(|metadata| metadata.modified())
                .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
            if idle.is_ok_and(|idle| idle >= age) {
                remove_dir(&dir)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn remove_dir(dir: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.during("remove", dir),
    }
}
