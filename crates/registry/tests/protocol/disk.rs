//! File systems of a test's own, unmounted again whatever happens.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Something mounted at a directory of its own.
pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// A tmpfs with room for so many MiB and files.
    pub fn tmpfs(mib: u32, n_files: u32) -> Self {
        let options = format!("size={mib}m,nr_inodes={n_files}");
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()));
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all room for bytes, and gives it back when dropped.
    pub fn without_room(&self) -> Filler {
        use std::io::Write as _;
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let mut piece = vec![7; 1 << 20];
        while !piece.is_empty() {
            if file.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
        Filler(path)
    }

    /// Takes all room for files, and gives it back when dropped.
    pub fn without_files(&self) -> Filler {
        let path = self.path().join("fillers");
        std::fs::create_dir(&path).unwrap();
        (0..).map(|n: u32| path.join(n.to_string())).find(|path| std::fs::write(path, "").is_err());
        Filler(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        if let Err(error) = rustix::mount::unmount(self.path(), flags) {
            eprintln!("cannot unmount {}: {error}", self.path().display());
        }
    }
}

/// What fills a disk.
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let removed = match self.0.is_dir() {
            true => std::fs::remove_dir_all(&self.0),
            false => std::fs::remove_file(&self.0),
        };
        removed.unwrap();
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}; it needs root");
}
