//! `/dev` of a container, for a runtime that would make it by paths.
//!
//! runc 1.1 makes the places of its mounts below `/dev` without looking whether that has become a link
//! since (CVE-2024-45310). So it gets the whole of it as one mount, made here where nobody else can write.
//! `/dev/mqueue` is an empty directory then: that file system belongs to a namespace which is not there
//! yet, and message queues work without.

use std::io;
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount};

/// The devices: name, major and minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The group of terminals inside.
const TTY: u32 = 5;

/// Mounts it on a directory. `root` is the container's root on the machine. Called in mounts that are
/// this process's own.
pub(super) fn make(dir: &Path, root: u32) -> io::Result<()> {
    let owned = format!("uid={root},gid={root}");
    let flags = MountFlags::NOSUID | MountFlags::STRICTATIME;
    mount_on(dir, "tmpfs", flags, &format!("mode=755,size=65536k,{owned}"))?;
    for (name, major, minor) in DEVICES {
        let path = dir.join(name);
        let device = makedev(major, minor);
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), device)?;
        // Not by the mode above, of which the umask may take something.
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666))?;
        chown(&path, Some(root), Some(root))?;
    }
    for (name, target) in LINKS {
        symlink(target, dir.join(name))?;
        lchown(dir.join(name), Some(root), Some(root))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        std::fs::create_dir(dir.join(name))?;
        chown(dir.join(name), Some(root), Some(root))?;
    }
    let terminals = format!("newinstance,ptmxmode=0666,mode=0620,gid={}", root + TTY);
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_on(&dir.join("pts"), "devpts", flags, &terminals)?;
    chown(dir.join("pts"), Some(root), Some(root))?;
    let flags = flags | MountFlags::NODEV;
    mount_on(&dir.join("shm"), "tmpfs", flags, &format!("mode=1777,size=65536k,{owned}"))
}

fn mount_on(dir: &Path, kind: &str, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(mount(kind, dir, kind, flags, options.as_c_str())?)
}
