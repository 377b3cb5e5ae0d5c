//! Bodies on their way through, frame by frame.
//!
//! Nothing is buffered: a frame is read from one side when the other side asks for it. Each frame
//! moves the clock of its exchange on, and silence is measured only where a side is waited for: a
//! user who reads slowly is no fault of the instance.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, Sleep};

use super::held::{Held, Keeping, Source};
use super::judge;
use super::lease::Lease;
use crate::balance::Outcome;
use crate::server::{Activity, Clock};

/// When bytes last moved in one exchange.
#[derive(Debug)]
pub(crate) struct Progress {
    connection: Arc<Activity>,
    last: Clock,
    awaits_client: AtomicBool,
    /// For how long no byte may move; none for ever.
    limit: Option<Duration>,
    /// Counts the bytes of the request's body.
    received: OnceLock<Counter>,
}

impl Progress {
    pub fn new(connection: Arc<Activity>, limit: Option<Duration>) -> Self {
        let awaits_client = AtomicBool::new(false);
        Self { connection, last: Clock::new(), awaits_client, limit, received: OnceLock::new() }
    }

    pub fn touch(&self) {
        self.connection.touch();
        self.last.touch();
    }

    /// True when the exchange waits for the rest of the user's request.
    pub fn awaits_client(&self) -> bool {
        self.awaits_client.load(Ordering::Relaxed)
    }

    /// From the first call on, counts the bytes of the request's body there.
    pub fn count_received(&self, counter: &Counter) {
        self.received.get_or_init(|| counter.clone());
    }

    /// When there was silence for too long, if nothing moves any more.
    fn due(&self) -> Option<Instant> {
        self.limit.map(|limit| self.last.at() + limit)
    }

    /// Waits until no byte has moved for too long.
    pub async fn silence(&self) {
        loop {
            let Some(due) = self.due() else { return std::future::pending().await };
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// The body of a user's request.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Inner,
    progress: Arc<Progress>,
}

#[derive(Debug)]
enum Inner {
    /// In the repetition of a request that has no body.
    Empty,
    User(Incoming),
    /// The same, on its way to another location.
    Held(Held),
}

impl RequestBody {
    pub fn new(inner: Incoming, progress: Arc<Progress>) -> Self {
        Self { inner: Inner::User(inner), progress }
    }

    /// One without bytes, of a request that is nobody's.
    pub fn none() -> Self {
        let progress = Arc::new(Progress::new(Arc::new(Activity::new()), None));
        Self { inner: Inner::Empty, progress }
    }

    /// One without bytes in the exchange of this one.
    pub fn empty(&self) -> Self {
        Self { inner: Inner::Empty, progress: Arc::clone(&self.progress) }
    }

    /// This one, with its beginning kept from now on.
    pub fn held(mut self) -> Self {
        self.inner = match std::mem::replace(&mut self.inner, Inner::Empty) {
            Inner::User(body) => Inner::Held(Held::new(body)),
            other => other,
        };
        self
    }

    /// By which it is sent again in the exchange of this one, where its beginning is kept.
    pub(super) fn keep(&self) -> Option<Kept> {
        match &self.inner {
            Inner::Held(held) => {
                Some(Kept { keeping: held.keep(), progress: Arc::clone(&self.progress) })
            }
            Inner::Empty | Inner::User(_) => None,
        }
    }
}

/// The body of a request that another location may refuse.
#[derive(Debug)]
pub(super) struct Kept {
    keeping: Keeping,
    progress: Arc<Progress>,
}

impl Kept {
    /// The body from its beginning, when that is kept.
    pub fn again(&self) -> Option<RequestBody> {
        let inner = Inner::Held(self.keeping.again()?);
        Some(RequestBody { inner, progress: Arc::clone(&self.progress) })
    }

    /// It will not be sent again.
    pub fn end(&self) {
        self.keeping.end();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = match &mut self.inner {
            Inner::Empty => return Poll::Ready(None),
            Inner::User(body) => Pin::new(body).poll_frame(cx),
            Inner::Held(held) => match held.poll_frame(cx) {
                // Counted when it came.
                (Source::Kept, polled) => return polled,
                (Source::User, polled) => polled,
            },
        };
        self.progress.awaits_client.store(polled.is_pending(), Ordering::Relaxed);
        if polled.is_ready() {
            self.progress.touch();
        }
        if let (Poll::Ready(Some(Ok(frame))), Some(counter)) =
            (&polled, self.progress.received.get())
        {
            counter.inc_by(length(frame));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::User(body) => body.is_end_stream(),
            Inner::Held(held) => held.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::User(body) => body.size_hint(),
            Inner::Held(held) => held.size_hint(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.progress.awaits_client.store(false, Ordering::Relaxed);
    }
}

fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX))
}

/// Why an answer is broken off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("the instance broke off its answer")]
    Broken(#[source] hyper::Error),
    #[error("the instance fell silent within its answer")]
    Silent,
}

/// The body of an answer to a user.
#[derive(Debug)]
pub(crate) enum Answer {
    /// By the ingress itself.
    Own(Full<Bytes>),
    /// Of an instance.
    Instance(Box<InstanceAnswer>),
    /// None: the connection is being handed over.
    Upgrade,
}

/// The body of an instance's answer, holding all that its exchange takes.
#[derive(Debug)]
pub(crate) struct InstanceAnswer {
    inner: Incoming,
    progress: Arc<Progress>,
    /// Set while a frame is awaited.
    waiting: Option<Pin<Box<Sleep>>>,
    lease: Option<Lease>,
}

impl InstanceAnswer {
    pub fn new(inner: Incoming, progress: Arc<Progress>, lease: Lease) -> Self {
        Self { inner, progress, waiting: None, lease: Some(lease) }
    }

    fn poll_inner(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.waiting = None;
            self.progress.touch();
            self.look_at(&frame);
            return Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::Broken)));
        }
        if self.waiting.is_none() {
            // Until now the user was waited for.
            self.progress.touch();
        }
        loop {
            let Some(due) = self.progress.due() else { return Poll::Pending };
            let waiting =
                self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if waiting.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.progress.due().is_some_and(|due| due <= Instant::now()) {
                return Poll::Ready(Some(Err(AnswerError::Silent)));
            }
            // The request's body moved meanwhile.
            self.waiting = None;
        }
    }
}

impl InstanceAnswer {
    /// Counts a frame. How a call of gRPC went is told at its end.
    fn look_at(&mut self, frame: &Option<Result<Frame<Bytes>, hyper::Error>>) {
        let Some(Ok(frame)) = frame else { return };
        if let Some(lease) = &self.lease {
            lease.seat.in_flight.app().metrics.sent.inc_by(length(frame));
        }
        if let (Some(trailers), Some(lease)) = (frame.trailers_ref(), &mut self.lease)
            && judge::fails(trailers)
        {
            lease.outcome = Outcome::Failed;
        }
    }
}

impl Drop for InstanceAnswer {
    fn drop(&mut self) {
        // Taken at the end of the stream, unless the server knew the end without asking for it.
        if let Some(lease) = self.lease.take().filter(|_| self.inner.is_end_stream()) {
            lease.complete();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match &mut *self {
            Self::Own(body) => pin!(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Upgrade => Poll::Ready(None),
            Self::Instance(answer) => {
                let polled = answer.poll_inner(cx);
                match &polled {
                    Poll::Ready(None) => {
                        if let Some(lease) = answer.lease.take() {
                            lease.complete();
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        if let Some(lease) = answer.lease.take() {
                            lease.broken_off(error);
                        }
                    }
                    _ => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Instance(answer) => answer.inner.is_end_stream(),
            Self::Upgrade => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Instance(answer) => answer.inner.size_hint(),
            Self::Upgrade => SizeHint::with_exact(0),
        }
    }
}
