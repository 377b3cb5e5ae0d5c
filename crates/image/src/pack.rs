//! Making an image of a local program, without docker: the program, the shared libraries that it
//! needs at the paths where its loader looks for them, and the few files that most programs expect
//! (`/etc/passwd`, `/tmp`, CA certificates, what glibc needs to resolve names).
//!
//! ELF files are read with `object`: it reads from a file piece by piece and is what the Rust project
//! itself uses; `goblin` is as able but parses all of a file, symbols included, to answer anything.
//! Nothing of the program is executed, as `ldd` would. The tar is written with the `tar` crate.
//!
//! The same input gives the same digests: entries are sorted, owned by root, of 1970, and
//! executable or not is all that is kept of a file's mode.

mod cache;
mod elf;
mod layer;
mod layout;
mod loader;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use longshore_types::{ByteCount, Digest, Port};
use serde_json::json;

use elf::Elf;
use layout::Layout;
use loader::Libraries;
use tree::{Content, Tree};

pub use layer::LayerCompression;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CA_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\n\
    nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// What to pack, and how.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// The executable.
    pub program: PathBuf,
    /// The name of the image within its layout or archive; it can be pushed under any other.
    pub name: String,
    /// More files.
    pub include: Vec<Include>,
    /// Environment, after `PATH`, which it may override.
    pub env: Vec<(String, String)>,
    /// Arguments that the program is started with unless a deployment gives others.
    pub args: Vec<String>,
    /// Ports that the program listens on, for information.
    pub expose: Vec<Port>,
    /// `uid[:gid]` or a user of `/etc/passwd` (`root`, `nobody`); root when `None`.
    pub user: Option<String>,
    /// Directory to start in; `/` when `None`.
    pub working_dir: Option<String>,
    /// How the layer is compressed.
    pub compression: LayerCompression,
    /// Where the image is written.
    pub output: PackOutput,
}

impl PackOptions {
    /// Options with their defaults: named `latest`, compressed with gzip.
    pub fn new(program: impl Into<PathBuf>, output: PackOutput) -> Self {
        Self {
            program: program.into(),
            name: "latest".to_owned(),
            include: Vec::new(),
            env: Vec::new(),
            args: Vec::new(),
            expose: Vec::new(),
            user: None,
            working_dir: None,
            compression: LayerCompression::Gzip,
            output,
        }
    }
}

/// Where an image is written. An older image there is replaced at once, or left if packing fails.
#[derive(Debug, Clone)]
pub enum PackOutput {
    /// A directory: an OCI layout.
    Layout(PathBuf),
    /// A tar of an OCI layout.
    Archive(PathBuf),
}

/// A file or directory of this machine to be put into the image, written `host:container`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Include {
    /// Its path here.
    pub host: PathBuf,
    /// Its absolute path there.
    pub container: PathBuf,
}

impl FromStr for Include {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':') {
            Some((host, container)) if !host.is_empty() && container.starts_with('/') => {
                Ok(Self { host: host.into(), container: container.into() })
            }
            _ => Err(format!("{text:?} does not say what to include; use PATH:/PATH/IN/THE/IMAGE")),
        }
    }
}

/// A packed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The digest of the manifest, by which the image can be pulled once it is pushed.
    pub digest: Digest,
    /// The digest of the config.
    pub config: Digest,
    /// The digest of the layer as it is compressed.
    pub layer: Digest,
    /// The compressed layer.
    pub layer_size: ByteCount,
    /// The layer before compression.
    pub unpacked_size: ByteCount,
    /// The program's path in the image.
    pub program: PathBuf,
    /// The shared libraries that were added, by their paths here, the loader first.
    pub libraries: Vec<PathBuf>,
}

/// Why a program cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The program is a script.
    #[error("{} is a script for {interpreter:?}; only executables can be packed. Build an image with its interpreter by another tool and push that", path.display())]
    Script {
        /// The program.
        path: PathBuf,
        /// What it names after `#!`.
        interpreter: String,
    },
    /// The program is not an executable of Linux.
    #[error("{} is not an executable that can be packed: {reason}", path.display())]
    NotExecutable {
        /// The program.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A library is needed and cannot be found.
    #[error("{} needs {name}, which is in none of: {}", needed_by.display(), searched.join(", "))]
    MissingLibrary {
        /// The library.
        name: String,
        /// What needs it.
        needed_by: PathBuf,
        /// The directories that the loader would search.
        searched: Vec<String>,
    },
    /// The loader is one whose rules we do not know.
    #[error("{} is started by {}, whose rules for finding libraries are not known here; link it statically", program.display(), loader.display())]
    Loader {
        /// The program.
        program: PathBuf,
        /// Its loader.
        loader: PathBuf,
    },
    /// Two things want the same path.
    #[error("{} cannot be put into the image: {reason}", path.display())]
    Conflict {
        /// The path in the image.
        path: PathBuf,
        /// What is in the way.
        reason: &'static str,
    },
    /// Something to include is neither file, directory nor symlink.
    #[error("{} is neither a file, a directory nor a symbolic link", path.display())]
    Special {
        /// The path here.
        path: PathBuf,
    },
    /// The output is something that must not be replaced.
    #[error("{} exists and is not an image; choose another output", path.display())]
    Occupied {
        /// The output.
        path: PathBuf,
    },
    /// A file changed while it was packed.
    #[error("{} changed while it was packed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// Says what was being done when an I/O error came.
trait During<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, PackError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, PackError> {
        self.map_err(|source| PackError::Io { action, path: path.to_owned(), source })
    }
}

/// Packs a program. Reads files and compresses: blocks.
pub fn pack(options: &PackOptions) -> Result<Packed, PackError> {
    let program = options.program.canonicalize();
    let program = program.during("find", &options.program)?;
    let elf = Elf::read(&program)?;
    let libraries = Libraries::find(&program, &elf)?;
    let inside = Path::new("/usr/bin").join(file_name(&options.program, &program));
    let tree = build_tree(options, &program, &inside, &libraries)?;

    let mut layout = Layout::begin(&options.output)?;
    let layer = layout.add_layer(&tree, options.compression)?;
    let config = config(options, &elf, &inside, &libraries, &layer);
    let config = layout.add_blob(config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": layout::MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest,
            "size": config.size,
        },
        "layers": [{
            "mediaType": options.compression.media_type(),
            "digest": layer.blob.digest,
            "size": layer.blob.size,
        }],
    });
    let manifest = layout.add_blob(manifest.to_string().as_bytes())?;
    layout.finish(&options.output, &options.name, &manifest)?;
    Ok(Packed {
        digest: manifest.digest,
        config: config.digest,
        layer: layer.blob.digest,
        layer_size: ByteCount(layer.blob.size),
        unpacked_size: ByteCount(layer.unpacked_size),
        program: inside,
        libraries: libraries.paths,
    })
}

/// The name that the user gave the program, else that of the file behind it.
fn file_name<'a>(given: &'a Path, found: &'a Path) -> &'a std::ffi::OsStr {
    given.file_name().or_else(|| found.file_name()).expect("the path of a file ends in its name")
}

fn build_tree(
    options: &PackOptions,
    program: &Path,
    inside: &Path,
    libraries: &Libraries,
) -> Result<Tree, PackError> {
    let mut tree = Tree::default();
    // Libraries first: on a merged /usr they bring the links that all other paths must respect.
    for path in &libraries.paths {
        tree.copy_in_place(path)?;
    }
    tree.copy(program, inside)?;
    tree.directory(Path::new("/tmp"), 0o1777)?;
    tree.directory(Path::new("/root"), 0o700)?;
    for (path, text) in [("/etc/passwd", PASSWD), ("/etc/group", GROUP)] {
        tree.file(Path::new(path), Content::Text(text), 0o644)?;
    }
    if !libraries.paths.is_empty() {
        let path = Path::new("/etc/nsswitch.conf");
        tree.file(path, Content::Text(NSSWITCH), 0o644)?;
    }
    let certificates = Path::new(CA_CERTIFICATES);
    if certificates.exists() {
        tree.copy(certificates, certificates)?;
    }
    // Last, so that a user's file takes the place of ours.
    for include in &options.include {
        tree.copy(&include.host, &include.container)?;
    }
    Ok(tree)
}

fn config(
    options: &PackOptions,
    elf: &Elf,
    inside: &Path,
    libraries: &Libraries,
    layer: &layout::Layer,
) -> serde_json::Value {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    if let Some(dirs) = libraries.search_path() {
        env.push(("LD_LIBRARY_PATH".to_owned(), dirs));
    }
    for (name, value) in &options.env {
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    let env: Vec<String> = env.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let ports: serde_json::Map<_, _> =
        options.expose.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
    let mut run = json!({
        "Entrypoint": [inside],
        "Env": env,
        "WorkingDir": options.working_dir.as_deref().unwrap_or("/"),
    });
    if !options.args.is_empty() {
        run["Cmd"] = json!(options.args);
    }
    if !ports.is_empty() {
        run["ExposedPorts"] = ports.into();
    }
    if let Some(user) = &options.user {
        run["User"] = json!(user);
    }
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": elf.architecture.oci_name(),
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "longshore image pack"}],
    })
}

#[cfg(test)]
mod tests;
