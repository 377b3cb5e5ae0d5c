//! Project quotas: a file system that counts and limits what a directory tree holds.
//!
//! A project is a number on every file of a tree. It has no name and belongs to nobody, so several
//! agents that share a file system have to stay out of each other's way: each takes a number at
//! random that nobody limits or uses, notes it in the instance's directory before it sets a limit,
//! and takes the limit away at the end. The tree inherits the number, also over renames.
//!
//! Asked through `quotactl_fd` (Linux 5.14), which needs no name of a block device. Older kernels
//! count as having no quotas.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use linux_raw_sys::general::fsxattr;
use linux_raw_sys::ioctl::{FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR};
use longshore_types::ByteCount;

const PROJECT_QUOTA: u32 = 2;
/// `Q_XGETQSTAT`: the state of quotas, the same on ext4 and XFS.
const GET_STATE: u32 = 0x5805;
const PROJECT_LIMITS_ENFORCED: u16 = 1 << 5;
const PROJECT_INHERIT: u32 = 0x200;
/// Numbers below are left to people, who count from one.
const FIRST_PROJECT: u32 = 1 << 24;
/// One file for 8 KiB, as in an image.
const BYTES_PER_FILE: u64 = 8192;

/// The project quotas of a file system.
#[derive(Debug)]
pub(crate) struct Quota {
    /// Any directory of it.
    dir: File,
}

impl Quota {
    /// The quotas of the file system that `dir` lies on, where limits are enforced.
    pub fn probe(dir: &Path) -> io::Result<Option<Self>> {
        let quota = Self { dir: File::open(dir)? };
        // `struct fs_quota_stat` has its flags at byte 2 and 80 bytes in all.
        let mut state = [0_u16; 64];
        Ok(match quota.call(GET_STATE, 0, state.as_mut_ptr().cast()) {
            Ok(()) => (state[1] & PROJECT_LIMITS_ENFORCED != 0).then_some(quota),
            // No quotas in this kernel, on this file system, or of this kind.
            Err(_) => None,
        })
    }

    /// Makes the empty directory `base` the root of a project with a limit. The number is noted in
    /// `note` first, and taken from there when it is there already.
    pub fn limit(&self, base: &Path, note: &Path, limit: ByteCount) -> io::Result<()> {
        let project = match noted(note)? {
            Some(project) => project,
            None => self.choose(note)?,
        };
        self.set(project, limit.0.div_ceil(1024), (limit.0 / BYTES_PER_FILE).max(16))?;
        mark(&File::open(base)?, project)
    }

    /// Gives the number back, with no file left that carries it.
    pub fn release(&self, note: &Path) -> io::Result<()> {
        if let Some(project) = noted(note)? {
            self.set(project, 0, 0)?;
            fs::remove_file(note)?;
        }
        Ok(())
    }

    fn choose(&self, note: &Path) -> io::Result<u32> {
        loop {
            let project = fastrand::u32(FIRST_PROJECT..u32::MAX);
            let state = self.get(project)?;
            let limited = state.dqb_bhardlimit > 0 || state.dqb_ihardlimit > 0;
            if !limited && state.dqb_curspace == 0 && state.dqb_curinodes == 0 {
                let file = File::create(note)?;
                io::Write::write_all(&mut &file, project.to_string().as_bytes())?;
                // A limit that nobody remembers would stay for ever.
                file.sync_all()?;
                return Ok(project);
            }
        }
    }

    fn get(&self, project: u32) -> io::Result<libc::dqblk> {
        // SAFETY: an all-zero `dqblk` is valid: it holds numbers only.
        let mut state: libc::dqblk = unsafe { std::mem::zeroed() };
        let command = libc::Q_GETQUOTA.cast_unsigned();
        match self.call(command, project, (&raw mut state).cast()) {
            // XFS says so of a project that it has never seen.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(state),
            outcome => outcome.map(|()| state),
        }
    }

    fn set(&self, project: u32, kib: u64, files: u64) -> io::Result<()> {
        // SAFETY: as above.
        let mut limits: libc::dqblk = unsafe { std::mem::zeroed() };
        limits.dqb_bhardlimit = kib;
        limits.dqb_ihardlimit = files;
        limits.dqb_valid = libc::QIF_LIMITS;
        self.call(libc::Q_SETQUOTA.cast_unsigned(), project, (&raw mut limits).cast())
    }

    fn call(&self, command: u32, project: u32, data: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: every caller passes what its command reads or writes, and it lives until the end.
        let result = unsafe {
            libc::syscall(
                libc::SYS_quotactl_fd,
                self.dir.as_raw_fd(),
                command << 8 | PROJECT_QUOTA,
                project,
                data,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn noted(note: &Path) -> io::Result<Option<u32>> {
    match fs::read_to_string(note) {
        // Empty or cut short after a crash of the machine: no limit was set by then.
        Ok(text) => Ok(text.parse().ok().filter(|project| *project >= FIRST_PROJECT)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives a directory a project that all that is made in it inherits.
fn mark(dir: &File, project: u32) -> io::Result<()> {
    let ioctl = |command: u32, attributes: &mut fsxattr| {
        // SAFETY: both commands take a `fsxattr`, which lives until the call returns.
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), command.into(), attributes) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: an all-zero `fsxattr` is valid: it holds numbers only.
    let mut attributes: fsxattr = unsafe { std::mem::zeroed() };
    ioctl(FS_IOC_FSGETXATTR, &mut attributes)?;
    attributes.fsx_projid = project;
    attributes.fsx_xflags |= PROJECT_INHERIT;
    ioctl(FS_IOC_FSSETXATTR, &mut attributes)
}
