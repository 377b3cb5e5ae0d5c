//! Processes that join a running container.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use longshore_runtime::{ExecError, ExecEvent, ExecRequest, ExecStream, Running, TerminalSize};

use crate::bed::{Bed, all_pids, eventually, is_alive, kill};
use crate::protection::{assert_protected, assert_protected_root};

pub fn request(script: &str) -> ExecRequest {
    let args = ["sh", "-c", script].map(str::to_owned).into();
    ExecRequest { args, ..ExecRequest::default() }
}

/// Standard output, standard error and exit code.
pub async fn run(bed: &Bed, running: &Running, request: ExecRequest) -> (String, String, i32) {
    all(bed.shims.exec(running.id(), request).await.expect("exec works")).await
}

/// All that comes of a stream: standard output, standard error and exit code.
pub async fn all(mut stream: ExecStream) -> (String, String, i32) {
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

/// The process of this machine that makes and watches what runs inside.
fn exec_process(bed: &Bed) -> i32 {
    let own = [b"shim-exec\0", bed.path().to_str().expect("text").as_bytes()].concat();
    let is_exec = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.windows(own.len()).any(|part| part == own)
    };
    all_pids().into_iter().find(is_exec).expect("an exec process")
}

pub async fn what_a_killed_exec_process_leaves_is_ended(bed: Bed) {
    let running = bed.start(&bed.script("sleep 1000 & wait")).await;
    let mut stream =
        bed.shims.exec(running.id(), request("exec sleep 3000")).await.expect("exec works");
    let processes = || bed.n_processes(&running);
    let told = || processes().to_string();
    eventually("three processes", || processes() >= 3, told).await;
    kill(exec_process(&bed), libc::SIGKILL);
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

/// In a terminal, what both streams said together and the exit code.
async fn run_in_terminal(bed: &Bed, running: &Running, script: &str) -> (String, i32) {
    let mut stream = bed.shims.exec(running.id(), in_terminal(script)).await.expect("exec works");
    let mut shown = Vec::new();
    loop {
        match stream.next().await.expect("an end").expect("no failure") {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => shown.extend(bytes),
            ExecEvent::Exited { code } => {
                return (String::from_utf8(shown).expect("text"), code);
            }
        }
    }
}

fn in_terminal(script: &str) -> ExecRequest {
    let terminal = Some(TerminalSize { columns: 77, rows: 33 });
    ExecRequest { terminal, ..request(script) }
}

/// What the process of the stream writes, until it ends with `text`.
pub async fn until(stream: &mut ExecStream, text: &str) -> String {
    let mut shown = String::new();
    while !shown.trim_end().ends_with(text) {
        let next = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        let next = next.unwrap_or_else(|_| panic!("{text:?} does not come after {shown:?}"));
        match next.expect("more").expect("no failure") {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => {
                shown.push_str(&String::from_utf8_lossy(&bytes));
            }
            ExecEvent::Exited { code } => panic!("ended with {code} after {shown:?}"),
        }
    }
    shown
}

/// The exit code, whatever is written before.
pub async fn end(stream: &mut ExecStream) -> i32 {
    loop {
        if let ExecEvent::Exited { code } =
            stream.next().await.expect("an end").expect("no failure")
        {
            return code;
        }
    }
}

pub async fn input_is_read_to_its_end(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let counts = ExecRequest { input: true, ..request("wc -c; readlink /proc/self/fd/0 >&2") };
    let mut stream = bed.shims.exec(running.id(), counts).await.expect("exec works");
    let mut input = stream.take_input().expect("asked for");
    assert!(stream.take_input().is_none());
    let writing = async move {
        for _ in 0..1000 {
            input.write_all(&[7; 5000]).await.expect("it reads");
        }
    };
    let reading = async {
        let mut stdout = Vec::new();
        loop {
            match stream.next().await.expect("an end").expect("no failure") {
                ExecEvent::Stdout(bytes) => stdout.extend(bytes),
                ExecEvent::Stderr(_) => {}
                ExecEvent::Exited { code } => return (stdout, code),
            }
        }
    };
    let ((), (stdout, code)) = tokio::join!(writing, reading);
    assert_eq!((String::from_utf8_lossy(&stdout).trim(), code), ("5000000", 0));
    // As another user, who opens it by its name.
    let mut named = ExecRequest { input: true, ..request("cat /dev/stdin") };
    named.user = Some("web".to_owned());
    let mut stream = bed.shims.exec(running.id(), named).await.expect("exec works");
    let mut input = stream.take_input().expect("asked for");
    input.write_all(b"by name\n").await.expect("it reads");
    until(&mut stream, "by name").await;
    drop(input);
    assert_eq!(end(&mut stream).await, 0);
    if bed.is_sandboxed() {
        // Its kernel keeps the pipe open.
        return bed.finish().await;
    }
    // Whoever reads no more is known to.
    let closes = ExecRequest { input: true, ..request("exec <&-; echo closed; sleep 1000") };
    let mut stream = bed.shims.exec(running.id(), closes).await.expect("exec works");
    let mut input = stream.take_input().expect("asked for");
    until(&mut stream, "closed").await;
    eventually_fails(&mut input).await;
    drop(stream);
    bed.finish().await;
}

/// A pipe that nobody reads: what was in flight fits into it, what comes then does not.
async fn eventually_fails(input: &mut longshore_runtime::ExecInput) {
    for _ in 0..1000 {
        if input.write_all(&[7; 5000]).await.is_err() {
            return;
        }
    }
    panic!("nobody reads five million bytes");
}

pub async fn a_terminal_has_its_size_and_its_session(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    if bed.is_sandboxed() {
        return in_a_sandbox(bed, &running).await;
    }
    let script = "stty size; test -t 0 && test -t 1 && echo all >&2; \
                  echo through > /dev/tty; exit 5";
    let (shown, code) = run_in_terminal(&bed, &running, script).await;
    assert_eq!((shown.as_str(), code), ("33 77\r\nall\r\nthrough\r\n", 5));
    // Another user's is opened by its name, and seen as the user's own. An old crun leaves it to us to
    // hand it over, when the program runs already.
    let mut as_web = in_terminal(
        "n=0; until stty -F $(readlink /proc/self/fd/0) size 2>&- || [ $n = 100 ]; \
         do sleep 0.1; n=$((n + 1)); done; id -u; tty",
    );
    as_web.user = Some("web".to_owned());
    let mut stream = bed.shims.exec(running.id(), as_web).await.expect("exec works");
    let shown = until(&mut stream, "/dev/pts/0").await;
    assert!(shown.starts_with("33 77\r\n33\r\n"), "{shown:?}");
    assert_eq!(end(&mut stream).await, 0);
    bed.finish().await;
}

/// A sandbox has its terminal a moment after the program has begun, which may lose what it writes
/// or reads until then; so the same is typed until it is answered. It has no `/dev/tty`.
async fn in_a_sandbox(bed: Bed, running: &Running) {
    let script = "while read line; do stty size; echo got $line; test $line = last && exit 6; done";
    let mut stream = bed.shims.exec(running.id(), in_terminal(script)).await.expect("exec works");
    let (mut input, control) = (stream.take_input().expect("a terminal"), stream.control());
    for (size, answer) in [((77, 33), "33 77\r\ngot one"), ((101, 44), "44 101\r\ngot one")] {
        control.resize(TerminalSize { columns: size.0, rows: size.1 }).expect("a size");
        let mut shown = String::new();
        while !shown.contains(answer) {
            input.write_all(b"one\r").await.expect("it reads");
            let more = tokio::time::timeout(Duration::from_millis(200), stream.next());
            if let Ok(Some(Ok(ExecEvent::Stdout(bytes)))) = more.await {
                shown.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }
    input.write_all(b"last\r").await.expect("it reads");
    assert_eq!(end(&mut stream).await, 6);
    drop((stream, input, control));
    bed.finish().await;
}

pub async fn a_terminal_is_resized_and_takes_keys(bed: Bed) {
    if bed.is_sandboxed() {
        return bed.finish().await; // See above.
    }
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let script = "trap 'echo told' WINCH; echo ready; while :; do \
                  read line && stty size && echo got $line; test \"$line\" = last && exit 6; done";
    let mut stream = bed.shims.exec(running.id(), in_terminal(script)).await.expect("exec works");
    let (mut input, control) = (stream.take_input().expect("a terminal"), stream.control());
    until(&mut stream, "ready").await;
    input.write_all(b"one\r").await.expect("it reads");
    until(&mut stream, "got one").await;
    control.resize(TerminalSize { columns: 101, rows: 44 }).expect("a size");
    // Most shells run the trap when their `read` is over.
    input.write_all(b"two\r").await.expect("it reads");
    let shown = until(&mut stream, "got two").await;
    assert!(shown.contains("44 101"), "{shown:?}");
    assert!(shown.contains("told"), "{shown:?}");
    input.write_all(b"last\r").await.expect("it reads");
    assert_eq!(end(&mut stream).await, 6);
    // A key that ends the input.
    let counts = in_terminal("echo ready; wc -c");
    let mut stream = bed.shims.exec(running.id(), counts).await.expect("exec works");
    let mut input = stream.take_input().expect("a terminal");
    until(&mut stream, "ready").await;
    input.write_all(b"four\r\x04").await.expect("it reads");
    until(&mut stream, "5").await;
    assert_eq!(end(&mut stream).await, 0);
    // A key that interrupts.
    let waits = in_terminal("echo ready; sleep 1000");
    let mut stream = bed.shims.exec(running.id(), waits).await.expect("exec works");
    let mut input = stream.take_input().expect("a terminal");
    until(&mut stream, "ready").await;
    input.write_all(&[3]).await.expect("it reads");
    assert_eq!(end(&mut stream).await, 130);
    bed.finish().await;
}

pub async fn a_signal_reaches_the_group(bed: Bed) {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    let script = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut stream = bed.shims.exec(running.id(), request(script)).await.expect("exec works");
    until(&mut stream, "ready").await;
    stream.control().signal("TERM".parse().expect("a signal")).await.expect("it runs");
    until(&mut stream, "asked").await;
    assert_eq!(end(&mut stream).await, 9);
    let mut stream = bed.shims.exec(running.id(), request("sleep 2000")).await.expect("exec works");
    stream.control().signal("INT".parse().expect("a signal")).await.expect("it runs");
    assert_eq!(end(&mut stream).await, 130);
    bed.finish().await;
}

pub async fn a_left_terminal_takes_its_session_along(bed: Bed) {
    let running = bed.start(&bed.script("sleep 1000 & wait")).await;
    let processes = || bed.n_processes(&running);
    let told = || processes().to_string();
    // With job control the shell gives each job a group of its own.
    let script = "set -m; trap 'echo left > /tmp/left' HUP; sleep 2000 & sleep 3000 & \
                  echo ready; wait; wait";
    let mut stream = bed.shims.exec(running.id(), in_terminal(script)).await.expect("exec works");
    until(&mut stream, "ready").await;
    eventually("five processes", || processes() >= 5, told).await;
    drop(stream);
    if bed.is_sandboxed() {
        // Whose sessions only its own kernel knows; so the jobs of the shell may stay.
        eventually("the shell to end", || processes() <= 4, told).await;
        return bed.finish().await;
    }
    eventually("only the first two", || processes() == 2, told).await;
    let (stdout, ..) = run(&bed, &running, request("cat /tmp/left")).await;
    assert_eq!(stdout, "left\n");
    // However late that is noticed, and though a shell ends when its terminal hangs up.
    let script = "set -m; sleep 2000 & echo ready; read nothing";
    let mut stream = bed.shims.exec(running.id(), in_terminal(script)).await.expect("exec works");
    until(&mut stream, "ready").await;
    let watching = exec_process(&bed);
    kill(watching, libc::SIGSTOP);
    drop(stream);
    tokio::time::sleep(Duration::from_millis(100)).await;
    kill(watching, libc::SIGCONT);
    eventually("only the first two", || processes() == 2, told).await;
    bed.finish().await;
}
