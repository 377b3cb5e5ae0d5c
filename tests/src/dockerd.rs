//! A docker daemon with its own state, for Debian's docker client.
//!
//! Debian's daemon and client are called by their full paths: a machine may have another docker
//! earlier in its PATH, and it is Debian's that the project promises to work with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Process, signal};
use crate::wait::eventually;

const DAEMON: &str = "/usr/sbin/dockerd";
const CLIENT: &str = "/usr/bin/docker";

/// How much of the machine's network the daemon takes charge of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firewall {
    /// Nothing: enough to build, push and pull.
    Untouched,
    /// Everything as it likes, its usual bridge included: for a network namespace of its own.
    Default,
    /// Its rules, FORWARD with the policy DROP among them, as on a machine that runs docker. The
    /// bridge that it shall use is named; the caller made it.
    Docker {
        /// The name of the bridge.
        bridge: &'static str,
    },
}

/// A running docker daemon. Dropping it ends it with all that it started.
pub struct Dockerd {
    dir: PathBuf,
    daemon: Child,
    _temporary: Option<TempDir>,
}

impl Dockerd {
    /// Starts one in a directory that goes with it.
    pub fn start(firewall: Firewall) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("lsd-").tempdir()?;
        let mut daemon = Self::start_in(temporary.path(), firewall)?;
        daemon._temporary = Some(temporary);
        Ok(daemon)
    }

    /// Starts one with its state in `dir` and waits until it answers.
    pub fn start_in(dir: &Path, firewall: Firewall) -> Result<Self> {
        let log = File::create(dir.join("dockerd.log"))?;
        let mut command = Command::new(DAEMON);
        command
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .arg("--host")
            .arg(host_of(dir))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        match firewall {
            Firewall::Untouched => command.args(["--bridge=none", "--iptables=false"]),
            Firewall::Default => &mut command,
            Firewall::Docker { bridge } => command.arg(format!("--bridge={bridge}")),
        };
        let daemon = command
            .spawn()
            .with_context(|| format!("cannot run {DAEMON}; install the package docker.io"))?;
        let mut dockerd = Self { dir: dir.to_owned(), daemon, _temporary: None };
        eventually("dockerd answers", || {
            if let Some(status) = dockerd.daemon.try_wait()? {
                let log = fs::read_to_string(dockerd.dir.join("dockerd.log"))?;
                bail!("dockerd ended: {status}\n{log}");
            }
            let answers = dockerd.output(&["version"])?.status.success();
            Ok(answers.then_some(()))
        })?;
        Ok(dockerd)
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.daemon.id().cast_signed()
    }

    /// The address of its socket, as clients name it.
    pub fn host(&self) -> String {
        host_of(&self.dir)
    }

    /// Debian's client, speaking to this daemon, with its configuration in the daemon's directory.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CLIENT);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &self.dir)
            .env("DOCKER_HOST", self.host())
            .stdin(Stdio::null());
        command
    }

    /// Runs the client to its end; a failure has all that it wrote.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("docker {}: {}\n{stdout}\n{stderr}", arguments.join(" "), output.status);
    }

    fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.client(arguments)
            .output()
            .with_context(|| format!("cannot run {CLIENT}; install the package docker.io"))
    }
}

/// Where every daemon of the machine looks whom to trust, by the host and port of the registry.
const TRUSTED: &str = "/etc/docker/certs.d";

/// A registry that daemons of this machine trust, for as long as this is there.
pub struct Trusted {
    dir: PathBuf,
    /// Those above it that were made for it.
    made: Vec<PathBuf>,
}

impl Trusted {
    /// The registry at `host:port`, by a file of certificates. The host should be one that no other test has.
    pub fn registry(authority: &str, ca: &Path) -> Result<Self> {
        let dir = Path::new(TRUSTED).join(authority);
        let missing = dir.ancestors().skip(1).take_while(|dir| !dir.exists());
        let trusted = Self { made: missing.map(Path::to_owned).collect(), dir };
        fs::create_dir_all(&trusted.dir)?;
        fs::copy(ca, trusted.dir.join("ca.crt"))?;
        Ok(trusted)
    }
}

impl Drop for Trusted {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        // One that another test has come to use stays.
        for dir in &self.made {
            let _ = fs::remove_dir(dir);
        }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // Errors are not raised from here: what is left shows in the leak checks of the platforms.
        let _ = signal(self.pid(), Signal::TERM);
        let ended = eventually("dockerd ends", || Ok(self.daemon.try_wait()?));
        if ended.is_err() {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
        let dir = self.dir.display().to_string();
        for process in Process::all().unwrap_or_default() {
            if process.mentions(&dir) {
                let _ = process.kill();
            }
        }
        for mount in mounts_below(&dir) {
            let _ = Command::new("umount").args(["--lazy", &mount]).status();
        }
    }
}

fn host_of(dir: &Path) -> String {
    format!("unix://{}", dir.join("docker.sock").display())
}

/// Mount points below `dir`, the innermost first.
fn mounts_below(dir: &str) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with(dir) && point.len() > dir.len())
        .map(str::to_owned)
        .collect();
    points.reverse();
    points
}
