//! One look for all who ask the same at the same time.
//!
//! Whoever asks is told what was so after that: who pushed an image and then deploys it gets that one. So a look that is
//! under way is for those who asked before it began; who comes meanwhile waits for it to end, and the next one is for
//! all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is asked now, by what.
#[derive(Debug)]
pub struct Together<K, T>(Mutex<BTreeMap<K, Arc<Asked<T>>>>);

#[derive(Debug)]
struct Asked<T> {
    /// How many did so far.
    n_askers: AtomicU64,
    /// What the last look came to, and how many had asked when it began. Held while one is under way.
    last: tokio::sync::Mutex<Option<(u64, T)>>,
}

impl<K, T> Default for Together<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { n_askers: AtomicU64::new(0), last: tokio::sync::Mutex::new(None) }
    }
}

impl<K: Ord + Clone, T: Clone> Together<K, T> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Arc<Asked<T>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asking<'a>(&'a self, key: &'a K) -> Asking<'a, K, T> {
        let asked = self.lock().entry(key.clone()).or_default().clone();
        Asking { of: self, key, asked: Some(asked) }
    }

    /// What `look` comes to, or that of another that began after this was called. Cancel safe: the next one looks.
    pub async fn ask(&self, key: &K, look: impl Future<Output = T>) -> T {
        let asking = self.asking(key);
        let asked = asking.asked.as_ref().expect("it is given back at the end");
        let number = asked.n_askers.fetch_add(1, Ordering::SeqCst);
        let mut last = asked.last.lock().await;
        if let Some((n_before, found)) = &*last
            && number < *n_before
        {
            return found.clone();
        }
        let n_before = asked.n_askers.load(Ordering::SeqCst);
        let found = look.await;
        *last = Some((n_before, found.clone()));
        found
    }
}

/// One who asks, however that ends.
struct Asking<'a, K: Ord + Clone, T: Clone> {
    of: &'a Together<K, T>,
    key: &'a K,
    /// Until it is given back.
    asked: Option<Arc<Asked<T>>>,
}

impl<K: Ord + Clone, T: Clone> Drop for Asking<'_, K, T> {
    fn drop(&mut self) {
        let mut by_key = self.of.lock();
        // Whoever comes or leaves holds the lock, so of those that leave at once the last sees that it is.
        self.asked = None;
        if by_key.get(self.key).is_some_and(|asked| Arc::strong_count(asked) == 1) {
            by_key.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use futures_util::future::join_all;
    use futures_util::{FutureExt as _, poll};
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_look_is_for_those_who_asked_before_it_began() {
        let (together, n_looks, goes_on) = (Together::default(), Cell::new(0), Notify::new());
        let look = || async {
            n_looks.set(n_looks.get() + 1);
            let number = n_looks.get();
            goes_on.notified().await;
            number
        };
        let mut first = Box::pin(together.ask(&"web", look()));
        assert!(poll!(&mut first).is_pending());
        let mut others: Vec<_> = (0..10).map(|_| Box::pin(together.ask(&"web", look()))).collect();
        for other in &mut others {
            assert!(poll!(other).is_pending());
        }
        let mut of_other_key = Box::pin(together.ask(&"shop", look()));
        assert!(poll!(&mut of_other_key).is_pending());
        assert_eq!(n_looks.get(), 2, "they wait for the one that is under way");
        goes_on.notify_waiters();
        assert_eq!((first.await, of_other_key.await), (1, 2));
        // The one that looks for the others is given up, and another takes its place.
        assert!(poll!(&mut others[0]).is_pending());
        drop(others.remove(0));
        assert!(poll!(&mut others[0]).is_pending());
        assert_eq!(n_looks.get(), 4);
        goes_on.notify_waiters();
        assert_eq!(join_all(others).await, [4; 9]);
        goes_on.notify_one();
        assert_eq!(together.ask(&"web", look()).now_or_never(), Some(5), "what was so is not kept");
        assert!(together.lock().is_empty());
    }

    #[test]
    fn nothing_is_left_of_those_who_leave_at_once() {
        const AT_ONCE: usize = 2;
        let (together, n_ready) = (Together::<usize, ()>::default(), AtomicUsize::new(0));
        let come_and_leave = || {
            for key in 0..20_000 {
                let asking = together.asking(&key);
                n_ready.fetch_add(1, Ordering::SeqCst);
                while n_ready.load(Ordering::SeqCst) < (key + 1) * AT_ONCE {
                    thread::yield_now();
                }
                drop(asking);
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(come_and_leave);
            }
        });
        assert!(together.lock().is_empty());
    }
}
