//! The registry on a machine of its own: users push to it there, locations pull from it.

use std::path::PathBuf;

use anyhow::Result;
use longshore_e2e::dockerd::{Firewall, Trusted};
use longshore_e2e::image::{Layout, checked};
use longshore_e2e::machine::{Machine, Part, platform_for};
use longshore_e2e::platform::Instances;
use longshore_e2e::process::signal;
use longshore_e2e::{Dockerd, Platform, UpOptions, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::{busybox, but, page, web};

/// Pushes an image to the registry that joined, as a user with skopeo does.
fn push((machine, platform): (&Machine, &Platform), image: &Layout, reference: &str) -> Result<()> {
    let (registry, ca) = machine.registry();
    // The directory that it is told of has nothing but what it is to trust.
    let trusted: PathBuf = platform.dir().join("trusted");
    std::fs::create_dir_all(&trusted)?;
    std::fs::copy(ca, trusted.join("ca.crt"))?;
    let mut skopeo = platform.tool("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--retry-times", "0", "--dest-cert-dir"]);
    skopeo.arg(trusted).args(["--dest-creds", &format!("anyone:{}", platform.token())]);
    skopeo.arg(image.source()).arg(format!("docker://{registry}/{reference}"));
    checked(&mut skopeo)
}

fn registry_answers(platform: &Platform) -> Result<Option<()>> {
    let view: Value = platform.run(&["registry", "show", "--json"]).json();
    Ok((view["answers"] == true).then_some(()))
}

/// Joins the machine as the registry, and waits for it; the token.
fn join(machine: &mut Machine, platform: &Platform) -> String {
    let shown = platform.run(&["join-token", "--role", "registry"]).ok();
    let token = shown.trim().strip_prefix("longshore registry join ").expect("a command");
    machine.join(token, "").unwrap();
    eventually("the registry answers", || registry_answers(platform)).unwrap();
    token.to_owned()
}

/// What is told of the registry has these parts.
#[track_caller]
fn says(platform: &Platform, parts: &[&str]) {
    let told = platform.run(&["registry", "show"]).ok();
    for part in parts {
        assert!(told.contains(part), "{part:?} in {told}");
    }
}

#[test]
fn a_registry_on_a_machine_of_its_own_takes_pushes_and_gives_images_until_it_is_removed() {
    let mut machine = Machine::start(Part::Registry).unwrap();
    let platform = platform_for(&machine, UpOptions::default()).unwrap();
    says(&platform, &["none has joined", "no registry has joined"]);
    let one = busybox(&platform, "one");
    let token = &join(&mut machine, &platform);
    let (public, _) = machine.registry();
    says(&platform, &[&format!("https://{public}"), "it answers"]);
    // The token was good once.
    let dir = |name: &str| platform.dir().join(name).display().to_string();
    let (data, run) = (dir("again"), dir("again-run"));
    let again = ["registry", "join", token, "--data-dir", &data, "--run-dir", &run];
    let free = ["--listen", "127.0.0.1:0", "--locations-listen", "127.0.0.1:0"];
    platform.run(&[&again[..], &free].concat()).fails(5, &["this join token is of no use"]);

    push((&machine, &platform), &one, "default/web:1").unwrap();
    platform.deploy(&web("web", 2)).unwrap();
    assert_eq!(page(&platform, "web").trim(), "one");

    // Killed and started again it has what was pushed, and goes on taking pushes.
    machine.kill("registry").unwrap();
    eventually("the registry answers again", || registry_answers(&platform)).unwrap();
    push((&machine, &platform), &busybox(&platform, "two"), "default/web:2").unwrap();
    machine.down().unwrap();
    machine.up(Instances::Keep).unwrap();
    eventually("the registry answers again", || registry_answers(&platform)).unwrap();
    let second = but(web("web", 2), &json!({"image": "default/web:2"}));
    platform.deploy(&second).unwrap();
    eventually("the next release serves", || {
        Ok((page(&platform, "web").trim() == "two").then_some(()))
    })
    .unwrap();

    // While the control plane hangs, who pushes is told that it is away.
    let global = platform.role("global").unwrap();
    signal(global.pid, Signal::STOP).unwrap();
    let three = busybox(&platform, "three");
    eventually("a push is refused", || {
        let refused = push((&machine, &platform), &three, "default/web:3");
        Ok(refused.err().filter(|why| format!("{why:#}").contains("the control plane is away")))
    })
    .unwrap();
    signal(global.pid, Signal::CONT).unwrap();
    eventually("a push is taken again", || {
        Ok(push((&machine, &platform), &three, "default/web:3").ok())
    })
    .unwrap();

    // Removed it is nobody at once, though it runs and has its certificate; what runs goes on.
    platform.run(&["registry", "rm"]).ok();
    says(&platform, &["none has joined"]);
    let third = but(web("web", 2), &json!({"image": "default/web:3"}));
    let refused = platform.deploy_only(&third).unwrap_err();
    assert!(format!("{refused:#}").contains("no registry has joined"), "{refused:#}");
    eventually("it is told so", || {
        Ok(machine.log().contains("the control plane knows this registry no more").then_some(()))
    })
    .unwrap();
    push((&machine, &platform), &one, "default/web:4").unwrap_err();
    assert_eq!(page(&platform, "web").trim(), "two");
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}

#[test]
fn docker_pushes_by_tls_once_it_is_told_whom_to_trust() {
    let mut machine = Machine::start(Part::Registry).unwrap();
    let platform = platform_for(&machine, UpOptions::default()).unwrap();
    join(&mut machine, &platform);
    // Docker asks no registry on loopback for a certificate; this one is on another machine.
    let (registry, ca) = machine.registry();
    let docker = Dockerd::start(Firewall::Untouched).unwrap();
    let name = format!("{registry}/default/web:1");
    let mut load = platform.tool("skopeo");
    load.args(["--insecure-policy", "copy", "--quiet", "--dest-daemon-host", &docker.host()]);
    load.arg(busybox(&platform, "one").source()).arg(format!("docker-daemon:{name}"));
    checked(&mut load).unwrap();
    let login = ["login", "--username", "anyone", "--password", platform.token(), &*registry];
    let refused = docker.docker(&login).unwrap_err();
    assert!(format!("{refused:#}").contains("x509"), "{refused:#}");

    let trusted = Trusted::registry(&registry, &ca).unwrap();
    docker.docker(&login).unwrap();
    docker.docker(&["push", &name]).unwrap();
    platform.deploy(&web("web", 1)).unwrap();
    assert_eq!(page(&platform, "web").trim(), "one");
    // And back, by the digest that runs.
    docker.docker(&["image", "rm", &name]).unwrap();
    docker.docker(&["pull", &name]).unwrap();
    drop((trusted, docker));
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}
