use std::fs;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn open(root: &Path) -> Storage {
    Storage::open(root, DAY, None).unwrap()
}

fn repository(name: &str) -> Repository {
    name.parse().unwrap()
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

fn push(storage: &Storage, name: &str, bytes: &[u8]) -> Digest {
    let (upload, mut hash) = storage.begin_upload(&repository(name)).unwrap();
    hash.append(&[Bytes::copy_from_slice(bytes)]).unwrap();
    storage.finish_upload(&repository(name), upload, &mut hash).unwrap();
    hash.digest()
}

/// Every file and directory below `path`, without the shards of blobs.
fn tree(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut unseen = vec![path.to_owned()];
    while let Some(dir) = unseen.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                unseen.push(entry);
            } else {
                let below = entry.strip_prefix(path).unwrap();
                found.push(below.display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    assert!(Storage::open(dir.path(), DAY, None).unwrap_err().is_locked());
    drop(first);
    open(dir.path());
}

#[test]
fn bytes_are_kept_once_and_until_the_last_link_goes() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let digest = push(&storage, "a/one", b"bytes");
    assert_eq!(push(&storage, "a/two", b"bytes"), digest);
    let (one, two, three) = (repository("a/one"), repository("a/two"), repository("a/two/three"));
    assert!(storage.mount_blob(&two, &three, &digest).unwrap());
    assert_eq!(storage.blob_size(&three, &digest).unwrap(), Some(5));
    assert!(!storage.mount_blob(&repository("none"), &one, &digest).unwrap());
    for (name, left) in [(&one, true), (&three, true), (&two, false)] {
        assert!(storage.delete_blob(name, &digest).unwrap());
        assert_eq!(storage.blob_size(name, &digest).unwrap(), None);
        assert!(!storage.delete_blob(name, &digest).unwrap());
        assert_eq!(storage.bytes_size(&digest).unwrap().is_some(), left, "{name}");
    }
    assert_eq!(tree(dir.path()), ["conversion-uses-noted", "lock"]);
}

#[test]
fn deleting_a_manifest_deletes_its_tags_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let name = repository("a/b");
    let put = |bytes: &[u8], tag: &str| {
        let manifest = StoredManifest { media_type: "t".to_owned(), bytes: bytes.to_owned() };
        let digest = digest_of(bytes);
        storage.put_manifest(&name, &digest, &manifest, None).unwrap();
        storage.put_tag(&name, &tag.parse().unwrap(), &digest).unwrap();
        digest
    };
    let (first, second) = (put(b"1", "one"), put(b"2", "two"));
    put(b"1", "uno");
    assert_eq!(storage.catalog().unwrap(), std::slice::from_ref(&name));
    assert_eq!(storage.tags(&name).unwrap().unwrap(), ["one", "two", "uno"]);
    assert!(storage.delete_manifest(&name, &first).unwrap());
    assert_eq!(storage.tags(&name).unwrap().unwrap(), ["two"]);
    assert_eq!(storage.tag(&name, &"two".parse().unwrap()).unwrap(), Some(second));
    assert!(storage.manifest(&name, &first).unwrap().is_none());
    assert!(!storage.blob_path(&first).exists());
    assert!(storage.delete_manifest(&name, &second).unwrap());
    assert!(storage.catalog().unwrap().is_empty());
    assert_eq!(storage.tags(&name).unwrap().unwrap(), [""; 0]);
    assert_eq!(storage.tags(&repository("a")).unwrap(), None);
}

/// Every state in which a crash can leave a push or a deletion, made by hand.
#[test]
fn a_crash_between_two_steps_leaves_nothing_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let name = repository("a/b");
    let digest = digest_of(b"bytes");
    let link = dir.path().join("repositories/a/b/_blobs").join(digest.hex());

    // The link is there and the bytes are not: after they were removed.
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    fs::write(&link, "").unwrap();
    assert_eq!(storage.blob_size(&name, &digest).unwrap(), None);
    assert!(storage.open_blob(&name, &digest).unwrap().is_none());
    assert!(!storage.mount_blob(&name, &repository("c"), &digest).unwrap());
    assert!(!storage.delete_blob(&name, &digest).unwrap());
    fs::write(&link, "").unwrap();
    assert_eq!(push(&storage, "a/b", b"bytes"), digest);
    assert_eq!(storage.blob_size(&name, &digest).unwrap(), Some(5));

    // A manifest's link without its bytes, and a tag without its manifest.
    let manifest = digest_of(b"m");
    let links = dir.path().join("repositories/a/b/_manifests");
    fs::create_dir_all(&links).unwrap();
    fs::write(links.join(manifest.hex()), r#"{"version":1,"media_type":"t"}"#).unwrap();
    assert!(storage.manifest(&name, &manifest).unwrap().is_none());
    assert_eq!(storage.manifest_size(&name, &manifest).unwrap(), None);

    // A file on its way to its place.
    fs::write(dir.path().join("tmp/half"), "ha").unwrap();
    drop(storage);
    open(dir.path());
    assert!(!dir.path().join("tmp/half").exists());
}

#[test]
fn uploads_are_resumed_and_swept_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let name = repository("a/b");
    let storage = open(dir.path());
    let (upload, mut hash) = storage.begin_upload(&name).unwrap();
    hash.append(&[Bytes::from_static(b"by")]).unwrap();
    drop(storage);

    let storage = open(dir.path());
    assert!(storage.has_upload(&name, upload).unwrap());
    assert!(!storage.has_upload(&repository("a/c"), upload).unwrap());
    let mut hash = storage.resume_upload(upload).unwrap().unwrap();
    assert_eq!(hash.length(), 2);
    hash.append(&[Bytes::from_static(b"t"), Bytes::from_static(b"es")]).unwrap();
    assert_eq!(hash.digest(), digest_of(b"bytes"));

    assert_eq!(storage.sweep_uploads(DAY).unwrap(), 0);
    // One that a crash left half made has no data file.
    fs::create_dir(dir.path().join("uploads/half")).unwrap();
    assert_eq!(storage.sweep_uploads(Duration::ZERO).unwrap(), 2);
    assert!(!storage.has_upload(&name, upload).unwrap());
    assert!(storage.resume_upload(upload).unwrap().is_none());
    storage.remove_upload(upload).unwrap();
}

fn pending(dir: &Path) -> usize {
    fs::read_dir(dir.join("pending")).unwrap().count()
}

#[test]
fn what_is_settled_is_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let name = repository("a/b");
    let texts = b"0123456789ab";
    let texts: [&[u8]; 12] = std::array::from_fn(|n| &texts[n..=n]);
    let digests = texts.map(|text| push(&storage, "a/b", text));
    assert_eq!(pending(dir.path()), 12);
    // Few are settled alone, many with everything else.
    storage.settle(&name, digests[..2].to_vec()).unwrap();
    assert_eq!(pending(dir.path()), 10);
    storage.settle(&name, digests[..11].to_vec()).unwrap();
    assert_eq!(pending(dir.path()), 0);
    for (digest, text) in digests.iter().zip(texts) {
        assert_eq!(fs::read(storage.blob_path(digest)).unwrap(), text);
    }
    // Equal bytes that may not be on the disk do not take the place of those that are.
    push(&storage, "a/c", texts[0]);
    assert_eq!(pending(dir.path()), 0);
    storage.settle_all().unwrap();
}

#[test]
fn many_settle_what_is_theirs_and_what_they_share() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let pusher = |client: usize| {
        let name = format!("a/{client}");
        for round in 0..20 {
            // Now few, now many.
            let n_own = if client.is_multiple_of(4) { 12 } else { 1 };
            let own = (0..n_own).map(|n| format!("{client} {round} {n}"));
            let texts: Vec<_> = own.chain([format!("shared {round}")]).collect();
            let digests: Vec<_> =
                texts.iter().map(|text| push(&storage, &name, text.as_bytes())).collect();
            storage.settle(&repository(&name), digests.iter().copied()).unwrap();
            for (digest, text) in digests.iter().zip(&texts) {
                assert_eq!(fs::read(storage.blob_path(digest)).unwrap(), text.as_bytes());
            }
        }
    };
    std::thread::scope(|scope| {
        for client in 0..8 {
            scope.spawn(move || pusher(client));
        }
    });
    assert_eq!(pending(dir.path()), 0);
}

/// A power cut leaves a file that was not synced with any length and any bytes.
#[test]
fn a_blob_that_did_not_reach_the_disk_whole_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let name = repository("a/b");
    let [whole, short, empty, zeros, alone] =
        [b"whole", b"short", b"empty", b"zeros", b"alone"].map(|text| push(&storage, "a/b", text));
    fs::write(storage.pending_path(&short), "sho").unwrap();
    fs::write(storage.pending_path(&empty), "").unwrap();
    fs::write(storage.pending_path(&zeros), [0; 5]).unwrap();
    fs::remove_file(dir.path().join("repositories/a/b/_blobs").join(alone.hex())).unwrap();
    drop(storage);

    let storage = open(dir.path());
    assert_eq!(storage.blob_size(&name, &whole).unwrap(), Some(5));
    assert!(storage.blob_path(&whole).exists());
    for lost in [short, empty, zeros, alone] {
        assert_eq!(storage.bytes_size(&lost).unwrap(), None);
    }
    assert_eq!(pending(dir.path()), 0);
    assert_eq!(push(&storage, "a/b", b"short"), short);
    assert_eq!(storage.blob_size(&name, &short).unwrap(), Some(5));
}
