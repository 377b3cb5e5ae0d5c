//! The control plane's state in an etcd: nothing is lost with a control plane, nor while etcd is away,
//! and another control plane takes over.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::http::Request;
use longshore_e2e::process::signal;
use longshore_e2e::{Platform, eventually};
use longshore_store::conformance::EtcdServer;
use rustix::process::Signal;

use crate::scene::{OnEtcd, page, web};

/// A platform with its state in an etcd, and one app.
fn with_app() -> OnEtcd {
    let on = OnEtcd::start(1);
    on.platform.deploy(&web("web", 1)).unwrap();
    on
}

fn scale(platform: &Platform, count: usize) {
    let web = format!("web={count}");
    eventually("the control plane takes a change", || {
        let scaled = platform.run(&["scale", &web]);
        ensure!(scaled.code == Some(0), "{scaled}");
        Ok(Some(()))
    })
    .unwrap();
    eventually("the change is carried out", || {
        let ready = platform.app("web")?.ready;
        ensure!(ready as usize == count, "{ready} are ready");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn nothing_is_lost_with_a_control_plane_or_while_etcd_is_away() {
    let mut on = with_app();
    assert!(!on.platform.data_dir().join("global/store.redb").exists());
    on.platform.role("global").unwrap().kill().unwrap();
    scale(&on.platform, 2);
    // Away, as with its machine: what runs goes on, and changes are refused.
    on.etcd[0].kill();
    assert_eq!(page(&on.platform, "web"), "one");
    eventually("changes are refused", || {
        let refused = on.platform.run(&["scale", "web=3"]);
        ensure!(refused.code != Some(0), "{refused}");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(page(&on.platform, "web"), "one");
    on.etcd[0].start().unwrap();
    scale(&on.platform, 1);
    assert_eq!(page(&on.platform, "web"), "one");
    on.platform.finish();
}

/// A second control plane on the same etcd, with the keys and tokens of the first.
fn second(on: &OnEtcd) -> Result<(Child, u16)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (data, own) = (on.platform.data_dir(), on.platform.dir().join("second"));
    let file = |name: &str| data.join(name).display().to_string();
    let mut command: Command = on.platform.command(&[
        "global",
        "--store",
        &format!("{}/longshore", EtcdServer::address(&on.etcd)),
        "--data-dir",
        &own.display().to_string(),
        "--api-listen",
        &format!("http://127.0.0.1:{port}"),
        "--link-listen",
        &format!("unix:{}", on.platform.dir().join("second.sock").display()),
        "--admin-token-file",
        &file("admin-token"),
        "--system-token-file",
        &file("secrets/system-token"),
        "--secret-keys-file",
        &file("secrets/keys.json"),
    ]);
    let log = std::fs::File::create(on.platform.dir().join("second.log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok((command.spawn().context("a second control plane starts")?, port))
}

#[test]
fn a_second_control_plane_waits_and_takes_over_with_all_there_is() {
    let mut on = with_app();
    let (mut child, port) = second(&on).unwrap();
    let log = || std::fs::read_to_string(on.platform.dir().join("second.log")).unwrap();
    eventually("it waits", || {
        ensure!(log().contains("another control plane leads"), "{}", log());
        Ok(Some(()))
    })
    .unwrap();
    // The first leads as before.
    scale(&on.platform, 2);
    let token = on.platform.token().to_owned();
    let asks = |path: &str| {
        let address = format!("127.0.0.1:{port}").parse()?;
        Request { token: Some(&token), ..Request::get("api", path) }.send(address)
    };
    // With its whole machine: nobody gives the lead away, so it runs out.
    let first = on.platform.role("global").unwrap();
    signal(first.pid, Signal::STOP).unwrap();
    on.platform.kill_supervisor().unwrap();
    first.kill().unwrap();
    eventually("the second answers with all there is", || {
        let apps = asks("/v1/projects/default/apps")?;
        ensure!(apps.status == 200, "{}", apps.text());
        ensure!(apps.text().contains("\"count\":2"), "{}", apps.text());
        Ok(Some(()))
    })
    .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    on.platform.finish();
}
