//! Directory attributes that are lost when layers are unpacked apart from each other.
//!
//! Overlayfs shows a directory with the attributes of the topmost layer that has it. A layer may put
//! a file into `tmp/` without describing `tmp`; unpacked by itself it must have that directory, and
//! then hides the mode 1777 that a lower layer gave it. Unpacking each layer on top of the ones below
//! it would cure this, and would forbid both sharing a layer between images and unpacking layers side
//! by side. Instead the image gets one more layer on top, of nothing but the directories concerned.
//! Hardly any image needs one: builders describe parents.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use longshore_types::Digest;
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::unpack::{IMPLICIT_MODE, LayerReport, OPAQUE_XATTR};

/// The layers of an image that are mounted, lowest first: one that appears twice counts where it is
/// highest (overlayfs refuses a directory twice, and what is below is hidden anyway), and those below
/// a layer that hides everything are left out.
pub(crate) fn visible_layers(
    diff_ids: &[Digest],
    reports: &HashMap<Digest, LayerReport>,
) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let mut visible = Vec::new();
    for diff_id in diff_ids.iter().rev().filter(|diff_id| seen.insert(**diff_id)) {
        visible.push(*diff_id);
        if reports[diff_id].hides_all {
            break;
        }
    }
    visible.reverse();
    visible
}

/// One layer as this module looks at it.
pub(crate) struct LayerView<'a> {
    /// Its `fs` directory.
    pub root: OwnedFd,
    /// From its report.
    pub implicit_directories: &'a [Vec<u8>],
}

/// What overlayfs takes from the topmost directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectoryAttributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl DirectoryAttributes {
    /// Whether a directory that no entry describes already looks like this.
    fn are_implicit(&self) -> bool {
        (self.mode, self.uid, self.gid, self.mtime) == (IMPLICIT_MODE, 0, 0, (0, 0))
            && self.xattrs.is_empty()
    }
}

/// The directories that the image's own layer must hold, parents before children; empty when it
/// needs none. `layers` is ordered lowest first.
pub(crate) fn lost_attributes(
    layers: &[LayerView<'_>],
) -> io::Result<BTreeMap<Vec<u8>, DirectoryAttributes>> {
    let implicit: Vec<HashSet<&[u8]>> = layers
        .iter()
        .map(|layer| layer.implicit_directories.iter().map(Vec::as_slice).collect())
        .collect();
    let candidates: BTreeSet<&[u8]> = implicit.iter().flatten().copied().collect();
    let mut lost = BTreeMap::new();
    for path in candidates {
        match describe(layers, &implicit, path)? {
            Described::Below(attributes) if !attributes.are_implicit() => {}
            _ => continue,
        }
        for above in prefixes(path) {
            if lost.contains_key(above) {
                continue;
            }
            let attributes = match describe(layers, &implicit, above)? {
                Described::Below(attributes) | Described::OnTop(attributes) => attributes,
                Described::Nowhere => DirectoryAttributes {
                    mode: IMPLICIT_MODE,
                    uid: 0,
                    gid: 0,
                    mtime: (0, 0),
                    xattrs: Vec::new(),
                },
            };
            lost.insert(above.to_vec(), attributes);
        }
    }
    Ok(lost)
}

/// Where the entry that describes a directory is.
enum Described {
    /// In the topmost layer that has it, or it is no directory on top.
    OnTop(DirectoryAttributes),
    /// Below a layer that has it without describing it.
    Below(DirectoryAttributes),
    Nowhere,
}

fn describe(
    layers: &[LayerView<'_>],
    implicit: &[HashSet<&[u8]>],
    path: &[u8],
) -> io::Result<Described> {
    let mut hidden_by_implicit = false;
    for (layer, implicit) in layers.iter().zip(implicit).rev() {
        let found = look_up(&layer.root, path)?;
        if let Some(directory) = found.directory {
            if !implicit.contains(path) {
                let attributes = read_attributes(&directory)?;
                return Ok(match hidden_by_implicit {
                    true => Described::Below(attributes),
                    false => Described::OnTop(attributes),
                });
            }
            hidden_by_implicit = true;
        }
        if found.hides_below {
            break;
        }
    }
    Ok(Described::Nowhere)
}

struct Found {
    directory: Option<OwnedFd>,
    /// A whiteout, a file or an opaque directory on the way.
    hides_below: bool,
}

fn look_up(root: &OwnedFd, path: &[u8]) -> io::Result<Found> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    let mut hides_below = false;
    for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
        let missing = |hides_below| Ok(Found { directory: None, hides_below });
        directory = match rustix::fs::openat(&directory, part, flags, Mode::empty()) {
            Ok(child) => child,
            Err(Errno::NOENT) => return missing(hides_below),
            Err(Errno::NOTDIR | Errno::LOOP) => return missing(true),
            Err(errno) => return Err(errno.into()),
        };
        let mut value = [0; 1];
        hides_below |= match rustix::fs::fgetxattr(&directory, OPAQUE_XATTR, &mut value[..]) {
            Ok(_) => true,
            Err(Errno::NODATA) => false,
            Err(errno) => return Err(errno.into()),
        };
    }
    Ok(Found { directory: Some(directory), hides_below })
}

fn read_attributes(directory: &OwnedFd) -> io::Result<DirectoryAttributes> {
    let stat = rustix::fs::fstat(directory)?;
    let mut names = vec![0; rustix::fs::flistxattr_query(directory)?];
    rustix::fs::flistxattr(directory, &mut names[..])?;
    let mut xattrs = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name == OPAQUE_XATTR.as_bytes() {
            continue; // Hiding is the business of the layer that says it.
        }
        let mut value = vec![0; rustix::fs::fgetxattr_query(directory, name)?];
        rustix::fs::fgetxattr(directory, name, &mut value[..])?;
        xattrs.push((name.to_vec(), value));
    }
    Ok(DirectoryAttributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
        xattrs,
    })
}

/// Fills `target`, an empty directory of ours, with the directories.
pub(crate) fn write_directories(
    target: &Path,
    directories: &BTreeMap<Vec<u8>, DirectoryAttributes>,
) -> io::Result<()> {
    for (path, attributes) in directories {
        let path = target.join(OsStr::from_bytes(path));
        if path != *target {
            std::fs::create_dir(&path)?;
        }
        let directory = std::fs::File::open(&path)?;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(attributes.mode))?;
        for (name, value) in &attributes.xattrs {
            rustix::fs::fsetxattr(&directory, name.as_slice(), value, XattrFlags::empty())?;
        }
    }
    // Children first: making them moved their parents' times.
    for (path, attributes) in directories.iter().rev() {
        let time = Timespec { tv_sec: attributes.mtime.0, tv_nsec: attributes.mtime.1 };
        let times = Timestamps { last_access: time, last_modification: time };
        let directory = std::fs::File::open(target.join(OsStr::from_bytes(path)))?;
        rustix::fs::futimens(&directory, &times)?;
    }
    Ok(())
}

/// The root and every directory down to `path` itself.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(idx, _)| idx);
    std::iter::once(0)
        .chain(slashes)
        .map(|end| &path[..end])
        .chain((!path.is_empty()).then_some(path))
}
