//! The last routing table, on disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use longshore_api::links::RoutingTable;

const NAME: &str = "routes.json";
const NEW_NAME: &str = "routes.json.new";

/// The file of the last table: always whole, either the new one or the one before.
#[derive(Debug, Clone)]
pub(crate) struct StateFile {
    dir: PathBuf,
}

impl StateFile {
    /// The file in `dir`, which is made when missing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The stored table. One that cannot be read is as none: the location gives a new one.
    pub fn load(&self) -> Option<RoutingTable> {
        let path = self.dir.join(NAME);
        let read =
            fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        match read {
            Ok(table) => Some(table),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the stored routes are unusable");
                None
            }
        }
    }

    /// Stores a table. Blocks on the disk.
    pub fn save(&self, table: &RoutingTable) -> io::Result<()> {
        let new = self.dir.join(NEW_NAME);
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(table)?)?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(NAME))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_table_is_read_back_and_garbage_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(&dir.path().join("made/here")).unwrap();
        assert_eq!(file.load(), None);
        for revision in [3, 4] {
            let table = RoutingTable { revision, routes: Vec::new() };
            file.save(&table).unwrap();
            assert_eq!(file.load(), Some(table));
        }
        for garbage in ["", "{", "[]", "{\"revision\":-1,\"routes\":[]}"] {
            fs::write(file.dir.join(NAME), garbage).unwrap();
            assert_eq!(file.load(), None, "{garbage}");
        }
        // What a kill in the middle of a save leaves does not stand in the way of the next one.
        fs::write(file.dir.join(NEW_NAME), "{\"rev").unwrap();
        file.save(&RoutingTable::default()).unwrap();
        assert_eq!(file.load(), Some(RoutingTable::default()));
    }
}
