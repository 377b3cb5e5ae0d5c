//! Opening stores in every state that a crash or a careless hand can leave.

use super::*;
use crate::pull::tests::{published, pull_from};

fn open(root: &Path) -> Result<ImageStore, OpenStoreError> {
    ImageStore::open_with(root, Limits::default(), Some(KernelPath::Directories))
}

#[test]
fn one_owner_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    let clone = store.clone();
    drop(store);
    assert!(matches!(open(root.path()), Err(OpenStoreError::InUse(_))));
    drop(clone);
    open(root.path()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(root.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn leftovers_are_removed() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let orphan = Digest::from_sha256([7; 32]).hex();
    for path in ["staging/0/fs/etc", "trash/3/fs", &format!("attributes/{orphan}/tmp"), "metadata"]
    {
        std::fs::create_dir_all(root.path().join(path)).unwrap();
    }
    std::fs::write(root.path().join("staging/1"), "").unwrap();
    std::fs::write(root.path().join("metadata").join(&orphan), "").unwrap();
    drop(open(root.path()).unwrap());
    for directory in ["staging", "trash", "attributes", "metadata"] {
        assert_eq!(std::fs::read_dir(root.path().join(directory)).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn unusable_records_are_dropped_and_the_image_comes_again() {
    let (source, digest) = published();
    let change = |change: fn(&mut serde_json::Value)| {
        move |path: &Path| {
            let mut record = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            change(&mut record);
            std::fs::write(path, record.to_string()).unwrap();
        }
    };
    type Spoil = Box<dyn Fn(&Path)>;
    let spoilers: [Spoil; 6] = [
        Box::new(|path| std::fs::write(path, "half a rec").unwrap()),
        Box::new(change(|record| record["version"] = 99.into())),
        Box::new(change(|record| record["config"] = "{}".into())),
        Box::new(change(|record| record["digest"] = record["layers"][0].clone())),
        Box::new(|path| {
            let layers = path.parent().unwrap().with_file_name("layers");
            let first = std::fs::read_dir(layers).unwrap().next().unwrap().unwrap();
            std::fs::remove_dir_all(first.path()).unwrap();
        }),
        Box::new(|path| std::fs::create_dir(path.with_file_name("a directory")).unwrap()),
    ];
    for (n, spoil) in spoilers.iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path()).unwrap();
        let image = pull_from(&store, &source, &digest).await;
        let path = store.inner.record_path(&digest);
        drop(store);
        spoil(&path);
        let store = open(root.path()).unwrap();
        if n < 5 {
            assert_eq!(store.list_images(), [], "{n}");
        }
        assert_eq!(pull_from(&store, &source, &digest).await, image, "{n}");
        let names = std::fs::read_dir(root.path().join("images")).unwrap();
        assert_eq!(names.count(), 1, "{n}");
    }
}

/// Whichever way it finds, an image gets to the kernel by it.
#[tokio::test]
async fn a_store_finds_out_how_images_get_to_the_kernel() {
    let (source, digest) = published();
    let scratch = crate::mount::tests::Scratch::new();
    let store = ImageStore::open(&scratch.path().join("store"), Limits::default()).unwrap();
    assert_ne!(store.kernel_path(), KernelPath::Directories, "this kernel should have EROFS");
    let image = pull_from(&store, &source, &digest).await;
    let target = scratch.path().join("rootfs");
    image.mount(&scratch.path().join("base"), &target, None).unwrap();
    assert_eq!(std::fs::read(target.join("etc/c")).unwrap(), [3; 300_000]);
    for directory in ["staging", "layers", "attributes"] {
        let listing = std::fs::read_dir(scratch.path().join("store").join(directory)).unwrap();
        assert_eq!(listing.count(), 0, "{directory}");
    }
}
