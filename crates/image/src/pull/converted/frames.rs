//! Frames on their way: asked for in long runs, dealt out to threads that decode, check and write them.

use std::io;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::super::fetch::{Fetcher, PART, PARTS_AT_ONCE};
use super::file::{Contents, FrameBuffer, Missing};
use crate::converted::{FRAME, FrameProblem, FrameReader, Table};
use crate::manifest::Descriptor;
use crate::source::{Retry, SourceError};
use crate::store::StoreIoError;

/// The most threads of one layer.
const THREADS: usize = 8;

/// Frames that wait for a thread.
const QUEUE: usize = 1;

/// What is held in memory of a layer on its way: parts ahead of the frame that is handed over, that frame,
/// and of each thread those that wait for it, the one that it is at, and what that decodes to.
const HELD: u64 =
    PARTS_AT_ONCE as u64 * PART + (1 + THREADS as u64 * (QUEUE as u64 + 2)) * FRAME as u64;
const _: () = assert!(HELD <= 72 << 20, "SPECIFICATION.md says so");

/// As many as this machine can run.
pub(super) fn n_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS)
}

/// A frame as it is stored.
pub(super) struct Job {
    missing: Missing,
    stored: Vec<u8>,
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

/// A queue for each thread.
pub(super) fn queues() -> (Vec<mpsc::Sender<Job>>, Vec<mpsc::Receiver<Job>>) {
    (0..n_threads()).map(|_| mpsc::channel(QUEUE)).unzip()
}

/// How many bytes are stored of some frames.
pub(super) fn stored_of(table: &Table, missing: &[Missing]) -> u64 {
    missing.iter().map(|missing| table.stored_bytes(missing.idx)).sum()
}

/// Fetches frames and deals them out, until all are or a thread wants no more; gives how many of their
/// bytes the source gave.
pub(super) async fn send(
    fetcher: &Fetcher<'_>,
    frames: &Descriptor,
    table: &Table,
    (missing, senders): (&[Missing], Vec<mpsc::Sender<Job>>),
    told: &(dyn Fn(u64) + Send + Sync),
) -> Result<u64, SourceError> {
    let mut senders = senders.iter().cycle();
    let mut n_given = 0;
    for (run, bytes) in runs(table, missing) {
        let mut window = fetcher.range(frames.digest, bytes);
        // What came and belongs to the next frame.
        let mut left = bytes::Bytes::new();
        for missing in run {
            let n_stored = table.stored_bytes(missing.idx) as usize;
            let mut stored = Vec::with_capacity(n_stored);
            while stored.len() < n_stored {
                if left.is_empty() {
                    let early = || SourceError::new("they end too early", Retry::Pointless);
                    left = window.next().await?.ok_or_else(early)?;
                }
                stored.extend_from_slice(&left.split_to(left.len().min(n_stored - stored.len())));
            }
            n_given += n_stored as u64;
            let sender = senders.next().expect("there is a thread");
            if sender.send(Job { missing: *missing, stored }).await.is_err() {
                // It has its own error to tell.
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
    receivers: Vec<mpsc::Receiver<Job>>,
) -> Result<(Contents, (Duration, Duration)), Stopped> {
    let (started, n_threads) = (Instant::now(), receivers.len() as u32);
    let worked = in_parallel(receivers, |jobs| work(&contents, table, jobs));
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
        return Err(Stopped::Abandoned);
    }
    let waited = all.waited / n_threads.max(1);
    Ok((contents, (waited, took.saturating_sub(waited))))
}

fn work(
    contents: &Contents,
    table: &Table,
    mut jobs: mpsc::Receiver<Job>,
) -> Result<Worked, Stopped> {
    let failed = |source: io::Error| Stopped::Store(contents.failed(source));
    let mut reader = FrameReader::new().map_err(failed)?;
    let mut buffer = FrameBuffer::new();
    let mut worked = Worked::default();
    loop {
        let started = Instant::now();
        let job = jobs.blocking_recv();
        worked.waited += started.elapsed();
        let Some(Job { missing, stored }) = job else { return Ok(worked) };
        let idx = missing.idx;
        let bytes = buffer.bytes(table.frame_bytes(idx));
        let read = reader.read(&table.frames[idx], &stored, bytes);
        read.map_err(|problem| Stopped::Frame { idx, problem })?;
        contents.write(missing, bytes).map_err(failed)?;
        worked.n_frames += 1;
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
