//! docker and podman of Debian, each with a storage of its own that goes with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Runs a program of a Debian package to its end.
pub fn run(package: &str, command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| {
        panic!("{:?} does not start ({error}); apt install {package}", command.get_program())
    })
}

/// Runs a command that must succeed, and gives what it wrote.
#[track_caller]
pub fn succeeds(package: &str, command: &mut Command) -> String {
    let output = run(package, command);
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
    /// Starts it in a directory that is not there yet, with one of its storage drivers.
    pub fn start(dir: PathBuf, storage: &str) -> Self {
        fs::create_dir(&dir).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let daemon = Command::new("/usr/sbin/dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .arg(format!("--storage-driver={storage}"))
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
        while !run("docker.io", &mut docker.command(&["version"])).status.success() {
            let log = || fs::read_to_string(docker.dir.join("log")).unwrap();
            let ended = docker.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd ended: {}", log());
            assert!(Instant::now() < deadline, "dockerd does not answer: {}", log());
        }
        docker
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/docker");
        command
            .arg("--config")
            .arg(self.dir.join("config"))
            .arg(format!("--host=unix://{}", self.dir.join("sock").display()))
            .args(args)
            .env_remove("DOCKER_HOST");
        command
    }

    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        succeeds("docker.io", &mut self.command(args))
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
pub struct Podman {
    dir: PathBuf,
    storage: &'static str,
}

impl Podman {
    /// In a directory that is not there yet, with one of its storage drivers.
    pub fn new(dir: PathBuf, storage: &'static str) -> Self {
        fs::create_dir(&dir).unwrap();
        // podman refuses to pull with a file that is not there.
        fs::write(dir.join("auth.json"), "{}").unwrap();
        Self { dir, storage }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.dir.join(name));
        }
        command
            .args(["--storage-driver", self.storage, "--cgroup-manager", "cgroupfs"])
            .args(args)
            .env("REGISTRY_AUTH_FILE", self.dir.join("auth.json"))
            .env("CONTAINERS_REGISTRIES_CONF", "/dev/null");
        command
    }

    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        succeeds("podman", &mut self.command(args))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        unmount_below(&self.dir);
    }
}

/// Unmounts what a client left below a directory, so that the directory can be removed.
pub fn unmount_below(dir: &Path) {
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
