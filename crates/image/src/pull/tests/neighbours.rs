//! Layers that come of neighbours and of the source at once, whatever the neighbours are like.

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::converted::{convert, stored};
use super::*;
use crate::converted::artifact::ConvertedLayer;
use crate::source::{Answer, FetchedManifest, Given, Known, Neighbour, Neighbours, Part};
use crate::store::Presence;

/// How long the source takes for each frame: longer than any neighbour that is well.
const PER_FRAME: Duration = Duration::from_millis(25);

/// What a neighbour does that is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    Gives,
    Lies,
    /// Gives half of a frame.
    Cuts,
    IsSlow,
    IsSilent,
    IsDead,
    Lacks,
    /// Says at once that it waits for it itself.
    Pretends,
}

struct Played(ImageStore, Manner);

impl Neighbour for Played {
    fn frame<'a>(
        &'a self,
        layer: &'a Digest,
        idx: usize,
    ) -> BoxFuture<'a, Result<Answer, SourceError>> {
        let Self(store, manner) = self;
        let given = async move {
            let patience = Duration::from_secs(if *manner == Manner::IsDead { 0 } else { 2 });
            match (manner, store.frame_comes(layer, idx, patience).await) {
                (Manner::IsDead, _) => {
                    return Err(SourceError::new("nobody answers", Retry::CanHelp));
                }
                (Manner::Lacks, _) | (Manner::Gives, Presence::NoLayer) => {
                    return Ok(Answer::Absent);
                }
                (Manner::Pretends, _) | (Manner::Gives, Presence::OnItsWay) => {
                    return Ok(Answer::OnItsWay);
                }
                (_, Presence::Here) => {}
                (_, presence) => panic!("it should have it: {presence:?}"),
            }
            let given = store.frame(layer, idx, Duration::ZERO).await.unwrap();
            let mut bytes = given.expect("it is here").to_vec();
            match manner {
                Manner::Lies => bytes[77] ^= 1,
                Manner::Cuts => bytes.truncate(1 << 19),
                Manner::IsSlow => tokio::time::sleep(Duration::from_secs(5)).await,
                Manner::IsSilent => std::future::pending().await,
                Manner::Gives | Manner::IsDead | Manner::Lacks | Manner::Pretends => {}
            }
            Ok(Answer::Given(bytes.into()))
        };
        given.boxed()
    }
}

/// A source for a node that has neighbours.
struct Beside(Arc<FakeSource>, Neighbours);

impl Source for Beside {
    fn manifest<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<FetchedManifest, SourceError>> {
        self.0.manifest(repository, digest)
    }

    fn blob<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
        part: Part,
    ) -> BoxFuture<'a, Result<Given, SourceError>> {
        self.0.blob(repository, digest, part)
    }

    fn converted<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, SourceError>> {
        self.0.converted(repository, manifest)
    }

    fn neighbours<'a>(&'a self, _: &'a Repository, _: &'a Digest) -> BoxFuture<'a, Neighbours> {
        async { self.1.clone() }.boxed()
    }
}

/// A source of one image with one converted layer of many frames.
struct Published {
    source: Arc<FakeSource>,
    image: Digest,
    parts: ConvertedLayer,
    diff_id: Digest,
}

fn published(n_frames: usize) -> Published {
    let mut bytes = vec![0; n_frames << 19];
    fastrand::Rng::with_seed(11).fill(&mut bytes);
    let archive = Archive::default().file("a", &bytes).file("b", &bytes);
    let parts = ImageParts::default().plain(archive);
    let source = Arc::new(FakeSource::default());
    let image = parts.clone().publish(&source);
    let diff_id = parts.identity(0).diff_id;
    let parts = convert(&parts, &source, &image)[0];
    Published { source, image, parts, diff_id }
}

impl Published {
    /// A store that has the image.
    async fn stored(&self, root: &Path) -> ImageStore {
        let store = open_by(root, KernelPath::Loop);
        pull(&store, &self.source, &self.image).await.unwrap();
        store
    }

    fn slow_down(&self, per_frame: Duration) {
        self.source.fault(&self.parts.frames.digest, Fault::Slow(per_frame));
    }

    /// How many bytes of frames the source gave while something was done.
    async fn given_during<T>(&self, done: impl Future<Output = T>) -> (T, u64) {
        let before = self.source.n_bytes_given(&self.parts.frames.digest);
        let done = done.await;
        (done, self.source.n_bytes_given(&self.parts.frames.digest) - before)
    }

    async fn pull_beside(&self, store: &ImageStore, own: &str, others: Vec<Known>) -> PullReport {
        let neighbours = Neighbours { own: own.to_owned(), others };
        let source = Arc::new(Beside(Arc::clone(&self.source), neighbours));
        store.pull(source, &repository(), &self.image, &|_| ()).await.unwrap().1
    }
}

fn known(name: &str, has_all: bool, store: &ImageStore, manner: Manner) -> Known {
    let asked = Arc::new(Played(store.clone(), manner));
    Known { name: name.to_owned(), has_all, asked }
}

#[tokio::test]
async fn what_a_neighbour_has_hardly_comes_of_the_source() {
    let published = published(24);
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let has = published.stored(first.path()).await;
    published.slow_down(PER_FRAME);
    let store = open_by(second.path(), KernelPath::Loop);
    let others = vec![known("n1", true, &has, Manner::Gives)];
    let pulled = published.pull_beside(&store, "n2", others);
    let (report, given) = published.given_during(pulled).await;
    assert!(given * 2 < published.parts.frames.size.0, "{given}");
    let before = published.parts.table.size.0 + published.parts.index.size.0;
    assert_eq!(report.bytes_fetched.0, before + given);
    assert!(report.bytes_of_neighbours.0 >= 6 << 20, "{report:?}");
    assert_eq!((report.converted_layers, report.given_up), (1, vec![]));
    assert!(stored(second.path()) == stored(first.path()));
    assert_no_leftovers(second.path());
    assert_eq!(entries(second.path(), "beginnings"), [""; 0]);
}

#[tokio::test]
async fn a_neighbour_of_any_kind_spoils_nothing_and_is_left_alone_afterwards() {
    let published = published(12);
    let first = tempfile::tempdir().unwrap();
    let has = published.stored(first.path()).await;
    published.slow_down(PER_FRAME);
    for (manner, why) in [
        (Manner::Lies, "does not match"),
        (Manner::Cuts, "does not match"),
        (Manner::IsSlow, "slower than the registry"),
        (Manner::IsSilent, "slower than the registry"),
        (Manner::IsDead, "nobody answers"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let store = open_by(root.path(), KernelPath::Loop);
        let others = vec![known("n1", true, &has, manner)];
        let (report, given) =
            published.given_during(published.pull_beside(&store, "n2", others.clone())).await;
        assert_eq!(given, published.parts.frames.size.0, "{manner:?}");
        assert_eq!((report.bytes_of_neighbours.0, report.given_up.len()), (0, 1), "{manner:?}");
        let told = &report.given_up[0];
        assert!(told.starts_with("n1: ") && told.contains(why), "{manner:?}: {told}");
        assert!(stored(root.path()) == stored(first.path()), "{manner:?}");
        let now = tokio::time::Instant::now();
        assert!(!store.inner.standings.may_be_asked("n1", now), "{manner:?}");

        if manner != Manner::Lies {
            continue;
        }
        // The next pull does not ask it.
        store.collect(&[published.image]).unwrap();
        let again = published.pull_beside(&store, "n2", others).await;
        assert_eq!((again.bytes_of_neighbours.0, again.given_up), (0, vec![]), "{manner:?}");
    }
}

#[tokio::test]
async fn one_that_lacks_what_it_was_said_to_have_is_not_blamed() {
    let published = published(12);
    let first = tempfile::tempdir().unwrap();
    let has = published.stored(first.path()).await;
    published.slow_down(PER_FRAME);
    for (manner, has_all) in [(Manner::Lacks, true), (Manner::Pretends, false)] {
        let root = tempfile::tempdir().unwrap();
        let store = open_by(root.path(), KernelPath::Loop);
        let others = vec![known("n1", has_all, &has, manner)];
        let report = published.pull_beside(&store, "n2", others).await;
        assert_eq!((report.bytes_of_neighbours.0, report.given_up), (0, vec![]), "{manner:?}");
        let now = tokio::time::Instant::now();
        assert!(store.inner.standings.may_be_asked("n1", now), "{manner:?}");
    }
}

#[tokio::test]
async fn a_frame_of_the_source_that_is_wrong_ends_the_race() {
    let published = published(12);
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), KernelPath::Loop);
    let last = |frames: &mut Vec<u8>| *frames.last_mut().unwrap() ^= 1;
    published.source.replace_blob(&published.parts.frames.digest, last);
    let others = vec![known("n1", false, &store, Manner::IsDead)];
    let report = published.pull_beside(&store, "n2", others).await;
    assert_eq!((report.converted_layers, report.why_plain.len()), (0, 1));
    assert!(report.why_plain[0].contains("of its converted form"), "{report:?}");
    assert_no_leftovers(root.path());
}

#[tokio::test]
async fn eight_that_pull_at_once_take_little_more_than_one_copy() {
    // What it takes eight nodes on one machine to pass a frame on is little beside this.
    pull_eight(Duration::from_millis(60)).await;
}

#[tokio::test]
async fn eight_at_a_slower_source_take_no_more_of_it() {
    // Longer than any of them would wait for one that is silent.
    pull_eight(Duration::from_millis(150)).await;
}

/// Has eight nodes pull of a source that takes so long for each frame. They took up to four copies of a slow one once;
/// the bound leaves room for a machine that is busy, on which a run of one frame is behind soon. The planner's own
/// tests have the narrow one.
async fn pull_eight(per_frame: Duration) {
    let published = published(24);
    published.slow_down(per_frame);
    let roots: Vec<_> = (0..8).map(|_| tempfile::tempdir().unwrap()).collect();
    let stores: Vec<_> = roots.iter().map(|root| open_by(root.path(), KernelPath::Loop)).collect();
    let pulls = (0..8).map(|me| {
        let others = stores.iter().enumerate().filter(|(other, _)| *other != me);
        let others = others
            .map(|(other, store)| known(&format!("n{other}"), false, store, Manner::Gives))
            .collect();
        let (store, published) = (&stores[me], &published);
        async move { published.pull_beside(store, &format!("n{me}"), others).await }
    });
    let reports = futures_util::future::join_all(pulls).await;
    let given = published.source.n_bytes_given(&published.parts.frames.digest);
    let one = published.parts.frames.size.0;
    assert!(given < 2 * one, "{given} of {one}");
    let of_neighbours: u64 = reports.iter().map(|report| report.bytes_of_neighbours.0).sum();
    assert!(of_neighbours > 6 * one, "{of_neighbours} of {one}");
    for (root, report) in roots.iter().zip(&reports) {
        assert_eq!(report.given_up, [""; 0]);
        assert!(stored(root.path()) == stored(roots[0].path()));
        assert_no_leftovers(root.path());
    }
}

#[tokio::test]
async fn frames_are_given_of_layers_that_are_here_or_come() {
    let published = published(24);
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), KernelPath::Loop);
    let (layer, long) = (&published.diff_id, Duration::from_secs(20));
    assert_eq!(store.frame(layer, 0, Duration::ZERO).await.unwrap(), None);
    assert_eq!(store.frame_comes(layer, 0, Duration::ZERO).await, Presence::NoLayer);
    published.source.fault(&published.parts.frames.digest, Fault::HangsBehind(3 << 20));
    let asked = async {
        let first = store.frame(layer, 1, long).await.unwrap().expect("it came");
        assert_eq!(store.frame(layer, 9, Duration::from_millis(5)).await.unwrap(), None);
        assert_eq!(store.frame_comes(layer, 9, Duration::ZERO).await, Presence::OnItsWay);
        assert_eq!(store.frame_comes(layer, 1, Duration::ZERO).await, Presence::Here);
        assert_eq!(store.frame_comes(layer, 999, long).await, Presence::NoFrame);
        published.source.heal();
        let later = store.frame(layer, 9, long).await.unwrap().expect("it came");
        (first, later)
    };
    let (pulled, (first, later)) =
        tokio::join!(pull(&store, &published.source, &published.image), asked);
    pulled.unwrap();
    let data = &stored(root.path())[0].1;
    assert!(first == data[1 << 20..2 << 20] && later == data[9 << 20..10 << 20]);
    // Of the last one as much as there is, and none behind it.
    let n_frames = data.len().div_ceil(1 << 20);
    let last = store.frame(layer, n_frames - 1, long).await.unwrap().unwrap();
    assert!(last == data[(n_frames - 1) << 20..]);
    for idx in [n_frames, usize::MAX] {
        assert_eq!(store.frame(layer, idx, Duration::ZERO).await.unwrap(), None);
        assert_eq!(store.frame_comes(layer, idx, long).await, Presence::NoFrame);
    }
}
