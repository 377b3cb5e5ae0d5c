//! What the processes do that are killed, and what must come of it in the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::mount::mounts_under;
use crate::store::OpenStoreError;
use crate::unpack::tests::listing::{Node, list};
use forms::{Seen, corners};

use super::super::super::fetch::PART;
use super::super::*;

/// Names the store's directory to such a process.
const STORE: &str = "LONGSHORE_TEST_WORK_STORE";
/// Says what it does.
const WORK: &str = "LONGSHORE_TEST_WORK";

/// What such a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Pulls an image with every corner, of layers in gzip, in zstd and plain, into directories.
    Directories,
    /// The same in the form that this kernel mounts.
    Mounted,
    /// The same again, of layers that the registry has converted.
    Converted,
    /// Pulls a large layer as one that is merely wished comes: given up in the midst of it, and gone
    /// on with.
    Wished,
    /// Pulls a large layer that is converted.
    LargeConverted,
    /// Removes one of two images that share a layer.
    Collect,
}

impl Work {
    pub const ALL: [Self; 6] = [
        Self::Directories,
        Self::Mounted,
        Self::Converted,
        Self::Wished,
        Self::LargeConverted,
        Self::Collect,
    ];

    /// Opens a store as a node does, but for the form that is wanted.
    pub fn open(self, root: &Path) -> ImageStore {
        let kernel = (self == Self::Directories).then_some(KernelPath::Directories);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            match ImageStore::open_with(root, Limits::default(), kernel) {
                // A thread of a pull that ended has still to let go of it.
                Err(OpenStoreError::InUse(_)) if std::time::Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                opened => return opened.unwrap(),
            }
        }
    }

    /// Puts its images into a source; the first one is what it is about.
    fn publish(self, source: &FakeSource) -> Vec<Digest> {
        let plain = |parts: ImageParts| vec![parts.publish(source)];
        let with_converted = |parts: ImageParts| {
            let digest = parts.clone().publish(source);
            converted::convert(&parts, source, &digest);
            vec![digest]
        };
        match self {
            Self::Directories | Self::Mounted => plain(corners()),
            Self::Converted => with_converted(corners()),
            Self::Wished => plain(large()),
            Self::LargeConverted => with_converted(large()),
            Self::Collect => {
                let shared = || Archive::default().file("shared", &[1; 9000]);
                let one = Archive::default().file("one", &[2; 5000]);
                let other = Archive::default().file("other", &[3; 5000]);
                let images = [one, other].map(|own| ImageParts::default().gzip(shared()).zstd(own));
                images.map(|parts| parts.publish(source)).into()
            }
        }
    }

    /// What has to be in the store before it.
    async fn prepare(self, store: &ImageStore, of: &Published) {
        if self == Self::Collect {
            for image in &of.images {
                pull(store, &of.source, image).await.unwrap();
            }
        }
    }

    /// Does it, and tells what it does.
    async fn run(self, store: &ImageStore, of: &Published, told: &(dyn Fn(String) + Sync)) {
        let image = of.images[0];
        let tell = |event: PullEvent| told(format!("{event:?}"));
        match self {
            Self::Collect => {
                told("collecting".to_owned());
                store.collect(&[image]).unwrap();
            }
            Self::Wished => {
                let root = store.inner.root();
                of.source.fault(&large().blob(0), Fault::HangsBehind(KEPT as usize + 9999));
                tokio::select! {
                    // An earlier one may have come as far as that there is nothing to fetch.
                    result = of.pull(store, &tell) => drop(result.unwrap()),
                    () = eventually(|| kept::n_kept(root) >= KEPT) => {}
                }
                of.source.heal();
                of.pull(store, &tell).await.unwrap();
            }
            _ => drop(of.pull(store, &tell).await.unwrap()),
        }
        told("done".to_owned());
    }
}

/// The length of what is kept when a wished image is given up: a whole buffer.
const KEPT: u64 = 4 << 20;

/// An image of one layer of which something is kept, in several buffers.
fn large() -> ImageParts {
    let mut bytes = vec![0; 5 * PART as usize];
    fastrand::Rng::with_seed(11).fill(&mut bytes);
    ImageParts::default().plain(Archive::default().file("a", &bytes))
}

/// Images in a source.
struct Published {
    source: Arc<FakeSource>,
    images: Vec<Digest>,
}

impl Published {
    fn new(work: Work) -> Self {
        let source = Arc::new(FakeSource::default());
        let images = work.publish(&source);
        Self { source, images }
    }

    async fn pull(
        &self,
        store: &ImageStore,
        told: &(dyn Fn(PullEvent) + Send + Sync),
    ) -> Result<(Image, PullReport), PullImageError> {
        store.pull(Arc::clone(&self.source) as _, &repository(), &self.images[0], told).await
    }
}

/// Not a test by itself: the process that is started and killed. It tells each step of a pull on its
/// output, and waits for the reader after each.
#[tokio::test]
async fn process_to_be_killed() {
    let Some(root) = std::env::var_os(STORE) else { return };
    let name = std::env::var(WORK).unwrap();
    let work = Work::ALL.into_iter().find(|work| format!("{work:?}") == name).unwrap();
    let published = Published::new(work);
    let store = work.open(Path::new(&root));
    work.run(&store, &published, &|told| println!("event {told}")).await;
}

/// What lies in a store, by its path there.
struct Contents(BTreeMap<Vec<u8>, Node>);

impl Contents {
    fn of(root: &Path) -> Self {
        let mut nodes = list(root);
        for (path, node) in &mut nodes {
            let is_of_tree = part(path, 2) == Some(&b"fs"[..]);
            // Of the rest, and of whiteouts, nobody sees the times.
            if node.kind == 'c' || !is_of_tree {
                node.mtime = (0, 0);
            }
            // A power cut may give contents back the name by which an interrupted pull finds them.
            if !is_of_tree {
                node.links = 1;
            }
        }
        Self(nodes)
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    /// Whatever has a name is as it is in a store that has all of it, and none of it is missing.
    fn assert_whole(&self, all: &Self, when: &str) {
        for (path, node) in &self.0 {
            if part(path, 0) != Some(&b"beginnings"[..]) || part(path, 1).is_none() {
                let text = String::from_utf8_lossy(path);
                assert_eq!(Some(node), all.0.get(path), "{when}: {text}");
            }
        }
        for path in all.0.keys() {
            let named: Vec<&[u8]> = path.splitn(3, |byte| *byte == b'/').take(2).collect();
            let is_here = self.0.contains_key(&named.join(&b'/'));
            let text = String::from_utf8_lossy(path);
            assert!(!is_here || self.0.contains_key(path), "{when}: {text} is missing");
        }
    }

    fn assert_is(&self, expected: &Self, when: &str) {
        assert_eq!(self.names(), expected.names(), "{when}");
        self.assert_whole(expected, when);
    }
}

/// A part of a path.
fn part(path: &[u8], idx: usize) -> Option<&[u8]> {
    path.split(|byte| *byte == b'/').nth(idx)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Killed,
    /// What was not synced is gone.
    PowerCut,
}

/// A work with what there is in the end.
pub(super) struct Scene {
    pub work: Work,
    published: Published,
    /// All that has ever a name.
    all: Contents,
    /// What is there in the end.
    end: Contents,
    /// What is seen of the image that is there in the end.
    seen: Seen,
}

impl Scene {
    pub async fn new(work: Work) -> Self {
        let published = Published::new(work);
        let root = tempfile::tempdir().unwrap();
        let store = work.open(root.path());
        work.prepare(&store, &published).await;
        let prepared = (work == Work::Collect).then(|| Contents::of(root.path()));
        work.run(&store, &published, &|_| ()).await;
        let end = || Contents::of(root.path());
        let (all, end) = (prepared.unwrap_or_else(end), end());
        let seen = Seen::of(&store.image(published.images.last().unwrap()).unwrap());
        Self { work, published, all, end, seen }
    }

    /// Makes a store in which the work can begin.
    pub async fn prepare(&self, root: &Path) {
        if self.work == Work::Collect {
            self.work.prepare(&self.work.open(root), &self.published).await;
        }
    }

    /// A process that does the work in a store.
    pub fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "pull::tests::crash::work::process_to_be_killed", "--nocapture"])
            .env(STORE, root)
            .env(WORK, format!("{:?}", self.work))
            .stdout(Stdio::piped());
        command
    }

    /// The image that is there in the end.
    pub fn lasting(&self) -> &Digest {
        self.published.images.last().expect("each has one")
    }

    /// Opens a store after a process ended: whatever has a name must be whole, and nothing left over.
    pub fn open(&self, root: &Path, when: &str) -> ImageStore {
        let store = self.work.open(root);
        let mounts = mounts_under(root).unwrap();
        assert!(mounts.is_empty(), "{when}: {mounts:?}");
        Contents::of(root).assert_whole(&self.all, when);
        let image = store.image(self.lasting());
        assert!(image.is_some() || self.work != Work::Collect, "{when}: another image is gone");
        if let Some(image) = image {
            assert_eq!(Seen::of(&image), self.seen, "{when}");
        }
        store
    }

    /// Does the work to its end: the store is as if nothing had ever ended early. Gives how many bytes
    /// had to come.
    pub async fn finish(&self, store: ImageStore, end: End, when: &str) -> u64 {
        let root = store.inner.root().to_owned();
        let n_bytes = match self.work {
            Work::Collect => {
                store.collect(&self.published.images[..1]).unwrap();
                0
            }
            // What was kept of a blob is not synced, and is found to be wrong once.
            Work::Wished if end == End::PowerCut => {
                let mut pulled = self.published.pull(&store, &|_| ()).await;
                if let Err(error) = &pulled {
                    let text = longshore_types::chain(error);
                    assert!(text.contains("the layer's bytes have the digest"), "{when}: {text}");
                    pulled = self.published.pull(&store, &|_| ()).await;
                }
                pulled.unwrap().1.bytes_fetched.0
            }
            _ => self.published.pull(&store, &|_| ()).await.unwrap().1.bytes_fetched.0,
        };
        let image = store.image(self.lasting()).unwrap();
        assert_eq!(Seen::of(&image), self.seen, "{when}");
        let lasts = |store: &ImageStore| store.image(self.lasting()) == Some(image.clone());
        assert!(lasts(&store), "{when}");
        drop(store);
        Contents::of(&root).assert_is(&self.end, when);
        assert!(lasts(&self.work.open(&root)), "{when}");
        n_bytes
    }
}
