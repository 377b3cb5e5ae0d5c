//! Users of a container's own. A runtime whose row says that it has none has nothing to show here.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use longshore_runtime::{ContainerSpec, ReadOnlyFile, ResolvedUser, Running, resolve_user};
use longshore_types::IdRange;

use crate::bed::Bed;
use crate::exec::{request, run};
use crate::protection::{assert_protected, assert_protected_root};

fn ids(spec: &ContainerSpec) -> IdRange {
    spec.users.as_ref().expect("it has users of its own").ids
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    (metadata.uid(), metadata.gid())
}

/// The words of a file of a process.
fn words(running: &Running, file: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", running.pid())).expect("it runs");
    text.split_whitespace().map(str::to_owned).collect()
}

pub async fn root_inside_is_nobody_on_the_machine(bed: Bed) {
    if !bed.has_users {
        return bed.finish().await;
    }
    let spec = bed.script(
        "touch /tmp/own; touch /tmp/given; chown 33:34 /tmp/given; stat -c %u:%g /tmp/given; \
         cat /proc/self/uid_map /proc/self/setgroups; sleep 1000",
    );
    let first = ids(&spec).first();
    let running = bed.start(&spec).await;
    crate::bed::until_line(&spec, "allow").await;
    let map = ["0".to_owned(), first.to_string(), "65536".to_owned()];
    assert_eq!(words(&running, "uid_map"), map);
    assert_eq!(words(&running, "gid_map"), map);
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).expect("it runs");
    for kind in ["Uid", "Gid"] {
        let line = format!("{kind}:\t{first}\t{first}\t{first}\t{first}");
        assert!(status.contains(&line), "{line:?} is not in {status}");
    }
    assert_protected_root(&bed, &status);
    let at = |path: &str| owner(&spec.rootfs.join(path));
    assert_eq!((at("tmp/own"), at("tmp/given")), ((first, first), (first + 33, first + 34)));
    let output = crate::bed::text(&crate::bed::log_lines(&spec, None).await);
    assert!(output.starts_with("33:34\n"), "{output}");
    // Nobody on the machine owns the namespace but the container's own root.
    assert_ne!(
        fs::read_link(format!("/proc/{}/ns/user", running.pid())).expect("it runs"),
        fs::read_link("/proc/self/ns/user").expect("a namespace"),
    );
    bed.finish().await;
}

pub async fn what_is_made_for_the_container_belongs_to_it(bed: Bed) {
    if !bed.has_users {
        return bed.finish().await;
    }
    // One stream, for two are read when each has something.
    let mut spec = bed.script(
        "exec 2>&1; pwd; touch made; stat -c '%n %u' /srv /srv/app made /dev/pts /dev/shm; \
         echo said > /dev/stdout; id",
    );
    spec.cwd = "/srv/app".to_owned();
    spec.user = resolve_user(&spec.rootfs, "web").expect("web is in the image");
    let (_, output) = bed.run(&spec).await;
    assert!(output.contains("/srv 0\n/srv/app 0\n"), "{output}");
    assert!(output.contains("/dev/pts 0\n/dev/shm 0\n"), "{output}");
    assert!(output.contains("said\nuid=33(web) gid=34(web) groups=34(web),40(log)"), "{output}");
    assert!(output.contains("made: Permission denied"), "{output}");
    bed.finish().await;
}

pub async fn files_of_the_machine_are_nobodys_inside(bed: Bed) {
    if !bed.has_users {
        return bed.finish().await;
    }
    let shown = bed.path().join("shown");
    fs::write(&shown, "of the machine").expect("a file");
    let mut spec = bed.script(
        "cat /etc/shown; echo; stat -c %u:%g /etc/shown /dev/null; echo x > /etc/shown; \
         chown 0 /etc/shown; chown 0 /dev/null; echo x > /dev/null && echo discarded",
    );
    spec.files = vec![ReadOnlyFile { source: shown.clone(), destination: "/etc/shown".to_owned() }];
    let (_, output) = bed.run(&spec).await;
    assert!(output.starts_with("of the machine\n65534:65534\n"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    // Most show the machine's own device; crun makes one in the container's file system, which is not
    // the machine's.
    let made = output.contains("\n0:0\n");
    assert!(made || output.matches("65534:65534").count() == 2, "{output}");
    assert_eq!(output.matches("not permitted").count(), usize::from(!made), "{output}");
    assert!(output.contains("\ndiscarded\n"), "{output}");
    assert_eq!(owner(&shown), (0, 0));
    bed.finish().await;
}

pub async fn root_of_one_container_has_no_power_over_another(bed: Bed) {
    if !bed.has_users {
        return bed.finish().await;
    }
    let (one, other) = (bed.spec(&["sleep", "1000"]), bed.spec(&["sleep", "1000"]));
    assert!(ids(&one).last() < ids(&other).first() || ids(&other).last() < ids(&one).first());
    let (one, other) = (bed.start(&one).await, bed.start(&other).await);
    // More than it ever has: every capability in its user namespace, beside the other one.
    let from_one = |script: &str| {
        let output = Command::new("nsenter")
            .args(["--user", "--target", &one.pid().to_string(), "sh", "-c", script])
            .output()
            .expect("nsenter is of the package util-linux");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let pid = other.pid();
    assert_eq!(from_one(&format!("kill -0 {}", one.pid())), "");
    assert!(from_one(&format!("kill -9 {pid}")).contains("not permitted"));
    for file in ["environ", "maps", "mem", "fd/0"] {
        let said = from_one(&format!("head -c 1 /proc/{pid}/{file}"));
        assert!(said.contains("ermission denied"), "{file}: {said}");
    }
    let said = from_one(&format!("nsenter --user --target {pid} true"));
    assert!(said.contains("ermission denied") || said.contains("not permitted"), "{said}");
    assert!(crate::bed::is_alive(pid));
    bed.finish().await;
}

pub async fn an_exec_joins_the_users_of_the_container(bed: Bed) {
    if !bed.has_users {
        return bed.finish().await;
    }
    let spec = bed.spec(&["sleep", "1000"]);
    let first = ids(&spec).first();
    let running = bed.start(&spec).await;
    let script = "cat /proc/self/uid_map /proc/self/status; touch /tmp/by-exec; id; \
                  unshare -U true; mount -t tmpfs none /tmp; echo opened > /dev/stdout";
    let (stdout, stderr, code) = run(&bed, &running, request(script)).await;
    let map: Vec<&str> = stdout.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(map, ["0", first.to_string().as_str(), "65536"], "{stdout} {stderr}");
    assert_protected_root(&bed, &stdout);
    assert!(stdout.ends_with("uid=0(root) gid=0(root) groups=0(root)\nopened\n"), "{stdout}");
    assert_eq!((stderr.lines().count(), code), (2, 0), "{stderr}");
    assert_eq!(owner(&spec.rootfs.join("tmp/by-exec")), (first, first));

    let mut as_web =
        request("cat /proc/self/status; id; touch /tmp/by-web; echo opened > /dev/stdout");
    as_web.user = Some("web".to_owned());
    as_web.env = BTreeMap::new();
    let (stdout, stderr, code) = run(&bed, &running, as_web).await;
    assert_protected(&bed, &stdout, "0000000000000000");
    assert!(
        stdout.ends_with("uid=33(web) gid=34(web) groups=34(web),40(log)\nopened\n"),
        "{stdout}"
    );
    assert_eq!((stderr.as_str(), code), ("", 0));
    assert_eq!(owner(&spec.rootfs.join("tmp/by-web")), (first + 33, first + 34));
    bed.finish().await;
}

pub async fn a_container_may_do_without(bed: Bed) {
    if bed.is_sandboxed() {
        // What its kernel says of users is its own affair.
        return bed.finish().await;
    }
    let spec =
        bed.script_without_users("cat /proc/self/uid_map; touch /tmp/own; cat /proc/self/status");
    let (_, output) = bed.run(&spec).await;
    let map: Vec<&str> = output.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(map, ["0", "0", "4294967295"], "{output}");
    assert_protected_root(&bed, &output);
    assert_eq!(owner(&spec.rootfs.join("tmp/own")), (0, 0));
    bed.finish().await;
}

pub async fn what_cannot_be_is_refused_in_plain_words(bed: Bed) {
    if !bed.has_users {
        return bed.finish().await;
    }
    let refusal = async |spec: &ContainerSpec| match bed.shims.start(spec).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    let mut spec = bed.spec(&["true"]);
    spec.user = ResolvedUser { uid: 70_000, ..ResolvedUser::root() };
    let why = refusal(&spec).await;
    assert!(
        why.contains("no user or group 70000") && why.contains("user_namespace = false"),
        "{why}"
    );

    let mut spec = bed.spec(&["true"]);
    let closed = bed.path().join("closed");
    fs::create_dir(&closed).expect("a directory");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("a mode");
    fs::rename(&spec.rootfs, closed.join("rootfs")).expect("it can be moved");
    spec.rootfs = closed.join("rootfs");
    let why = refusal(&spec).await;
    let expected = format!("{} is closed to the container's users", closed.display());
    assert!(why.contains(&expected), "{why}");

    let mut spec = bed.spec(&["true"]);
    spec.users.as_mut().expect("it has users").path = bed.path().join("nothing");
    let why = refusal(&spec).await;
    assert!(why.contains("opening the user namespace"), "{why}");
    bed.finish().await;
}
