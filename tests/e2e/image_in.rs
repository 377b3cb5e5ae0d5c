//! docker, podman, skopeo, crane and oras of Debian push and pull back the same digests; `image pack` makes an
//! image without any of them.

use std::process::Command;

use longshore_e2e::debian::newer_program;
use longshore_e2e::dockerd::Firewall;
use longshore_e2e::image::{self, checked};
use longshore_e2e::{Dockerd, Platform};
use serde_json::{Value, json};

use crate::scene::{busybox, page};

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// skopeo with this verb, speaking to the platform's registry.
fn skopeo(platform: &Platform, verb: &str) -> Command {
    let mut command = platform.tool("skopeo");
    command.args(["--insecure-policy", verb]);
    let (tls, credentials) = match verb {
        "copy" => ("--src-tls-verify=false", "--src-creds"),
        _ => ("--tls-verify=false", "--creds"),
    };
    command.args([tls, credentials, &format!("anyone:{}", platform.token())]);
    command
}

fn reference(platform: &Platform, name: &str) -> String {
    format!("docker://{}/{name}", platform.endpoints().registry)
}

/// The digest under which the registry has the image.
fn digest(platform: &Platform, name: &str) -> String {
    let mut inspect = skopeo(platform, "inspect");
    output(inspect.args(["--format", "{{.Digest}}", &reference(platform, name)]))
}

#[test]
fn skopeo_pushes_and_pulls_back_the_same_digest() {
    let platform = Platform::start().unwrap();
    let image = busybox(&platform, "one");
    platform.push(&image, "default/web:1").unwrap();
    assert_eq!(digest(&platform, "default/web:1"), image.digest);

    let back = platform.dir().join("back");
    let mut copy = skopeo(&platform, "copy");
    copy.args(["--quiet", "--preserve-digests", &reference(&platform, "default/web:1")]);
    checked(copy.arg(format!("oci:{}", back.display()))).unwrap();
    let index = std::fs::read(back.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["manifests"][0]["digest"], image.digest);

    let mut tags = skopeo(&platform, "list-tags");
    let tags = output(tags.arg(reference(&platform, "default/web")));
    assert_eq!(serde_json::from_str::<Value>(&tags).unwrap()["Tags"], json!(["1"]));
    platform.finish();
}

#[test]
fn every_form_of_layer_and_manifest_is_taken() {
    let platform = Platform::start().unwrap();
    let image = busybox(&platform, "one");
    for (tag, options) in [
        ("oci-gzip", &["--format", "oci"][..]),
        ("oci-zstd", &["--format", "oci", "--dest-compress-format", "zstd"]),
        ("docker", &["--format", "v2s2"]),
    ] {
        let target = reference(&platform, &format!("default/web:{tag}"));
        let mut copy = platform.tool("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        copy.args(["--dest-creds", &format!("anyone:{}", platform.token())]);
        checked(copy.args(options).args([&image.source(), &target])).unwrap();
        let app = format!("web-{tag}");
        let name = format!("default/web:{tag}");
        platform.deploy(&json!({"app": app, "image": name, "port": image::BUSYBOX_PORT})).unwrap();
        assert_eq!(page(&platform, &app), "one", "{tag}");
    }
    platform.finish();
}

#[test]
fn docker_pushes_and_pulls_back_the_same_digest() {
    let platform = Platform::start().unwrap();
    let docker = Dockerd::start(Firewall::Untouched).unwrap();
    let registry = &platform.endpoints().registry;
    let name = format!("{registry}/default/web:1");
    let image = busybox(&platform, "one");
    let mut load = platform.tool("skopeo");
    load.args(["--insecure-policy", "copy", "--quiet", "--dest-daemon-host", &docker.host()]);
    checked(load.args([image.source(), format!("docker-daemon:{name}")])).unwrap();

    docker.docker(&["push", &name]).expect_err("nobody is logged in");
    let login = ["login", "--username", "anyone", "--password", "wrong", registry];
    docker.docker(&login).expect_err("the token is wrong");
    let login = ["login", "--username", "anyone", "--password", platform.token(), registry];
    docker.docker(&login).unwrap();
    docker.docker(&["push", &name]).unwrap();

    let pushed = digest(&platform, "default/web:1");
    docker.docker(&["rmi", &name]).unwrap();
    let pulled = docker.docker(&["pull", &name]).unwrap();
    assert!(pulled.contains(&pushed), "{pushed} is not in {pulled}");
    drop(docker);
    platform.finish();
}

#[test]
fn podman_pushes_and_pulls_back_the_same_digest() {
    let platform = Platform::start().unwrap();
    let image = busybox(&platform, "one");
    let name = format!("{}/default/web:1", platform.endpoints().registry);
    let podman = |arguments: &[&str]| {
        let root = platform.dir().join("podman");
        let mut command = platform.tool("podman");
        for option in ["--root", "--runroot", "--tmpdir"] {
            command.arg(option).arg(root.join(option.trim_start_matches('-')));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        output(command.args(arguments))
    };
    let credentials = format!("anyone:{}", platform.token());
    let archive = platform.dir().join("archive").display().to_string();
    let mut save = platform.tool("skopeo");
    save.args(["--insecure-policy", "copy", "--quiet", &image.source()]);
    checked(save.arg(format!("docker-archive:{archive}:localhost/loaded:1"))).unwrap();
    podman(&["load", "--quiet", "--input", &archive]);
    let options = ["--tls-verify=false", "--creds", credentials.as_str()];
    podman(&[&["push", "--quiet"], &options[..], &["localhost/loaded:1", &name]].concat());
    let pushed = digest(&platform, "default/web:1");
    podman(&["rmi", "--all", "--force"]);
    podman(&[&["pull", "--quiet"], &options[..], &[&name]].concat());
    let repository = format!("{}/default/web", platform.endpoints().registry);
    let pulled = podman(&["images", "--digests", "--format", "{{.Digest}}", &repository]);
    assert!(pulled.contains(&pushed), "{pushed} is not in {pulled}");
    platform.finish();
}

#[test]
fn crane_and_oras_push_pull_copy_list_and_delete() {
    let platform = Platform::start().unwrap();
    let image = busybox(&platform, "one");
    let registry = platform.endpoints().registry.clone();
    let tool = |name: &str, arguments: &[&str]| {
        let program = newer_program(name).unwrap();
        output(platform.tool(program.to_str().unwrap()).args(arguments))
    };
    let crane = |arguments: &[&str]| tool("crane", arguments);
    let oras = |arguments: &[&str]| tool("oras", arguments);
    let name = format!("{registry}/default/web:1");
    let copy = format!("{registry}/default/copy:1");
    crane(&["auth", "login", "-u", "anyone", "-p", platform.token(), &registry]);
    crane(&["push", image.dir.to_str().unwrap(), &name]);
    assert_eq!(crane(&["digest", &name]), image.digest);
    assert_eq!(digest(&platform, "default/web:1"), image.digest);
    crane(&["copy", &name, &copy]);
    assert_eq!(crane(&["ls", &format!("{registry}/default/copy")]), "1");
    let back = platform.dir().join("back");
    crane(&["pull", "--format", "oci", &copy, back.to_str().unwrap()]);
    let index: Value =
        serde_json::from_slice(&std::fs::read(back.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], image.digest);

    oras(&["login", "--plain-http", "-u", "anyone", "-p", platform.token(), &registry]);
    std::fs::write(platform.dir().join("note"), "signed").unwrap();
    let attach = ["attach", "--plain-http", "--artifact-type", "test/note"];
    oras(&[&attach[..], &[&copy, "note:text/plain"]].concat());
    let discover = ["discover", "--plain-http", "--format", "json", &copy];
    let found: Value = serde_json::from_str(&oras(&discover)).unwrap();
    assert_eq!(found["manifests"][0]["artifactType"], "test/note");
    oras(&["manifest", "delete", "--plain-http", "--force", &copy]);
    assert_eq!(crane(&["ls", &format!("{registry}/default/copy")]), "");
    assert_eq!(crane(&["digest", &name]), image.digest);
    platform.finish();
}

#[test]
fn a_token_does_only_what_its_rights_say() {
    let platform = Platform::start().unwrap();
    let image = busybox(&platform, "one");
    let token = |arguments: &[&str]| {
        let created = platform.run(&[&["token", "create"], arguments].concat()).ok();
        format!("anyone:{}", created.trim())
    };
    let pusher = token(&["pusher", "--push", "default/*"]);
    let puller = token(&["puller", "--pull", "default/web"]);
    let copy = |side: &str, credentials: &str, from: &str, to: &str| {
        let mut copy = platform.tool("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", &format!("--{side}-tls-verify=false")]);
        checked(copy.args([&format!("--{side}-creds"), credentials, from, to]))
    };
    let target = |name: &str| reference(&platform, name);
    copy("dest", &pusher, &image.source(), &target("default/web:1")).unwrap();
    copy("dest", &pusher, &image.source(), &target("other/web:1")).expect_err("another project");
    copy("dest", &puller, &image.source(), &target("default/web:2")).expect_err("it may only pull");
    let back = |name: &str| format!("dir:{}", platform.dir().join(name).display());
    copy("src", &puller, &target("default/web:1"), &back("a")).unwrap();
    copy("src", "anyone:lsh_guessed", &target("default/web:1"), &back("b")).expect_err("unknown");

    platform.run(&["token", "rm", "puller"]).ok();
    longshore_e2e::eventually("a removed token is refused", || {
        let refused = copy("src", &puller, &target("default/web:1"), &back("c")).is_err();
        Ok(refused.then_some(()))
    })
    .unwrap();
    platform.finish();
}

#[test]
fn our_own_push_lists_inspects_and_removes() {
    let platform = Platform::start().unwrap();
    let image = busybox(&platform, "one");
    let dir = image.dir.to_str().unwrap();
    let push = ["image", "push", dir, "default/web:1", "--json"];
    let pushed: Value = platform.run(&push).json();
    assert_eq!(pushed["digest"], image.digest.as_str());
    let again: Value = platform.run(&push).json();
    assert_eq!((&again["n_sent"], &again["bytes_sent"]), (&json!(0), &json!(0)));
    assert_eq!(digest(&platform, "default/web:1"), image.digest);

    assert!(platform.run(&["image", "ls"]).ok().contains("default/web"));
    let shown = platform.run(&["image", "inspect", "default/web:1"]).ok();
    assert!(shown.contains(&image.digest), "{shown}");
    platform.run(&["image", "rm", "default/web:1"]).ok();
    platform.run(&["image", "inspect", "default/web:1"]).fails(4, &["default/web:1"]);
    platform.finish();
}

#[test]
fn a_program_is_packed_with_its_libraries_and_runs() {
    let platform = Platform::start().unwrap();
    // A program with shared libraries that ends by itself and says so.
    platform.run(&["image", "pack", "/usr/bin/sha256sum", "--push", "default/packed:1"]).ok();
    let manifest = json!({
        "app": "packed",
        "image": "default/packed:1",
        "process": {"command": ["--version"]},
        "restart": "never",
    });
    platform.deploy_only(&manifest).unwrap();
    longshore_e2e::eventually("the registry tells for whom it keeps it", || {
        let why = platform.run(&["image", "ls", "default/packed", "--why"]).ok();
        Ok(why.contains("release packed r1, a tag").then_some(()))
    })
    .unwrap();
    let ended = platform
        .wait_for_instance("packed", "ended", |instance| instance.observed.last_exit.is_some())
        .unwrap();
    let exited = longshore_types::ExitReason::Exited { code: 0 };
    assert_eq!(ended.observed.last_exit, Some(exited));
    let log = platform.run(&["logs", "packed"]).ok();
    assert!(log.contains("sha256sum"), "{log}");
    platform.finish();
}
