//! Kills while images are pushed and pulled: what was acknowledged is there, and nothing half.
//!
//! `LONGSHORE_KILLS` and `LONGSHORE_SEED` as in `faults`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::ensure;
use longshore_api::links::StartPath;
use longshore_e2e::image::{BUSYBOX_PORT, Entries, Layered, Layout};
use longshore_e2e::platform::Instances;
use longshore_e2e::pty::Terminal;
use longshore_e2e::{Platform, eventually};
use serde_json::{Value, json};

use crate::faults::{Random, Victim, kill, n_kills};
use crate::odd_images::base;
use crate::scene::{busybox, host, web};

/// An image that serves its number, with enough in it that a kill can come in the middle.
fn image(dir: &Path, number: u32) -> Layout {
    let port = BUSYBOX_PORT.to_string();
    let config = json!({"Cmd": ["/bin/busybox", "httpd", "-f", "-p", port, "-h", "/www"]});
    let page = Entries::default().file("www/index.html", 0o644, number.to_string().as_bytes());
    let bulk = (0..40).fold(page, |layer, n| {
        layer.file(&format!("bulk/{n}"), 0o644, &[number.to_le_bytes()[0]; 50_000])
    });
    Layered::new(config)
        .layer(base())
        .layer(bulk)
        .write(&dir.join(format!("image-{number}")))
        .unwrap()
}

fn manifest(number: u32) -> Value {
    json!({
        "app": "moving",
        "image": format!("default/moving:{number}"),
        "port": BUSYBOX_PORT,
        "resources": {"memory": "32MiB", "cpu": "0.1", "disk": "16MiB"},
        "process": {"stop_grace": "1s"},
    })
}

fn push(platform: &Platform, layout: &Layout, number: u32) -> std::process::Command {
    let reference = format!("default/moving:{number}");
    let mut push = platform.client(&["image", "push", layout.dir.to_str().unwrap(), &reference]);
    push.stdout(Stdio::null()).stderr(Stdio::null());
    push
}

#[test]
fn random_kills_while_images_are_pushed_and_pulled_lose_nothing() {
    let mut random = Random::from_environment();
    let mut platform = Platform::start().unwrap();
    let first = image(platform.dir(), 0);
    assert!(push(&platform, &first, 0).status().unwrap().success());
    let mut pushed = vec![first.digest];

    for round in 1..=n_kills() {
        let victim = match random.below(5) {
            0 | 1 => Victim::Role("registry"),
            2 | 3 => Victim::Role("node"),
            _ => Victim::Everything,
        };
        println!("kill {round}: {victim:?}");
        let layout = image(platform.dir(), round);
        let mut pushing = push(&platform, &layout, round).spawn().unwrap();
        // The last image is pulled meanwhile; a deploy that is cut off is made good by the next.
        let _ = platform.deploy_only(&manifest(round - 1));
        // The moment of the kill is random on purpose: nothing is waited for here.
        std::thread::sleep(Duration::from_millis(random.below(300)));
        if let Victim::Role(role) = victim {
            eventually("the role runs", || platform.role(role).map(Some)).unwrap();
        }
        kill(&mut platform, victim).unwrap();
        if victim == Victim::Everything {
            platform.up(Instances::Keep).unwrap();
        }
        if !pushing.wait().unwrap().success() {
            eventually("the push succeeds when it is repeated", || {
                let status = push(&platform, &layout, round).status()?;
                Ok(status.success().then_some(()))
            })
            .unwrap();
        }
        pushed.push(layout.digest);
    }

    let last = u32::try_from(pushed.len()).unwrap() - 1;
    // The registry that was killed last may not be back yet, which a deploy says.
    eventually("the last image is deployed", || platform.deploy_only(&manifest(last)).map(Some))
        .unwrap();
    platform.wait_until_settled("moving").unwrap();
    eventually("the last image serves", || {
        let response = platform.get(&host("moving"), "/")?;
        ensure!(response.status == 200 && response.text() == last.to_string(), response.text());
        Ok(Some(()))
    })
    .unwrap();
    for (number, digest) in pushed.iter().enumerate() {
        let shown = platform.run(&["image", "inspect", &format!("default/moving:{number}")]).ok();
        assert!(shown.contains(digest), "{number}: {digest} is not in {shown}");
    }
    for name in ["staging", "trash"] {
        let directory = platform.data_dir().join("node/images").join(name);
        let left: Vec<_> = std::fs::read_dir(&directory).unwrap().collect();
        assert!(left.is_empty(), "{left:?} in {}", directory.display());
    }
    platform.finish();
}

#[test]
fn a_node_finds_an_image_that_was_brought_to_it_before() {
    let mut platform = Platform::start().unwrap();
    let image = busybox(&platform, "one");
    platform.push(&image, "default/web:1").unwrap();
    let brought = platform.dir().join("brought");
    let pull = |options: &[&str]| -> Value {
        let verb = ["image", "pull", "default/web:1", "--json"];
        platform.run(&[&verb, options].concat()).json()
    };
    let into = brought.to_str().unwrap();
    let first = pull(&["--into", into]);
    assert_eq!((&first["digest"], &first["reused_layers"]), (&json!(image.digest), &json!(0)));
    let again = pull(&["--into", into]);
    assert_eq!((&again["layers"], &again["reused_layers"]), (&json!(1), &json!(1)));
    assert_eq!(again["bytes_fetched"], 0);
    let unpacked = platform.dir().join("unpacked");
    let verb = ["image", "pull", "default/web:1", "--directories", "--into"];
    let mut command = platform.client(&[&verb[..], &[unpacked.to_str().unwrap()]].concat());
    let mut watched = Terminal::run(command.env("TERM", "vt220"), 100, 24).unwrap();
    // How much of how much came, and how fast; then what there is to say at the end.
    for shown in ["] ", " of ", "B/s ", "1 layer (0 there already", " fetched"] {
        watched.until(shown).unwrap();
    }
    assert_eq!(watched.ended().unwrap(), 0);
    let layers: Vec<_> = std::fs::read_dir(unpacked.join("layers")).unwrap().collect();
    assert!(layers[0].as_ref().unwrap().path().join("fs/bin/busybox").is_file());

    platform.down().unwrap();
    let images = platform.data_dir().join("node/images");
    std::fs::remove_dir_all(&images).unwrap();
    std::fs::rename(&brought, &images).unwrap();
    platform.up(Instances::Keep).unwrap();
    platform.deploy(&web("web", 1)).unwrap();
    let instance = platform.instances("web").unwrap().remove(0);
    assert_eq!(instance.observed.path, Some(StartPath::Cached));
    platform.finish();
}
