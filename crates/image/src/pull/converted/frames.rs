//! Frames on their way: asked for in long runs, dealt out to threads that decode, check and write them.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::super::fetch::{Fetcher, PART, PARTS_AT_ONCE, Window};
use super::buffers::{Buffers, FrameBuffer};
use super::file::{Contents, Missing};
use super::race::Giver;
use crate::converted::{FRAME, FrameProblem, FrameReader, Table};
use crate::manifest::Descriptor;
use crate::source::{Retry, SourceError};
use crate::store::StoreIoError;

/// The most threads of one layer.
const THREADS: usize = 8;

/// Frames that wait for a thread, of each; whichever is free takes the next.
const QUEUE: usize = 1;

/// What was found of frames, and is not taken note of yet.
const VERDICTS: usize = 64;

/// What is held in memory of a layer on its way: parts ahead of the frame that is handed over, that frame,
/// and for each thread one that waits, the one that it is at, and what that decodes to.
const HELD: u64 =
    PARTS_AT_ONCE as u64 * PART + (1 + THREADS as u64 * (QUEUE as u64 + 2)) * FRAME as u64;
const _: () = assert!(HELD <= 72 << 20, "SPECIFICATION.md says so");

/// Twice as many as this machine can run at a time: a thread that writes waits for the disk.
pub(super) fn n_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).saturating_mul(2).min(THREADS)
}

/// A frame that came: as it is stored, or its contents when a neighbour gave it.
pub(super) struct Job {
    /// Which of those that are missing.
    pub nth: usize,
    pub missing: Missing,
    pub by: Giver,
    pub bytes: Bytes,
}

/// What a thread tells.
pub(super) enum Verdict {
    /// What was found of a frame.
    Of { nth: usize, by: Giver, is_right: bool },
    /// It takes no more, and has its own error to tell.
    Stopped,
}

/// The task's ends of the queues to and from the threads.
pub(super) struct Workers {
    pub jobs: mpsc::Sender<Job>,
    pub verdicts: mpsc::Receiver<Verdict>,
}

/// The threads' ends.
pub(super) struct Work {
    jobs: Mutex<mpsc::Receiver<Job>>,
    verdicts: mpsc::Sender<Verdict>,
}

impl Work {
    /// The next frame; nothing once all were sent, or a thread stopped.
    fn next(&self) -> Option<Job> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
    }
}

/// Tells at the end of a thread, however that comes about, and has the others end.
struct Ending<'a>(&'a Work);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // Mostly nobody listens any more.
        let _ = self.0.verdicts.blocking_send(Verdict::Stopped);
        // After one that waits in there was given its frame.
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner).close();
    }
}

/// Why frames did not become the contents of a layer.
pub(super) enum Stopped {
    /// Whoever sent them gave up.
    Abandoned,
    /// One of them is not what it should be.
    Frame { idx: usize, problem: FrameProblem },
    /// The disk refused.
    Store(StoreIoError),
}

/// A queue to the threads, and one back.
pub(super) fn queues() -> (Workers, Work) {
    let (jobs, receiver) = mpsc::channel(QUEUE * n_threads());
    let (sender, verdicts) = mpsc::channel(VERDICTS);
    (Workers { jobs, verdicts }, Work { jobs: Mutex::new(receiver), verdicts: sender })
}

/// How many bytes are stored of some frames.
pub(super) fn stored_of(table: &Table, missing: &[Missing]) -> u64 {
    missing.iter().map(|missing| table.stored_bytes(missing.idx)).sum()
}

/// Frames out of bytes of a blob that begin with the first of them.
pub(super) struct Cutting<'a> {
    window: Window<'a>,
    buffers: &'a Buffers,
    /// What came and belongs to the next frame.
    left: Bytes,
}

impl<'a> Cutting<'a> {
    pub fn new(window: Window<'a>, buffers: &'a Buffers) -> Self {
        Self { window, buffers, left: Bytes::new() }
    }

    /// The next frame, of which so many bytes are stored.
    pub async fn next(&mut self, n_stored: u64) -> Result<Bytes, SourceError> {
        let mut stored = self.buffers.take(n_stored as usize);
        while stored.n_left() > 0 {
            if self.left.is_empty() {
                let early = || SourceError::new("they end too early", Retry::Pointless);
                self.left = self.window.next().await?.ok_or_else(early)?;
            }
            let n_bytes = self.left.len().min(stored.n_left());
            stored.push(&self.left.split_to(n_bytes));
        }
        Ok(stored.filled())
    }
}

/// Fetches frames of the source alone and deals them out, until all are or a thread wants no more; gives how many
/// of their bytes the source gave.
pub(super) async fn send(
    fetcher: &Fetcher<'_>,
    frames: &Descriptor,
    table: &Table,
    (missing, workers): (&[Missing], Workers),
    told: &(dyn Fn(u64) + Send + Sync),
) -> Result<u64, SourceError> {
    let Workers { jobs, verdicts } = workers;
    // What is wrong, the threads tell by their end; nobody is to wait for room to say more.
    drop(verdicts);
    let buffers = Buffers::default();
    let (mut n_given, mut nth) = (0, 0);
    for (run, bytes) in runs(table, missing) {
        let mut cutting = Cutting::new(fetcher.range(frames.digest, bytes), &buffers);
        for missing in run {
            let n_stored = table.stored_bytes(missing.idx);
            let (missing, by) = (*missing, Giver::Source);
            let job = Job { nth, missing, by, bytes: cutting.next(n_stored).await? };
            (n_given, nth) = (n_given + n_stored, nth + 1);
            if jobs.send(job).await.is_err() {
                // A thread has its own error to tell.
                return Ok(n_given);
            }
            told(n_given);
        }
    }
    Ok(n_given)
}

/// The frames whose stored bytes follow one another, and which bytes those are.
fn runs<'a>(table: &Table, missing: &'a [Missing]) -> Vec<(&'a [Missing], Range<u64>)> {
    let mut runs: Vec<(&[Missing], Range<u64>)> = Vec::new();
    let (mut idx, mut start) = (0, 0);
    for (n, one) in missing.iter().enumerate() {
        start += (idx..one.idx).map(|idx| table.stored_bytes(idx)).sum::<u64>();
        let end = start + table.stored_bytes(one.idx);
        match runs.last_mut() {
            Some((run, bytes)) if bytes.end == start => {
                *run = &missing[n - run.len()..=n];
                bytes.end = end;
            }
            _ => runs.push((&missing[n..=n], start..end)),
        }
        (idx, start) = (one.idx + 1, end);
    }
    runs
}

/// What a thread did.
#[derive(Default)]
struct Worked {
    n_frames: usize,
    waited: Duration,
}

/// Decodes, checks and writes all frames that come; gives the times in which the threads waited and
/// worked. Of contents that something is wrong with, or for which there is no room, nothing is left.
pub(super) fn put_in_place(
    contents: Contents,
    table: &Table,
    n_missing: usize,
    queues: Work,
) -> Result<(Contents, (Duration, Duration)), Stopped> {
    let (started, n_threads) = (Instant::now(), n_threads());
    let worked = in_parallel(0..n_threads, |_| work(&contents, table, &queues));
    let worked = worked.map_err(|error| Stopped::Store(contents.failed(error)))?;
    let took = started.elapsed();
    let mut all = Worked::default();
    let mut stopped = None;
    for worked in worked {
        match worked {
            Ok(worked) => {
                all.n_frames += worked.n_frames;
                all.waited += worked.waited;
            }
            Err(Stopped::Store(error)) => stopped = Some(Stopped::Store(error)),
            Err(other) => drop(stopped.get_or_insert(other)),
        }
    }
    if let Some(stopped) = stopped {
        contents.discard().map_err(Stopped::Store)?;
        return Err(stopped);
    }
    if all.n_frames < n_missing {
        let given_back = contents.give_room_back();
        given_back.map_err(|error| Stopped::Store(contents.failed(error)))?;
        return Err(Stopped::Abandoned);
    }
    let waited = all.waited / n_threads as u32;
    Ok((contents, (waited, took.saturating_sub(waited))))
}

fn work(contents: &Contents, table: &Table, queues: &Work) -> Result<Worked, Stopped> {
    let _ending = Ending(queues);
    let failed = |source: io::Error| Stopped::Store(contents.failed(source));
    let mut reader = FrameReader::new().map_err(failed)?;
    let mut buffer = FrameBuffer::new();
    let mut worked = Worked::default();
    loop {
        let started = Instant::now();
        let job = queues.next();
        worked.waited += started.elapsed();
        let Some(Job { nth, missing, by, bytes: came }) = job else { return Ok(worked) };
        let idx = missing.idx;
        let bytes = buffer.bytes(table.frame_bytes(idx));
        let frame = &table.frames[idx];
        let right = match by {
            Giver::Source => {
                let read = reader.read(frame, &came, bytes);
                Some(read.map_err(|problem| Stopped::Frame { idx, problem })?)
            }
            Giver::Peer(_) => frame.take(&came, bytes).then_some(&*bytes),
        };
        if let Some(bytes) = right {
            contents.write(missing, bytes).map_err(failed)?;
            worked.n_frames += 1;
        }
        let is_right = right.is_some();
        // Without a race nobody listens.
        let _ = queues.verdicts.blocking_send(Verdict::Of { nth, by, is_right });
    }
}

/// Does so for each, on a thread of its own; a panic there goes on here.
pub(super) fn in_parallel<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> io::Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let spawn = |item| {
            let named = thread::Builder::new().name("layer-frames".to_owned());
            named.spawn_scoped(scope, move || work(item))
        };
        let threads: io::Result<Vec<_>> = items.into_iter().map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, R>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        Ok(threads?.into_iter().map(join).collect())
    })
}
