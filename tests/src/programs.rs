//! Images of real programs, made as a user would make them: `podman build` of a directory below
//! `tests/programs`, upon a Debian by debootstrap that all of them share.
//!
//! They are made once and kept, each in an image layout that is named after what its recipe says; a
//! recipe that changed is made anew and its old image removed. A killed run leaves nothing that the
//! next one could take for an image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::debian;
use crate::image::checked;

/// The programs, in the order in which it is best to make them: those that take longest first.
pub const ALL: [&str; 7] = ["postgres", "chromium", "python", "node", "grpc", "redis", "nginx"];

/// How many are made at once. Each is mostly one package manager, which has one thread.
const AT_ONCE: usize = 2;
/// What the recipes begin `FROM`.
const BASE: &str = "localhost/debian:12";

/// The directory with the recipe of a program and its manifest.
pub fn recipe(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(program)
}

/// The image of a program, as skopeo names it; made now when it is not there yet.
pub fn image(program: &str) -> Result<String> {
    Kitchen::open()?.ensure(program)
}

/// Makes every image that is not there yet.
pub fn make_all() -> Result<()> {
    let kitchen = Kitchen::open()?;
    kitchen.ensure_base()?;
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(program) = ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            kitchen.ensure(program)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("making does not panic"))
    })
}

/// Where images are made and kept. Tests run in processes of their own, so every step that others
/// must not take at the same time is done under the lock of a file.
struct Kitchen(PathBuf);

impl Kitchen {
    fn open() -> Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-programs");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }

    fn lock(&self, name: &str) -> Result<File> {
        let path = self.0.join(format!("{name}.lock"));
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn ensure(&self, program: &str) -> Result<String> {
        let image = self.0.join(format!("{program}-{}", hash_of_recipe(program)?));
        let _lock = self.lock(program)?;
        if !image.exists() {
            self.remove_older(program)?;
            let base = self.ensure_base()?;
            let partial = self.0.join(format!("{program}-partial"));
            Storage::new(self.0.join(format!("{program}-storage")))?
                .make(program, &base, &partial)?;
            fs::rename(&partial, &image).context("cannot put the finished image in its place")?;
        }
        Ok(format!("oci:{}", image.display()))
    }

    /// What earlier recipes of a program and killed runs left.
    fn remove_older(&self, program: &str) -> Result<()> {
        let prefix = format!("{program}-");
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The tar of the Debian that all images begin with.
    fn ensure_base(&self) -> Result<PathBuf> {
        let _lock = self.lock("base")?;
        let tar = self.0.join(format!("{}.tar", debian::SUITE));
        if tar.exists() {
            return Ok(tar);
        }
        let root = self.0.join("debian");
        debian::debootstrap(&root, &["--variant=minbase"], "ca-certificates")?;
        for cache in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            fs::remove_dir_all(root.join(cache))
                .with_context(|| format!("cannot empty {cache}"))?;
        }
        let partial = tar.with_extension("partial");
        checked(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&partial).arg("."))?;
        fs::rename(&partial, &tar).context("cannot put the finished base in its place")?;
        fs::remove_dir_all(&root).context("cannot remove the root of the base")?;
        Ok(tar)
    }
}

/// A podman with its own state, gone with it.
struct Storage {
    dir: PathBuf,
    /// For its sockets, whose paths must be short.
    run: TempDir,
}

impl Storage {
    fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir, run: tempfile::Builder::new().prefix("lsp-").tempdir()? })
    }

    /// In a mount namespace of its own, so that a killed podman leaves no mounts.
    fn podman(&self) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "podman"]);
        command.arg("--root").arg(&self.dir);
        for option in ["--runroot", "--tmpdir"] {
            command.arg(option).arg(self.run.path().join(option.trim_start_matches('-')));
        }
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]);
        command
    }

    /// Makes the image of a program and copies it to a layout.
    fn make(&self, program: &str, base: &Path, layout: &Path) -> Result<()> {
        let name = format!("localhost/{program}");
        checked(self.podman().args(["import", "--quiet"]).arg(base).arg(BASE))?;
        let mut build = self.podman();
        // The packages are fetched as this machine fetches them; runc and its network are no help.
        build.args(["build", "--quiet", "--isolation", "chroot", "--network", "host"]);
        checked(build.args(["--tag", &name]).arg(recipe(program)))?;
        let target = format!("oci:{}", layout.display());
        checked(self.podman().args(["push", "--quiet", &name, &target]))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // What is left is removed by the next run.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Names what a recipe says.
fn hash_of_recipe(program: &str) -> Result<String> {
    let dir = recipe(program);
    let entries = fs::read_dir(&dir).with_context(|| format!("no recipe {}", dir.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    // A manifest says how the image is run and nothing about how it is made.
    files.retain(|file| file.extension().is_none_or(|extension| extension != "toml"));
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.file_name().context("a file has a name")?.as_encoded_bytes());
        hasher.update(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}
