//! The writing side of an instance's log.
//!
//! One JSON object per line: `t` milliseconds since the epoch, `s` the stream (`o` or `e`), `l` the
//! text, and `"p":true` when the line goes on in the next one of that stream. A container that
//! writes faster than the disk is slowed down by its pipe; a disk that refuses is not allowed to
//! stop the container: the lines are dropped, counted, and the count noted when it works again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use crate::logs::{Entry, StreamTag, rotated};
use crate::record::now;
use crate::spec::LogPolicy;

/// The longest line that is kept in one piece.
const MAX_LINE: usize = 16 * 1024;

/// One stream's unfinished line.
#[derive(Default)]
pub(super) struct Partial {
    bytes: Vec<u8>,
}

/// Writes log lines and rotates files.
pub(super) struct LogWriter {
    policy: LogPolicy,
    file: File,
    size: u64,
    batch: Vec<u8>,
    n_batched: u64,
    n_lost: u64,
    n_lost_noted: u64,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl LogWriter {
    pub fn open(policy: &LogPolicy) -> io::Result<Self> {
        let file = open(&policy.path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            policy: policy.clone(),
            file,
            size,
            batch: Vec::new(),
            n_batched: 0,
            n_lost: 0,
            n_lost_noted: 0,
        })
    }

    /// How many lines could not be written.
    pub fn n_lost(&self) -> u64 {
        self.n_lost
    }

    /// Takes what was read from a stream, and writes the lines that it completes.
    pub fn take(&mut self, stream: StreamTag, partial: &mut Partial, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = MAX_LINE - partial.bytes.len();
            let end = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            match end {
                Some(end) => {
                    partial.bytes.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    self.push(stream, partial, false);
                }
                None => {
                    let taken = room.min(bytes.len());
                    partial.bytes.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if partial.bytes.len() >= MAX_LINE {
                        let kept = whole_characters(&partial.bytes);
                        let rest = partial.bytes.split_off(kept);
                        self.push(stream, partial, true);
                        partial.bytes = rest;
                    }
                }
            }
        }
        self.flush();
    }

    /// The stream has ended: its last line may lack a line feed.
    pub fn finish(&mut self, stream: StreamTag, partial: &mut Partial) {
        if !partial.bytes.is_empty() {
            self.push(stream, partial, false);
        }
        self.flush();
    }

    /// Adds a line of our own to the error output.
    pub fn note(&mut self, text: &str) {
        let mut line = Partial { bytes: format!("longshore: {text}").into_bytes() };
        self.finish(StreamTag::Err, &mut line);
    }

    fn push(&mut self, stream: StreamTag, partial: &mut Partial, goes_on: bool) {
        let text = String::from_utf8_lossy(&partial.bytes);
        let entry = Entry { t: now().0, s: stream, l: text.into_owned(), p: goes_on };
        serde_json::to_writer(&mut self.batch, &entry).expect("writing to memory cannot fail");
        self.batch.push(b'\n');
        self.n_batched += 1;
        // An idle shim keeps no memory for the longest line it ever saw.
        partial.bytes = Vec::new();
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.write_batch() {
            Ok(()) => {}
            Err(_) => self.n_lost += self.n_batched,
        }
        self.n_batched = 0;
        self.batch.clear();
        self.batch.shrink_to(MAX_LINE);
    }

    fn write_batch(&mut self) -> io::Result<()> {
        let unnoted = self.n_lost - self.n_lost_noted;
        if unnoted > 0 {
            let l = format!("longshore: {unnoted} lines were lost, the log could not be written");
            let entry = Entry { t: now().0, s: StreamTag::Err, l, p: false };
            let mut note = serde_json::to_vec(&entry)?;
            note.push(b'\n');
            self.write_whole(&note)?;
            self.n_lost_noted = self.n_lost;
        }
        if self.size > 0 && self.size + self.batch.len() as u64 > self.policy.max_size.0 {
            self.rotate()?;
        }
        let batch = std::mem::take(&mut self.batch);
        let written = self.write_whole(&batch);
        self.batch = batch;
        written
    }

    /// Writes all or, as far as the file shows afterwards, nothing.
    fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.size)?;
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.policy.path;
        for number in (1..self.policy.files).rev() {
            match fs::rename(rotated(path, number - 1), rotated(path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.policy.files <= 1 {
            fs::remove_file(path)?;
        }
        self.file = open(path)?;
        self.size = 0;
        Ok(())
    }
}

/// The length of `bytes` without a character that its end cuts in two.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::ByteCount;

    use super::*;

    fn written(chunks: &[&[u8]]) -> Vec<(String, bool)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let policy = LogPolicy { path: path.clone(), max_size: ByteCount::mib(1), files: 2 };
        let mut writer = LogWriter::open(&policy).unwrap();
        let mut partial = Partial::default();
        for chunk in chunks {
            writer.take(StreamTag::Out, &mut partial, chunk);
        }
        writer.finish(StreamTag::Out, &mut partial);
        let text = fs::read_to_string(path).unwrap();
        let entries = text.lines().map(|line| serde_json::from_str::<Entry>(line).unwrap());
        entries.map(|entry| (entry.l, entry.p)).collect()
    }

    #[test]
    fn lines_are_joined_and_split() {
        let whole = |text: &str| (text.to_owned(), false);
        assert_eq!(
            written(&[b"a\nb", b"c\n\nd"]),
            [whole("a"), whole("bc"), whole(""), whole("d")]
        );
        assert_eq!(written(&[]), []);
        assert_eq!(written(&[b"\xff\n"]), [whole("\u{fffd}")]);
        let exact = vec![b'x'; MAX_LINE];
        assert_eq!(written(&[&exact[..], b"\n"]).len(), 2);
        let long = "é".repeat(MAX_LINE);
        let lines = written(&[&b"x"[..], long.as_bytes(), &b"\n"[..]]);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].1 && lines[1].1 && !lines[2].1);
        let joined: String = lines.into_iter().map(|line| line.0).collect();
        assert_eq!(joined, format!("x{long}"));
    }

    #[test]
    fn files_are_rotated_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let policy = LogPolicy { path: path.clone(), max_size: ByteCount(200), files: 3 };
        let mut writer = LogWriter::open(&policy).unwrap();
        let mut partial = Partial::default();
        for number in 0..40 {
            let line = format!("line {number}\n");
            writer.take(StreamTag::Out, &mut partial, line.as_bytes());
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        for name in names {
            assert!(fs::metadata(dir.path().join(&name)).unwrap().len() <= 200, "{name}");
        }
        assert!(fs::read_to_string(path).unwrap().contains("line 39"));
    }
}
