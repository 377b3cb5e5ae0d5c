//! Large layers are converted while nothing else is to be done, and nodes have them in that form, of each other too.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use longshore_e2e::image::{BUSYBOX_PORT, Entries, Layered, Layout};
use longshore_e2e::machine::{Machine, Part, platform_for};
use longshore_e2e::{Platform, UpOptions, eventually};
use serde_json::{Value, json};

use crate::joining::token;
use crate::metrics::{scrape, value};
use crate::odd_images::base;
use crate::scene::{but, page};

/// An image that serves its number, with a layer that is large enough.
fn image(dir: &Path, number: u64) -> Layout {
    let port = BUSYBOX_PORT.to_string();
    let config = json!({"Cmd": ["/bin/busybox", "httpd", "-f", "-p", port, "-h", "/www"]});
    // Nothing makes them smaller.
    let mut state = number;
    let noise = (0..9 << 17).flat_map(|_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32 ^ state).to_le_bytes()
    });
    let noise: Vec<u8> = noise.collect();
    let large = Entries::default()
        .file("www/index.html", 0o644, number.to_string().as_bytes())
        .file("bulk", 0o644, &noise);
    let layered = Layered::new(config).layer(base()).layer(large);
    layered.write(&dir.join(format!("image-{number}"))).unwrap()
}

fn manifest(number: u64) -> Value {
    json!({
        "app": format!("bulk-{number}"),
        "image": format!("default/bulk:{number}"),
        "port": BUSYBOX_PORT,
        "resources": {"memory": "32MiB", "cpu": "0.1", "disk": "16MiB"},
        "health": {"kind": "http", "path": "/", "interval": "1s"},
        "process": {"stop_grace": "1s"},
    })
}

/// The files of the registry.
fn registry(platform: &Platform) -> PathBuf {
    platform.data_dir().join("registry/images")
}

fn blob(platform: &Platform, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    registry(platform).join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// Pushes an image and waits until it is converted; gives the file of the frames of its large layer.
fn push(platform: &Platform, number: u64) -> Result<PathBuf> {
    let image = image(platform.dir(), number);
    platform.push(&image, &format!("default/bulk:{number}"))?;
    let repository = registry(platform).join("repositories/default/bulk");
    let manifest = std::fs::read_to_string(repository.join("_tags").join(number.to_string()))?;
    let link = repository.join("_converted").join(manifest.trim_start_matches("sha256:"));
    // The link is there before the artifact that it names.
    let artifact = eventually("it is converted", || {
        let artifact = std::fs::read_to_string(&link).ok();
        Ok(artifact.and_then(|artifact| std::fs::read(blob(platform, &artifact)).ok()))
    })?;
    let artifact: Value = serde_json::from_slice(&artifact)?;
    let frames = artifact["layers"][1]["digest"].as_str().context("it has frames")?;
    Ok(blob(platform, frames))
}

/// What is told of the start of the only instance of an app.
fn explained(platform: &Platform, number: u64) -> String {
    let instance = platform.instances(&format!("bulk-{number}")).unwrap().remove(0);
    platform.run(&["explain", instance.id().as_str()]).ok()
}

#[test]
fn a_large_layer_comes_converted_and_as_it_was_pushed_when_that_is_damaged() {
    let platform = Platform::start().unwrap();
    push(&platform, 1).unwrap();
    platform.deploy(&manifest(1)).unwrap();
    assert_eq!(page(&platform, "bulk-1"), "1");
    let told = explained(&platform, 1);
    assert!(told.contains("1 of 2 layers came converted"), "{told}");
    let scraped = scrape(&platform);
    let counted = |name: &str| value(&scraped, "registry", &format!("longshore_registry_{name}"));
    assert_eq!(counted("conversions_total{outcome=\"done\"}"), 1.0);
    assert!(counted("conversion_read_bytes_total") > 9e6);
    assert_eq!(counted("conversion_queue_images"), 0.0);

    let frames = push(&platform, 2).unwrap();
    let mut bytes = std::fs::read(&frames).unwrap();
    bytes[3_500_000] ^= 1;
    std::fs::write(&frames, bytes).unwrap();
    platform.deploy(&manifest(2)).unwrap();
    assert_eq!(page(&platform, "bulk-2"), "2");
    let told = explained(&platform, 2);
    assert!(told.contains("frame 3 of its converted form does not match"), "{told}");
    assert!(!told.contains("came converted"), "{told}");
    for number in [1, 2] {
        platform.remove(&format!("bulk-{number}")).unwrap();
    }
    platform.finish();
}

#[test]
fn a_node_has_layers_of_its_neighbour() {
    let mut machines = [(); 2].map(|()| Machine::start(Part::Node).unwrap());
    let config = "node = \"one\"\nlocation = \"here\"\n".to_owned();
    let options = UpOptions { config, ..UpOptions::default() };
    let platform = platform_for(&machines[0], options).unwrap();
    push(&platform, 1).unwrap();
    for (machine, name) in machines.iter_mut().zip(["two", "three"]) {
        machine.join(&token(&platform, Part::Node, "here", &[]), name).unwrap();
        eventually("it is known", || {
            let nodes = platform.run(&["nodes"]).ok();
            Ok(nodes.lines().any(|line| line.starts_with(name)).then_some(()))
        })
        .unwrap();
    }
    // What nobody else has comes of the registry, and then of who has it.
    platform.run(&["cordon", "one"]).ok();
    platform.run(&["cordon", "three"]).ok();
    platform.deploy(&manifest(1)).unwrap();
    let told = explained(&platform, 1);
    assert!(told.contains("came converted") && !told.contains("from neighbours"), "{told}");
    platform.run(&["cordon", "two"]).ok();
    platform.run(&["uncordon", "three"]).ok();
    let again = but(manifest(1), &json!({"app": "bulk-2"}));
    platform.deploy(&again).unwrap();
    assert_eq!(page(&platform, "bulk-2"), "1");
    let told = explained(&platform, 2);
    assert!(told.contains("came converted") && told.contains("MiB from neighbours"), "{told}");
    assert!(!told.contains("given up"), "{told}");
    for number in [1, 2] {
        platform.remove(&format!("bulk-{number}")).unwrap();
    }
    platform.finish();
    machines.into_iter().for_each(Machine::finish);
}
