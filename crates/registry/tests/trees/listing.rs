//! Everything that a file system can say of a tree, for comparing trees.
//!
//! Every step is taken from an open directory: a path of the tree may be as long as the kernel allows,
//! and then there is no room for where the tree lies.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use sha2::{Digest as _, Sha256};

/// Fields of a node by their names.
pub type Node = BTreeMap<String, String>;

/// Nodes by path; the root is the empty one.
pub type Tree = BTreeMap<Vec<u8>, Node>;

/// The tree at a place.
pub fn list(root: &Path) -> Tree {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    let mut lister = Lister { tree: Tree::new(), links: BTreeMap::new() };
    let stat = rustix::fs::fstat(&root).unwrap();
    let node = lister.node(&root, b".", &stat, b"");
    lister.tree.insert(Vec::new(), node);
    lister.visit(&root, b"");
    // The names of one file are a group, called by the first of them.
    for names in lister.links.into_values().filter(|names| names.len() > 1) {
        let first = String::from_utf8_lossy(names.iter().min().unwrap()).into_owned();
        for name in names {
            lister.tree.get_mut(&name).unwrap().insert("linked with".to_owned(), first.clone());
        }
    }
    lister.tree
}

struct Lister {
    tree: Tree,
    links: BTreeMap<(u64, u64), Vec<Vec<u8>>>,
}

impl Lister {
    fn visit(&mut self, directory: &OwnedFd, path: &[u8]) {
        for entry in Dir::read_from(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let here = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let node = self.node(directory, name, &stat, &here);
            self.tree.insert(here.clone(), node);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = rustix::fs::openat(directory, name, flags, Mode::empty()).unwrap();
                self.visit(&child, &here);
            }
        }
    }

    fn node(&mut self, parent: &OwnedFd, name: &[u8], stat: &Stat, path: &[u8]) -> Node {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut node: Node = [
            ("type", format!("{kind:?}")),
            ("mode", format!("{:04o}", stat.st_mode & 0o7777)),
            ("owner", format!("{}:{}", stat.st_uid, stat.st_gid)),
            ("mtime", format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec)),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        match kind {
            FileType::RegularFile => {
                node.insert("size".to_owned(), stat.st_size.to_string());
                node.insert("sha256".to_owned(), hash(parent, name));
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).unwrap();
                node.insert("target".to_owned(), target.to_string_lossy().into_owned());
            }
            _ => {}
        }
        if kind != FileType::Directory {
            let names = self.links.entry((stat.st_dev, stat.st_ino)).or_default();
            names.push(path.to_vec());
        }
        let place = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
        let place = place.join(OsStr::from_bytes(name));
        for attribute in xattr::list(&place).unwrap() {
            let value = xattr::get(&place, &attribute).unwrap().unwrap_or_default();
            let key = format!("xattr {}", attribute.to_string_lossy());
            node.insert(key, String::from_utf8_lossy(&value).into_owned());
        }
        node
    }
}

fn hash(parent: &OwnedFd, name: &[u8]) -> String {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::empty()).unwrap();
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).unwrap();
    Sha256::digest(&bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
