//! Layers from their converted form, and what makes them come as they were pushed.

use std::os::unix::fs::MetadataExt as _;

use super::forms::{Seen, corners, pull_by, ways};
use super::kept::large;
use super::*;
use crate::converted::artifact::{self, ConvertedLayer, ConvertedLayers};
use crate::converted::tests::noise;
use crate::converted::{Converted, Frame, Stored, Table};

/// What is done to something that was right.
type Change<T> = fn(&mut T);

/// Converts all layers of an image that a source has, and tells of them there.
pub(super) fn convert(
    parts: &ImageParts,
    source: &FakeSource,
    manifest: &Digest,
) -> Vec<ConvertedLayer> {
    let converted = (0..parts.n_layers()).map(|idx| {
        let of = parts.identity(idx);
        let Converted { index, table, frames } =
            crate::converted::convert(parts.bytes(idx), &of, &Limits::default(), Vec::new())
                .unwrap();
        (of.diff_id, [index, frames, table.encode()])
    });
    let layers: Vec<_> = converted.map(|(diff_id, blobs)| (diff_id, add(source, blobs))).collect();
    tell(source, manifest, layers.iter().copied().collect());
    layers.into_iter().map(|(_, layer)| layer).collect()
}

/// Converts the layers of an image that a registry would convert, and tells of them; gives how many.
pub(super) fn convert_what_may_be(
    parts: &ImageParts,
    (source, manifest): (&FakeSource, &Digest),
    limits: &Limits,
) -> usize {
    let converted = (0..parts.n_layers()).filter_map(|idx| {
        let of = parts.identity(idx);
        let made = crate::converted::convert(parts.bytes(idx), &of, limits, Vec::new()).ok()?;
        Some((of.diff_id, add(source, [made.index, made.frames, made.table.encode()])))
    });
    let layers: Vec<_> = converted.collect();
    tell(source, manifest, layers.iter().copied().collect());
    layers.len()
}

/// Adds the parts of a layer, each to be counted when it is asked for.
fn add(source: &FakeSource, blobs: [Vec<u8>; 3]) -> ConvertedLayer {
    let [index, frames, table] = blobs.map(|blob| {
        let described = described(&blob);
        source.add_layer(blob);
        described
    });
    ConvertedLayer { index, frames, table }
}

fn described(bytes: &[u8]) -> Descriptor {
    Descriptor { digest: digest_of(bytes), size: ByteCount(bytes.len() as u64) }
}

fn tell(source: &FakeSource, manifest: &Digest, layers: ConvertedLayers) {
    let size = ByteCount(source.manifest_size(manifest));
    let subject = Descriptor { digest: *manifest, size };
    let encoded =
        artifact::encode((images::MANIFEST, subject), described(artifact::EMPTY_CONFIG), &layers);
    source.add_converted(manifest, encoded);
}

/// The files of all layers, by the paths from the directory of layers.
pub(super) fn stored(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for layer in entries(root, "indexed") {
        for name in ["data", "index", "report.json"] {
            let path = root.join("indexed").join(&layer).join(name);
            files.push((format!("{layer}/{name}"), std::fs::read(path).unwrap()));
        }
    }
    files
}

#[tokio::test]
async fn what_comes_converted_is_what_would_be_unpacked() {
    for parts in [corners(), three_layers(), large()] {
        let plain = Arc::new(FakeSource::default());
        let digest = parts.clone().publish(&plain);
        let expected = tempfile::tempdir().unwrap();
        let store = open_by(expected.path(), KernelPath::Loop);
        pull(&store, &plain, &digest).await.unwrap();

        let source = Arc::new(FakeSource::default());
        parts.clone().publish(&source);
        let layers = convert(&parts, &source, &digest);
        for idx in 0..parts.n_layers() {
            source.remove_blob(&parts.blob(idx));
        }
        let root = tempfile::tempdir().unwrap();
        let store = open_by(root.path(), KernelPath::Loop);
        let events = Mutex::new(Vec::new());
        let progress = |event| events.lock().unwrap().push(event);
        let of = repository();
        let pulled = store.pull(Arc::clone(&source) as _, &of, &digest, &progress);
        let (_, report) = pulled.await.unwrap();
        assert_eq!((report.layers, report.converted_layers), (layers.len(), layers.len()));
        assert_eq!(report.why_plain, [""; 0]);
        let blobs = layers.iter().flat_map(ConvertedLayer::blobs);
        assert_eq!(report.bytes_fetched.0, blobs.map(|blob| blob.size.0).sum::<u64>());
        let all = |event: &PullEvent| matches!(event, PullEvent::LayerProgress { fetched, total, .. } if fetched == total);
        let events = events.into_inner().unwrap();
        // Whatever it came as, it is told in terms of what was pushed.
        let pushed: u64 = (0..parts.n_layers()).map(|idx| parts.blob_size(idx)).sum();
        assert_eq!(how_it_came(&events).0, pushed);
        let n_told = events.iter().filter(|event| all(event)).count();
        assert!(n_told >= layers.len());
        assert!(stored(root.path()) == stored(expected.path()));
        assert_no_leftovers(root.path());
        assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
    }
}

#[tokio::test]
async fn every_way_to_the_kernel_shows_the_same_of_converted_layers() {
    let source = Arc::new(FakeSource::default());
    let digest = corners().publish(&source);
    let expected = pull_by(KernelPath::Directories, &source, &digest).await.unwrap();
    convert(&corners(), &source, &digest);
    for kernel in ways() {
        // Directories are filled from the archive.
        if kernel != KernelPath::Directories {
            (0..3).for_each(|idx| source.replace_blob(&corners().blob(idx), Vec::clear));
        }
        let seen = pull_by(kernel, &source, &digest).await.unwrap();
        assert_eq!(seen, expected, "{kernel}");
    }
}

#[tokio::test]
async fn long_runs_of_zeros_take_no_room_wherever_they_are_in_a_frame() {
    let zeros = [400 << 10, 3 << 20, 300 << 10];
    let parts = zeros.map(|n_zeros| [noise(300 << 10, n_zeros as u64), vec![0; n_zeros]].concat());
    let n_bytes = parts.concat().len();
    let parts = ImageParts::default().plain(Archive::default().file("a", &parts.concat()));
    let source = Arc::new(FakeSource::default());
    let digest = parts.clone().publish(&source);
    convert(&parts, &source, &digest);
    let root = tempfile::tempdir().unwrap();
    pull(&open_by(root.path(), KernelPath::Loop), &source, &digest).await.unwrap();
    let layer = &entries(root.path(), "indexed")[0];
    let data = root.path().join("indexed").join(layer).join("data").metadata().unwrap();
    // As holes begin and end with pieces of 64 KiB.
    let most = (n_bytes - zeros.iter().sum::<usize>() + 2 * zeros.len() * (64 << 10)) as u64;
    assert!(data.blocks() * 512 <= most, "{} of {most}", data.blocks() * 512);
}

/// An image of one layer that is large enough to be kept while it comes.
fn four_frames() -> ImageParts {
    ImageParts::default().plain(Archive::default().file("a", &noise(4 << 20, 9)))
}

/// Pulls an image of one converted layer with something wrong, which must come as it was pushed.
async fn assert_plain(spoil: impl FnOnce(&FakeSource, &Digest, ConvertedLayer), why: &str) {
    let parts = four_frames();
    let source = Arc::new(FakeSource::default());
    let digest = parts.clone().publish(&source);
    let layer = convert(&parts, &source, &digest)[0];
    spoil(&source, &digest, layer);
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), KernelPath::Loop);
    let events = Mutex::new(Vec::new());
    let progress = |event| events.lock().unwrap().push(event);
    let of = repository();
    let pulled = store.pull(Arc::clone(&source) as _, &of, &digest, &progress);
    let (image, report) = pulled.await.unwrap_or_else(|error| panic!("{why}: {error:?}"));
    assert_eq!((report.converted_layers, report.why_plain.len()), (0, 1), "{why}");
    assert!(report.why_plain[0].contains(why), "{:?} and not {why:?}", report.why_plain);
    let is_told = |event: &PullEvent| matches!(event, PullEvent::LayerPlain { why: told, .. } if told.contains(why));
    // Of what concerns the whole image, no layer is told.
    let is_of_image = report.why_plain[0].starts_with("what is converted of the image");
    assert!(is_of_image || events.into_inner().unwrap().iter().any(is_told), "{why}");
    assert_eq!(Seen::of(&image).nodes[&b"a"[..]].size, 4 << 20);
    assert_no_leftovers(root.path());
    assert_eq!(entries(root.path(), "beginnings"), [""; 0], "{why}");
}

#[tokio::test]
async fn parts_that_are_damaged_or_missing_are_told_and_done_without() {
    assert_plain(|source, _, layer| source.remove_blob(&layer.table.digest), "the table").await;
    assert_plain(|source, _, layer| source.remove_blob(&layer.index.digest), "the index").await;
    assert_plain(|source, _, layer| source.remove_blob(&layer.frames.digest), "the frames").await;
    let flip = |source: &FakeSource, digest: &Digest, at: usize| {
        source.replace_blob(digest, |blob| blob[at] ^= 1);
    };
    let table = "the table of its converted form does not match";
    assert_plain(|source, _, layer| flip(source, &layer.table.digest, 50), table).await;
    let index = "the index of its converted form does not match";
    assert_plain(|source, _, layer| flip(source, &layer.index.digest, 9), index).await;
    let frame = "frame 3 of its converted form does not match";
    assert_plain(|source, _, layer| flip(source, &layer.frames.digest, (7 << 20) / 2), frame).await;
    let cut = |source: &FakeSource, digest: &Digest, n_bytes: usize| {
        source.replace_blob(digest, |blob| blob.truncate(n_bytes));
    };
    assert_plain(|source, _, layer| cut(source, &layer.table.digest, 200), table).await;
    let early = "the frames of its converted form cannot be had";
    assert_plain(|source, _, layer| cut(source, &layer.frames.digest, 2 << 20), early).await;
    let longer = |source: &FakeSource, digest: &Digest| {
        source.replace_blob(digest, |blob| blob.push(0));
    };
    assert_plain(|source, _, layer| longer(source, &layer.index.digest), index).await;
}

#[tokio::test]
async fn a_list_that_says_something_else_is_told_and_done_without() {
    let other = |source: &FakeSource, manifest: &Digest, change: fn(&mut ConvertedLayer)| {
        let layer = four_frames().identity(0).diff_id;
        let mut parts = convert(&four_frames(), source, manifest)[0];
        change(&mut parts);
        tell(source, manifest, [(layer, parts)].into());
    };
    let away = "the registry is away";
    assert_plain(|source, manifest, _| source.add_converted(manifest, Vec::new()), away).await;
    let none = "what is converted of the image cannot be read";
    assert_plain(|source, manifest, _| source.add_converted(manifest, b"{}".to_vec()), none).await;
    let cases: [(Change<ConvertedLayer>, &str); 5] = [
        (|parts| parts.table.size.0 = 1 << 40, "asks for too much"),
        (|parts| parts.index.size.0 = u64::MAX, "are not of one layer"),
        (|parts| parts.frames.size.0 = u64::MAX, "are not of one layer"),
        (|parts| parts.frames.size.0 -= 1, "are not of one layer"),
        (|parts| parts.table = parts.index, "it is not the table of a layer"),
    ];
    for (change, why) in cases {
        assert_plain(|source, manifest, _| other(source, manifest, change), why).await;
    }
}

/// The parts of the layer of [`four_frames`] with another table.
fn with_table(source: &FakeSource, manifest: &Digest, change: impl FnOnce(&mut Table)) {
    let of = four_frames().identity(0);
    let mut converted =
        crate::converted::convert(four_frames().bytes(0), &of, &Limits::default(), Vec::new())
            .unwrap();
    change(&mut converted.table);
    let Converted { index, table, frames } = converted;
    let layer = add(source, [index, frames, table.encode()]);
    tell(source, manifest, [(of.diff_id, layer)].into());
}

#[tokio::test]
async fn a_table_that_fits_nothing_is_told_and_done_without() {
    let cases: [(Change<Table>, &str); 5] = [
        (|table| table.diff_id = digest_of(b"another"), "are not of one layer"),
        (|table| table.index = described(b"another"), "are not of one layer"),
        (|table| table.frames[2].digest[31] ^= 1, "frame 2 of its converted form does not match"),
        // It reads what belongs to the next frame.
        (|table| table.frames[1].stored = Stored::Zstd(1 << 19), "are not of one layer"),
        // More than the index says.
        (
            |table| {
                table.data.0 += 4096;
                table.frames.push(Frame::ZEROS);
            },
            "are not of one layer",
        ),
    ];
    for (change, why) in cases {
        assert_plain(|source, manifest, _| with_table(source, manifest, change), why).await;
    }
}

#[tokio::test]
async fn what_is_converted_comes_so_and_the_rest_as_it_was_pushed() {
    let parts = three_layers();
    let source = Arc::new(FakeSource::default());
    let digest = parts.clone().publish(&source);
    let layers = convert(&parts, &source, &digest);
    tell(&source, &digest, [(parts.identity(1).diff_id, layers[1])].into());
    source.remove_blob(&parts.blob(1));
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), KernelPath::Loop);
    let (_, report) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!((report.layers, report.converted_layers, report.why_plain.len()), (3, 1, 0));
}

#[tokio::test]
async fn frames_that_are_there_are_kept_and_wrong_ones_come_again() {
    let parts = large();
    let source = Arc::new(FakeSource::default());
    let digest = parts.clone().publish(&source);
    let layer = convert(&parts, &source, &digest)[0];
    let whole = tempfile::tempdir().unwrap();
    pull(&open_by(whole.path(), KernelPath::Loop), &source, &digest).await.unwrap();
    let data = stored(whole.path()).remove(0).1;
    let before = layer.table.size.0 + layer.index.size.0;
    let frame = 1 << 20;
    let spoilt: [(Change<Vec<u8>>, u64); 6] = [
        (|_| (), 0),
        (|data| data[5 << 20] ^= 1, frame),
        (|data| data[(2 << 20) - 7..(2 << 20) + 7].fill(3), 2 * frame),
        (|data| data[3 << 20..6 << 20].fill(0), 3 * frame),
        (|data| data.truncate(7 << 20), layer.frames.size.0 - 7 * frame),
        (|data| data.resize(data.len() + 9999, 7), 0),
    ];
    for (spoil, expected) in spoilt {
        let root = tempfile::tempdir().unwrap();
        let store = open_by(root.path(), KernelPath::Loop);
        let mut bytes = data.clone();
        spoil(&mut bytes);
        let name = format!("{}.data", parts.identity(0).diff_id.hex());
        std::fs::write(root.path().join("beginnings").join(name), bytes).unwrap();
        let (_, report) = pull(&store, &source, &digest).await.unwrap();
        assert_eq!(report.bytes_fetched.0, before + expected);
        assert!(stored(root.path()) == stored(whole.path()));
        assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
    }
}

#[tokio::test]
async fn a_pull_that_is_dropped_is_gone_on_with() {
    let parts = large();
    let source = Arc::new(FakeSource::default());
    let digest = parts.clone().publish(&source);
    let layer = convert(&parts, &source, &digest)[0];
    source.fault(&layer.frames.digest, Fault::HangsBehind((6 << 20) + 99));
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), KernelPath::Loop);
    let fetched = Mutex::new(0);
    let progress = |event| {
        if let PullEvent::LayerProgress { fetched: n_bytes, .. } = event {
            *fetched.lock().unwrap() = n_bytes.0;
        }
    };
    let of = repository();
    tokio::select! {
        result = store.pull(Arc::clone(&source) as _, &of, &digest, &progress) => {
            panic!("{result:?}");
        }
        () = eventually(|| *fetched.lock().unwrap() > 6 << 20) => {}
    }
    eventually(|| entries(root.path(), "staging").is_empty()).await;
    source.heal();
    let (_, report) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!(report.converted_layers, 1);
    let all = layer.blobs().iter().map(|part| part.size.0).sum::<u64>();
    assert_eq!(report.bytes_fetched.0, all - (6 << 20));
    assert_no_leftovers(root.path());
}
