//! The clients that people have, as Debian ships them, against the registry. Needs root, the packages
//! docker.io, podman, buildah, skopeo and busybox-static, and crane and oras of a newer Debian, which
//! `cargo xtask packages` fetches. No image comes from anywhere but our packer.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "support/engines.rs"]
mod engines;
#[path = "support/server.rs"]
mod server;

#[path = "clients/buildah.rs"]
mod buildah;
#[path = "clients/crane.rs"]
mod crane;
#[path = "clients/oras.rs"]
mod oras;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::{Docker, Podman, run, succeeds};
use longshore_image::client::RegistryClient;
use longshore_image::pack::{PackOptions, PackOutput, Packed, pack};
use longshore_image::push::{PushTarget, push};
use longshore_types::Digest;
use serde_json::Value;
use server::{ADMIN, READER, Server, TEAM, options, serve};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A registry, a packed image that only this test has, and a directory for a client.
struct Harness {
    server: Server,
    dir: tempfile::TempDir,
    packed: Packed,
}

impl Harness {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(options(&dir.path().join("registry"))).await;
        let layout = dir.path().join("layout");
        let packed = pack(&PackOptions::new("/bin/busybox", PackOutput::Layout(layout))).unwrap();
        Self { server, dir, packed }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `host:port/repository:tag`.
    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.server.address)
    }

    fn client(&self) -> RegistryClient {
        let url = format!("http://{}", self.server.address);
        RegistryClient::new(&url, Some(ADMIN.to_owned())).unwrap()
    }

    async fn push_packed(&self, repository: &str) {
        let target = PushTarget {
            repository: repository.parse().unwrap(),
            tag: Some("1".parse().unwrap()),
            mount_from: None,
        };
        let layout = self.path("layout");
        push(&self.client(), &layout, None, &target, &|_| ()).await.unwrap();
    }

    /// The digest, media type and document that a tag names.
    async fn manifest(&self, repository: &str, reference: &str) -> (Digest, String, Value) {
        let repository = repository.parse().unwrap();
        let manifest = self.client().manifest(&repository, reference).await.unwrap();
        let document = serde_json::from_slice(&manifest.bytes).unwrap();
        (manifest.digest, manifest.media_type, document)
    }
}

/// Runs a command that must fail and say why.
#[track_caller]
fn fails(package: &str, command: &mut Command, why: &str) {
    let output = run(package, command);
    let error = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(!output.status.success(), "{command:?} succeeded");
    assert!(error.contains(why), "{command:?}: {error}");
}

fn layer_digests(document: &Value) -> Vec<&str> {
    let layers = document["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["digest"].as_str().unwrap()).collect()
}

fn skopeo(args: &[&str]) -> Command {
    let mut command = Command::new("skopeo");
    // Its default policy file comes with another package.
    command.arg("--insecure-policy").args(args);
    command
}

/// A program of a newer Debian, where `cargo xtask packages` puts it.
fn newer_debian(package: &str) -> Command {
    let dir = std::env::var_os("LONGSHORE_NEWER_DEBIAN").map(PathBuf::from).unwrap_or_else(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(target).join("newer-debian")
    });
    let program = dir.join(package).join("usr/bin").join(package);
    assert!(program.exists(), "{} is missing; run cargo xtask packages", program.display());
    Command::new(program)
}

fn credentials(token: &str) -> String {
    format!("anyone:{token}")
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_lists_and_deletes() {
    let registry = Harness::new().await;
    let admin = credentials(ADMIN);
    let at = |name: &str| format!("docker://{}", registry.image(name));
    let layout = format!("oci:{}:latest", registry.path("layout").display());
    let into = ["copy", "--dest-tls-verify=false", "--dest-creds", &admin];
    let both = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let creds = ["--src-creds", &admin, "--dest-creds", &admin];

    succeeds("skopeo", skopeo(&into).args([&layout, &at("team/app:1")]));
    let (digest, ..) = registry.manifest("team/app", "1").await;
    assert_eq!(digest, registry.packed.digest);

    // From repository to repository, which mounts, and back to a layout: the same bytes.
    succeeds("skopeo", skopeo(&both).args(creds).args([at("team/app:1"), at("team/copy:2")]));
    assert_eq!(registry.manifest("team/copy", "2").await.0, registry.packed.digest);
    let back = registry.path("back");
    let out = ["copy", "--src-tls-verify=false", "--src-creds", &admin];
    let to = format!("oci:{}:latest", back.display());
    succeeds("skopeo", skopeo(&out).args([&at("team/copy:2"), &to]));
    for digest in [registry.packed.digest, registry.packed.config, registry.packed.layer] {
        let blob = format!("blobs/sha256/{}", digest.hex());
        let pulled = fs::read(back.join(&blob)).unwrap();
        assert!(pulled == fs::read(registry.path("layout").join(&blob)).unwrap(), "{blob}");
    }

    zstd_layers(&registry, &admin).await;

    // Docker's media types.
    let docker = ["--format", "v2s2"];
    succeeds("skopeo", skopeo(&into).args(docker).args([&layout, &at("team/app:docker")]));
    assert_eq!(registry.manifest("team/app", "docker").await.1, DOCKER_MANIFEST);

    let tags = ["list-tags", "--tls-verify=false", "--creds", &admin];
    let name = format!("docker://{}/team/app", registry.server.address);
    let listed = succeeds("skopeo", skopeo(&tags).arg(&name));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["Tags"], serde_json::json!(["1", "docker"]));
    let delete = ["delete", "--tls-verify=false", "--creds", &admin];
    succeeds("skopeo", skopeo(&delete).arg(at("team/app:docker")));
    let inspect = ["inspect", "--tls-verify=false", "--creds", &admin];
    fails("skopeo", skopeo(&inspect).arg(at("team/app:docker")), "manifest unknown");
}

/// skopeo compresses only what is not compressed, and mounts what it has pushed in another form; so
/// the image is one that no registry has seen.
async fn zstd_layers(registry: &Harness, admin: &str) {
    let stamp = registry.path("stamp");
    fs::write(&stamp, registry.dir.path().to_str().unwrap()).unwrap();
    let fresh = registry.path("fresh");
    let mut options = PackOptions::new("/bin/busybox", PackOutput::Layout(fresh.clone()));
    options.include = vec![format!("{}:/stamp", stamp.display()).parse().unwrap()];
    let packed = pack(&options).unwrap();
    let plain = format!("dir:{}", registry.path("plain").display());
    let fresh = format!("oci:{}:latest", fresh.display());
    succeeds("skopeo", &mut skopeo(&["copy", "--dest-decompress", &fresh, &plain]));
    let to = format!("docker://{}", registry.image("team/zstd:1"));
    let push = ["copy", "--dest-tls-verify=false", "--dest-creds", admin, "--dest-compress"];
    let zstd = ["--dest-compress-format", "zstd", &plain, &to];
    succeeds("skopeo", skopeo(&push).args(zstd));
    let (_, _, document) = registry.manifest("team/zstd", "1").await;
    let kind = document["layers"][0]["mediaType"].as_str().unwrap();
    assert!(kind.ends_with("tar+zstd"), "{kind}");
    assert_eq!(document["config"]["digest"], packed.config.to_string());
    let pull = ["copy", "--src-tls-verify=false", "--src-creds", admin, &to];
    let back = format!("oci:{}:latest", registry.path("from-zstd").display());
    succeeds("skopeo", skopeo(&pull).arg(back));
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_is_told_what_a_token_may_not_do() {
    let registry = Harness::new().await;
    registry.push_packed("team/app").await;
    registry.push_packed("other/app").await;
    let layout = format!("oci:{}:latest", registry.path("layout").display());
    for (token, name, why) in [
        ("wrong", "team/app:2", "unauthorized"),
        (READER, "team/app:2", "no right to push to team/app"),
        // It asks by HEAD first, whose answer has no text.
        (TEAM, "other/app:2", "403 (forbidden)"),
    ] {
        let creds = credentials(token);
        let args = ["copy", "--dest-tls-verify=false", "--dest-creds", &creds, &layout];
        let to = format!("docker://{}", registry.image(name));
        fails("skopeo", skopeo(&args).arg(&to), why);
    }
    let inspect = ["inspect", "--tls-verify=false", "--no-creds"];
    let name = format!("docker://{}", registry.image("team/app:1"));
    fails("skopeo", skopeo(&inspect).arg(name), "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_logs_in_pulls_and_pushes() {
    let registry = Harness::new().await;
    registry.push_packed("team/app").await;
    let podman = Podman::new(registry.path("podman"), "vfs");
    let address = registry.server.address.to_string();
    let login =
        |token| podman.command(&["login", "--tls-verify=false", "-u", "me", "-p", token, &address]);
    fails("podman", &mut login("wrong"), "invalid username/password");
    succeeds("podman", &mut login(TEAM));

    let image = registry.image("team/app:1");
    podman.run(&["pull", "--tls-verify=false", &image]);
    let digest = podman.run(&["inspect", "--format", "{{.Digest}}", &image]);
    assert_eq!(digest, registry.packed.digest.to_string());

    let copy = registry.image("team/podman:2");
    podman.run(&["push", "--tls-verify=false", &image, &copy]);
    let (digest, _, document) = registry.manifest("team/podman", "2").await;
    assert_eq!(document["config"]["digest"], registry.packed.config.to_string());
    podman.run(&["rmi", "--all", "--force"]);
    podman.run(&["pull", "--tls-verify=false", &copy]);
    let pulled = podman.run(&["inspect", "--format", "{{.Digest}}", &copy]);
    assert_eq!(pulled, digest.to_string());

    let repository = format!("{address}/team/podman");
    let tags = podman.run(&["search", "--list-tags", "--tls-verify=false", &repository]);
    assert_eq!(tags.split_whitespace().collect::<Vec<_>>(), ["NAME", "TAG", &repository, "2"]);

    let denied = registry.image("other/app:1");
    let mut push = podman.command(&["push", "--tls-verify=false", &copy, &denied]);
    fails("podman", &mut push, "403 (forbidden)");
}

/// The digest by which the daemon knows an image of a repository.
fn digest_in(docker: &Docker, image: &str) -> String {
    let digests = docker.run(&["inspect", "--format", "{{json .RepoDigests}}", image]);
    let digests: Vec<String> = serde_json::from_str(&digests).unwrap();
    let (repository, _) = image.rsplit_once(':').unwrap();
    let found = digests.iter().find_map(|digest| digest.strip_prefix(&format!("{repository}@")));
    found.unwrap_or_else(|| panic!("{image} is not in {digests:?}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_logs_in_pulls_and_pushes() {
    let registry = Harness::new().await;
    registry.push_packed("team/app").await;
    let docker = Docker::start(registry.path("docker"), "vfs");
    let address = registry.server.address.to_string();
    let login = |token| docker.command(&["login", "-u", "me", "-p", token, &address]);
    fails("docker.io", &mut login("wrong"), "unauthorized");
    succeeds("docker.io", &mut login(TEAM));

    let image = registry.image("team/app:1");
    docker.run(&["pull", &image]);
    assert_eq!(digest_in(&docker, &image), registry.packed.digest.to_string());

    // docker knows where the layer came from and has it mounted; its manifest is of its own kind.
    let copy = registry.image("team/docker:2");
    docker.run(&["tag", &image, &copy]);
    let said = docker.run(&["push", &copy]);
    assert!(said.contains("Mounted from team/app"), "{said}");
    let (digest, kind, document) = registry.manifest("team/docker", "2").await;
    assert_eq!(kind, DOCKER_MANIFEST);
    assert_eq!(layer_digests(&document), [registry.packed.layer.to_string()]);
    assert_eq!(digest_in(&docker, &copy), digest.to_string());

    // Layers that the registry does not have are uploaded.
    let tar = registry.path("files.tar");
    let mut builder = tar::Builder::new(File::create(&tar).unwrap());
    builder.append_path_with_name("/bin/busybox", "bin/tool").unwrap();
    builder.into_inner().unwrap();
    let imported = registry.image("team/import:1");
    docker.run(&["import", tar.to_str().unwrap(), &imported]);
    docker.run(&["push", &imported]);
    let (digest, ..) = registry.manifest("team/import", "1").await;
    let by_digest = registry.image(&format!("team/import@{digest}"));
    docker.run(&["rmi", "--force", &imported, &copy, &image]);
    docker.run(&["pull", &by_digest]);
    docker.run(&["pull", &copy]);

    let denied = registry.image("other/app:1");
    docker.run(&["tag", &copy, &denied]);
    fails("docker.io", &mut docker.command(&["push", &denied]), "denied");
    succeeds("docker.io", &mut login(READER));
    fails("docker.io", &mut docker.command(&["push", &copy]), "denied");
    fails(
        "docker.io",
        &mut docker.command(&["pull", &registry.image("team/app:none")]),
        "manifest",
    );
}
