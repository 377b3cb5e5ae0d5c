//! The same image unpacked by us, by docker and by podman, from our registry: the three trees must be
//! the same in every path, type, mode, owner, size, time, attribute, group of hard links and byte.
//!
//! Names that a layer has twice are compared with GNU tar alone (image: `second_opinion`): docker and
//! podman refuse them. Where trees differ, and it is right so, [`KNOWN`] says it with the reason; nothing else passes.
//! Needs root, a kernel with overlayfs, and the packages docker.io, podman, skopeo, python3 and tar.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "support/engines.rs"]
mod engines;
#[path = "support/server.rs"]
mod server;

#[path = "trees/listing.rs"]
mod listing;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engines::{Docker, Podman, succeeds};
use listing::{Node, Tree, list};
use longshore_image::client::RegistryClient;
use longshore_image::mount::{KernelPath, mount_rootfs, unmount_rootfs};
use longshore_image::push::{PushTarget, push};
use longshore_image::{ImageStore, Limits};
use serde_json::{Value, json};
use server::{ADMIN, Server, hex, options, serve};

/// Who else unpacked the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Docker,
    Podman,
}

/// A difference that is right.
struct Known {
    /// Whose tree; both when absent.
    who: Option<Who>,
    /// At which path; at every one when absent.
    path: Option<&'static str>,
    /// Of which field; the whole node when absent.
    field: Option<&'static str>,
    why: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        who: None,
        path: Some(""),
        field: Some("mode"),
        why: "both pass over what a layer says of the root; we take its word",
    },
    Known {
        who: None,
        path: Some(""),
        field: Some("mtime"),
        why: "the root that is seen is made with the mount",
    },
    Known {
        who: None,
        path: Some("bin/null"),
        field: None,
        why: "we make no devices: instances get theirs from the runtime",
    },
    Known { who: None, path: Some("fifo"), field: None, why: "we make no fifos, as with devices" },
    Known {
        who: None,
        path: None,
        field: Some("xattr trusted.other"),
        why: "`trusted.*` speaks to the machine, overlayfs above all; an image may not set it",
    },
    Known {
        who: None,
        path: Some("old"),
        field: Some("mtime"),
        why: "both take a time before 1970 for 1970",
    },
    Known {
        who: None,
        path: Some("tmp"),
        field: None,
        why: "a layer has a file in it without describing it; both then lose the mode 1777 that a \
              lower layer gave it",
    },
];

/// An image in a registry, and a directory for everything.
struct Scene {
    dir: tempfile::TempDir,
    server: Server,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("lsr-").tempdir().unwrap();
        let server = serve(options(&dir.path().join("registry"))).await;
        Self { dir, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> RegistryClient {
        let url = format!("http://{}", self.server.address);
        RegistryClient::new(&url, Some(ADMIN.to_owned())).unwrap()
    }

    fn image(&self) -> String {
        format!("{}/team/tricky:1", self.server.address)
    }

    /// Pushes layers, lowest first; every second one is compressed, in two members.
    async fn push(&self, layers: &[Vec<u8>]) -> longshore_types::Digest {
        let layout = self.path("layout");
        write_layout(&layout, layers);
        let target = PushTarget {
            repository: "team/tricky".parse().unwrap(),
            tag: Some("1".parse().unwrap()),
            mount_from: None,
        };
        push(&self.client(), &layout, None, &target, &|_| ()).await.unwrap().digest
    }

    /// Pulled into a store of ours and mounted as instances have it, on every kernel.
    async fn ours(&self, digest: &longshore_types::Digest) -> Tree {
        let [directories, mut erofs] = [
            self.ours_by(digest, Some(KernelPath::Directories)).await,
            // Whichever way of EROFS this kernel has.
            self.ours_by(digest, None).await,
        ];
        // The root that is seen is made with the mount.
        let time = directories[&b""[..]]["mtime"].clone();
        erofs.get_mut(&b""[..]).unwrap().insert("mtime".to_owned(), time);
        for (path, node) in &directories {
            assert_eq!(erofs.get(path), Some(node), "{}", String::from_utf8_lossy(path));
        }
        assert_eq!(erofs.len(), directories.len());
        erofs
    }

    async fn ours_by(&self, digest: &longshore_types::Digest, kernel: Option<KernelPath>) -> Tree {
        let name = kernel.map_or_else(|| "best".to_owned(), |kernel| kernel.to_string());
        let dir = self.path(&format!("ours of {name}"));
        let store = ImageStore::open_with(&dir, Limits::default(), kernel).unwrap();
        assert_eq!(store.kernel_path() == KernelPath::Directories, kernel.is_some());
        let repository = "team/tricky".parse().unwrap();
        let source = Arc::new(self.client());
        let (image, _) = store.pull(source, &repository, digest, &|_| ()).await.unwrap();
        let target = self.path(&format!("root of {name}"));
        image.mount(&self.path(&format!("base of {name}")), &target, None).unwrap();
        let tree = list(&target);
        unmount_rootfs(&target).unwrap();
        tree
    }

    /// The directories of the layers that docker makes, lowest first.
    fn pull_with_docker(&self, docker: &Docker) -> Vec<PathBuf> {
        let (registry, image) = (self.server.address.to_string(), self.image());
        docker.run(&["login", "-u", "me", "-p", ADMIN, &registry]);
        docker.run(&["pull", "--quiet", &image]);
        let inspect = ["image", "inspect", "--format", "{{json .GraphDriver.Data}}", &image];
        let data: Value = serde_json::from_str(&docker.run(&inspect)).unwrap();
        let upper = data["UpperDir"].as_str().unwrap();
        let lower = data["LowerDir"].as_str().unwrap_or_default();
        let from_the_top = std::iter::once(upper).chain(lower.split(':'));
        let mut layers: Vec<PathBuf> =
            from_the_top.filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        layers.reverse();
        layers
    }

    /// The tree that podman makes.
    fn mount_with_podman(&self, podman: &Podman) -> PathBuf {
        let (creds, image) = (format!("me:{ADMIN}"), self.image());
        podman.run(&["pull", "--quiet", "--tls-verify=false", "--creds", &creds, &image]);
        PathBuf::from(podman.run(&["image", "mount", &image]))
    }

    /// Layers as directories, lowest first, stacked by the kernel.
    fn mounted(&self, layers: &[PathBuf], name: &str) -> Tree {
        let target = self.path(&format!("{name}-root"));
        mount_rootfs(layers, &self.path(&format!("{name}-base")), &target, None).unwrap();
        let tree = list(&target);
        unmount_rootfs(&target).unwrap();
        tree
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .args(["-n", "-1"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

fn write_layout(layout: &Path, layers: &[Vec<u8>]) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |media_type: &str, bytes: &[u8]| {
        let hash = hex(bytes);
        fs::write(blobs.join(&hash), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len()})
    };
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    let described: Vec<Value> = layers
        .iter()
        .enumerate()
        .map(|(n, plain)| {
            let (first, second) = plain.split_at(plain.len() / 2);
            match n % 2 {
                0 => blob(&format!("{LAYER}+gzip"), &[gzip(first), gzip(second)].concat()),
                _ => blob(LAYER, plain),
            }
        })
        .collect();
    let diff_ids: Vec<String> =
        layers.iter().map(|plain| format!("sha256:{}", hex(plain))).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": described,
    });
    let manifest = blob(MANIFEST, manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

/// What differs and is not known, one line each; the places of what is known go into `met`.
fn differences(who: Who, ours: &Tree, theirs: &Tree, met: &mut BTreeSet<usize>) -> Vec<String> {
    let mut is_known = |path: &str, field: Option<&str>| {
        let place = KNOWN.iter().position(|known| {
            known.who.is_none_or(|known| known == who)
                && known.path.is_none_or(|known| known == path)
                && (known.field.is_none() && known.path.is_some() || known.field == field)
        });
        met.extend(place);
        place.is_some()
    };
    let none = Node::new();
    let mut found = Vec::new();
    let paths: BTreeSet<&Vec<u8>> = ours.keys().chain(theirs.keys()).collect();
    for path in paths {
        let shown = String::from_utf8_lossy(path).into_owned();
        let (our, their) = (ours.get(path), theirs.get(path));
        if our.is_none() != their.is_none() {
            if !is_known(&shown, None) {
                found.push(format!("{shown}: ours {our:?}, {who:?}'s {their:?}"));
            }
            continue;
        }
        let (our, their) = (our.unwrap_or(&none), their.unwrap_or(&none));
        let fields: BTreeSet<&String> = our.keys().chain(their.keys()).collect();
        for field in fields {
            let (our, their) = (our.get(field), their.get(field));
            if our != their && !is_known(&shown, Some(field)) {
                found.push(format!("{shown}: {field}: ours {our:?}, {who:?}'s {their:?}"));
            }
        }
    }
    found
}

/// Pushes layers and compares our tree with the others'; gives ours, and the known differences.
async fn compare(layers: &[Vec<u8>], others: &[Who]) -> (Tree, BTreeSet<usize>) {
    let scene = Scene::new().await;
    let digest = scene.push(layers).await;
    let ours = scene.ours(&digest).await;
    let (mut found, mut met) = (Vec::new(), BTreeSet::new());
    for who in others {
        let theirs = match who {
            Who::Docker => {
                let docker = Docker::start(scene.path("docker"), "overlay2");
                scene.mounted(&scene.pull_with_docker(&docker), "docker")
            }
            Who::Podman => {
                let podman = Podman::new(scene.path("podman"), "overlay");
                list(&scene.mount_with_podman(&podman))
            }
        };
        assert!(!theirs.is_empty());
        found.extend(differences(*who, &ours, &theirs, &mut met));
    }
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
    (ours, met)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_corner_comes_out_as_docker_and_podman_make_it() {
    let made = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees/layers.py");
    succeeds("python3", Command::new("python3").arg("-I").arg(script).arg(made.path()));
    let mut files: Vec<_> =
        fs::read_dir(made.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let layers: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert_eq!(layers.len(), 6);
    let (tree, met) = compare(&layers, &[Who::Docker, Who::Podman]).await;
    for (place, Known { path, field, why, .. }) in KNOWN.iter().enumerate() {
        assert!(met.contains(&place), "{path:?} {field:?} is no difference any more: {why}");
    }
    // A list of known differences cannot hide that nothing was there.
    assert!(tree.len() > 60, "{}", tree.len());
    let field = |path: &str, field: &str| tree[path.as_bytes()][field].clone();
    assert_eq!(field("tmp", "mode"), "1777");
    assert_eq!(field("old", "mtime"), "-86401.750000000");
    assert_eq!(field("attributes", "xattr user.note"), "kept\nbinary");
    assert_eq!(field("links/a", "linked with"), "again");
    assert_eq!(field("holes", "size"), "2000000");
    for gone in
        ["gone/file", "linked", "opaque-later/old", "morph/directory/old", "fifo", "bin/null"]
    {
        assert!(!tree.contains_key(gone.as_bytes()), "{gone}");
    }
    assert_eq!(field("morph/file", "type"), "RegularFile");
}

/// More than the options of mount(2) can name. docker takes 125 layers at most.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_127_layers_comes_out_as_podman_makes_it() {
    let layer = |n: usize| {
        let mut layer = tar::Builder::new(Vec::new());
        let mut root = tar::Header::new_gnu();
        root.set_entry_type(tar::EntryType::Directory);
        root.set_mode(0o755);
        root.set_mtime(1_500_000_000);
        root.set_size(0);
        layer.append_data(&mut root, "./", std::io::empty()).unwrap();
        let mut add = |path: &str, text: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(1_500_000_000);
            header.set_size(text.len() as u64);
            layer.append_data(&mut header, path, text.as_bytes()).unwrap();
        };
        add(&format!("file-{n}"), "x");
        add("last", &n.to_string());
        if n % 10 == 9 {
            add(&format!(".wh.file-{}", n - 1), "");
        }
        layer.into_inner().unwrap()
    };
    let layers: Vec<Vec<u8>> = (0..127).map(layer).collect();
    let (tree, _) = compare(&layers, &[Who::Podman]).await;
    assert_eq!(tree.len(), 1 + 127 - 12 + 1);
}
