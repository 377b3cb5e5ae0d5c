//! Does this machine have what the platform needs? All that it lacks is told at once, each with
//! what to do, before anything is started.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::mount::{FsOpenFlags, fsopen};

/// The oldest kernel: overlays of idmapped mounts came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 19);
/// What the limits of instances need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Of `statfs`.
const OVERLAY_MAGIC: u64 = 0x794c_7630;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Obstacle {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Obstacle {
    /// Something that is wrong and what to do about it.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// What was found on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whether this process is root.
    pub is_root: bool,
    /// The release of the kernel as it says itself.
    pub kernel: String,
    /// Whether overlay file systems can be mounted.
    pub has_overlay: bool,
    /// Whether EROFS can be mounted, by which images come without being unpacked file by file.
    pub has_erofs: bool,
    /// The cgroup controllers that can be used.
    pub controllers: Vec<String>,
    /// Whether the program `nft` is there.
    pub has_nft: bool,
    /// The data directory, when it lies on an overlay file system itself.
    pub data_on_overlay: Option<PathBuf>,
    /// A directory that the users of instances cannot pass on their way to the run directory.
    pub closed_way: Option<PathBuf>,
    /// Whether what instances write there can be limited.
    pub can_limit_disk: bool,
}

impl Facts {
    /// Looks at this machine.
    pub fn observe(data_dir: &Path, run_dir: &Path) -> Self {
        Self {
            is_root: rustix::process::geteuid().is_root(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            has_overlay: has_file_system("overlay"),
            has_erofs: has_file_system("erofs"),
            controllers: controllers(),
            has_nft: find_program("nft").is_some(),
            data_on_overlay: is_on_overlay(data_dir).then(|| data_dir.to_owned()),
            closed_way: closed_way(run_dir),
            can_limit_disk: longshore_disk::may_limit(existing(data_dir)),
        }
    }

    /// All that stands in the way.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let mut found = Vec::new();
        let mut need = |ok: bool, what: String, remedy: &str| {
            if !ok {
                found.push(Obstacle::new(what, remedy));
            }
        };
        need(
            self.is_root,
            "this is not root, and containers, networks and mounts need root".to_owned(),
            "run it as root, for instance with sudo",
        );
        let recent = kernel_version(&self.kernel).is_none_or(|version| version >= OLDEST_KERNEL);
        let (major, minor) = OLDEST_KERNEL;
        need(
            recent,
            format!("the kernel {} is too old", self.kernel),
            &format!("boot Linux {major}.{minor} or later (Debian 12 has 6.1)"),
        );
        need(
            self.has_overlay,
            "the kernel has no overlay file system".to_owned(),
            "load it with `modprobe overlay`, or boot a kernel that has CONFIG_OVERLAY_FS",
        );
        for controller in CONTROLLERS {
            need(
                self.controllers.iter().any(|have| have == controller),
                format!("there is no cgroup controller {controller:?}, so limits would not hold"),
                "mount cgroup v2 at /sys/fs/cgroup (systemd does); for memory some kernels also \
                 want cgroup_enable=memory on their command line",
            );
        }
        need(
            self.has_nft,
            "the program nft is missing, which keeps instances apart".to_owned(),
            "apt-get install nftables",
        );
        need(
            self.can_limit_disk,
            "there are no loop devices, so instances could fill the disk".to_owned(),
            "load them with `modprobe loop`, let a container have /dev/loop-control, or put the \
             data directory on an ext4 or XFS with project quotas",
        );
        if let Some(dir) = &self.data_on_overlay {
            found.push(Obstacle::new(
                format!("{} is itself on an overlay file system", dir.display()),
                "choose a directory on a disk with --data-dir, in a container a volume",
            ));
        }
        if let Some(dir) = &self.closed_way {
            found.push(Obstacle::new(
                format!("{} is closed to the users of instances", dir.display()),
                "let others pass there (chmod o+x), or choose another directory with --run-dir; \
                 each instance has users of its own, whose file system is mounted below it",
            ));
        }
        found
    }
}

/// Finds a program as a shell would, the administrator's directories included.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The first two numbers of a kernel's release: `6.1.0-13-amd64` is 6.1.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Asks the kernel for a file system, which also loads its module where there is one.
fn has_file_system(name: &str) -> bool {
    match fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => true,
        Err(rustix::io::Errno::NODEV) => false,
        // Without the right to ask, the list of what is loaded has to do.
        Err(_) => read("/proc/filesystems")
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name)),
    }
}

fn controllers() -> Vec<String> {
    let unified = statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC);
    if unified {
        words(&read("/sys/fs/cgroup/cgroup.controllers"))
    } else {
        let mut all = mounted_controllers(&read("/proc/self/mountinfo"));
        all.extend(words(&read("/sys/fs/cgroup/unified/cgroup.controllers")));
        all
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The controllers of mounted cgroup v1 hierarchies.
fn mounted_controllers(mountinfo: &str) -> Vec<String> {
    let options = |line: &str| {
        let (_, after) = line.split_once(" - ")?;
        let mut fields = after.split(' ');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("cgroup"), _, Some(options)) => Some(options.to_owned()),
            _ => None,
        }
    };
    mountinfo
        .lines()
        .filter_map(options)
        .flat_map(|options| options.split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// The nearest directory of `path` that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."))
}

/// Whether the nearest directory of `path` that exists lies on an overlay.
fn is_on_overlay(path: &Path) -> bool {
    path.ancestors()
        .filter(|dir| !dir.as_os_str().is_empty() && *dir != OsStr::new("."))
        .find_map(|dir| statfs(dir).ok())
        .is_some_and(|fs| fs.f_type as u64 == OVERLAY_MAGIC)
}

/// The nearest directory of `path` that exists and lets only its owner or group pass. What does not
/// exist yet is made so that all may.
fn closed_way(path: &Path) -> Option<PathBuf> {
    let is_closed =
        |dir: &&Path| fs::metadata(dir).is_ok_and(|metadata| metadata.mode() & 0o001 == 0);
    path.ancestors().filter(|dir| !dir.as_os_str().is_empty()).find(is_closed).map(Path::to_owned)
}

/// A file of the kernel; one that is missing reads as empty, which is what it means here.
fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "cannot be read");
        }
        String::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            is_root: true,
            kernel: "6.1.0-13-amd64".to_owned(),
            has_overlay: true,
            has_erofs: true,
            controllers: ["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).into(),
            has_nft: true,
            data_on_overlay: None,
            closed_way: None,
            can_limit_disk: true,
        }
    }

    #[test]
    fn a_good_machine_has_no_obstacles() {
        assert_eq!(good().obstacles(), []);
    }

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        let bad = Facts {
            is_root: false,
            kernel: "4.19.0".to_owned(),
            has_overlay: false,
            has_erofs: false,
            controllers: vec!["cpu".to_owned()],
            has_nft: false,
            data_on_overlay: Some("/data".into()),
            closed_way: Some("/root".into()),
            can_limit_disk: false,
        };
        let found = bad.obstacles();
        for part in [
            "not root",
            "4.19.0 is too old",
            "no overlay",
            "\"memory\"",
            "\"pids\"",
            "nft is missing",
            "/data is itself",
            "/root is closed",
            "no loop devices",
        ] {
            assert!(found.iter().any(|one| one.what.contains(part)), "{part}: {found:#?}");
        }
        assert_eq!(found.len(), 9);
        assert!(found.iter().any(|one| one.remedy == "apt-get install nftables"));
    }

    #[test]
    fn the_way_to_the_run_directory_is_looked_at_as_far_as_it_exists() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let run = dir.path().join("not/there/yet");
        assert_eq!(closed_way(&run), Some(dir.path().to_owned()));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(closed_way(&run), None);
    }

    #[test]
    fn kernel_releases_are_read() {
        for (text, version) in [
            ("6.1.0-13-amd64", Some((6, 1))),
            ("5.19", Some((5, 19))),
            ("6.18.5+", Some((6, 18))),
            ("strange", None),
        ] {
            assert_eq!(kernel_version(text), version);
        }
        let strange = Facts { kernel: "strange".to_owned(), ..good() };
        assert_eq!(strange.obstacles(), [], "what cannot be read is not refused");
    }

    #[test]
    fn controllers_of_version_1_are_found_in_mounts() {
        let mountinfo = "\
30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 24 0:28 / /data rw - ext4 /dev/sda1 rw,memory";
        let found = mounted_controllers(mountinfo);
        assert!(found.contains(&"cpu".to_owned()));
        assert!(!found.contains(&"memory".to_owned()));
    }
}
