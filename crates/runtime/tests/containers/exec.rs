//! Processes that join a running container.

use std::collections::BTreeMap;
use std::fs;

use longshore_runtime::{ExecError, ExecEvent, ExecRequest, Running};

use crate::bed::{Bed, all_pids, eventually, is_alive, kill};
use crate::protection::{assert_protected, assert_protected_root};

pub fn request(script: &str) -> ExecRequest {
    let args = ["sh", "-c", script].map(str::to_owned).into();
    ExecRequest { args, ..ExecRequest::default() }
}

/// Standard output, standard error and exit code.
pub async fn run(bed: &Bed, running: &Running, request: ExecRequest) -> (String, String, i32) {
    let mut stream = bed.shims.exec(running.id(), request).await.expect("exec works");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event.expect("no failure") {
            ExecEvent::Stdout(bytes) => stdout.extend(bytes),
            ExecEvent::Stderr(bytes) => stderr.extend(bytes),
            ExecEvent::Exited { code } => {
                assert!(stream.next().await.is_none());
                let text = |bytes| String::from_utf8(bytes).expect("text");
                return (text(stdout), text(stderr), code);
            }
        }
    }
    panic!("no exit code");
}

pub async fn output_and_exit_code_come_back(bed: Bed) {
    let mut spec = bed.spec(&["sleep", "1000"]);
    spec.env.insert("FROM_SPEC".to_owned(), "1".to_owned());
    spec.cwd = "/tmp".to_owned();
    let running = bed.start(&spec).await;
    let mut asked = request("echo $FROM_SPEC$ADDED; pwd; echo bad >&2; exit 3");
    asked.env = BTreeMap::from([("ADDED".to_owned(), "2".to_owned())]);
    let result = run(&bed, &running, asked).await;
    assert_eq!(result, ("12\n/tmp\n".to_owned(), "bad\n".to_owned(), 3));
    let (stdout, _, code) = run(&bed, &running, request("seq 50000; kill -9 $$")).await;
    assert_eq!((stdout.lines().count(), code), (50_000, 137));
    let (stdout, ..) = run(&bed, &running, request("ps; hostname; ls /proc/self/fd/")).await;
    assert!(stdout.contains("sleep 1000") && stdout.contains("\nbox\n0\n1\n2\n"), "{stdout}");
    bed.finish().await;
}

pub async fn the_same_protections_apply(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let (status, stderr, _) =
        run(&bed, &running, request("cat /proc/self/status; unshare -U true; mknod /n b 8 0"))
            .await;
    assert_protected_root(&bed, &status);
    if bed.is_sandboxed() {
        // Its kernel does not filter what joins later; the host filters that kernel.
        let kernel = format!("/proc/{}/status", running.pid());
        let kernel = fs::read_to_string(kernel).expect("it runs");
        assert!(kernel.contains("Seccomp:\t2"), "{kernel}");
    } else {
        assert_eq!(stderr.matches("Operation not permitted").count(), 2, "{stderr}");
    }
    let mut as_web = request("cat /proc/self/status; id -u; echo opened > /dev/stdout");
    as_web.user = Some("web".to_owned());
    let (status, ..) = run(&bed, &running, as_web).await;
    assert_protected(&bed, &status, "0000000000000000");
    assert!(status.ends_with("33\nopened\n"), "{status}");
    assert_eq!(bed.n_processes(&running), 1);
    bed.finish().await;
}

pub async fn what_cannot_run_is_refused(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let missing = ExecRequest { args: vec!["/foo".to_owned()], ..ExecRequest::default() };
    match bed.shims.exec(running.id(), missing).await {
        Err(ExecError::Refused { why }) => assert_eq!(why, "exec: /foo: no such file"),
        other => panic!("not refused: {:?}", other.err()),
    }
    let mut nobody = request("true");
    nobody.user = Some("nobody".to_owned());
    assert!(matches!(bed.shims.exec(running.id(), nobody).await, Err(ExecError::User(_))));
    running.kill().await.expect("it ends");
    let late = bed.shims.exec(running.id(), request("true")).await;
    assert!(matches!(late, Err(ExecError::NotRunning(_))));
    bed.finish().await;
}

pub async fn what_a_killed_exec_process_leaves_is_ended(bed: Bed) {
    let running = bed.start(&bed.script("sleep 1000 & wait")).await;
    let mut stream =
        bed.shims.exec(running.id(), request("exec sleep 3000")).await.expect("exec works");
    let processes = || bed.n_processes(&running);
    let told = || processes().to_string();
    eventually("three processes", || processes() >= 3, told).await;
    let own = [b"shim-exec\0", bed.path().to_str().expect("text").as_bytes()].concat();
    let is_exec = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.windows(own.len()).any(|part| part == own)
    };
    let exec_process = all_pids().into_iter().find(is_exec).expect("an exec process");
    kill(exec_process, libc::SIGKILL);
    let end = loop {
        match stream.next().await {
            Some(Ok(ExecEvent::Stdout(_) | ExecEvent::Stderr(_))) => {}
            other => break other,
        }
    };
    assert!(matches!(end, Some(Err(ExecError::Died))), "{end:?}");
    // What joined a sandbox goes with the sandbox.
    if !bed.is_sandboxed() {
        eventually("only the first two", || processes() == 2, told).await;
    }
    assert!(is_alive(running.pid()));
    bed.finish().await;
}

pub async fn it_ends_with_its_caller_and_with_its_container(bed: Bed) {
    // A shell that waits buries what it inherits.
    let running = bed.start(&bed.script("sleep 1000 & wait")).await;
    let processes = || bed.n_processes(&running);
    let told = || processes().to_string();
    let abandoned = bed.shims.exec(running.id(), request("sleep 2000 & sleep 3000")).await;
    eventually("four processes", || processes() >= 4, told).await;
    drop(abandoned.expect("exec works"));
    eventually("only the first two", || processes() == 2, told).await;
    let mut stream = bed.shims.exec(running.id(), request("sleep 3000")).await.expect("exec works");
    running.kill().await.expect("it ends");
    assert!(!is_alive(running.pid()));
    let end = loop {
        match stream.next().await {
            // What runsc says of it.
            Some(Ok(ExecEvent::Stderr(_))) if bed.is_sandboxed() => {}
            other => break other,
        }
    };
    let as_killed = |code| code == 137 || (bed.is_sandboxed() && code == 128);
    assert!(matches!(end, Some(Ok(ExecEvent::Exited { code })) if as_killed(code)), "{end:?}");
    let exec_files = fs::read_dir(bed.path().join("run").join(running.id().as_str()))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("exec"));
    assert_eq!(exec_files.count(), 0);
    bed.finish().await;
}
