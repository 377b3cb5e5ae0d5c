//! Removal of a tree that a stranger made.
//!
//! A recursive removal needs a stack frame and a descriptor for each level, and a container can nest
//! directories by the hundred thousand. So nothing is followed down: a directory that is found below
//! the first level is moved up to it, where it waits for its turn.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

/// Removes a directory with all that is in it; one that is not there is fine.
pub(crate) fn remove(root: &Path) -> io::Result<()> {
    let mut waiting = VecDeque::new();
    let mut next_name = 0_u64;
    match fs::symlink_metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(root),
        Ok(_) => {}
    }
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            waiting.push_back(entry.file_name());
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    while let Some(name) = waiting.pop_front() {
        let dir = root.join(name);
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push_back(move_up(root, &entry.path(), &mut next_name)?);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(&dir)?;
    }
    fs::remove_dir(root)
}

/// Moves a directory to a name below `root` that is free, and gives that.
fn move_up(root: &Path, dir: &Path, next_name: &mut u64) -> io::Result<OsString> {
    loop {
        let name = OsString::from(format!("removed-{next_name}"));
        *next_name += 1;
        let target = root.join(&name);
        // A name may be taken by what waits there, or by what an earlier removal left.
        if fs::symlink_metadata(&target).is_err() {
            fs::rename(dir, target)?;
            return Ok(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, Mode, OFlags};

    use super::*;

    #[test]
    fn what_is_nested_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("removed-0/inner")).unwrap();
        fs::write(root.join("removed-0/file"), "x").unwrap();
        fs::write(dir.path().join("outside"), "x").unwrap();
        symlink(dir.path(), root.join("removed-0/inner/link")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::openat(CWD, &root, flags, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        remove(&root).unwrap();
        assert!(!root.exists());
        assert!(dir.path().join("outside").exists(), "links are not followed");
        remove(&root).unwrap();
    }
}
