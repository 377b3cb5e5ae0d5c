use tempfile::TempDir;

use super::*;

fn open(dir: &TempDir, size: &str) -> Shelf {
    let path = dir.path().join("mirror");
    Shelf::open(path, size.parse().unwrap(), Gauge::default()).unwrap()
}

fn web() -> Repository {
    "default/web".parse().unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// Has these bytes come and kept as a blob with this digest.
fn keep(shelf: &Shelf, digest: &Digest, bytes: &[u8]) -> Option<Digest> {
    let size = bytes.len() as u64;
    let passing = shelf.begin(digest, size).unwrap();
    passing.file.write_all_at(bytes, 0).unwrap();
    let found = shelf.keep(&(web(), *digest), size, &passing).unwrap();
    if found.is_some() {
        shelf.release(size);
    }
    found
}

fn read(shelf: &Shelf, digest: &Digest) -> Option<Vec<u8>> {
    let Whole { file, size, .. } = shelf.open_blob(digest)?;
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn what_was_kept_is_there_after_a_start_and_what_was_coming_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = open(&dir, "1MiB");
    let (one, two) = (digest(b"one"), digest(b"two"));
    assert_eq!(keep(&shelf, &one, b"one"), None);
    let passing = shelf.begin(&two, 3).unwrap();
    passing.file.write_all_at(b"tw", 0).unwrap();
    let orphan = dir.path().join("mirror/links").join(format!("{}.x", two.hex()));
    fs::write(&orphan, "").unwrap();

    let shelf = open(&dir, "1MiB");
    assert_eq!(shelf.find(&one, &web()), Some(true));
    let other = "default/other".parse().unwrap();
    assert_eq!((shelf.find(&one, &other), shelf.find(&two, &web())), (Some(false), None));
    assert_eq!(read(&shelf, &one).as_deref(), Some(&b"one"[..]));
    assert_eq!((read(&shelf, &two), shelf.taken.get()), (None, 3));
    assert!(!orphan.exists());
    assert_eq!(disk::list(&dir.path().join("mirror/coming")).unwrap().len(), 0);
    shelf.add(&one, &other).unwrap();
    assert_eq!(open(&dir, "1MiB").find(&one, &other), Some(true));
}

#[test]
fn bytes_with_another_digest_are_not_kept_and_damaged_ones_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = open(&dir, "1MiB");
    let one = digest(b"one");
    assert_eq!(keep(&shelf, &one, b"two"), Some(digest(b"two")));
    assert_eq!(shelf.find(&one, &web()), None);
    assert_eq!(keep(&shelf, &one, b"one"), None);
    assert!(!shelf.open_blob(&one).unwrap().is_due, "it was looked at when it came");

    let shelf = open(&dir, "1MiB");
    let path = shelf.blob(&one);
    fs::write(&path, b"ons").unwrap();
    assert!(shelf.open_blob(&one).unwrap().is_due && !shelf.open_blob(&one).unwrap().is_due);
    assert!(!shelf.is_right(&one).unwrap());
    fs::write(&path, b"one").unwrap();
    assert!(shelf.is_right(&one).unwrap());
    // What has another length is nobody's at once.
    fs::write(&path, b"on").unwrap();
    assert!(shelf.open_blob(&one).is_none());
    assert_eq!((shelf.find(&one, &web()), shelf.taken.get(), path.exists()), (None, 0, false));
}

#[test]
fn what_was_not_used_for_longest_goes_and_who_reads_it_reads_on() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = open(&dir, "8B");
    let blobs = [b"aaa", b"bbb", b"ccc"].map(|bytes| (digest(bytes), bytes));
    for (digest, bytes) in &blobs[..2] {
        assert_eq!(keep(&shelf, digest, *bytes), None);
    }
    let reading = shelf.open_blob(&blobs[0].0).unwrap();
    // The other one was used before.
    assert_eq!(keep(&shelf, &blobs[2].0, blobs[2].1), None);
    let here = blobs.map(|(digest, _)| shelf.find(&digest, &web()).is_some());
    assert_eq!(here, [true, false, true]);
    shelf.forget(&blobs[0].0);
    let mut bytes = [0; 3];
    reading.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"aaa");

    // What does not fit at all has nothing go for it, nor what comes at the same time.
    let large = shelf.begin(&digest(b"large"), 9).unwrap_err();
    assert_eq!(large.to_string(), "it has 9 B, and there is no room for that in the mirror");
    let passing = shelf.begin(&digest(b"dddddd"), 5).unwrap();
    let beside = shelf.begin(&digest(b"eeeeee"), 6);
    assert!(matches!(beside, Err(NotKept::Room { .. })), "{beside:?}");
    assert!(!shelf.lacks_room(), "what was refused takes nothing");
    assert!(shelf.find(&blobs[2].0, &web()).is_some());
    drop(passing);
    shelf.release(5);
    shelf.begin(&digest(b"eeeeee"), 6).unwrap();
    assert!(shelf.find(&blobs[2].0, &web()).is_none());
    shelf.clear().unwrap();
}

#[test]
fn one_of_no_size_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = open(&dir, "1MiB");
    assert_eq!(keep(&shelf, &digest(b"one"), b"one"), None);
    let shelf = open(&dir, "0");
    assert!(matches!(shelf.begin(&digest(b"two"), 3), Err(NotKept::Room { .. })));
    assert!(shelf.lacks_room());
    shelf.clear().unwrap();
    assert_eq!((shelf.find(&digest(b"one"), &web()), shelf.taken.get()), (None, 0));
}
