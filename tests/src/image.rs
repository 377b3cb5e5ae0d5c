//! Images for the tests, made here of what Debian has installed; nothing is pulled from a public
//! registry.

mod layered;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use layered::{Entries, Layered};

/// The port on which [`busybox`] images serve their page.
pub const BUSYBOX_PORT: u16 = 8080;

/// An image in an OCI image layout directory, which skopeo, podman and buildah read.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The directory.
    pub dir: PathBuf,
    /// The digest of its one manifest.
    pub digest: String,
}

impl Layout {
    /// The image as skopeo names it.
    pub fn source(&self) -> String {
        format!("oci:{}", self.dir.display())
    }
}

/// How the layer of an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As a plain tar.
    None,
    /// With gzip, as docker does.
    Gzip,
    /// With zstd, as buildx and podman can.
    Zstd,
}

/// A layer of an image that is put together.
#[derive(Debug, Clone)]
pub struct StoredLayer {
    /// The file that it lies in.
    pub path: PathBuf,
    /// The SHA-256 of its archive, in hexadecimal digits.
    pub diff_id: String,
    /// How the file is compressed.
    pub compression: Compression,
}

/// An image of busybox that serves `page` at `/` on [`BUSYBOX_PORT`], in a directory below `dir`.
pub fn busybox(dir: &Path, name: &str, page: &str) -> Result<Layout> {
    let rootfs = dir.join(format!("{name}-rootfs"));
    for part in ["bin", "www", "tmp", "etc"] {
        fs::create_dir_all(rootfs.join(part))?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", rootfs.join("bin/busybox"))
        .context("no /bin/busybox; install the package busybox-static")?;
    for tool in ["sh", "cat", "sleep", "wget", "id", "dd", "ls", "nc"] {
        symlink("busybox", rootfs.join("bin").join(tool))?;
    }
    fs::write(rootfs.join("www/index.html"), page)?;
    // A page that takes a second.
    let slow = rootfs.join("www/cgi-bin/slow");
    fs::create_dir_all(rootfs.join("www/cgi-bin"))?;
    fs::write(&slow, "#!/bin/sh\nsleep 1\nprintf 'Content-Type: text/plain\\r\\n\\r\\nslow'\n")?;
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755))?;
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\nweb:x:1000:\n")?;
    let port = BUSYBOX_PORT.to_string();
    let command = ["/bin/busybox", "httpd", "-f", "-p", &port, "-h", "/www"];
    let config = json!({"Cmd": command, "Env": ["PATH=/bin"], "WorkingDir": "/"});
    pack(&rootfs, &dir.join(name), &config, Compression::Gzip)
}

/// Packs a directory as the one layer of an image.
pub fn pack(rootfs: &Path, dir: &Path, config: &Value, kind: Compression) -> Result<Layout> {
    fs::create_dir_all(dir)?;
    let tar = dir.join("layer.tar");
    // Sorted and without times, so that the same files give the same digest on every run.
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--mtime=@0", "--numeric-owner", "--xattrs", "-C"]);
    command.arg(rootfs).arg("-cf").arg(&tar).arg(".");
    checked(&mut command)?;
    let diff_id = sha256_of(&tar)?;
    let path = match kind {
        Compression::None => tar,
        Compression::Gzip => {
            checked(Command::new("gzip").args(["-n", "-1"]).arg(&tar))?;
            dir.join("layer.tar.gz")
        }
        Compression::Zstd => {
            checked(Command::new("zstd").args(["-q", "--rm", "-1"]).arg(&tar))?;
            dir.join("layer.tar.zst")
        }
    };
    assemble(dir, config, vec![StoredLayer { path, diff_id, compression: kind }])
}

/// Makes an image of layers that are there, the lowest first; their files are moved.
pub fn assemble(dir: &Path, config: &Value, layers: Vec<StoredLayer>) -> Result<Layout> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (mut described, mut diff_ids) = (Vec::new(), Vec::new());
    for StoredLayer { path, diff_id, compression } in layers {
        let media_type = match compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        described.push(descriptor(&path, &blobs, media_type)?);
        diff_ids.push(format!("sha256:{diff_id}"));
    }
    let config = json!({
        "architecture": architecture()?,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = document(&config, dir, &blobs, "application/vnd.oci.image.config.v1+json")?;
    write_index(dir, &blobs, &config, &described)
}

/// Writes the manifest of an image whose blobs are there, and what leads to it.
fn write_index(dir: &Path, blobs: &Path, config: &Value, layers: &[Value]) -> Result<Layout> {
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config,
        "layers": layers,
    });
    let manifest = document(&manifest, dir, blobs, manifest_type)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    Ok(Layout { dir: dir.to_owned(), digest })
}

/// The architecture of this machine as images name it.
pub fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images for {other} are not made here"),
    }
}

fn document(value: &Value, dir: &Path, blobs: &Path, media_type: &str) -> Result<Value> {
    let path = dir.join("document");
    fs::write(&path, serde_json::to_vec(value)?)?;
    descriptor(&path, blobs, media_type)
}

/// Moves a file to its place among the blobs and gives what describes it.
fn descriptor(path: &Path, blobs: &Path, media_type: &str) -> Result<Value> {
    let hash = sha256_of(path)?;
    let size = fs::metadata(path)?.len();
    fs::rename(path, blobs.join(&hash))?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{hash}"), "size": size}))
}

/// The SHA-256 of a file, in hexadecimal digits.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read a layer"),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Runs a program that prints nothing of interest when it succeeds.
pub fn checked(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}; is its package installed?"))?;
    if output.status.success() {
        return Ok(());
    }
    let (stdout, stderr) = (output.stdout, output.stderr);
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    bail!("{command:?} failed: {}\n{}", output.status, text.join("\n"));
}
