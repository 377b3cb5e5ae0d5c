//! Loop devices: files as block devices, for the writable layers of instances and for images where the
//! kernel mounts no file as it is.
//!
//! A device is attached with `autoclear`: the kernel detaches it when the last user closes it, and
//! that is the mount once it is there, else our descriptor, which closes with this process. So
//! whatever is killed when, no device outlives its use. [`power`] is a disk for tests on such a device.
//!
//! Test: by its users, `longshore-disk` and `longshore-image`, as root.

#![deny(missing_docs)]

pub mod power;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, LOOP_CONFIGURE, LOOP_CTL_GET_FREE,
    loop_config,
};

const CONTROL: &str = "/dev/loop-control";
/// How often another process may take the device that was free a moment ago. Each time one of them
/// got what it wanted, so this is only reached by something that does nothing else.
const TRIES: u32 = 1000;

/// Why a file did not become a device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There are no loop devices here.
    #[error("opening {CONTROL}: load the kernel's module with 'modprobe loop'")]
    Control(#[source] io::Error),
    /// No device is free.
    #[error("asking {CONTROL} for a free device")]
    Free(#[source] io::Error),
    /// The device could not be opened.
    #[error("opening {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("attaching the image to {}", path.display())]
    Configure {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// True when this machine has loop devices, as far as this process may see. Opening the file also
/// loads the kernel's module where there is one.
pub fn may_be_had() -> bool {
    match open(Path::new(CONTROL)) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// A device with an image, for as long as it is open somewhere.
#[derive(Debug)]
pub struct LoopDevice {
    /// The device.
    pub file: File,
    /// Its name.
    pub path: PathBuf,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The image was opened for reading alone.
    Read,
    /// The image was opened for both.
    ReadWrite,
}

/// Makes `image` a block device with blocks of `block_size` bytes.
pub fn attach(image: &File, access: Access, block_size: u32) -> Result<LoopDevice, AttachError> {
    // Threads of this agent take turns, so that they do not race each other for the same number.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let control = open(Path::new(CONTROL)).map_err(AttachError::Control)?;
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE.into()) };
        if number < 0 {
            return Err(AttachError::Free(io::Error::last_os_error()));
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let file = match open(&path) {
            Ok(file) => file,
            Err(source) => return Err(AttachError::Open { path, source }),
        };
        match configure(&file, image, access, block_size) {
            Ok(()) => return Ok(LoopDevice { file, path }),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {}
            Err(source) => return Err(AttachError::Configure { path, source }),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Direct I/O keeps the image's pages out of memory a second time, and is several times faster.
/// Where the file system below has none, the kernel goes without.
fn configure(device: &File, image: &File, access: Access, block_size: u32) -> io::Result<()> {
    // SAFETY: an all-zero `loop_config` is valid: it holds numbers only.
    let mut config: loop_config = unsafe { std::mem::zeroed() };
    config.fd = image.as_raw_fd().cast_unsigned();
    config.block_size = block_size;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR as u32 | LO_FLAGS_DIRECT_IO as u32;
    if access == Access::Read {
        config.info.lo_flags |= LO_FLAGS_READ_ONLY as u32;
    }
    // SAFETY: `config` is what the call expects and lives until it returns.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE.into(), &config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
