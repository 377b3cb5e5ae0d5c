//! Files that are copied into and out of a running container.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use longshore_runtime::{ArchiveError, Running, UnpackRequest};

use crate::bed::{Bed, all_pids, eventually, until_line};
use crate::exec::{request, run};

fn into(path: &str) -> UnpackRequest {
    UnpackRequest { path: path.to_owned(), as_cp: false, keep_owners: false }
}

/// The whole archive of a path inside.
async fn packed(bed: &Bed, running: &Running, path: &str) -> Result<Vec<u8>, ArchiveError> {
    let mut reader = bed.shims.pack(running.id(), path).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next().await? {
        bytes.extend(chunk);
    }
    Ok(bytes)
}

async fn unpacked(
    bed: &Bed,
    running: &Running,
    request: UnpackRequest,
    bytes: &[u8],
) -> Result<(), ArchiveError> {
    let mut writer = bed.shims.unpack(running.id(), request).await?;
    for chunk in bytes.chunks(100_000) {
        if !writer.write(chunk).await.expect("the pipe works") {
            break;
        }
    }
    writer.finish().await
}

/// GNU tar's archive of something in a directory.
fn tar(dir: &Path, args: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(dir).arg("-c").args(args).output();
    let output = output.expect("tar runs");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Has GNU tar unpack an archive.
fn untar(dir: &Path, bytes: &[u8]) {
    fs::create_dir_all(dir).expect("a directory");
    let mut tar = Command::new("tar");
    let child =
        tar.arg("-C").arg(dir).args(["-xp", "--numeric-owner"]).stdin(Stdio::piped()).spawn();
    let mut child = child.expect("tar runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), bytes).expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

/// A container that runs; none of a runtime that shows nobody its files.
async fn runs(bed: &Bed) -> Option<Running> {
    let running = bed.start(&bed.spec(&["sleep", "1000"])).await;
    if !bed.is_sandboxed() {
        return Some(running);
    }
    let refused = bed.shims.pack(running.id(), "/").await.err();
    assert!(matches!(refused, Some(ArchiveError::Sandboxed)), "{refused:?}");
    let refused = bed.shims.unpack(running.id(), into("/")).await.err();
    assert!(matches!(refused, Some(ArchiveError::Sandboxed)), "{refused:?}");
    None
}

pub async fn a_tree_comes_out_and_goes_in_as_it_is(bed: Bed) {
    if let Some(running) = runs(&bed).await {
        let (tree, back) = (bed.path().join("tree"), bed.path().join("back"));
        fs::create_dir_all(tree.join("d/e")).expect("it works");
        fs::write(tree.join("d/run"), "#!/bin/sh\necho it runs").expect("it works");
        fs::set_permissions(tree.join("d/run"), fs::Permissions::from_mode(0o4751))
            .expect("it works");
        fs::write(tree.join("d/big"), vec![b'x'; 3 << 20]).expect("it works");
        symlink("run", tree.join("d/link")).expect("it works");
        std::os::unix::fs::chown(tree.join("d/big"), Some(33), Some(44)).expect("it works");
        let archive = tar(&tree, &["--mtime=@1000000000", "d"]);
        let kept = UnpackRequest { keep_owners: true, ..into("/tmp") };
        unpacked(&bed, &running, kept, &archive).await.expect("it works");
        unpacked(&bed, &running, into("/srv"), &archive).await.expect_err("it must not work");
        let renamed = UnpackRequest { as_cp: true, ..into("srv") };
        unpacked(&bed, &running, renamed, &archive).await.expect("it works");
        let look =
            "stat -c '%n %a %u:%g %Y' /tmp/d/run /tmp/d/big /srv/run /srv/big /srv; /srv/link";
        let (stdout, stderr, _) = run(&bed, &running, request(look)).await;
        let expected = "/tmp/d/run 4751 0:0 1000000000\n/tmp/d/big 644 33:44 1000000000\n\
            /srv/run 751 0:0 1000000000\n/srv/big 644 0:0 1000000000\n/srv 755 0:0 1000000000\nit runs\n";
        assert_eq!((stdout.as_str(), stderr.as_str()), (expected, ""));
        untar(&back, &packed(&bed, &running, "/tmp/d").await.expect("it works"));
        for name in ["d/run", "d/big", "d/e", "d"] {
            let (was, is) = (
                tree.join(name).metadata().expect("it works"),
                back.join(name).metadata().expect("it works"),
            );
            let owners = |meta: &fs::Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.len());
            assert!(was.is_dir() || owners(&was) == owners(&is), "{name}: {is:?}");
            assert_eq!((is.mode(), is.mtime()), (was.mode(), 1_000_000_000), "{name}");
        }
        assert_eq!(fs::read_link(back.join("d/link")).expect("it works"), Path::new("run"));
    }
    bed.finish().await;
}

pub async fn an_image_needs_no_program_for_it(bed: Bed) {
    if !bed.is_sandboxed() {
        let spec = bed.script("echo ready; rm -r /bin /etc; while :; do :; done");
        let running = bed.start(&spec).await;
        until_line(&spec, "ready").await;
        let bin = || spec.rootfs.join("bin").exists();
        eventually("the programs to be gone", || !bin(), || format!("{}", bin())).await;
        let archive = tar(Path::new("/etc"), &["hostname"]);
        unpacked(&bed, &running, into("/tmp"), &archive).await.expect("it works");
        untar(
            &bed.path().join("back"),
            &packed(&bed, &running, "tmp/hostname").await.expect("it works"),
        );
        let same = fs::read(bed.path().join("back/hostname")).expect("it works");
        assert_eq!(same, fs::read("/etc/hostname").expect("it works"));
    }
    bed.finish().await;
}

pub async fn mounts_of_the_container_are_part_of_its_files(bed: Bed) {
    if let Some(running) = runs(&bed).await {
        run(&bed, &running, request("echo memory > /dev/shm/f")).await;
        untar(
            &bed.path().join("shm"),
            &packed(&bed, &running, "/dev/shm/f").await.expect("it works"),
        );
        assert_eq!(fs::read_to_string(bed.path().join("shm/f")).expect("it works"), "memory\n");
        // What is the kernel's is not, however much of it there is.
        let all = packed(&bed, &running, "/").await.expect("it works");
        untar(&bed.path().join("all"), &all);
        let n_below =
            |name: &str| fs::read_dir(bed.path().join("all").join(name)).expect("it works").count();
        assert_eq!((n_below("proc"), n_below("sys")), (0, 0));
        assert!(n_below("bin") > 0);
    }
    bed.finish().await;
}

pub async fn links_inside_lead_to_what_is_the_containers(bed: Bed) {
    if let Some(running) = runs(&bed).await {
        let precious = bed.path().join("precious");
        fs::write(&precious, "the machine's").expect("it works");
        let target = precious.to_str().expect("text");
        let (_, stderr, code) = run(
            &bed,
            &running,
            request(&format!(
                "ln -s {target} /to; ln -s / /root-again; ln -s /proc/1/root /by-proc; \
                 ln -s ../../../../../../../../.. /tmp/up"
            )),
        )
        .await;
        assert_eq!(code, 0, "{stderr}");
        for path in [target.to_owned(), format!("/tmp/up{target}"), format!("/by-proc{target}")] {
            let error = packed(&bed, &running, &path).await.expect_err("it must not work");
            let blocked =
                matches!(error, ArchiveError::Missing { .. } | ArchiveError::Failed { .. });
            assert!(blocked, "{path}: {error:?}");
        }
        // A link is what it is, and is replaced, not written through.
        let archive = packed(&bed, &running, "/to").await.expect("it works");
        untar(&bed.path().join("back"), &archive);
        assert_eq!(fs::read_link(bed.path().join("back/to")).expect("it works"), precious);
        fs::write(bed.path().join("to"), "changed").expect("it works");
        let archive = tar(bed.path(), &["to"]);
        unpacked(&bed, &running, into("/root-again/tmp/up"), &archive).await.expect("it works");
        let (stdout, ..) = run(&bed, &running, request("cat /to")).await;
        assert_eq!(stdout, "changed");
        assert_eq!(fs::read_to_string(&precious).expect("it works"), "the machine's");
        // The archive's own way up is refused.
        let hostile = tar(bed.path(), &["--transform=s,^to,../../to,", "-P", "to"]);
        let error =
            unpacked(&bed, &running, into("/tmp"), &hostile).await.expect_err("it must not work");
        assert!(matches!(error, ArchiveError::BadArchive { .. }), "{error:?}");
    }
    bed.finish().await;
}

pub async fn what_cannot_be_copied_is_said(bed: Bed) {
    if let Some(running) = runs(&bed).await {
        for path in ["/no/such", "/etc/passwd/", "/etc/passwd/x"] {
            let error = packed(&bed, &running, path).await.expect_err("it must not work");
            assert!(
                matches!(&error, ArchiveError::Missing { why } if why.contains(path)),
                "{error}"
            );
        }
        let file = tar(Path::new("/etc"), &["hostname"]);
        let error =
            unpacked(&bed, &running, into("/no/such"), &file).await.expect_err("it must not work");
        assert_eq!(error.to_string(), "/no/such does not exist");
        let error = unpacked(&bed, &running, into("/etc/passwd"), &file)
            .await
            .expect_err("it must not work");
        assert_eq!(error.to_string(), "/etc/passwd is not a directory");
        let error = unpacked(&bed, &running, into("/"), b"this is no archive")
            .await
            .expect_err("it must not work");
        assert!(matches!(error, ArchiveError::BadArchive { .. }), "{error:?}");
        let device = tar(Path::new("/dev"), &["null"]);
        let error =
            unpacked(&bed, &running, into("/tmp"), &device).await.expect_err("it must not work");
        assert!(matches!(error, ArchiveError::BadArchive { .. }), "{error:?}");
        // A file that is not whole does not stay.
        fs::write(bed.path().join("big"), vec![1; 1 << 20]).expect("it works");
        let big = tar(bed.path(), &["big"]);
        let error = unpacked(&bed, &running, into("/tmp"), &big[..500_000])
            .await
            .expect_err("it must not work");
        assert!(matches!(error, ArchiveError::BadArchive { .. }), "{error:?}");
        let (stdout, ..) = run(&bed, &running, request("ls /tmp")).await;
        assert!(!stdout.contains("big"), "{stdout}");
        bed.shims.remove(running.id()).await.expect("it works");
        let error = packed(&bed, &running, "/").await.expect_err("it must not work");
        assert!(matches!(error, ArchiveError::NotRunning(_)), "{error:?}");
    }
    bed.finish().await;
}

/// The archive processes of a bed.
fn copiers(bed: &Bed) -> Vec<i32> {
    let own = bed.path().to_str().expect("text").to_owned();
    let is_one = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        command.contains("shim-archive") && command.contains(&own)
    };
    all_pids().into_iter().filter(is_one).collect()
}

async fn no_copier_is_left(bed: &Bed) {
    let left = || copiers(bed);
    eventually("the process to be gone", || left().is_empty(), || format!("{:?}", left())).await;
}

pub async fn it_ends_with_its_pipe_and_with_its_container(bed: Bed) {
    if let Some(running) = runs(&bed).await {
        run(&bed, &running, request("dd if=/dev/zero of=/tmp/big bs=1M count=20")).await;
        let mut reader = bed.shims.pack(running.id(), "/tmp/big").await.expect("it works");
        reader.next().await.expect("it works");
        assert_eq!(copiers(&bed).len(), 1);
        drop(reader);
        no_copier_is_left(&bed).await;
        let mut writer = bed.shims.unpack(running.id(), into("/tmp")).await.expect("it works");
        fs::write(bed.path().join("part"), vec![1; 1 << 20]).expect("it works");
        let archive = tar(bed.path(), &["part"]);
        assert!(writer.write(&archive[..300_000]).await.expect("it works"));
        drop(writer);
        no_copier_is_left(&bed).await;
        let (stdout, ..) = run(&bed, &running, request("ls /tmp")).await;
        assert_eq!(stdout, "big\n");
        let mut reader = bed.shims.pack(running.id(), "/tmp/big").await.expect("it works");
        let writer = bed.shims.unpack(running.id(), into("/tmp")).await.expect("it works");
        bed.shims.remove(running.id()).await.expect("it works");
        let end = loop {
            match reader.next().await {
                Ok(Some(_)) => {}
                end => break end.map(|_| ()),
            }
        };
        assert!(matches!(end, Err(ArchiveError::Died)), "{end:?}");
        let end = writer.finish().await;
        assert!(matches!(end, Err(ArchiveError::Died)), "{end:?}");
        no_copier_is_left(&bed).await;
    }
    bed.finish().await;
}

pub async fn it_has_few_rights_and_is_not_seen_inside(bed: Bed) {
    if let Some(running) = runs(&bed).await {
        run(&bed, &running, request("dd if=/dev/zero of=/tmp/big bs=1M count=20")).await;
        let reader = bed.shims.pack(running.id(), "/tmp/big").await.expect("it works");
        let pid = copiers(&bed)[0];
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it works");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{status}")).trim().to_owned()
        };
        // CHOWN, DAC_OVERRIDE, FOWNER and FSETID.
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), "000000000000001b", "{set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Threads:")), ("1".to_owned(), "1".to_owned()));
        let of = |pid: i32, what: &str| {
            fs::read_link(format!("/proc/{pid}/ns/{what}")).expect("it works")
        };
        for (what, same) in [("mnt", true), ("user", true), ("pid", false), ("net", false)] {
            let is_same = of(pid, what) == of(running.pid(), what);
            assert!(is_same == same || !bed.has_users && what == "user", "{what}");
        }
        assert!(bed.payload_file(running.id(), "pids", "cgroup.procs").contains(&pid.to_string()));
        // Its files in /proc are root's, the container's root included, for it is not dumpable.
        let owner = fs::metadata(format!("/proc/{pid}/mem")).expect("it works").uid();
        assert_eq!(owner, 0);
        let (stdout, ..) = run(&bed, &running, request("ps")).await;
        assert!(!stdout.contains("longshore") && !stdout.contains("shim"), "{stdout}");
        drop(reader);
        no_copier_is_left(&bed).await;
    }
    bed.finish().await;
}
