//! Real mounts; these tests need root and a kernel with overlayfs.

use super::table::{MountInfo, unescape};
use super::*;

/// A directory whose mounts are gone when it is dropped, also after a failure.
pub(crate) struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A layer with files of these names, each holding the layer's name.
    fn layer(&self, name: &str, files: &[&str]) -> PathBuf {
        let layer = self.path().join(name);
        for file in files {
            let path = layer.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        std::fs::create_dir_all(&layer).unwrap();
        layer
    }

    fn base(&self) -> PathBuf {
        self.path().join("base")
    }

    fn target(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.target().join(file)).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unmount_under(self.path()).unwrap();
    }
}

/// The best way of this kernel.
pub(crate) fn best() -> KernelPath {
    let directory = tempfile::tempdir().unwrap();
    probe(directory.path())
}

/// An image of one file.
fn probe_image(kernel: KernelPath, dir: &Path) -> ErofsImage {
    kernel::write_probe_image(kernel, dir).unwrap()
}

/// Whoever looks at every new block device, as udev does, may have one open for a moment longer than we do.
pub(crate) fn wait_for_loop_devices_to_go(dir: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while loop_devices_below(dir) > 0 {
        assert!(std::time::Instant::now() < deadline, "a loop device stays");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn loop_devices_below(dir: &Path) -> usize {
    let devices = std::fs::read_dir("/sys/block").unwrap();
    let files = devices.filter_map(|device| {
        std::fs::read_to_string(device.unwrap().path().join("loop/backing_file")).ok()
    });
    files.filter(|file| file.starts_with(dir.to_str().unwrap())).count()
}

#[test]
fn instances_of_an_image_share_its_file_system_and_leave_nothing() {
    for kernel in [KernelPath::Loop, best()] {
        let scratch = Scratch::new();
        let image = Arc::new(probe_image(kernel, scratch.path()));
        let [one, two] = [image.view().unwrap(), image.view().unwrap()];
        let device = |view: &OwnedFd| rustix::fs::fstat(view).unwrap().st_dev;
        assert_eq!(device(&one), device(&two), "{kernel}");
        let target = scratch.path().join("rootfs");
        let tree = ImageTree::Erofs(Arc::clone(&image));
        mount_tree(&tree, &scratch.base(), &target, None).unwrap();
        mount_tree(&tree, &scratch.base(), &target, None).unwrap();
        assert_eq!(mounts_under(scratch.path()).unwrap(), [target.canonicalize().unwrap()]);
        drop((one, two, tree, image));
        assert_eq!(scratch.read("probe"), "as it was written", "the instance goes on without us");
        unmount_rootfs(&target).unwrap();
        wait_for_loop_devices_to_go(scratch.path());
    }
}

#[test]
fn what_cannot_be_mounted_is_said_with_the_words_of_the_kernel() {
    let scratch = Scratch::new();
    let files = probe_image(KernelPath::Loop, scratch.path()).files();
    std::fs::write(&files[0], [0; 4096]).unwrap();
    let image = ErofsImage::new(KernelPath::Loop, files[0].clone(), files[1..].to_vec());
    let error = image.view().unwrap_err();
    assert!(matches!(error, MountRootfsError::Io { action: "mounting", .. }), "{error:?}");
    drop(image);
    wait_for_loop_devices_to_go(scratch.path());
}

#[test]
fn layers_are_merged_and_written_above() {
    let scratch = Scratch::new();
    let low = scratch.layer("low", &["a", "b", "gone", "hidden/x"]);
    let high = scratch.layer("high", &["b", "c", "hidden/y"]);
    let whiteout = rustix::fs::makedev(0, 0);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, high.join("gone"), kind, Mode::empty(), whiteout).unwrap();
    xattr::set(high.join("hidden"), crate::unpack::OPAQUE_XATTR, b"y").unwrap();
    std::os::unix::fs::chown(&high, Some(12), Some(34)).unwrap();
    std::fs::set_permissions(&high, PermissionsExt::from_mode(0o711)).unwrap();
    let layers = [low.clone(), high];
    let (base, target) = (scratch.base(), scratch.target());
    mount_rootfs(&layers, &base, &target, None).unwrap();
    for (file, expected) in [("a", "low"), ("b", "high"), ("c", "high"), ("hidden/y", "high")] {
        assert_eq!(scratch.read(file), expected);
    }
    assert!(!target.join("gone").exists());
    assert!(!target.join("hidden/x").exists());
    let root = target.metadata().unwrap();
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (12, 34, 0o711));
    std::fs::write(target.join("a"), "written").unwrap();
    assert_eq!(std::fs::read_to_string(low.join("a")).unwrap(), "low");
    let null = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, target.join("null"), kind, mode, null).unwrap();
    let opened = std::fs::File::open(target.join("null"));
    assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::PermissionDenied, "nodev");

    // Again: nothing happens, and what was written is still there.
    mount_rootfs(&layers, &base, &target, None).unwrap();
    assert_eq!(mounts_under(scratch.path()).unwrap(), [target.canonicalize().unwrap()]);
    assert_eq!(scratch.read("a"), "written");
    let other = mount_rootfs(&layers, &scratch.path().join("other"), &target, None);
    assert!(matches!(other, Err(MountRootfsError::Occupied(_))));

    unmount_rootfs(&target).unwrap();
    unmount_rootfs(&target).unwrap();
    unmount_rootfs(&scratch.path().join("never-there")).unwrap();
    assert!(mounts_under(scratch.path()).unwrap().is_empty());
    mount_rootfs(&layers, &base, &target, None).unwrap();
    assert_eq!(scratch.read("a"), "written", "the upper directory outlives the mount");
}

#[test]
fn a_busy_root_is_detached() {
    let scratch = Scratch::new();
    let layer = scratch.layer("layer", &["a"]);
    mount_rootfs(&[layer], &scratch.base(), &scratch.target(), None).unwrap();
    let held = std::fs::File::open(scratch.target().join("a")).unwrap();
    unmount_rootfs(&scratch.target()).unwrap();
    assert!(mounts_under(scratch.path()).unwrap().is_empty());
    drop(held);
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let scratch = Scratch::new();
    mount_rootfs(&[], &scratch.base(), &scratch.target(), None).unwrap();
    assert_eq!(std::fs::read_dir(scratch.target()).unwrap().count(), 0);
    std::fs::write(scratch.target().join("a"), "x").unwrap();
    assert_eq!(scratch.read("a"), "x");
}

#[test]
fn names_that_mean_something_in_options() {
    let scratch = Scratch::new();
    let odd = scratch.path().join("a:b,c\\d e\n").join("x".repeat(250));
    std::fs::create_dir_all(odd.join("layer")).unwrap();
    std::fs::write(odd.join("layer/f"), "here").unwrap();
    let (layers, base, target) = ([odd.join("layer")], odd.join("base"), odd.join("rootfs"));
    let check = || {
        assert_eq!(std::fs::read_to_string(target.join("f")).unwrap(), "here");
        assert_eq!(mounts_under(&odd).unwrap(), [target.canonicalize().unwrap()]);
        mount_rootfs(&layers, &base, &target, None).unwrap();
        unmount_rootfs(&target).unwrap();
        assert!(mounts_under(&odd).unwrap().is_empty());
    };
    mount_rootfs(&layers, &base, &target, None).unwrap();
    check();
    let (upper, work) = (base.join("upper"), base.join("work"));
    mount_by_options(&layers, &upper, &work, &target).unwrap();
    check();
}

#[test]
fn as_many_layers_as_the_kernel_takes() {
    let scratch = Scratch::new();
    let layers: Vec<PathBuf> = (0..=MAX_LAYERS)
        .map(|n| scratch.layer(&format!("{n}"), &[&format!("f{n}"), "f"]))
        .collect();
    mount_rootfs(&layers[..MAX_LAYERS], &scratch.base(), &scratch.target(), None).unwrap();
    assert_eq!(scratch.read("f0"), "0");
    assert_eq!(scratch.read("f"), "499");
    unmount_rootfs(&scratch.target()).unwrap();
    let result = mount_rootfs(&layers, &scratch.base(), &scratch.target(), None);
    assert!(matches!(result, Err(MountRootfsError::TooManyLayers { found: 501, allowed: 500 })));

    let (upper, work) = (scratch.base().join("upper"), scratch.base().join("work"));
    mount_by_options(&layers[..MAX_LAYERS], &upper, &work, &scratch.target()).unwrap();
    assert_eq!(scratch.read("f0"), "0");
}

#[test]
fn lines_of_mountinfo() {
    let line = br"36 35 98:0 /mnt1 /a\040b rw,noatime shared:1 master:2 - overlay none rw,upperdir=/x\054y";
    let mount = MountInfo::parse(line).unwrap();
    assert_eq!(mount.point, Path::new("/a b"));
    assert!(mount.is_overlay_over(Path::new("/x,y")));
    assert!(!mount.is_overlay_over(Path::new("/x")));
    assert!(MountInfo::parse(b"").is_none());
    assert_eq!(unescape(br"\134\400\12"), br"\\400\12");
}
