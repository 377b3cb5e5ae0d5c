//! Debian's docker-registry, unpacked and not installed: its package would start one on a port that
//! everybody can reach.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use longshore_e2e::eventually;
use longshore_e2e::process::memory_field;

use super::client::{Client, Place};
use crate::command::{output, program, run, target_dir};

/// A running docker-registry.
pub struct Peer {
    program: PathBuf,
    dir: PathBuf,
    child: Child,
    /// Where it listens.
    pub place: Place,
    /// The most memory that one of its runs took, in KiB.
    peak: u64,
}

/// Gets the program, unless it is there. To be called where the network is.
pub fn fetch() -> Result<PathBuf> {
    let dir = target_dir().join("docker-registry");
    let program_path = dir.join("usr/bin/docker-registry");
    if program_path.exists() {
        return Ok(program_path);
    }
    let partial = dir.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    let mut download = program("apt-get", ["-q", "-o", "APT::Sandbox::User=root", "download"]);
    run(download.arg("docker-registry").current_dir(&partial))?;
    let mut archives = fs::read_dir(&partial)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archives.next().context("apt downloaded no docker-registry")?;
    run(program("dpkg-deb", ["-x"]).arg(archive).arg(&partial))?;
    fs::rename(&partial, &dir)?;
    Ok(program_path)
}

impl Peer {
    /// Starts one with its state below `parent`.
    pub fn start(parent: &Path) -> Result<Self> {
        let program = fetch()?;
        let dir = parent.join("docker-registry");
        fs::create_dir(&dir)?;
        // Free a moment ago, in a network namespace that nobody else is in.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let place = Place { address: port, token: None };
        let child = spawn(&program, &dir, &place)?;
        Ok(Self { program, dir, child, place, peak: 0 })
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What it is.
    pub fn label(&self) -> String {
        let version = output(Command::new(&self.program).arg("--version")).unwrap_or_default();
        let version = version.split_whitespace().last().unwrap_or_default().to_owned();
        format!("docker-registry {version}")
    }

    /// Begins anew with nothing: its deletions give no room back.
    pub fn empty(&mut self) -> Result<()> {
        self.stop()?;
        fs::remove_dir_all(&self.dir)?;
        fs::create_dir(&self.dir)?;
        self.child = spawn(&self.program, &self.dir, &self.place)?;
        Ok(())
    }

    /// The most memory that it took, in KiB.
    pub fn peak(&mut self) -> Result<u64> {
        let now = memory_field(self.pid(), "status", "VmHWM:")?;
        self.peak = self.peak.max(now);
        Ok(self.peak)
    }

    fn stop(&mut self) -> Result<()> {
        self.peak()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It is gone with the namespaces of the bench at the latest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As its package configures it, but without logins, whose passwords it hashes at each request, and
/// without a log of each request: both are to its advantage.
fn spawn(binary: &Path, dir: &Path, place: &Place) -> Result<Child> {
    let config = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  cache:\n    \
         blobdescriptor: inmemory\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
         http:\n  addr: {}\n",
        dir.join("data").display(),
        place.address
    );
    let file = dir.join("config.yml");
    fs::write(&file, config)?;
    let log = File::create(dir.join("log"))?;
    let mut child = Command::new(binary)
        .arg("serve")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot run docker-registry")?;
    eventually("docker-registry answers", || {
        if let Some(status) = child.try_wait()? {
            bail!("docker-registry ended: {status}: {}", fs::read_to_string(dir.join("log"))?);
        }
        Ok(Client::connect(place).is_ok_and(|mut client| client.is_answered()).then_some(()))
    })?;
    Ok(child)
}
