//! What is small and says what else is needed: manifests, and what the registry said that it converted of an image.
//!
//! A file for each, which begins with the digest and the media type of what follows. Looked at each time it is read,
//! so one that a disk or a crash changed is as good as none. There are few and they are never in a hurry, so what is
//! there is asked of the disk.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use longshore_types::{Digest, Repository};
use sha2::{Digest as _, Sha256};

use super::disk::{self, During as _, MirrorError};
use super::room::plan_room;

/// The most that they take together.
const MOST: u64 = 64 << 20;

/// What a document is of.
pub type Of = (Repository, Digest);

/// Which document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The manifest with the digest.
    Manifest,
    /// What was converted of the image with the manifest that has the digest; nothing in it when nothing was.
    Converted,
}

impl What {
    fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Converted => "converted",
        }
    }
}

/// A document as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub media_type: String,
    pub bytes: Bytes,
}

/// Where they lie.
#[derive(Debug)]
pub struct Documents {
    dir: PathBuf,
    /// Where files are until they are whole.
    passing: PathBuf,
    /// So that two who keep the same one write a file each.
    n_passing: AtomicU64,
}

/// The name of a repository as a part of that of a file.
pub fn file_part(repository: &Repository) -> String {
    digest(repository.to_string().as_bytes()).hex()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

impl Documents {
    /// Those in a directory.
    pub fn new(dir: PathBuf, passing: PathBuf) -> Self {
        Self { dir, passing, n_passing: AtomicU64::new(0) }
    }

    fn name(what: What, (repository, digest): &Of) -> String {
        format!("{}-{}.{}", what.as_str(), digest.hex(), file_part(repository))
    }

    /// One of them, when it is there as it was written.
    pub fn read(&self, what: What, of: &Of) -> Option<Document> {
        let path = self.dir.join(Self::name(what, of));
        let bytes = Bytes::from(fs::read(&path).ok()?);
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (expected, media_type) = std::str::from_utf8(&bytes[..end]).ok()?.split_once(' ')?;
        let (media_type, contents) = (media_type.to_owned(), bytes.slice(end + 1..));
        let found = digest(&contents);
        let is_right = expected.parse() == Ok(found);
        if !is_right || (what == What::Manifest && found != of.1) {
            tracing::warn!(path = %path.display(), "a document of the mirror is damaged");
            return None;
        }
        // So that it goes after others; where that fails it goes sooner, and comes again.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(Document { media_type, bytes: contents })
    }

    /// Keeps one. A manifest that has another digest is kept for nobody.
    pub fn keep(&self, what: What, of: &Of, document: &Document) -> Result<(), MirrorError> {
        let found = digest(&document.bytes);
        let is_wrong = what == What::Manifest && found != of.1;
        if is_wrong || document.media_type.contains('\n') {
            return Ok(());
        }
        let name = Self::name(what, of);
        let number = self.n_passing.fetch_add(1, Ordering::Relaxed);
        let passing = self.passing.join(format!("{name}.{number}"));
        let path = self.dir.join(&name);
        let head = format!("{found} {}\n", document.media_type);
        let written = File::create(&passing).and_then(|mut file| {
            file.write_all(head.as_bytes())?;
            file.write_all(&document.bytes)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // It goes at the next start if not now; the error worth telling is the first.
            let _ = fs::remove_file(&passing);
            return Err(error).during("write", &passing);
        }
        fs::rename(&passing, &path).during("put in place", &path)?;
        disk::sync_dir(&self.dir)?;
        self.clear()
    }

    /// Removes those that were not used for longest where they are too many.
    fn clear(&self) -> Result<(), MirrorError> {
        let all = disk::list(&self.dir)?;
        let taken: u64 = all.iter().map(|entry| entry.metadata.len()).sum();
        let used = |metadata: &fs::Metadata| metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let kept = all
            .iter()
            .map(|entry| (Path::new(&entry.name), entry.metadata.len(), used(&entry.metadata)));
        let (goes, _) = plan_room(kept, taken.saturating_sub(MOST));
        goes.into_iter().try_for_each(|name| disk::remove(&self.dir.join(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(dir: &Path) -> Documents {
        let (all, passing) = (dir.join("documents"), dir.join("coming"));
        fs::create_dir_all(&all).unwrap();
        fs::create_dir_all(&passing).unwrap();
        Documents::new(all, passing)
    }

    fn document(text: &str) -> (Document, Digest) {
        let bytes = Bytes::from(text.to_owned());
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        (Document { media_type, bytes: bytes.clone() }, digest(&bytes))
    }

    #[test]
    fn a_document_is_read_as_it_was_given_and_of_its_repository_alone() {
        let dir = tempfile::tempdir().unwrap();
        let documents = documents(dir.path());
        let (given, digest) = document("{\n}");
        let of: Of = ("default/web".parse().unwrap(), digest);
        assert_eq!(documents.read(What::Manifest, &of), None);
        documents.keep(What::Manifest, &of, &given).unwrap();
        assert_eq!(documents.read(What::Manifest, &of).as_ref(), Some(&given));
        assert_eq!(documents.read(What::Converted, &of), None);
        let other: Of = ("default/other".parse().unwrap(), digest);
        assert_eq!(documents.read(What::Manifest, &other), None);
        // What has another digest is nobody's; of what was converted any text may be said.
        let wrong: Of = (of.0.clone(), Digest::from_sha256([7; 32]));
        documents.keep(What::Manifest, &wrong, &given).unwrap();
        assert_eq!(documents.read(What::Manifest, &wrong), None);
        let (nothing, _) = document("");
        documents.keep(What::Converted, &wrong, &nothing).unwrap();
        assert_eq!(documents.read(What::Converted, &wrong), Some(nothing));

        let path = dir.path().join("documents").join(Documents::name(What::Manifest, &of));
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &[], &whole[1..], &whole[whole.len() - 2..]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(documents.read(What::Manifest, &of), None, "{damaged:?}");
        }
    }

    #[test]
    fn those_that_nobody_read_for_longest_go_when_they_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let documents = documents(dir.path());
        let ofs: Vec<Of> = (0..3)
            .map(|n| ("default/web".parse().unwrap(), Digest::from_sha256([n; 32])))
            .collect();
        ofs.iter().for_each(|of| {
            documents.keep(What::Converted, of, &document("x").0).unwrap();
        });
        for (of, age) in ofs.iter().zip([100, 300, 200]) {
            let path = dir.path().join("documents").join(Documents::name(What::Converted, of));
            let file = File::options().append(true).open(path).unwrap();
            // A hole takes no room, but counts as one that does.
            file.set_len(MOST / 2).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            file.set_modified(then).unwrap();
        }
        let names = |documents: &Documents| disk::list(&documents.dir).unwrap().len();
        assert_eq!(names(&documents), 3);
        documents.clear().unwrap();
        assert_eq!(names(&documents), 2);
        assert!(!documents.dir.join(Documents::name(What::Converted, &ofs[1])).exists());
    }
}
