//! Root file systems of instances: an image below, a writable directory above.
//!
//! The image is one EROFS file system ([`ErofsImage`]), or the directories of its layers where the
//! kernel has none; [`KernelPath`] says which, and is found out when a store is opened.
//!
//! Through the mount API of file descriptors where the kernel has its `lowerdir+` (6.7), else through
//! mount(2), whose options must fit one page: there layers are named by the numbers of descriptors,
//! which are short whatever the data directory is called, and hold no character that the option's
//! syntax would take for its own. Never through mount(8).

mod attached;
mod erofs;
mod id_map;
mod kernel;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_types::IdRange;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};
use rustix::thread::UnshareFlags;

pub use erofs::ErofsImage;
pub use id_map::IdMap;
pub use kernel::KernelPath;
pub(crate) use kernel::probe;

use attached::Attached;
use id_map::ShiftedLayers;
use table::{read_mounts, top_mount_at};

/// Lower directories that overlayfs stacks at most (`OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;

/// Most bytes of options for mount(2): a page, with its NUL.
const MOUNT_OPTIONS_MAX: usize = 4095;

/// Why a root file system could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountRootfsError {
    /// More layers than overlayfs takes.
    #[error("the image has {found} layers, overlayfs stacks at most {allowed}")]
    TooManyLayers {
        /// Layers of the image.
        found: usize,
        /// What this kernel's interface takes.
        allowed: usize,
    },
    /// Something else is mounted there.
    #[error("{target:?} is already a mount point", target = .0.display())]
    Occupied(PathBuf),
    /// The ids of the layers' files cannot be those of an instance.
    #[error(
        "the file system of {path:?} cannot map the ids of files, which an instance with users of \
         its own needs: keep the data on ext4, xfs or btrfs, or say user_namespace = false in the \
         manifest",
        path = .path.display()
    )]
    NoIdMaps {
        /// The layers.
        path: PathBuf,
    },
    /// The writable directory is of a time when the instance had other ids.
    #[error("{path:?} belongs to {found}, not to the instance's ids {ids}", path = .path.display())]
    OtherOwner {
        /// The writable directory.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// Whose it should be.
        ids: IdRange,
    },
    /// The kernel has no EROFS.
    #[error("the kernel has no EROFS file system (modprobe erofs)")]
    NoErofs,
    /// A file of an image did not become a device.
    #[error("making a device of {path:?}", path = .path.display())]
    Loop {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: longshore_loop::AttachError,
    },
    /// The kernel has no overlayfs.
    #[error("the kernel has no overlay file system (modprobe overlay)")]
    NoOverlay,
    /// The system refused.
    #[error("{action} {path:?}", path = .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Why a root file system could not be unmounted, or mounts not be listed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}", path = .path.display())]
pub struct UnmountError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> MountRootfsError {
    let failed = failed_io(action, path);
    move |errno| failed(errno.into())
}

fn failed_io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountRootfsError {
    let path = path.to_owned();
    move |source| MountRootfsError::Io { action, path, source }
}

/// What of an image lies below the writable directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageTree {
    /// Directories of layers, lowest first; none for an image without layers.
    Directories(Vec<PathBuf>),
    /// A file system.
    Erofs(Arc<ErofsImage>),
}

/// Mounts an image at `target`, writable; [`mount_rootfs`] says the rest.
pub(crate) fn mount_tree(
    tree: &ImageTree,
    base: &Path,
    target: &Path,
    ids: Option<IdMap<'_>>,
) -> Result<(), MountRootfsError> {
    let image = match tree {
        ImageTree::Directories(layers) => return mount_rootfs(layers, base, target, ids),
        ImageTree::Erofs(image) => image,
    };
    let Some(Above { upper, work }) = prepare(base, target)? else { return Ok(()) };
    let view = image.view()?;
    let root = rustix::fs::fstat(&view).map_err(failed("looking at", image.metadata()))?;
    create_upper(&upper, (root.st_mode & 0o7777, root.st_uid, root.st_gid), ids)?;
    if let Some(ids) = ids {
        ids.shift(&view, image.metadata())?;
    }
    let mut attached = Attached::default();
    let lower = attached.attach(&view, target.with_file_name("lower").join("0"))?.to_owned();
    mount_overlay(&[lower], &upper, &work, target)?;
    attached.detach()
}

/// Mounts the union of `layers` (lowest first, may be empty) at `target`, writable.
///
/// What is written goes to `base/upper`; `base` must lie on one file system and be used for this
/// mount only. `base` and `target` are made when they are not there; both belong in a directory that
/// only root may enter. Devices in the tree do nothing (`nodev`). When the same root file system is
/// mounted there already, nothing is done.
///
/// With `ids` every file belongs to the id of the machine that its owner is in that range, on disk
/// too for what is written; a file of an id that has none there is nobody's and cannot be changed.
/// The layers are then mounted for a moment in a directory `lower` beside `target`.
pub fn mount_rootfs(
    layers: &[PathBuf],
    base: &Path,
    target: &Path,
    ids: Option<IdMap<'_>>,
) -> Result<(), MountRootfsError> {
    let Some(Above { upper, work }) = prepare(base, target)? else { return Ok(()) };
    create_upper(&upper, root_attributes(layers.last())?, ids)?;
    // Overlayfs wants one lower directory at least.
    let no_layers = [base.join("empty")];
    let layers = match layers {
        [] => {
            create_directory(&no_layers[0], 0o755)?;
            &no_layers[..]
        }
        layers => layers,
    };
    if layers.len() > MAX_LAYERS {
        let found = layers.len();
        return Err(MountRootfsError::TooManyLayers { found, allowed: MAX_LAYERS });
    }
    match ids {
        None => mount_overlay(layers, &upper, &work, target),
        Some(ids) => {
            let shifted = ShiftedLayers::attach(layers, &target.with_file_name("lower"), ids)?;
            mount_overlay(&shifted.layers, &upper, &work, target)?;
            shifted.detach()
        }
    }
}

/// The directories of an overlay that are written to.
struct Above {
    upper: PathBuf,
    work: PathBuf,
}

/// Makes the directories that a mount needs, but for the upper one; `None` when it is there already.
fn prepare(base: &Path, target: &Path) -> Result<Option<Above>, MountRootfsError> {
    let above = Above { upper: base.join("upper"), work: base.join("work") };
    for path in [base, &above.work, target] {
        create_directory(path, 0o700)?;
    }
    match top_mount_at(target)? {
        None => Ok(Some(above)),
        Some(mounted) if mounted.is_overlay_over(&above.upper) => Ok(None),
        Some(_) => Err(MountRootfsError::Occupied(target.to_owned())),
    }
}

fn mount_overlay(
    layers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> Result<(), MountRootfsError> {
    match mount_by_descriptors(layers, upper, work, target)? {
        Outcome::Mounted => Ok(()),
        Outcome::Unsupported => mount_by_options(layers, upper, work, target),
    }
}

fn create_directory(path: &Path, mode: u32) -> Result<(), MountRootfsError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed_io("creating", path))
}

/// Mode, owner and group of the root that the topmost layer gives an image.
fn root_attributes(top: Option<&PathBuf>) -> Result<(u32, u32, u32), MountRootfsError> {
    let Some(top) = top else { return Ok((0o755, 0, 0)) };
    let metadata = top.metadata().map_err(failed_io("looking at", top))?;
    Ok((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
}

/// The upper directory is the root that the container sees, so a new one gets the attributes of the
/// image's root. Made under another name first: a crash must not leave one without them.
fn create_upper(
    upper: &Path,
    (mode, uid, gid): (u32, u32, u32),
    ids: Option<IdMap<'_>>,
) -> Result<(), MountRootfsError> {
    let ids = ids.map(|map| map.ids);
    if let Ok(metadata) = upper.metadata() {
        let found = metadata.uid();
        return match ids.filter(|ids| !(ids.first()..=ids.last()).contains(&found)) {
            Some(ids) => Err(MountRootfsError::OtherOwner { path: upper.to_owned(), found, ids }),
            None => Ok(()),
        };
    }
    let new = upper.with_extension("new");
    create_directory(&new, 0o755)?;
    // An owner that has no id inside would leave the instance without a root that it can use.
    let shift = |id: u32| ids.map_or(id, |ids| ids.on_machine(id).unwrap_or(ids.first()));
    let (uid, gid) = (shift(uid), shift(gid));
    std::os::unix::fs::chown(&new, Some(uid), Some(gid))
        .and_then(|()| std::fs::set_permissions(&new, PermissionsExt::from_mode(mode)))
        .and_then(|()| std::fs::rename(&new, upper))
        .map_err(failed_io("preparing", &new))
}

enum Outcome {
    Mounted,
    /// This kernel has not got the interface.
    Unsupported,
}

fn mount_by_descriptors(
    layers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> Result<Outcome, MountRootfsError> {
    let context = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Ok(Outcome::Unsupported),
        Err(Errno::NODEV) => return Err(MountRootfsError::NoOverlay),
        Err(errno) => return Err(failed("opening an overlay for", target)(errno)),
    };
    if takes_any_option() {
        return Ok(Outcome::Unsupported);
    }
    let mut held = Vec::new();
    let set = |key: &str, path: &Path, held: &mut Vec<OwnedFd>| {
        let short = short_path(path, held)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), key, short.as_os_str())
            .map_err(failed("setting an overlay option to", path))
    };
    for (idx, layer) in layers.iter().rev().enumerate() {
        match set("lowerdir+", layer, &mut held) {
            Err(MountRootfsError::Io { source, .. })
                if idx == 0 && source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
            {
                return Ok(Outcome::Unsupported);
            }
            result => result?,
        }
    }
    set("upperdir", upper, &mut held)?;
    set("workdir", work, &mut held)?;
    for (key, value) in OPTIONS {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)
            .map_err(failed("setting an overlay option for", target))?;
    }
    rustix::mount::fsconfig_create(context.as_fd())
        .map_err(|errno| with_log(&context, "creating the overlay for", target, errno))?;
    let mount = rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV,
    )
    .map_err(failed("mounting the overlay for", target))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, target, flags)
        .map_err(failed("moving the overlay to", target))?;
    Ok(Outcome::Mounted)
}

/// Before 6.5 overlayfs takes every option as text and looks at it only when the file system is made,
/// so that `lowerdir+` seems to be known. An option without its value shows the difference.
fn takes_any_option() -> bool {
    // Not in the context that is mounted, which would keep the kernel's complaint.
    rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .and_then(|context| rustix::mount::fsconfig_set_flag(context.as_fd(), "lowerdir+"))
        .is_ok()
}

/// `index` guards against one upper directory in two mounts by failing with EBUSY while an unmounted
/// one is still in use somewhere; our upper directories have one mount each.
const OPTIONS: [(&str, &str); 1] = [("index", "off")];

/// The kernel's own words about a failed mount, which it keeps for the context's owner to read.
fn with_log(
    context: &OwnedFd,
    action: &'static str,
    target: &Path,
    errno: Errno,
) -> MountRootfsError {
    let mut message = [0; 1024];
    let error = io::Error::from(errno);
    let error = match rustix::io::read(context, &mut message[..]) {
        Ok(n_bytes) => {
            let text = String::from_utf8_lossy(&message[..n_bytes]);
            io::Error::new(error.kind(), format!("{error}: {}", text.trim()))
        }
        Err(_) => error, // Older kernels keep no words.
    };
    failed_io(action, target)(error)
}

/// A string option holds at most 255 bytes; a longer path is named by a descriptor.
fn short_path(path: &Path, held: &mut Vec<OwnedFd>) -> Result<PathBuf, MountRootfsError> {
    if path.as_os_str().len() <= 255 && !path.as_os_str().as_bytes().contains(&b'\\') {
        return Ok(path.to_owned());
    }
    path_by_descriptor(path, held)
}

fn path_by_descriptor(path: &Path, held: &mut Vec<OwnedFd>) -> Result<PathBuf, MountRootfsError> {
    let directory = open_directory(path)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    held.push(directory);
    Ok(short)
}

fn open_directory(path: &Path) -> Result<OwnedFd, MountRootfsError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(failed("opening", path))
}

fn mount_by_options(
    layers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> Result<(), MountRootfsError> {
    let mut held = Vec::new();
    let mut number = |path: &Path| -> Result<String, MountRootfsError> {
        let directory = open_directory(path)?;
        let number = directory.as_raw_fd().to_string();
        held.push(directory);
        Ok(number)
    };
    let mut options = String::from("lowerdir=");
    let mut n_fitting = 0;
    for (idx, layer) in layers.iter().rev().enumerate() {
        if idx > 0 {
            options.push(':');
        }
        options.push_str(&number(layer)?);
        n_fitting += usize::from(options.len() + 100 < MOUNT_OPTIONS_MAX);
    }
    // By its path where that can be, for then the list of mounts says whose upper directory it is.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    for (key, path) in [("upperdir", upper), ("workdir", work)] {
        let name = match path.to_str() {
            Some(text) if path.is_absolute() && text.bytes().all(is_plain) && text.len() <= 255 => {
                text.to_owned()
            }
            _ => number(path)?,
        };
        options.push_str(&format!(",{key}={name}"));
    }
    for (key, value) in OPTIONS {
        options.push_str(&format!(",{key}={value}"));
    }
    if options.len() > MOUNT_OPTIONS_MAX {
        return Err(MountRootfsError::TooManyLayers { found: layers.len(), allowed: n_fitting });
    }
    let options = CString::new(options).expect("numbers hold no NUL");
    let point = format!("/proc/self/fd/{}", number(target)?);
    match mount_among_descriptors(&point, &options) {
        Ok(()) => Ok(()),
        Err(Errno::NODEV) => Err(MountRootfsError::NoOverlay),
        Err(errno) => Err(failed("mounting the overlay at", target)(errno)),
    }
}

/// Mounts with options that name directories by the numbers of their descriptors alone: in a thread
/// whose working directory is that of the descriptors, and not that of the other threads.
fn mount_among_descriptors(point: &str, options: &CString) -> Result<(), Errno> {
    let mount = || {
        // SAFETY: what this thread no longer shares are its root, working directory and umask.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::process::chdir("/proc/self/fd")?;
        rustix::mount::mount("overlay", point, "overlay", MountFlags::NODEV, &**options)
    };
    let outcome = std::thread::scope(|scope| scope.spawn(mount).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Unmounts whatever is mounted at `target`; nothing mounted is fine. What is still in use is
/// detached: it disappears from here at once and goes when its last user does.
pub fn unmount_rootfs(target: &Path) -> Result<(), UnmountError> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => continue, // Another may lie below it.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => {}
            Err(errno) => {
                return Err(UnmountError {
                    action: "unmounting",
                    path: target.to_owned(),
                    source: errno.into(),
                });
            }
        }
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => {
                return Err(UnmountError {
                    action: "detaching",
                    path: target.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
}

/// Unmounts all that is mounted at or below `directory`, what was mounted last first.
pub fn unmount_under(directory: &Path) -> Result<(), UnmountError> {
    mounts_under(directory)?.iter().rev().try_for_each(|point| unmount_rootfs(point))
}

/// Mount points at or below `directory` in this mount namespace, in the kernel's order.
pub fn mounts_under(directory: &Path) -> Result<Vec<PathBuf>, UnmountError> {
    let failed = |source| UnmountError {
        action: "listing mounts under",
        path: directory.to_owned(),
        source,
    };
    // The kernel lists real paths.
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mounts = read_mounts().map_err(failed)?;
    let points = mounts.into_iter().map(|mount| mount.point);
    Ok(points.filter(|point| point.starts_with(&directory)).collect())
}
