//! What a tree has, in text, one line for each name: what is compared after every pull.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use longshore_e2e::image::sha256_of;

/// Path, type, mode, owner, size, time of change, extended attributes and SHA-256 of everything in a tree,
/// sorted by path. Bytes that are not UTF-8 are told apart by their numbers. The time and the
/// mode of the root are left out: the time is that of the writable directory above it, which is made at each mount,
/// and podman gives every root the mode 555.
pub fn of(root: &Path) -> Result<String> {
    let mut text = String::new();
    let mut pending = vec![PathBuf::new()];
    let mut paths = Vec::new();
    while let Some(dir) = pending.pop() {
        let full = root.join(&dir);
        let entries =
            fs::read_dir(&full).with_context(|| format!("cannot list {}", full.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in std::iter::once(PathBuf::new()).chain(paths) {
        let line = line(root, &root.join(&path))
            .with_context(|| format!("cannot look at {}", root.join(&path).display()))?;
        writeln!(text, "/{} {line}", path.as_os_str().as_bytes().escape_ascii())?;
    }
    Ok(text)
}

fn line(root: &Path, path: &Path) -> Result<String> {
    let metadata = path.symlink_metadata()?;
    let kind = metadata.file_type();
    // The size of a directory is that of the file system that it lies on.
    let (name, what) = match kind {
        kind if kind.is_dir() => ("dir", String::new()),
        kind if kind.is_symlink() => {
            let target = fs::read_link(path)?;
            ("link", target.as_os_str().as_bytes().escape_ascii().to_string())
        }
        kind if kind.is_file() => ("file", format!("{} {}", metadata.len(), sha256_of(path)?)),
        kind if kind.is_fifo() => ("fifo", String::new()),
        kind => bail!("{kind:?} is in no image of ours"),
    };
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    let attributes = attributes(path)?;
    let (mode, time) = match path == root {
        true => ("-".to_owned(), "-".to_owned()),
        false => (format!("{mode:o}"), metadata.mtime().to_string()),
    };
    Ok(format!("{name} {mode} {uid} {gid} {time} {what}{attributes}"))
}

fn attributes(path: &Path) -> Result<String> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut names: Vec<&[u8]> = names[..length]
        .split(|byte| *byte == 0)
        // What overlayfs notes for itself in a directory of a layer.
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
        .collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        write!(text, " {}={}", name.escape_ascii(), value[..length].escape_ascii())?;
    }
    Ok(text)
}

/// Where two listings differ first, for a person.
pub fn difference(expected: &str, found: &str) -> Option<String> {
    let mut pairs = expected.lines().zip(found.lines());
    if let Some((expected, found)) = pairs.find(|(expected, found)| expected != found) {
        return Some(format!("{found} instead of {expected}"));
    }
    let (n_expected, n_found) = (expected.lines().count(), found.lines().count());
    (n_expected != n_found).then(|| format!("{n_found} names instead of {n_expected}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn every_change_shows() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/file");
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(&file, "one").unwrap();
        symlink("file", dir.path().join("a/link")).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        let first = of(dir.path()).unwrap();
        assert_eq!(first.lines().count(), 4, "{first}");
        assert_eq!(difference(&first, &first), None);
        let changes: [&dyn Fn(); 5] = [
            &|| {
                fs::write(&file, "two").unwrap();
                fs::File::open(&file).unwrap().set_modified(time).unwrap();
            },
            &|| fs::set_permissions(&file, PermissionsExt::from_mode(0o4755)).unwrap(),
            &|| std::os::unix::fs::chown(&file, Some(5), None).unwrap(),
            &|| {
                let value = b"x";
                rustix::fs::lsetxattr(&file, "trusted.a", value, rustix::fs::XattrFlags::empty())
                    .unwrap();
            },
            &|| fs::write(dir.path().join("z"), "").unwrap(),
        ];
        let mut before = first;
        for change in changes {
            change();
            let after = of(dir.path()).unwrap();
            assert!(difference(&before, &after).is_some(), "{after}");
            before = after;
        }
    }
}
