//! What is mounted, as the kernel lists it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{MountRootfsError, failed_io};

/// A mount of this mount namespace.
pub(super) struct MountInfo {
    pub point: PathBuf,
    kind: Vec<u8>,
    options: Vec<u8>,
}

impl MountInfo {
    /// A path that was given to the kernel as a descriptor is listed as that; who mounts at a target
    /// of ours is us.
    pub fn is_overlay_over(&self, upper: &Path) -> bool {
        let wanted = [b"upperdir=", upper.as_os_str().as_bytes()].concat();
        let is_ours = |option: &[u8]| match option.strip_prefix(b"upperdir=") {
            Some(path) => {
                option == wanted
                    || path.starts_with(b"/proc/self/fd/")
                    || path.iter().all(u8::is_ascii_digit)
            }
            None => false,
        };
        self.kind == b"overlay"
            && self.options.split(|&byte| byte == b',').any(|option| is_ours(&unescape(option)))
    }

    /// A line of `/proc/self/mountinfo`: ids, root, point, options, optional fields, `-`, type,
    /// source, super block options.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let point = fields.nth(4)?;
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self {
            point: PathBuf::from(OsStr::from_bytes(&unescape(point))),
            kind: kind.to_vec(),
            options: options.to_vec(),
        })
    }
}

pub(super) fn read_mounts() -> io::Result<Vec<MountInfo>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(MountInfo::parse).collect())
}

pub(super) fn top_mount_at(target: &Path) -> Result<Option<MountInfo>, MountRootfsError> {
    let real = target.canonicalize().map_err(failed_io("resolving", target))?;
    let mounts = read_mounts().map_err(failed_io("listing mounts at", target))?;
    Ok(mounts.into_iter().rev().find(|mount| mount.point == real))
}

/// The kernel writes blanks and the like as `\040`.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}
