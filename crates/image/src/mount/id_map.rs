//! Layers as they look to the users of an instance: an id of a file is shifted into the range of the
//! instance, so that a layer is stored once, whoever runs it.
//!
//! The kernel shifts ids for a mount, and overlayfs takes such mounts below it since 5.19. All
//! layers that are directories lie in one, so one mount of that does for them all, whatever their
//! number; an image that is a file system of its own has a mount of its own. An upper directory may
//! not be on such a mount (overlayfs goes read-only then), so there files are written with the
//! shifted ids.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use longshore_types::IdRange;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::attached::Attached;
use super::{MountRootfsError, failed, failed_io};

/// Who the users of an image are on the machine.
#[derive(Debug, Clone, Copy)]
pub struct IdMap<'a> {
    /// The file that the instance's user namespace is mounted on.
    pub users: &'a Path,
    /// The ids of that namespace.
    pub ids: IdRange,
}

impl IdMap<'_> {
    /// Opens the user namespace whose ids are meant.
    fn open(&self) -> Result<OwnedFd, MountRootfsError> {
        rustix::fs::open(self.users, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("opening the user namespace", self.users))
    }

    /// Shifts the ids of a mount that is attached nowhere yet; `what` is mounted.
    pub(super) fn shift(&self, view: &OwnedFd, what: &Path) -> Result<(), MountRootfsError> {
        shift_ids(view, &self.open()?, what)
    }
}

/// Directories of layers, attached with shifted ids for as long as this lives.
pub(super) struct ShiftedLayers {
    /// Where each of them is now, in the same order.
    pub layers: Vec<PathBuf>,
    attached: Attached,
}

impl ShiftedLayers {
    /// Attaches `layers` below `point`, which is made.
    pub(super) fn attach(
        layers: &[PathBuf],
        point: &Path,
        map: IdMap<'_>,
    ) -> Result<Self, MountRootfsError> {
        let users = map.open()?;
        let mut shifted =
            Self { layers: Vec::with_capacity(layers.len()), attached: Attached::default() };
        let mut parents: Vec<(&Path, PathBuf)> = Vec::new();
        for layer in layers {
            let (parent, name) =
                layer.parent().zip(layer.file_name()).unwrap_or((layer, "".as_ref()));
            let idx = match parents.iter().position(|(known, _)| *known == parent) {
                Some(idx) => idx,
                None => {
                    let view = shifted_view(parent, &users)?;
                    let point = point.join(parents.len().to_string());
                    let point = shifted.attached.attach(&view, point)?;
                    parents.push((parent, point.to_owned()));
                    parents.len() - 1
                }
            };
            shifted.layers.push(parents[idx].1.join(name));
        }
        Ok(shifted)
    }

    /// Takes them away again; what overlayfs has of them stays.
    pub(super) fn detach(self) -> Result<(), MountRootfsError> {
        self.attached.detach()
    }
}

/// A read-only mount of `directory`, attached nowhere, whose ids are shifted into those of `users`.
fn shifted_view(directory: &Path, users: &OwnedFd) -> Result<OwnedFd, MountRootfsError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view =
        open_tree(CWD, directory, flags).map_err(failed("cloning the mount of", directory))?;
    shift_ids(&view, users, directory)?;
    Ok(view)
}

fn shift_ids(view: &OwnedFd, users: &OwnedFd, what: &Path) -> Result<(), MountRootfsError> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).expect("an open descriptor is not negative"),
    };
    // SAFETY: the path is an empty C string, and the structure is read for its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            view.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    Err(match source.raw_os_error() {
        // The kernel says so of file systems that cannot, and of nothing else here.
        Some(libc::EINVAL) => MountRootfsError::NoIdMaps { path: what.to_owned() },
        _ => failed_io("mapping the ids of", what)(source),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;

    use super::*;
    use crate::mount::tests::Scratch;
    use crate::mount::{
        ImageTree, KernelPath, mount_by_options, mount_rootfs, mount_tree, mounts_under,
    };

    /// A process in a user namespace with the range.
    struct Users(Child);

    impl Users {
        fn new(ids: IdRange) -> Self {
            let child = Command::new("unshare")
                .args(["--user", "cat"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("unshare is of the package util-linux");
            let own = fs::read_link("/proc/self/ns/user").unwrap();
            let theirs = format!("/proc/{}/ns/user", child.id());
            while fs::read_link(&theirs).is_ok_and(|theirs| theirs == own) {
                std::thread::yield_now();
            }
            for file in ["uid_map", "gid_map"] {
                let map = format!("0 {} {}", ids.first(), IdRange::LEN);
                fs::write(format!("/proc/{}/{file}", child.id()), map).unwrap();
            }
            Self(child)
        }

        fn path(&self) -> PathBuf {
            format!("/proc/{}/ns/user", self.0.id()).into()
        }
    }

    impl Drop for Users {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    fn owner(path: &Path) -> (u32, u32) {
        let metadata = path.symlink_metadata().unwrap();
        (metadata.uid(), metadata.gid())
    }

    const FIRST: u32 = 0x2bcd_0000;

    #[test]
    fn two_instances_see_one_layer_each_with_its_own_ids() {
        let scratch = Scratch::new();
        let (low, high) = (scratch.path().join("layers/low"), scratch.path().join("layers/high"));
        for (layer, file, (uid, gid)) in
            [(&low, "a", (0, 0)), (&high, "b", (33, 34)), (&high, "c", (70_000, 5))]
        {
            fs::create_dir_all(layer).unwrap();
            fs::write(layer.join(file), file).unwrap();
            chown(layer.join(file), Some(uid), Some(gid)).unwrap();
        }
        chown(&high, Some(7), Some(8)).unwrap();
        fs::set_permissions(&high, fs::Permissions::from_mode(0o750)).unwrap();
        for number in [0, 1] {
            let ids = IdRange::new(FIRST + number * IdRange::LEN).unwrap();
            let users = Users::new(ids);
            let map = IdMap { users: &users.path(), ids };
            let dir = scratch.path().join(number.to_string());
            fs::create_dir(&dir).unwrap();
            let (base, target) = (dir.join("base"), dir.join("rootfs"));
            mount_rootfs(&[low.clone(), high.clone()], &base, &target, Some(map)).unwrap();
            drop(users);
            let at = |id: u32| ids.on_machine(id).unwrap();
            assert_eq!(owner(&target), (at(7), at(8)));
            assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o750);
            assert_eq!(owner(&target.join("a")), (at(0), at(0)));
            assert_eq!(owner(&target.join("b")), (at(33), at(34)));
            // There is no such id inside: the kernel shows it as nobody's.
            assert_eq!(owner(&target.join("c")), (65_534, at(5)));
            fs::write(target.join("b"), "changed").unwrap();
            assert_eq!(owner(&base.join("upper/b")), (at(33), at(34)));
            assert_eq!(mounts_under(&dir).unwrap(), [target.canonicalize().unwrap()]);
        }
        assert_eq!(owner(&high.join("b")), (33, 34));
        assert_eq!(fs::read_to_string(high.join("b")).unwrap(), "b");
    }

    #[test]
    fn an_image_that_is_a_file_system_has_the_ids_of_each_instance() {
        for kernel in [KernelPath::Loop, crate::mount::tests::best()] {
            let scratch = Scratch::new();
            let image = crate::mount::kernel::write_probe_image(kernel, scratch.path()).unwrap();
            let tree = ImageTree::Erofs(Arc::new(image));
            for number in [5, 6] {
                let ids = IdRange::new(FIRST + number * IdRange::LEN).unwrap();
                let users = Users::new(ids);
                let map = IdMap { users: &users.path(), ids };
                let dir = scratch.path().join(number.to_string());
                fs::create_dir(&dir).unwrap();
                let (base, target) = (dir.join("base"), dir.join("rootfs"));
                mount_tree(&tree, &base, &target, Some(map)).unwrap();
                assert_eq!(owner(&target), (ids.first(), ids.first()));
                assert_eq!(owner(&target.join("probe")), (ids.first(), ids.first()));
                fs::write(target.join("probe"), "changed").unwrap();
                assert_eq!(owner(&base.join("upper/probe")), (ids.first(), ids.first()));
                assert_eq!(mounts_under(&dir).unwrap(), [target.canonicalize().unwrap()]);
            }
        }
    }

    #[test]
    fn what_a_crash_left_attached_is_in_nobodys_way_and_cannot_be_removed_through() {
        let scratch = Scratch::new();
        let layer = scratch.path().join("layers/one");
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("a"), "a").unwrap();
        let ids = IdRange::new(FIRST + 2 * IdRange::LEN).unwrap();
        let users = Users::new(ids);
        let map = IdMap { users: &users.path(), ids };
        let point = scratch.path().join("lower");
        mem::forget(ShiftedLayers::attach(std::slice::from_ref(&layer), &point, map).unwrap());
        assert!(fs::remove_dir_all(&point).is_err());
        assert!(layer.join("a").exists());
        let (base, target) = (scratch.path().join("base"), scratch.path().join("rootfs"));
        mount_rootfs(std::slice::from_ref(&layer), &base, &target, Some(map)).unwrap();
        assert_eq!(mounts_under(scratch.path()).unwrap(), [target.canonicalize().unwrap()]);
    }

    /// The interface of kernels before 6.7.
    #[test]
    fn mount_options_name_shifted_layers_too() {
        let scratch = Scratch::new();
        let layers: Vec<PathBuf> =
            (0..127).map(|idx| scratch.path().join(format!("layers/{idx}"))).collect();
        for (idx, layer) in layers.iter().enumerate() {
            fs::create_dir_all(layer).unwrap();
            fs::write(layer.join(format!("f{idx}")), "").unwrap();
        }
        let ids = IdRange::new(FIRST + 3 * IdRange::LEN).unwrap();
        let users = Users::new(ids);
        let map = IdMap { users: &users.path(), ids };
        let (target, upper, work) = (
            scratch.path().join("rootfs"),
            scratch.path().join("upper"),
            scratch.path().join("work"),
        );
        for dir in [&target, &upper, &work] {
            fs::create_dir(dir).unwrap();
        }
        let shifted = ShiftedLayers::attach(&layers, &scratch.path().join("lower"), map).unwrap();
        mount_by_options(&shifted.layers, &upper, &work, &target).unwrap();
        shifted.detach().unwrap();
        assert_eq!(owner(&target.join("f0")), (ids.first(), ids.first()));
        assert_eq!(owner(&target.join("f126")), (ids.first(), ids.first()));
    }

    #[test]
    fn a_file_system_that_cannot_is_named() {
        let scratch = Scratch::new();
        let ids = IdRange::new(FIRST + 4 * IdRange::LEN).unwrap();
        let users = Users::new(ids);
        let map = IdMap { users: &users.path(), ids };
        let (base, target) = (scratch.path().join("base"), scratch.path().join("rootfs"));
        // The file system of processes cannot on any kernel.
        let error = mount_rootfs(&["/proc/self".into()], &base, &target, Some(map)).unwrap_err();
        assert!(matches!(error, MountRootfsError::NoIdMaps { .. }), "{error:?}");
        assert!(error.to_string().contains("user_namespace = false"), "{error}");
        assert!(mounts_under(scratch.path()).unwrap().is_empty());
    }
}
