//! Layers converted and put together again, and what hostile parts say.

use std::os::unix::fs::FileExt as _;

use longshore_types::ByteCount;

use super::artifact::{ConvertedLayer, ConvertedLayers};
use super::table::most_bytes;
use super::*;
use crate::index;
use crate::tar::tests::{Archive, RawHeader};
use crate::unpack::tests::{digest_of, gzip, identity};
use crate::unpack::{EntryProblem, LayerReport};

/// Bytes that nothing makes smaller.
pub(crate) fn noise(n_bytes: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; n_bytes];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// A little of everything: what does not shrink and what does, what meets the ends of frames, holes.
fn archives() -> Vec<Archive> {
    let sparse = |size: &str, map: &str| {
        let records = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        Archive::default().pax(&records)
    };
    let pattern: Vec<u8> = (0..3_300_000_u32).map(|n| (n / 7) as u8).collect();
    vec![
        Archive::default(),
        Archive::default().file("empty", b"").directory("d").symlink("l", "d"),
        Archive::default().file("a", &pattern).file("b", &noise(2_500_000, 1)).file("c", b"c"),
        Archive::default().file("exactly", &noise(FRAME, 2)).file("more", &pattern[..FRAME]),
        Archive::default().file("zeros", &vec![0; 5 * FRAME]).file("one", b"1"),
        sparse("9000001", "512,512,8000000,700")
            .raw(RawHeader::new(b'0', b"sparse").size(1212), &[9; 1212])
            .file("behind", &noise(70_000, 3)),
        Archive::default()
            .file(".wh.gone", b"")
            .file("d/.wh..wh..opq", b"")
            .file("linked", &noise(20_000, 4))
            .hard_link("d/again", "linked"),
    ]
}

/// What a node makes of the parts of a layer: the bytes of its data file.
fn contents(table: &Table, frames: &[u8]) -> Result<Vec<u8>, FrameProblem> {
    let mut reader = FrameReader::new().unwrap();
    let (mut whole, mut rest) = (Vec::new(), frames);
    for (idx, frame) in table.frames.iter().enumerate() {
        let (stored, behind) = rest.split_at(table.stored_bytes(idx) as usize);
        rest = behind;
        let mut bytes = vec![7; table.frame_bytes(idx)];
        whole.extend_from_slice(reader.read(frame, stored, &mut bytes)?);
    }
    assert_eq!(rest, b"");
    Ok(whole)
}

fn converted(blob: &[u8], plain: &[u8]) -> Converted<Vec<u8>> {
    convert(blob, &identity(blob, plain), &Limits::default(), Vec::new()).unwrap()
}

#[test]
fn what_is_put_together_again_is_what_a_node_unpacks() {
    for (n, archive) in archives().into_iter().enumerate() {
        let plain = archive.finish();
        let file = tempfile::tempfile().unwrap();
        let of = identity(&plain, &plain);
        let (report, tree) =
            unpack::index(&plain[..], &of, file.try_clone().unwrap(), &Limits::default()).unwrap();
        let mut expected = vec![7; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut expected, 0).unwrap();

        let Converted { index, table, frames } = converted(&plain, &plain);
        assert_eq!(index, index::encode(&tree), "{n}");
        assert_eq!((table.diff_id, &table.report), (of.diff_id, &report), "{n}");
        assert_eq!(table.index, described(&index));
        assert_eq!(table.data.0, expected.len() as u64, "{n}");
        assert_eq!(table.stored().0, frames.len() as u64, "{n}");
        assert!(contents(&table, &frames).unwrap() == expected, "{n}");
        assert_eq!(Table::decode(&table.encode(), &Limits::default()), Ok(table.clone()));

        let compressed = [gzip(&plain), zstd::encode_all(&plain[..], 1).unwrap()];
        for blob in compressed {
            let again = converted(&blob, &plain);
            assert_eq!((&again.index, &again.frames), (&index, &frames), "{n}");
            assert!(again.table == table && again.table.difference(&table).is_none(), "{n}");
        }
    }
}

fn described(bytes: &[u8]) -> Descriptor {
    Descriptor { digest: digest_of(bytes), size: ByteCount(bytes.len() as u64) }
}

#[test]
fn what_does_not_shrink_is_stored_as_it_is_and_zeros_are_not_stored() {
    let plain = Archive::default()
        .file("noise", &noise(FRAME, 1))
        .file("text", &[b'x'; FRAME])
        .file("zeros", &[0; FRAME])
        .finish();
    let Converted { table, frames, .. } = converted(&plain, &plain);
    let stored: Vec<Stored> = table.frames.iter().map(|frame| frame.stored).collect();
    let Stored::Zstd(n_bytes) = stored[1] else { panic!("{stored:?}") };
    assert_eq!(stored, [Stored::Raw, Stored::Zstd(n_bytes), Stored::Zeros]);
    assert!(n_bytes < 200, "{n_bytes}");
    assert_eq!(frames.len(), FRAME + n_bytes as usize);
}

#[test]
fn a_layer_that_a_node_refuses_is_not_converted() {
    let refused = |blob: &[u8], of: &LayerIdentity, limits: &Limits| {
        convert(blob, of, limits, Vec::new()).unwrap_err()
    };
    let plain = Archive::default().file("a", &[1; 100_000]).finish();
    let of = identity(&plain, &plain);
    let limits = Limits::default();
    let other = digest_of(b"other");
    let error = refused(&plain, &LayerIdentity { blob: other, ..of }, &limits);
    assert!(matches!(error, UnpackError::BlobDigest { .. }), "{error:?}");
    let error = refused(&plain, &LayerIdentity { diff_id: other, ..of }, &limits);
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error:?}");
    let error = refused(&plain[..9999], &of, &limits);
    assert!(matches!(error, UnpackError::BlobSize { .. }), "{error:?}");
    let few = Limits { layer_bytes: ByteCount(99_999), ..Limits::default() };
    assert!(matches!(refused(&plain, &of, &few), UnpackError::Limit(_)));
    let bomb = gzip(&Archive::default().file("a", &vec![0; 9 << 20]).finish());
    let small = Limits { ratio: 100, ratio_from: ByteCount(1 << 20), ..Limits::default() };
    let of = LayerIdentity { diff_id: other, ..identity(&bomb, &bomb) };
    assert!(matches!(refused(&bomb, &of, &small), UnpackError::Limit(_)));
    let climbs = Archive::default().hard_link("a", "nothing").finish();
    let error = refused(&climbs, &identity(&climbs, &climbs), &limits);
    let UnpackError::Entry { problem, .. } = error else { panic!("{error:?}") };
    assert!(matches!(problem, EntryProblem::LinkTargetMissing { .. }));
}

#[test]
fn an_error_of_where_frames_go_is_told() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let plain = Archive::default().file("a", &noise(20 * FRAME, 1)).finish();
    let error = convert(&plain[..], &identity(&plain, &plain), &Limits::default(), Full);
    let Err(UnpackError::Write { source, .. }) = error else { panic!("it was written") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn frames_that_are_damaged_are_found() {
    let plain = Archive::default().file("a", &noise(FRAME, 5)).file("b", &[1; FRAME]).finish();
    let Converted { table, frames, .. } = converted(&plain, &plain);
    contents(&table, &frames).unwrap();
    let n_packed = frames.len() - FRAME;
    for at in [0, 1000, FRAME - 1].into_iter().chain((0..n_packed).map(|at| FRAME + at)) {
        let mut damaged = frames.clone();
        damaged[at] ^= 1;
        // A bit of a header may mean nothing; then the bytes are right.
        if let Ok(read) = contents(&table, &damaged) {
            assert!(at > FRAME && read == contents(&table, &frames).unwrap(), "{at}");
        }
    }
    let mut reader = FrameReader::new().unwrap();
    let mut bytes = vec![0; FRAME];
    // Parts of one, and one that decodes to more than there is.
    for stored in [&frames[..0], &frames[..FRAME - 1], &frames[..FRAME + 1]] {
        reader.read(&table.frames[0], stored, &mut bytes).unwrap_err();
    }
    let long = zstd::encode_all(&vec![1; FRAME + 1][..], 3).unwrap();
    for stored in [&frames[FRAME..frames.len() - 1], &[], &long] {
        reader.read(&table.frames[1], stored, &mut bytes).unwrap_err();
    }
    reader.read(&table.frames[1], &frames[FRAME..], &mut bytes).unwrap();
}

fn small_table() -> Table {
    Table {
        diff_id: digest_of(b"layer"),
        index: described(b"index"),
        data: ByteCount(2 * FRAME as u64 + 4096),
        report: LayerReport { entries: 3, hides_all: true, ..LayerReport::default() },
        frames: vec![
            Frame { stored: Stored::Zstd(9), digest: [1; 32] },
            Frame::ZEROS,
            Frame { stored: Stored::Raw, digest: [2; 32] },
        ],
    }
}

/// Where a table says how many bytes of contents there are, and where its rows begin.
const DATA: usize = 8 + 4 + 32 + 40;
const ROWS: usize = DATA + 8 + 5 * 8 + 1;

#[test]
fn tables_that_say_what_cannot_be_are_refused() {
    let limits = Limits::default();
    let right = small_table().encode();
    assert_eq!(Table::decode(&right, &limits), Ok(small_table()));
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = right.clone();
        change(&mut bytes);
        Table::decode(&bytes, &limits).unwrap_err()
    };
    let says = |at: usize, number: u64| {
        refused(&|bytes| bytes[at..at + 8].copy_from_slice(&number.to_le_bytes()))
    };
    assert_eq!(refused(&|bytes| bytes.clear()), TableError::Magic);
    assert_eq!(refused(&|bytes| bytes[0] = b'l'), TableError::Magic);
    assert_eq!(refused(&|bytes| bytes[8] = 2), TableError::Version(2));
    for length in 8..right.len() {
        let error = refused(&|bytes| bytes.truncate(length));
        assert!(matches!(error, TableError::Length { .. }), "{length}: {error}");
    }
    assert!(matches!(refused(&|bytes| bytes.push(0)), TableError::Length { .. }));
    // Sizes that no memory holds, and such as would wrap.
    for number in [u64::MAX, u64::MAX - 4095, 1 << 60, 1 << 45] {
        assert!(matches!(says(DATA, number), TableError::Limit(_)), "{number}");
        assert!(matches!(says(DATA - 8, number), TableError::Limit(_)), "{number}");
    }
    for number in [0, 2 * FRAME as u64, 3 * FRAME as u64 + 4096] {
        assert!(matches!(says(DATA, number), TableError::Length { .. }), "{number}");
    }
    assert_eq!(says(DATA, 2 * FRAME as u64 + 5), TableError::Contents(2 * FRAME as u64 + 5));
    assert_eq!(refused(&|bytes| bytes[ROWS - 1] = 2), TableError::Flag);
    let row = |idx: usize, kind: u8, n_bytes: u32| {
        refused(&|bytes| {
            bytes[ROWS + 37 * idx] = kind;
            let length = ROWS + 37 * idx + 1;
            bytes[length..length + 4].copy_from_slice(&n_bytes.to_le_bytes());
        })
    };
    for (kind, n_bytes) in [(3, 0), (0, 0), (1, 1), (2, 0), (2, 1 << 20), (2, u32::MAX)] {
        assert_eq!(row(0, kind, n_bytes), TableError::Frame(0), "{kind} {n_bytes}");
    }
    assert_eq!(row(1, 0, 1), TableError::Frame(1));
    // The last one is shorter than the others.
    assert_eq!(row(2, 2, 4096), TableError::Frame(2));
    assert!(right.len() as u64 <= most_bytes(&limits));
}

#[test]
fn hostile_tables_are_tables_or_errors() {
    let right = small_table().encode();
    let mut random = fastrand::Rng::with_seed(8);
    let mut n_read = 0;
    for _ in 0..20_000 {
        let mut hostile = right.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(12..hostile.len());
            let any = random.u8(..);
            hostile[at] = random.choice([0, 1, 2, 0x7f, 0xff, any]).unwrap();
        }
        let Ok(table) = Table::decode(&hostile, &Limits::default()) else { continue };
        n_read += 1;
        assert_eq!(table.encode(), hostile);
        assert_eq!(table.frames.len() as u64, table.data.0.div_ceil(FRAME as u64));
        assert!(table.stored() <= table.data);
    }
    assert!(n_read > 100, "{n_read}");
}

#[test]
fn another_compression_is_of_the_same_and_other_bytes_are_not() {
    let table = small_table();
    let mut other = table.clone();
    other.frames[0].stored = Stored::Raw;
    assert!(table != other && table.difference(&other).is_none());
    for (change, told) in [
        ((|table| table.diff_id = digest_of(b"x")) as fn(&mut Table), digest_of(b"x").to_string()),
        (|table| table.index = described(b"x"), digest_of(b"x").to_string()),
        (|table| table.index.size.0 += 1, "of 5 bytes, and becomes".to_owned()),
        (|table| table.data.0 -= 4096, format!("becomes {}", 2 * FRAME)),
        (|table| table.frames.truncate(2), "bytes of contents".to_owned()),
        (|table| table.frames[2].digest[0] = 0xab, format!("frame 2 is {}", "02".repeat(32))),
        (|table| table.frames[2].digest[0] = 0xab, "becomes ab0202".to_owned()),
        (|table| table.report.whiteouts = 1, "reading its archive".to_owned()),
    ] {
        let mut other = table.clone();
        change(&mut other);
        let difference = table.difference(&other).unwrap().to_string();
        assert!(difference.contains(&told), "{told:?} in {difference}");
    }
}

#[test]
fn frames_that_are_not_what_their_table_says_are_found() {
    let plain = Archive::default()
        .file("noise", &noise(FRAME, 6))
        .file("zeros", &[0; FRAME])
        .file("text", &[b'x'; FRAME])
        .file("more", &noise(5000, 7))
        .finish();
    let Converted { table, frames, .. } = converted(&plain, &plain);
    let check = |table: &Table, frames: &[u8], piece: usize| {
        let mut stored = StoredFrames::new(table).unwrap();
        frames.chunks(piece).for_each(|piece| stored.take(piece));
        stored.finish()
    };
    for piece in [1009, 64 << 10, FRAME, frames.len()] {
        assert_eq!(check(&table, &frames, piece), None, "{piece}");
        let mut other = frames.clone();
        other[FRAME - 1] ^= 1;
        assert_eq!(check(&table, &other, piece), Some(Difference::Stored(0)), "{piece}");
        // A table that says otherwise, in memory that lost a bit.
        let mut wrong = table.clone();
        wrong.frames[2].digest[9] ^= 1;
        assert_eq!(check(&wrong, &frames, piece), Some(Difference::Stored(2)), "{piece}");
        let (expected, found) = (table.stored(), ByteCount(frames.len() as u64 - 1));
        let short = Some(Difference::Length { expected, found });
        assert_eq!(check(&table, &frames[..frames.len() - 1], piece), short, "{piece}");
        let long = check(&table, &[&frames[..], b"x"].concat(), piece);
        assert!(matches!(long, Some(Difference::Length { .. })), "{long:?}");
    }
    let nothing = converted(&[0; 1024], &[0; 1024]);
    assert_eq!(check(&nothing.table, &[], 1), None);
}

fn layers() -> ConvertedLayers {
    let layer = |name: &[u8]| ConvertedLayer {
        index: described(&[name, b"index"].concat()),
        frames: described(&[name, b"frames"].concat()),
        table: described(&[name, b"table"].concat()),
    };
    [(digest_of(b"1"), layer(b"1")), (digest_of(b"2"), layer(b"2"))].into()
}

#[test]
fn artifacts_are_read_as_they_are_written_and_others_are_refused() {
    let subject = described(b"image");
    let encoded = artifact::encode((MANIFEST, subject), described(b"{}"), &layers());
    assert_eq!(artifact::decode(&encoded, &subject.digest).unwrap(), layers());
    let text = String::from_utf8(encoded).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        artifact::decode(text.replacen(from, to, 1).as_bytes(), &subject.digest).unwrap_err()
    };
    use artifact::ArtifactError as Error;
    assert!(matches!(refused("{", ""), Error::Json(_)));
    assert!(matches!(refused("converted.v1", "converted.v2"), Error::Type(_)));
    assert!(matches!(refused("layer.index.v1", "layer.frames.v1"), Error::Parts));
    assert!(matches!(refused("diff-id", "diff"), Error::Parts));
    let (first, second) = (digest_of(b"1").to_string(), digest_of(b"2").to_string());
    assert!(matches!(refused(&first, &second), Error::Parts));
    assert!(matches!(refused(&first, "sha512:00"), Error::Digest(_)));
    let twice = text.replace(&second, &first);
    let error = artifact::decode(twice.as_bytes(), &subject.digest).unwrap_err();
    assert!(matches!(error, Error::Twice(diff_id) if diff_id == digest_of(b"1")));
    let error = artifact::decode(text.as_bytes(), &digest_of(b"other")).unwrap_err();
    assert!(matches!(error, Error::Subject { .. }), "{error}");
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
