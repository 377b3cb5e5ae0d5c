//! What was last told, on disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The file of the last table of routes.
pub(crate) const ROUTES: &str = "routes.json";
/// The file of what other locations served last.
pub(crate) const ELSEWHERE: &str = "elsewhere.json";

/// A file of what was last told: always whole, either the new state or the one before.
#[derive(Debug)]
pub(crate) struct StateFile<T> {
    dir: PathBuf,
    name: &'static str,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for StateFile<T> {
    fn clone(&self) -> Self {
        Self { dir: self.dir.clone(), name: self.name, of: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> StateFile<T> {
    /// The file in `dir`, which is made when missing.
    pub fn open(dir: &Path, name: &'static str) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), name, of: PhantomData })
    }

    /// The stored state. One that cannot be read is as none: the location gives a new one.
    pub fn load(&self) -> Option<T> {
        let path = self.dir.join(self.name);
        let read =
            fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        match read {
            Ok(state) => Some(state),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what is stored is unusable");
                None
            }
        }
    }

    /// Stores a state. Blocks on the disk.
    pub fn save(&self, state: &T) -> io::Result<()> {
        let new = self.dir.join(format!("{}.new", self.name));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(self.name))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use longshore_api::links::RoutingTable;

    use super::*;

    #[test]
    fn the_last_table_is_read_back_and_garbage_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(&dir.path().join("made/here"), ROUTES).unwrap();
        assert_eq!(file.load(), None);
        for revision in [3, 4] {
            let table = RoutingTable { revision, ..RoutingTable::default() };
            file.save(&table).unwrap();
            assert_eq!(file.load(), Some(table));
        }
        for garbage in ["", "{", "[]", "{\"revision\":-1,\"routes\":[]}"] {
            fs::write(file.dir.join(ROUTES), garbage).unwrap();
            assert_eq!(file.load(), None, "{garbage}");
        }
        // What a kill in the middle of a save leaves does not stand in the way of the next one.
        fs::write(file.dir.join("routes.json.new"), "{\"rev").unwrap();
        file.save(&RoutingTable::default()).unwrap();
        assert_eq!(file.load(), Some(RoutingTable::default()));
    }
}
