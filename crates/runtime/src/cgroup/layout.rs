//! Where the hierarchies are mounted, and the differences between v1 and v2 in making directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The place where every distribution mounts cgroups, and the only one that libcontainer knows.
const MOUNT_ROOT: &str = "/sys/fs/cgroup";
/// The controllers without which limits cannot hold.
const REQUIRED: [&str; 3] = ["cpu", "memory", "pids"];

/// The leaf to which processes move that are in the way of handing down controllers.
const SERVICES: &str = "longshore-services";
/// How long processes may go on appearing in the cgroup that they are moved out of.
const MOVE_DEADLINE: Duration = Duration::from_secs(5);

/// What kind of hierarchy a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupKind {
    /// One unified hierarchy.
    V2,
    /// A hierarchy per controller, on some machines with a v2 hierarchy without controllers beside.
    V1,
}

/// Why limits cannot be set on this machine, or were not set.
#[derive(Debug, thiserror::Error)]
pub enum CgroupProblem {
    /// The list of mounts could not be read.
    #[error("reading /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// No cgroup file system is mounted.
    #[error(
        "no cgroup file system is mounted on {MOUNT_ROOT}: mount one with \
         'mount -t cgroup2 none {MOUNT_ROOT}', or boot with systemd"
    )]
    NotMounted,
    /// Controllers are missing.
    #[error(
        "the cgroup controllers {} are missing on this machine ({}): enable them in the kernel or, \
         for memory on some boards, boot with 'cgroup_enable=memory'",
        missing.join(", "),
        if *kind == CgroupKind::V2 { "cgroup v2" } else { "cgroup v1" }
    )]
    ControllersMissing {
        /// Their names.
        missing: Vec<&'static str>,
        /// The kind of hierarchy.
        kind: CgroupKind,
    },
    /// Controllers cannot be handed down.
    #[error(
        "the controllers cannot be handed down from {}: when this runs under systemd the unit needs \
         Delegate=yes",
        path.display()
    )]
    NotDelegated {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory could not be made.
    #[error("making the cgroup {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file or cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit could not be set.
    #[error("writing {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes did not end.
    #[error("processes in the cgroup {} did not end in 20 seconds after SIGKILL", path.display())]
    StillBusy {
        /// The cgroup.
        path: PathBuf,
    },
    /// A directory could not be removed.
    #[error("removing the cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The mount points of the v1 hierarchies.
#[derive(Debug, Clone)]
pub(super) struct V1 {
    pub memory: PathBuf,
    pub cpu: PathBuf,
    pub pids: PathBuf,
    pub devices: PathBuf,
    pub cpuacct: Option<PathBuf>,
    /// Those into which a process can be put without setting anything up first.
    pub plain: Vec<PathBuf>,
    /// All of them, those that runtimes attach to without our asking included: named hierarchies,
    /// and a v2 one beside.
    pub every: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub(super) enum Layout {
    V2 { mount: PathBuf },
    V1(V1),
}

impl Layout {
    pub fn probe() -> Result<Self, CgroupProblem> {
        let text = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupProblem::Mounts)?;
        Self::from_mounts(&text)
    }

    /// Reads the layout out of `/proc/self/mountinfo`.
    fn from_mounts(mountinfo: &str) -> Result<Self, CgroupProblem> {
        let (mut v1_mounts, mut others) = (Vec::new(), Vec::new());
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut right = right.split(' ');
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            match right.next() {
                Some("cgroup2") if mount == Path::new(MOUNT_ROOT) => {
                    return Ok(Self::V2 { mount });
                }
                Some("cgroup2") => others.push(mount),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or("").to_owned();
                    // A named hierarchy, such as systemd's, has no controller.
                    if options.contains("name=") {
                        others.push(mount);
                    } else {
                        v1_mounts.push((mount, options));
                    }
                }
                _ => {}
            }
        }
        if v1_mounts.is_empty() {
            Err(CgroupProblem::NotMounted)
        } else {
            Self::v1(v1_mounts, others)
        }
    }

    fn v1(mounts: Vec<(PathBuf, String)>, others: Vec<PathBuf>) -> Result<Self, CgroupProblem> {
        let has = |options: &str, controller: &str| options.split(',').any(|o| o == controller);
        let find = |controller: &str| {
            let found = mounts.iter().find(|(_, options)| has(options, controller));
            found.map(|(mount, _)| mount.clone())
        };
        match (find("memory"), find("cpu"), find("pids"), find("devices")) {
            (Some(memory), Some(cpu), Some(pids), Some(devices)) => {
                let cpuacct = find("cpuacct");
                // A new cpuset has no processor until it is given some.
                let plain = mounts.iter().filter(|(_, options)| !has(options, "cpuset"));
                let plain = plain.map(|(mount, _)| mount.clone()).collect();
                let every = mounts.into_iter().map(|(mount, _)| mount).chain(others).collect();
                Ok(Self::V1(V1 { memory, cpu, pids, devices, cpuacct, plain, every }))
            }
            _ => {
                let wanted = REQUIRED.into_iter().chain(["devices"]);
                let missing = wanted.filter(|name| find(name).is_none()).collect();
                Err(CgroupProblem::ControllersMissing { missing, kind: CgroupKind::V1 })
            }
        }
    }

    pub fn kind(&self) -> CgroupKind {
        match self {
            Self::V2 { .. } => CgroupKind::V2,
            Self::V1(_) => CgroupKind::V1,
        }
    }

    pub fn pids(&self) -> &Path {
        match self {
            Self::V2 { mount } => mount,
            Self::V1(v1) => &v1.pids,
        }
    }

    pub fn devices(&self) -> &Path {
        match self {
            Self::V2 { mount } => mount,
            Self::V1(v1) => &v1.devices,
        }
    }

    /// `path` in every hierarchy.
    pub fn every_directory(&self, path: &Path) -> Vec<PathBuf> {
        match self {
            Self::V2 { mount } => vec![mount.join(path)],
            Self::V1(v1) => v1.every.iter().map(|mount| mount.join(path)).collect(),
        }
    }

    /// `path` in the hierarchies that a process of a container belongs in.
    pub fn plain_directories(&self, path: &Path) -> Vec<PathBuf> {
        match self {
            Self::V2 { mount } => vec![mount.join(path)],
            Self::V1(v1) => v1.plain.iter().map(|mount| mount.join(path)).collect(),
        }
    }

    /// `path` in the hierarchies whose limits we set.
    pub fn limiting_directories(&self, path: &Path) -> Vec<PathBuf> {
        match self {
            Self::V2 { mount } => vec![mount.join(path)],
            Self::V1(v1) => {
                let mut dirs: Vec<_> = [&v1.memory, &v1.cpu, &v1.pids].map(|m| m.join(path)).into();
                dirs.dedup();
                dirs
            }
        }
    }

    /// Makes the cgroup of the agent.
    pub fn ensure_root(&self, root: &Path) -> Result<(), CgroupProblem> {
        match self {
            Self::V1(_) => self.limiting_directories(root).iter().try_for_each(|dir| make(dir)),
            Self::V2 { mount } => {
                let available = read(&mount.join("cgroup.controllers"))?;
                let missing: Vec<_> = REQUIRED
                    .into_iter()
                    .filter(|name| !available.split_whitespace().any(|known| known == *name))
                    .collect();
                if !missing.is_empty() {
                    return Err(CgroupProblem::ControllersMissing {
                        missing,
                        kind: CgroupKind::V2,
                    });
                }
                let mut dir = mount.clone();
                for component in root.components() {
                    hand_down(&dir)?;
                    dir.push(component);
                    make(&dir)?;
                }
                hand_down(&dir)
            }
        }
    }

    /// Makes the cgroup of an instance and those below it that hold processes.
    pub fn create(&self, instance: &Path, leaves: &[&Path]) -> Result<(), CgroupProblem> {
        if let Self::V2 { mount } = self {
            make(&mount.join(instance))?;
            hand_down(&mount.join(instance))?;
        }
        for leaf in leaves {
            self.limiting_directories(leaf).iter().try_for_each(|dir| make(dir))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, CgroupProblem> {
    fs::read_to_string(path).map_err(|source| CgroupProblem::Read { path: path.to_owned(), source })
}

/// Makes a cgroup, and those above it, unless it is there.
pub(super) fn make(dir: &Path) -> Result<(), CgroupProblem> {
    fs::create_dir_all(dir).map_err(|source| CgroupProblem::Create { path: dir.to_owned(), source })
}

/// Lets the children of a v2 cgroup have the controllers. The kernel refuses this while the cgroup
/// itself holds processes, save at the very top. When we are one of them, as in a delegated unit or
/// a container, they move to a leaf of their own and it is tried again.
fn hand_down(dir: &Path) -> Result<(), CgroupProblem> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = read(&file)?;
    let wanted: Vec<String> = REQUIRED
        .iter()
        .filter(|name| !enabled.split_whitespace().any(|known| known == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let wanted = wanted.join(" ");
    let deadline = Instant::now() + MOVE_DEADLINE;
    loop {
        let Err(error) = fs::write(&file, &wanted) else { return Ok(()) };
        let is_ours = error.kind() == io::ErrorKind::ResourceBusy
            && (holds_us(dir)? || holds_us(&dir.join(SERVICES))?);
        if !is_ours || Instant::now() > deadline {
            return Err(CgroupProblem::NotDelegated { path: dir.to_owned(), source: error });
        }
        // Again when a process was started here meanwhile, or another of us moved this one.
        move_out_of_the_way(dir)?;
    }
}

fn holds_us(dir: &Path) -> Result<bool, CgroupProblem> {
    let own = std::process::id().to_string();
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().any(|line| line == own)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CgroupProblem::Read { path: dir.to_owned(), source }),
    }
}

fn move_out_of_the_way(dir: &Path) -> Result<(), CgroupProblem> {
    let leaf = dir.join(SERVICES);
    make(&leaf)?;
    let file = leaf.join("cgroup.procs");
    for pid in read(&dir.join("cgroup.procs"))?.lines() {
        match fs::write(&file, pid) {
            // It ended since it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other.map_err(|source| CgroupProblem::Write {
                path: file.clone(),
                value: pid.to_owned(),
                source,
            })?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
35 30 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
36 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn a_hybrid_machine_is_v1() {
        let Layout::V1(v1) = Layout::from_mounts(HYBRID).unwrap() else { panic!("not v1") };
        assert_eq!(v1.cpu, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(v1.cpuacct.as_deref(), Some(v1.cpu.as_path()));
        assert_eq!((v1.plain.len(), v1.every.len()), (4, 6));
    }

    #[test]
    fn a_unified_machine_is_v2() {
        let line = "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(Layout::from_mounts(line).unwrap().kind(), CgroupKind::V2);
    }

    #[test]
    fn what_is_missing_is_named() {
        let without: Vec<&str> = HYBRID.lines().filter(|line| !line.contains("/pids")).collect();
        let problem = Layout::from_mounts(&without.join("\n")).unwrap_err().to_string();
        assert!(problem.starts_with("the cgroup controllers pids are missing"), "{problem}");
        assert!(matches!(Layout::from_mounts(""), Err(CgroupProblem::NotMounted)));
    }
}
