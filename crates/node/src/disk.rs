//! What an agent must remember over its own death and the machine's: its assignments.
//!
//! Every instance has a directory `instances/<id>/` with its assignment, the count of its restarts
//! and its writable layer. A file is replaced by writing another beside it, syncing and renaming.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use longshore_api::links::Assignment;
use longshore_image::mount::UnmountError;
use longshore_types::{ExitReason, Generation, IdRange, InstanceId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::NodeError;

/// The directories of an agent.
#[derive(Debug)]
pub struct Disk {
    instances: PathBuf,
    mounts: PathBuf,
    generation: PathBuf,
}

/// What an instance sees of the machine.
#[derive(Debug)]
pub struct View {
    /// Where its file system is mounted.
    pub rootfs: PathBuf,
    /// The files that are shown in it.
    pub etc: PathBuf,
}

const ROOTFS: &str = "rootfs";
const ETC: &str = "etc";

/// How the earlier starts of an instance went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// How often it was started again.
    pub restarts: u32,
    /// How many times in a row it ended soon after it began.
    pub quick_ends: u32,
    /// Why it last ended.
    pub last_exit: Option<ExitReason>,
}

impl Disk {
    /// Opens the directories, making them where needed.
    pub fn open(data_dir: &Path, run_dir: &Path) -> Result<Self, NodeError> {
        let disk = Self {
            instances: data_dir.join("instances"),
            mounts: run_dir.join("mounts"),
            generation: data_dir.join("generation.json"),
        };
        for dir in [&disk.instances, &disk.mounts] {
            fs::create_dir_all(dir).map_err(|source| failed("make", dir, source))?;
        }
        // The users of instances pass here on the way to their own views; nobody may look around.
        fs::set_permissions(&disk.mounts, fs::Permissions::from_mode(0o711))
            .map_err(|source| failed("open", &disk.mounts, source))?;
        Ok(disk)
    }

    /// The directory of an instance.
    pub fn instance(&self, instance: &InstanceId) -> PathBuf {
        self.instances.join(instance.as_str())
    }

    /// What an instance sees of the machine: its file system and the files shown in it. Its root
    /// alone may enter, whose ids these are; the machine's own root when absent.
    pub fn make_view(
        &self,
        instance: &InstanceId,
        ids: Option<IdRange>,
    ) -> Result<View, NodeError> {
        let dir = self.mounts.join(instance.as_str());
        let owner = Some(ids.map_or(0, IdRange::first));
        fs::create_dir_all(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)))
            .and_then(|()| chown(&dir, owner, owner))
            .map_err(|source| failed("prepare", &dir, source))?;
        let view = View { rootfs: dir.join(ROOTFS), etc: dir.join(ETC) };
        fs::create_dir_all(&view.etc).map_err(|source| failed("make", &view.etc, source))?;
        // The container's root goes through it to the files, and others have not got this far.
        fs::set_permissions(&view.etc, fs::Permissions::from_mode(0o755))
            .map_err(|source| failed("open", &view.etc, source))?;
        Ok(view)
    }

    /// Where the file system of an instance is mounted.
    pub fn rootfs(&self, instance: &InstanceId) -> PathBuf {
        self.mounts.join(instance.as_str()).join(ROOTFS)
    }

    /// Removes what an instance saw, with what is mounted there.
    pub fn remove_view(&self, instance: &InstanceId) -> Result<(), NodeError> {
        let dir = self.mounts.join(instance.as_str());
        let unmount = || {
            for point in longshore_image::mount::mounts_under(&dir)?.iter().rev() {
                longshore_image::mount::unmount_rootfs(point)?;
            }
            Ok(())
        };
        let unmounted = unmount();
        unmounted.map_err(|error: UnmountError| failed("empty", &dir, io::Error::other(error)))?;
        remove_dir(&dir)
    }

    /// Below this lie the mounts of all instances.
    pub fn mounts(&self) -> &Path {
        &self.mounts
    }

    /// The assignments as they were last written. What was left half removed is removed.
    pub fn assignments(&self) -> Result<Vec<Assignment>, NodeError> {
        let read = |source| failed("read", &self.instances, source);
        let mut assignments = Vec::new();
        for entry in fs::read_dir(&self.instances).map_err(read)? {
            let dir = entry.map_err(read)?.path();
            match load(&dir.join("assignment.json"))? {
                Some(assignment) => assignments.push(assignment),
                // The assignment is written first and removed first.
                None => remove_dir(&dir)?,
            }
        }
        Ok(assignments)
    }

    /// Remembers an assignment.
    pub fn save_assignment(&self, assignment: &Assignment) -> Result<(), NodeError> {
        let dir = self.instance(&assignment.instance);
        fs::create_dir_all(&dir).map_err(|source| failed("make", &dir, source))?;
        save(&dir.join("assignment.json"), assignment)?;
        sync_dir(&self.instances)
    }

    /// How the earlier starts of an instance went.
    pub fn history(&self, instance: &InstanceId) -> Result<History, NodeError> {
        Ok(load(&self.instance(instance).join("history.json"))?.unwrap_or_default())
    }

    /// Remembers how the starts of an instance went.
    pub fn save_history(&self, instance: &InstanceId, history: &History) -> Result<(), NodeError> {
        save(&self.instance(instance).join("history.json"), history)
    }

    /// Forgets an instance and removes its directory.
    pub fn forget(&self, instance: &InstanceId) -> Result<(), NodeError> {
        let dir = self.instance(instance);
        let file = dir.join("assignment.json");
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &file, error));
            }
            _ => {}
        }
        remove_dir(&dir)
    }

    /// The generation of the assignments that were last taken over.
    pub fn generation(&self) -> Result<Generation, NodeError> {
        Ok(load(&self.generation)?.unwrap_or_default())
    }

    /// Remembers the generation of the assignments, after the assignments themselves.
    pub fn save_generation(&self, generation: Generation) -> Result<(), NodeError> {
        save(&self.generation, &generation)
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> NodeError {
    NodeError::Disk { doing, path: path.to_owned(), source }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NodeError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| failed("understand", path, io::Error::other(error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path, error)),
    }
}

/// Writes a file so that after a crash either the old or the new one is there, whole.
fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), NodeError> {
    let text = serde_json::to_vec(value)
        .map_err(|error| failed("encode", path, io::Error::other(error)))?;
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| failed("write", path, source))?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(dir: &Path) -> Result<(), NodeError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| failed("sync", dir, source))
}

fn remove_dir(dir: &Path) -> Result<(), NodeError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn only_the_root_of_an_instance_enters_its_view() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), &dir.path().join("run")).unwrap();
        let id: InstanceId = "web-01234567".parse().unwrap();
        for ids in [IdRange::new(700_000), None] {
            let view = disk.make_view(&id, ids).unwrap();
            let metadata = view.rootfs.parent().unwrap().metadata().unwrap();
            let owner = ids.map_or(0, IdRange::first);
            let found = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
            assert_eq!(found, (owner, owner, 0o700));
            assert_eq!(disk.mounts().metadata().unwrap().mode() & 0o7777, 0o711);
            fs::write(view.etc.join("hosts"), "").unwrap();
        }
        disk.remove_view(&id).unwrap();
        disk.remove_view(&id).unwrap();
        assert_eq!(fs::read_dir(disk.mounts()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_saved_is_there_and_what_was_half_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), &dir.path().join("run")).unwrap();
        let id: InstanceId = "web-01234567".parse().unwrap();
        let history = History { restarts: 3, ..History::default() };
        fs::create_dir_all(disk.instance(&id)).unwrap();
        disk.save_history(&id, &history).unwrap();
        assert_eq!(disk.history(&id).unwrap(), history);
        disk.save_generation(Generation(7)).unwrap();
        assert_eq!(disk.generation().unwrap(), Generation(7));
        assert!(disk.assignments().unwrap().is_empty());
        assert!(!disk.instance(&id).exists(), "a directory without an assignment is removed");
        disk.forget(&id).unwrap();
    }
}
