//! What a container reads and writes, as its shim holds it.

use std::io;
use std::os::fd::OwnedFd;

use longshore_types::Attached;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, Uid};
use rustix::pipe::PipeFlags;

use super::log::{LogWriter, Partial};
use super::{ShimProblem, errno};
use crate::driver::Streams;
use crate::logs::StreamTag;

/// What is read from a stream at once: as much as a pipe holds by default.
const READ_SIZE: usize = 64 * 1024;
/// How long a client that takes nothing may hold up the last of the output.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The ends of the shim.
pub(super) struct Ends {
    /// What is written. A terminal is one stream.
    pub output: Vec<Stream>,
    /// The master of the terminal, if there is one.
    pub terminal: Option<OwnedFd>,
    /// To what is read, until whoever is attached takes it.
    pub input: Option<OwnedFd>,
}

impl Ends {
    /// Makes them, and those of a container whose user is `uid` on the machine. A terminal comes
    /// later, by [`Self::take_terminal`]; until then there is nothing.
    pub fn make(client: Option<Attached>, uid: u32) -> Result<(Self, Streams), ShimProblem> {
        if client == Some(Attached::Terminal) {
            let null = || {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open("/dev/null", flags, Mode::empty())
                    .map_err(errno("opening /dev/null"))
            };
            let ends = Self { output: Vec::new(), terminal: None, input: None };
            return Ok((ends, Streams { stdin: None, stdout: null()?, stderr: null()? }));
        }
        let (out, stdout) = output(uid)?;
        let (err, stderr) = output(uid)?;
        let output = vec![Stream::new(StreamTag::Out, out), Stream::new(StreamTag::Err, err)];
        let (stdin, input) = match client {
            None => (None, None),
            Some(_) => {
                let (reader, writer) = pipe()?;
                own(&reader, uid)?;
                (Some(reader), Some(writer))
            }
        };
        Ok((Self { output, terminal: None, input }, Streams { stdin, stdout, stderr }))
    }

    /// Takes over the terminal that a runtime has made.
    pub fn take_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        self.output = vec![Stream::new(StreamTag::Out, master.try_clone()?)];
        self.terminal = Some(master);
        Ok(())
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), ShimProblem> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(errno(MAKING))
}

const MAKING: &str = "making the container's streams";

/// Gives a pipe's end to the container's user, so that a program which opens `/dev/stdout` may; the
/// kernel checks the pipe's owner then.
fn own(end: &OwnedFd, uid: u32) -> Result<(), ShimProblem> {
    rustix::fs::fchown(end, Some(Uid::from_raw(uid)), None).map_err(errno(MAKING))
}

/// A pipe for one output stream.
fn output(uid: u32) -> Result<(OwnedFd, OwnedFd), ShimProblem> {
    let (reader, writer) = pipe()?;
    own(&writer, uid)?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(errno(MAKING))?;
    Ok((reader, writer))
}

/// One stream of output, on its way into the log.
pub(super) struct Stream {
    tag: StreamTag,
    /// Absent after its end.
    source: Option<OwnedFd>,
    partial: Partial,
    /// For whoever is attached.
    copy: Option<Copy>,
}

impl Stream {
    fn new(tag: StreamTag, source: OwnedFd) -> Self {
        Self { tag, source: Some(source), partial: Partial::default(), copy: None }
    }

    /// Copies what comes from now on; gives where the copy is read. A reader that falls behind slows
    /// the stream down, as the log does.
    pub fn copied(&mut self) -> io::Result<OwnedFd> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        self.copy = Some(Copy { pipe: writer, unsent: Vec::new() });
        Ok(reader)
    }

    /// Nobody reads the copy any more.
    pub fn not_copied(&mut self) {
        self.copy = None;
    }

    /// What has to happen before [`Self::advance`] has something to do.
    pub fn awaited(&self) -> Option<PollFd<'_>> {
        match &self.copy {
            Some(Copy { pipe, unsent }) if !unsent.is_empty() => {
                Some(PollFd::new(pipe, PollFlags::OUT))
            }
            _ => self.source.as_ref().map(|source| PollFd::new(source, PollFlags::IN)),
        }
    }

    /// Copies what has not been, or reads what there is, at most one buffer, so that a noisy container
    /// does not keep requests waiting.
    pub fn advance(&mut self, log: &mut LogWriter) {
        match &self.copy {
            Some(copy) if !copy.unsent.is_empty() => self.put(&[]),
            _ => {
                self.read(log);
            }
        }
    }

    /// Reads once; whether there may be more to read.
    fn read(&mut self, log: &mut LogWriter) -> bool {
        let Some(source) = &self.source else { return false };
        // Not kept: an idle shim holds no buffers.
        let mut buffer = vec![0; READ_SIZE];
        match rustix::io::read(source, &mut buffer) {
            // A terminal that nobody has open any more has no end, but an error.
            Ok(0) | Err(rustix::io::Errno::IO) => {
                log.finish(self.tag, &mut self.partial);
                self.source = None;
                // With this the copy ends too, unless some of it is still to be sent.
                self.put(&[]);
                false
            }
            Ok(length) => {
                log.take(self.tag, &mut self.partial, &buffer[..length]);
                self.put(&buffer[..length]);
                true
            }
            Err(rustix::io::Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// Copies bytes, if somebody reads the copy, after what has not been copied yet.
    fn put(&mut self, bytes: &[u8]) {
        let Some(copy) = &mut self.copy else { return };
        let failed = copy.put(bytes).is_err();
        if failed || (self.source.is_none() && copy.unsent.is_empty()) {
            self.copy = None;
        }
    }

    /// Takes all that is left when every writer is dead, so that this ends.
    pub fn finish(&mut self, log: &mut LogWriter) {
        while self.source.is_some() && self.read(log) {}
        log.finish(self.tag, &mut self.partial);
        if let Some(mut copy) = self.copy.take() {
            copy.finish();
        }
    }
}

/// A copy of a stream of output.
struct Copy {
    pipe: OwnedFd,
    unsent: Vec<u8>,
}

impl Copy {
    /// Writes as much as goes in, and keeps the rest.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unsent.extend_from_slice(bytes);
        while !self.unsent.is_empty() {
            match rustix::io::write(&self.pipe, &self.unsent) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.unsent = Vec::new();
        Ok(())
    }

    /// Writes the rest, to a reader that takes some of it now and then.
    fn finish(&mut self) {
        while self.put(&[]).is_ok() && !self.unsent.is_empty() {
            let mut room = [PollFd::new(&self.pipe, PollFlags::OUT)];
            // A failure is that of the next write.
            if let Ok(0) = poll(&mut room, Some(&PATIENCE)) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use longshore_types::ByteCount;

    use super::*;
    use crate::spec::LogPolicy;

    /// A log, a stream that is copied, where it is written, and where its copy is read.
    fn copied() -> (LogWriter, Stream, File, File) {
        let dir = tempfile::tempdir().unwrap();
        let policy =
            LogPolicy { path: dir.path().join("log"), max_size: ByteCount::mib(1), files: 2 };
        let log = LogWriter::open(&policy).unwrap();
        let (source, writer) = output(rustix::process::getuid().as_raw()).unwrap();
        let mut stream = Stream::new(StreamTag::Out, source);
        let reader = File::from(stream.copied().unwrap());
        // The log goes on in its open file.
        (log, stream, File::from(writer), reader)
    }

    #[test]
    fn a_slow_reader_gets_all_of_what_came_before_the_end() {
        let (mut log, mut stream, mut writer, mut reader) = copied();
        let part = [7; 60_000];
        writer.write_all(&part).unwrap();
        assert!(stream.read(&mut log));
        writer.write_all(&part).unwrap();
        // More than the copy's pipe takes.
        assert!(stream.read(&mut log));
        assert!(stream.copy.as_ref().is_some_and(|copy| !copy.unsent.is_empty()));
        drop(writer);
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all.len()
        });
        stream.finish(&mut log);
        assert_eq!(reading.join().unwrap(), 120_000);
    }

    #[test]
    fn the_end_is_not_ahead_of_what_waits() {
        let (mut log, mut stream, writer, mut reader) = copied();
        drop(writer);
        stream.copy.as_mut().unwrap().unsent = vec![7; 100_000];
        // As at the end of a container, where the source is read whatever waits.
        assert!(!stream.read(&mut log));
        let mut first = vec![0; 50_000];
        reader.read_exact(&mut first).unwrap();
        assert!(stream.awaited().is_some(), "the rest is still to be sent");
        while stream.awaited().is_some() {
            stream.advance(&mut log);
            let mut some = [0; 10_000];
            let length = reader.read(&mut some).unwrap();
            first.extend_from_slice(&some[..length]);
        }
        reader.read_to_end(&mut first).unwrap();
        assert_eq!(first.len(), 100_000);
    }
}
