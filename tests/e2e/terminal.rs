//! Commands inside of instances: in a terminal, with pipes, many at once, and what ends them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use longshore_api::links::ExecRequest;
use longshore_e2e::platform::binary;
use longshore_e2e::process::signal;
use longshore_e2e::pty::Terminal;
use longshore_e2e::websocket::Message;
use longshore_e2e::{Platform, WebSocket, eventually};
use longshore_types::InstanceId;
use rustix::process::Signal;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::scene::{but, web, with_web};

/// What stands before each line of the shell.
const PROMPT: &str = "/ # ";
/// Ctrl and the letter.
const CTRL_C: [u8; 1] = [3];
const CTRL_P_Q: [u8; 2] = [16, 17];

/// A platform with one instance that has room for shells.
fn with_instance() -> (Platform, InstanceId) {
    let platform = with_web();
    let limits = json!({"resources": {"memory": "128MiB", "cpu": "1", "pids": 512}});
    platform.deploy(&but(web("web", 1), &limits)).unwrap();
    let id = platform.instances("web").unwrap().remove(0).id().clone();
    (platform, id)
}

fn exec(platform: &Platform, options: &[&str], id: &InstanceId, script: &str) -> Command {
    let command = [&["exec"], options, &[id.as_str(), "--", "sh", "-c", script]].concat();
    platform.client(&command)
}

/// A shell in a terminal that shows its prompt.
fn shell(platform: &Platform, id: &InstanceId) -> Terminal {
    let mut command = exec(platform, &["-it"], id, "PS1='/ # ' exec sh -i");
    let terminal = Terminal::run(command.env("TERM", "vt220"), 100, 40).unwrap();
    terminal.until(PROMPT).unwrap();
    terminal
}

/// The processes inside whose arguments have this text.
fn n_inside(platform: &Platform, id: &InstanceId, text: &str) -> Result<usize> {
    let output = platform.run(&["exec", id.as_str(), "--", "busybox", "ps", "-o", "args"]);
    ensure!(output.code == Some(0), "{output}");
    Ok(output.stdout.lines().filter(|line| line.contains(text)).count())
}

fn is_gone(platform: &Platform, id: &InstanceId, text: &str) {
    eventually(&format!("{text} ends"), || {
        let n = n_inside(platform, id, text)?;
        ensure!(n == 0, "{n} are there");
        Ok(Some(()))
    })
    .unwrap();
}

fn runs(platform: &Platform, id: &InstanceId, text: &str) {
    eventually(&format!("{text} runs"), || Ok((n_inside(platform, id, text)? > 0).then_some(())))
        .unwrap();
}

#[test]
fn a_terminal_inside_is_like_one_at_hand() {
    let (platform, id) = with_instance();
    let mut terminal = shell(&platform, &id);
    assert!(terminal.is_raw().unwrap());
    terminal.line("busybox stty size; echo $TERM").unwrap();
    terminal.until("40 100\r\nvt220\r\n").unwrap();
    terminal.resize(90, 30).unwrap();
    eventually("the size inside follows", || {
        terminal.line("busybox stty size")?;
        Ok(terminal.until("30 90").ok())
    })
    .unwrap();
    terminal.until(PROMPT).unwrap();
    // Keys that are signals, to what is in the foreground.
    terminal.line("echo be''gins; sleep 4242; echo ended with $?").unwrap();
    terminal.until("begins\r\n").unwrap();
    terminal.press(CTRL_C).unwrap();
    terminal.until(PROMPT).unwrap();
    terminal.line("echo $?").unwrap();
    terminal.until("130").unwrap();
    terminal.line("exit 7").unwrap();
    assert_eq!(terminal.ended().unwrap(), 7);
    is_gone(&platform, &id, "sleep 4242");
    platform.finish();
}

#[test]
fn a_terminal_that_is_left_ends_what_ran_in_it() {
    let (platform, id) = with_instance();
    let mut terminal = shell(&platform, &id);
    terminal.line("sleep 4242 & sleep 4343").unwrap();
    runs(&platform, &id, "sleep 4343");
    terminal.press(CTRL_P_Q).unwrap();
    terminal.until("left the terminal").unwrap();
    assert_eq!(terminal.ended().unwrap(), 0);
    is_gone(&platform, &id, "sleep 4");
    // By other keys, and by the end of the program, which puts the terminal back.
    let mut command = exec(&platform, &["-it", "--detach-keys", "ctrl-x,x"], &id, "cat");
    let mut terminal = Terminal::run(command.env("TERM", "vt220"), 80, 24).unwrap();
    terminal.line("ready").unwrap();
    terminal.until("ready\r\nready\r\n").unwrap();
    terminal.press([24, b'x']).unwrap();
    assert_eq!(terminal.ended().unwrap(), 0);
    let mut terminal = shell(&platform, &id);
    terminal.line("sleep 4444").unwrap();
    runs(&platform, &id, "sleep 4444");
    signal(terminal.pid(), Signal::TERM).unwrap();
    assert_eq!(terminal.ended().unwrap(), 128 + 15);
    is_gone(&platform, &id, "sleep 4444");
    platform.finish();
}

#[test]
fn an_instance_that_dies_takes_its_terminals_along() {
    let (platform, id) = with_instance();
    let mut terminal = shell(&platform, &id);
    platform.run(&["stop", id.as_str()]).ok();
    let code = terminal.ended().unwrap();
    assert!(code == 137 || code == 129 || code == 1, "{code}: {}", terminal.shown());
    platform.finish();
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn much_input_arrives_whole_and_comes_back_whole() {
    let (platform, id) = with_instance();
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; 50 << 20];
    random.fill(&mut bytes);
    let path = platform.dir().join("input");
    std::fs::write(&path, &bytes).unwrap();
    let wanted = sha256(&bytes);
    let piped = |script: &str| {
        let mut command = exec(&platform, &["-i"], &id, script);
        command.stdin(File::open(&path).unwrap()).output().unwrap()
    };
    let hashed = piped("busybox sha256sum");
    assert_eq!(hashed.status.code(), Some(0), "{hashed:?}");
    assert!(String::from_utf8_lossy(&hashed.stdout).starts_with(&wanted), "{hashed:?}");
    let back = piped("cat; echo done >&2; exit 3");
    assert_eq!(back.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&back.stderr), "done\n");
    assert_eq!(sha256(&back.stdout), wanted);
    // What is not read to its end keeps nobody.
    let head = piped("busybox head -c 5 > /tmp/head; exit 4");
    assert_eq!(head.status.code(), Some(4), "{head:?}");
    platform.finish();
}

#[test]
fn a_signal_is_passed_on_once_and_a_client_that_dies_ends_its_command() {
    let (platform, id) = with_instance();
    let spawn = |options: &[&str], script: &str| {
        let mut command = exec(&platform, options, &id, script);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut asked =
        spawn(&[], "trap 'echo asked; exit 9' INT; echo ready; while :; do sleep 0.1; done");
    let mut ready = [0; 6];
    asked.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    signal(asked.id().cast_signed(), Signal::INT).unwrap();
    let output = asked.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(9), &b"asked\n"[..]));
    let mut stubborn = spawn(&[], "trap '' INT; echo ready; while :; do sleep 0.1; done");
    stubborn.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let code = eventually("the second signal leaves", || {
        signal(stubborn.id().cast_signed(), Signal::INT)?;
        Ok(stubborn.try_wait()?)
    });
    assert_eq!(code.unwrap().code(), Some(130));
    is_gone(&platform, &id, "trap '' INT");
    // Its input is not read, so that all that can be under way is.
    let mut killed = spawn(&["-i"], "sleep 4545");
    let mut stdin = killed.stdin.take().unwrap();
    let writer = thread::spawn(move || while stdin.write_all(&[7; 10_000]).is_ok() {});
    runs(&platform, &id, "sleep 4545");
    killed.kill().unwrap();
    killed.wait().unwrap();
    writer.join().unwrap();
    is_gone(&platform, &id, "sleep 4545");
    platform.finish();
}

/// A WebSocket to a script in the instance, as no client of ours would use it.
fn raw(platform: &Platform, id: &InstanceId, query: &str) -> WebSocket {
    let remote = platform.remote();
    let path = format!("/v1/projects/default/instances/{id}/exec?{query}");
    let authorization = format!("Bearer {}", remote.token());
    let headers = [
        ("authorization", authorization.as_str()),
        ("sec-websocket-protocol", "exec.v1.longshore"),
    ];
    WebSocket::connect_with(remote.address().unwrap(), "api", &path, &headers).unwrap()
}

/// What the platform says last.
fn last_words(socket: &mut WebSocket) -> String {
    let mut last = String::new();
    while let Ok(Message::Binary(bytes)) = socket.receive() {
        last = String::from_utf8_lossy(&bytes).into_owned();
    }
    last
}

#[test]
fn a_client_that_breaks_the_rules_is_refused_and_ended() {
    let (platform, id) = with_instance();
    let waits = "command=sleep&command=4646&stdin=true";
    let control = |text: &str| [b"\x03", text.as_bytes()].concat();
    for (query, message, part) in [
        (waits, control("{\"fly\":{}}"), "not understood"),
        (waits, control("nonsense"), "not understood"),
        (waits, control("{\"signal\":{\"name\":\"SIGNONE\"}}"), "does not exist"),
        (waits, control("{\"resize\":{\"columns\":-1,\"rows\":1}}"), "not understood"),
        (waits, vec![1, 2, 3], "a channel that a client does not have"),
        (waits, vec![200], "a channel that a client does not have"),
        (waits, Vec::new(), "a channel that a client does not have"),
        ("command=sleep&command=4646", vec![0, 7], "not asked for"),
        // Longer than a message may be: the connection breaks.
        (waits, vec![0; 70_000], ""),
    ] {
        let mut socket = raw(&platform, &id, query);
        socket.send_binary(&message).unwrap();
        let last = last_words(&mut socket);
        assert!(last.contains(part), "{message:?}: {last}");
    }
    let mut socket = raw(&platform, &id, waits);
    socket.send_text("hello").unwrap();
    assert!(last_words(&mut socket).contains("text is not understood"));
    // More input than may be under way.
    let mut socket = raw(&platform, &id, waits);
    for _ in 0..10 {
        if socket.send_binary(&[0; 60_000]).is_err() {
            break;
        }
    }
    let last = last_words(&mut socket);
    assert!(last.contains("more input") || last.is_empty(), "{last}");
    is_gone(&platform, &id, "sleep 4646");
    platform.finish();
}

#[test]
fn a_slow_reader_slows_the_command_down() {
    let (platform, id) = with_instance();
    let script = "n=0; while :; do busybox dd if=/dev/zero bs=65536 count=1 2>/dev/null; \
                  n=$((n+1)); echo $n > /tmp/n; done";
    let command = ["sh", "-c", script].map(str::to_owned).into();
    let query = ExecRequest { command, ..ExecRequest::default() }.to_query();
    let socket = raw(&platform, &id, &query);
    let written = || -> Result<u64> {
        let output = platform.run(&["exec", id.as_str(), "--", "cat", "/tmp/n"]);
        Ok(output.stdout.trim().parse()?)
    };
    let mut before = 0;
    let blocks = eventually("nothing more is written", || {
        let now = written()?;
        thread::sleep(Duration::from_millis(500));
        Ok((std::mem::replace(&mut before, now) == now && now == written()?).then_some(now))
    });
    // The buffers on the way are those of a few sockets.
    let mebibytes = blocks.unwrap() >> 4;
    assert!(mebibytes < 64, "{mebibytes} MiB are under way");
    drop(socket);
    is_gone(&platform, &id, "n=0");
    platform.finish();
}

/// The descriptors of a role.
fn n_descriptors(platform: &Platform, role: &str) -> usize {
    let pid = platform.role(role).unwrap().pid;
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn a_hundred_run_at_once_and_leave_nothing() {
    let (platform, id) = with_instance();
    // Each waits until all are there, so that they are all there at once.
    let script = "mkdir -p /tmp/all; : > /tmp/all/$0; \
                  until [ $(busybox ls /tmp/all | busybox wc -l) -ge 100 ]; do sleep 0.5; done; \
                  read line; echo $0 $line; echo err $0 >&2; exit $(($0 % 50))";
    let roles = ["global", "location", "node"];
    platform.run(&["exec", id.as_str(), "--", "ls"]).ok();
    let before = roles.map(|role| n_descriptors(&platform, role));
    let n_right = AtomicU32::new(0);
    let own = binary().unwrap();
    thread::scope(|scope| {
        for number in 0..100 {
            let (platform, id, n_right, own) = (&platform, &id, &n_right, &own);
            scope.spawn(move || {
                let name = number.to_string();
                let mut command = Command::new(own);
                command.args(["exec", "-i", id.as_str(), "--", "sh", "-c", script, &name]);
                platform.let_in(&mut command);
                let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped());
                let mut child = streams.stderr(Stdio::piped()).spawn().unwrap();
                let mut stdin = child.stdin.take().unwrap();
                stdin.write_all(format!("typed {number}\n").as_bytes()).unwrap();
                drop(stdin);
                let output = child.wait_with_output().unwrap();
                assert_eq!(output.status.code(), Some(number % 50), "{output:?}");
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                assert_eq!(text(&output.stdout), format!("{number} typed {number}\n"));
                assert_eq!(text(&output.stderr), format!("err {number}\n"));
                n_right.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(n_right.into_inner(), 100);
    is_gone(&platform, &id, "/tmp/all");
    eventually("the descriptors are closed", || {
        let now = roles.map(|role| n_descriptors(&platform, role));
        // Connections are kept for the next call, a few of them.
        let grown = now.iter().zip(before).any(|(now, before)| *now > before + 10);
        ensure!(!grown, "{before:?} became {now:?}");
        Ok(Some(()))
    })
    .unwrap();
    platform.finish();
}
