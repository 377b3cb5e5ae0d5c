//! Reading an instance's log, over rotations and while it grows.
//!
//! The reader shares nothing with the writer but the files. It holds the file it reads open, so a
//! rotation cannot take it away; at its end it looks up which older name that file has by now and
//! goes on with the next newer. A reader that is slower than the rotation of all files loses the
//! lines between, and goes on with the oldest file there is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::Stream;
use longshore_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::record::ExitRecord;

/// How often a followed log is looked at. Cheap: one `read` that finds nothing.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamTag {
    /// Standard output.
    #[serde(rename = "o")]
    Out,
    /// Standard error.
    #[serde(rename = "e")]
    Err,
}

/// A line as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub t: u64,
    pub s: StreamTag,
    pub l: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub p: bool,
}

/// A line of an instance's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When the shim read it.
    pub at: Timestamp,
    /// Where it came from.
    pub stream: StreamTag,
    /// The text without its line feed; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// True when the line was too long for one entry and goes on in the stream's next.
    pub continues: bool,
}

impl From<Entry> for LogLine {
    fn from(Entry { t, s, l, p }: Entry) -> Self {
        Self { at: Timestamp(t), stream: s, text: l, continues: p }
    }
}

/// A log that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading the log {}", path.display())]
pub struct ReadLogError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Whether reading goes on past the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Until everything that is there now has been read.
    No,
    /// Until the instance has ended, or was removed, and everything has been read.
    UntilExit,
}

/// The name of the `number`-th older file of a log.
pub(crate) fn rotated(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Reads a log from its oldest line, or from the last `tail` lines, as a stream that ends by itself
/// (see [`Follow`]). The exit record is expected beside the log, where [`crate::Shims`] puts both.
/// Files are read in small pieces without leaving the async worker: they are local and cached.
pub fn read_log(
    path: &Path,
    tail: Option<usize>,
    follow: Follow,
) -> impl Stream<Item = Result<LogLine, ReadLogError>> + Send + use<> {
    let reader = Reader {
        path: path.to_owned(),
        follow,
        tail,
        file: None,
        inode: None,
        drained: false,
        unfinished: Vec::new(),
        pending: VecDeque::new(),
        ended: false,
    };
    futures_util::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(line)) => Some((Ok(line), Some(reader))),
            Ok(None) => None,
            Err(source) => Some((Err(ReadLogError { path: reader.path, source }), None)),
        }
    })
}

struct Reader {
    path: PathBuf,
    follow: Follow,
    tail: Option<usize>,
    file: Option<BufReader<File>>,
    /// The inode of the open file.
    inode: Option<u64>,
    /// The open file was found at its end once more after a newer one was there.
    drained: bool,
    unfinished: Vec<u8>,
    pending: VecDeque<LogLine>,
    /// The instance had ended before the last look at the files.
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<LogLine>> {
        if let Some(tail) = self.tail.take() {
            self.skip_to_tail(tail)?;
        }
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Ok(Some(line));
            }
            if let Some(line) = self.read_line()? {
                return Ok(Some(line));
            }
            match self.follow {
                Follow::No => return Ok(None),
                // One more look after the end was noticed: lines precede the record.
                Follow::UntilExit if self.ended => return Ok(None),
                Follow::UntilExit => {
                    self.ended = self.has_ended();
                    if !self.ended {
                        tokio::time::sleep(POLL_EVERY).await;
                    }
                }
            }
        }
    }

    /// True when there is an exit record, or when all that there was of the instance is removed: a
    /// reader that slept meanwhile has the file open still and never sees the record.
    fn has_ended(&self) -> bool {
        let was_removed = || self.file.is_some() && self.path.parent().is_some_and(|d| !d.exists());
        self.path.with_file_name(ExitRecord::FILE).exists() || was_removed()
    }

    fn skip_to_tail(&mut self, tail: usize) -> io::Result<()> {
        let mut kept = VecDeque::new();
        while let Some(line) = self.read_line()? {
            kept.push_back(line);
            if kept.len() > tail {
                kept.pop_front();
            }
        }
        self.pending = kept;
        Ok(())
    }

    /// The next whole line of the files as they are now.
    fn read_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            let Some(file) = &mut self.file else {
                match self.successor()? {
                    Some(number) if self.open(number)? => continue,
                    _ => return Ok(None),
                }
            };
            let length = file.read_until(b'\n', &mut self.unfinished)?;
            if self.unfinished.ends_with(b"\n") {
                self.drained = false;
                let entry = serde_json::from_slice::<Entry>(&self.unfinished);
                self.unfinished.clear();
                // A line that a crash of the machine garbled is left out.
                if let Ok(entry) = entry {
                    return Ok(Some(entry.into()));
                }
            } else if length == 0 {
                match self.successor()? {
                    None => return Ok(None),
                    // Between the end of file and the look for a newer one, lines may have come.
                    Some(_) if !self.drained => self.drained = true,
                    Some(number) if self.open(number)? => {}
                    Some(_) => return Ok(None),
                }
            }
        }
    }

    fn inode(&self, number: u32) -> io::Result<Option<u64>> {
        match std::fs::metadata(rotated(&self.path, number)) {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number of the file after the one that was read last, if there is one.
    fn successor(&self) -> io::Result<Option<u32>> {
        let mut oldest = None;
        for number in 0.. {
            match self.inode(number)? {
                // The newest file is the one we have: there is nothing newer yet.
                Some(inode) if Some(inode) == self.inode => return Ok(number.checked_sub(1)),
                Some(_) => oldest = Some(number),
                // While files are being renamed the newest may be missing for a moment.
                None if number == 0 => {}
                None => break,
            }
        }
        Ok(oldest)
    }

    /// Opens the file with this number, unless the files were renamed since it was looked up.
    fn open(&mut self, number: u32) -> io::Result<bool> {
        let file = match File::open(rotated(&self.path, number)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.inode.is_some() && self.successor()? != Some(number) {
            return Ok(false);
        }
        self.inode = Some(file.metadata()?.ino());
        self.unfinished.clear();
        self.drained = false;
        self.file = Some(BufReader::new(file));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_follower_ends_when_all_of_the_instance_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("web-01234567");
        std::fs::create_dir(&state).unwrap();
        let path = state.join("output.log");
        let entry = Entry { t: 1, s: StreamTag::Out, l: "hello".to_owned(), p: false };
        std::fs::write(&path, serde_json::to_string(&entry).unwrap() + "\n").unwrap();
        let mut lines = pin!(read_log(&path, None, Follow::UntilExit));
        assert_eq!(lines.next().await.unwrap().unwrap().text, "hello");
        std::fs::remove_dir_all(&state).unwrap();
        let end = tokio::time::timeout(Duration::from_secs(60), lines.next()).await;
        assert!(end.expect("it ends").is_none());
    }
}
