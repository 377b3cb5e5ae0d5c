//! Named files in a directory or in a tar, without unpacking the tar.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use crate::client::BlobSource;

/// How many links in a row are followed within an archive.
const MAX_LINKS: usize = 8;

/// Why the files of an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenArchiveError {
    /// The file or directory could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is no tar.
    #[error("{} is neither a directory nor a tar; decompress it first if it is compressed", path.display())]
    Tar {
        /// The path.
        path: PathBuf,
        /// What the tar reader found.
        #[source]
        source: io::Error,
    },
}

/// The files of an image, by name.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    /// `None` for a directory.
    entries: Option<BTreeMap<String, Entry>>,
}

/// What a name in a tar stands for.
#[derive(Debug)]
enum Entry {
    File { offset: u64, length: u64 },
    Link(String),
}

impl Archive {
    /// Opens a directory, or reads the names in a tar. The bytes of entries are skipped.
    pub(super) fn open(path: &Path) -> Result<Self, OpenArchiveError> {
        let opening = |source| OpenArchiveError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(opening)?;
        let entries = if file.metadata().map_err(opening)?.is_dir() {
            None
        } else {
            let indexed = index(file)
                .map_err(|source| OpenArchiveError::Tar { path: path.to_owned(), source });
            Some(indexed?)
        };
        Ok(Self { path: path.to_owned(), entries })
    }

    /// Where the bytes of a file are, when there is one of this name. Names come from documents that
    /// nobody has checked, so one that leaves the directory is not there.
    pub(super) fn find(&self, name: &str) -> Result<Option<BlobSource>, OpenArchiveError> {
        let Some(entries) = &self.entries else {
            return self.find_in_directory(name);
        };
        let mut name = name.to_owned();
        for _ in 0..MAX_LINKS {
            match entries.get(&name) {
                None => return Ok(None),
                Some(Entry::Link(target)) => name.clone_from(target),
                Some(Entry::File { offset, length }) => {
                    return Ok(Some(BlobSource::File {
                        path: self.path.clone(),
                        offset: *offset,
                        length: *length,
                    }));
                }
            }
        }
        Ok(None)
    }

    fn find_in_directory(&self, name: &str) -> Result<Option<BlobSource>, OpenArchiveError> {
        let Some(name) = normal("", name) else {
            return Ok(None);
        };
        let path = self.path.join(name);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => {
                Ok(Some(BlobSource::File { path, offset: 0, length: found.len() }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OpenArchiveError::Open { path, source }),
        }
    }
}

fn index(file: File) -> io::Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    let mut tar = tar::Archive::new(BufReader::new(file));
    for entry in tar.entries_with_seek()? {
        let entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(name) = normal("", &path) else {
            continue;
        };
        let kind = entry.header().entry_type();
        let link = || {
            let target = entry.link_name_bytes()?;
            Some(String::from_utf8_lossy(&target).into_owned())
        };
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
        let found = match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                Some(Entry::File { offset: entry.raw_file_position(), length: entry.size() })
            }
            // `docker save` writes a layer that it has twice as a link to the first.
            tar::EntryType::Symlink => {
                link().and_then(|target| normal(parent, &target)).map(Entry::Link)
            }
            tar::EntryType::Link => link().and_then(|target| normal("", &target)).map(Entry::Link),
            _ => None,
        };
        if let Some(found) = found {
            entries.insert(name, found);
        }
    }
    Ok(entries)
}

/// A relative name without `.` and `..`; `None` when it leads out.
fn normal(base: &str, name: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (base, name, expected) in [
            ("", "./blobs/sha256/x", Some("blobs/sha256/x")),
            ("a", "../b/layer.tar", Some("b/layer.tar")),
            ("a", "../../b", None),
            ("", "/etc/passwd", None),
            ("", "..", None),
        ] {
            assert_eq!(normal(base, name).as_deref(), expected, "{base} {name}");
        }
    }
}
