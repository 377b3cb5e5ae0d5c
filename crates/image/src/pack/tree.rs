//! The files of an image before they become a tar.
//!
//! Paths are resolved within the tree: on a machine whose `/lib` is a link to `usr/lib`, the image
//! gets that link, and what is put at `/lib/x` lies at `/usr/lib/x`. No entry is ever below a link.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use super::{During as _, PackError};

/// How many links a path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// Where the bytes of a file come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Text(&'static str),
    Host(PathBuf),
}

/// An entry of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory { mode: u32 },
    File { content: Content, mode: u32 },
    Link { target: PathBuf },
}

/// The entries by their paths, relative to the root; parents come before what they contain.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<PathBuf, Node>,
}

/// What to do with parts of a path that the tree does not have yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Make directories.
    Plain,
    /// Make what this machine has there: a directory or a link.
    AsHere,
}

impl Tree {
    /// Puts a directory, or sets the mode of one.
    pub(super) fn directory(&mut self, path: &Path, mode: u32) -> Result<(), PackError> {
        let at = self.resolve(path, Missing::Plain)?;
        self.put(at, Node::Directory { mode })
    }

    /// Puts a file, over another if there is one.
    pub(super) fn file(
        &mut self,
        path: &Path,
        content: Content,
        mode: u32,
    ) -> Result<(), PackError> {
        let at = self.resolve(path, Missing::Plain)?;
        self.put(at, Node::File { content, mode })
    }

    /// Copies a file of this machine to the same path, with the links that lead to it.
    pub(super) fn copy_in_place(&mut self, host: &Path) -> Result<(), PackError> {
        let at = self.resolve(host, Missing::AsHere)?;
        self.put_host_file(at, host)
    }

    /// Copies a file, or a directory with all in it. Links within a directory stay links.
    pub(super) fn copy(&mut self, host: &Path, container: &Path) -> Result<(), PackError> {
        let metadata = fs::metadata(host).during("find", host)?;
        if metadata.is_file() {
            let at = self.resolve(container, Missing::Plain)?;
            return self.put_host_file(at, host);
        }
        if !metadata.is_dir() {
            return Err(PackError::Special { path: host.to_owned() });
        }
        self.directory(container, 0o755)?;
        for entry in fs::read_dir(host).during("list", host)? {
            let entry = entry.during("list", host)?;
            let (host, container) = (entry.path(), container.join(entry.file_name()));
            if entry.file_type().during("read", &host)?.is_symlink() {
                let target = fs::read_link(&host).during("read", &host)?;
                let at = self.resolve_parent(&container)?;
                self.put(at, Node::Link { target })?;
            } else {
                self.copy(&host, &container)?;
            }
        }
        Ok(())
    }

    fn put_host_file(&mut self, at: PathBuf, host: &Path) -> Result<(), PackError> {
        let metadata = fs::metadata(host).during("find", host)?;
        // The owner may be anyone and the umask anything: only "executable" is worth keeping.
        let mode = match metadata.permissions().mode() & 0o111 {
            0 => 0o644,
            _ => 0o755,
        };
        let content = Content::Host(host.to_owned());
        self.put(at, Node::File { content, mode })
    }

    fn put(&mut self, at: PathBuf, node: Node) -> Result<(), PackError> {
        let conflict = |reason| PackError::Conflict { path: Path::new("/").join(&at), reason };
        match (self.nodes.get(&at), &node) {
            (Some(Node::Directory { .. }), Node::File { .. } | Node::Link { .. }) => {
                return Err(conflict("a directory is there"));
            }
            (Some(Node::File { .. } | Node::Link { .. }), Node::Directory { .. }) => {
                return Err(conflict("a file is there"));
            }
            (None, _) if at.as_os_str().is_empty() => return Err(conflict("it is the root")),
            _ => {}
        }
        self.nodes.insert(at, node);
        Ok(())
    }

    /// Like [`Self::resolve`], but does not follow a link at the end of the path.
    fn resolve_parent(&mut self, path: &Path) -> Result<PathBuf, PackError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.resolve(path, Missing::Plain);
        };
        Ok(self.resolve(parent, Missing::Plain)?.join(name))
    }

    /// Where a path leads within the tree; its parents exist afterwards.
    fn resolve(&mut self, path: &Path, missing: Missing) -> Result<PathBuf, PackError> {
        let conflict = |reason| PackError::Conflict { path: path.to_owned(), reason };
        let mut left: VecDeque<OsString> = parts(path);
        let mut at = PathBuf::new();
        let mut n_links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(part);
            if missing == Missing::AsHere && !self.nodes.contains_key(&at) {
                let host = Path::new("/").join(&at);
                if let Ok(target) = fs::read_link(&host) {
                    self.nodes.insert(at.clone(), Node::Link { target });
                }
            }
            match self.nodes.get(&at) {
                Some(Node::Directory { .. }) => {}
                Some(Node::File { .. }) if left.is_empty() => {}
                Some(Node::File { .. }) => return Err(conflict("a file is above it")),
                Some(Node::Link { target }) => {
                    n_links += 1;
                    if n_links > MAX_LINKS {
                        return Err(conflict("its links lead in a circle"));
                    }
                    let onward = parts(target);
                    if target.is_absolute() {
                        at.clear();
                    } else {
                        at.pop();
                    }
                    left = onward.into_iter().chain(left).collect();
                }
                None if left.is_empty() => {}
                None => {
                    let directory = Node::Directory { mode: 0o755 };
                    self.nodes.insert(at.clone(), directory);
                }
            }
        }
        Ok(at)
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(tree: &Tree) -> Vec<String> {
        tree.nodes
            .iter()
            .map(|(path, node)| match node {
                Node::Directory { mode } => format!("{}/ {mode:o}", path.display()),
                Node::File { mode, .. } => format!("{} {mode:o}", path.display()),
                Node::Link { target } => format!("{} -> {}", path.display(), target.display()),
            })
            .collect()
    }

    #[test]
    fn a_library_brings_the_links_that_lead_to_it() {
        let host = tempfile::tempdir().unwrap();
        let real = host.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("usr/lib")).unwrap();
        fs::write(real.join("usr/lib/liba.so.1.2"), "elf").unwrap();
        std::os::unix::fs::symlink("liba.so.1.2", real.join("usr/lib/liba.so.1")).unwrap();
        std::os::unix::fs::symlink("usr/lib", real.join("lib")).unwrap();
        let mut tree = Tree::default();
        tree.copy_in_place(&real.join("lib/liba.so.1")).unwrap();
        tree.file(&real.join("lib/extra"), Content::Text(""), 0o644).unwrap();
        let base = real.strip_prefix("/").unwrap().display().to_string();
        let listing: Vec<_> = listing(&tree)
            .iter()
            .filter_map(|line| line.strip_prefix(&format!("{base}/")).map(str::to_owned))
            .filter(|line| !line.starts_with(' '))
            .collect();
        assert_eq!(
            listing,
            [
                "lib -> usr/lib",
                "usr/ 755",
                "usr/lib/ 755",
                "usr/lib/extra 644",
                "usr/lib/liba.so.1 -> liba.so.1.2",
                "usr/lib/liba.so.1.2 644",
            ]
        );
    }

    #[test]
    fn directories_are_included_with_their_links() {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir(host.path().join("sub")).unwrap();
        fs::write(host.path().join("sub/tool"), "").unwrap();
        fs::set_permissions(host.path().join("sub/tool"), fs::Permissions::from_mode(0o4711))
            .unwrap();
        std::os::unix::fs::symlink("../outside//x", host.path().join("link")).unwrap();
        let mut tree = Tree::default();
        tree.copy(host.path(), Path::new("/srv/www")).unwrap();
        assert_eq!(
            listing(&tree),
            [
                "srv/ 755",
                "srv/www/ 755",
                "srv/www/link -> ../outside//x",
                "srv/www/sub/ 755",
                "srv/www/sub/tool 755",
            ]
        );
        rustix::fs::mkfifoat(rustix::fs::CWD, host.path().join("pipe"), 0o600.into()).unwrap();
        let error = tree.copy(host.path(), Path::new("/srv/www")).unwrap_err();
        assert!(matches!(error, PackError::Special { .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        let mut tree = Tree::default();
        let text = || Content::Text("");
        tree.file(Path::new("/a/file"), text(), 0o644).unwrap();
        tree.file(Path::new("/a/../../b"), text(), 0o644).unwrap();
        assert!(tree.nodes.contains_key(Path::new("b")));
        for path in ["/a/file/x", "/a", "/"] {
            let refused = tree.file(Path::new(path), text(), 0o644);
            assert!(matches!(refused, Err(PackError::Conflict { .. })), "{path}");
        }
        let target = "loop".into();
        tree.nodes.insert("loop".into(), Node::Link { target });
        assert!(tree.file(Path::new("/loop/x"), text(), 0o644).is_err());
        assert!(tree.directory(Path::new("/b"), 0o755).is_err());
    }
}
