//! What was converted of each image, in its repository: an artifact that names the parts of its layers.
//!
//! That an artifact is the registry's own is told by a link that only the converter makes, in a directory
//! that no request names. What its manifest says anybody could have pushed, to an earlier release at least.
//!
//! The link comes before its artifact and goes before it. So a crash leaves a link to nothing, which means nothing and is
//! made again, or an artifact that no link names, which the next collection takes. When somebody asked for it
//! last, the time of the link tells, to the hour. Where nobody did for long a word takes the place of the digest: nothing is
//! converted of that image until somebody asks again.

use std::path::PathBuf;
use std::time::Duration;

use longshore_types::{Digest, Repository};

use super::durable::{self, During as _};
use super::fetched::NOTED_EACH;
use super::leases::Lease;
use super::{Storage, StorageError};
use crate::manifest::Manifest;

/// In a repository, the artifact about each image, by its manifest.
const CONVERTED: &str = "_converted";

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

impl Storage {
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
        if text == UNPULLED.as_bytes() {
            return Ok(Standing::Unpulled);
        }
        let digest = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
        let digest = digest.ok_or_else(|| std::io::Error::other("not a digest"));
        let artifact: Digest = digest.during("understand", &path)?;
        for needed in [&artifact, image] {
            if self.manifest_size(repository, needed)?.is_none() {
                return Ok(Standing::Open);
            }
        }
        Ok(Standing::Made(artifact))
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

    /// What is converted of the images of a repository, in their order.
    pub(crate) fn forms(&self, repository: &Repository) -> Result<Vec<Form>, StorageError> {
        let mut forms = Vec::new();
        for image in self.digests_of(repository, CONVERTED)? {
            let Standing::Made(artifact) = self.standing(repository, &image)? else { continue };
            if let Some(unused) = durable::age(&self.converted_path(repository, &image))? {
                forms.push(Form { image, artifact, unused });
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

    /// Removes what is converted of all images for which this is a part of it, whoever counts on that; gives the images.
    pub(crate) fn drop_forms(
        &self,
        part: &Digest,
    ) -> Result<Vec<(Repository, Digest)>, StorageError> {
        let mut dropped = Vec::new();
        for repository in self.repositories()? {
            for Form { image, artifact, unused: _ } in self.forms(&repository)? {
                let _repository = self.lock_repository(&repository);
                if self.parts(&repository, &artifact)?.contains(part) {
                    self.forget_converted(&repository, &image)?;
                    self.remove_manifest(&repository, &artifact)?;
                    dropped.push((repository.clone(), image));
                }
            }
        }
        Ok(dropped)
    }

    /// The same of one image, when a part is gone: deleted, or lost with the disk. Whether it was.
    pub(crate) fn drop_if_broken(
        &self,
        repository: &Repository,
        image: &Digest,
        artifact: &Digest,
    ) -> Result<bool, StorageError> {
        let mut is_whole = true;
        for part in self.parts(repository, artifact)? {
            is_whole &= self.blob_size(repository, &part)?.is_some();
        }
        if is_whole {
            return Ok(false);
        }
        let _repository = self.lock_repository(repository);
        self.forget_converted(repository, image)?;
        self.remove_manifest(repository, artifact)?;
        Ok(true)
    }

    /// The blobs that an artifact names.
    fn parts(
        &self,
        repository: &Repository,
        artifact: &Digest,
    ) -> Result<Vec<Digest>, StorageError> {
        let Some(stored) = self.manifest(repository, artifact)? else { return Ok(Vec::new()) };
        let manifest = Manifest::parse(Some(&stored.media_type), &stored.bytes)
            .map_err(|error| StorageError::unreadable(artifact, error))?;
        Ok(manifest.blobs.iter().map(|blob| blob.digest).collect())
    }

    /// Removes bytes that are not those of their digest. Who has them has nothing until they are made again.
    pub(crate) fn discard(&self, digest: &Digest) -> Result<(), StorageError> {
        let _guard = self.digests.lock(digest);
        self.remove_bytes(digest)
    }
}
