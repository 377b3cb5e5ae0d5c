//! Images whose bytes are in an object store.

use std::fs;
use std::path::Path;
use std::process::Command;

use longshore_e2e::image::{self, Compression, checked};
use longshore_e2e::s3::S3Server;
use longshore_e2e::{Platform, UpOptions};
use serde_json::json;

use crate::scene::{busybox, page, web, with_web_on};

/// How many bytes the files below a directory have.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { size(&path) } else { fs::metadata(&path).unwrap().len() })
        .sum()
}

/// Of a layer that no compression makes smaller: many parts.
const LARGE: u64 = 100 << 20;

fn large(platform: &Platform) -> image::Layout {
    let rootfs = platform.dir().join("large-rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    let mut noise = Command::new("dd");
    noise.args(["if=/dev/urandom", "bs=1M", "status=none", &format!("count={}", LARGE >> 20)]);
    checked(noise.arg(format!("of={}", rootfs.join("noise").display()))).unwrap();
    let config = json!({"Cmd": ["/none"]});
    image::pack(&rootfs, &platform.dir().join("large"), &config, Compression::None).unwrap()
}

#[test]
fn images_are_pushed_to_an_object_store_and_run_from_it() {
    let mut store = S3Server::start().unwrap();
    let options = UpOptions { config: store.config(), ..UpOptions::default() };
    let platform = with_web_on(&options);
    platform.deploy(&web("web", 1)).unwrap();
    assert_eq!(page(&platform, "web"), "one");
    assert_eq!(store.sizes().unwrap().len(), 2, "a configuration and a layer");

    // docker's clients send a layer of any size in one go, and have it back in one.
    let image = large(&platform);
    platform.push(&image, "default/large:1").unwrap();
    assert!(store.sizes().unwrap().iter().any(|size| *size > LARGE));
    let here = size(&platform.data_dir().join("registry/images"));
    assert!(here < 1 << 20, "{here} bytes are on the registry's disk");
    let mut back = platform.tool("skopeo");
    back.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"]);
    back.args(["--src-tls-verify=false", "--src-creds", &format!("a:{}", platform.token())]);
    let registry = &platform.endpoints().registry;
    back.arg(format!("docker://{registry}/default/large:1"));
    let dir = platform.dir().join("back");
    checked(back.arg(format!("oci:{}", dir.display()))).unwrap();
    // It checks what it gets against the digests.
    assert!(size(&dir) > LARGE);

    // What was acknowledged is there after a kill.
    platform.role("registry").unwrap().kill().unwrap();
    platform.push(&busybox(&platform, "two"), "default/web:2").unwrap();
    platform
        .deploy(&json!({"app": "two", "image": "default/web:2", "port": image::BUSYBOX_PORT}))
        .unwrap();
    assert_eq!(page(&platform, "two"), "two");

    // What runs goes on without the store.
    store.stop();
    assert_eq!(page(&platform, "web"), "one");
    platform.finish();
}

#[test]
fn a_registry_says_what_is_wrong_with_its_object_store() {
    let mut store = S3Server::start().unwrap();
    let platform = Platform::start().unwrap();
    let dir = platform.dir().join("apart");
    let (dir, credentials) = (dir.to_str().unwrap(), store.credentials());
    let credentials = credentials.to_str().unwrap();
    let role = ["registry", "run", "--data-dir", dir, "--global", "unix:/none"];
    let run = |more: &[&str]| platform.run(&[&role[..], more].concat());
    run(&["--storage", "images"]).fails(2, &["s3://BUCKET or s3://BUCKET/PREFIX"]);
    run(&["--s3-region", "auto"]).fails(3, &["--s3-region = auto: nothing without storage"]);
    let storage = ["--storage", "s3://images", "--s3-credentials"];
    run(&[&storage[..], &["/none"]].concat()).fails(3, &["--s3-credentials = /none"]);
    store.stop();
    let endpoint = store.config();
    let endpoint = endpoint.split('"').find(|part| part.starts_with("http://")).unwrap();
    let listen = ["--listen", "http://127.0.0.1:0", "--s3-endpoint", endpoint];
    run(&[&listen[..], &storage, &[credentials]].concat())
        .fails(1, &["cannot write an object in s3://images, as a registry must"]);
    platform.finish();
}
