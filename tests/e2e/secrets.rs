//! A secret is seen by the instances that need it, and by nobody and nothing else.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use longshore_e2e::process::Process;
use longshore_e2e::{Platform, eventually};
use longshore_types::InstanceId;
use serde_json::json;

use crate::scene::{but, script, with_web};

const FIRST: &str = "correct-horse-battery-staple";
const SECOND: &str = "Tr0ub4dor-and-3";

/// `longshore secret set`, with the value on standard input.
pub fn set(platform: &Platform, name: &str, value: &str) -> String {
    let mut command = platform.client(&["secret", "set", name]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{value}").unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// What an instance sees of its two secrets.
fn seen(platform: &Platform) -> String {
    let id = instance(platform);
    let look = "echo $DATABASE_URL; cat /run/secrets/key; ls -l /run/secrets/key | cut -c1-10";
    platform.run(&["exec", id.as_str(), "--", "/bin/sh", "-c", look]).ok()
}

fn instance(platform: &Platform) -> InstanceId {
    platform.instances("app").unwrap().remove(0).id().clone()
}

/// Every file below a directory that holds a text.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            found.extend(files_with(&path, text));
        } else if kind.is_file() {
            // What goes away while it is looked for holds nothing any more.
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// Looks everywhere where a secret must not be.
fn assert_nowhere_else(platform: &Platform, text: &str) {
    assert_eq!(files_with(&platform.data_dir(), text), [""; 0]);
    let id = instance(platform);
    for path in [
        "apps".to_owned(),
        "apps/app".to_owned(),
        "apps/app/releases".to_owned(),
        "instances".to_owned(),
        format!("instances/{id}/explain"),
        format!("instances/{id}/logs"),
        "secrets".to_owned(),
        "usage".to_owned(),
    ] {
        let path = format!("/v1/projects/default/{path}");
        let answer = platform.call_raw("GET", &path, None).unwrap();
        assert!(answer.status == 200 && !answer.text().contains(text), "{path}: {}", answer.text());
    }
    let log = fs::read_to_string(platform.log_path()).unwrap();
    assert!(!log.contains(text), "{log}");
    // In the environment of the instance's own processes it has to be; in nobody else's.
    let shims: Vec<i32> = platform.shims().unwrap().iter().map(|shim| shim.pid).collect();
    for process in Process::all().unwrap() {
        let of_instance = shims.contains(&process.parent);
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
            let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            let expected = of_instance && file == "environ";
            assert!(!found || expected, "{file} of {process:?}");
        }
    }
}

#[test]
fn a_secret_is_seen_by_the_instances_that_need_it_alone() {
    let mut platform = with_web();
    let manifest = but(
        script("app", "exec sleep 1000"),
        &json!({"secrets": {"DATABASE_URL": "db", "/run/secrets/key": "db"}}),
    );
    let refused = platform.deploy_only(&manifest).unwrap_err().to_string();
    assert!(refused.contains("longshore secret set db"), "{refused}");
    assert_eq!(set(&platform, "db", FIRST), "db v1\n");
    platform.deploy(&manifest).unwrap();
    let first = format!("{FIRST}\n{FIRST}-r--r--r--\n");
    assert_eq!(seen(&platform), first);
    assert_nowhere_else(&platform, FIRST);
    // So it can be found where it is.
    assert!(!files_with(&platform.dir().join("run"), FIRST).is_empty());

    // It is started again with it while nobody can be asked, and adopted with it.
    let before = instance(&platform);
    let kill = ["exec", before.as_str(), "--", "/bin/sh", "-c", "kill -9 1"];
    platform.run(&kill);
    platform.role("global").unwrap().kill().unwrap();
    platform.role("location").unwrap().kill().unwrap();
    let shims = platform.shims().unwrap();
    shims.iter().for_each(|shim| shim.kill().unwrap());
    platform
        .wait_for_instance("app", "was started again", |one| {
            one.observed.restarts > 0 && one.observed.ready_at.is_some()
        })
        .unwrap();
    assert_eq!((instance(&platform), seen(&platform)), (before, first.clone()));
    platform.down().unwrap();
    platform.up(longshore_e2e::platform::Instances::Keep).unwrap();
    platform.wait_until_settled("app").unwrap();
    assert_eq!(seen(&platform), first);

    // The next value comes with the next release, and goes with it.
    let said = set(&platform, "db", SECOND);
    assert!(said.contains("app keeps the version that it has"), "{said}");
    assert_eq!(seen(&platform), first);
    platform.deploy(&manifest).unwrap();
    assert_eq!(seen(&platform), first.replace(FIRST, SECOND));
    let rotated = platform.run(&["secret", "rotate-key"]).ok();
    assert!(rotated.contains("2 values"), "{rotated}");
    platform.run(&["rollback", "app"]).ok();
    assert_eq!(seen(&platform), first);
    for text in [FIRST, SECOND] {
        assert_nowhere_else(&platform, text);
    }
    platform.run(&["secret", "rm", "db"]).fails(1, &["used by app app"]);
    let listed = platform.run(&["secret", "ls"]).ok();
    assert!(listed.contains("db      v2") && listed.contains(" app\n"), "{listed}");

    platform.remove("app").unwrap();
    platform.run(&["secret", "rm", "db"]).ok();
    eventually("nothing of it is left on the machine", || {
        let dirs = [platform.data_dir(), platform.dir().join("run")];
        let found: Vec<_> = dirs.iter().flat_map(|dir| files_with(dir, FIRST)).collect();
        anyhow::ensure!(found.is_empty(), "{found:?}");
        Ok(Some(()))
    })
    .unwrap();
    platform.finish();
}
