//! What is measured side by side: each starts the same image and publishes it on 127.0.0.1.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use longshore_e2e::image::{BUSYBOX_PORT, Layout, checked};
use longshore_e2e::{Dockerd, Platform};
use serde_json::{Value, json};

use super::first_answer::{AskFrom, time_to_first_answer};
use crate::command::{output, program};

/// The name of the image, everywhere.
pub const IMAGE: &str = "default/bench:1";

/// One way to start a container.
pub trait Contender {
    /// What it is, with its version.
    fn label(&self) -> String;
    /// Starts a container and waits for its first answer; `round` makes names and ports unique.
    fn start(&mut self, round: u16) -> Result<Duration>;
    /// Removes it, so that every round begins alike.
    fn remove(&mut self, round: u16) -> Result<()>;
}

fn name(round: u16) -> String {
    format!("bench-{round}")
}

/// The least that an app of the image takes. As the first process of a container, busybox takes no
/// notice of being asked to end, so it is given no time for that.
pub fn manifest(app: &str) -> Value {
    json!({
        "app": app,
        "image": IMAGE,
        "port": BUSYBOX_PORT,
        "process": {"stop_grace": "100ms"},
    })
}

fn published(first: u16, round: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, first + round).into()
}

/// Longshore, from the call of its API to an answer through its ingress.
pub struct Longshore<'a> {
    /// The platform, with the image in its registry.
    pub platform: &'a Platform,
    /// For each stage of the starts so far, its name and times in milliseconds.
    pub stages: Vec<(String, Vec<f64>)>,
}

impl Longshore<'_> {
    fn keep_stages(&mut self, app: &str) -> Result<()> {
        for stage in self.platform.instances(app)?.into_iter().flat_map(|one| one.observed.stages) {
            let millis = Duration::from_micros(stage.micros).as_secs_f64() * 1000.0;
            match self.stages.iter_mut().find(|(name, _)| *name == stage.name) {
                Some((_, times)) => times.push(millis),
                None => self.stages.push((stage.name, vec![millis])),
            }
        }
        Ok(())
    }
}

impl Contender for Longshore<'_> {
    fn label(&self) -> String {
        format!("longshore {}", env!("CARGO_PKG_VERSION"))
    }

    fn start(&mut self, round: u16) -> Result<Duration> {
        let app = name(round);
        let host = format!("{app}.localhost");
        let manifest = manifest(&app);
        let platform = self.platform;
        let time =
            time_to_first_answer(platform.ingress_address(), &host, AskFrom::TheCall, || {
                platform.deploy_only(&manifest).map(drop)
            })?;
        self.keep_stages(&app)?;
        Ok(time)
    }

    fn remove(&mut self, round: u16) -> Result<()> {
        self.platform.remove(&name(round))
    }
}

/// docker, by its command line.
pub struct Docker(pub Dockerd);

impl Docker {
    /// Loads the image into the daemon.
    pub fn load(&self, image: &Layout) -> Result<()> {
        let mut skopeo = program("skopeo", ["--insecure-policy", "copy", "--quiet"]);
        skopeo.args(["--dest-daemon-host", &self.0.host(), &image.source()]);
        checked(skopeo.arg(format!("docker-daemon:{IMAGE}")))
    }
}

impl Contender for Docker {
    fn label(&self) -> String {
        let version = self.0.docker(&["version", "--format", "{{.Server.Version}}"]);
        format!("docker run -d -p, {}", version.unwrap_or_default().trim())
    }

    fn start(&mut self, round: u16) -> Result<Duration> {
        let address = published(21_000, round);
        let publish = format!("{address}:{BUSYBOX_PORT}");
        time_to_first_answer(address, "localhost", AskFrom::ItsReturn, || {
            self.0.docker(&["run", "-d", "--name", &name(round), "-p", &publish, IMAGE]).map(drop)
        })
    }

    fn remove(&mut self, round: u16) -> Result<()> {
        self.0.docker(&["rm", "-f", &name(round)]).map(drop)
    }
}

/// podman, by its command line.
pub struct Podman {
    root: PathBuf,
}

impl Podman {
    /// With its state below `root`, and the image in it.
    pub fn load(root: &Path, image: &Layout) -> Result<Self> {
        let podman = Self { root: root.to_owned() };
        let loaded = output(podman.command().args(["pull", "--quiet", &image.source()]))?;
        checked(podman.command().args(["tag", loaded.trim(), IMAGE]))?;
        Ok(podman)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        for option in ["--root", "--runroot", "--tmpdir", "--network-config-dir"] {
            command.arg(option).arg(self.root.join(option.trim_start_matches('-')));
        }
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        command.args(["--storage-driver", "overlay"]);
        command
    }
}

impl Contender for Podman {
    fn label(&self) -> String {
        let version = output(self.command().args(["version", "--format", "{{.Version}}"]));
        format!("podman run -d -p, {}", version.unwrap_or_default().trim())
    }

    fn start(&mut self, round: u16) -> Result<Duration> {
        let address = published(22_000, round);
        let publish = format!("{address}:{BUSYBOX_PORT}");
        let mut command = self.command();
        command.args(["run", "-d", "--name", &name(round), "-p", &publish]);
        // Its default raises limits, which not every root may.
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        command.args(["--pull", "never", IMAGE]);
        time_to_first_answer(address, "localhost", AskFrom::TheCall, move || checked(&mut command))
    }

    fn remove(&mut self, round: u16) -> Result<()> {
        checked(self.command().args(["rm", "-f", "-t", "0", &name(round)]))
    }
}

/// The same program without any container: what the kernel takes to run it and let it listen.
pub struct Bare {
    /// The directory that it serves.
    pub pages: PathBuf,
    /// The process of this round.
    pub child: Option<Child>,
}

impl Contender for Bare {
    fn label(&self) -> String {
        "no container: fork, exec, bind".to_owned()
    }

    fn start(&mut self, round: u16) -> Result<Duration> {
        let address = published(23_000, round);
        let mut command = program("/bin/busybox", ["httpd", "-f", "-p"]);
        command.arg(address.to_string()).arg("-h").arg(&self.pages).stdin(Stdio::null());
        let child = &mut self.child;
        time_to_first_answer(address, "localhost", AskFrom::TheCall, || {
            *child = Some(command.spawn().context("cannot run busybox")?);
            Ok(())
        })
    }

    fn remove(&mut self, _round: u16) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}
