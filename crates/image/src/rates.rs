//! How fast this machine does each stage of a pull, on one core: what bounds a pull here.
//!
//! By the code that a pull goes through, so that a slower library or a lost `O_DIRECT` shows. In seconds of the
//! processor and not of the wall, for several stages run at once and other work beside them. The archive and
//! its compressed forms are held in memory.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use longshore_types::{ByteCount, Digest};
use sha2::{Digest as _, Sha256};

use crate::compression::Decoder;
use crate::converted::{Converted, FRAME, FrameReader, convert};
use crate::erofs;
use crate::index::{self, LayerTree, merge};
use crate::limits::{LimitExceeded, Limits};
use crate::tar::{TarError, TarReader};
use crate::unpack::{self, DataFile, LayerIdentity, UnpackError};

/// The largest archive that is taken: it is held in memory four times over.
const LARGEST: ByteCount = ByteCount(2 << 30);
/// How long each stage is repeated, in seconds of the processor, which the kernel tells in hundredths.
const ENOUGH: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });
/// How layers are compressed by docker and buildx.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
/// Bytes of a buffer, as in a pull.
const BUFFER: usize = 256 << 10;

/// What one stage took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Which.
    pub stage: &'static str,
    /// Bytes of the archive that it was done for; of the blob for what is received, of the contents for frames.
    pub bytes: ByteCount,
    /// What it took of one core.
    pub cpu: Duration,
}

/// The rates of all stages, and how small the archive became.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// Each stage.
    pub stages: Vec<Rate>,
    /// Bytes of the archive by bytes with gzip.
    pub gzip_ratio: f64,
    /// Bytes of the archive by bytes with zstd.
    pub zstd_ratio: f64,
    /// Bytes of the contents by bytes in frames that the registry cuts.
    pub frames_ratio: f64,
}

/// Why the rates are not known.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The archive or the directory cannot be used.
    #[error("{action} {path:?}", path = .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The archive is too large.
    #[error("measuring with {path:?}", path = .path.display())]
    Limit {
        /// The archive.
        path: PathBuf,
        /// By how much.
        #[source]
        source: LimitExceeded,
    },
    /// It is no archive of a layer.
    #[error("reading {path:?} as a layer", path = .path.display())]
    Layer {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: UnpackError,
    },
}

/// What it is called, how many bytes it is done for, and what does it.
type Stage<'a> = (&'static str, u64, &'a dyn Fn() -> io::Result<()>);

/// Measures every stage with an archive of a layer, uncompressed, and files in the directory `scratch`.
pub fn measure(archive: &Path, scratch: &Path) -> Result<Rates, MeasureError> {
    let path = archive;
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| MeasureError::Io { action, path, source }
    };
    let length = fs::metadata(path).map_err(failed("looking at", path))?.len();
    LimitExceeded::check("bytes", length, LARGEST.0)
        .map_err(|source| MeasureError::Limit { path: path.to_owned(), source })?;
    let archive = fs::read(path).map_err(failed("reading", path))?;
    let layer = |source| MeasureError::Layer { path: path.to_owned(), source };
    let tree = tree_of(&archive, scratch).map_err(layer)?;
    let limits = Limits::default();
    let converted =
        convert(&archive[..], &identity_of(&archive), &limits, Vec::new()).map_err(layer)?;
    let gzip = gzip(&archive).map_err(failed("compressing", path))?;
    let zstd = zstd::encode_all(&archive[..], ZSTD_LEVEL).map_err(failed("compressing", path))?;
    let (n_bytes, n_contents) = (archive.len() as u64, converted.table.data.0);
    let stages: [Stage<'_>; 8] = [
        ("inflate", n_bytes, &|| decode(&gzip, &limits)),
        ("zstd", n_bytes, &|| decode(&zstd, &limits)),
        ("frames", n_contents, &|| read_frames(&converted)),
        ("sha256", n_bytes, &|| {
            let mut hasher = Sha256::new();
            archive.chunks(BUFFER).for_each(|piece| hasher.update(piece));
            std::hint::black_box(hasher.finalize());
            Ok(())
        }),
        ("blake3", n_bytes, &|| {
            archive.chunks(FRAME).for_each(|frame| {
                std::hint::black_box(blake3::hash(frame));
            });
            Ok(())
        }),
        ("tar", n_bytes, &|| read_archive(&archive, &limits).map_err(io::Error::other)),
        ("write", n_bytes, &|| write(&archive, scratch)),
        ("index", n_bytes, &|| make_index(&tree, &limits)),
    ];
    let rates = stages.into_iter().map(|(stage, n_bytes, act)| repeat(stage, n_bytes, act));
    let rates = rates.chain(std::iter::once_with(|| receive(&gzip)));
    let rates: io::Result<Vec<Rate>> = rates.collect();
    let rates = rates.map_err(failed("measuring with", path))?;
    let ratio = |n_bytes: u64, compressed: usize| n_bytes as f64 / compressed as f64;
    Ok(Rates {
        stages: rates,
        gzip_ratio: ratio(n_bytes, gzip.len()),
        zstd_ratio: ratio(n_bytes, zstd.len()),
        frames_ratio: ratio(n_contents, converted.frames.len()),
    })
}

/// Does something until it took enough.
fn repeat(stage: &'static str, n_bytes: u64, act: &dyn Fn() -> io::Result<()>) -> io::Result<Rate> {
    let mut bytes = ByteCount(0);
    let began = process_cpu()?;
    loop {
        act()?;
        bytes.0 += n_bytes;
        let cpu = process_cpu()?.saturating_sub(began);
        if cpu >= ENOUGH {
            return Ok(Rate { stage, bytes, cpu });
        }
    }
}

fn gzip(archive: &[u8]) -> io::Result<Vec<u8>> {
    let level = flate2::Compression::new(GZIP_LEVEL);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(archive)?;
    encoder.finish()
}

fn decode(blob: &[u8], limits: &Limits) -> io::Result<()> {
    let mut decoder = Decoder::open(blob, limits)?;
    let mut buffer = vec![0; BUFFER];
    while decoder.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Decodes and checks every frame, as the threads of a pull do.
fn read_frames(converted: &Converted<Vec<u8>>) -> io::Result<()> {
    let Converted { table, frames, .. } = converted;
    let (mut reader, mut room, mut rest) = (FrameReader::new()?, vec![0; FRAME], &frames[..]);
    for (idx, frame) in table.frames.iter().enumerate() {
        let (stored, others) = rest.split_at(table.stored_bytes(idx) as usize);
        rest = others;
        let room = &mut room[..table.frame_bytes(idx)];
        std::hint::black_box(reader.read(frame, stored, room).map_err(io::Error::other)?);
    }
    Ok(())
}

fn read_archive(archive: &[u8], limits: &Limits) -> Result<(), TarError> {
    let mut reader = TarReader::new(archive, limits);
    while reader.next_entry()?.is_some() {
        while reader.next_chunk()?.is_some() {}
    }
    Ok(())
}

/// Writes the bytes as a pull writes contents, until they are on the disk.
fn write(archive: &[u8], scratch: &Path) -> io::Result<()> {
    let path = scratch.join("data");
    let mut data = DataFile::new(File::create(&path)?);
    for piece in archive.chunks(BUFFER) {
        data.write_at(data.position(), piece)?;
    }
    data.finish()?;
    fs::remove_file(path)
}

/// What a pull does with the tree of a layer: its index is written and read, and metadata made of it.
fn make_index(tree: &LayerTree, limits: &Limits) -> io::Result<()> {
    let bytes = index::encode(tree);
    let trees = [index::decode(&bytes, limits.depth).map_err(io::Error::other)?];
    let merged = merge::merge(&trees);
    erofs::write(&merged.tree, &mut io::sink())
}

fn tree_of(archive: &[u8], scratch: &Path) -> Result<LayerTree, UnpackError> {
    let identity = identity_of(archive);
    let path = scratch.join("data");
    let failed = |source| UnpackError::Write {
        action: "creating",
        path: path.display().to_string(),
        source,
    };
    let data = File::create(&path).map_err(failed)?;
    let (_, tree) = unpack::index(archive, &identity, data, &Limits::default())?;
    Ok(tree)
}

/// The layer that an archive is without compression.
fn identity_of(archive: &[u8]) -> LayerIdentity {
    let digest = Digest::from_sha256(Sha256::digest(archive).into());
    LayerIdentity { blob: digest, size: ByteCount(archive.len() as u64), diff_id: digest }
}

/// Takes bytes from loopback, which costs the receiver about what it costs it from a network.
fn receive(blob: &[u8]) -> io::Result<Rate> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut rate = Rate { stage: "receive", bytes: ByteCount(0), cpu: Duration::ZERO };
    while rate.cpu < ENOUGH {
        let began = thread_cpu()?;
        let n_bytes = thread::scope(|scope| {
            let sender = scope.spawn(|| listener.accept()?.0.write_all(blob));
            let mut stream = TcpStream::connect(address)?;
            let mut buffer = vec![0; BUFFER];
            let mut n_bytes = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    n_read => n_bytes += n_read as u64,
                }
            }
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            io::Result::Ok(n_bytes)
        })?;
        rate.bytes.0 += n_bytes;
        rate.cpu += thread_cpu()?.saturating_sub(began);
    }
    Ok(rate)
}

/// What all threads of this process took so far, those that ended included.
fn process_cpu() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold anything, also parentheses; utime and stime are the 12th and
    // 13th fields behind it.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks: Option<u64> =
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().ok()).sum();
    let ticks = ticks.ok_or_else(|| io::Error::other("/proc/self/stat has no times"))?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// What this thread took so far.
fn thread_cpu() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
    nanos
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other("/proc/thread-self/schedstat has no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_rate_and_what_is_no_layer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.tar");
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        let contents: Vec<u8> = (0..4_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, "numbers", &contents[..]).unwrap();
        fs::write(&path, builder.into_inner().unwrap()).unwrap();
        let rates = measure(&path, dir.path()).unwrap();
        let names: Vec<_> = rates.stages.iter().map(|rate| rate.stage).collect();
        let decoders = ["inflate", "zstd", "frames"];
        let others = ["sha256", "blake3", "tar", "write", "index", "receive"];
        assert_eq!(names, [&decoders[..], &others].concat());
        assert!(rates.stages.iter().all(|rate| rate.bytes.0 > 0 && rate.cpu >= ENOUGH));
        let ratios = [rates.gzip_ratio, rates.zstd_ratio, rates.frames_ratio];
        assert!(ratios.iter().all(|ratio| *ratio > 2.0), "{rates:?}");

        fs::write(&path, b"no archive at all, and long enough to be looked at").unwrap();
        let refused = measure(&path, dir.path()).unwrap_err();
        assert!(matches!(refused, MeasureError::Layer { .. }), "{refused:?}");
        let absent = measure(&dir.path().join("absent"), dir.path()).unwrap_err();
        assert!(matches!(absent, MeasureError::Io { action: "looking at", .. }), "{absent:?}");
    }
}
