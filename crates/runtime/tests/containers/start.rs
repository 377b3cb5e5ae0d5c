//! Starts, and starts that must fail.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use futures_util::future::join_all;
use longshore_runtime::{ContainerSpec, ExitRecord, ReadOnlyFile, StartContainerError};
use longshore_types::ExitReason;

use crate::bed::{Bed, log_lines, text};

pub async fn the_process_is_what_was_asked_for(bed: Bed) {
    let mut spec =
        bed.script("pwd; echo \"$GREETING|$HOME|$PATH\"; cat /etc/hosts; echo x > /etc/hosts");
    spec.cwd = "/srv/made/here".to_owned();
    spec.env.insert("GREETING".to_owned(), "a=b c".to_owned());
    let hosts = bed.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 box\n").expect("a file");
    spec.files = vec![ReadOnlyFile { source: hosts.clone(), destination: "/etc/hosts".to_owned() }];
    let (_, output) = bed.run(&spec).await;
    assert!(output.starts_with("/srv/made/here\na=b c|/root|/bin\n127.0.0.1 box\n"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
    assert_eq!(fs::read_to_string(hosts).expect("the file"), "127.0.0.1 box\n");
    bed.finish().await;
}

pub async fn a_start_that_cannot_work_says_why_and_leaves_a_record(bed: Bed) {
    let with = |change: fn(&mut ContainerSpec)| {
        let mut spec = bed.spec(&["true"]);
        change(&mut spec);
        spec
    };
    let script = |spec: &mut ContainerSpec, text: &str, mode: u32| {
        let path = spec.rootfs.join("bin/program");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        spec.args = vec!["/bin/program".to_owned()];
    };
    let (mut plain, mut loose, mut unknown) = (with(|_| ()), with(|_| ()), with(|_| ()));
    script(&mut plain, "#!/bin/sh\n", 0o644);
    script(&mut loose, "#!/no/such/interpreter\n", 0o755);
    script(&mut unknown, "no program\n", 0o755);
    let cases = [
        (with(|s| s.args = vec!["/foo".to_owned()]), "exec: /foo: no such file"),
        (with(|s| s.args = vec!["foo".to_owned()]), "exec: foo: not found in PATH"),
        (with(|s| s.args = vec!["/bin".to_owned()]), "exec: /bin: permission denied"),
        (with(|s| s.args = Vec::new()), "no program to run"),
        (with(|s| s.args = vec!["tr\0ue".to_owned()]), "zero byte"),
        (with(|s| s.cwd = "/a/../b".to_owned()), "making the working directory"),
        (with(|s| s.rootfs = "/no/such/rootfs".into()), "opening the root file system /no"),
        (
            with(|s| s.netns = Some("/run/netns/none".into())),
            "opening the network namespace /run/netns/none: No such",
        ),
        (plain, "permission denied"),
        (loose, "interpreter or loader is not"),
        (unknown, "not a program for this machine"),
    ];
    for (spec, expected) in cases {
        let Err(StartContainerError::Refused { why }) = bed.shims.start(&spec).await else {
            panic!("{expected}: no refusal")
        };
        assert!(why.contains(expected), "{expected:?} is not in {why:?}");
        let record = ExitRecord::load(&bed.shims.state_dir(&spec.id)).expect("readable");
        let reason = record.map(|record| record.reason);
        assert_eq!(reason, Some(ExitReason::StartFailed { message: why }));
    }
    bed.finish().await;
}

pub async fn an_instance_runs_once_and_can_run_again(bed: Bed) {
    let mut spec = bed.spec(&["sleep", "1000"]);
    let running = bed.start(&spec).await;
    let second = bed.shims.start(&spec).await;
    assert!(matches!(second, Err(StartContainerError::AlreadyRunning(_))));
    running.kill().await.expect("it ends");
    spec.args = vec!["echo".to_owned(), "again".to_owned()];
    for count in 1..=2 {
        let (record, _) = bed.run(&spec).await;
        assert_eq!(record.reason, ExitReason::Exited { code: 0 });
        assert_eq!(text(&log_lines(&spec, None).await), "again\n".repeat(count));
    }
    bed.finish().await;
}

pub async fn twenty_start_at_once(bed: Bed) {
    // A kernel each is more than a small machine has room for.
    let n_starts = if bed.is_sandboxed() { 5 } else { 20 };
    let specs: Vec<_> = (0..n_starts).map(|_| bed.script("echo here; exec sleep 1000")).collect();
    let running = join_all(specs.iter().map(|spec| bed.start(spec))).await;
    let ends = join_all(running.iter().map(|running| running.kill())).await;
    for end in ends {
        assert_eq!(end.expect("it ends").reason, ExitReason::Stopped);
    }
    bed.finish().await;
}
