//! The clock of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::Limits;

/// Longer than any connection lives.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// When something last moved, readable and settable from any task.
#[derive(Debug)]
pub(crate) struct Clock {
    made: Instant,
    /// Milliseconds from `made` to the last move.
    last: AtomicU64,
}

impl Clock {
    /// A clock that was just touched.
    pub fn new() -> Self {
        Self { made: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Something moved.
    pub fn touch(&self) {
        let elapsed = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// When something last moved, to the millisecond.
    pub fn at(&self) -> Instant {
        self.made + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A connection's clock and its requests in flight.
#[derive(Debug)]
pub(crate) struct Activity {
    clock: Clock,
    requests: AtomicUsize,
    /// Those of `requests` that may be quiet for as long as they like.
    patient: AtomicUsize,
    began: AtomicUsize,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            clock: Clock::new(),
            requests: AtomicUsize::new(0),
            patient: AtomicUsize::new(0),
            began: AtomicUsize::new(0),
        }
    }

    /// A byte of a request or an answer moved.
    pub fn touch(&self) {
        self.clock.touch();
    }

    /// A request came; it is in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.touch();
        self.began.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Busy { activity: Arc::clone(self), is_patient: false }
    }

    /// True when no request is in flight.
    pub fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// Waits until the connection has been of no use for too long: without a first request, idle
    /// after one, or with an answer that its client does not take. An instance's silence ends
    /// before that by its own limit.
    pub async fn expired(&self, limits: &Limits) {
        self.still(|| {
            if self.patient.load(Ordering::Relaxed) > 0 {
                FOR_EVER
            } else if !self.is_idle() {
                2 * limits.silence
            } else if self.began.load(Ordering::Relaxed) == 0 {
                limits.head
            } else {
                limits.idle
            }
        })
        .await;
    }

    /// Waits until a connection that was told to end has done what it still may: `last_word` after
    /// its last request, or when a request does not move.
    pub async fn over(&self, limits: &Limits, last_word: Duration) {
        let told = Instant::now();
        tokio::time::sleep_until(told + last_word).await;
        self.still(|| if self.is_idle() { last_word } else { 2 * limits.silence }).await;
    }

    /// Waits until nothing has moved for the limit that holds then.
    async fn still(&self, limit: impl Fn() -> Duration) {
        /// The limit may become a shorter one while it is waited for.
        const LOOK_AGAIN: Duration = Duration::from_secs(5);
        loop {
            let (now, due) = (Instant::now(), self.clock.at() + limit());
            if now >= due {
                return;
            }
            tokio::time::sleep_until(due.min(now + LOOK_AGAIN)).await;
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Busy {
    activity: Arc<Activity>,
    is_patient: bool,
}

impl Busy {
    /// The request may be quiet for as long as it likes; the kernel's keep-alive finds a user who is
    /// gone.
    pub fn wait_patiently(&mut self) {
        if !std::mem::replace(&mut self.is_patient, true) {
            self.activity.patient.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // The connection is idle from now on, not from the last byte of this request.
        self.activity.touch();
        if self.is_patient {
            self.activity.patient.fetch_sub(1, Ordering::Relaxed);
        }
        self.activity.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
