//! A disk in memory that can be held up, made to fail, and cut from its power.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use redb::StorageBackend;

const DEADLINE: Duration = Duration::from_secs(60);

/// The disk; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    content: Vec<u8>,
    /// What it had when the last sync ended.
    durable: Vec<u8>,
    /// Where it was written since.
    written: Vec<Range<usize>>,
    n_syncs: usize,
    n_waiting: usize,
    stopped: bool,
    failing: bool,
}

/// Lets syncs go on when it is dropped.
pub struct Gate<'a>(&'a Disk);

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.0.state().stopped = false;
        self.0.0.changed.notify_all();
    }
}

impl Disk {
    pub fn new() -> Self {
        Self::default()
    }

    /// One that has this.
    pub fn with(content: Vec<u8>) -> Self {
        let disk = Self::new();
        disk.state().durable.clone_from(&content);
        disk.state().content = content;
        disk
    }

    /// What a reader sees.
    pub fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    /// What may be left when the power goes now: of what was written since the last sync, any sectors.
    pub fn after_a_power_cut(&self, random: &mut fastrand::Rng) -> Self {
        const SECTOR: usize = 512;
        let state = self.state();
        // Nothing was written yet where it became longer.
        let mut left = state.durable.clone();
        left.resize(state.content.len(), 0);
        let written = state.written.iter();
        let sectors: BTreeSet<usize> =
            written.flat_map(|range| range.start / SECTOR..range.end.div_ceil(SECTOR)).collect();
        for sector in sectors.into_iter().filter(|_| random.bool()) {
            let bytes = (sector * SECTOR).min(left.len())..((sector + 1) * SECTOR).min(left.len());
            left[bytes.clone()].copy_from_slice(&state.content[bytes]);
        }
        Self::with(left)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no test panics while it holds the disk")
    }

    /// How many syncs have ended.
    pub fn n_syncs(&self) -> usize {
        self.state().n_syncs
    }

    /// Holds up every sync from now on.
    pub fn stop_syncs(&self) -> Gate<'_> {
        self.state().stopped = true;
        Gate(self)
    }

    /// Waits until a sync is being held up.
    pub fn until_a_sync_waits(&self) {
        let state = self.state();
        let waits = |state: &mut State| state.n_waiting == 0;
        let (_state, timeout) = (self.0.changed)
            .wait_timeout_while(state, DEADLINE, waits)
            .expect("no test panics while it holds the disk");
        assert!(!timeout.timed_out(), "no sync came");
    }

    /// Whether a sync is being held up.
    pub fn a_sync_waits(&self) -> bool {
        self.state().n_waiting > 0
    }

    /// Whether every write and sync fails from now on.
    pub fn fail(&self, failing: bool) {
        self.state().failing = failing;
    }
}

fn range(state: &State, offset: u64, n_bytes: usize) -> io::Result<Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let end = start + n_bytes;
    (end <= state.content.len())
        .then_some(start..end)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn check(state: &State) -> io::Result<()> {
    if state.failing { Err(io::Error::other("the disk fails as told")) } else { Ok(()) }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        out.copy_from_slice(&state.content[range(&state, offset, out.len())?]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        check(&state)?;
        let (len, before) = (usize::try_from(len).map_err(io::Error::other)?, state.content.len());
        state.content.resize(len, 0);
        if len < before {
            state.written.push(len..before);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.n_waiting += 1;
        self.0.changed.notify_all();
        let released = self.0.changed.wait_while(state, |state| state.stopped);
        let mut state = released.expect("no test panics while it holds the disk");
        state.n_waiting -= 1;
        state.n_syncs += 1;
        check(&state)?;
        let State { content, durable, written, .. } = &mut *state;
        durable.resize(content.len(), 0);
        for range in written.drain(..) {
            // It may have become shorter since.
            let range = range.start.min(content.len())..range.end.min(content.len());
            durable[range.clone()].copy_from_slice(&content[range]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        check(&state)?;
        let range = range(&state, offset, data.len())?;
        state.content[range.clone()].copy_from_slice(data);
        state.written.push(range);
        Ok(())
    }
}
