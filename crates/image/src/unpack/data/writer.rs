//! Brings filled buffers to the disk.
//!
//! The beginning of a layer goes through the page cache, where the first start finds it; most
//! layers are no longer. What follows goes to the disk directly where the file system can do that:
//! of 1.5 GB that took 2 s instead of 14 until it was on the disk, with a tenth of the processor's
//! time, and it drives nothing out of the memory. Such a write waits for the disk, so a thread does it
//! while the next buffer is filled. A layer of a single buffer needs none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::Buffer;
use crate::steps::{Step, reached};
use crate::unpack::pool::Lent;

/// Bytes at the beginning that go through the page cache.
pub(crate) const CACHED: u64 = 32 << 20;

/// Where filled buffers go, each behind the one before it.
pub(crate) trait Sink: Send {
    /// Takes bytes that begin at a position; what lies between them and those before is zero.
    fn write(&mut self, bytes: &[u8], start: u64) -> io::Result<()>;

    /// Ends it at a length, and waits until it can be counted on.
    fn finish(&mut self, end: u64) -> io::Result<()>;
}

pub(super) enum Writer {
    /// Nothing is written yet.
    Idle(Box<dyn Sink>),
    Busy(Thread),
    /// It failed; who wrote last was told why.
    Failed,
}

impl Writer {
    pub fn new(sink: Box<dyn Sink>) -> Self {
        Self::Idle(sink)
    }

    /// Has a buffer written. An error may be that of an earlier one; nothing is written after it.
    pub fn write(&mut self, buffer: Lent<Buffer>, start: u64) -> io::Result<()> {
        let thread = match std::mem::replace(self, Self::Failed) {
            Self::Idle(sink) => Thread::start(sink)?,
            Self::Busy(thread) => thread,
            Self::Failed => return Err(failed()),
        };
        *self = Self::Busy(thread.write(buffer, start)?);
        Ok(())
    }

    /// Writes the last buffer, and waits until all is on the disk, with that length.
    pub fn finish(self, buffer: Lent<Buffer>, start: u64, end: u64) -> io::Result<()> {
        let mut sink = match self {
            Self::Idle(sink) => sink,
            Self::Busy(thread) => thread.finish()?,
            Self::Failed => return Err(failed()),
        };
        sink.write(buffer.bytes(), start)?;
        sink.finish(end)
    }
}

fn failed() -> io::Error {
    io::Error::other("an earlier write failed")
}

type Full = (Lent<Buffer>, u64);

/// A thread that writes; dropping it waits until it has ended.
pub(super) struct Thread {
    buffers: Option<mpsc::Sender<Full>>,
    handle: Option<JoinHandle<io::Result<Box<dyn Sink>>>>,
}

impl Thread {
    fn start(mut sink: Box<dyn Sink>) -> io::Result<Self> {
        // The number of buffers is its bound.
        let (buffers, full) = mpsc::channel::<Full>();
        let handle = thread::Builder::new().name("layer-writer".to_owned()).spawn(move || {
            for (buffer, start) in full {
                sink.write(buffer.bytes(), start)?;
            }
            Ok(sink)
        })?;
        Ok(Self { buffers: Some(buffers), handle: Some(handle) })
    }

    fn write(self, buffer: Lent<Buffer>, start: u64) -> io::Result<Self> {
        let buffers = self.buffers.as_ref().expect("it is there until the end");
        match buffers.send((buffer, start)) {
            Ok(()) => Ok(self),
            Err(mpsc::SendError(_)) => {
                self.finish()?;
                Err(failed())
            }
        }
    }

    /// Waits until all buffers are written.
    fn finish(mut self) -> io::Result<Box<dyn Sink>> {
        self.buffers = None;
        let handle = self.handle.take().expect("it is joined once");
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.buffers = None;
        if let Some(handle) = self.handle.take() {
            // Nobody asks any more what came of it.
            let _ = handle.join();
        }
    }
}

/// A file.
pub(super) struct Output {
    file: File,
    way: Way,
}

/// How bytes get to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through the page cache, for now.
    Cached,
    Direct,
    /// Through the page cache, because the file system has no other way.
    AlwaysCached,
}

impl Output {
    pub fn new(file: File) -> Self {
        Self { file, way: Way::Cached }
    }

    fn go(&mut self, way: Way) -> io::Result<()> {
        let mut flags = fcntl_getfl(&self.file)?;
        flags.set(OFlags::DIRECT, way == Way::Direct);
        self.way = match fcntl_setfl(&self.file, flags) {
            Ok(()) => way,
            Err(_) if way == Way::Direct => Way::AlwaysCached,
            Err(errno) => return Err(errno.into()),
        };
        Ok(())
    }
}

impl Sink for Output {
    fn write(&mut self, bytes: &[u8], start: u64) -> io::Result<()> {
        if self.way == Way::Cached && start >= CACHED {
            self.go(Way::Direct)?;
        }
        let written = match self.file.write_all_at(bytes, start) {
            // It has direct writes, but wants them in larger pieces than blocks.
            Err(error)
                if self.way == Way::Direct && error.kind() == io::ErrorKind::InvalidInput =>
            {
                self.go(Way::AlwaysCached)?;
                self.file.write_all_at(bytes, start)
            }
            result => result,
        };
        written?;
        reached(Step::BufferWritten);
        Ok(())
    }

    fn finish(&mut self, end: u64) -> io::Result<()> {
        self.file.set_len(end)?;
        reached(Step::ContentsWritten);
        self.file.sync_data()?;
        reached(Step::ContentsSynced);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::super::{BUFFER, DataFile};
    use super::*;

    struct SmallDisk(tempfile::TempDir);

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn a_write_that_fails_is_told_by_a_later_one_or_the_end() {
        let directory = tempfile::tempdir().unwrap();
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), Some(c"size=10m")).unwrap();
        let disk = SmallDisk(directory);
        let bytes = vec![1; BUFFER];
        for n_buffers in [3, 4, 30] {
            let path = disk.0.path().join("data");
            let mut data = DataFile::new(File::create(&path).unwrap());
            let mut write = || {
                for _ in 0..n_buffers {
                    data.write_at(data.position(), &bytes)?;
                }
                Ok(())
            };
            let written = write();
            assert!(n_buffers < 30 || written.is_err(), "it is told long before the end");
            let error = match written {
                Err(error) => {
                    data.write_at(data.position(), &bytes)
                        .and_then(|()| data.finish())
                        .unwrap_err();
                    error
                }
                Ok(()) => data.finish().unwrap_err(),
            };
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            std::fs::remove_file(&path).unwrap();
        }
    }
}
