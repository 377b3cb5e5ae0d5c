//! A fixed number of buffers that go round between threads.
//!
//! They are what bounds the memory of a pull: whoever fills one waits until the others are done with
//! it. None is made before it is needed, and none twice, for memory that a program never touched
//! costs a virtual machine more than what it writes there.

use std::ops::{Deref, DerefMut};
use std::sync::mpsc;

pub(super) struct Pool<T> {
    make: fn() -> T,
    n_unmade: usize,
    free: mpsc::Receiver<T>,
    home: mpsc::Sender<T>,
}

impl<T> Pool<T> {
    pub fn new(n_buffers: usize, make: fn() -> T) -> Self {
        let (home, free) = mpsc::channel();
        Self { make, n_unmade: n_buffers, free, home }
    }

    /// Waits for a buffer that nobody uses. What was in it still is.
    pub fn take(&mut self) -> Lent<T> {
        let item = match self.free.try_recv() {
            Ok(item) => item,
            Err(_) if self.n_unmade > 0 => {
                self.n_unmade -= 1;
                (self.make)()
            }
            Err(_) => self.free.recv().expect("the pool has a sender itself"),
        };
        Lent { item: Some(item), home: self.home.clone() }
    }
}

/// A buffer that goes back to its pool when it is dropped.
pub(super) struct Lent<T> {
    item: Option<T>,
    home: mpsc::Sender<T>,
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if let Some(item) = self.item.take() {
            // Without its pool it is not needed any more.
            let _ = self.home.send(item);
        }
    }
}

impl<T> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.item.as_ref().expect("only dropping takes it out")
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.item.as_mut().expect("only dropping takes it out")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_more_buffers_are_made_than_the_pool_has() {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let make = || MADE.fetch_add(1, Ordering::Relaxed);
        let mut pool = Pool::new(3, make);
        drop(pool.take());
        drop(pool.take());
        assert_eq!(MADE.load(Ordering::Relaxed), 1, "one that came back is used first");
        let (to, from) = mpsc::channel();
        let reader = thread::spawn(move || from.iter().map(|lent: Lent<usize>| *lent).collect());
        for _ in 0..100 {
            to.send(pool.take()).unwrap();
        }
        drop(to);
        let seen: Vec<usize> = reader.join().unwrap();
        assert_eq!((seen.len(), MADE.load(Ordering::Relaxed)), (100, 3));
        let last = pool.take();
        drop(pool);
        drop(last);
    }
}
