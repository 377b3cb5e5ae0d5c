//! The peer: ten services of docker-compose behind nginx, replaced one after the other.
//!
//! Everything as Debian ships it and nothing tuned: nginx passes a request that a server refused or
//! broke off on to the next one. `docker-compose up` of all services at once would end them all at once,
//! so it is called for one after the other, as who cares would do it. The program takes no notice of
//! being asked to end; it gets a second for that instead of ten, which only saves time.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use longshore_e2e::eventually;
use longshore_e2e::image::BUSYBOX_PORT;

use super::N_INSTANCES;
use crate::bench::contenders::Docker;
use crate::command::{output, program, run};

/// The first of the ports on which the containers are published.
const FIRST_PORT: u16 = 21_000;
/// Where nginx listens.
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 20_999);

/// Ten containers and their nginx.
pub struct Compose {
    docker: Docker,
    dir: PathBuf,
    nginx: Option<Child>,
}

impl Compose {
    /// With its files in `dir`, and the images in the daemon.
    pub fn new(docker: Docker, dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir)?;
        Ok(Self { docker, dir, nginx: None })
    }

    /// What it is.
    pub fn label(&self) -> String {
        let compose = output(&mut program("docker-compose", ["version", "--short"]));
        format!("docker-compose {} and nginx", compose.unwrap_or_default().trim())
    }

    /// Where requests go.
    pub fn address(&self) -> SocketAddr {
        ADDRESS.into()
    }

    /// Starts all containers of an image, then nginx.
    pub fn start(&mut self, image: &str) -> Result<()> {
        self.write(image)?;
        self.compose(&["up", "--detach"])?;
        let config = self.dir.join("nginx.conf");
        fs::write(&config, self.nginx_config())?;
        let mut nginx = program("/usr/sbin/nginx", ["-c"]);
        let child = nginx.arg(&config).stdin(Stdio::null()).spawn();
        self.nginx = Some(child.context("cannot run nginx; install the package nginx-light")?);
        eventually("nginx answers", || {
            let answer =
                longshore_e2e::http::Request::get("localhost", "/").send(self.address())?;
            Ok((answer.status == 200).then_some(()))
        })
    }

    /// Replaces one container after the other.
    pub fn update(&self, image: &str) -> Result<()> {
        self.write(image)?;
        for idx in 0..N_INSTANCES {
            self.compose(&["up", "--detach", "--no-deps", &format!("web{idx}")])?;
        }
        Ok(())
    }

    /// Ends everything.
    pub fn end(&mut self) -> Result<()> {
        if let Some(mut nginx) = self.nginx.take() {
            nginx.kill()?;
            nginx.wait()?;
        }
        self.compose(&["down", "--timeout", "0"])
    }

    fn write(&self, image: &str) -> Result<()> {
        let mut text = "version: \"3\"\nservices:\n".to_owned();
        for idx in 0..N_INSTANCES {
            let port = FIRST_PORT + idx;
            write!(
                text,
                "  web{idx}:\n    image: {image}\n    ports: [\"127.0.0.1:{port}:{BUSYBOX_PORT}\"]\n    \
                 stop_grace_period: 1s\n"
            )?;
        }
        Ok(fs::write(self.dir.join("compose.yaml"), text)?)
    }

    fn nginx_config(&self) -> String {
        let dir = self.dir.display();
        let servers: String =
            (0..N_INSTANCES).map(|idx| format!("server 127.0.0.1:{};", FIRST_PORT + idx)).collect();
        let (host, port) = ADDRESS;
        format!(
            "daemon off; user root; pid {dir}/nginx.pid; error_log {dir}/nginx.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; upstream web {{ {servers} }}\n\
             server {{ listen {host}:{port}; location / {{ proxy_pass http://web; }} }} }}\n"
        )
    }

    fn compose(&self, arguments: &[&str]) -> Result<()> {
        let mut compose = program("docker-compose", ["--project-name", "bench", "--file"]);
        compose.arg(self.dir.join("compose.yaml")).args(arguments);
        let quiet = compose.env("DOCKER_HOST", self.docker.0.host()).stderr(Stdio::null());
        run(quiet)
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        // What is left goes with the namespaces.
        if let Some(mut nginx) = self.nginx.take() {
            let _ = nginx.kill();
            let _ = nginx.wait();
        }
    }
}
