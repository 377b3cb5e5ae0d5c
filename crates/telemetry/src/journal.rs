//! A log of what a role decided, in two files of bounded size: the present one and the one before.
//!
//! Lines are handed to a thread that writes them, and dropped when it does not keep up: a log never holds up
//! what it tells of. Nothing is synced; what the machine's death takes from the end is missed by nobody but who
//! reads it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// How many lines may wait for the disk.
const QUEUE: usize = 64;

/// The most bytes in one of the two files, a single line that is longer excepted.
pub const MAX_FILE_BYTES: u64 = 8 << 20;

/// Writes lines.
#[derive(Debug)]
pub struct Journal {
    /// Absent only while it is dropped.
    lines: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
    limit: u64,
    /// What the present file holds once all that was handed over is written.
    size: u64,
    /// Whether a line could not be written since a caller was last told.
    has_failed: Arc<AtomicBool>,
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It is written.
    Kept,
    /// The disk did not keep up, or failed before, and nobody will read it.
    Dropped,
}

impl Journal {
    /// Goes on with the file at `path`. Where it cannot be written, lines are dropped, and the log says why.
    pub fn open(path: &Path, limit: u64) -> Self {
        let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let (lines, waiting) = sync_channel(QUEUE);
        let target = path.to_owned();
        let has_failed = Arc::<AtomicBool>::default();
        let fails = Arc::clone(&has_failed);
        let write = move || write_all(&target, &waiting, (limit, size), &fails);
        let thread = std::thread::Builder::new().name("journal".to_owned());
        let writer = match thread.spawn(write) {
            Ok(writer) => Some(writer),
            Err(error) => {
                tracing::warn!("decisions are not logged: {error}");
                None
            }
        };
        Self { lines: Some(lines), writer, limit, size, has_failed }
    }

    /// Whether a line of so many bytes begins a new file, which has to be understood by itself.
    pub fn begins_file(&self, n_bytes: usize) -> bool {
        begins_file(self.size, n_bytes, self.limit)
    }

    /// Hands a line over, which has no line end.
    pub fn note(&mut self, mut line: Vec<u8>) -> Noted {
        if self.has_failed.swap(false, Ordering::Relaxed) {
            return Noted::Dropped;
        }
        line.push(b'\n');
        let n_bytes = line.len();
        let sent = self.lines.as_ref().is_some_and(|lines| lines.try_send(line).is_ok());
        if !sent {
            return Noted::Dropped;
        }
        let before = if begins_file(self.size, n_bytes, self.limit) { 0 } else { self.size };
        self.size = before + n_bytes as u64;
        Noted::Kept
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        drop(self.lines.take());
        if let Some(writer) = self.writer.take() {
            // A panic there is a bug, and told of by its hook.
            let _ = writer.join();
        }
    }
}

/// Writer and reader of the queue come to the same by the same numbers.
fn begins_file(size: u64, n_bytes: usize, limit: u64) -> bool {
    size > 0 && size + n_bytes as u64 > limit
}

fn write_all(
    path: &Path,
    lines: &Receiver<Vec<u8>>,
    (limit, mut size): (u64, u64),
    has_failed: &AtomicBool,
) {
    let mut file: Option<File> = None;
    let mut is_told = false;
    for line in lines {
        let is_new = begins_file(size, line.len(), limit);
        let outcome = write_line(path, &mut file, (&line, is_new));
        size = if is_new { line.len() as u64 } else { size + line.len() as u64 };
        if outcome.is_err() {
            has_failed.store(true, Ordering::Relaxed);
        }
        if let Err(error) = outcome
            && !std::mem::replace(&mut is_told, true)
        {
            tracing::warn!("cannot log decisions to {}: {error}", path.display());
        }
    }
}

fn write_line(
    path: &Path,
    file: &mut Option<File>,
    (line, is_new): (&[u8], bool),
) -> io::Result<()> {
    if is_new {
        *file = None;
        std::fs::rename(path, earlier(path))?;
    }
    if file.is_none() {
        // Names of apps of all projects are in there.
        *file = Some(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?);
    }
    match file {
        Some(file) => file.write_all(line),
        None => Ok(()),
    }
}

/// Where the file before lies.
pub fn earlier(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_bounded_size_hold_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.jsonl");
        let mut n_files = 1;
        for round in 0..2 {
            // A journal goes on with what there is.
            let mut journal = Journal::open(&path, 100);
            for n in 0..20 {
                let line = format!("line {round} {n:02}").into_bytes();
                n_files += u32::from(journal.begins_file(line.len() + 1));
                while journal.note(line.clone()) == Noted::Dropped {
                    std::thread::yield_now();
                }
            }
        }
        assert_eq!(n_files, 4, "forty lines of ten bytes");
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let both = read(&earlier(&path)) + &read(&path);
        assert!(both.ends_with("line 1 18\nline 1 19\n"), "{both}");
        assert!(read(&path).len() <= 100 && read(&earlier(&path)).len() <= 100);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_place_that_cannot_be_written_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&dir.path().join("absent/decisions.jsonl"), 100);
        assert_eq!(journal.note(b"a line".to_vec()), Noted::Kept, "it is not known yet");
        // What would build on it is not written either.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while journal.note(b"the next".to_vec()) == Noted::Kept {
            assert!(std::time::Instant::now() < deadline);
        }
        drop(journal);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
