//! The README's first command, and what `up` says when something stands in its way.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use longshore_e2e::Platform;
use longshore_e2e::leaks::{self, Marks};
use longshore_e2e::platform::binary;

use crate::scene::page;
use crate::secrets::set;

fn longshore(home: &Path, arguments: &[&str]) -> Output {
    Command::new(binary().unwrap())
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", home)
        .current_dir(home)
        .output()
        .unwrap()
}

/// What the demo says, once it is known to have succeeded and to have left nothing.
fn demo(more: &[&str]) -> String {
    let dir = tempfile::Builder::new().prefix("lst-").tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let arguments = [&["demo", "--once", "--data-dir", data_dir.to_str().unwrap()], more].concat();
    let output = longshore(dir.path(), &arguments);
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.success(), "{text}");
    let left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let marks = Marks { dir: dir.path().display().to_string(), agent: None };
    assert_eq!(leaks::find(&marks), Vec::<String>::new());
    text
}

#[test]
fn the_demo_shows_everything_and_leaves_nothing() {
    let text = demo(&[]);
    for stage in ["push", "pull", "unpack", "create", "ready"] {
        assert!(text.contains(stage), "no {stage} in {text}");
    }
}

#[test]
fn the_demo_of_three_places_cuts_one_off_and_leaves_nothing() {
    let text = demo(&["--locations", "3"]);
    let (before, after) = text.split_once("Cutting Singapore off").unwrap();
    for city in ["Amsterdam", "New York", "Singapore"] {
        let answered =
            |line: &str| line.starts_with(&format!("  {city}")) && line.contains("answered");
        assert!(before.lines().any(answered), "no answer of {city} in {text}");
    }
    let (cut, mended) = after.split_once("Mending what was cut").unwrap();
    let (mended, one) = mended.split_once("One instance only").unwrap();
    assert!(cut.contains("London gets no answer"), "{text}");
    assert!(
        cut.contains("answered its request number 4") && mended.contains("request number 5"),
        "{text}"
    );
    let answers = one.lines().filter(|line| line.contains(" answered its request"));
    assert_eq!(answers.count(), 3, "each location answers, with an instance or without: {text}");
    // The same instances, none of them started again.
    let table =
        |text: &str| text.split_once("INSTANCE").unwrap().1.lines().take(4).collect::<String>();
    assert_eq!(table(before), table(mended));
}

#[test]
fn the_readme_names_both_commands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let ci = fs::read_to_string(root.join(".ci/run")).unwrap();
    assert!(readme.contains("cargo run --release -- demo"));
    assert!(readme.contains("cargo xtask test") && ci.contains("cargo xtask test"));
}

#[test]
fn the_example_is_deployed_as_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let at = |path: &str| root.join(path).display().to_string();
    let platform = Platform::start().unwrap();
    let pages = format!("{}:/www", at("examples/web/www"));
    let pack = ["image", "pack", "/bin/busybox", "--include", &pages, "--push", "default/web:1"];
    platform.run(&pack).ok();
    set(&platform, "database-url", "postgres://db/web");
    platform.run(&["secret", "set", "tls-key", "--from-file", &at("LICENSE")]).ok();
    let deployed = platform.run(&["deploy", "--file", &at("examples/web/longshore.toml")]);
    assert!(deployed.stderr.contains("  | migrating"), "{deployed}");
    assert!(deployed.ok().contains("web r1: 2 of 2 healthy"));
    assert!(page(&platform, "web").contains("Hello from an instance"));
    platform.finish();
}

#[test]
fn up_says_in_plain_words_what_is_missing() {
    let platform = Platform::start().unwrap();
    let data_dir = platform.data_dir();
    let data_dir = data_dir.to_str().unwrap();
    // A second one on the same directory would fight over it.
    platform.run(&["up", "--data-dir", data_dir]).fails(1, &[data_dir]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let other = platform.dir().join("other");
    let arguments = ["up", "--data-dir", other.to_str().unwrap(), "--api-listen", &taken];
    platform.run(&arguments).fails(1, &[&taken, "in use"]);

    let mut nobody = platform.tool("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let output = nobody.arg(binary().unwrap()).args(["up", "--data-dir", "/tmp/never"]).output();
    let output = output.unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("root"), "{output:?}");

    // `doctor` looks at the same and takes nothing.
    let found = platform.run(&["doctor"]).ok();
    assert!(found.contains("this machine has what the platform needs"), "{found}");
    let mut nobody = platform.tool("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let output = nobody.arg(binary().unwrap()).args(["doctor", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let what = found["missing"][0]["what"].as_str().unwrap();
    assert!(what.contains("root"), "{found}");
    platform.finish();
}
