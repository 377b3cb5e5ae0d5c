//! A disk whose power can be cut, for tests of what must outlive that.
//!
//! It is an ext4 in a file, on a loop device. What was not synced is in memory and not in the file, so a
//! copy of the file that is made while nobody writes is what a machine finds whose power was cut. The
//! file system does as little by itself as it can be told to: no journal is written because time has
//! passed (`commit`), no contents because their metadata are (`data`), none because a name was
//! given away (`noauto_da_alloc`).
//!
//! A sync of anything writes the whole journal. So a name that was not synced is missed only where
//! no later sync brought it along, and a test has to cut the power between the two.
//!
//! Rejected: `dm-log-writes` and `dm-flakey`, which many kernels lack; a record of all calls that is
//! played to a model, which knows only what we believe of file systems.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const OPTIONS: &str = "loop,commit=3600,data=writeback,noauto_da_alloc";

/// Such a disk, mounted for as long as this lives.
#[derive(Debug)]
pub struct Disk {
    file: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// An empty one of so many MiB, kept in a file and mounted at a directory.
    pub fn make(file: &Path, at: &Path, mib: u64) -> io::Result<Self> {
        std::fs::File::create(file)?.set_len(mib << 20)?;
        // Whole pages are blocks, as on any larger disk; nothing is left to be written later.
        let fixed = [
            "-q",
            "-F",
            "-b",
            "4096",
            "-I",
            "256",
            "-N",
            "8192",
            "-E",
            "lazy_itable_init=0,nodiscard",
        ];
        run(Command::new("mkfs.ext4").args(fixed).arg(file))?;
        Self::mount(file, at)
    }

    fn mount(file: &Path, at: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(at)?;
        run(Command::new("mount").args(["-t", "ext4", "-o", OPTIONS]).args([file, at]))?;
        Ok(Self { file: file.to_owned(), at: at.to_owned() })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The disk as it would be if the power were cut now, in another file and at another directory.
    pub fn after_a_power_cut(&self, file: &Path, at: &Path) -> io::Result<Self> {
        run(Command::new("cp").arg("--sparse=always").args([self.file.as_path(), file]))?;
        Self::mount(file, at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let at = CString::new(self.at.as_os_str().as_bytes()).expect("it was mounted there");
        // SAFETY: `at` is a string that lives until the call returns.
        let result = unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        if result < 0 {
            eprintln!("cannot unmount {}: {}", self.at.display(), io::Error::last_os_error());
        }
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?}: {status}; it needs root"))),
    }
}
