//! What the death of an agent or a shim does.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use longshore_runtime::{AdoptedState, ExitRecord, Shims};
use longshore_types::ExitReason;

use crate::bed::{Bed, eventually, is_alive, kill, log_lines, shim_of, text, until_line};

async fn adopt_one(shims: &Shims) -> AdoptedState {
    let mut adopted = shims.adopt().await.expect("adoption works");
    assert_eq!(adopted.len(), 1);
    adopted.remove(0).state
}

pub async fn a_container_outlives_its_agent(mut bed: Bed) {
    let script = "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.01; done";
    let spec = bed.script(script);
    let before = bed.start(&spec).await;
    until_line(&spec, "ready").await;
    bed.restart_agent();
    let AdoptedState::Running(running) = adopt_one(&bed.shims).await else { panic!("not running") };
    assert_eq!((running.pid(), running.started_at()), (before.pid(), before.started_at()));
    running.signal("TERM".parse().expect("a signal")).await.expect("sent");
    assert_eq!(running.wait().await.expect("it ends").reason, ExitReason::Exited { code: 4 });
    assert_eq!(text(&log_lines(&spec, None).await), "ready\nbye\n");
    bed.restart_agent();
    let AdoptedState::Ended(record) = adopt_one(&bed.shims).await else { panic!("still running") };
    assert_eq!(record.reason, ExitReason::Exited { code: 4 });
    bed.finish().await;
}

pub async fn what_ends_without_an_agent_is_on_record(mut bed: Bed) {
    let spec = bed.script("sleep 0.3; exit 9");
    let shim = shim_of(&bed.start(&spec).await);
    eventually("the shim to end", || !is_alive(shim), || format!("shim {shim} lives")).await;
    bed.restart_agent();
    let AdoptedState::Ended(record) = adopt_one(&bed.shims).await else { panic!("still running") };
    assert_eq!(record.reason, ExitReason::Exited { code: 9 });
    bed.finish().await;
}

/// A process that was killed leaves its cgroup, by which the agent sees its end, a moment before the kernel shows it as
/// ended.
async fn until_ended(pid: i32) {
    let lives = || format!("process {pid} lives");
    eventually("the first process to end", || !is_alive(pid), lives).await;
}

pub async fn a_dead_shim_takes_its_container_along(bed: Bed) {
    let other = bed.start(&bed.spec(&["sleep", "1000"])).await;
    // The second changes its user, which clears the parent-death signal.
    for script in
        ["sleep 1000 & exec sleep 1000", "exec start-stop-daemon -S -c web -x /bin/sleep -- 1000"]
    {
        let spec = bed.script(&format!("echo ready; {script}"));
        let running = bed.start(&spec).await;
        until_line(&spec, "ready").await;
        let waiting = running.clone();
        let waiting = tokio::spawn(async move { waiting.wait().await });
        kill(shim_of(&running), libc::SIGKILL);
        let record = waiting.await.expect("no panic").expect("its end is known");
        assert_eq!(record.reason, ExitReason::ShimDied, "{script}");
        until_ended(running.pid()).await;
        let stored = ExitRecord::load(&bed.shims.state_dir(&spec.id)).expect("readable");
        assert_eq!(stored, Some(record));
    }
    assert!(is_alive(other.pid()));
    bed.finish().await;
}

pub async fn agent_and_shim_dead_together_are_noticed_at_adoption(mut bed: Bed) {
    let spec = bed.script("echo ready; exec start-stop-daemon -S -c web -x /bin/sleep -- 1000");
    let running = bed.start(&spec).await;
    until_line(&spec, "ready").await;
    let shim = shim_of(&running);
    kill(shim, libc::SIGKILL);
    eventually("the shim to end", || !is_alive(shim), || format!("shim {shim} lives")).await;
    bed.restart_agent();
    let AdoptedState::Ended(record) = adopt_one(&bed.shims).await else { panic!("still running") };
    assert_eq!(record.reason, ExitReason::ShimDied);
    until_ended(running.pid()).await;
    bed.finish().await;
}

pub async fn a_shim_survives_what_it_does_not_understand(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let socket = bed.path().join("run").join(running.id().as_str()).join("shim.sock");
    for (line, expected) in [
        ("{\"v\":2,\"op\":\"state\"}\n", "version 2 is not known"),
        ("{\"v\":1,\"op\":\"fly\"}\n", "not a request"),
        ("garbage\n", "not a request"),
        ("{\"v\":1,\"op\":\"state\",\"new\":1}\n", "\"pid\":"),
        ("{\"v\":1,\"op\":\"signal\",\"signal\":99}\n", "not a request"),
    ] {
        let mut stream = UnixStream::connect(&socket).expect("it listens");
        stream.write_all(line.as_bytes()).expect("it reads");
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).expect("it answers");
        assert!(reply.contains(expected), "{line}: {reply}");
    }
    // Some that say nothing, and one that says more than it may, do not keep others out.
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket)).collect();
    let mut flood = UnixStream::connect(&socket).expect("it listens");
    let _ = flood.write_all(&vec![b'x'; 4 << 20]);
    running.kill().await.expect("it ends");
    drop(silent);
    bed.finish().await;
}

pub async fn another_boot_is_a_restart_of_the_node(mut bed: Bed) {
    let spec = bed.spec(&["sleep", "1000"]);
    bed.start(&spec).await;
    bed.shims.remove(&spec.id).await.expect("removal works");
    let path = bed.shims.state_dir(&spec.id).join("spec.json");
    let mut launch: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("the spec")).expect("a document");
    launch["boot_id"] = "another".into();
    fs::write(&path, launch.to_string()).expect("a file");
    bed.restart_agent();
    let AdoptedState::Ended(record) = adopt_one(&bed.shims).await else { panic!("still running") };
    assert_eq!(record.reason, ExitReason::NodeRestarted);
    bed.finish().await;
}

pub async fn a_start_cut_off_at_any_moment_leaves_nothing(mut bed: Bed) {
    // A start with another program has more moments.
    let step = if bed.is_embedded() { 1 } else { 7 };
    for n_polls in (1..12).map(|number| number * step) {
        let spec = bed.spec(&["sleep", "1000"]);
        let mut start = Box::pin(bed.shims.start(&spec));
        for _ in 0..n_polls {
            if futures_util::poll!(&mut start).is_ready() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        drop(start);
        bed.restart_agent();
        for adopted in bed.shims.adopt().await.expect("adoption works") {
            if let AdoptedState::Running(running) = adopted.state {
                running.kill().await.expect("it ends");
            }
        }
    }
    bed.finish().await;
}
