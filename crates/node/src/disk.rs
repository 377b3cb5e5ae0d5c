//! What an agent must remember over its own death and the machine's: its assignments.
//!
//! All of them lie in one file, so that however many come at once cost one wait for the disk. Every
//! instance has a directory `instances/<id>/` with the count of its restarts and its writable layer;
//! an assignment whose directory is gone was carried out to its end, and is no longer one. A file is
//! replaced by writing another beside it, syncing and renaming.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_api::links::Assignment;
use longshore_image::mount::unmount_under;
use longshore_types::{
    ExitReason, Generation, IdRange, InstanceId, LocationEpoch, SecretName, SecretValue,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::NodeError;

/// The directories of an agent.
#[derive(Debug)]
pub struct Disk {
    instances: PathBuf,
    mounts: PathBuf,
    assignments: PathBuf,
}

/// What lies in the file.
#[derive(Serialize)]
struct Stored<'a> {
    location_epoch: LocationEpoch,
    generation: Generation,
    assignments: &'a [Arc<Assignment>],
}

/// The same, read.
#[derive(Debug, Default, Deserialize)]
pub struct Assignments {
    /// Of which life of the location the set is that was last taken over.
    #[serde(default)]
    pub location_epoch: LocationEpoch,
    /// Its generation in that.
    pub generation: Generation,
    /// What it asked for, less what was forgotten since.
    pub assignments: Vec<Arc<Assignment>>,
}

/// What an instance sees of the machine.
#[derive(Debug)]
pub struct View {
    /// Where its file system is mounted.
    pub rootfs: PathBuf,
    /// The files that are shown in it.
    pub etc: PathBuf,
}

impl View {
    /// Writes a file that is shown. It stays the machine's, and all inside may read it.
    pub fn show(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.etc.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))
    }

    /// The same for the value of a secret, which no other file holds in the clear.
    pub fn show_secret(&self, name: &str, value: &SecretValue) -> io::Result<()> {
        let path = self.etc.join(name);
        fs::write(&path, value.bytes())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o444))
    }
}

const ROOTFS: &str = "rootfs";
const ETC: &str = "etc";
const SECRETS: &str = "secrets.json";

/// Values of secrets by their names.
pub type Secrets = BTreeMap<SecretName, SecretValue>;

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
            assignments: data_dir.join("assignments.json"),
        };
        for dir in [&disk.instances, &disk.mounts] {
            fs::create_dir_all(dir).map_err(|source| failed("make", dir, source))?;
        }
        // The users of instances pass here on the way to their own views; nobody may look around.
        fs::set_permissions(&disk.mounts, fs::Permissions::from_mode(0o711))
            .map_err(|source| failed("open", &disk.mounts, source))?;
        Ok(disk)
    }

    /// The directories of all instances lie below this one.
    pub fn instances(&self) -> &Path {
        &self.instances
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

    /// Keeps the secrets of an instance that has a view, so that it can be started again while its
    /// location is away. They go with the view, and with a reboot.
    pub fn keep_secrets(&self, instance: &InstanceId, secrets: &Secrets) -> Result<(), NodeError> {
        let path = self.mounts.join(instance.as_str()).join(SECRETS);
        let failed = |source| failed("write", &path, source);
        let bytes = serde_json::to_vec(secrets).map_err(|error| failed(error.into()))?;
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(&bytes)).map_err(failed)
    }

    /// The secrets of an instance, when they are kept.
    pub fn kept_secrets(&self, instance: &InstanceId) -> Result<Option<Secrets>, NodeError> {
        load(&self.mounts.join(instance.as_str()).join(SECRETS))
    }

    /// Where the file system of an instance is mounted.
    pub fn rootfs(&self, instance: &InstanceId) -> PathBuf {
        self.mounts.join(instance.as_str()).join(ROOTFS)
    }

    /// Removes what an instance saw, with what is mounted there.
    pub fn remove_view(&self, instance: &InstanceId) -> Result<(), NodeError> {
        let dir = self.mounts.join(instance.as_str());
        let unmounted = unmount_under(&dir);
        unmounted.map_err(|error| failed("empty", &dir, io::Error::other(error)))?;
        remove_dir(&dir)
    }

    /// Below this lie the mounts of all instances.
    pub fn mounts(&self) -> &Path {
        &self.mounts
    }

    /// The assignments as they were last written, and what else lies among the directories of their
    /// instances: left half removed, or of others.
    pub fn assignments(&self) -> Result<(Assignments, Vec<PathBuf>), NodeError> {
        let mut leftovers = Vec::new();
        let mut stored: Assignments = load(&self.assignments)?.unwrap_or_default();
        stored.assignments.retain(|assignment| self.instance(&assignment.instance).exists());
        let keep: BTreeSet<_> =
            stored.assignments.iter().map(|one| one.instance.as_str()).collect();
        let read = |source| failed("read", &self.instances, source);
        for entry in fs::read_dir(&self.instances).map_err(read)? {
            let entry = entry.map_err(read)?;
            if !entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
                leftovers.push(entry.path());
            }
        }
        Ok((stored, leftovers))
    }

    /// Remembers a set of assignments, in place of the one before.
    pub fn save_assignments(
        &self,
        (location_epoch, generation): (LocationEpoch, Generation),
        assignments: &[Arc<Assignment>],
    ) -> Result<(), NodeError> {
        for assignment in assignments {
            let dir = self.instance(&assignment.instance);
            fs::create_dir_all(&dir).map_err(|source| failed("make", &dir, source))?;
        }
        sync_dir(&self.instances)?;
        save(&self.assignments, &Stored { location_epoch, generation, assignments })
    }

    /// How the earlier starts of an instance went.
    pub fn history(&self, instance: &InstanceId) -> Result<History, NodeError> {
        Ok(load(&self.instance(instance).join("history.json"))?.unwrap_or_default())
    }

    /// Remembers how the starts of an instance went.
    pub fn save_history(&self, instance: &InstanceId, history: &History) -> Result<(), NodeError> {
        save(&self.instance(instance).join("history.json"), history)
    }

    /// Forgets an instance and removes its directory: first its name, in one step, for a directory
    /// that has it is that of an instance.
    pub fn forget(&self, instance: &InstanceId) -> Result<(), NodeError> {
        let dir = self.instance(instance);
        // No id of an instance has a dot.
        let nameless = dir.with_extension("gone");
        match fs::rename(&dir, &nameless) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("rename", &dir, error))
            }
            _ => remove_dir(&nameless),
        }
    }

    /// Removes what is left of the directory of an instance.
    pub fn remove_leftover(&self, dir: &Path) -> Result<(), NodeError> {
        remove_dir(dir)
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
    use longshore_api::links::Intent;
    use longshore_types::{Manifest, Release, ReleaseNumber, Timestamp};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn assignment(id: &str) -> Assignment {
        let manifest = serde_json::json!({"app": "web", "image": "web"});
        Assignment {
            instance: id.parse().unwrap(),
            release: Arc::new(Release {
                secrets: Default::default(),
                number: ReleaseNumber(1),
                manifest: Manifest::from_document(&manifest).unwrap(),
                image_digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
                created_at: Timestamp(0),
            }),
            intent: Intent::Run,
            generation: Generation(1),
            gpus: Default::default(),
            origin: Default::default(),
        }
    }

    #[test]
    fn only_the_root_of_an_instance_enters_its_view() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), &dir.path().join("run")).unwrap();
        let id: InstanceId = "web-01234567".parse().unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        for ids in [IdRange::new(700_000), None] {
            let view = disk.make_view(&id, ids).unwrap();
            let metadata = view.rootfs.parent().unwrap().metadata().unwrap();
            let owner = ids.map_or(0, IdRange::first);
            let found = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
            assert_eq!(found, (owner, owner, 0o700));
            assert_eq!(disk.mounts().metadata().unwrap().mode() & 0o7777, 0o711);
            view.show("hosts", "").unwrap();
            let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
            assert_eq!((mode(&view.etc), mode(&view.etc.join("hosts"))), (0o755, 0o644));
        }
        disk.remove_view(&id).unwrap();
        disk.remove_view(&id).unwrap();
        assert_eq!(fs::read_dir(disk.mounts()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_saved_is_there_and_what_was_half_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), &dir.path().join("run")).unwrap();
        let all = ["web-01234567", "web-12345678", "web-23456789"].map(assignment).map(Arc::new);
        disk.save_assignments((LocationEpoch(2), Generation(7)), &all).unwrap();
        let [kept, forgotten, half] = all.each_ref().map(|one| one.instance.clone());
        let history = History { restarts: 3, ..History::default() };
        disk.save_history(&kept, &history).unwrap();
        disk.forget(&forgotten).unwrap();
        disk.forget(&forgotten).unwrap();
        fs::rename(disk.instance(&half), disk.instance(&half).with_extension("gone")).unwrap();
        fs::create_dir(disk.instance(&"web-34567890".parse().unwrap())).unwrap();

        let (found, leftovers) = disk.assignments().unwrap();
        for dir in leftovers {
            disk.remove_leftover(&dir).unwrap();
        }
        assert_eq!((found.location_epoch, found.generation), (LocationEpoch(2), Generation(7)));
        assert_eq!(found.assignments, [all[0].clone()]);
        assert_eq!(disk.history(&kept).unwrap(), history);
        let left = fs::read_dir(dir.path().join("instances")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [kept.as_str()]);
    }
}
