//! What was converted of each image, in its repository: an artifact that names the parts of its layers.
//!
//! That an artifact is the registry's own is told by a link that only the converter makes, in a directory
//! that no request names. What its manifest says anybody could have pushed, to an earlier release at least.
//!
//! The link comes before its artifact and goes before it. So a crash leaves a link to nothing, which means nothing and is
//! made again, or an artifact that no link names, which the next collection takes. When somebody asked for it
//! last, the time of the link tells, to the hour. Where nobody did for long a word takes the place of the digest: nothing is
//! converted of that image until somebody asks again.
//!
//! Releases before did not note who asks, so no form counts as older than a file that the first start of one that
//! does leaves.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use longshore_types::{Digest, Repository, chain};
use sha2::{Digest as _, Sha256};

use super::durable::{self, During as _};
use super::fetched::NOTED_EACH;
use super::leases::Lease;
use super::{BlobBytes, Storage, StorageError};
use crate::manifest::Manifest;

/// In a repository, the artifact about each image, by its manifest.
const CONVERTED: &str = "_converted";

/// Since it was written it is noted who asks for what is converted.
const NOTED_SINCE: &str = "conversion-uses-noted";

/// In place of an artifact that nobody asked for.
const UNPULLED: &str = "unpulled";

/// How an image stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing is converted of it yet.
    Open,
    /// This artifact names what is.
    Made(Digest),
    /// What was is gone, for nobody pulled it.
    Unpulled,
}

/// What is converted of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) image: Digest,
    pub(crate) artifact: Digest,
    /// Since somebody asked for it, or it was made.
    pub(crate) unused: Duration,
}

/// What an artifact says, as far as it can be known.
enum Parts {
    Of(Vec<Digest>),
    /// Its bytes are not those of its digest, or none that mean anything.
    Broken,
}

impl Storage {
    /// From the first time on it is noted who asks for what is converted.
    pub(super) fn note_uses_from_now(&self) -> Result<(), StorageError> {
        let path = self.root.join(NOTED_SINCE);
        match durable::size(&path)? {
            Some(_) => Ok(()),
            None => durable::write(&self.tmp(), &path, b""),
        }
    }

    fn converted_path(&self, repository: &Repository, image: &Digest) -> PathBuf {
        self.link(repository, CONVERTED, &image.hex())
    }

    /// How an image of the repository stands.
    pub(crate) fn standing(
        &self,
        repository: &Repository,
        image: &Digest,
    ) -> Result<Standing, StorageError> {
        let path = self.converted_path(repository, image);
        let Some(text) = durable::read(&path)? else { return Ok(Standing::Open) };
        // What is said of an image that is gone means nothing.
        if self.manifest_size(repository, image)?.is_none() {
            return Ok(Standing::Open);
        }
        if text == UNPULLED.as_bytes() {
            return Ok(Standing::Unpulled);
        }
        let digest = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
        let digest = digest.ok_or_else(|| io::Error::other("not a digest"));
        let artifact: Digest = digest.during("understand", &path)?;
        Ok(match self.manifest_size(repository, &artifact)? {
            Some(_) => Standing::Made(artifact),
            None => Standing::Open,
        })
    }

    /// Says that an artifact of the repository, which need not be there yet, names what was converted of an
    /// image.
    pub(crate) fn set_converted(
        &self,
        repository: &Repository,
        image: &Digest,
        artifact: &Digest,
    ) -> Result<(), StorageError> {
        let path = self.new_link(repository, CONVERTED, &image.hex())?;
        let _repository = self.lock_repository(repository);
        durable::write(&self.tmp(), &path, artifact.to_string().as_bytes())
    }

    /// Nothing is converted of an image that is gone.
    pub(super) fn forget_converted(
        &self,
        repository: &Repository,
        image: &Digest,
    ) -> Result<(), StorageError> {
        durable::remove(&self.converted_path(repository, image)).map(drop)
    }

    /// The same of all images of a repository that are gone, of which a crash left it.
    pub(crate) fn forget_imageless(&self, repository: &Repository) -> Result<(), StorageError> {
        for image in self.digests_of(repository, CONVERTED)? {
            let _repository = self.lock_repository(repository);
            if self.manifest_size(repository, &image)?.is_none() {
                self.forget_converted(repository, &image)?;
            }
        }
        Ok(())
    }

    /// What is converted of the images of a repository, in their order.
    pub(crate) fn forms(&self, repository: &Repository) -> Result<Vec<Form>, StorageError> {
        let noted = durable::age(&self.root.join(NOTED_SINCE))?.unwrap_or_default();
        let mut forms = Vec::new();
        for image in self.digests_of(repository, CONVERTED)? {
            let Standing::Made(artifact) = self.standing(repository, &image)? else { continue };
            if let Some(unused) = durable::age(&self.converted_path(repository, &image))? {
                forms.push(Form { image, artifact, unused: unused.min(noted) });
            }
        }
        Ok(forms)
    }

    /// Remembers that somebody asked for what is converted of an image.
    pub(crate) fn note_form_use(
        &self,
        repository: &Repository,
        image: &Digest,
    ) -> Result<(), StorageError> {
        let path = self.converted_path(repository, image);
        match durable::age(&path)? {
            Some(unused) if unused >= NOTED_EACH => durable::renew(&path),
            _ => Ok(()),
        }
    }

    /// Has an image converted again of which that is gone because nobody pulled it; whether it is one.
    pub(crate) fn want_form(
        &self,
        repository: &Repository,
        image: &Digest,
    ) -> Result<bool, StorageError> {
        let _repository = self.lock_repository(repository);
        match self.standing(repository, image)? {
            Standing::Unpulled => durable::remove(&self.converted_path(repository, image)),
            Standing::Open | Standing::Made(_) => Ok(false),
        }
    }

    /// Removes what is converted of an image, which nobody pulls; false when somebody counts on it.
    pub(crate) fn collect_form(
        &self,
        repository: &Repository,
        form: &Form,
        lease: Lease,
    ) -> Result<bool, StorageError> {
        let Form { image, artifact, unused: _ } = form;
        self.collect(repository, artifact, lease, || {
            // Something else was said of it since the look.
            if self.standing(repository, image)? != Standing::Made(*artifact) {
                return Ok(false);
            }
            let path = self.converted_path(repository, image);
            durable::write(&self.tmp(), &path, UNPULLED.as_bytes())?;
            self.remove_manifest(repository, artifact)
        })
    }

    /// Removes what is converted of all images for which this is a part of it, whoever counts on that; gives the
    /// images. What cannot be read stays, and is told: nobody gets it either.
    pub(crate) fn drop_forms(
        &self,
        part: &Digest,
    ) -> Result<Vec<(Repository, Digest)>, StorageError> {
        let (mut dropped, mut failed) = (Vec::new(), None);
        for repository in self.repositories()? {
            let images = self.digests_of(&repository, CONVERTED).unwrap_or_else(|error| {
                failed.get_or_insert(error);
                Vec::new()
            });
            for image in images {
                match self.drop_form_with(&repository, &image, part) {
                    Ok(true) => dropped.push((repository.clone(), image)),
                    Ok(false) => {}
                    Err(error) => drop(failed.get_or_insert(error)),
                }
            }
        }
        if let Some(error) = failed {
            let error = chain(&error);
            tracing::error!(%part, error, "not all that names a part could be dropped");
        }
        Ok(dropped)
    }

    fn drop_form_with(
        &self,
        repository: &Repository,
        image: &Digest,
        part: &Digest,
    ) -> Result<bool, StorageError> {
        let _repository = self.lock_repository(repository);
        let Standing::Made(artifact) = self.standing(repository, image)? else { return Ok(false) };
        match self.parts(repository, &artifact)? {
            Parts::Of(parts) if !parts.contains(part) => return Ok(false),
            Parts::Of(_) | Parts::Broken => self.drop_form(repository, image, &artifact)?,
        }
        Ok(true)
    }

    /// The same of one image, when a part is gone: deleted, or lost with the disk; or its artifact is damaged. Whether it
    /// was.
    pub(crate) fn drop_if_broken(
        &self,
        repository: &Repository,
        image: &Digest,
        artifact: &Digest,
    ) -> Result<bool, StorageError> {
        if self.is_whole(repository, artifact)? {
            return Ok(false);
        }
        let _repository = self.lock_repository(repository);
        // Something else was said of it since, or what was missing came.
        if self.standing(repository, image)? != Standing::Made(*artifact)
            || self.is_whole(repository, artifact)?
        {
            return Ok(false);
        }
        self.drop_form(repository, image, artifact)?;
        Ok(true)
    }

    /// Whether all is there that an artifact names.
    fn is_whole(&self, repository: &Repository, artifact: &Digest) -> Result<bool, StorageError> {
        let Parts::Of(parts) = self.parts(repository, artifact)? else { return Ok(false) };
        self.has_blobs(repository, &parts)
    }

    /// Forgets what is converted of an image, for who holds the lock of the repository.
    fn drop_form(
        &self,
        repository: &Repository,
        image: &Digest,
        artifact: &Digest,
    ) -> Result<(), StorageError> {
        self.forget_converted(repository, image)?;
        if matches!(self.parts(repository, artifact)?, Parts::Broken) {
            // Other repositories may have the same, so its bytes would stay, and would be taken for what is made anew.
            let _guard = self.digests.lock(artifact);
            if matches!(self.parts(repository, artifact)?, Parts::Broken) {
                self.remove_bytes(artifact)?;
            }
        }
        self.remove_manifest(repository, artifact).map(drop)
    }

    /// The blobs that an artifact names.
    fn parts(&self, repository: &Repository, artifact: &Digest) -> Result<Parts, StorageError> {
        let Some(stored) = self.manifest(repository, artifact)? else {
            return Ok(Parts::Of(Vec::new()));
        };
        if Digest::from_sha256(Sha256::digest(&stored.bytes).into()) != *artifact {
            return Ok(Parts::Broken);
        }
        Ok(match Manifest::parse(Some(&stored.media_type), &stored.bytes) {
            Ok(manifest) => Parts::Of(manifest.blobs.iter().map(|blob| blob.digest).collect()),
            Err(_) => Parts::Broken,
        })
    }

    /// Removes the bytes of a blob of the repository unless they are right. Who has them has nothing until they are
    /// made again. Whether it did.
    pub(crate) fn discard<E: From<StorageError>>(
        &self,
        repository: &Repository,
        digest: &Digest,
        is_right: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let Some((seen, _)) = self.open_blob(repository, digest)? else { return Ok(false) };
        if is_right()? {
            return Ok(false);
        }
        // Reading them under the lock would keep others waiting; that they are those which were read is known at once.
        let _guard = self.digests.lock(digest);
        let Some((now, _)) = self.open_blob(repository, digest)? else { return Ok(false) };
        let is_same = is_same(&seen, &now);
        if !is_same.map_err(|error| StorageError::reading(digest, error))? {
            return Ok(false);
        }
        self.remove_bytes(digest)?;
        Ok(true)
    }
}

/// Whether these are the same bytes and not equal ones; both are open, so the number of neither is given away anew.
fn is_same(one: &BlobBytes, other: &BlobBytes) -> io::Result<bool> {
    Ok(match (one, other) {
        (BlobBytes::Here(one), BlobBytes::Here(other)) => {
            let (one, other) = (one.metadata()?, other.metadata()?);
            (one.dev(), one.ino()) == (other.dev(), other.ino())
        }
        (BlobBytes::Object(_, one), BlobBytes::Object(_, other)) => one == other,
        (BlobBytes::Here(_), BlobBytes::Object(..))
        | (BlobBytes::Object(..), BlobBytes::Here(_)) => false,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn push(storage: &Storage, repository: &Repository, bytes: &'static [u8]) -> Digest {
        let (upload, mut hash) = storage.begin_upload(repository).unwrap();
        hash.append(&[Bytes::from_static(bytes)]).unwrap();
        storage.finish_upload(repository, upload, &mut hash).unwrap();
        hash.digest()
    }

    #[test]
    fn bytes_that_are_right_or_new_are_not_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Duration::from_secs(3600), None).unwrap();
        let repository: Repository = "a/b".parse().unwrap();
        let digest = push(&storage, &repository, b"right");
        let path = storage.blob_path(&digest);
        let discard = |is_right: &dyn Fn() -> bool| {
            storage.discard(&repository, &digest, || Ok::<_, StorageError>(is_right())).unwrap()
        };
        assert!(!discard(&|| true));
        // Others come while they are read.
        let comes = || {
            storage.remove_bytes(&digest).unwrap();
            push(&storage, &repository, b"right");
            false
        };
        assert!(!discard(&comes));
        assert!(storage.bytes_size(&digest).unwrap().is_some());
        assert!(discard(&|| false));
        assert!(!path.exists() && storage.bytes_size(&digest).unwrap().is_none());
        assert!(!discard(&|| panic!("there are none")));
    }

    #[test]
    fn a_form_that_is_another_since_the_look_is_not_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Duration::from_secs(3600), None).unwrap();
        let repository: Repository = "a/b".parse().unwrap();
        let part = Digest::from_sha256([9; 32]);
        let manifest = |name: &str| {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let named = serde_json::json!({"mediaType": name, "digest": part, "size": 1});
            let document = serde_json::json!({"schemaVersion": 2, "mediaType": kind,
                "config": named, "layers": []});
            let bytes = document.to_string().into_bytes();
            let digest = Digest::from_sha256(Sha256::digest(&bytes).into());
            let stored = crate::storage::StoredManifest { media_type: kind.to_owned(), bytes };
            storage.put_manifest(&repository, &digest, &stored, None).unwrap();
            digest
        };
        let (image, before, now) = (manifest("image"), manifest("before"), manifest("now"));
        storage.set_converted(&repository, &image, &now).unwrap();
        assert!(!storage.drop_if_broken(&repository, &image, &before).unwrap());
        assert_eq!(storage.standing(&repository, &image).unwrap(), Standing::Made(now));
        assert!(storage.drop_if_broken(&repository, &image, &now).unwrap());
        assert_eq!(storage.standing(&repository, &image).unwrap(), Standing::Open);
    }
}
