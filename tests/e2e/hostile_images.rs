//! Images that reach for the machine when they are started: what the runtime mounts, writes and looks
//! up in an instance's file system must stay in it, whatever links the image put there.
//!
//! What is refused before anything starts (archives, manifests, configs) is tried in
//! `crates/image/src/pull/tests/hostile.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use longshore_e2e::Platform;
use longshore_e2e::image::{Entries, Layered};
use longshore_types::ExitReason;
use serde_json::{Value, json};

use crate::odd_images::{base, begin, end, shell};

/// In every file of the canary.
const SECRET: &str = "a secret of the machine";

/// Reads and writes whatever the links may lead to.
const PROBE: &str = "\
    for f in resolv.conf hosts hostname passwd secret; do cat /etc/$f; done; \
    ls -lR /etc /work; ls /proc /sys /dev; \
    for f in resolv.conf hosts hostname planted secret; do echo planted > /etc/$f; done; \
    for d in /proc /sys /dev /dev/shm /work .; do echo planted > $d/planted; done; \
    echo the end";

/// A directory of the machine that no instance may read or change.
struct Canary {
    dir: PathBuf,
    before: Listing,
}

/// Path, kind and permissions, owner, time of change of status.
type Listing = BTreeMap<PathBuf, (u32, u32, i64, i64)>;

fn list(dir: &Path) -> Listing {
    let mut found = Listing::new();
    let mut to_see = vec![dir.to_owned()];
    while let Some(path) = to_see.pop() {
        let status = path.symlink_metadata().unwrap();
        if status.is_dir() {
            to_see.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (status.mode(), status.uid(), status.ctime(), status.ctime_nsec()));
    }
    found
}

impl Canary {
    fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("empty")).unwrap();
        for name in ["secret", "passwd", "hosts", "resolv.conf", "hostname"] {
            let path = dir.join(name);
            fs::write(&path, format!("{SECRET}\nhost:x:0:0::/:/bin/sh\n")).unwrap();
            // Older than the change: then the first reading shows, also with `relatime`.
            let times = fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH);
            fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        }
        symlink("secret", dir.join("link")).unwrap();
        let before = list(&dir);
        Self { dir, before }
    }

    fn path(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    fn assert_untouched(&self) {
        assert_eq!(list(&self.dir), self.before, "something changed outside");
        for path in self.before.keys().filter(|path| path.is_file() && !path.is_symlink()) {
            let read = path.metadata().unwrap().atime();
            assert_eq!(read, 0, "something read {}", path.display());
        }
    }
}

enum Expected {
    /// It runs to its end, and its log has all of these texts.
    Runs(&'static [&'static str]),
    /// It does not start; the reason has all of these texts.
    Refused(&'static [&'static str]),
}

use Expected::{Refused, Runs};

struct Case {
    app: String,
    top: Entries,
    config: Value,
    expected: Expected,
}

fn case(app: impl Into<String>, top: Entries, expected: Expected) -> Case {
    Case { app: app.into(), top, config: shell(PROBE), expected }
}

/// The same place of the machine by each kind of link that could lead there.
fn links(place: &str) -> [(&'static str, String); 3] {
    let climbing = "../".repeat(30) + place.trim_start_matches('/');
    [("abs", place.to_owned()), ("rel", climbing), ("proc", format!("/proc/1/root{place}"))]
}

/// Links in place of the directories that the runtime mounts on or makes.
fn directories(outside: &str) -> Vec<Case> {
    const MOUNT_POINT: &str = "making the mount point";
    let mut cases = Vec::new();
    for (kind, target) in links(outside) {
        let expected = match kind {
            "proc" => Refused(&[MOUNT_POINT, "/etc/resolv.conf", "below what the kernel shows"]),
            _ => Runs(&["the end"]),
        };
        cases.push(case(
            format!("etc-{kind}"),
            Entries::default().symlink("etc", &target),
            expected,
        ));
        // What programs look for in these must be the kernel's own words.
        for name in ["proc", "sys", "dev"] {
            let top = Entries::default().symlink(name, &target);
            let expected = Refused(&[MOUNT_POINT, "it is a symbolic link, not a directory"]);
            cases.push(case(format!("{name}-{kind}"), top, expected));
        }
    }
    let others: [(&str, &'static [&'static str; 1], &'static [&'static str; 1]); 4] = [
        ("etc", &["Too many levels of symbolic links"], &["Not a directory"]),
        (
            "proc",
            &["/proc in the image: it is a symbolic link"],
            &["/proc in the image: it is a file"],
        ),
        (
            "sys",
            &["/sys in the image: it is a symbolic link"],
            &["/sys in the image: it is a file"],
        ),
        (
            "dev",
            &["/dev in the image: it is a symbolic link"],
            &["/dev in the image: it is a file"],
        ),
    ];
    for (name, circle, file) in others {
        let top = Entries::default().symlink(name, name);
        cases.push(case(format!("{name}-circle"), top, Refused(circle)));
        let top = Entries::default().file(name, 0o644, b"");
        cases.push(case(format!("{name}-file"), top, Refused(file)));
    }
    cases
}

/// Links in place of the files that are shown in every instance.
fn files(outside: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for name in ["resolv.conf", "hosts", "hostname"] {
        let short = name.trim_end_matches(".conf");
        for (kind, target) in links(&format!("{outside}/{name}")) {
            let top = Entries::default().symlink(&format!("etc/{name}"), &target);
            let expected = match kind {
                "proc" => Refused(&["the mount point /etc/", "below what the kernel shows"]),
                _ => Runs(&["the end"]),
            };
            cases.push(case(format!("{short}-{kind}"), top, expected));
        }
        let top = Entries::default().directory(&format!("etc/{name}"), 0o755);
        let expected = Refused(&["the mount point /etc/", "not a regular file"]);
        cases.push(case(format!("{short}-directory"), top, expected));
        let top = Entries::default().symlink(&format!("etc/{name}"), name);
        let expected = Refused(&["the mount point /etc/", "Too many levels of symbolic links"]);
        cases.push(case(format!("{short}-circle"), top, expected));
    }
    // As Debian's own images have it: a link to what is made when the system starts.
    let top =
        Entries::default().symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
    cases.push(case("resolv-of-systemd", top, Runs(&["nameserver", "the end"])));
    cases
}

/// Links for the user's directory, the working directory and the password file.
fn lookups(outside: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, target) in links(outside) {
        let mut at = case(
            format!("workdir-{kind}"),
            Entries::default().symlink("linked", &target),
            match kind {
                "proc" => Refused(&["\"/linked/made\"", "below what the kernel shows"]),
                _ => Runs(&["the end"]),
            },
        );
        at.config["WorkingDir"] = "/linked/made".into();
        cases.push(at);
    }
    for (kind, target) in links(&format!("{outside}/passwd")) {
        let mut by_name = case(
            format!("passwd-{kind}"),
            Entries::default().symlink("etc/passwd", &target),
            Refused(&["user \"host\" is not in the image's /etc/passwd"]),
        );
        by_name.config["User"] = "host".into();
        cases.push(by_name);
    }
    let mut secret = case(
        "program-abs",
        Entries::default().symlink("run", "/proc/self/exe"),
        Refused(&["/run"]),
    );
    secret.config = json!({"Cmd": ["/run"]});
    cases.push(secret);
    cases
}

/// Pushes all images, runs all of them side by side and looks at each.
fn run(cases: fn(&str) -> Vec<Case>) {
    let platform = Platform::start().unwrap();
    let canary = Canary::new(platform.dir().join("outside"));
    let mut expected = Vec::new();
    for Case { app, top, config, expected: outcome } in cases(canary.path()) {
        begin(&platform, &app, Layered::new(config).layer(base()).layer(top));
        expected.push((app, outcome));
    }
    let mut wrong = Vec::new();
    for (app, expected) in expected {
        let (exit, log) = end(&platform, &app);
        assert!(!log.contains(SECRET), "{app} read a secret:\n{log}");
        let is_so = match (&exit, &expected) {
            (Some(ExitReason::Exited { code: 0 }), Expected::Runs(texts)) => {
                texts.iter().all(|text| log.contains(text))
            }
            (Some(ExitReason::StartFailed { message }), Expected::Refused(texts)) => {
                assert!(!message.contains(SECRET), "{app} read a secret: {message}");
                texts.iter().all(|text| message.contains(text))
            }
            _ => false,
        };
        if !is_so {
            wrong.push(format!("{app}: {exit:?}\n{log}"));
        }
    }
    canary.assert_untouched();
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    platform.finish();
}

#[test]
fn links_for_directories_of_the_runtime_stay_inside() {
    run(directories);
}

#[test]
fn links_for_files_of_the_runtime_stay_inside() {
    run(files);
}

#[test]
fn links_for_what_is_looked_up_stay_inside() {
    run(lookups);
}
