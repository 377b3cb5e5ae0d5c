use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

use super::*;
use crate::{Owner, Place, Reach, Rules, unpack};

const OWN: Rules = Rules { owner: Owner::Caller, reach: Reach::Beneath };

fn packed(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(Source::find(path).unwrap().pack(&mut bytes, Specials::LeftOut).unwrap(), []);
    bytes
}

/// All that copying keeps, of everything below a directory.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut to_do = vec![root.to_owned()];
    while let Some(path) = to_do.pop() {
        let stat = path.symlink_metadata().unwrap();
        let what = if stat.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if stat.is_dir() {
            to_do.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".to_owned()
        } else {
            let bytes = fs::read(&path).unwrap();
            format!("{} bytes {:?}, {} names", bytes.len(), bytes.get(..9), stat.nlink())
        };
        let path = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let (mode, at, nanos) = (stat.mode(), stat.mtime(), stat.mtime_nsec());
        lines.push(format!("{} {mode:o} {at}.{nanos:09} {what}", path.escape_ascii()));
    }
    lines.sort();
    lines
}

fn touch(path: &Path, seconds: i64, nanos: i64) {
    let at = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with everything that may be in one.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("sub/empty")).unwrap();
    fs::create_dir(root.join("closed")).unwrap();
    fs::write(root.join("run"), "#!/bin/sh\n").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"no\xfftext\n")), "x").unwrap();
    let long = root.join("sub").join("l".repeat(255));
    fs::write(&long, vec![7; 70_000]).unwrap();
    fs::hard_link(&long, root.join("sub/again")).unwrap();
    symlink("../sub/no such thing", root.join("sub/dangling")).unwrap();
    symlink("t".repeat(180), root.join("sub/far")).unwrap();
    let hole = File::create(root.join("hole")).unwrap();
    hole.set_len(50 << 20).unwrap();
    for (name, mode) in [("run", 0o755), ("nothing", 0o400), ("closed", 0o555), ("sub", 0o1777)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    touch(&root.join("run"), 1_000_000_000, 123_456_789);
    touch(&root.join("nothing"), -1, 999_000_000);
    touch(&root.join("sub/dangling"), 86_400, 5);
    touch(&root.join("sub/empty"), 7, 0);
    touch(&root.join("sub"), 8, 500);
    touch(root, 9, 0);
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, back) = (dir.path().join("tree"), dir.path().join("back"));
    plant(&tree);
    let before = listing(&tree);
    unpack(packed(&tree).as_slice(), Place::At(&back), OWN).unwrap();
    assert_eq!(listing(&back), before);
    assert!(back.join("hole").metadata().unwrap().blocks() < 100, "the hole is one again");
    // Over itself, and as contents of a directory.
    unpack(packed(&tree.join(".")).as_slice(), Place::At(&back), OWN).unwrap();
    assert_eq!(listing(&back)[1..], before[1..]);
}

#[test]
fn other_programs_read_it_in_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, back) = (dir.path().join("tree"), dir.path().join("back"));
    plant(&tree);
    let archive = dir.path().join("archive.tar");
    fs::write(&archive, packed(&tree)).unwrap();
    fs::create_dir(&back).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xpf").arg(&archive).arg("-C").arg(&back);
    assert!(tar.status().expect("tar runs").success());
    assert_eq!(listing(&back.join("tree")), listing(&tree));
}

#[test]
fn what_is_named_is_what_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/f"), "x").unwrap();
    symlink("d", at("link")).unwrap();
    for (path, names) in [
        ("d", &["d/", "d/f"][..]),
        ("d/", &["d/", "d/f"]),
        ("d/.", &["./", "f"]),
        ("d/f", &["f"]),
        ("link", &["link"]),
        ("link/", &["link/", "link/f"]),
        ("link/.", &["./", "f"]),
    ] {
        let bytes = packed(&at(path));
        let mut archive = ::tar::Archive::new(bytes.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
            .map(
                |name| if name.len() > 2 { name.trim_start_matches("./").to_owned() } else { name },
            )
            .collect();
        let trimmed =
            |name: &str| if name == "./" { "." } else { name.trim_end_matches('/') }.to_owned();
        let found: Vec<_> = found.iter().map(|name| trimmed(name)).collect();
        let names: Vec<_> = names.iter().map(|name| trimmed(name)).collect();
        assert_eq!(found, names, "{path}");
    }
    for missing in ["no", "d/f/", "d/f/.", "d/f/x", "no/f"] {
        let error = Source::find(&at(missing)).unwrap_err();
        assert!(matches!(error, PackError::Missing { .. }), "{missing}: {error:?}");
        assert!(error.to_string().contains(missing), "{error}");
    }
}

#[test]
fn what_no_archive_can_hold_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    rustix::fs::mknodat(CWD, dir.path().join("p"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let source = || Source::find(&dir.path().join(".")).unwrap();
    let whys = |specials| -> Vec<_> {
        let left_out = source().pack(io::sink(), specials).unwrap();
        left_out.into_iter().map(|left| left.why).collect()
    };
    assert_eq!(whys(Specials::LeftOut), ["a named pipe", "a socket"]);
    assert_eq!(whys(Specials::Kept), ["a socket"]);
}

#[test]
fn what_cannot_be_read_to_its_end_makes_no_whole_archive() {
    /// Makes the file shorter once some of it was written.
    struct Cutting<'a>(&'a mut Vec<u8>, &'a Path);
    impl Write for Cutting<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend(bytes);
            if self.0.len() > 10_000 {
                File::options().write(true).open(self.1)?.set_len(10)?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let mut bytes = Vec::new();
    let packed = Source::find(&path).unwrap().pack(Cutting(&mut bytes, &path), Specials::Kept);
    assert!(matches!(packed, Err(PackError::Shorter { .. })), "{packed:?}");
    let back = dir.path().join("back");
    let error = unpack(bytes.as_slice(), Place::At(&back), OWN).unwrap_err();
    assert!(matches!(error, crate::UnpackError::Tar(_)), "{error:?}");
    assert!(!back.exists(), "half a file stays");
}

#[test]
fn a_writer_that_fails_is_told_from_a_tree_that_does() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let packed = Source::find(dir.path()).unwrap().pack(Full, Specials::Kept);
    assert!(matches!(packed, Err(PackError::Write(_))), "{packed:?}");
}

#[test]
fn what_is_packed_is_not_too_deep_to_be_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, back) = (dir.path().join("tree"), dir.path().join("back"));
    let mut deep = tree.clone();
    fs::create_dir(&deep).unwrap();
    for _ in 0..MAX_DEPTH {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    unpack(packed(&tree).as_slice(), Place::At(&back), OWN).unwrap();
    assert_eq!(listing(&back), listing(&tree));
    fs::write(deep.join("f"), "").unwrap();
    let packed = Source::find(&tree).unwrap().pack(io::sink(), Specials::Kept);
    assert!(matches!(packed, Err(PackError::Deep { .. })), "{packed:?}");
}
