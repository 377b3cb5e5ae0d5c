//! Apps whose containers another program makes.

use longshore_e2e::image::BUSYBOX_PORT;
use longshore_e2e::process::Process;
use longshore_e2e::{Platform, UpOptions, eventually};
use longshore_types::{InstanceId, InstancePhase};
use serde_json::json;

use crate::scene::{busybox, but, page, web, with_web};

fn web_with(runtime: &str) -> serde_json::Value {
    let resources = json!({"memory": "256MiB", "cpu": "1", "pids": 256});
    let command = format!("echo begun; exec /bin/busybox httpd -f -p {BUSYBOX_PORT} -h /www");
    let process = json!({"command": ["/bin/sh", "-c", command], "stop_grace": "1s"});
    // gVisor's kernel has users of its own making, and runc wants a capability that a machine which is
    // a container itself often lacks.
    let changes = json!({
        "runtime": runtime, "resources": resources, "process": process, "user_namespace": false,
    });
    but(web("web", 1), &changes)
}

/// What the shim of an instance is the parent of.
fn containers(platform: &Platform, id: &InstanceId) -> Vec<Process> {
    let shims = platform.shims().unwrap();
    let shim = shims.iter().find(|shim| shim.mentions(id.as_str())).unwrap();
    let all = Process::all().unwrap();
    all.into_iter().filter(|process| process.parent == shim.pid).collect()
}

/// Serves, runs a command, outlives the agent, is made anew in the same network, is stopped and leaves
/// nothing.
fn lives_a_whole_life(runtime: &str) {
    let platform = with_web();
    platform.deploy(&web_with(runtime)).unwrap();
    assert_eq!(page(&platform, "web"), "one");
    let id = platform.instances("web").unwrap().remove(0).id().clone();
    let script = "echo out; echo err >&2; pwd; id -u; exit 7";
    let options = ["exec", "--user", "web", "--workdir", "/www", id.as_str(), "--"];
    let finished = platform.run(&[&options[..], &["/bin/sh", "-c", script]].concat());
    assert_eq!(finished.code, Some(7), "{finished}");
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("out\n/www\n1000\n", "err\n")
    );
    let logged = platform.run(&["logs", id.as_str()]).ok();
    assert!(logged.contains("begun"), "{logged}");

    let agent = platform.role("node").unwrap();
    agent.kill().unwrap();
    let another = || {
        let role = platform.role("node");
        Ok(role.is_ok_and(|role| role.pid != agent.pid).then_some(()))
    };
    eventually("another agent runs", another).unwrap();
    let serves = || Ok((platform.get("web.localhost", "/")?.status == 200).then_some(()));
    eventually("it is served again", serves).unwrap();
    let adopted = platform.instances("web").unwrap().remove(0);
    assert_eq!((adopted.id(), adopted.observed.restarts), (&id, 0));

    let processes = containers(&platform, &id);
    assert!(!processes.is_empty());
    for process in processes {
        // One may end because another did.
        let _ = process.kill();
    }
    let restarted = platform.wait_for_instance("web", "was started again", |instance| {
        instance.observed.restarts == 1 && instance.observed.phase == InstancePhase::Healthy
    });
    assert_eq!(restarted.unwrap().id(), &id);
    assert_eq!(page(&platform, "web"), "one");

    platform.run(&["stop", id.as_str()]).ok();
    let next = platform.wait_for_instance("web", "took its place", |next| {
        *next.id() != id && next.observed.phase == InstancePhase::Healthy
    });
    next.unwrap();
    assert_eq!(page(&platform, "web"), "one");
    platform.finish();
}

#[test]
fn an_app_lives_in_runc() {
    lives_a_whole_life("runc");
}

#[test]
fn an_app_lives_in_runsc() {
    lives_a_whole_life("runsc");
}

#[test]
fn a_runtime_that_is_missing_is_refused_by_name() {
    let config = "runsc = \"/no/such/place/runsc\"\n".to_owned();
    let options = UpOptions { config, ..UpOptions::default() };
    let platform = Platform::start_with(&options).unwrap();
    platform.push(&busybox(&platform, "one"), "default/web:1").unwrap();
    let nodes = || Ok(platform.run(&["nodes"]).stdout.contains("runsc").then_some(()));
    eventually("the node has reported", nodes).unwrap();
    let table = platform.run(&["nodes"]).ok();
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(table.contains("everything: /no/such/place/runsc"), "{table}");
    assert!(table.contains("IMAGES ARE MOUNTED FROM"), "{table}");
    let manifest = platform.dir().join("longshore.toml");
    std::fs::write(&manifest, "app = \"web\"\nimage = \"default/web:1\"\nruntime = \"runsc\"\n")
        .unwrap();
    let path = manifest.display().to_string();
    let refused = platform.run(&["deploy", "--file", &path]);
    refused.fails(3, &["runtime = \"runsc\"", "no runsc: /no/such/place/runsc is not a program"]);
    platform.finish();
}
