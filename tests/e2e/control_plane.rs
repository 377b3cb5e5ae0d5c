//! A control plane beside that of a platform, with its keys and tokens, for its location.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};
use longshore_e2e::http::{Request, Response};
use longshore_e2e::process::signal;
use longshore_e2e::{Platform, eventually};
use rustix::process::Signal;

/// A process of its own, which ends with this.
pub struct ControlPlane {
    child: Child,
    api: String,
    log: PathBuf,
}

impl ControlPlane {
    /// Starts it with its state in an etcd, and listening there for locations.
    pub fn start(platform: &Platform, name: &str, store: &str, link: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let api = format!("http://127.0.0.1:{port}");
        let (data, dir) = (platform.data_dir(), platform.dir());
        let endpoints = platform.endpoints();
        let at = |path: PathBuf| path.display().to_string();
        let mut command = platform.command(&[
            "global",
            "--store",
            store,
            "--data-dir",
            &at(dir.join(name)),
            "--api-listen",
            &api,
            "--link-listen",
            &format!("unix:{}", link.display()),
            "--registry",
            &format!("http://{}", endpoints.registry),
            "--registry-public",
            &endpoints.registry,
            "--ingress-public",
            &endpoints.ingress,
            "--admin-token-file",
            &at(data.join("admin-token")),
            "--system-token-file",
            &at(data.join("secrets/system-token")),
            "--secret-keys-file",
            &at(data.join("secrets/keys.json")),
            "--root-file",
            &at(data.join("secrets/root.json")),
        ]);
        let log = dir.join(format!("{name}.log"));
        let file = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("a control plane starts")?;
        Ok(Self { child, api, log })
    }

    /// Ends it in order: it gives the lead away.
    pub fn end(mut self) -> Result<()> {
        signal(self.child.id().cast_signed(), Signal::TERM)?;
        eventually("the control plane ends", || Ok(self.child.try_wait()?.map(drop)))
    }

    /// Where its API is.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks its API.
    pub fn asks(&self, token: &str, path: &str) -> Result<Response> {
        let address = self.api.trim_start_matches("http://").parse()?;
        Request { token: Some(token), ..Request::get("api", path) }.send(address)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
