//! The images that are pulled, composed here: S, a Debian with Python, and M, the same with PyTorch and its
//! CUDA libraries, which is what people deploy on GPUs.
//!
//! Each is made once and kept under the target directory by the hash of how it is made, each of its forms when
//! it is first asked for. Beside it lies what every pull is compared with: the listing of the tree it was made of.
//! The tree itself is not kept, and M's wheels neither: they are in the layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use longshore_e2e::debian::{self, SUITE};
use longshore_e2e::image::{Compression, Layout, StoredLayer, assemble, checked, sha256_of};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::listing;
use crate::command::{output, program, run, target_dir};

/// What the base has beside what debootstrap installs by itself.
const BASE: &str = "python3";
/// How layers are compressed: as docker and buildx do by default.
const GZIP_LEVEL: &str = "-6";
const ZSTD_LEVEL: &str = "-3";
/// Where the wheels are put in the image.
const PACKAGES: &str = "usr/lib/python3/dist-packages";

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// A Debian with Python, about 200 MB
    S,
    /// The same with PyTorch and its CUDA libraries, about 5.5 GB
    M,
}

/// One way to store an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// How its layers are compressed.
    pub compression: Compression,
    /// How many layers it has.
    pub n_layers: usize,
}

impl Form {
    /// As a tag names it.
    pub fn tag(self) -> String {
        let kind = match self.compression {
            Compression::None => "plain",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        format!("{kind}-{}", self.n_layers)
    }
}

/// An image that is composed.
pub struct Composed {
    dir: PathBuf,
}

impl Size {
    /// The wheels that it has, if any.
    fn wheels(self) -> Option<&'static str> {
        match self {
            Self::S => None,
            Self::M => Some("torch==2.15.0"),
        }
    }

    /// Makes it in these forms, unless they are there.
    pub fn compose(self, forms: &[Form]) -> Result<Composed> {
        let wheels = self.wheels().unwrap_or_default();
        let recipe = format!("{SUITE} {BASE} {wheels} {GZIP_LEVEL} {ZSTD_LEVEL} 1");
        let hash: String =
            Sha256::digest(recipe).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let dir = target_dir().join("pull-images").join(format!("{self:?}-{hash}"));
        let composed = Composed { dir };
        let missing: Vec<Form> =
            forms.iter().copied().filter(|form| !composed.layout_dir(*form).exists()).collect();
        if missing.is_empty() {
            return Ok(composed);
        }
        eprintln!("composing {self:?} in {}", composed.dir.display());
        fs::create_dir_all(&composed.dir)?;
        let tree = composed.dir.join("tree");
        self.grow(&tree)?;
        fs::write(composed.listing_file(), listing::of(&tree)?)?;
        for form in missing {
            composed.pack(&tree, form)?;
        }
        fs::remove_dir_all(&tree).context("cannot remove the tree")?;
        Ok(composed)
    }

    /// Makes the tree of files.
    fn grow(self, tree: &Path) -> Result<()> {
        debian::debootstrap(tree, &["--variant=minbase"], BASE)?;
        // What a layer of docker's never has: devices, and what apt downloaded.
        for dir in ["dev", "var/cache/apt/archives", "var/lib/apt/lists", "proc", "sys", "run"] {
            let dir = tree.join(dir);
            fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
            fs::create_dir(&dir)?;
        }
        let Some(wheels) = self.wheels() else { return Ok(()) };
        let download = tree.with_file_name("wheels");
        let python = "3.11";
        let mut pip = program("python3", ["-m", "pip", "download", "--only-binary=:all:", "-q"]);
        pip.args(["--python-version", python, wheels, "-d"]).arg(&download);
        run(&mut pip)?;
        let mut pip = program("python3", ["-m", "pip", "install", "--no-index", "--no-deps", "-q"]);
        pip.args(["--python-version", python, "--only-binary=:all:", "--no-compile"]);
        pip.arg("--target").arg(tree.join(PACKAGES));
        let wheels = fs::read_dir(&download)?.map(|entry| Ok(entry?.path()));
        run(pip.args(wheels.collect::<Result<Vec<_>>>()?))?;
        fs::remove_dir_all(&download).context("cannot remove the wheels")
    }
}

impl Composed {
    /// The image in one of its forms.
    pub fn layout(&self, form: Form) -> Result<Layout> {
        let dir = self.layout_dir(form);
        let index = fs::read(dir.join("index.json"))
            .with_context(|| format!("{} has no index", dir.display()))?;
        let index: serde_json::Value = serde_json::from_slice(&index)?;
        let digest = index["manifests"][0]["digest"].as_str().context("an index with a digest")?;
        Ok(Layout { digest: digest.to_owned(), dir })
    }

    /// What its tree has.
    pub fn listing(&self) -> Result<String> {
        let file = self.listing_file();
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    }

    /// The archive of a form with one layer, as it is without compression.
    pub fn plain_layer(&self, form: Form, into: &Path) -> Result<()> {
        let blobs = self.layout_dir(form).join("blobs/sha256");
        let sizes = fs::read_dir(blobs)?.map(|entry| {
            let entry = entry?;
            Ok((entry.metadata()?.len(), entry.path()))
        });
        let (_, largest) = sizes.collect::<Result<Vec<_>>>()?.into_iter().max().context("blobs")?;
        let file = fs::File::create(into)?;
        let mut gzip = program("gzip", ["-dc"]);
        let status = gzip.stdin(fs::File::open(largest)?).stdout(file).status()?;
        ensure!(status.success(), "gzip: {status}");
        Ok(())
    }

    fn listing_file(&self) -> PathBuf {
        self.dir.join("listing")
    }

    fn layout_dir(&self, form: Form) -> PathBuf {
        self.dir.join(form.tag())
    }

    fn pack(&self, tree: &Path, form: Form) -> Result<()> {
        let target = self.layout_dir(form);
        let partial = target.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).context("cannot remove what a killed run left")?;
        }
        fs::create_dir_all(&partial)?;
        let layers = parts(tree, form.n_layers)?;
        let layers = layers.iter().map(|names| store(tree, names, &partial, form.compression));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let config = json!({"Cmd": ["/bin/bash"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]});
        assemble(&partial, &config, layers)?;
        fs::rename(partial, target).context("cannot put the image in its place")
    }
}

/// The names in a tree, in as many runs of about the same number of bytes. Each has the directories above its
/// names, so that none is made without its owner, mode and time.
fn parts(tree: &Path, n_parts: usize) -> Result<Vec<Vec<String>>> {
    let mut find = program("find", [".", "-printf", "%s %p\\n"]);
    let found = output(find.current_dir(tree))?;
    let mut names: Vec<(u64, &str)> = found
        .lines()
        .map(|line| {
            let (size, name) = line.split_once(' ').context("a size and a name")?;
            Ok((size.parse()?, name))
        })
        .collect::<Result<_>>()?;
    names.sort_by_key(|(_, name)| *name);
    let total: u64 = names.iter().map(|(size, _)| size).sum();
    let share = total / n_parts as u64 + 1;
    let mut parts = vec![Vec::new(); n_parts];
    let mut before = 0;
    for (size, name) in names {
        let idx = usize::try_from(before / share)?;
        if parts[idx].is_empty() {
            let above: Vec<_> = Path::new(name).ancestors().skip(1).collect();
            let above = above.iter().rev().filter(|path| !path.as_os_str().is_empty());
            parts[idx].extend(above.map(|path| path.display().to_string()));
        }
        parts[idx].push(name.to_owned());
        before += size;
    }
    Ok(parts)
}

/// Packs some names of a tree as a layer.
fn store(
    tree: &Path,
    names: &[String],
    dir: &Path,
    compression: Compression,
) -> Result<StoredLayer> {
    let tar = dir.join("layer.tar");
    let list = dir.join("names");
    fs::write(&list, names.join("\n"))?;
    let mut pack = program("tar", ["--numeric-owner", "--xattrs", "--no-recursion", "-C"]);
    pack.arg(tree).arg("-T").arg(&list).arg("-cf").arg(&tar);
    checked(&mut pack)?;
    fs::remove_file(&list)?;
    let diff_id = sha256_of(&tar)?;
    let (compress, suffix) = match compression {
        Compression::None => (None, "tar"),
        Compression::Gzip => (Some(program("gzip", ["-n", GZIP_LEVEL])), "tar.gz"),
        Compression::Zstd => (Some(program("zstd", ["-q", "--rm", ZSTD_LEVEL])), "tar.zst"),
    };
    if let Some(mut compress) = compress {
        checked(compress.arg(&tar))?;
    }
    // By its digest, for the next layer is made under the same name.
    let path = dir.join(format!("{diff_id}.{suffix}"));
    fs::rename(tar.with_extension(suffix), &path)?;
    Ok(StoredLayer { path, diff_id, compression })
}

/// Copies an image to a registry.
pub fn push(layout: &Layout, target: &str, credentials: Option<&str>) -> Command {
    let mut skopeo = program("skopeo", ["--insecure-policy", "copy", "--quiet"]);
    skopeo.args(["--dest-tls-verify=false", "--preserve-digests"]);
    if let Some(credentials) = credentials {
        skopeo.args(["--dest-creds", credentials]);
    }
    skopeo.arg(layout.source()).arg(format!("docker://{target}"));
    skopeo
}
