//! Images that no guide describes and that people have: each is run, and says what it sees.

use std::path::Path;

use longshore_e2e::Platform;
use longshore_e2e::image::{Entries, Layered};
use longshore_types::ExitReason;
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";

/// An image and what its log says, or why it does not start.
struct Case {
    app: &'static str,
    image: Layered,
    expected: Expected,
}

enum Expected {
    /// All of these lines.
    Says(&'static [&'static str]),
    /// It cannot start; the reason has all of these texts.
    Refused(&'static [&'static str]),
}

fn says(app: &'static str, image: Layered, lines: &'static [&'static str]) -> Case {
    Case { app, image, expected: Expected::Says(lines) }
}

fn refused(app: &'static str, image: Layered, texts: &'static [&'static str]) -> Case {
    Case { app, image, expected: Expected::Refused(texts) }
}

/// A layer with busybox and the links by which it is called.
pub(crate) fn base() -> Entries {
    let base = Entries::default().directory("bin", 0o755).directory("tmp", 0o1777);
    let base = base.program("bin/busybox", Path::new(BUSYBOX)).unwrap();
    ["sh", "cat", "env", "id", "ls", "pwd", "stat", "wc"]
        .iter()
        .fold(base, |base, name| base.symlink(&format!("bin/{name}"), "busybox"))
}

/// What busybox's shell runs.
pub(crate) fn shell(script: &str) -> Value {
    json!({"Cmd": ["/bin/sh", "-c", script], "Env": ["PATH=/bin"]})
}

fn with(mut config: Value, key: &str, value: impl Into<Value>) -> Value {
    config[key] = value.into();
    config
}

fn on_base(config: Value, top: Entries) -> Layered {
    Layered::new(config).layer(base()).layer(top)
}

fn programs() -> Vec<Case> {
    let only_echo = || Entries::default().program("echo", Path::new(BUSYBOX)).unwrap();
    let scratch = |config: Value| Layered::new(config).layer(only_echo());
    let deep = vec!["d".repeat(255); 15].join("/");
    let many = (1..127).fold(Layered::new(shell("cat /last; ls /each | wc -l")), |image, n| {
        let layer = Entries::default().file("last", 0o644, format!("{n}\n").as_bytes());
        image.layer(layer.file(&format!("each/{n}"), 0o644, b""))
    });
    vec![
        says("layers-127", many.layer(base()), &["126"]),
        says(
            "scratch",
            scratch(json!({"Entrypoint": ["/echo"], "Cmd": ["from", "scratch"]})),
            &["from scratch"],
        ),
        says("entrypoint", scratch(json!({"Entrypoint": ["/echo", "alone"]})), &["alone"]),
        says(
            "command",
            scratch(json!({"Cmd": ["echo", "by its name"], "Env": ["PATH=/:/x"]})),
            &["by its name"],
        ),
        says(
            "empty-layers",
            on_base(shell("echo whole"), Entries::default()).layer(Entries::default()),
            &["whole"],
        ),
        says(
            "long-path",
            on_base(
                // The kernel takes no longer path at once, so the shell goes there in steps.
                shell("while cd d* 2>/dev/null; do :; done; pwd | wc -c; cat f*"),
                Entries::default().file(&format!("{deep}/{}", "f".repeat(200)), 0o644, b"deep\n"),
            ),
            &["3841", "deep"],
        ),
        refused("no-command", Layered::new(json!({})).layer(base()), &["names no program to run"]),
        refused("no-layers", Layered::new(json!({"Cmd": ["/x"]})), &["/x: no such file"]),
        refused(
            "no-program",
            on_base(json!({"Cmd": ["/no/such"]}), Entries::default()),
            &["/no/such: no such file"],
        ),
        refused(
            "not-executable",
            on_base(
                json!({"Cmd": ["/text"]}),
                Entries::default().file("text", 0o644, b"#!/bin/sh\n"),
            ),
            &["/text: permission denied"],
        ),
    ]
}

fn users() -> Vec<Case> {
    const PASSWD: &[u8] = b"root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:1001:\nlog:x:40:web\n";
    let etc =
        || Entries::default().file("etc/passwd", 0o644, PASSWD).file("etc/group", 0o644, GROUP);
    let user = |user: &str, entries: Entries| {
        on_base(with(shell("id -u; id -G; echo home=$HOME"), "User", user), entries)
    };
    let linked = Entries::default()
        .file("usr/share/passwd", 0o644, PASSWD)
        .file("usr/share/group", 0o644, GROUP)
        .symlink("etc/passwd", "/usr/share/passwd")
        .symlink("etc/group", "../../../usr/share/group");
    let circle = Entries::default().symlink("etc/passwd", "group").symlink("etc/group", "passwd");
    let fifo = Entries::default().directory("etc/passwd", 0o755);
    vec![
        says("user-by-name", user("web", etc()), &["1000", "1001 40", "home=/srv"]),
        says("user-by-number", user("1000", etc()), &["1000", "1001 40", "home=/srv"]),
        says("user-and-group", user("web:log", etc()), &["1000", "40", "home=/srv"]),
        says("group-by-number", user("web:77", etc()), &["1000", "77", "home=/srv"]),
        says("empty-group", user("web:", etc()), &["1000", "1001 40"]),
        says("stranger", user("4242:4343", etc()), &["4242", "4343", "home=/"]),
        says("no-passwd", user("4242", Entries::default()), &["4242", "0", "home=/"]),
        says("linked-passwd", user("web", linked), &["1000", "1001 40", "home=/srv"]),
        refused("unknown-user", user("nobody", etc()), &["user \"nobody\"", "/etc/passwd"]),
        refused("unknown-group", user("web:wheel", etc()), &["group \"wheel\"", "/etc/group"]),
        refused("name-without-passwd", user("web", Entries::default()), &["user \"web\""]),
        refused("highest-user", user("4294967295", etc()), &["\"4294967295\"", "2147483647"]),
        refused("negative-user", user("-1", etc()), &["user \"-1\""]),
        refused("passwd-in-a-circle", user("web", circle), &["/etc/passwd"]),
        refused("passwd-is-a-directory", user("web", fifo), &["/etc/passwd", "regular file"]),
    ]
}

fn directories_and_environments() -> Vec<Case> {
    let at = |workdir: &str, top: Entries| {
        on_base(with(shell("pwd; stat -c %a:%u ."), "WorkingDir", workdir), top)
    };
    let top = Entries::default;
    let link = || top().directory("real/place", 0o700).symlink("link", "real/place");
    // A shell would keep to itself what it cannot name.
    let env = |lines: Value| on_base(json!({"Cmd": ["/bin/env"], "Env": lines}), top());
    vec![
        says("workdir-made", at("/srv/app/deep", top()), &["/srv/app/deep", "755:0"]),
        says("workdir-relative", at("srv", top()), &["/srv", "755:0"]),
        says("workdir-linked", at("/link", link()), &["/real/place", "700:0"]),
        says(
            "workdir-below-a-link",
            at("/link/sub/dir", link()),
            &["/real/place/sub/dir", "755:0"],
        ),
        says(
            "workdir-dangling",
            at("/to/x", top().symlink("to", "/made/here")),
            &["/made/here/x", "755:0"],
        ),
        says("workdir-with-dots", at("/srv/../opt/./x", top()), &["/opt/x", "755:0"]),
        refused(
            "workdir-is-a-file",
            at("/file", top().file("file", 0o644, b"")),
            &["\"/file\"", "Not a directory"],
        ),
        refused(
            "workdir-in-a-circle",
            at("/a/b", top().symlink("a", "a")),
            &["\"/a/b\"", "symbolic"],
        ),
        says(
            "no-path",
            env(json!(["A=1"])),
            &["A=1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        ),
        says(
            "odd-variables",
            env(json!(["A=1", "EMPTY=", "EQ=a=b=c", "A=2", "WITH SPACE=x", "é=ü", "PATH=/bin"])),
            &["A=2", "EMPTY=", "EQ=a=b=c", "WITH SPACE=x", "é=ü", "PATH=/bin"],
        ),
    ]
}

/// Pushes an image of the app's name and has it run once, on so little that many run side by side.
pub(crate) fn begin(platform: &Platform, app: &str, image: Layered) {
    let layout = image.write(&platform.dir().join(app)).unwrap();
    platform.push(&layout, &format!("default/{app}:1")).unwrap();
    let manifest = json!({
        "app": app,
        "image": format!("default/{app}:1"),
        "restart": "never",
        "resources": {"memory": "32MiB", "cpu": "0.02", "disk": "16MiB"},
    });
    platform.deploy_only(&manifest).unwrap();
}

/// Waits until such an app has ended: how, and what it wrote.
pub(crate) fn end(platform: &Platform, app: &str) -> (Option<ExitReason>, String) {
    let ended = platform
        .wait_for_instance(app, "ended", |instance| instance.observed.last_exit.is_some())
        .unwrap();
    (ended.observed.last_exit, platform.run(&["logs", "--tail", "100000", app]).ok())
}

/// Pushes all images, runs all of them side by side and looks at each.
fn run(cases: Vec<Case>) {
    let platform = Platform::start().unwrap();
    let mut expected = Vec::new();
    for Case { app, image, expected: outcome } in cases {
        begin(&platform, app, image);
        expected.push((app, outcome));
    }
    for (app, expected) in expected {
        let (exit, log) = end(&platform, app);
        match (exit, expected) {
            (Some(ExitReason::Exited { .. }), Expected::Says(lines)) => {
                let said: Vec<&str> = log.lines().collect();
                for line in lines {
                    assert!(said.iter().any(|said| said.ends_with(line)), "{app}: {line} in {log}");
                }
            }
            (Some(ExitReason::StartFailed { message }), Expected::Refused(texts)) => {
                for text in texts {
                    assert!(message.contains(text), "{app}: {text:?} in {message:?}");
                }
            }
            (ended, _) => panic!("{app}: {ended:?}\n{log}"),
        }
    }
    platform.finish();
}

#[test]
fn programs_of_every_form_of_image_run() {
    run(programs());
}

#[test]
fn users_and_groups_are_looked_up_in_the_image() {
    run(users());
}

#[test]
fn directories_are_made_and_environments_passed_on() {
    run(directories_and_environments());
}
