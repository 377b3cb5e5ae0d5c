use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::*;
use crate::unpack::tests::{digest_of, gzip};

/// Bytes of a piece here.
const PIECE: usize = 10_000;

/// A plain archive without end or form, which counts what is taken of it.
struct Counted<'a> {
    n_pieces: usize,
    n_given: &'a AtomicU64,
}

impl Blob for Counted<'_> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.n_pieces == 0 {
            return Ok(None);
        }
        self.n_pieces -= 1;
        self.n_given.fetch_add(PIECE as u64, Ordering::Relaxed);
        Ok(Some(vec![self.n_pieces as u8; PIECE].into()))
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn lifeline(&mut self) -> Box<dyn Send> {
        Box::new(())
    }
}

/// Gives a beginning, and then makes its reader wait for as long as its lifeline is kept.
struct Stuck {
    beginning: Option<Bytes>,
    lifeline: Option<mpsc::Sender<()>>,
    cut: mpsc::Receiver<()>,
}

impl Stuck {
    fn after(beginning: &[u8]) -> Self {
        let (lifeline, cut) = mpsc::channel();
        let beginning = Some(Bytes::copy_from_slice(beginning));
        Self { beginning, lifeline: Some(lifeline), cut }
    }
}

impl Blob for Stuck {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.beginning.take() {
            Some(bytes) => Ok(Some(bytes)),
            None => {
                self.cut.recv().unwrap_err();
                Err(io::Error::other(crate::unpack::Abandoned))
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.beginning.is_some()
    }

    fn lifeline(&mut self) -> Box<dyn Send> {
        Box::new(self.lifeline.take())
    }
}

/// One byte at a time.
struct Drops<'a>(&'a [u8]);

impl Blob for Drops<'_> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some((first, rest)) = self.0.split_first() else { return Ok(None) };
        self.0 = rest;
        Ok(Some(Bytes::copy_from_slice(&[*first])))
    }

    fn is_ready(&self) -> bool {
        false
    }

    fn lifeline(&mut self) -> Box<dyn Send> {
        Box::new(())
    }
}

fn read_all(mut archive: PlainReader) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes).map(|_| bytes).map_err(classify_read)
}

#[test]
fn a_slow_reader_holds_everything_up() {
    // What the decoder may have made, the piece that it is at, and the one that it has joined it with.
    let most = (PLAIN_BUFFERS * PLAIN_BUFFER + 2 * PIECE) as u64;
    let n_given = AtomicU64::new(0);
    let n_pieces = 2000;
    let size = ByteCount((n_pieces * PIECE) as u64);
    let blob = Counted { n_pieces, n_given: &n_given };
    let (read, passed) = pass(blob, size, &Limits::default(), |mut archive| {
        archive.read_exact(&mut [0; 1]).map_err(classify_read)?;
        let (mut before, mut since) = (0, Instant::now());
        let deadline = Instant::now() + Duration::from_secs(20);
        while before <= most / 2 || since.elapsed() < Duration::from_millis(300) {
            assert!(Instant::now() < deadline, "the decoder works ahead: {before}");
            let now = n_given.load(Ordering::Relaxed);
            assert!(now <= most, "{now} bytes were taken of the blob");
            if now != before {
                (before, since) = (now, Instant::now());
            }
            thread::sleep(Duration::from_millis(1));
        }
        read_all(archive)
    })
    .unwrap();
    let rest = read.unwrap();
    let whole: Vec<u8> = (0..n_pieces).rev().flat_map(|n| [n as u8; PIECE]).collect();
    assert_eq!(rest, whole[1..]);
    assert_eq!((passed.size, passed.unpacked), (size, size));
    assert_eq!((passed.blob, passed.diff_id), (digest_of(&whole), digest_of(&whole)));
}

#[test]
fn pieces_of_one_byte_are_decoded_as_any() {
    let plain = b"one two".repeat(100);
    let (first, second) = plain.split_at(99);
    let zstd = |bytes| zstd::encode_all(bytes, 1).unwrap();
    let gzipped = [gzip(first), gzip(second)].concat();
    let framed = [zstd(first), zstd(second)].concat();
    for blob in [gzipped, framed, plain.clone(), b"x".to_vec(), Vec::new()] {
        let size = ByteCount(blob.len() as u64);
        let (read, passed) = pass(Drops(&blob), size, &Limits::default(), read_all).unwrap();
        let read = read.unwrap();
        assert!(read == plain || read == blob);
        assert_eq!((passed.blob, passed.diff_id), (digest_of(&blob), digest_of(&read)));
        assert_eq!((passed.size, passed.unpacked), (size, ByteCount(read.len() as u64)));
    }
}

#[test]
fn what_is_here_is_read_before_more_is_waited_for() {
    let beginning = [7; 100];
    let size = ByteCount(1 << 20);
    let passed = pass(Stuck::after(&beginning), size, &Limits::default(), |mut archive| {
        let mut read = [0; 100];
        archive.read_exact(&mut read).unwrap();
        assert_eq!(read, beginning);
        // Nobody wants to know what the blob was.
        Err::<(), _>(UnpackError::Write {
            action: "writing",
            path: String::new(),
            source: io::ErrorKind::StorageFull.into(),
        })
    });
    assert!(matches!(passed, Err(UnpackError::Write { .. })));
}

#[test]
fn a_reader_that_refuses_an_archive_lets_its_blob_be_read_to_the_end() {
    let plain = vec![5; 3 << 20];
    let blob = gzip(&plain);
    let size = ByteCount(blob.len() as u64);
    let refuse = |_| {
        let error = std::fmt::Error;
        Err::<(), _>(UnpackError::Decompress(io::Error::other(error)))
    };
    let (read, passed) = pass(&blob[..], size, &Limits::default(), refuse).unwrap();
    assert!(matches!(read, Err(UnpackError::Decompress(_))));
    assert_eq!((passed.blob, passed.size), (digest_of(&blob), size));
}

#[test]
#[should_panic = "the reader's own"]
fn a_reader_that_panics_waits_for_nobody() {
    let _ = pass(Stuck::after(b"x"), ByteCount(9), &Limits::default(), |_| -> Result<(), _> {
        panic!("the reader's own")
    });
}
