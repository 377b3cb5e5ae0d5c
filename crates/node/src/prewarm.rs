//! Images that somebody wished to be here before anything starts from them.
//!
//! They come one after the other, and never in the way of a start: while an image comes that an instance waits
//! for, the pull of a wished one is given up, and what came of its large layers is gone on from afterwards. What
//! should be here is told by the location as a whole; while that is away, what it told last holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_api::links::{PrewarmOrder, PrewarmOrders};
use longshore_image::pull::PullImageError;
use longshore_image::source::Retry;
use longshore_link::chain;
use longshore_types::{ByteCount, Digest, ImageState, NodeImage, PullRate, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::rate::Rate;
use crate::uplink::RETRY;
use crate::{Node, machine, stock};

/// The first and the longest wait before a pull that failed is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// How long a pull that cannot succeed is left alone: somebody may have pushed the image again.
const GIVEN_UP: Duration = Duration::from_secs(3600);

/// What should be here, and what became of it.
pub struct Prewarm {
    rate: Arc<Rate>,
    orders: watch::Sender<Vec<PrewarmOrder>>,
    /// How many instances wait for their images.
    starts: watch::Sender<usize>,
    failures: Mutex<BTreeMap<Digest, Failure>>,
}

/// Why an image is not here.
#[derive(Debug, Clone)]
struct Failure {
    note: String,
    given_up: bool,
    n_times: u32,
    again_at: Instant,
}

/// An instance waits for its image until this is dropped.
pub struct Start<'a>(&'a Prewarm);

impl Drop for Start<'_> {
    fn drop(&mut self) {
        self.0.starts.send_modify(|count| *count -= 1);
    }
}

impl Prewarm {
    /// One whose pulls take no more than that of the network.
    pub fn new(rate: PullRate) -> Self {
        Self {
            rate: Arc::new(Rate::new(rate)),
            orders: watch::Sender::default(),
            starts: watch::Sender::default(),
            failures: Mutex::default(),
        }
    }

    /// An instance begins to wait for its image.
    pub fn start(&self) -> Start<'_> {
        self.starts.send_modify(|count| *count += 1);
        Start(self)
    }

    /// Adds what should be here and is not to the images that are.
    pub fn add_absent(&self, images: &mut Vec<NodeImage>) {
        let failures = self.failures();
        for image in images.iter_mut() {
            if let (ImageState::Pulling { .. }, Some(failure)) =
                (image.state, failures.get(&image.digest))
            {
                image.note = Some(failure.note.clone());
            }
        }
        for PrewarmOrder { digest, .. } in self.orders.borrow().iter() {
            if images.iter().any(|image| image.digest == *digest) {
                continue;
            }
            let failure = failures.get(digest);
            images.push(NodeImage {
                digest: *digest,
                state: ImageState::Absent,
                size: ByteCount(0),
                last_used: Timestamp(0),
                holds: Vec::new(),
                note: failure.map(|failure| failure.note.clone()),
                given_up: failure.is_some_and(|failure| failure.given_up),
            });
        }
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<Digest, Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one to pull, and otherwise when there may be one.
    fn next(
        &self,
        is_here: impl Fn(&Digest) -> bool,
        now: Instant,
    ) -> Result<PrewarmOrder, Option<Instant>> {
        let orders = self.orders.borrow().clone();
        let mut failures = self.failures();
        failures.retain(|image, _| orders.iter().any(|order| order.digest == *image));
        let missing = orders.into_iter().filter(|order| !is_here(&order.digest));
        let mut soonest = None;
        for order in missing {
            match failures.get(&order.digest).map(|failure| failure.again_at) {
                Some(again_at) if again_at > now => {
                    soonest =
                        Some(soonest.map_or(again_at, |soonest: Instant| soonest.min(again_at)));
                }
                _ => return Ok(order),
            }
        }
        Err(soonest)
    }

    fn note(&self, image: &Digest, outcome: Result<(), &PullImageError>, now: Instant) {
        match outcome {
            Ok(()) => drop(self.failures().remove(image)),
            Err(error) => {
                self.fail(image, chain(error), error.retry() == Retry::Pointless, now);
            }
        }
    }

    fn fail(&self, image: &Digest, note: String, given_up: bool, now: Instant) {
        let mut failures = self.failures();
        let n_times = failures.get(image).map_or(0, |failure| failure.n_times).saturating_add(1);
        let wait = match given_up {
            true => GIVEN_UP,
            false => AGAIN.0.saturating_mul(2_u32.saturating_pow(n_times - 1)).min(AGAIN.1),
        };
        failures.insert(*image, Failure { note, given_up, n_times, again_at: now + wait });
    }

    /// Whether an instance waits for its image.
    pub fn is_awaited(&self) -> bool {
        *self.starts.borrow() > 0
    }
}

/// Follows what the location says should be here. Never ends.
pub async fn follow(node: Arc<Node>) {
    let path = format!("/link/nodes/{}/prewarm", node.name);
    let mut wait = RETRY.0;
    loop {
        match node.location.watch::<PrewarmOrders>(&path).await {
            Ok(mut told) => {
                let mut is_first = true;
                while let Some(Ok(PrewarmOrders { images })) = told.next().await {
                    wait = RETRY.0;
                    if is_first {
                        // One that began anew refused what it had not been told of itself.
                        node.prewarm.failures().clear();
                    }
                    node.prewarm.orders.send_if_modified(|orders| {
                        let is_news = is_first || *orders != images;
                        *orders = images;
                        is_news
                    });
                    is_first = false;
                }
            }
            // One of the release before tells of none.
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no wishes for now");
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.0);
    }
}

/// Pulls what should be here, one image after the other. Never ends.
pub async fn keep(node: Arc<Node>) {
    let prewarm = &node.prewarm;
    let (mut orders, mut images) = (prewarm.orders.subscribe(), node.stock.changes());
    loop {
        orders.mark_unchanged();
        images.mark_unchanged();
        match prewarm.next(|image| node.images.image(image).is_some(), Instant::now()) {
            Ok(order) => {
                // The senders live as long as the node, so errors cannot come.
                tokio::select! {
                    () = pull(&node, &order) => {}
                    _ = orders.wait_for(|now| !now.contains(&order)) => {}
                }
            }
            Err(again_at) => {
                let again = async {
                    match again_at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = again => {}
                    _ = orders.changed() => {}
                    _ = images.changed() => {}
                }
            }
        }
    }
}

/// Pulls one, once no instance waits for its image, until one does.
async fn pull(node: &Node, order: &PrewarmOrder) {
    let mut starts = node.prewarm.starts.subscribe();
    if starts.wait_for(|count| *count == 0).await.is_err() {
        return;
    }
    let PrewarmOrder { repository, digest } = order;
    if stock::is_over(node) {
        let why = "the disk is over its high mark (image_disk)".to_owned();
        node.prewarm.fail(digest, why, false, Instant::now());
        return;
    }
    let seen = node.stock.pull(digest);
    // Beside what limits all pulls.
    let source = node.source.and(Arc::clone(&node.prewarm.rate));
    let progress = |event| seen.note(&event);
    let began = Instant::now();
    let pulled = node.images.pull(Arc::new(source), repository, digest, &progress);
    let pulled = tokio::select! {
        // Dropping the pull is safe: what it had is gone on from, or removed by the store.
        _ = starts.wait_for(|count| *count > 0) => return,
        pulled = pulled => pulled,
    };
    machine::release_memory();
    node.metrics.note_pull(pulled.as_ref().ok().map(|(_, report)| report), began.elapsed());
    match &pulled {
        Ok(_) => tracing::info!(%digest, %repository, "an image is here before it is needed"),
        Err(error) => {
            tracing::warn!(%digest, error = error as &dyn std::error::Error, "cannot prewarm")
        }
    }
    node.prewarm.note(digest, pulled.as_ref().map(|_| ()), Instant::now());
    node.stock.change();
}

#[cfg(test)]
mod tests {
    use longshore_image::source::SourceError;

    use super::*;

    fn order(n: u8) -> PrewarmOrder {
        let repository = "default/web".parse().unwrap();
        PrewarmOrder { repository, digest: Digest::from_sha256([n; 32]) }
    }

    fn failed(retry: Retry) -> PullImageError {
        let digest = order(1).digest;
        PullImageError::FetchManifest { digest, source: SourceError::new("it is not there", retry) }
    }

    #[test]
    fn what_fails_is_tried_again_later_and_the_next_one_meanwhile() {
        let prewarm = Prewarm::new(PullRate::default());
        prewarm.orders.send_replace(vec![order(1), order(2)]);
        let now = Instant::now();
        let missing = |_: &Digest| false;
        assert_eq!(prewarm.next(missing, now), Ok(order(1)));
        prewarm.note(&order(1).digest, Err(&failed(Retry::CanHelp)), now);
        assert_eq!(prewarm.next(missing, now), Ok(order(2)));
        let has_second = |image: &Digest| *image == order(2).digest;
        assert_eq!(prewarm.next(has_second, now), Err(Some(now + AGAIN.0)));
        assert_eq!(prewarm.next(has_second, now + AGAIN.0), Ok(order(1)));
        prewarm.note(&order(1).digest, Err(&failed(Retry::CanHelp)), now);
        assert_eq!(prewarm.next(has_second, now), Err(Some(now + AGAIN.0 * 2)));
        prewarm.note(&order(1).digest, Err(&failed(Retry::Pointless)), now);
        assert_eq!(prewarm.next(has_second, now), Err(Some(now + GIVEN_UP)));
        let mut images = Vec::new();
        prewarm.add_absent(&mut images);
        let told: Vec<_> = images.iter().map(|image| (image.state, image.given_up)).collect();
        assert_eq!(told, [(ImageState::Absent, true), (ImageState::Absent, false)]);
        assert!(images[0].note.as_ref().unwrap().contains("it is not there"));
        // Who takes the wish back and makes it again wants it tried again.
        prewarm.orders.send_replace(vec![]);
        assert_eq!(prewarm.next(missing, now), Err(None));
        prewarm.orders.send_replace(vec![order(1)]);
        assert_eq!(prewarm.next(missing, now), Ok(order(1)));
    }

    #[test]
    fn starts_are_counted_until_they_end() {
        let prewarm = Prewarm::new(PullRate::default());
        let (first, second) = (prewarm.start(), prewarm.start());
        assert_eq!(*prewarm.starts.borrow(), 2);
        drop((first, second));
        assert_eq!(*prewarm.starts.borrow(), 0);
    }
}
