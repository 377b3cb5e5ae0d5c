//! One client with what it keeps, called as people call it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::Dockerd;
use longshore_e2e::dockerd::Firewall;
use longshore_e2e::image::{Layout, checked, sha256_of};
use serde_json::Value;

use super::Client;
use crate::bench::pull::pullers::Origin;
use crate::bench::pull::usage::Group;
use crate::command::{output, program};
use crate::newer_debian;

/// Who it says that it is.
const USER: &str = "anyone";
/// What the image is called in the registry.
const IMAGE: &str = "default/pushed:1";

/// A client that can push and pull.
pub struct User<'a> {
    client: Client,
    layout: &'a Layout,
    /// The digest of the config, by which those that unpack name an image.
    config: &'a str,
    /// Where it keeps everything.
    dir: &'a Path,
    origin: Origin,
    docker: Option<Dockerd>,
    /// Of its processes. After the daemon, so that it is empty when it goes.
    pub group: Group,
}

impl<'a> User<'a> {
    /// One that is logged in and has the image.
    pub fn begin(
        client: Client,
        dir: &'a Path,
        layout: &'a Layout,
        config: &'a str,
        origin: Origin,
    ) -> Result<Self> {
        let group = Group::new("client")?;
        let docker = match client {
            Client::Docker => Some(Dockerd::start_in(dir, Firewall::Untouched)?),
            _ => None,
        };
        if docker.is_some() {
            group.take_all(&dir.display().to_string())?;
        }
        let user = Self { client, layout, config, dir, origin, docker, group };
        user.log_in()?;
        user.load()?;
        Ok(user)
    }

    /// What it is, with its version, and a star if it compresses anew.
    pub fn label(client: Client) -> Result<String> {
        let (name, star) = (client.name(), if client.keeps_bytes() { "" } else { " *" });
        let (said, idx) = match client {
            // It does not know its own.
            Client::Crane => {
                let changes = newer_debian::dir().join("crane/usr/share/doc/crane");
                let changes = changes.join("changelog.Debian.gz");
                (output(program("gzip", ["-dc"]).arg(changes))?, 1)
            }
            Client::Oras => (output(program_of(client).arg("version"))?, 1),
            _ => (output(program_of(client).arg("--version"))?, 2),
        };
        let version = said.split_whitespace().nth(idx).unwrap_or("?").trim_start_matches('(');
        let version = version.split(['+', '~', ',', '-']).next().unwrap_or_default();
        Ok(format!("{name} {version}{star}"))
    }

    fn log_in(&self) -> Result<()> {
        let (authority, token) = (self.origin.authority.as_str(), self.token());
        match self.client {
            Client::Docker => {
                let login = ["login", "--username", USER, "--password", token, authority];
                self.docker(&login).map(drop)
            }
            Client::Crane => {
                let login = ["auth", "login", "-u", USER, "-p", token, authority];
                checked(self.command().args(login))
            }
            Client::Oras => {
                let login = ["login", "--plain-http", "-u", USER, "-p", token, authority];
                checked(self.command().args(login))
            }
            // They are told with each call.
            Client::Podman | Client::Buildah | Client::Skopeo => Ok(()),
        }
    }

    /// Gives it the image, without a registry that it could remember it from.
    fn load(&self) -> Result<()> {
        let mut skopeo = program("skopeo", ["--insecure-policy", "copy", "--quiet"]);
        skopeo.env("TMPDIR", self.dir);
        let into = match self.client {
            Client::Docker => {
                let docker = self.docker.as_ref().context("it has a daemon")?;
                skopeo.args(["--dest-daemon-host", &docker.host()]);
                format!("docker-daemon:{}", self.reference())
            }
            // By themselves they would name it after its directory, whose name cannot be one.
            Client::Podman | Client::Buildah => {
                let [root, run] = ["root", "run"].map(|name| self.dir.join(name));
                let store = format!("overlay@{}+{}", root.display(), run.display());
                format!("containers-storage:[{store}]localhost/packed:1")
            }
            Client::Skopeo | Client::Crane | Client::Oras => return Ok(()),
        };
        checked(skopeo.arg(self.layout.source()).arg(into))
    }

    /// What pushes the image.
    pub fn push(&self) -> Command {
        let reference = self.reference();
        let target = format!("docker://{reference}");
        let Layout { dir, digest } = self.layout;
        let mut command = self.command();
        match self.client {
            Client::Docker => command.args(["push", "--quiet", &reference]),
            Client::Podman | Client::Buildah => {
                command.args(["push", "--quiet", "--tls-verify=false", "--creds"]);
                command.arg(self.credentials()).args([self.id(), &target])
            }
            Client::Skopeo => {
                command.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
                command.args(["--dest-tls-verify=false", "--dest-creds", &self.credentials()]);
                command.args([&self.layout.source(), &target])
            }
            Client::Crane => command.arg("push").arg(dir).arg(&reference),
            Client::Oras => {
                command.args(["cp", "--to-plain-http", "--from-oci-layout"]);
                command.arg(format!("{}@{digest}", dir.display())).arg(&reference)
            }
        };
        command
    }

    /// The manifest that the registry has, byte by byte.
    pub fn pushed(&self) -> Result<Vec<u8>> {
        let mut inspect = program("skopeo", ["inspect", "--raw", "--tls-verify=false", "--creds"]);
        inspect.arg(self.credentials()).arg(format!("docker://{}", self.reference()));
        Ok(output(&mut inspect)?.into_bytes())
    }

    /// Removes all that it has of the image.
    pub fn forget(&self) -> Result<()> {
        match self.client {
            Client::Docker => self.docker(&["rmi", "--force", &self.reference()]).map(drop),
            Client::Podman | Client::Buildah => {
                checked(self.command().args(["rmi", "--all", "--force"]))
            }
            // It is not theirs.
            Client::Skopeo | Client::Crane | Client::Oras => Ok(()),
        }
    }

    /// What pulls it.
    pub fn pull(&self) -> Command {
        let (reference, back) = (self.reference(), self.back().display().to_string());
        let mut command = self.command();
        match self.client {
            Client::Docker => command.args(["pull", "--quiet", &reference]),
            Client::Podman | Client::Buildah => {
                command.args(["pull", "--quiet", "--tls-verify=false", "--creds"]);
                command.arg(self.credentials()).arg(&reference)
            }
            Client::Skopeo => {
                command.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
                command.args(["--src-tls-verify=false", "--src-creds", &self.credentials()]);
                command.args([format!("docker://{reference}"), format!("oci:{back}")])
            }
            Client::Crane => command.args(["pull", "--format", "oci", &reference, &back]),
            Client::Oras => {
                command.args(["cp", "--from-plain-http", &reference, "--to-oci-layout"]);
                command.arg(format!("{back}:1"))
            }
        };
        command
    }

    /// The digests of the manifest and of the config that it has now.
    pub fn pulled(&self) -> Result<[String; 2]> {
        let reference = self.reference();
        let said = match self.client {
            Client::Docker => {
                let format = "{{index .RepoDigests 0}} {{.Id}}";
                self.docker(&["image", "inspect", "--format", format, &reference])?
            }
            Client::Podman => {
                let inspect = ["image", "inspect", "--format", "{{.Digest}} {{.Id}}", &reference];
                output(self.command().args(inspect))?
            }
            Client::Buildah => {
                let format = "{{.FromImageDigest}} {{.FromImageID}}";
                let inspect = ["inspect", "--type", "image", "--format", format, &reference];
                output(self.command().args(inspect))?
            }
            Client::Skopeo | Client::Crane | Client::Oras => return self.pulled_layout(),
        };
        let (manifest, config) = said.trim().split_once(' ').context("two digests")?;
        let manifest = manifest.rsplit_once('@').map_or(manifest, |(_, digest)| digest);
        Ok([manifest.to_owned(), format!("sha256:{}", config.trim_start_matches("sha256:"))])
    }

    /// The same of a directory, all of whose blobs have to be what they are called.
    fn pulled_layout(&self) -> Result<[String; 2]> {
        let dir = self.back();
        for blob in fs::read_dir(dir.join("blobs/sha256"))? {
            let path = blob?.path();
            let found = sha256_of(&path)?;
            ensure!(path.ends_with(&found), "{} is {found}", path.display());
        }
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json"))?)?;
        let digest = index["manifests"][0]["digest"].as_str().context("nothing was pulled")?;
        let back = Layout { digest: digest.to_owned(), dir };
        let manifest = super::Digests::of(&manifest_in(&back)?)?;
        for digest in manifest.layers.iter().chain([&manifest.config]) {
            ensure!(blob(&back, digest).exists(), "{digest} did not come");
        }
        Ok([manifest.manifest, manifest.config])
    }

    fn back(&self) -> PathBuf {
        self.dir.join("back")
    }

    fn reference(&self) -> String {
        format!("{}/{IMAGE}", self.origin.authority)
    }

    fn token(&self) -> &str {
        self.origin.token.as_deref().unwrap_or_default()
    }

    fn credentials(&self) -> String {
        format!("{USER}:{}", self.token())
    }

    /// The image as podman and buildah name it.
    fn id(&self) -> &str {
        self.config.trim_start_matches("sha256:")
    }

    fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.docker.as_ref().context("it has a daemon")?.docker(arguments)
    }

    /// The client, in its group, with everything that it keeps on its own disk.
    fn command(&self) -> Command {
        let program = program_of(self.client);
        let mut command = match &self.docker {
            // What it takes itself is next to nothing.
            Some(docker) => return docker.client(&[]),
            None => self.group.command(program.get_program()),
        };
        command.current_dir(self.dir);
        command.env("HOME", self.dir).env("TMPDIR", self.dir);
        if matches!(self.client, Client::Crane | Client::Oras) {
            // Where they note that they are logged in. podman takes it for its own, and misses a file there.
            command.env("DOCKER_CONFIG", self.dir);
        }
        if matches!(self.client, Client::Podman | Client::Buildah) {
            for (option, name) in [("--root", "root"), ("--runroot", "run")] {
                command.arg(option).arg(self.dir.join(name));
            }
            command.args(["--storage-driver", "overlay"]);
        }
        if self.client == Client::Podman {
            command.arg("--tmpdir").arg(self.dir.join("tmp"));
            command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        }
        command
    }
}

/// The program of a client: Debian 12's, or for crane and oras that of a newer one.
fn program_of(client: Client) -> Command {
    let name = client.name();
    Command::new(match client {
        Client::Docker | Client::Podman | Client::Buildah | Client::Skopeo => {
            Path::new("/usr/bin").join(name)
        }
        Client::Crane | Client::Oras => newer_debian::dir().join(name).join("usr/bin").join(name),
    })
}

/// The bytes of the manifest of an image in a directory.
pub fn manifest_in(layout: &Layout) -> Result<Vec<u8>> {
    let path = blob(layout, &layout.digest);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn blob(layout: &Layout, digest: &str) -> PathBuf {
    layout.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}
