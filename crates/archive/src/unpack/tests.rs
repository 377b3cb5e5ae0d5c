use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use ::tar::{Builder, EntryType, Header};

use super::*;

const STRANGER: Rules = Rules { owner: Owner::Caller, reach: Reach::Beneath };
const INSIDE: Rules = Rules { owner: Owner::Is(0, 0), reach: Reach::Root };

/// One entry of an archive, whatever its name; of a link, the text is its target.
#[derive(Clone, Copy)]
struct Piece(EntryType, &'static str, &'static str);

use EntryType::{Directory, Fifo, Link, Regular, Symlink};

fn archive(pieces: &[Piece]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for &Piece(kind, name, text) in pieces {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(1234);
        header.set_gid(1234);
        header.set_mtime(1);
        let is_link = matches!(kind, Link | Symlink);
        if is_link {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let text = if is_link { "" } else { text };
        header.set_size(text.len() as u64);
        header.set_cksum();
        tar.append(&header, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A directory with `in` to unpack into, and a file beside it that nothing may touch.
struct Bed(tempfile::TempDir);

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::write(dir.path().join("precious"), "as it was").unwrap();
        Self(dir)
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn unpack(&self, pieces: &[Piece], rules: Rules) -> Result<Vec<LeftOut>, UnpackError> {
        unpack(archive(pieces).as_slice(), Place::Into(&self.at("in")), rules)
    }

    fn assert_untouched(&self, what: &str) {
        let mut names: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["in", "precious"], "{what}");
        assert_eq!(fs::read_to_string(self.at("precious")).unwrap(), "as it was", "{what}");
        let meta = self.at("precious").metadata().unwrap();
        assert!(meta.nlink() == 1 && meta.mode() & 0o7777 == 0o644, "{what}: {meta:?}");
    }
}

#[test]
fn a_hostile_archive_reaches_nothing_outside() {
    for pieces in [
        &[Piece(Regular, "../precious", "changed")][..],
        &[Piece(Regular, "a/../../precious", "changed")],
        &[Piece(Link, "mine", "../precious")],
        &[Piece(Link, "mine", "mine")],
        // By a link that was there before the archive, and leads out.
        &[Piece(Regular, "before/precious", "changed")],
        &[Piece(Directory, "before", "")],
        &[Piece(Link, "mine", "before/precious")],
        // By one that leads nowhere out, all the same: what it leads to may change.
        &[Piece(Directory, "d", ""), Piece(Symlink, "l", "d"), Piece(Regular, "l/x", "")],
    ] {
        let bed = Bed::new();
        symlink("..", bed.at("in/before")).unwrap();
        let result = bed.unpack(pieces, STRANGER);
        bed.assert_untouched(pieces.last().unwrap().1);
        assert!(result.is_err(), "{}: {result:?}", pieces.last().unwrap().1);
    }
}

#[test]
fn links_that_lead_out_and_devices_are_left_out_and_told() {
    let bed = Bed::new();
    let pieces = [
        Piece(Symlink, "absolute", "/etc/passwd"),
        Piece(Symlink, "up", "../precious"),
        Piece(Directory, "d", ""),
        Piece(Symlink, "d/up", "../../precious"),
        Piece(Symlink, "d/winding", "x/../../../precious"),
        Piece(Symlink, "self", "."),
        Piece(Symlink, "by-self", "self/self/../.."),
        Piece(Symlink, "d/in", ".."),
        Piece(Link, "moved", "d/in"),
        Piece(Fifo, "pipe", ""),
        Piece(EntryType::Char, "zero", ""),
        Piece(Symlink, "d/good", "../d/./f"),
        Piece(Regular, "d/f", "fine"),
        Piece(Regular, "/etc/absolute", "below"),
    ];
    let left_out = bed.unpack(&pieces, STRANGER).unwrap();
    let mut told: Vec<_> = left_out.iter().map(|left| left.path.as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, ["absolute", "by-self", "d/up", "d/winding", "moved", "pipe", "up", "zero"]);
    for path in told {
        assert!(bed.at("in").join(path).symlink_metadata().is_err(), "{path}");
    }
    assert_eq!(fs::read_to_string(bed.at("in/d/good")).unwrap(), "fine");
    assert_eq!(fs::read_to_string(bed.at("in/etc/absolute")).unwrap(), "below");
    bed.assert_untouched("left out");
}

#[test]
fn what_replaces_a_link_does_not_write_through_it() {
    for rules in [STRANGER, INSIDE] {
        let bed = Bed::new();
        symlink("../precious", bed.at("in/x")).unwrap();
        fs::hard_link(bed.at("precious"), bed.at("in/y")).unwrap();
        bed.unpack(&[Piece(Regular, "x", "new"), Piece(Regular, "y", "new")], rules).unwrap();
        assert_eq!(fs::read_to_string(bed.at("in/x")).unwrap(), "new");
        bed.assert_untouched("replaced");
    }
}

#[test]
fn inside_links_are_followed_and_specials_refused() {
    let bed = Bed::new();
    fs::create_dir(bed.at("in/real")).unwrap();
    symlink("real", bed.at("in/link")).unwrap();
    let pieces = [
        Piece(Regular, "link/deeper/f", "x"),
        Piece(Symlink, "out", "/anywhere/../at/all"),
        Piece(Link, "link/g", "link/deeper/f"),
    ];
    assert_eq!(bed.unpack(&pieces, INSIDE).unwrap(), []);
    assert_eq!(fs::read_to_string(bed.at("in/real/g")).unwrap(), "x");
    let error = bed.unpack(&[Piece(Fifo, "pipe", "")], INSIDE).unwrap_err();
    assert!(
        matches!(&error, UnpackError::Special { path } if path.ends_with("/in/pipe")),
        "{error:?}"
    );
}

#[test]
fn owners_and_dangerous_bits_are_kept_when_asked() {
    for (owner, uid, mode) in [
        (Owner::Caller, rustix::process::geteuid().as_raw(), 0o755),
        (Owner::Is(77, 77), 77, 0o755),
        (Owner::Kept, 1234, 0o4755),
    ] {
        let bed = Bed::new();
        let pieces = [
            Piece(Directory, "d", ""),
            Piece(Regular, "d/f", "x"),
            Piece(Symlink, "d/l", "f"),
            Piece(Directory, "d/e", ""),
        ];
        bed.unpack(&pieces, Rules { owner, ..STRANGER }).unwrap();
        for name in ["d", "d/f", "d/l", "d/e"] {
            let meta = bed.at("in").join(name).symlink_metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mtime()), (uid, uid, 1), "{owner:?} {name}");
            let is_link = meta.is_symlink();
            assert!(is_link || meta.mode() & 0o7777 == mode, "{owner:?} {name} {:o}", meta.mode());
        }
    }
}

/// What lies below a directory, by name.
fn below(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut to_do = vec![root.to_owned()];
    while let Some(path) = to_do.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(root).unwrap().display().to_string());
            to_do.extend((path.is_dir() && !path.is_symlink()).then_some(path));
        }
    }
    names.sort();
    names
}

#[test]
fn a_tree_goes_where_cp_would_put_it() {
    let tree = &[Piece(Directory, "t", ""), Piece(Regular, "t/f", "x")][..];
    let contents = &[Piece(Directory, "./", ""), Piece(Regular, "f", "x")][..];
    let file = &[Piece(Regular, "t", "x")][..];
    for (pieces, place, expected) in [
        (tree, "dir", Ok(&["dir", "dir/t", "dir/t/f", "file"][..])),
        (tree, "dir/", Ok(&["dir", "dir/t", "dir/t/f", "file"])),
        (tree, "dir/.", Ok(&["dir", "dir/t", "dir/t/f", "file"])),
        (tree, "new", Ok(&["dir", "file", "new", "new/f"])),
        (tree, "new/", Ok(&["dir", "file", "new", "new/f"])),
        (tree, "dir/new", Ok(&["dir", "dir/new", "dir/new/f", "file"])),
        (tree, "file", Err("file: a directory cannot be copied onto a file")),
        (tree, "no/new", Err("no does not exist")),
        (contents, "dir", Ok(&["dir", "dir/f", "file"])),
        (contents, "new", Ok(&["dir", "file", "new", "new/f"])),
        (contents, "file", Err("file: a directory cannot be copied onto a file")),
        (file, "dir", Ok(&["dir", "dir/t", "file"])),
        (file, "new", Ok(&["dir", "file", "new"])),
        (file, "file", Ok(&["dir", "file"])),
        (file, "new/", Err("new does not exist")),
        (file, "file/", Err("file/ is not a directory")),
        (file, "file/x", Err("file/x is not a directory")),
        (file, "dir/no/x", Err("dir/no does not exist")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        fs::write(dir.path().join("file"), "old").unwrap();
        let destination = format!("{}/{place}", dir.path().display());
        let result =
            unpack(archive(pieces).as_slice(), Place::At(Path::new(&destination)), STRANGER);
        match expected {
            Ok(names) => {
                result.unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(below(dir.path()), names, "{place}");
            }
            Err(why) => {
                let error = result.unwrap_err().to_string();
                let error = error.replace(&format!("{}/", dir.path().display()), "");
                assert_eq!(error, why, "{place}");
                assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "old");
            }
        }
    }
}

#[test]
fn an_archive_with_two_tops_has_no_name_to_be_given() {
    let bed = Bed::new();
    let pieces = archive(&[Piece(Regular, "a", "x"), Piece(Regular, "ab", "y")]);
    let error = unpack(pieces.as_slice(), Place::At(&bed.at("in/new")), STRANGER).unwrap_err();
    assert!(matches!(&error, UnpackError::SecondTop { path } if path == "ab"), "{error:?}");
    let nowhere = unpack(&[0; 1024][..], Place::Into(&bed.at("no")), STRANGER).unwrap_err();
    assert!(matches!(nowhere, UnpackError::Missing { .. }), "{nowhere:?}");
}

#[test]
fn kinds_do_not_replace_each_other() {
    let bed = Bed::new();
    fs::create_dir(bed.at("in/d")).unwrap();
    fs::write(bed.at("in/f"), "old").unwrap();
    for piece in [
        Piece(Regular, "d", "x"),
        Piece(Symlink, "d", "f"),
        Piece(Link, "d", "f"),
        Piece(Directory, "f", ""),
        Piece(Regular, "f/x", ""),
        Piece(Regular, ".", ""),
    ] {
        for rules in [STRANGER, INSIDE] {
            let error = bed.unpack(&[piece], rules).unwrap_err();
            assert!(matches!(error, UnpackError::InTheWay { .. }), "{}: {error:?}", piece.1);
        }
    }
    assert_eq!(below(&bed.at("in")), ["d", "f"]);
    assert_eq!(fs::read_to_string(bed.at("in/f")).unwrap(), "old");
}

/// Numbers that only look like chance, so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[(self.0 >> 33) as usize % from.len()]
    }

    fn path(&mut self, parts: &[&str], most: usize) -> String {
        let lengths: Vec<usize> = (1..=most).collect();
        let length = self.pick(&lengths);
        (0..length).map(|_| self.pick(parts)).collect::<Vec<_>>().join("/")
    }
}

/// Links of few names lead to each other in every way; wherever they lead, it is inside.
#[test]
fn no_archive_makes_a_link_that_leads_out() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().canonicalize().unwrap();
    for name in ["a", "b", "c"] {
        // What a link that leads out would lead to.
        fs::create_dir(outside.join(name)).unwrap();
    }
    let inside = outside.join("in");
    let (mut n_links, mut n_left_out) = (0, 0);
    for seed in 0..1000 {
        let mut dice = Dice(seed);
        fs::create_dir(&inside).unwrap();
        for _ in 0..8 {
            let name = dice.path(&["a", "b", "c"], 3);
            let target = dice.path(&["a", "b", "c", "..", "..", "."], 5);
            let (name, target) = (&*name.leak(), &*target.leak());
            let kind = dice.pick(&[Symlink, Symlink, Symlink, Directory, Link, Regular]);
            // One at a time, so that a refused one does not keep the others away.
            let piece = archive(&[Piece(kind, name, target)]);
            let result = unpack(piece.as_slice(), Place::Into(&inside), STRANGER);
            n_left_out += result.map_or(0, |left_out| left_out.len());
        }
        for name in below(&inside) {
            let path = inside.join(name);
            if path.symlink_metadata().unwrap().is_symlink() {
                n_links += 1;
                let leads_to = path.canonicalize();
                let is_inside = leads_to.as_ref().is_ok_and(|end| end.starts_with(&inside));
                assert!(is_inside || leads_to.is_err(), "seed {seed}: {path:?} -> {leads_to:?}");
            }
        }
        for name in ["a", "b", "c"] {
            assert_eq!(fs::read_dir(outside.join(name)).unwrap().count(), 0, "seed {seed}");
        }
        fs::remove_dir_all(&inside).unwrap();
    }
    assert!(n_links > 500 && n_left_out > 500, "{n_links} {n_left_out}");
}
