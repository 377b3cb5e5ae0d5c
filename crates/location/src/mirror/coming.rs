//! A blob on its way into the mirror: a file, and which bytes of it are here.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use longshore_types::Digest;
use tokio::sync::watch;
use tokio::time::Instant;

use super::disk::{self, MirrorError};
use super::documents::Of;
use super::shelf::{NotKept, Passing, Shelf};
use super::way::{Go, Id, Step, Way};

/// A blob of which some is here. Dropped without being kept, it leaves nothing.
pub struct Coming {
    pub of: Of,
    pub size: u64,
    shelf: Arc<Shelf>,
    passing: Passing,
    state: Mutex<State>,
    /// Told at each change.
    news: watch::Sender<()>,
}

struct State {
    way: Way,
    /// Why nobody gets more of it from here.
    given_up: Option<String>,
    is_finishing: bool,
    has_room: bool,
    /// When somebody last read it.
    read_at: Instant,
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coming").field("of", &self.of).finish_non_exhaustive()
    }
}

impl Coming {
    /// One of which nothing is here yet. Waits for the disk.
    pub fn begin(shelf: &Arc<Shelf>, of: Of, size: u64) -> Result<Arc<Self>, NotKept> {
        let passing = shelf.begin(&of.1, size)?;
        Ok(Self::with(Arc::clone(shelf), of, size, passing))
    }

    fn with(shelf: Arc<Shelf>, of: Of, size: u64, passing: Passing) -> Arc<Self> {
        let state = State {
            way: Way::default(),
            given_up: None,
            is_finishing: false,
            has_room: true,
            read_at: Instant::now(),
        };
        let (news, state) = (watch::Sender::new(()), Mutex::new(state));
        Arc::new(Self { of, size, shelf, passing, state, news })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the way that it goes, and tells those who wait.
    fn change<T>(&self, change: impl FnOnce(&mut Way) -> T) -> T {
        let changed = change(&mut self.state().way);
        self.news.send_replace(());
        changed
    }

    /// Somebody reads these bytes.
    pub fn join(&self, part: Range<u64>) -> Id {
        self.change(|way| way.join(part))
    }

    /// A fetch begins of bytes that nobody brings.
    pub fn begin_fetch(&self, part: Range<u64>) -> Id {
        self.change(|way| way.begin(part))
    }

    /// What a fetch has yet to bring.
    pub fn left_of(&self, fetch: Id) -> Range<u64> {
        self.state().way.left_of(fetch)
    }

    /// A reader leaves.
    pub fn leave(&self, reader: Id) {
        self.state().read_at = Instant::now();
        self.change(|way| way.leave(reader));
    }

    /// What a reader does next, once there is something to do but to wait.
    pub async fn step(&self, reader: Id) -> Step {
        let mut news = self.news.subscribe();
        loop {
            let step = {
                let mut state = self.state();
                match &state.given_up {
                    Some(why) => Step::Broken(why.clone()),
                    None => state.way.step(reader),
                }
            };
            match step {
                // It goes with this, which is being held.
                Step::Wait => drop(news.changed().await),
                step => return step,
            }
        }
    }

    /// Reads these bytes, which are here, as what a reader takes. Waits for the disk.
    pub fn read(&self, reader: Id, part: Range<u64>) -> io::Result<Bytes> {
        let bytes = disk::read(&self.passing.file, part.clone())?;
        self.change(|way| way.took(reader, part.end - part.start));
        Ok(bytes)
    }

    /// Writes what a fetch brought. Waits for the disk.
    pub fn write(&self, fetch: Id, pieces: &[Bytes]) -> io::Result<()> {
        let from = self.left_of(fetch).start;
        let mut at = from;
        for piece in pieces {
            self.passing.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        self.change(|way| way.brought(fetch, at - from));
        Ok(())
    }

    /// Waits until a fetch is to go on, and says whether it had to wait; nothing when it is to end.
    pub async fn goes_on(&self, fetch: Id) -> Option<bool> {
        let mut news = self.news.subscribe();
        let mut has_waited = false;
        loop {
            match self.go(fetch) {
                Go::On => return Some(has_waited),
                Go::Stop => return None,
                Go::Pause => {
                    has_waited = true;
                    drop(news.changed().await);
                }
            }
        }
    }

    /// Waits until nobody wants the rest of a fetch.
    pub async fn is_unwanted(&self, fetch: Id) {
        let mut news = self.news.subscribe();
        while self.go(fetch) != Go::Stop {
            drop(news.changed().await);
        }
    }

    fn go(&self, fetch: Id) -> Go {
        let state = self.state();
        if state.given_up.is_some() { Go::Stop } else { state.way.go(fetch) }
    }

    /// A fetch ended; see [`Way::ended`].
    pub fn ended(&self, fetch: Id, why: Option<&str>) {
        self.change(|way| way.ended(fetch, why));
    }

    /// Nobody gets more of it from here.
    pub fn give_up(&self, why: String) {
        self.state().given_up = Some(why);
        self.news.send_replace(());
    }

    /// Whether it was given up.
    pub fn is_given_up(&self) -> bool {
        self.state().given_up.is_some()
    }

    /// Whether all of it is here, and nobody was told so before.
    pub fn finishes(&self) -> bool {
        let mut state = self.state();
        let finishes =
            !state.is_finishing && state.given_up.is_none() && state.way.has_all(self.size);
        state.is_finishing |= finishes;
        finishes
    }

    /// Keeps it, when it has its digest; gives the one that it has otherwise. Waits for the disk.
    pub fn keep(&self) -> Result<Option<Digest>, MirrorError> {
        let kept = self.shelf.keep(&self.of, self.size, &self.passing)?;
        if kept.is_none() {
            self.state().has_room = false;
        }
        Ok(kept)
    }

    /// Whether nobody has read it for so long, and nothing is about to become of it. What was given up is of use to
    /// nobody, so that is idle once nobody has it any more.
    pub fn is_idle(&self, span: Duration) -> bool {
        let state = self.state();
        let is_unread = !state.is_finishing && state.read_at.elapsed() >= span;
        state.way.is_idle() && (is_unread || state.given_up.is_some())
    }

    fn give_room_back(&self) {
        let had_room = std::mem::take(&mut self.state().has_room);
        if had_room {
            self.shelf.release(self.size);
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.give_room_back();
        if let Err(error) = disk::remove(&self.passing.path) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what came of a blob stays on the disk until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use longshore_types::MirrorSize;
    use prometheus_client::metrics::gauge::Gauge;
    use sha2::Digest as _;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_is_full_is_told_and_nothing_of_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path().join("m"), MirrorSize::default(), Gauge::default());
        let file = File::options().write(true).open("/dev/full").unwrap();
        let path = dir.path().join("passing");
        let coming = Coming::with(
            Arc::new(shelf.unwrap()),
            ("default/web".parse().unwrap(), Digest::from_sha256([1; 32])),
            10,
            Passing { file, path },
        );
        let reader = coming.join(0..10);
        let Step::Fetch(fetch) = coming.step(reader).await else { panic!("nothing is here") };
        assert_eq!(coming.goes_on(fetch).await, Some(false));
        let error = coming.write(fetch, &[Bytes::from_static(b"12345")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(coming.left_of(fetch), 0..10);
        coming.give_up("the disk is full".to_owned());
        assert_eq!(coming.step(reader).await, Step::Broken("the disk is full".to_owned()));
        assert_eq!(coming.goes_on(fetch).await, None);
        coming.is_unwanted(fetch).await;
        assert!(!coming.finishes() && !coming.is_idle(Duration::ZERO));
        coming.leave(reader);
        coming.ended(fetch, None);
        // However long it is kept otherwise.
        assert!(coming.is_idle(Duration::MAX));
    }

    #[test]
    fn what_two_repositories_bring_is_kept_once_and_counts_for_both() {
        let dir = tempfile::tempdir().unwrap();
        let taken: Gauge = Gauge::default();
        let shelf = Shelf::open(dir.path().join("m"), MirrorSize::default(), taken.clone());
        let shelf = Arc::new(shelf.unwrap());
        let bytes = Bytes::from_static(b"bytes");
        let digest = Digest::from_sha256(sha2::Sha256::digest(&bytes).into());
        let ofs: [Of; 3] = ["default/one", "default/two", "default/three"]
            .map(|name| (name.parse().unwrap(), digest));
        let bring = |of: &Of, bytes: Bytes| {
            let coming = Coming::begin(&shelf, of.clone(), 5).unwrap();
            let fetch = coming.begin_fetch(0..5);
            coming.write(fetch, &[bytes]).unwrap();
            assert!(coming.finishes() && !coming.finishes());
            coming
        };
        let [one, two] = [&ofs[0], &ofs[1]].map(|of| bring(of, bytes.clone()));
        let wrong = bring(&ofs[2], Bytes::from_static(b"wrong"));
        let find = || [0, 1, 2].map(|n: usize| shelf.find(&digest, &ofs[n].0));
        assert_eq!(one.keep().unwrap(), None);
        assert_eq!(find(), [Some(true), Some(false), Some(false)]);
        assert!(wrong.keep().unwrap().is_some());
        assert_eq!(two.keep().unwrap(), None);
        assert_eq!((find(), taken.get()), ([Some(true), Some(true), Some(false)], 5));
        drop((one, two, wrong));
        let kept = shelf.open_blob(&digest).unwrap();
        assert_eq!(disk::read(&kept.file, 0..kept.size).unwrap(), "bytes");
        assert_eq!(disk::list(&dir.path().join("m/coming")).unwrap().len(), 0);
        shelf.forget(&digest);
        assert_eq!((find(), taken.get()), ([None; 3], 0));
    }
}
