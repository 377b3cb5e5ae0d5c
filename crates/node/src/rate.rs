//! How much of the network pulls take, and what is given to other nodes.
//!
//! What comes is paid for by waiting, piece by piece, and all who share a rate pay into one purse; so a burst after a
//! rest is no larger than a piece. Pulls ahead of need pay into a second purse besides, and so never take more than all
//! may. Rejected: limits of the kernel on the agent's packets, which would slow reports down too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use longshore_image::source::{
    BlobStream, FetchedManifest, Given, Neighbours, Part, Source, SourceError,
};
use longshore_types::{Digest, PullRate, Repository};
use tokio::time::Instant;

/// How much is paid for at a time, at most.
const PIECE: usize = 16 << 10;

/// How much of the network pulls may take together.
pub struct Rate {
    rate: PullRate,
    /// When what was taken so far is paid.
    paid_at: Mutex<Option<Instant>>,
}

impl Rate {
    /// One that allows so much.
    pub fn new(rate: PullRate) -> Self {
        Self { rate, paid_at: Mutex::default() }
    }

    /// Whether it is less than all.
    fn is_limited(&self) -> bool {
        self.rate.time_of(1).is_some()
    }

    /// Takes so many bytes; until when to wait before more are taken.
    fn take(&self, n_bytes: usize, now: Instant) -> Option<Instant> {
        let cost = self.rate.time_of(n_bytes as u64)?;
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = paid_at.unwrap_or(now).max(now) + cost;
        *paid_at = Some(paid);
        Some(paid)
    }

    /// Takes so many bytes where they are paid for within a time: until when to wait. Else nothing is taken.
    pub fn take_within(&self, n_bytes: usize, now: Instant, within: Duration) -> Option<Instant> {
        let Some(cost) = self.rate.time_of(n_bytes as u64) else { return Some(now) };
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = paid_at.unwrap_or(now).max(now) + cost;
        (paid <= now + within).then(|| *paid_at.insert(paid))
    }
}

/// A source of which no more is taken than its rates allow.
pub struct Throttled {
    source: Arc<dyn Source>,
    rates: Vec<Arc<Rate>>,
}

impl Throttled {
    /// One of which all that have this rate take no more together.
    pub fn new(source: Arc<dyn Source>, rate: Arc<Rate>) -> Self {
        Self { source, rates: vec![rate] }
    }

    /// The same with one more rate.
    pub fn and(&self, rate: Arc<Rate>) -> Self {
        let rates = self.rates.iter().cloned().chain([rate]);
        Self { source: Arc::clone(&self.source), rates: rates.collect() }
    }

    fn slow(&self, bytes: BlobStream) -> BlobStream {
        let rates = self.rates.clone();
        let rest = Bytes::new();
        let slowed =
            stream::unfold((bytes, rest, rates), |(mut bytes, mut rest, rates)| async move {
                let piece: Result<Bytes, SourceError> = match rest.is_empty() {
                    true => bytes.next().await?,
                    false => Ok(std::mem::take(&mut rest)),
                };
                // A large one would look like silence to who waits for it.
                let piece = piece.map(|mut piece| {
                    rest = piece.split_off(piece.len().min(PIECE));
                    piece
                });
                let (n_bytes, now) = (piece.as_ref().map_or(0, Bytes::len), Instant::now());
                // At the same time: one after the other would be slower than either.
                let until = rates.iter().filter_map(|rate| rate.take(n_bytes, now)).max();
                if let Some(until) = until {
                    tokio::time::sleep_until(until).await;
                }
                Some((piece, (bytes, rest, rates)))
            });
        slowed.boxed()
    }
}

impl Source for Throttled {
    fn manifest<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<FetchedManifest, SourceError>> {
        self.source.manifest(repository, digest)
    }

    fn blob<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
        part: Part,
    ) -> BoxFuture<'a, Result<Given, SourceError>> {
        Box::pin(async move {
            Ok(match self.source.blob(repository, digest, part).await? {
                Given::Part(bytes) => Given::Part(self.slow(bytes)),
                Given::Whole(bytes) => Given::Whole(self.slow(bytes)),
            })
        })
    }

    fn converted<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, SourceError>> {
        self.source.converted(repository, manifest)
    }

    /// Where a rate has to be kept to, the source is enough.
    fn neighbours<'a>(
        &'a self,
        repository: &'a Repository,
        image: &'a Digest,
    ) -> BoxFuture<'a, Neighbours> {
        match self.rates.iter().any(|rate| rate.is_limited()) {
            true => Box::pin(async { Neighbours::default() }),
            false => self.source.neighbours(repository, image),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;

    #[test]
    fn what_is_taken_is_paid_for_before_more_is() {
        let rate = Rate::new("1MiB".parse().unwrap());
        let now = Instant::now();
        let after = |millis| Some(now + Duration::from_millis(millis));
        assert_eq!(rate.take(1 << 19, now), after(500));
        assert_eq!(rate.take(1 << 18, now), after(750));
        let later = now + Duration::from_secs(5);
        assert_eq!(rate.take(1 << 20, later), Some(later + Duration::from_secs(1)));
        let within = |seconds| rate.take_within(1 << 20, later, Duration::from_secs(seconds));
        let two = later + Duration::from_secs(2);
        assert_eq!((within(1), within(2), within(2)), (None, Some(two), None));
        assert_eq!(Rate::new(PullRate::default()).take(1 << 30, now), None);
        let all = Rate::new(PullRate::default());
        assert_eq!(all.take_within(1 << 30, now, Duration::ZERO), Some(now));
    }

    /// A source of one blob.
    struct Zeros(usize);

    impl Source for Zeros {
        fn manifest<'a>(
            &'a self,
            _: &'a Repository,
            _: &'a Digest,
        ) -> BoxFuture<'a, Result<FetchedManifest, SourceError>> {
            unreachable!("nobody asks for it")
        }

        fn blob<'a>(
            &'a self,
            _: &'a Repository,
            _: &'a Digest,
            _: Part,
        ) -> BoxFuture<'a, Result<Given, SourceError>> {
            let pieces = (0..self.0).map(|_| Ok(Bytes::from(vec![0; 1 << 16])));
            Box::pin(async { Ok(Given::Whole(stream::iter(pieces).boxed())) })
        }

        fn neighbours<'a>(&'a self, _: &'a Repository, _: &'a Digest) -> BoxFuture<'a, Neighbours> {
            Box::pin(async { Neighbours { own: "n1".to_owned(), others: Vec::new() } })
        }
    }

    #[tokio::test]
    async fn who_keeps_to_a_rate_asks_no_neighbours() {
        let own = async |all: &str, wished: &str| {
            let rate = |rate: &str| Arc::new(Rate::new(rate.parse().unwrap()));
            let source = Throttled::new(Arc::new(Zeros(1)), rate(all)).and(rate(wished));
            let (repository, digest) = ("a/b".parse().unwrap(), Digest::from_sha256([1; 32]));
            source.neighbours(&repository, &digest).await.own
        };
        assert_eq!(own("unlimited", "unlimited").await, "n1");
        assert_eq!(own("1MiB", "unlimited").await, "");
        assert_eq!(own("unlimited", "1MiB").await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wished_stays_below_what_all_pulls_may_take_together() {
        let all = Arc::new(Rate::new("1MiB".parse().unwrap()));
        let source = |all: &Arc<Rate>| Throttled::new(Arc::new(Zeros(16)), Arc::clone(all));
        let wished = Arc::new(Rate::new("256KiB".parse().unwrap()));
        let wished = source(&all).and(wished);
        let (first, second) = (source(&all), source(&all));
        let (repository, digest) = ("a/b".parse().unwrap(), Digest::from_sha256([1; 32]));
        let began = Instant::now();
        let pull = async |source: &Throttled| {
            match source.blob(&repository, &digest, Part::WHOLE).await.unwrap() {
                Given::Whole(bytes) | Given::Part(bytes) => {
                    bytes.try_for_each(|_| async { Ok(()) }).await.unwrap();
                }
            }
            began.elapsed().as_millis()
        };
        // Each has a mebibyte: those that share a rate take twice as long, the wished one as long as its own says.
        let (first, second) = tokio::join!(pull(&first), pull(&second));
        assert!((1900..2100).contains(&first.max(second)), "{first} {second}");
        let wished = pull(&wished).await - first.max(second);
        assert!((3900..4200).contains(&wished), "{wished}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
