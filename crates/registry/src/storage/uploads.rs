//! Uploads that are not finished. Their bytes outlive this process; the running hash does not and
//! is computed anew from the bytes when a client resumes after a restart. How that is where the
//! bytes go to an object store as they come is in [`super::parts`].

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use longshore_types::{Digest, Repository};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::durable::{self, During as _};
use super::objects::OBJECT;
use super::parts::{PartedUpload, hash_file};
use super::{Storage, StorageError};

pub(super) const DATA: &str = "data";
pub(super) const REPOSITORY: &str = "repository";

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

/// The running hash over the bytes of an upload, always equal to what it has.
#[derive(Debug)]
pub(crate) struct UploadHash {
    bytes: UploadBytes,
    hasher: Sha256,
    length: u64,
}

/// Where they are.
#[derive(Debug)]
enum UploadBytes {
    File(PathBuf),
    Parts(Box<PartedUpload>),
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

    /// Writes and hashes the next bytes. After an error, what there is must be looked up again.
    pub(crate) fn append(&mut self, parts: &[Bytes]) -> Result<(), StorageError> {
        match &mut self.bytes {
            UploadBytes::File(data) => {
                let length = append(data, self.length, parts)?;
                for part in parts {
                    self.hasher.update(part);
                }
                self.length = length;
            }
            UploadBytes::Parts(upload) => {
                for part in parts {
                    upload.append(part, &mut self.hasher)?;
                    self.length += part.len() as u64;
                }
            }
        }
        Ok(())
    }

    /// Waits until what is on its way elsewhere is there. After an error, as after one of `append`.
    pub(crate) fn settle(&mut self) -> Result<(), StorageError> {
        match &mut self.bytes {
            UploadBytes::File(_) => Ok(()),
            UploadBytes::Parts(upload) => upload.settle(),
        }
    }

    /// A way to bring the bytes so far to the disk while further ones come, when they are to stay there.
    pub(crate) fn flusher(&self) -> Option<Flusher> {
        match &self.bytes {
            UploadBytes::File(data) => Some(Flusher { data: data.clone() }),
            UploadBytes::Parts(_) => None,
        }
    }

    /// Hashes what an earlier process left.
    pub(super) fn of_file(data: PathBuf) -> Result<Self, StorageError> {
        let mut hasher = Sha256::new();
        let length = hash_file(&data, &mut hasher)?;
        Ok(Self { bytes: UploadBytes::File(data), hasher, length })
    }
}

/// Writes the next bytes of a file that has so many, and gives how many it has then.
fn append(data: &Path, length: u64, parts: &[Bytes]) -> Result<u64, StorageError> {
    let file = File::options().write(true).open(data).during("open", data)?;
    let mut end = length;
    for part in parts {
        if let Err(error) = file.write_all_at(part, end) {
            let failed = Err(error).during("write", data);
            // What was written of this call is not in the hash: the file must not keep it.
            file.set_len(length).during("shorten", data)?;
            return failed;
        }
        end += part.len() as u64;
    }
    Ok(end)
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
        self.begin_upload_of(repository.as_str())
    }

    /// The same for whoever has this name.
    pub(super) fn begin_upload_of(
        &self,
        owner: &str,
    ) -> Result<(UploadId, UploadHash), StorageError> {
        let upload = UploadId(Uuid::new_v4());
        let dir = self.upload_dir(upload);
        let made = fs::create_dir(&dir)
            .and_then(|()| File::create_new(dir.join(DATA)).map(drop))
            .and_then(|()| fs::write(dir.join(REPOSITORY), owner))
            .during("begin an upload in", &dir);
        if made.is_err() {
            // The first error is the one to tell; the sweep removes what this cannot.
            let _ = fs::remove_dir_all(&dir);
        }
        made?;
        let bytes = match &self.objects {
            None => UploadBytes::File(dir.join(DATA)),
            Some(objects) => {
                UploadBytes::Parts(Box::new(PartedUpload::new(objects.clone(), dir, self.tmp())))
            }
        };
        Ok((upload, UploadHash { bytes, hasher: Sha256::new(), length: 0 }))
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

    /// The hash over the bytes that the upload has, found from what is on the disk; `None` when it is
    /// gone.
    pub(crate) fn resume_upload(
        &self,
        upload: UploadId,
    ) -> Result<Option<UploadHash>, StorageError> {
        let dir = self.upload_dir(upload);
        let data = dir.join(DATA);
        match &self.objects {
            None if durable::size(&data)?.is_none() => {
                // It became a blob, and whoever was to end it was killed.
                self.remove_upload_dir(&dir)?;
                Ok(None)
            }
            None => UploadHash::of_file(data).map(Some),
            Some(_) if !dir.exists() => Ok(None),
            Some(objects) => {
                let resumed =
                    PartedUpload::new(objects.clone(), dir.clone(), self.tmp()).resume()?;
                let Some((upload, hasher, length)) = resumed else {
                    // Nobody can go on with it.
                    self.remove_upload_dir(&dir)?;
                    return Ok(None);
                };
                let bytes = UploadBytes::Parts(Box::new(upload));
                Ok(Some(UploadHash { bytes, hasher, length }))
            }
        }
    }

    /// Makes the bytes of the upload a blob of the repository and ends the upload.
    pub(crate) fn finish_upload(
        &self,
        repository: &Repository,
        upload: UploadId,
        hash: &mut UploadHash,
    ) -> Result<(), StorageError> {
        let digest = hash.digest();
        match &mut hash.bytes {
            UploadBytes::File(data) => self.commit_blob(repository, &digest, data)?,
            // What is there already is not sent to the end.
            UploadBytes::Parts(_) if self.link_present(repository, &digest)? => {}
            UploadBytes::Parts(parts) => {
                parts.complete(hash.length)?;
                self.commit_object(repository, &digest, &self.upload_dir(upload))?;
            }
        }
        self.remove_upload(upload)
    }

    /// Ends an upload and drops its bytes.
    pub(crate) fn remove_upload(&self, upload: UploadId) -> Result<(), StorageError> {
        self.remove_upload_dir(&self.upload_dir(upload))
    }

    /// What of it is in an object store goes later.
    pub(super) fn remove_upload_dir(&self, dir: &Path) -> Result<(), StorageError> {
        // Away at once: a request that is at it still must not name the object that goes here.
        let away = self.tmp().join(Uuid::new_v4().simple().to_string());
        match fs::rename(dir, &away) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            moved => moved.during("put away", dir)?,
        }
        let dir = &*away;
        self.drop_object(&dir.join(OBJECT))?;
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.during("remove", dir),
        }
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
                self.remove_upload_dir(&dir)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
