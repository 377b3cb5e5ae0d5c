//! Files that are copied into instances and out of them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use anyhow::ensure;
use longshore_e2e::process::{Process, signal};
use longshore_e2e::{Platform, eventually};
use longshore_types::InstanceId;
use rustix::process::Signal;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::scene::{but, web, with_web};

/// A platform with one instance that has so much room on its disk.
fn with_instance(disk: &str) -> (Platform, InstanceId) {
    let platform = with_web();
    let room = json!({"resources": {"memory": "64MiB", "cpu": "1", "disk": disk}});
    platform.deploy(&but(web("web", 1), &room)).unwrap();
    let id = platform.instances("web").unwrap().remove(0).id().clone();
    (platform, id)
}

/// What a script inside prints.
fn inside(platform: &Platform, id: &InstanceId, script: &str) -> String {
    platform.run(&["exec", id.as_str(), "--", "sh", "-c", script]).ok()
}

fn cp(platform: &Platform, arguments: &[&str]) {
    assert_eq!(platform.run(&[&["cp"], arguments].concat()).ok(), "");
}

/// Bytes that no compression or hole makes fewer, and their digest.
fn noise(path: &Path, n_mib: usize) -> String {
    let (mut file, mut hash) = (File::create(path).unwrap(), Sha256::new());
    let mut random = File::open("/dev/urandom").unwrap();
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..n_mib {
        random.read_exact(&mut buffer).unwrap();
        file.write_all(&buffer).unwrap();
        hash.update(&buffer);
    }
    hex(hash.finalize())
}

fn sha256(path: &Path) -> String {
    hex(Sha256::digest(fs::read(path).unwrap()))
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The processes of this platform that copy.
fn n_copiers(platform: &Platform) -> anyhow::Result<usize> {
    let dir = platform.dir().display().to_string();
    let all = Process::all()?;
    let copies = |process: &&Process| process.mentions("shim-archive") && process.mentions(&dir);
    Ok(all.iter().filter(copies).count())
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    let (platform, id) = with_instance("64MiB");
    let tree = platform.dir().join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\necho it runs\n").unwrap();
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(tree.join("sub/café"), "x").unwrap();
    fs::hard_link(tree.join("run"), tree.join("sub/again")).unwrap();
    symlink("../run", tree.join("sub/link")).unwrap();
    std::os::unix::fs::chown(tree.join("run"), Some(33), Some(33)).unwrap();
    let tree_text = tree.to_str().unwrap();
    let at = |path: &str| format!("{id}:{path}");
    // The app by its name, and a directory that is not there yet.
    cp(&platform, &[tree_text, "web:/tmp/new"]);
    let seen =
        inside(&platform, &id, "cd /tmp/new && busybox stat -c '%n %a %u' run sub && sub/link");
    assert_eq!(seen, "run 751 0\nsub 755 0\nit runs\n");
    // One that is there, a second time, and with owners.
    cp(&platform, &["-a", tree_text, &at("/tmp/new")]);
    let seen = inside(&platform, &id, "busybox stat -c '%n %u' /tmp/new/tree/run");
    assert_eq!(seen, "/tmp/new/tree/run 33\n");
    // Its contents.
    cp(&platform, &[&format!("{tree_text}/."), &at("/www")]);
    assert_eq!(inside(&platform, &id, "/www/sub/link"), "it runs\n");
    let back = platform.dir().join("back");
    cp(&platform, &[&at("/tmp/new/tree"), back.to_str().unwrap()]);
    for name in ["run", "sub", "sub/empty", "sub/café"] {
        let (was, is) = (tree.join(name).metadata().unwrap(), back.join(name).metadata().unwrap());
        assert_eq!((was.mode(), was.mtime()), (is.mode(), is.mtime()), "{name}");
        assert_eq!(is.uid(), 0, "{name}");
    }
    assert_eq!(fs::read_link(back.join("sub/link")).unwrap(), Path::new("../run"));
    assert_eq!(back.join("run").metadata().unwrap().nlink(), 2);
    let told = platform.run(&["events"]).ok();
    assert!(told.contains(&format!("to {id}:/tmp/new")), "{told}");
    assert!(told.contains(&format!("from {id}:/tmp/new")), "{told}");
    platform.finish();
}

#[test]
fn a_large_file_arrives_whole_both_ways() {
    let (platform, id) = with_instance("512MiB");
    let (big, back) = (platform.dir().join("big"), platform.dir().join("back"));
    let digest = noise(&big, 200);
    cp(&platform, &[big.to_str().unwrap(), "web:/tmp/big"]);
    let seen = inside(&platform, &id, "busybox sha256sum < /tmp/big");
    assert_eq!(seen.split(' ').next(), Some(digest.as_str()));
    cp(&platform, &["web:/tmp/big", back.to_str().unwrap()]);
    assert_eq!(sha256(&back), digest);
    // As any other program would ask for it.
    let url = format!("{}/v1/projects/default/instances/{id}/archive", platform.endpoints().api);
    let script = format!(
        "curl -sf -H 'Authorization: Bearer {0}' '{url}?path=/tmp/big' | \
         curl -sf -H 'Authorization: Bearer {0}' -T - '{url}?path=/www'",
        platform.token()
    );
    let status = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
    assert!(status.success());
    assert_eq!(inside(&platform, &id, "busybox cmp /tmp/big /www/big && echo same"), "same\n");
    platform.finish();
}

#[test]
fn archives_go_through_pipes() {
    let (platform, id) = with_instance("64MiB");
    let script = format!(
        "{0} cp {id}:/etc/passwd - | tar -xO passwd | grep -c root && \
         tar -C /etc -c hostname | {0} cp - {id}:/tmp",
        longshore_e2e::platform::binary().unwrap().display()
    );
    let mut shell = std::process::Command::new("sh");
    let output = platform.let_in(shell.args(["-ec", &script])).output().unwrap();
    assert!(output.status.success() && output.stdout == b"1\n", "{output:?}");
    let hostname = fs::read_to_string("/etc/hostname").unwrap();
    assert_eq!(inside(&platform, &id, "cat /tmp/hostname"), hostname);
    platform.finish();
}

#[test]
fn what_cannot_be_copied_is_named() {
    let (platform, id) = with_instance("64MiB");
    let here = platform.dir().join("here");
    fs::write(&here, "x").unwrap();
    let here = here.to_str().unwrap();
    let at = |path: &str| format!("{id}:{path}");
    let run = |arguments: &[&str]| platform.run(&[&["cp"], arguments].concat());
    run(&[&at("/no/such"), "."]).fails(4, &["/no/such does not exist"]);
    run(&[here, &at("/no/such/place")]).fails(4, &["/no/such does not exist"]);
    run(&["no-such-file", &at("/tmp")]).fails(4, &["no-such-file does not exist"]);
    run(&["nobody:/etc", "."]).fails(4, &["nobody"]);
    // A full disk is said, while there is more to come, and half a file does not stay.
    let big = platform.dir().join("big");
    noise(&big, 160);
    let failed = run(&[big.to_str().unwrap(), &at("/tmp/big")]);
    let full = ["No space left", "quota exceeded"].iter().any(|why| failed.stderr.contains(why));
    assert!(full, "{failed}");
    failed.fails(1, &["/tmp/big"]);
    assert_eq!(inside(&platform, &id, "ls /tmp"), "");
    cp(&platform, &[here, &at("/tmp/here")]);
    platform.finish();
}

#[test]
fn an_image_without_a_shell_is_copied_into_and_out_of() {
    let platform = Platform::start().unwrap();
    let pack = ["image", "pack", "/bin/busybox", "--push", "default/bare:1", "--", "sleep", "1000"];
    assert_eq!(platform.run(&pack).code, Some(0));
    let manifest = json!({
        "app": "bare", "image": "default/bare:1", "resources": {"memory": "32MiB", "disk": "64MiB"},
    });
    platform.deploy(&manifest).unwrap();
    let shell = platform.run(&["exec", "bare", "--", "sh", "-c", "true"]);
    assert_ne!(shell.code, Some(0), "{shell}");
    let (there, back) = (platform.dir().join("there"), platform.dir().join("back"));
    fs::create_dir(&there).unwrap();
    fs::write(there.join("f"), "text").unwrap();
    cp(&platform, &[there.to_str().unwrap(), "bare:/new"]);
    cp(&platform, &["bare:new/.", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(back.join("f")).unwrap(), "text");
    platform.finish();
}

#[test]
fn a_client_that_dies_leaves_no_process_and_no_half_file() {
    let (platform, id) = with_instance("64MiB");
    // The header of a file that never comes.
    let mut tar = std::process::Command::new("tar");
    let tar = tar.args(["-C", "/etc", "-c", "hostname"]).output().unwrap();
    let mut client = platform.client(&["cp", "-", &format!("{id}:/tmp")]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    client.stdin.as_mut().unwrap().write_all(&tar.stdout[..512]).unwrap();
    eventually("the copy is under way", || {
        Ok((inside(&platform, &id, "ls /tmp") == "hostname\n").then_some(()))
    })
    .unwrap();
    assert_eq!(n_copiers(&platform).unwrap(), 1);
    signal(client.id().cast_signed(), Signal::KILL).unwrap();
    client.wait().unwrap();
    eventually("the copy has ended", || {
        let n = n_copiers(&platform)?;
        ensure!(n == 0, "{n} are there");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(inside(&platform, &id, "ls /tmp"), "");
    platform.finish();
}
