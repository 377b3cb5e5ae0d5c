//! What is measured side by side: each pulls an image into a fresh file system, and shows the tree that it has
//! then. Each is called as its users call it, its daemon running before the time begins, and with the programs that
//! decompress for it where there are any.

pub mod containerd;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use longshore_e2e::Dockerd;
use longshore_e2e::dockerd::Firewall;
use longshore_e2e::image::checked;
use longshore_e2e::process::memory_field;
use longshore_image::{ImageStore, Limits};
use serde::Deserialize;

use self::containerd::{Containerd, Way};
use super::usage::Group;
use crate::command::{output, program, release_binary};

/// Where images are pulled from.
pub struct Origin {
    /// Its host and port.
    pub authority: String,
    /// None where nobody is asked who they are.
    pub token: Option<String>,
}

impl Origin {
    /// For skopeo and those that take what it takes.
    pub fn credentials(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("anyone:{token}"))
    }
}

/// A way to have images on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Puller {
    /// Ours, mounted as EROFS.
    Longshore,
    /// Ours, unpacked file by file for kernels without EROFS.
    LongshoreDirectories,
    /// Debian 12's, with unpigz.
    Docker,
    /// Debian 12's, or that of the newest Debian, which lies in a root of its own.
    Podman(Option<PathBuf>),
    /// Likewise; with unpigz, the newest one with igzip.
    Containerd(Option<PathBuf>, Way),
}

/// What a pull took.
#[derive(Debug)]
pub struct Took {
    /// From the call to its end.
    pub returned: Duration,
    /// The most memory that one of its processes took, in KiB.
    pub peak: u64,
    /// What it said in the end, in one line.
    pub said: String,
}

impl Puller {
    /// Whether it is ours.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Longshore | Self::LongshoreDirectories)
    }

    /// What it is, with its version.
    pub fn label(&self) -> String {
        let number = |command: &mut Command, idx: usize| {
            let text = output(command).unwrap_or_default();
            let version = text.split([' ', ',', '\n']).nth(idx).unwrap_or("?");
            // Without what Debian or its build says of itself.
            version.split(['+', '~']).next().unwrap_or_default().to_owned()
        };
        match self {
            Self::Longshore => format!("longshore {}", env!("CARGO_PKG_VERSION")),
            Self::LongshoreDirectories => {
                format!("longshore {}, directories", env!("CARGO_PKG_VERSION"))
            }
            Self::Docker => {
                let mut version = program("/usr/sbin/dockerd", ["--version"]);
                format!("docker {} with unpigz, overlay2", number(&mut version, 2))
            }
            Self::Podman(root) => {
                // It looks at its own process. What cannot be mounted is told when it pulls.
                let _seen = root.as_deref().map(|root| Seen::mount(root, Path::new("/proc")));
                let mut version = in_root(root.as_deref(), "/usr/bin/podman", None);
                format!("podman {}, overlay", number(version.arg("--version"), 2))
            }
            Self::Containerd(root, way) => {
                let mut version = in_root(root.as_deref(), "/usr/bin/containerd", None);
                let with = if root.is_some() { "igzip" } else { "unpigz" };
                let number = number(version.arg("--version"), 2);
                format!("containerd {number} with {with}, {}", way.name())
            }
        }
    }

    /// Whether it is the same program, only told to do otherwise.
    pub fn is_same_program(&self, other: &Self) -> bool {
        matches!(
            (self, other),
            (Self::Containerd(one, _), Self::Containerd(two, _)) if one == two
        )
    }

    /// Where it has a root of its own.
    fn root(&self) -> Option<&Path> {
        match self {
            Self::Podman(root) | Self::Containerd(root, _) => root.as_deref(),
            _ => None,
        }
    }

    /// Gets ready on a file system.
    pub fn begin(&self, disk: &Path, origin: &Origin, group: Group) -> Result<Session> {
        let seen = self.root().map(|root| Seen::mount(root, disk)).transpose()?;
        let (disk, puller) = (disk.to_owned(), self.clone());
        let mut session = Session { disk, puller, daemon: Daemon::None, seen, group };
        session.daemon = match self {
            Self::Docker => {
                let dir = session.disk.join("docker");
                fs::create_dir(&dir)?;
                let daemon = Dockerd::start_in(&dir, Firewall::Untouched)?;
                if let Some(token) = &origin.token {
                    let login = ["login", "--username", "anyone", "--password", token];
                    daemon.docker(&[&login[..], &[&origin.authority]].concat())?;
                }
                session.group.take_all(&session.disk.display().to_string())?;
                Daemon::Docker(daemon)
            }
            Self::Containerd(_, way) => Daemon::Containerd(Containerd::start(&session, *way)?),
            _ => Daemon::None,
        };
        Ok(session)
    }
}

/// A program of this machine, or of the newest Debian's in a root of its own; inside of a group, if any.
fn in_root(root: Option<&Path>, path: &str, group: Option<&Group>) -> Command {
    let first = if root.is_some() { "chroot" } else { path };
    let mut command = match group {
        Some(group) => group.command(first),
        None => Command::new(first),
    };
    if let Some(root) = root {
        command.arg(root).arg(path);
    }
    command
}

/// What a program in a root of its own sees beside that root: the kernel's file systems, and the disk at its usual
/// path, or whatever else is to be seen.
struct Seen {
    points: Vec<PathBuf>,
    disk: PathBuf,
}

impl Seen {
    fn mount(root: &Path, disk: &Path) -> Result<Self> {
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let mut seen = Self { points: Vec::new(), disk: inside(disk) };
        for path in [Path::new("/proc"), Path::new("/sys"), Path::new("/dev"), disk] {
            let point = inside(path);
            fs::create_dir_all(&point)?;
            checked(program("mount", ["--rbind"]).arg(path).arg(&point))?;
            seen.points.push(point);
        }
        Ok(seen)
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        // With the mounts that were made in it; what stays goes with the namespace of the bench.
        for point in self.points.iter().rev() {
            let _ = checked(program("umount", ["--recursive", "--lazy"]).arg(point));
        }
        let _ = fs::remove_dir(&self.disk);
    }
}

/// A puller that is ready.
pub struct Session {
    disk: PathBuf,
    puller: Puller,
    daemon: Daemon,
    seen: Option<Seen>,
    /// Of all its processes. After the daemon, so that it is empty when it goes.
    pub group: Group,
}

enum Daemon {
    None,
    Docker(Dockerd),
    Containerd(Containerd),
}

impl Session {
    /// Pulls an image, once.
    pub fn pull(&self, origin: &Origin, image: &str) -> Result<Took> {
        let reference = format!("{}/{image}", origin.authority);
        let with_credentials = |mut command: Command, flag: &str| {
            if let Some(credentials) = origin.credentials() {
                command.args([flag, &credentials]);
            }
            command.arg(&reference);
            command
        };
        let mut command = match &self.puller {
            Puller::Longshore | Puller::LongshoreDirectories => {
                let mut command = self.group.command(release_binary());
                command.args(["image", "pull", &reference, "--into"]).arg(self.images());
                // No platform is there to be asked: the image says where it is.
                command.args(["--api", "http://127.0.0.1:1", "--token"]);
                command.arg(origin.token.as_deref().unwrap_or("none"));
                if self.puller == Puller::LongshoreDirectories {
                    command.arg("--directories");
                }
                command
            }
            Puller::Docker => {
                let Daemon::Docker(daemon) = &self.daemon else { bail!("it has a daemon") };
                daemon.client(&["pull", "--quiet", &reference])
            }
            Puller::Podman(_) => {
                let mut command = self.podman();
                command.args(["pull", "--quiet", "--tls-verify=false"]);
                with_credentials(command, "--creds")
            }
            Puller::Containerd(_, way) => {
                let mut command = self.ctr();
                command.args(["images", "pull", "--plain-http"]);
                command.args(["--snapshotter", way.snapshotter()]);
                with_credentials(command, "--user")
            }
        };
        let mut took = watch(&mut command)?;
        if let Some(pid) = self.daemon.pid() {
            took.peak = took.peak.max(memory_field(pid, "status", "VmHWM:")?);
        }
        Ok(took)
    }

    /// Shows the tree of an image that was pulled, mounted below the file system.
    pub fn tree(&self, origin: &Origin, image: &str, digest: &str) -> Result<PathBuf> {
        let reference = format!("{}/{image}", origin.authority);
        let target = self.disk.join("tree");
        fs::create_dir(&target)?;
        match &self.puller {
            Puller::Longshore | Puller::LongshoreDirectories => {
                let store = ImageStore::open(&self.images(), Limits::default())?;
                let image =
                    store.image(&digest.parse()?).context("the image is not in the store")?;
                image.mount(&self.disk.join("above"), &target, None)?;
            }
            Puller::Docker => {
                let Daemon::Docker(daemon) = &self.daemon else { bail!("it has a daemon") };
                let format = ["image", "inspect", "--format", "{{json .GraphDriver.Data}}"];
                let data = daemon.docker(&[&format[..], &[&reference]].concat())?;
                mount_layers(&serde_json::from_str(&data)?, &target)?;
            }
            Puller::Podman(_) => {
                let mounted = output(self.podman().args(["image", "mount", &reference]))?;
                return Ok(self.seen_from_here(Path::new(mounted.trim())));
            }
            Puller::Containerd(_, way) => {
                way.check(&self.disk.join("root"))?;
                let mount = ["images", "mount", "--snapshotter", way.snapshotter(), &reference];
                checked(self.ctr().args(mount).arg(&target))?;
                return Ok(self.seen_from_here(&target));
            }
        }
        Ok(target)
    }

    fn images(&self) -> PathBuf {
        self.disk.join("images")
    }

    /// Where a mount is that a program in a root of its own made.
    fn seen_from_here(&self, path: &Path) -> PathBuf {
        match (&self.seen, path.strip_prefix(&self.disk)) {
            (Some(seen), Ok(below)) => seen.disk.join(below),
            _ => path.to_owned(),
        }
    }

    fn podman(&self) -> Command {
        let mut command = in_root(self.puller.root(), "/usr/bin/podman", Some(&self.group));
        for option in ["--root", "--runroot", "--tmpdir"] {
            command.arg(option).arg(self.disk.join(option.trim_start_matches('-')));
        }
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        command.args(["--storage-driver", "overlay"]);
        command
    }

    fn ctr(&self) -> Command {
        let mut command = in_root(self.puller.root(), "/usr/bin/ctr", Some(&self.group));
        command.arg("--address").arg(self.disk.join("containerd.sock"));
        command
    }
}

/// Where docker has the layers of an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Layers {
    upper_dir: PathBuf,
    lower_dir: Option<String>,
}

fn mount_layers(layers: &Layers, target: &Path) -> Result<()> {
    let upper = layers.upper_dir.display();
    let mut mount = match &layers.lower_dir {
        Some(lower) => {
            let option = format!("ro,lowerdir={upper}:{lower}");
            program("mount", ["-t", "overlay", "-o", &option, "overlay"])
        }
        None => program("mount", ["--bind", &upper.to_string()]),
    };
    checked(mount.arg(target))
}

impl Daemon {
    fn pid(&self) -> Option<i32> {
        match self {
            Self::None => None,
            Self::Docker(daemon) => Some(daemon.pid()),
            Self::Containerd(daemon) => Some(daemon.child.id().cast_signed()),
        }
    }
}

/// Runs a command to its end and looks at its memory meanwhile.
pub fn watch(command: &mut Command) -> Result<Took> {
    const LOOK: Duration = Duration::from_millis(5);
    let log = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let began = Instant::now();
    let mut child = command.spawn().context("cannot run a puller")?;
    let pid = child.id().cast_signed();
    let mut peak = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // It may have ended since.
        peak = peak.max(memory_field(pid, "status", "VmHWM:").unwrap_or(0));
        std::thread::sleep(LOOK);
    };
    let returned = began.elapsed();
    let said = said(log)?;
    ensure!(status.success(), "{status}: {said}");
    Ok(Took { returned, peak, said })
}

/// What a program wrote to a file, its last lines.
fn said(mut log: File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut text = String::new();
    log.rewind()?;
    log.read_to_string(&mut text)?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(3)..].join(" / "))
}
