//! `longshore run`: a program that is there for whoever runs it, and gone with them.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use longshore_e2e::process::signal;
use longshore_e2e::pty::Terminal;
use longshore_e2e::{Platform, eventually};
use rustix::process::Signal;

use crate::scene::{web, with_web};

const IMAGE: &str = "default/web:1";
const CTRL_P_Q: [u8; 2] = [16, 17];

fn run(platform: &Platform, options: &[&str], command: &[&str]) -> Command {
    let small = ["--memory", "64MiB", "--cpu", "0.5", "--disk", "64MiB"];
    let mut client = platform.client(&[&["run"], &small[..], options, &[IMAGE], command].concat());
    client.stdin(Stdio::null());
    client
}

/// Exit code, output and errors.
fn finished(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A client whose program has said that it is ready.
fn ready(command: &mut Command) -> Child {
    let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 6];
    client.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\n");
    client
}

/// Waits until there is no app any more.
fn nothing_is_left(platform: &Platform) {
    eventually("the app is gone", || {
        let apps = platform.run(&["apps", "--json"]).ok();
        ensure!(apps.trim() == "[]", "{apps}");
        Ok(Some(()))
    })
    .unwrap();
}

/// The one instance of an app.
fn instance(platform: &Platform, app: &str) -> Result<String> {
    let instances = platform.instances(app)?;
    ensure!(instances.len() == 1, "{instances:?}");
    Ok(instances[0].id().to_string())
}

#[test]
fn output_input_and_exit_code_are_those_of_the_program() {
    let platform = with_web();
    let file = platform.dir().join("key");
    std::fs::write(&file, "s3cret").unwrap();
    platform.run(&["secret", "set", "key", "--from-file", file.to_str().unwrap()]).ok();
    let script = "echo out; echo bad >&2; echo $A$HOME; pwd; id -u; echo $KEY; exit 7";
    let options = ["--env", "A=1", "--secret", "KEY=key", "--user", "33", "--workdir", "/tmp"];
    let (code, out, err) = finished(&mut run(&platform, &options, &["sh", "-c", script]));
    let all = (code, out.as_str(), err.as_str());
    assert_eq!(all, (Some(7), "out\n1/\n/tmp\n33\ns3cret\n", "bad\n"));
    nothing_is_left(&platform);
    // Every byte of a pipe, both ways.
    let mut client = run(&platform, &["-i"], &["cat"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut stdin, sent) = (client.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = client.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "{:?}", output.status);
    nothing_is_left(&platform);
    // What cannot run says so, and leaves nothing.
    let (code, _, err) = finished(&mut run(&platform, &[], &["/nothing"]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("/nothing: no such file"), "{err}");
    nothing_is_left(&platform);
    platform.finish();
}

#[test]
fn a_terminal_is_that_of_the_program_and_may_be_left_and_taken_again() {
    let platform = with_web();
    let mut command = run(&platform, &["-it", "--name", "box"], &["sh"]);
    let mut terminal = Terminal::run(command.env("TERM", "vt220"), 100, 40).unwrap();
    terminal.until("# ").unwrap();
    assert!(terminal.is_raw().unwrap());
    terminal.line("busybox stty size; echo $TERM $$; tty").unwrap();
    terminal.until("40 100\r\nvt220 1\r\n/dev/").unwrap();
    terminal.resize(90, 30).unwrap();
    eventually("the size inside follows", || {
        terminal.line("busybox stty size")?;
        Ok(terminal.until("30 90").ok())
    })
    .unwrap();
    // Somebody else sees it, but is not let in.
    let id = instance(&platform, "box").unwrap();
    let (code, _, err) = finished(platform.client(&["attach", &id]).stdin(Stdio::null()));
    assert!(code == Some(1) && err.contains("somebody else is attached"), "{code:?} {err}");
    terminal.line("cd /tmp; A=kept").unwrap();
    terminal.press(CTRL_P_Q).unwrap();
    terminal.until("goes on").unwrap();
    assert_eq!(terminal.ended().unwrap(), 0);
    let mut command = platform.client(&["attach", "-it", "box"]);
    let mut terminal = Terminal::run(command.env("TERM", "vt220"), 70, 20).unwrap();
    // It shows nothing of its own accord.
    terminal.line("busybox stty size; pwd; echo $A").unwrap();
    terminal.until("20 70\r\n/tmp\r\nkept\r\n").unwrap();
    terminal.line("exit 5").unwrap();
    assert_eq!(terminal.ended().unwrap(), 5);
    // The log has what the terminal showed.
    let log = platform.run(&["logs", &id]).ok();
    assert!(log.contains("vt220 1") && log.contains("kept"), "{log}");
    platform.run(&["rm", "box", "--wait"]).ok();
    platform.finish();
}

#[test]
fn what_is_run_ends_with_whoever_ran_it() {
    let platform = with_web();
    // By a terminal that is closed, and by a process that is killed; the app is told by its end.
    let script = "trap 'exit 0' HUP; echo ready; while :; do sleep 0.1; done";
    let mut command = run(&platform, &["-it", "--name", "shut"], &["sh", "-c", script]);
    let terminal = Terminal::run(command.env("TERM", "vt220"), 80, 24).unwrap();
    terminal.until("ready").unwrap();
    signal(terminal.pid(), Signal::KILL).unwrap();
    let ended = |app: &str| {
        eventually("it ends", || {
            let shown = platform.run(&["ps", app]).ok();
            ensure!(shown.contains("exited"), "{shown}");
            Ok(Some(()))
        })
        .unwrap();
    };
    ended("shut");
    platform.run(&["rm", "shut", "--wait"]).ok();
    drop(terminal);
    // By a signal that asks, which is passed on, and by the second one.
    let mut command = run(&platform, &["--name", "asked"], &["sh", "-c", "echo ready; sleep 1000"]);
    let mut client = ready(&mut command);
    let code = eventually("the second signal leaves", || {
        signal(client.id().cast_signed(), Signal::INT)?;
        Ok(client.try_wait()?)
    });
    assert_eq!(code.unwrap().code(), Some(130));
    nothing_is_left(&platform);
    // By somebody else.
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = run(&platform, &["--name", "stopped"], &["sh", "-c", script]);
    let mut client = ready(&mut command);
    platform.run(&["rm", "stopped"]).ok();
    assert_eq!(client.wait().unwrap().code(), Some(3));
    nothing_is_left(&platform);
    platform.finish();
}

#[test]
fn an_app_for_one_client_is_not_changed_and_others_have_no_place_for_one() {
    let platform = with_web();
    let mut command = run(&platform, &["--name", "box"], &["sh", "-c", "echo ready; sleep 1000"]);
    let mut client = ready(&mut command);
    let again = finished(&mut run(&platform, &["--name", "box"], &["true"]));
    assert!(again.0 == Some(1) && again.2.contains("take another name"), "{again:?}");
    let over = platform.deploy(&web("box", 1)).unwrap_err().to_string();
    assert!(over.contains("take another name"), "{over}");
    platform.run(&["scale", "box=2"]).fails(3, &["its one instance"]);
    platform.deploy(&web("web", 1)).unwrap();
    platform.run(&["attach", "web"]).fails(1, &["nobody can be attached", "in its log"]);
    // All of it left the running one alone.
    assert!(client.try_wait().unwrap().is_none());
    client.kill().unwrap();
    client.wait().unwrap();
    platform.finish();
}
