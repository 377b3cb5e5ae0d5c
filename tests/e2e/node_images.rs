//! Images on the disk of a node: what it has of which, which go when room is needed, and which never do.

use anyhow::{Context as _, ensure};
use longshore_api::links::StartPath;
use longshore_e2e::image::{Entries, Layered};
use longshore_e2e::small_disk::SmallDisk;
use longshore_e2e::{Platform, UpOptions, eventually};
use longshore_types::InstancePhase;
use serde_json::{Value, json};

use crate::odd_images::{base, shell};
use crate::scene::but;
use crate::second_node::SecondNode;

/// What nothing packs, in bytes.
const BULK: usize = 11 << 20;

/// Pushes an image that is no other's, and returns its digest.
fn push(platform: &Platform, name: &str) -> String {
    let mut seed =
        name.bytes().fold(0x9e37_79b9_7f4a_7c15, |seed: u64, byte| seed << 7 ^ u64::from(byte));
    let noise = (0..BULK / 8).flat_map(|_| {
        // Xorshift.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    });
    let noise: Vec<u8> = noise.collect();
    let bulk = Entries::default().file("bulk", 0o644, &noise);
    let image = Layered::new(shell("while sleep 1; do :; done")).layer(base()).layer(bulk);
    let layout = image.write(&platform.dir().join(name)).unwrap();
    let repository = format!("default/{name}");
    platform.push(&layout, &format!("{repository}:1")).unwrap();
    // Whoever pushed it may have written its manifest anew.
    let listed: Value = platform.run(&["image", "ls", &repository, "--json"]).json();
    listed[0]["digest"].as_str().unwrap().to_owned()
}

fn manifest(app: &str, image: &str) -> Value {
    json!({
        "app": app,
        "image": format!("default/{image}:1"),
        "resources": {"memory": "32MiB", "cpu": "0.1", "disk": "8MiB"},
        "process": {"stop_grace": "1s"},
    })
}

/// The state of an image, and the reasons for which it is kept.
type Found = Option<(String, Vec<String>)>;

/// The node of the platform itself.
fn name_of_first(platform: &Platform) -> anyhow::Result<String> {
    let nodes: Value = platform.run(&["nodes", "--json"]).json();
    let names = nodes.as_array().context("a list")?.iter().filter_map(|node| node["node"].as_str());
    let first = names.filter(|name| *name != "n2").map(str::to_owned).next();
    first.context("a node")
}

fn found(platform: &Platform, digest: &str) -> anyhow::Result<Found> {
    found_on(platform, &name_of_first(platform)?, digest)
}

fn found_on(platform: &Platform, node: &str, digest: &str) -> anyhow::Result<Found> {
    let listed = platform.run(&["image", "ls", "--node", node, "--json"]).ok();
    let listed: Value = serde_json::from_str(&listed)?;
    let images = listed.as_array().context("a list")?;
    let image = images.iter().find(|image| image["digest"] == digest);
    Ok(image.map(|image| {
        let holds = image["holds"].as_array().into_iter().flatten();
        let reasons = holds.map(|hold| hold["reason"].as_str().unwrap_or_default().to_owned());
        (image["state"].as_str().unwrap_or_default().to_owned(), reasons.collect())
    }))
}

fn path(platform: &Platform, app: &str) -> Option<StartPath> {
    platform.instances(app).unwrap().remove(0).observed.path
}

#[test]
fn a_disk_that_fills_loses_the_images_that_nobody_needs_and_no_others() {
    // With the fifth image it is over 11 percent; one gone, it is under 10.
    let disk = SmallDisk::new(512).unwrap();
    let elsewhere = vec![("node", disk.path())];
    let config = "image_disk = \"10-11\"\n".to_owned();
    let options = UpOptions { elsewhere, config, ..UpOptions::default() };
    let platform = Platform::start_with(&options).unwrap();
    let names = ["first", "second", "oldest", "older", "newest"];
    let [first, second, oldest, older, newest] = names.map(|name| push(&platform, name));
    for image in ["first", "second"] {
        platform.deploy(&manifest("web", image)).unwrap();
    }
    for app in ["oldest", "older"] {
        platform.deploy(&manifest(app, app)).unwrap();
        platform.remove(app).unwrap();
    }
    let here = found(&platform, &oldest).unwrap();
    let listed = platform.run(&["image", "ls", "--location", "local", "--json"]).ok();
    assert_eq!(
        here,
        Some(("complete".to_owned(), vec![])),
        "{oldest} is not as it should be in {listed}"
    );
    platform.deploy(&manifest("newest", "newest")).unwrap();
    eventually("the least recently used goes", || {
        ensure!(found(&platform, &oldest)?.is_none(), "it is there");
        Ok(Some(()))
    })
    .unwrap();
    let is = |digest: &str, state: &str, reasons: &[&str]| {
        let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
        assert_eq!(found(&platform, digest).unwrap(), Some((state.to_owned(), reasons)));
    };
    is(&first, "complete", &["rollback"]);
    is(&second, "mounted", &["instance", "release"]);
    is(&older, "complete", &[]);
    is(&newest, "mounted", &["instance", "release"]);
    let table = platform.run(&["image", "ls", "--location", "local"]).ok();
    let row = table.lines().find(|line| line.contains("rollback"));
    assert!(row.is_some_and(|row| row.contains(&first[..19])), "{table}");
    platform.run(&["rollback", "web"]).ok();
    platform.wait_until_settled("web").unwrap();
    assert_eq!(path(&platform, "web"), Some(StartPath::Cached));
    let told = platform.run(&["image", "prewarm", "default/older:1", "--pin"]).ok();
    assert!(told.contains("is pinned everywhere"), "{told}");

    // What went comes again, and that is the only difference. What is pinned stays over the mark, too.
    platform.deploy(&manifest("oldest", "oldest")).unwrap();
    assert_eq!(path(&platform, "oldest"), Some(StartPath::Pulled));
    is(&older, "complete", &["pin"]);
    a_pin_gives_way_to_no_start_until_it_is_taken_back(&platform, &disk, &older);
    platform.finish();
}

fn a_pin_gives_way_to_no_start_until_it_is_taken_back(
    platform: &Platform,
    disk: &SmallDisk,
    pinned: &str,
) {
    // Of these ext4 keeps 10 for itself, and 24 stay free in any case. 11 are needed, as many as are pinned.
    push(platform, "late");
    disk.leave(40).unwrap();
    platform.deploy_only(&manifest("late", "late")).unwrap();
    platform
        .wait_for_instance("late", "says what is in the way", |one| {
            let last = one.observed.last_exit.as_ref().map(ToString::to_string);
            let told = format!("{:?} {last:?}", one.observed.note);
            told.contains("pinned images keep 11") && told.contains("image prewarm IMAGE --rm")
        })
        .unwrap();
    assert!(found(platform, pinned).unwrap().is_some());
    let wished = platform.run(&["image", "ls", "--wished"]).ok();
    assert!(wished.lines().any(|line| line.ends_with("pinned")), "{wished}");
    platform.run(&["image", "prewarm", "default/older:1", "--rm"]).ok();
    platform.wait_until_settled("late").unwrap();
    assert_eq!(found(platform, pinned).unwrap(), None);
}

/// How far an image is that a node pulls: the bytes that are there, and all.
fn so_far(platform: &Platform, node: &str, digest: &str) -> anyhow::Result<(u64, u64)> {
    let listed = platform.run(&["image", "ls", "--node", node, "--json"]).ok();
    let listed: Value = serde_json::from_str(&listed)?;
    let image = listed.as_array().into_iter().flatten().find(|image| image["digest"] == digest);
    let image = image.context("the image")?;
    Ok((image["done"].as_u64().context("done")?, image["of"].as_u64().context("of")?))
}

fn more_and_more_of_it_comes(platform: &Platform, node: &str, digest: &str) {
    let known = || Ok(Some(so_far(platform, node, digest)?).filter(|(_, of)| *of > 0));
    let (before, all) = eventually("its size is known", known).unwrap();
    assert!(before < all && all > u64::try_from(BULK).unwrap(), "{before} of {all}");
    eventually("more of it comes", || {
        let (done, of) = so_far(platform, node, digest)?;
        assert!(of == all && done < all, "{done} of {of}, which was {all}");
        Ok((done > before).then_some(()))
    })
    .unwrap();
}

/// The only instance of an app.
fn only(platform: &Platform, app: &str) -> longshore_api::v1::InstanceView {
    platform.instances(app).unwrap().remove(0)
}

#[test]
fn an_image_is_on_nodes_before_it_starts_and_never_in_the_way_of_what_does() {
    // At this rate it takes minutes on the first node, some seconds once something waits for it, and as long as it
    // takes on the second.
    let config = "image_rate = \"4MiB\"\nprewarm_rate = \"64KiB\"\nkeep_releases = 2\n".to_owned();
    let platform = Platform::start_with(&UpOptions { config, ..UpOptions::default() }).unwrap();
    let digest = push(&platform, "warm");
    let second = SecondNode::start(&platform, &["--label", "disk=nvme"]);
    let first = name_of_first(&platform).unwrap();
    eventually("both nodes are known", || {
        let nodes = platform.run(&["nodes"]).ok();
        Ok(nodes.lines().any(|line| line.starts_with("n2 ")).then_some(()))
    })
    .unwrap();
    platform.run(&["image", "prewarm", "default/warm:1", "--detach"]).ok();
    let state = |node: &str| -> anyhow::Result<String> {
        let found = found_on(&platform, node, &digest)?;
        Ok(found.map_or_else(String::new, |(state, _)| state))
    };
    let is = |node: &str, wanted: &str| {
        eventually(&format!("the image is {wanted} on {node}"), || {
            let state = state(node)?;
            ensure!(state == wanted, "{state}");
            Ok(Some(()))
        })
        .unwrap();
    };
    is("n2", "complete");
    is(&first, "pulling");
    let held = found_on(&platform, "n2", &digest).unwrap().unwrap().1;
    assert_eq!(held, ["prewarm"]);
    // The wish outlives the agent, and nothing is left by half.
    platform.role("node").unwrap().kill().unwrap();
    is(&first, "pulling");
    more_and_more_of_it_comes(&platform, &first, &digest);

    let labels = json!({"placement": {"labels": ["disk=nvme"]}});
    platform.deploy(&but(manifest("there", "warm"), &labels)).unwrap();
    let there = only(&platform, "there");
    assert_eq!((there.node.as_str(), there.observed.path), ("n2", Some(StartPath::Cached)));
    assert!(there.observed.stages.iter().all(|stage| stage.name != "pull"), "{there:?}");
    let why = platform.run(&["explain", there.id().as_str()]).ok();
    assert!(why.contains("has the image"), "{why}");
    // What waits for the image does not wait for that rate.
    platform.run(&["cordon", "n2"]).ok();
    platform.deploy_only(&manifest("here", "warm")).unwrap();
    platform
        .wait_for_instance("here", "says how far its image is", |one| {
            let note = one.observed.note.as_deref().unwrap_or_default();
            one.observed.phase == InstancePhase::Pulling
                && note.contains(" MiB of 1")
                && note.ends_with(" of its image are here")
        })
        .unwrap();
    platform.wait_until_settled("here").unwrap();
    let here = only(&platform, "here");
    assert_eq!((here.node.as_str(), here.observed.path), (&*first, Some(StartPath::Pulled)));
    let told = platform.run(&["image", "prewarm", "default/warm:1", "--json"]).ok();
    let told: Value = serde_json::from_str(&told).unwrap();
    let states = told["nodes"].as_array().unwrap().iter().map(|node| node["state"].clone());
    assert_eq!(states.collect::<Vec<_>>(), ["mounted", "mounted"], "{told}");

    let wished = platform.run(&["image", "ls", "--wished"]).ok();
    assert!(wished.contains("default/warm:1") && wished.contains("everywhere"), "{wished}");
    platform.run(&["image", "prewarm", "default/warm:1", "--rm"]).ok();
    let wished = platform.run(&["image", "ls", "--wished"]).ok();
    assert!(!wished.contains("default/warm:1"), "{wished}");
    for (arguments, code, told) in [
        (["default/none:1", "--where", "everywhere"], 3, "an image in the registry"),
        (["default/warm:1", "--where", "location=nowhere"], 3, "nowhere"),
        (["default/warm:1", "--where", "nvme"], 2, "location=NAME or label=KEY=VALUE"),
    ] {
        platform.run(&[&["image", "prewarm"], &arguments[..]].concat()).fails(code, &[told]);
    }
    for app in ["here", "there"] {
        platform.remove(app).unwrap();
    }
    second.finish();
    platform.finish();
}
