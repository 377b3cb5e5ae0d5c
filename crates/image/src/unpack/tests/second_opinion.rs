//! The same archive by us and by GNU tar: both trees must be the same in everything.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::listing::list;
use super::{Archive, Limits, Place, RawHeader};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (Debian's package of that name): {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// A tree with something of everything that tar can carry.
fn make_tree(root: &Path) {
    let write = |name: &str, contents: &[u8]| {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    };
    let long = "long-part-of-a-name/".repeat(15);
    write(&format!("{long}file"), b"deep");
    write("empty", b"");
    write("blocks", &[3; 1024]);
    write("large", &(0..3_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    let program = write("bin/su", b"#!");
    std::os::unix::fs::chown(&program, Some(1000), Some(2_000_000_000)).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o6711)).unwrap();
    xattr::set(&program, "user.note", b"binary\0value\n").unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(&program, "security.capability", &capability).unwrap();
    std::fs::hard_link(&program, root.join("bin/sudo")).unwrap();
    symlink(format!("/{long}{long}"), root.join("long-link")).unwrap();
    symlink("bin", root.join("a-link-before-bin")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"not-utf8-\xff\n\\ name");
    std::fs::write(root.join(odd), b"odd").unwrap();
    std::fs::set_permissions(root.join("bin"), PermissionsExt::from_mode(0o1777)).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    for at in [0, 1 << 20, 9 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[5; 5000], at).unwrap();
    }
    sparse.set_len(20 << 20).unwrap();
    for (name, seconds, nanos) in
        [("empty", -5, 500_000_000), ("blocks", 1_234_567_890, 123_456_789)]
    {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let file = std::fs::File::options().write(true).open(root.join(name)).unwrap();
        rustix::fs::futimens(&file, &times).unwrap();
    }
}

#[test]
fn gnu_tar_makes_the_same_tree() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    std::fs::create_dir(&source).unwrap();
    make_tree(&source);
    for (n, options) in [
        &["--format=posix", "--xattrs", "--xattrs-include=*"][..],
        &["--format=posix", "--xattrs", "--xattrs-include=*", "-S"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
        &["--format=gnu"],
        &["--format=gnu", "-S"],
    ]
    .into_iter()
    .enumerate()
    {
        let archive = work.path().join("archive.tar");
        let theirs = work.path().join(format!("theirs-{n}"));
        std::fs::create_dir(&theirs).unwrap();
        let (archive, source) = (archive.to_str().unwrap(), source.to_str().unwrap());
        run("tar", &[options, &["-cf", archive, "-C", source, "."]].concat());
        let keep = ["--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "-p"];
        run("tar", &[&keep[..], &["-xf", archive, "-C", theirs.to_str().unwrap()]].concat());
        let place = Place::new();
        let report = place.unpack(&std::fs::read(archive).unwrap(), &Limits::default()).unwrap();
        let (ours, theirs) = (list(&place.layer()), list(&theirs));
        for (path, node) in &theirs {
            let path_text = String::from_utf8_lossy(path);
            assert_eq!(ours.get(path), Some(node), "{options:?} {path_text}");
        }
        assert_eq!(ours.len(), theirs.len());
        assert_eq!(report.entries, ours.len() as u64);
        assert!(report.implicit_directories.is_empty());
    }
}

/// docker and podman refuse such an archive; tar programs let the later entry win.
#[test]
fn gnu_tar_makes_the_same_of_names_that_come_twice() {
    let archive = Archive::default()
        .raw(&RawHeader::new(b'5', b"./"), b"")
        .file("twice", b"first")
        .raw(RawHeader::new(b'0', b"twice").mode(0o600).size(7), b"second!")
        .raw(RawHeader::new(b'5', b"d").mode(0o700), b"")
        .file("d/kept", b"x")
        .raw(RawHeader::new(b'5', b"d").mode(0o711), b"")
        .file("file-then-link", b"x")
        .symlink("file-then-link", "twice")
        .symlink("link-then-file", "twice")
        .file("link-then-file", b"own")
        .symlink("link-twice", "a")
        .symlink("link-twice", "b")
        .file("linked", b"x")
        .hard_link("second", "linked")
        .file("linked", b"apart")
        .finish();
    let work = tempfile::tempdir().unwrap();
    let (file, theirs) = (work.path().join("archive.tar"), work.path().join("theirs"));
    std::fs::write(&file, &archive).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    let [from, to] = [&file, &theirs].map(|path| path.to_str().unwrap());
    run("tar", &["--same-owner", "--numeric-owner", "-p", "-xf", from, "-C", to]);
    let place = Place::new();
    place.unpack(&archive, &Limits::default()).unwrap();
    assert_eq!(list(&place.layer()), list(&theirs));
}

/// Python writes archives in its own way: `ustar` with prefixes, and its own pax headers.
#[test]
fn archives_of_python() {
    let script = r#"
import io, sys, tarfile
for fmt in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
    with tarfile.open(f"{sys.argv[1]}/{fmt}.tar", "w", format=fmt) as tar:
        def add(name, kind, data=b"", **fields):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mode = kind, len(data), 0o640
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
        add("d" * 90 + "/" + "f" * 60, tarfile.REGTYPE, b"x" * 1000, uid=77, mtime=1234567)
        add("plain", tarfile.REGTYPE, b"z")
        add("link", tarfile.SYMTYPE, linkname="t" * 80)
        add("hard", tarfile.LNKTYPE, linkname="plain")
        if fmt != tarfile.USTAR_FORMAT:
            add("n" * 200, tarfile.REGTYPE, b"y", uid=3000000, gname="\u00e9" * 20)
"#;
    let work = tempfile::tempdir().unwrap();
    run("python3", &["-c", script, work.path().to_str().unwrap()]);
    for entry in std::fs::read_dir(work.path()).unwrap() {
        let archive = std::fs::read(entry.unwrap().path()).unwrap();
        let place = Place::new();
        place.unpack(&archive, &Limits::default()).unwrap();
        let nodes = list(&place.layer());
        let file = &nodes[&[&[b'd'; 90][..], b"/", &[b'f'; 60]].concat()];
        assert_eq!((file.mode, file.uid, file.size, file.links), (0o640, 77, 1000, 1));
        assert_eq!(file.mtime, (1_234_567, 0));
        assert_eq!(nodes[&b"hard"[..]].links, 2);
        assert_eq!(nodes[&b"link"[..]].target, Some(vec![b't'; 80]));
        if let Some(owner) = nodes.get(&vec![b'n'; 200]) {
            assert_eq!((owner.uid, owner.size), (3_000_000, 1));
        }
    }
}
