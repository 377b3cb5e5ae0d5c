//! docker and podman of Debian with overlayfs below them, each with a storage of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Runs a program of a Debian package to its end.
#[track_caller]
pub fn succeeds(package: &str, command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| {
        panic!("{:?} does not start ({error}); apt install {package}", command.get_program())
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A docker daemon of this test alone.
pub struct Docker {
    dir: PathBuf,
    daemon: Child,
}

impl Docker {
    pub fn start(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let daemon = Command::new("/usr/sbin/dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .arg("--storage-driver=overlay2")
            .arg(format!("--host=unix://{}", dir.join("sock").display()))
            .arg(format!("--data-root={}", dir.join("data").display()))
            .arg(format!("--exec-root={}", dir.join("exec").display()))
            .arg(format!("--pidfile={}", dir.join("pid").display()))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("dockerd: {error}; apt install docker.io"));
        let mut docker = Self { dir, daemon };
        let deadline = Instant::now() + Duration::from_secs(60);
        let answers = |docker: &Self| {
            let version = docker.command(&["version"]).stdin(Stdio::null()).output();
            version.is_ok_and(|output| output.status.success())
        };
        while !answers(&docker) {
            let log = || fs::read_to_string(docker.dir.join("log")).unwrap();
            let ended = docker.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd ended: {}", log());
            assert!(Instant::now() < deadline, "dockerd does not answer: {}", log());
        }
        docker
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/docker");
        command
            .arg("--config")
            .arg(self.dir.join("config"))
            .arg(format!("--host=unix://{}", self.dir.join("sock").display()))
            .args(args)
            .env_remove("DOCKER_HOST");
        command
    }

    /// Pulls an image and gives the directories of its layers, lowest first.
    pub fn pull(&self, registry: &str, token: &str, image: &str) -> Vec<PathBuf> {
        let login = ["login", "-u", "me", "-p", token, registry];
        succeeds("docker.io", &mut self.command(&login));
        succeeds("docker.io", &mut self.command(&["pull", "--quiet", image]));
        let inspect = ["image", "inspect", "--format", "{{json .GraphDriver.Data}}", image];
        let data = succeeds("docker.io", &mut self.command(&inspect));
        let data: Value = serde_json::from_str(&data).unwrap();
        let upper = data["UpperDir"].as_str().unwrap();
        let lower = data["LowerDir"].as_str().unwrap_or_default();
        let from_the_top = std::iter::once(upper).chain(lower.split(':'));
        let mut layers: Vec<PathBuf> =
            from_the_top.filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        layers.reverse();
        layers
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.daemon);
        // It ends its own containerd when it is asked to end.
        if kill_process(pid, Signal::TERM).is_ok() {
            let _ = self.daemon.wait();
        }
        unmount_below(&self.dir);
    }
}

/// podman with its own storage.
pub struct Podman(PathBuf);

impl Podman {
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.0.join(name));
        }
        command
            .args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"])
            .args(args)
            .env("CONTAINERS_REGISTRIES_CONF", "/dev/null");
        command
    }

    /// Pulls an image and mounts it.
    pub fn pull_and_mount(&self, token: &str, image: &str) -> PathBuf {
        let creds = format!("me:{token}");
        let pull = ["pull", "--quiet", "--tls-verify=false", "--creds", &creds, image];
        succeeds("podman", &mut self.command(&pull));
        PathBuf::from(succeeds("podman", &mut self.command(&["image", "mount", image])))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        unmount_below(&self.0);
    }
}

/// Unmounts what a client left below a directory, so that the directory can be removed.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut points: Vec<_> = points.filter(|point| Path::new(point).starts_with(dir)).collect();
    points.reverse();
    for point in points {
        let detached = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        if let Err(error) = detached {
            eprintln!("cannot unmount {point}: {error}");
        }
    }
}
