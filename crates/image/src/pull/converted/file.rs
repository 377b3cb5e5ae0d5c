//! The contents of a layer while its frames come.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_types::Digest;

use super::super::kept;
use crate::converted::{FRAME, Stored, Table};
use crate::steps::{Step, reached};
use crate::store::{
    Arrival, DATA, FRAMES, INDEX, Inner, REPORT, Staging, StoreIoError, blank, report_text,
};
use crate::unpack::{CACHED, HOLE};

use super::frames::{in_parallel, n_threads};

/// A frame that has to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    pub idx: usize,
    pub place: Place,
}

/// What is where a frame has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Zeros.
    Blank,
    /// A part of the frame, of a pull that was killed, or what a power cut left.
    Written,
}

pub(super) struct Contents {
    path: PathBuf,
    file: File,
    /// The same, past the page cache; `None` where the file system has no such way.
    direct: Option<File>,
    /// Whether the file system gave it all its room.
    pub has_room: bool,
    /// By which neighbours have what is here of it.
    arrival: Option<Arrival>,
    /// Where it gets its name from; a large one lies elsewhere until then.
    staging: Staging,
}

/// Where the contents of a large layer lie until they are whole.
fn kept_path(store: &Inner, diff_id: &Digest) -> PathBuf {
    store.beginning_path(diff_id).with_extension(FRAMES)
}

/// Removes what was kept of a layer.
pub(super) fn remove(store: &Inner, diff_id: &Digest) -> Result<(), StoreIoError> {
    remove_file(&kept_path(store, diff_id))
}

fn remove_file(path: &Path) -> Result<(), StoreIoError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(StoreIoError::of("removing", path)),
    }
}

/// Gives a file a second name, so that whoever dies before the layer has its own leaves the first to the
/// next pull. Where files cannot have two, the frames come again then.
fn link(from: &Path, to: &Path) -> Result<(), StoreIoError> {
    let linked = match std::fs::hard_link(from, to) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
            ) =>
        {
            std::fs::rename(from, to)
        }
        linked => linked,
    };
    linked.map_err(StoreIoError::of("linking", from))?;
    reached(Step::FramesLinked);
    Ok(())
}

impl Contents {
    /// Takes what an earlier pull left of a large layer, or begins; gives the frames that are missing.
    pub fn open(store: &Arc<Inner>, table: &Table) -> Result<(Self, Vec<Missing>), StoreIoError> {
        let staging = Staging::new(store)?;
        let path = match table.data.0 >= kept::FROM {
            true => kept_path(store, &table.diff_id),
            false => staging.path().join(DATA),
        };
        let failed = StoreIoError::of("opening", &path);
        let open = || {
            let mut options = File::options();
            let file = options.create(true).truncate(false).read(true).write(true).open(&path)?;
            let length = file.metadata()?.len();
            file.set_len(table.data.0)?;
            let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(&path).ok();
            Ok((file, direct, length))
        };
        let (file, direct, length) = open().map_err(failed)?;
        reached(Step::FramesOpened);
        let mut contents = Self { path, file, direct, has_room: false, arrival: None, staging };
        let missing = match length {
            0 => contents.all(table),
            _ => contents.look(table)?,
        };
        contents.has_room = match contents.take_room(&missing, table) {
            Ok(has_room) => has_room,
            Err(error) => {
                let failed = contents.failed(error);
                contents.discard()?;
                return Err(failed);
            }
        };
        reached(Step::FramesRoomTaken);
        let (n_frames, absent) = (table.frames.len(), missing.iter().map(|missing| missing.idx));
        let file = (&*contents.path, &contents.file);
        let arrival = Arrival::new(store, &table.diff_id, file, (n_frames, absent));
        let arrival = arrival.map_err(StoreIoError::of("opening", &contents.path))?;
        contents.arrival = Some(arrival);
        Ok((contents, missing))
    }

    /// Everything but zeros.
    fn all(&self, table: &Table) -> Vec<Missing> {
        let frames = table.frames.iter().enumerate();
        let stored = frames.filter(|(_, frame)| frame.stored != Stored::Zeros);
        stored.map(|(idx, _)| Missing { idx, place: Place::Blank }).collect()
    }

    /// What is missing, or wrong, of what is here.
    fn look(&self, table: &Table) -> Result<Vec<Missing>, StoreIoError> {
        let n_threads = n_threads();
        let looked = in_parallel(0..n_threads, |first| {
            let mut missing = Vec::new();
            let mut bytes = vec![0; FRAME];
            for idx in (first..table.frames.len()).step_by(n_threads) {
                let bytes = &mut bytes[..table.frame_bytes(idx)];
                self.file.read_exact_at(bytes, idx as u64 * FRAME as u64)?;
                if !table.frames[idx].is(bytes) {
                    let place = match is_zero(bytes) {
                        true => Place::Blank,
                        false => Place::Written,
                    };
                    missing.push(Missing { idx, place });
                }
            }
            Ok(missing)
        });
        let looked = looked.and_then(|looked| looked.into_iter().collect::<io::Result<Vec<_>>>());
        let mut missing = looked.map_err(StoreIoError::of("reading", &self.path))?.concat();
        missing.sort_by_key(|missing| missing.idx);
        Ok(missing)
    }

    /// Has the file system give room to what is to come. A full disk is told before anything is fetched for it; and
    /// where there is room, several threads write at a time, where they would wait for one another to be given some.
    fn take_room(&self, missing: &[Missing], table: &Table) -> io::Result<bool> {
        let blank = missing.iter().filter(|missing| missing.place == Place::Blank);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for idx in blank.map(|missing| missing.idx) {
            let start = idx as u64 * FRAME as u64;
            let end = start + table.frame_bytes(idx) as u64;
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        for run in runs {
            if !blank::take(&self.file, run.start, run.end - run.start)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives the room back of what did not come.
    pub fn give_room_back(&self) -> io::Result<()> {
        blank::give_back_all(&self.file)
    }

    /// Puts a frame, which is right, in its place, from where neighbours may have it.
    pub fn write(&self, missing: Missing, bytes: &[u8]) -> io::Result<()> {
        self.put(missing, bytes)?;
        reached(Step::FrameWritten);
        if let Some(arrival) = &self.arrival {
            arrival.mark(missing.idx);
        }
        Ok(())
    }

    /// Where zeros are, long runs of them are not written, and take no room.
    fn put(&self, missing: Missing, bytes: &[u8]) -> io::Result<()> {
        let mut start = missing.idx as u64 * FRAME as u64;
        if missing.place == Place::Written {
            return self.write_at(bytes, start);
        }
        let mut unwritten = bytes;
        while !unwritten.is_empty() {
            let n_zeros = length_while(unwritten, is_zero);
            let rest = &unwritten[n_zeros..];
            let n_bytes = length_while(rest, |piece| !is_zero(piece));
            let from = start + n_zeros as u64;
            if self.has_room && n_zeros > 0 {
                blank::give_back(&self.file, start, n_zeros as u64)?;
            }
            if n_bytes > 0 {
                self.write_at(&rest[..n_bytes], from)?;
            }
            start = from + n_bytes as u64;
            unwritten = &rest[n_bytes..];
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], start: u64) -> io::Result<()> {
        match &self.direct {
            // As with a layer that is unpacked.
            Some(direct) if start >= CACHED => match direct.write_all_at(bytes, start) {
                // It wants them in larger pieces than blocks.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                written => return written,
            },
            _ => {}
        }
        self.file.write_all_at(bytes, start)
    }

    /// Waits until all is on the disk, and gives the layer its name.
    pub fn commit(
        self,
        store: &Arc<Inner>,
        table: &Table,
        index: &[u8],
    ) -> Result<(), StoreIoError> {
        // Neighbours are to find the layer where they do not find it on its way.
        let Self { path, file, arrival: _arrival, staging, .. } = self;
        file.sync_data().map_err(StoreIoError::of("syncing", &path))?;
        reached(Step::FramesSynced);
        let data = staging.path().join(DATA);
        let is_kept = path != data;
        let linked = if is_kept { link(&path, &data) } else { Ok(()) };
        let committed = linked
            .and_then(|()| staging.write(INDEX, index))
            .and_then(|()| staging.write(REPORT, &report_text(&table.report)))
            .and_then(|()| staging.commit_synced(&store.layer_path(store.form(), &table.diff_id)));
        if is_kept {
            // The layer is there, or its room is wanted. What stays grows old and goes.
            if let Err(error) = remove_file(&path) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what came of a layer cannot be removed");
            }
            reached(Step::FramesUnlinked);
        }
        committed
    }

    /// Says where a write failed.
    pub fn failed(&self, source: io::Error) -> StoreIoError {
        StoreIoError::of("writing", &self.path)(source)
    }

    /// It will not be gone on with.
    pub fn discard(self) -> Result<(), StoreIoError> {
        remove_file(&self.path)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// The length of the pieces, each as long as the shortest hole, from the beginning on that are so.
fn length_while(bytes: &[u8], is_so: fn(&[u8]) -> bool) -> usize {
    let pieces = bytes.chunks(HOLE as usize).take_while(|piece| is_so(piece));
    pieces.map(<[u8]>::len).sum()
}
