//! The body of a request on its way to another location, which may refuse it.
//!
//! A location refuses when none of its instances had the request, so it may go to the next one; but by then some of
//! its body is gone. Therefore the first bytes are kept until the answer begins: that is all of most bodies, and of
//! a call of gRPC. A body that is longer before there is an answer is sent once.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

/// So much of a body is kept, bytes.
const MAX_KEPT: usize = 32 << 10;

/// A body of which the beginning can be sent again. Each sending has its turn, and the last one alone reads on.
#[derive(Debug)]
pub(super) struct Held {
    shared: Arc<Mutex<Shared>>,
    turn: u32,
    /// How many of the kept pieces this sending has had.
    n_sent: usize,
}

#[derive(Debug)]
struct Shared {
    rest: Incoming,
    kept: Vec<Bytes>,
    n_bytes: usize,
    /// False once something was sent that is not kept.
    is_whole: bool,
    turn: u32,
}

/// By which a body is sent again.
#[derive(Debug)]
pub(super) struct Keeping(Arc<Mutex<Shared>>);

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// From now on the beginning of this body is kept.
    pub fn new(rest: Incoming) -> Self {
        let (kept, n_bytes) = (Vec::new(), 0);
        let shared = Shared { rest, kept, n_bytes, is_whole: true, turn: 0 };
        Self { shared: Arc::new(Mutex::new(shared)), turn: 0, n_sent: 0 }
    }

    pub fn keep(&self) -> Keeping {
        Keeping(Arc::clone(&self.shared))
    }

    /// The next frame, and from where it is.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> (Source, Polled) {
        let mut shared = lock(&self.shared);
        if shared.turn != self.turn {
            // What is sent here was refused; nobody reads the rest of it.
            return (Source::Kept, Poll::Ready(None));
        }
        if let Some(piece) = shared.kept.get(self.n_sent) {
            self.n_sent += 1;
            return (Source::Kept, Poll::Ready(Some(Ok(Frame::data(piece.clone())))));
        }
        let polled = Pin::new(&mut shared.rest).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            shared.keep(frame.data_ref());
            self.n_sent = shared.kept.len();
        }
        (Source::User, polled)
    }

    pub fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        self.n_sent >= shared.kept.len() && shared.rest.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        let again = shared.kept.iter().skip(self.n_sent).map(|piece| piece.len()).sum::<usize>();
        let again = u64::try_from(again).unwrap_or(u64::MAX);
        let rest = shared.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(again));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(again));
        }
        hint
    }
}

/// What a body gives when it is asked for its next frame.
type Polled = Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;

/// From where a frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    User,
    Kept,
}

impl Shared {
    fn keep(&mut self, data: Option<&Bytes>) {
        // Trailers end a body; there is no sense in keeping them, for they come late.
        let length = data.map_or(MAX_KEPT, Bytes::len);
        match data.filter(|_| self.is_whole && self.n_bytes + length <= MAX_KEPT) {
            Some(data) => {
                self.n_bytes += length;
                self.kept.push(data.clone());
            }
            None => {
                self.is_whole = false;
                self.kept = Vec::new();
            }
        }
    }
}

impl Keeping {
    /// The body from its beginning, when all that was sent of it is kept. What is being sent of it ends.
    pub fn again(&self) -> Option<Held> {
        let mut shared = lock(&self.0);
        if !shared.is_whole {
            return None;
        }
        shared.turn += 1;
        Some(Held { shared: Arc::clone(&self.0), turn: shared.turn, n_sent: 0 })
    }

    /// It will not be sent again: nothing more is kept. What is kept may still have to be sent.
    pub fn end(&self) {
        lock(&self.0).is_whole = false;
    }
}
