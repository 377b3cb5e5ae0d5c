//! Which instance has which slot, kept beside the namespaces.
//!
//! A record is what makes a slot an instance's: written last when attaching and removed last when
//! detaching, each by one rename or unlink. A slot without a record is a leftover, whatever else
//! exists of it. Records live in the run directory and not with the state that survives a reboot,
//! because the namespaces that they speak of do not survive it either.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use longshore_types::{EgressRule, InstanceId};
use serde::{Deserialize, Serialize};

/// A record could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}", path = path.display())]
pub struct RecordError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    move |source| RecordError { doing, path: path.to_owned(), source }
}

/// What is known of an attached instance. The address is written, not the slot, so that a record
/// of a subnet that is no longer ours is seen to be one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) address: Ipv4Addr,
    pub(crate) egress: Vec<EgressRule>,
}

/// The directory of records. Its calls block for microseconds only: the run directory is in memory.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

const TEMPORARY: &str = ".new";

impl Records {
    /// Reads all records; what cannot be one is removed, with a word in the log.
    pub(crate) fn open(dir: PathBuf) -> Result<(Self, BTreeMap<InstanceId, Record>), RecordError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(failed("create directory", &dir))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(failed("list directory", &dir))? {
            let path = entry.map_err(failed("list directory", &dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
            match (name.parse(), serde_json::from_str(&text)) {
                (Ok(instance), Ok(record)) => {
                    records.insert(instance, record);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "removed what is no record");
                    ensure_no_file(&path)?;
                }
            }
        }
        Ok((Self { dir }, records))
    }

    /// Writes the record in one step.
    pub(crate) fn write(&self, instance: &InstanceId, record: &Record) -> Result<(), RecordError> {
        let path = self.dir.join(instance.as_str());
        let temporary = self.dir.join(format!("{instance}{TEMPORARY}"));
        let text = serde_json::to_vec(record).expect("a record is valid JSON");
        fs::write(&temporary, text).map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("rename to", &path))
    }

    pub(crate) fn remove(&self, instance: &InstanceId) -> Result<(), RecordError> {
        ensure_no_file(&self.dir.join(instance.as_str()))
    }
}

pub(crate) fn ensure_no_file(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_their_writer_and_half_written_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let instance: InstanceId = "web-01234567".parse().unwrap();
        let record = Record {
            address: Ipv4Addr::new(100, 64, 0, 2),
            egress: vec!["10.0.0.0/8:5432/tcp".parse().unwrap()],
        };
        let (records, found) = Records::open(dir.path().to_owned()).unwrap();
        assert!(found.is_empty());
        records.write(&instance, &record).unwrap();
        fs::write(dir.path().join("web-89abcdef.new"), "{").unwrap();
        fs::write(dir.path().join("web-89abcdef"), "{").unwrap();

        let (records, found) = Records::open(dir.path().to_owned()).unwrap();
        assert_eq!(found, BTreeMap::from([(instance.clone(), record)]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        records.remove(&instance).unwrap();
        records.remove(&instance).unwrap();
        assert!(Records::open(dir.path().to_owned()).unwrap().1.is_empty());
    }
}
