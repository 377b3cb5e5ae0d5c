//! Everything about a directory tree that a layer can say, for comparing two of them.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, i64),
    pub device: u64,
    pub links: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub target: Option<Vec<u8>>,
    pub contents: Option<Vec<u8>>,
}

/// All nodes by path; the directory itself is the empty one.
pub(crate) fn list(directory: &Path) -> BTreeMap<Vec<u8>, Node> {
    let mut nodes = BTreeMap::new();
    visit(directory, directory, &mut nodes);
    nodes
}

fn visit(root: &Path, path: &Path, nodes: &mut BTreeMap<Vec<u8>, Node>) {
    let metadata = match path.symlink_metadata() {
        // Overlayfs lists a whiteout, as a name of nothing, where no other layer has the directory.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        metadata => metadata.unwrap(),
    };
    let kind = match metadata.mode() & libc::S_IFMT {
        libc::S_IFREG => '-',
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        _ => '?',
    };
    let xattrs = xattr::list(path).unwrap().map(|name| {
        let value = xattr::get(path, &name).unwrap().unwrap();
        (name.as_bytes().to_vec(), value)
    });
    let node = Node {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if kind == '-' { metadata.len() } else { 0 },
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        device: metadata.rdev(),
        links: if kind == 'd' { 1 } else { metadata.nlink() },
        xattrs: xattrs.collect(),
        target: (kind == 'l')
            .then(|| std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()),
        contents: (kind == '-').then(|| Sha256::digest(std::fs::read(path).unwrap()).to_vec()),
    };
    let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
    nodes.insert(name, node);
    if kind == 'd' {
        for entry in std::fs::read_dir(path).unwrap() {
            visit(root, &entry.unwrap().path(), nodes);
        }
    }
}
