//! What an image became, and what must not have changed beside it.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use crate::unpack::tests::digest_of;
use crate::unpack::tests::listing::{Node, list};

const SECRET: &[u8] = b"a secret of the machine";

/// A mounted image.
pub(super) struct Tree(BTreeMap<Vec<u8>, Node>);

impl Tree {
    pub fn of(root: &Path) -> Self {
        Self(list(root))
    }

    pub fn get(&self, path: impl AsRef<[u8]>) -> &Node {
        let path = path.as_ref();
        self.0.get(path).unwrap_or_else(|| {
            panic!("{:?} is not in {:?}", String::from_utf8_lossy(path), self.names())
        })
    }

    #[track_caller]
    pub fn assert_file(&self, path: impl AsRef<[u8]>, contents: &[u8]) {
        let hash = self.get(path).contents.as_deref().expect("it is a file");
        assert_eq!(hash, sha2::Sha256::digest(contents).as_slice());
    }

    /// All names but the root's.
    pub fn names(&self) -> Vec<String> {
        let names = self.0.keys().filter(|name| !name.is_empty());
        names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }
}

/// A directory of the machine that no image may read or change.
pub(super) struct Canary {
    path: PathBuf,
    before: BTreeMap<Vec<u8>, Node>,
}

impl Canary {
    pub fn new(path: &Path) -> Self {
        std::fs::create_dir_all(path.join("directory/deep")).unwrap();
        std::fs::write(path.join("secret"), SECRET).unwrap();
        std::fs::write(path.join("directory/passwd"), SECRET).unwrap();
        symlink("secret", path.join("link")).unwrap();
        let canary = Self { path: path.to_owned(), before: list(path) };
        // Older than the last change: then the next reading changes it, also with `relatime`.
        for file in canary.files() {
            let file = std::fs::File::options().write(true).open(file).unwrap();
            let at = std::fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
            file.set_times(at).unwrap();
        }
        canary
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    fn files(&self) -> [PathBuf; 2] {
        ["secret", "directory/passwd"].map(|name| self.path.join(name))
    }

    /// Before anything else looks at the files.
    pub fn assert_untouched(&self, case: &str) {
        for file in self.files() {
            let read = file.metadata().unwrap().atime();
            assert_eq!(read, 0, "{case}: something read {}", file.display());
        }
        assert_eq!(list(&self.path), self.before, "{case}: something outside changed");
    }

    pub fn assert_not_in(&self, tree: &Tree, case: &str) {
        let secret = digest_of(SECRET).to_string();
        for (path, node) in &tree.0 {
            let hash = node.contents.as_deref().unwrap_or_default();
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            let path = String::from_utf8_lossy(path);
            assert!(!secret.ends_with(&hash) || hash.is_empty(), "{case}: {path} has the secret");
        }
    }
}

/// Inode and times of files that images like to aim at.
pub(super) fn host_files() -> Vec<(u64, i64, i64)> {
    ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]
        .iter()
        .filter_map(|path| Path::new(path).metadata().ok())
        .map(|file| (file.ino(), file.mtime(), file.ctime()))
        .collect()
}
