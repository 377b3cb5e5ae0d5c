//! The images of the node: which come, which are used, and which go when room is needed.
//!
//! Nothing goes of what the node's location, asked at that moment, says is needed, and nothing at all while it
//! cannot be asked: what an app would be rolled back to, only others know. Rejected: to be told of it beforehand,
//! which would be a list of all apps for every node at each change, and older than the moment in which it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use http::Method;
use longshore_api::links::{HoldsRequest, ImageHolds};
use longshore_image::pull::PullProgress;
use longshore_image::store::{CollectError, Lack, Stocked, StoreIoError};
use longshore_link::{CallError, now};
use longshore_planning::collection::{CachedImage, DiskUse, RoomNeed, plan_collection};
use longshore_types::{
    ByteCount, Digest, DiskMarks, HoldReason, ImageHold, ImageState, NodeImage, NodeName, Timestamp,
};
use tokio::sync::watch;

use crate::Node;

/// How often it is looked whether the disk is over its high mark, where no image came before.
const INTERVAL: Duration = Duration::from_secs(30);

/// What is known of the images beside what lies on the disk.
pub struct Stock {
    marks: DiskMarks,
    /// What comes, by image.
    pulls: Mutex<BTreeMap<Digest, Vec<Weak<PullProgress>>>>,
    /// Held by who makes room.
    alone: tokio::sync::Mutex<()>,
    /// Told when images came or went, or one begins to come.
    changed: watch::Sender<()>,
}

fn state(progress: &PullProgress) -> ImageState {
    let (done, of) = progress.so_far();
    ImageState::Pulling { done, of }
}

/// Why no room was made.
#[derive(Debug, thiserror::Error)]
pub enum MakeRoomError {
    /// The store cannot be looked at.
    #[error("looking at what images take")]
    Look(#[from] StoreIoError),
    /// The location does not say what is needed.
    #[error("asking the location what is needed here")]
    Ask(#[from] CallError),
    /// The store's disk refused.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The process is shutting down.
    #[error("it was interrupted")]
    Interrupted,
}

impl Stock {
    /// One that keeps to these marks.
    pub fn new(marks: DiskMarks) -> Self {
        let (pulls, alone, changed) = Default::default();
        Self { marks, pulls, alone, changed }
    }

    /// A pull begins, which is seen until what is given is dropped.
    pub fn pull(&self, image: &Digest) -> Arc<PullProgress> {
        let progress = Arc::default();
        let is_first = {
            let mut pulls = self.pulls();
            let of_image = pulls.entry(*image).or_default();
            of_image.retain(|pull| pull.strong_count() > 0);
            of_image.push(Arc::downgrade(&progress));
            of_image.len() == 1
        };
        if is_first {
            self.change();
        }
        progress
    }

    /// Images came or went, or one begins to come.
    pub fn change(&self) {
        self.changed.send_replace(());
    }

    /// Tells of images that came or went, or begin to come.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn pulls(&self) -> MutexGuard<'_, BTreeMap<Digest, Vec<Weak<PullProgress>>>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes, and how far it is; of several pulls of one image the one that is furthest.
    fn coming(&self) -> BTreeMap<Digest, ImageState> {
        let mut pulls = self.pulls();
        pulls.retain(|_, of_image| of_image.iter().any(|pull| pull.strong_count() > 0));
        let furthest = |of_image: &Vec<Weak<PullProgress>>| {
            let states = of_image.iter().filter_map(|pull| Some(state(&*pull.upgrade()?)));
            states.max_by_key(|state| match state {
                ImageState::Pulling { done, of } => (*of, *done),
                _ => Default::default(),
            })
        };
        pulls.iter().filter_map(|(image, pulls)| Some((*image, furthest(pulls)?))).collect()
    }

    /// How far an image is that comes.
    pub fn coming_of(&self, image: &Digest) -> Option<ImageState> {
        self.coming().remove(image)
    }

    /// The images that come.
    pub fn pulling(&self) -> BTreeSet<Digest> {
        self.coming().into_keys().collect()
    }
}

/// The images that are here, on their way or should be, by digest. Blocks while files are looked at.
pub fn list(node: &Node) -> Result<Vec<NodeImage>, StoreIoError> {
    let mut coming = node.stock.coming();
    let mut images = Vec::new();
    for stocked in node.images.stock()? {
        coming.remove(&stocked.digest);
        images.push(NodeImage {
            digest: stocked.digest,
            state: if stocked.held { ImageState::Mounted } else { ImageState::Complete },
            size: stocked.size(),
            last_used: timestamp(stocked.last_used),
            holds: Vec::new(),
            note: None,
            given_up: false,
        });
    }
    let (size, holds, last_used) = (ByteCount(0), Vec::new(), now());
    images.extend(coming.into_iter().map(|(digest, state)| NodeImage {
        digest,
        state,
        size,
        last_used,
        holds: holds.clone(),
        note: None,
        given_up: false,
    }));
    node.prewarm.add_absent(&mut images);
    images.sort_by_key(|image| image.digest);
    Ok(images)
}

fn timestamp(time: SystemTime) -> Timestamp {
    // A time before 1970 is as old as any.
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Keeps the disk below its high mark.
pub async fn keep(node: Arc<Node>) {
    make_room_for_pulls(&node);
    let mut changes = node.stock.changes();
    loop {
        if let Err(error) = make_room(&node, RoomNeed::default()).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "images that nobody needs stay on the disk");
        }
        tokio::select! {
            // The sender lives as long as the node, so that error cannot come.
            _ = changes.changed() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Has pulls find room where some can be made.
fn make_room_for_pulls(node: &Arc<Node>) {
    // The store must not keep the node that has it.
    let weak = Arc::downgrade(node);
    node.images.keep_room(Box::new(move |Lack { least, likely }| {
        let node = Weak::clone(&weak);
        Box::pin(async move {
            let node = node.upgrade()?;
            match make_room(&node, RoomNeed { least, likely }).await {
                Ok(pinned) => kept_by_pins(pinned, &node.name),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, %least, %likely, "no room is made for a pull");
                    None
                }
            }
        })
    }));
}

/// Why there is not more room, where that is for pins.
fn kept_by_pins(pinned: ByteCount, node: &NodeName) -> Option<String> {
    let told = format!(
        "pinned images keep {pinned} here: `longshore image ls --node {node}` says which, and \
         `longshore image prewarm IMAGE --rm` takes a pin back"
    );
    (pinned > ByteCount(0)).then_some(told)
}

/// Lets go of images that nothing keeps, where the disk is over its high mark or a pull lacks room. How much stays
/// for pins alone, as far as that had to be looked at.
async fn make_room(node: &Arc<Node>, need: RoomNeed) -> Result<ByteCount, MakeRoomError> {
    let _alone = node.stock.alone.lock().await;
    let marks = node.stock.marks;
    let mut disk = disk_use(node)?;
    if need == RoomNeed::default() && !disk.is_over(marks) {
        return Ok(ByteCount(0));
    }
    // What failed pulls or a crash left behind belongs to no image, and nobody has to be asked about it.
    let sweeper = Arc::clone(node);
    in_background(move || sweeper.images.collect(&[])).await??;
    let before = std::mem::replace(&mut disk, disk_use(node)?);
    let need = need.less(ByteCount(before.used.0.saturating_sub(disk.used.0)));
    if need == RoomNeed::default() && !disk.is_over(marks) {
        return Ok(ByteCount(0));
    }
    let looker = Arc::clone(node);
    let stock = in_background(move || looker.images.stock()).await??;
    let asked = stock.iter().filter(|image| !image.held).map(|image| image.digest).collect();
    let holds = ask(node, asked).await?;
    let mut images: Vec<_> = stock.into_iter().map(|image| cached(image, &holds)).collect();
    let pulled = node.images.pulled_layers();
    let mut plan = plan_collection(&images, &pulled, disk, marks, need);
    if plan.frees < need.least && node.prewarm.is_awaited() {
        let_wishes_go(&mut images);
        plan = plan_collection(&images, &pulled, disk, marks, need);
    }
    if plan.take.is_empty() {
        if plan.wanted > ByteCount(0) {
            let (wanted, kept) = (plan.wanted, plan.stays.len());
            tracing::info!(%wanted, kept, "the disk is full, and all images on it are needed");
        }
        return Ok(plan.pinned);
    }
    let (taker, take, pinned) = (Arc::clone(node), plan.take, plan.pinned);
    let collected = in_background(move || taker.images.collect(&take)).await??;
    let (images, layers, frees) = (collected.images.len(), collected.layers.len(), plan.frees);
    tracing::info!(images, layers, %frees, "images that nobody needs left the disk");
    node.metrics.note_collected(images, frees);
    node.stock.change();
    Ok(pinned)
}

/// What was merely wished keeps no instance from starting; what is pinned does.
fn let_wishes_go(images: &mut [CachedImage]) {
    for image in images {
        image.holds.retain(|hold| hold.reason != HoldReason::Prewarm);
    }
}

fn disk_use(node: &Node) -> Result<DiskUse, StoreIoError> {
    let space = node.images.space()?;
    Ok(DiskUse { total: space.total, used: ByteCount(space.total.0.saturating_sub(space.free.0)) })
}

/// Whether the disk is over its high mark: then nothing comes that nobody waits for.
pub fn is_over(node: &Node) -> bool {
    disk_use(node).is_ok_and(|disk| disk.is_over(node.stock.marks))
}

/// Asks the location what is needed of these.
async fn ask(node: &Node, images: Vec<Digest>) -> Result<ImageHolds, CallError> {
    if images.is_empty() {
        return Ok(ImageHolds::default());
    }
    let path = format!("/link/nodes/{}/images/holds", node.name);
    node.location.call(Method::POST, &path, Some(&HoldsRequest { images })).await
}

fn cached(image: Stocked, holds: &ImageHolds) -> CachedImage {
    let Stocked { digest, last_used, held, own, layers } = image;
    let here = ImageHold { reason: HoldReason::Instance, by: "an instance here".to_owned() };
    let holds = match held {
        true => vec![here],
        false => holds.holds.get(&digest).cloned().unwrap_or_default(),
    };
    CachedImage { digest, last_used: timestamp(last_used), holds, own, layers }
}

/// Runs what waits for the disk off the async workers.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, MakeRoomError> {
    // Only a shutdown or a panic, which has been told, ends it early.
    tokio::task::spawn_blocking(work).await.map_err(|_| MakeRoomError::Interrupted)
}

#[cfg(test)]
mod tests {
    use longshore_image::pull::PullEvent;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::from_sha256([n; 32])
    }

    #[test]
    fn a_pull_is_seen_until_it_ends_and_tells_how_far_it_is() {
        let stock = Stock::new(DiskMarks::default());
        let mut changes = stock.changes();
        let first = stock.pull(&digest(1));
        assert!(changes.has_changed().unwrap(), "the location is told at once");
        changes.mark_unchanged();
        let second = stock.pull(&digest(1));
        assert!(!changes.has_changed().unwrap(), "which knows that by now");
        let other = stock.pull(&digest(2));
        let (of, total) = (ByteCount(100), ByteCount(60));
        let layers = vec![(digest(8), total), (digest(9), ByteCount(40))];
        first.note(&PullEvent::Resolved { layers });
        for fetched in [10, 40].map(ByteCount) {
            first.note(&PullEvent::LayerProgress { blob: digest(8), fetched, total });
        }
        first.note(&PullEvent::LayerDone { blob: digest(8), unpacked: ByteCount(900) });
        let (fetched, total) = (ByteCount(5), ByteCount(40));
        first.note(&PullEvent::LayerProgress { blob: digest(9), fetched, total });
        let coming = stock.coming();
        assert_eq!(stock.coming_of(&digest(1)), Some(coming[&digest(1)]));
        assert_eq!(stock.pulling(), BTreeSet::from([digest(1), digest(2)]));
        assert_eq!(coming[&digest(1)], ImageState::Pulling { done: ByteCount(65), of });
        let unresolved = ImageState::Pulling { done: ByteCount(0), of: ByteCount(0) };
        assert_eq!(coming[&digest(2)], unresolved);
        drop((first, other));
        assert_eq!(stock.coming(), BTreeMap::from([(digest(1), unresolved)]));
        drop(second);
        assert_eq!(stock.coming(), BTreeMap::new());
    }

    #[test]
    fn what_is_used_here_is_kept_whatever_the_location_says() {
        let stocked = |held| Stocked {
            digest: digest(1),
            last_used: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            held,
            own: ByteCount(1),
            layers: BTreeMap::new(),
        };
        let by = "default/web r1".to_owned();
        let said = vec![ImageHold { reason: HoldReason::Rollback, by }];
        let none = ImageHolds::default();
        let holds = ImageHolds { holds: BTreeMap::from([(digest(1), said.clone())]) };
        assert_eq!(cached(stocked(true), &none).holds[0].reason, HoldReason::Instance);
        assert_eq!(cached(stocked(false), &none).holds, []);
        let kept = cached(stocked(false), &holds);
        assert_eq!((kept.holds, kept.last_used), (said, Timestamp(1_500)));
    }

    #[test]
    fn a_start_has_the_room_of_what_was_wished_and_not_of_what_is_pinned() {
        // `Other` is a reason of a later release.
        use HoldReason::{Other, Pin, Prewarm};
        let hold = |reason| ImageHold { reason, by: String::new() };
        let image = |reasons: &[HoldReason]| CachedImage {
            digest: digest(1),
            last_used: Timestamp(1),
            holds: reasons.iter().copied().map(hold).collect(),
            own: ByteCount(1),
            layers: BTreeMap::new(),
        };
        let mut images =
            [image(&[Prewarm]), image(&[Prewarm, Pin]), image(&[Pin]), image(&[Other])];
        let_wishes_go(&mut images);
        let left =
            images.map(|image| image.holds.iter().map(|hold| hold.reason).collect::<Vec<_>>());
        assert_eq!(left, [vec![], vec![Pin], vec![Pin], vec![Other]]);
        let node = "n1".parse().unwrap();
        assert_eq!(kept_by_pins(ByteCount(0), &node), None);
        let told = kept_by_pins(ByteCount::mib(5), &node).unwrap();
        for word in ["keep 5 MiB", "image ls --node n1", "image prewarm IMAGE --rm"] {
            assert!(told.contains(word), "{word}: {told}");
        }
    }
}
