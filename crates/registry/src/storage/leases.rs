//! What a push under way counts on: a blob that it has sent, mounted, or was told is there, and that no
//! manifest names yet.
//!
//! Nobody tells a registry when a push begins or ends. So whatever a client touched is left alone for
//! some time after that, and for as long as an upload to the same repository goes on that began
//! before, with the same time added (a push of a hundred gigabytes may have asked for its smallest
//! layer first). The times are in memory, by a clock that nobody sets; what was touched before this
//! process began counts as touched when it did, so that a restart forgets no push.
//!
//! A removal and a touch exclude each other: whoever touches what is just being removed waits until it
//! is gone, and then finds out that it must be sent. So a client that was told that a blob is there
//! can rely on that.
//!
//! Rejected: leases in files, which would make a write of each look; the age of the bytes, which says
//! nothing about a client that was told of them a moment ago.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use longshore_types::{Digest, Repository};

/// How long something may be counted on, and by when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    /// Since it was touched.
    pub(crate) length: Duration,
    /// When the look began that found that nothing needs it: what was touched since may be needed.
    pub(crate) looked: Instant,
}

/// What a client may count on: bytes of a repository.
type Key = (Repository, Digest);

/// When what was touched last, and what is being removed.
#[derive(Debug)]
pub(super) struct Leases {
    began: Instant,
    state: Mutex<State>,
    gone: Condvar,
}

#[derive(Debug, Default)]
struct State {
    touched: HashMap<Key, Instant>,
    going: HashSet<Key>,
}

/// While this is held, nobody else learns anything of what is being removed.
#[derive(Debug)]
pub(super) struct Going<'a> {
    leases: &'a Leases,
    key: Key,
}

impl Default for Leases {
    fn default() -> Self {
        Self { began: Instant::now(), state: Mutex::default(), gone: Condvar::new() }
    }
}

impl Leases {
    /// Somebody counts on it from now on. Waits for a removal that has begun. Not to be called by who
    /// holds the lock of a digest, which the removal needs.
    pub(super) fn touch(&self, repository: &Repository, digest: &Digest) {
        let key = (repository.clone(), *digest);
        let mut state = self.lock();
        while state.going.contains(&key) {
            state = self.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.touched.insert(key, Instant::now());
    }

    /// Whether anybody counts on it.
    pub(super) fn holds(&self, repository: &Repository, digest: &Digest, lease: Lease) -> bool {
        self.lock().holds(&(repository.clone(), *digest), lease, self.began)
    }

    /// Begins a removal, when nobody counts on it.
    pub(super) fn take(
        &self,
        repository: &Repository,
        digest: &Digest,
        lease: Lease,
    ) -> Option<Going<'_>> {
        let key = (repository.clone(), *digest);
        let mut state = self.lock();
        if state.holds(&key, lease, self.began) || !state.going.insert(key.clone()) {
            return None;
        }
        Some(Going { leases: self, key })
    }

    /// Forgets what nobody has touched for `longest`, more than any lease there can be.
    pub(super) fn forget(&self, longest: Duration) {
        self.lock().touched.retain(|_, touched| touched.elapsed() < longest);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It holds times, which a panic leaves as they are.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holds(&self, key: &Key, lease: Lease, began: Instant) -> bool {
        let touched = *self.touched.get(key).unwrap_or(&began);
        touched > lease.looked || touched.elapsed() < lease.length
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.leases.lock().going.remove(&self.key);
        self.leases.gone.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key() -> Key {
        ("a/b".parse().unwrap(), Digest::from_sha256([1; 32]))
    }

    #[test]
    fn what_was_touched_stays_and_what_is_going_is_waited_for() {
        let leases = Leases::default();
        let (repository, digest) = key();
        let lease = |length| Lease { length, looked: Instant::now() };
        let take = |lease| leases.take(&repository, &digest, lease);
        assert!(take(lease(HOUR)).is_none(), "it counts from the start");
        let now = lease(Duration::ZERO);
        let going = take(now).unwrap();
        assert!(take(now).is_none(), "by one at a time");
        std::thread::scope(|scope| {
            let (sender, touched) = mpsc::channel();
            let leases = &leases;
            scope.spawn(move || {
                leases.touch(&key().0, &key().1);
                sender.send(()).unwrap();
            });
            // It cannot have come through before the removal is over, however long that takes.
            assert!(touched.recv_timeout(Duration::from_millis(20)).is_err());
            drop(going);
            touched.recv().unwrap();
        });
        assert!(leases.holds(&repository, &digest, lease(HOUR)));
        assert!(take(now).is_none(), "it was touched since");
        assert!(take(lease(Duration::ZERO)).is_some());
        leases.forget(HOUR);
        assert!(leases.lock().touched.contains_key(&key()));
        leases.forget(Duration::ZERO);
        assert!(leases.lock().touched.is_empty());
    }
}
