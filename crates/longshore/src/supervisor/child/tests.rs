use std::path::{Path, PathBuf};

use super::super::home::Contents;
use super::*;

/// A platform's surroundings with a shell script in place of our own program: it is given the
/// role as its first argument.
fn surroundings(dir: &Path, script: &str) -> Arc<Surroundings> {
    use std::os::unix::fs::PermissionsExt;
    let exe = dir.join("program");
    std::fs::write(&exe, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755)).unwrap();
    Arc::new(Surroundings {
        exe,
        home: Home::take(&dir.join("data"), &dir.join("run"), Contents::Platform).unwrap(),
        life_line: LifeLine::new().unwrap(),
        variables: Vec::new(),
        kill: CancellationToken::new(),
    })
}

fn plan(drain: Duration) -> RolePlan {
    RolePlan { role: "test", args: Vec::new(), sockets: Vec::new(), drain }
}

/// Waits until the file has this many lines, and gives them.
async fn lines(file: PathBuf, at_least: usize) -> Vec<String> {
    let all = async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.lines().count() >= at_least {
                return text.lines().map(str::to_owned).collect();
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), all).await.expect("the lines come")
}

#[tokio::test]
async fn a_role_that_dies_is_started_again_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let around = surroundings(dir.path(), &format!("echo $1 >>{}", log.display()));
    let child = Child::keep_running(plan(Duration::from_secs(5)), around);
    assert_eq!(lines(log, 3).await[..3], ["test", "test", "test"]);
    assert!(child.n_deaths() >= 2);
    child.end().await;
}

#[tokio::test]
async fn a_role_is_asked_to_end_and_then_made_to() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    for (script, drain, expected) in [
        ("trap 'echo asked >>LOG; exit 0' TERM", Duration::from_secs(20), "asked"),
        ("trap '' TERM", Duration::from_millis(50), ""),
    ] {
        let script = format!("{script}\necho begun >>LOG\nwhile :; do sleep 0.01; done");
        let script = script.replace("LOG", log.to_str().unwrap());
        let around = surroundings(dir.path(), &script);
        let child = Child::keep_running(plan(drain), around);
        lines(log.clone(), 1).await;
        timeout(Duration::from_secs(20), child.end()).await.expect("it ends");
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(text.strip_prefix("begun\n").unwrap().trim(), expected);
        std::fs::remove_file(&log).unwrap();
    }
}

#[tokio::test]
async fn a_role_finds_its_socket_open() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let script = format!("ls -l /proc/$$/fd/${{LONGSHORE_FDS#link=}} >>{}", log.display());
    let around = surroundings(dir.path(), &script);
    around.home.prepare_run_dir().unwrap();
    let path = around.home.links_dir().join("global.sock");
    let socket = Listener::bind("link", &longshore_link::Endpoint::Unix(path)).unwrap();
    let plan = RolePlan { sockets: vec![("link", socket)], ..plan(Duration::from_secs(5)) };
    let child = Child::keep_running(plan, around);
    let seen = lines(log, 1).await;
    assert!(seen[0].contains("socket:"), "{seen:?}");
    child.end().await;
}
